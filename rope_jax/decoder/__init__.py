"""A Llama-family decoder that takes its positional scheme as an argument."""

from rope_jax.decoder.cache import Cache, empty_cache
from rope_jax.decoder.config import DecoderConfig
from rope_jax.decoder.decoder import Decoder, Schemes
from rope_jax.decoder.generate import generate

__all__ = ["Cache", "Decoder", "DecoderConfig", "Schemes", "empty_cache", "generate"]
