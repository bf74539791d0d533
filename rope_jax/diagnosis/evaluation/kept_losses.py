"""Next-token losses of one checkpoint, every finished group of rows kept on disk, and a word on what is being done."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from rope_jax.attention.api import attend
from rope_jax.checkpoints.checkpoint import Checkpoint
from rope_jax.decoder import Schemes
from rope_jax.diagnosis.evaluation import kept_files
from rope_jax.diagnosis.evaluation.losses import LossProgram

_LOSS_BYTES = 8


class KeptLosses:
    """Runs a `LossProgram` where its losses under a scheme are not on disk yet.

    Args:
      checkpoint: the model.
      store: directory of finished losses; None for none.
      by_layer: whether every finished layer is told of; the compiled program then calls back to the host.

    Attributes:
      tell: is told in words what a call is doing.
    """

    def __init__(self, checkpoint: Checkpoint, *, store: Path | None = None, by_layer: bool = False) -> None:
        self._layers, self._done = checkpoint.config.num_layers, 0
        self._program = LossProgram(checkpoint.model, attention=self._telling if by_layer else attend)
        self._described, self._store = kept_files.made_with(checkpoint), store
        self._compiled: set[tuple[int, ...]] = set()
        self.tell: Callable[[str], None] = lambda what: None

    @property
    def compilations(self) -> int:
        """Programs compiled: one for each shape of rows that was not on disk."""
        return self._program.compilations

    def __call__(self, scheme: Schemes, tokens: np.ndarray) -> np.ndarray:
        """Returns losses `[rows, tokens - 1]` of `tokens` `[rows, tokens]`, on the host.

        Raises:
          InputError: if the store cannot be written to.
        """
        if self._store is None:
            return self._run(scheme, tokens)
        key = self._key(scheme, tokens)
        file = self._store / f"{key[:32]}.npz"
        kept = kept_files.read_arrays(file, key, largest=tokens.size * _LOSS_BYTES)
        if kept is not None:
            self.tell("kept already")
            return kept["losses"]
        losses = self._run(scheme, tokens)
        if np.isfinite(losses).all():  # what overflowed is an error that ends the run
            kept_files.write_arrays(file, key, {"losses": losses})
        return losses

    def _run(self, scheme: Schemes, tokens: np.ndarray) -> np.ndarray:
        self._done = 0
        if tokens.shape not in self._compiled:
            self.tell(f"compiling for {tokens.shape[1]} tokens a row")
            self._compiled.add(tokens.shape)
        return self._program(scheme, tokens)

    def _key(self, scheme: Schemes, tokens: np.ndarray) -> str:
        return kept_files.digest({"losses": self._described}, scheme, tokens)

    def _telling(self, *arguments):
        out, lse = attend(*arguments)
        # An element of the result: the call waits until the layer is done.
        jax.debug.callback(self._layer_done, out[(0,) * out.ndim])
        return out, lse

    def _layer_done(self, _) -> None:
        self._done += 1
        self.tell(f"layer {min(self._done, self._layers)} of {self._layers}")
