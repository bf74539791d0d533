"""Tiny random models on disk that read the bundled test models' contexts, and what they are asked."""

import json
from collections.abc import Mapping
from pathlib import Path

from flax import nnx

from rope_jax.checkpoints.saving import llama_config, save_llama
from rope_jax.decoder import Decoder, DecoderConfig
from rope_jax.diagnosis.tasks import contexts
from rope_jax.diagnosis.tasks.contexts import TRAINING
from rope_jax.diagnosis.tasks.subject import Subject, read_bundled_model
from rope_jax.diagnosis.verdict.answers import Margins

TRAINED, TARGET, BASE = 192, 384, 170.0
HEADS, DIM = 2, 8

LEARNED = Margins(learned=0.0)
"""What no model has learned counts as learned, so that the whole way is walked."""

SMALL: dict = {
    "contexts": 3, "text_rows": 2, "target_length": TARGET, "transforms": ("llama3",), "num_buckets": 8, "fit_steps": 1,
    "margins": LEARNED, "predict": False,
}  # fmt: skip
"""Options of a diagnosis that takes seconds."""


def tiny_decoder(seed: int = 0, **changes) -> Decoder:
    """A decoder of one layer whose random weights are large enough for positions to matter."""
    shape: dict = {"num_layers": 1, "num_heads": HEADS, "num_kv_heads": HEADS, "head_dim": DIM} | changes
    config = DecoderConfig(contexts.VOCAB_SIZE, 16, 24, rms_norm_eps=1e-5, tie_embeddings=True, **shape)
    model = Decoder(config, rngs=nnx.Rngs(seed))
    model.embedding[...] = model.embedding[...] * 20
    return model


def save_bundled_model(directory: Path, seed: int = 0, trained_length: int = TRAINED) -> Path:
    """Writes what `experiments/train.py` would have written, had it trained nothing."""
    save_checkpoint(directory, seed, trained_length=trained_length)
    (directory / TRAINING).write_text(json.dumps({"curve": []}))
    return directory


def save_checkpoint(directory: Path, seed: int = 0, *, trained_length: int = TRAINED, **config) -> Path:
    """Writes a checkpoint that is a user's own, with further keys of its config."""
    model = tiny_decoder(seed)
    save_llama(directory, model, llama_config(model, base=BASE, trained_length=trained_length) | config)
    return directory


def tiny_subject(directory: Path, *, rows: int = 3, text_rows: int = 2, seed: int = 0) -> Subject:
    return read_bundled_model(directory).asked(rows=rows, target_length=TARGET, text_rows=text_rows, seed=seed)


def untimed_costs(subject: Subject, schemes: Mapping) -> list[dict]:
    """What `costs_record` would return, had everything taken a millisecond."""
    alike = {"milliseconds": 1.0, "rounds": 5, "fastest": 1.0, "slowest": 1.0, "mib": 1.0}
    return [{"configuration": name, **alike} for name in schemes]
