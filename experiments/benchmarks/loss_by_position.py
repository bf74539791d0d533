"""Mean loss of a checkpoint by position: where a model stops using its context, or breaks.

    python experiments/benchmarks/loss_by_position.py CHECKPOINT TEXT... [--tokens=8192] [--parts=8]

`CHECKPOINT` is anything that `load_checkpoint` reads, a .gguf file too. The texts are joined in the order of their
names and read with the checkpoint's tokenizer, or are one .npy of token ids; the first `--tokens` of them are one row,
run once in float32 under the scheme that the checkpoint declares.
"""

import itertools
import json
import pathlib
import sys
import time

import numpy as np
from absl import app, flags, logging

from rope_jax.checkpoints.checkpoint import Checkpoint, schemes_of
from rope_jax.checkpoints.loading import load_checkpoint
from rope_jax.diagnosis.evaluation.losses import LossProgram
from rope_jax.diagnosis.tasks.tokenizer_file import encode_documents

_TOKENS = flags.DEFINE_integer("tokens", 8192, "Tokens of the row.")
_PARTS = flags.DEFINE_integer("parts", 8, "Parts of equal length that the mean is printed for.")
_JSON = flags.DEFINE_boolean("json", False, "One JSON object in place of the table.")


def main(argv: list[str]) -> None:
    """Prints the mean loss of every part of the row."""
    logging.set_verbosity(logging.WARNING)
    if len(argv) < 3:
        sys.exit("usage: loss_by_position.py CHECKPOINT TEXT...")
    if not 1 <= _PARTS.value < _TOKENS.value:
        sys.exit("--parts must be at least 1 and below --tokens")
    checkpoint = load_checkpoint(argv[1])
    row = tokens_of(checkpoint, [pathlib.Path(path) for path in argv[2:]])[: _TOKENS.value]
    if len(row) < _TOKENS.value:
        sys.exit(f"the texts have {len(row)} tokens, --tokens asks for {_TOKENS.value}")
    begun = time.perf_counter()
    losses = LossProgram(checkpoint.model)(schemes_of(checkpoint, length=len(row)), row[None])[0]
    seconds = time.perf_counter() - begun
    edges = np.linspace(0, len(losses), _PARTS.value + 1).astype(int)
    parts = [(int(first), int(last), float(losses[first:last].mean())) for first, last in itertools.pairwise(edges)]
    record = {
        "checkpoint": checkpoint.origin,
        "sha256": checkpoint.sha256,
        "tokens": len(row),
        "declared_length": checkpoint.positions.declared_length,
        "mean_loss": float(losses.mean()),
        "parts": [{"first": first, "last": last, "mean_loss": mean} for first, last, mean in parts],
        "seconds": seconds,
    }
    if _JSON.value:
        print(json.dumps(record))
        return
    print(f"{checkpoint.origin}: {len(row)} tokens in {seconds:.0f} s with compilation; mean loss {losses.mean():.3f}")
    for first, last, mean in parts:
        print(f"{first:>8} - {last:<8}{mean:8.3f}")


def tokens_of(checkpoint: Checkpoint, files: list[pathlib.Path]) -> np.ndarray:
    """Returns the ids of all texts joined, or those of one .npy file."""
    if len(files) == 1 and files[0].suffix == ".npy":
        return np.load(files[0]).reshape(-1).astype(np.int32)
    if checkpoint.tokenizer_file is None:
        sys.exit(f"{checkpoint.origin} has no tokenizer: pass a .npy of token ids")
    text = "".join(file.read_text(encoding="utf-8") for file in sorted(files))
    return encode_documents(checkpoint.tokenizer_file, [text], origin=str(files[0])).astype(np.int32)


if __name__ == "__main__":
    app.run(main)
