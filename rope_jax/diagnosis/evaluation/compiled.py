"""A decoder's answers compiled once: the scheme is an argument, so that every retrofit runs the same program."""

from collections.abc import Callable

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array

from rope_jax.decoder import Decoder, Schemes

OfRows = Callable[..., Array]
"""From a decoder, a scheme and arrays with a leading axis of rows to a result of every row."""


class SchemeProgram:
    """One function of a decoder, compiled once for each shape of rows.

    Args:
      decoder: the model; its weights are shared by all calls.
      of_rows: what is asked of it.

    Attributes:
      compilations: programs compiled so far, one for each shape of rows, however many schemes.
    """

    def __init__(self, decoder: Decoder, of_rows: OfRows) -> None:
        graph, self._state = nnx.split(decoder)
        self.compilations = 0

        @jax.jit
        def run(state, scheme: Schemes, rows):
            self.compilations += 1  # runs only while tracing, that is, once for each compilation
            return of_rows(nnx.merge(graph, state), scheme, *rows)

        self._run = run

    def run(self, scheme: Schemes, *rows: Array) -> np.ndarray:
        """Returns the result of every row, on the host.

        Args:
          scheme: the positional scheme, or one for each layer type.
          *rows: arrays with a leading axis of rows.
        """
        return np.asarray(self._run(self._state, scheme, rows))
