"""A decoder of the Llama or the Gemma family that takes its positional scheme as an argument."""

from rope_jax.decoder.cache import Cache, Cached, empty_cache
from rope_jax.decoder.cached_attention import Schemes, each_scheme
from rope_jax.decoder.config import Activation, DecoderConfig
from rope_jax.decoder.decoder import Attend, Decoder
from rope_jax.decoder.generate import continue_from, generate
from rope_jax.decoder.migration import migrate, migration_gap, reprefill

__all__ = [
    "Activation",
    "Attend",
    "Cache",
    "Cached",
    "Decoder",
    "DecoderConfig",
    "Schemes",
    "continue_from",
    "each_scheme",
    "empty_cache",
    "generate",
    "migrate",
    "migration_gap",
    "reprefill",
]
