"""One function for every format a checkpoint comes in."""

import os
from pathlib import Path

from rope_jax.checkpoints import gguf_checkpoint, huggingface, llama2c
from rope_jax.checkpoints.checkpoint import Checkpoint
from rope_jax.checkpoints.gguf_file import is_gguf
from rope_jax.errors import CheckpointError


def load_checkpoint(path: str | Path, *, max_bytes: int | None = None, dtype: str = "float32") -> Checkpoint:
    """Returns the checkpoint at `path`: a Hugging Face directory, a `.gguf` file, or a llama2.c `.bin` file.

    Args:
      path: the directory or file.
      max_bytes: most bytes the weights may take; the memory available where None.
      dtype: that quantised weights are read in; others keep their own.

    Raises:
      CheckpointError: if files are missing, damaged, or do not match the config.
      ConfigError: if the config holds a key or value that is not understood.
    """
    path = Path(path)
    if os.path.isdir(path):
        return huggingface.load(path, max_bytes=max_bytes)
    if not os.path.exists(path):
        raise CheckpointError(f"{path}: no such file or directory")
    if is_gguf(path):
        return gguf_checkpoint.load(path, max_bytes=max_bytes, dtype=dtype)
    if path.suffix != ".bin":
        raise CheckpointError(f"{path}: neither a directory with a config.json, nor a .gguf or llama2.c .bin file")
    return llama2c.load(path, max_bytes=max_bytes)
