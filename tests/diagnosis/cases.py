"""Synthetic pieces: a tiny random bundled test model on disk, its subject, and scores of models that never were."""

import json
from pathlib import Path

import numpy as np
from flax import nnx

from rope_jax.checkpoints.saving import llama_config, save_llama
from rope_jax.decoder import Decoder, DecoderConfig
from rope_jax.diagnosis.evaluation.cell_runs import Scores
from rope_jax.diagnosis.tasks import contexts
from rope_jax.diagnosis.tasks.registry import PROBES
from rope_jax.diagnosis.tasks.subject import Subject, read_bundled_model
from rope_jax.diagnosis.verdict.attribution import Used

TRAINED, TARGET, BASE = 192, 384, 170.0
HEADS, DIM = 2, 8


def tiny_decoder(seed: int = 0, **changes) -> Decoder:
    """A decoder of one layer whose random weights are large enough for positions to matter."""
    shape: dict = {"num_layers": 1, "num_heads": HEADS, "num_kv_heads": HEADS, "head_dim": DIM} | changes
    config = DecoderConfig(contexts.VOCAB_SIZE, 16, 24, rms_norm_eps=1e-5, tie_embeddings=True, **shape)
    model = Decoder(config, rngs=nnx.Rngs(seed))
    model.embedding[...] = model.embedding[...] * 20
    return model


def save_bundled_model(directory: Path, seed: int = 0) -> Path:
    """Writes what `experiments/train.py` would have written, had it trained nothing."""
    model = tiny_decoder(seed)
    save_llama(directory, model, llama_config(model, base=BASE, trained_length=TRAINED))
    (directory / "training.json").write_text(json.dumps({"curve": []}))
    return directory


def tiny_subject(directory: Path, *, rows: int = 3, text_rows: int = 2, seed: int = 0) -> Subject:
    return read_bundled_model(directory).asked(rows=rows, target_length=TARGET, text_rows=text_rows, seed=seed)


def used(*precision: str, retrieval: bool = True) -> Used:
    return Used(precision=precision or ("binding", "order"), retrieval=retrieval, refused={}, accuracy={})


def scores(
    *,
    long: float | dict[str, float] = 4.0,
    short: float = 4.0,
    ret: float = 4.0,
    accuracy: float | None = None,
    short_accuracy: float = 1.0,
    text: tuple[float, float] = (1.0, 1.0),
    noise: float = 0.1,
    rows: int = 12,
    seed: int = 0,
) -> Scores:
    """Scores of a made-up model, the noise of a context the same in every one of them but for a tenth.

    Args:
      long: log-odds of the precision probes at the target length, by probe or all alike.
      short: of all probes at the trained length.
      ret: of retrieval at the target length.
      accuracy: of the precision probes at the target length; from 0 to 1 with their log-odds where None.
      short_accuracy: of all probes at the trained length.
      text: losses of text, short and long.
      noise: standard deviation between contexts.
      rows: contexts.
      seed: of what this model alone has of the noise.
    """
    shared, own = np.random.default_rng(99), np.random.default_rng(seed)
    by_probe = {name: long[name] if isinstance(long, dict) else long for name in PROBES if name != "retrieval"}

    def around(value: float, scale: float = 1.0) -> np.ndarray:
        return value + scale * noise * (shared.standard_normal(rows) + 0.1 * own.standard_normal(rows))

    accuracies = {
        name: np.full(rows, (value + 4.6) / 9.2 if accuracy is None else accuracy) for name, value in by_probe.items()
    }
    return Scores(
        answers={},
        log_odds={
            "short": {name: around(short) for name in PROBES},
            "long": {"retrieval": around(ret)} | {name: around(value) for name, value in by_probe.items()},
        },
        accuracy={
            "short": dict.fromkeys(PROBES, np.full(rows, short_accuracy)),
            "long": {"retrieval": np.ones(rows)} | accuracies,
        },
        loss={"short": around(text[0], 0.1), "long": around(text[1], 0.1)},
        losses=np.zeros((rows, 1), np.float32),
    )
