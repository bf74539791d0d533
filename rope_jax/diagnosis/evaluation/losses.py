"""Next-token losses of a decoder under a scheme: one compiled program, whatever the scheme."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int

from rope_jax.attention.api import attend
from rope_jax.decoder import Attend, Decoder, Schemes
from rope_jax.diagnosis.evaluation.compiled import SchemeProgram
from rope_jax.diagnosis.evaluation.rows import each_row, summed_gradient

_UNEMBED_BLOCK = 256


def next_token_losses(
    decoder: Decoder, scheme: Schemes, tokens: Int[Array, "rows tokens"], *, attention: Attend = attend
) -> Float32[Array, "rows tokens-1"]:
    """Returns `-ln p(token[t+1] | tokens[0..t])` for every `t`, in nats.

    Logits exist for one block of tokens at a time, since a whole row's would not fit for large vocabularies.
    """
    length = tokens.shape[1]
    padding = -length % _UNEMBED_BLOCK

    @jax.checkpoint
    def of_block(block):
        x, target = block
        logits = decoder.unembed(x[None])[0]
        chosen = jnp.take_along_axis(logits, target[:, None], axis=-1)[:, 0]
        return jax.nn.logsumexp(logits, axis=-1) - chosen

    def of_row(row: Int[Array, " tokens"]) -> Float32[Array, " tokens-1"]:
        hidden = decoder.hidden(row[None], scheme, attention=attention)[0]
        hidden = jnp.pad(hidden, ((0, padding), (0, 0))).reshape(-1, _UNEMBED_BLOCK, hidden.shape[-1])
        targets = jnp.pad(row[1:], (0, padding + 1)).reshape(-1, _UNEMBED_BLOCK)
        return jax.lax.map(of_block, (hidden, targets)).reshape(-1)[: length - 1]

    return each_row(of_row, tokens, config=decoder.config, length=length)


def loss_gradient(
    of: Callable[[Any], tuple[Decoder, Schemes]],
    at: Any,
    tokens: Int[Array, "rows tokens"],
    weights: Float32[Array, "rows tokens-1"],
) -> Any:
    """Returns the gradient of the weighted mean of next-token losses.

    Args:
      of: the decoder and the scheme that it runs under.
      at: a pytree of arrays, what `of` makes them from and the gradient is of.
      tokens: rows of token ids.
      weights: of every next token in the mean.
    """

    def loss(at, row, weights):
        decoder, scheme = of(at)
        return (next_token_losses(decoder, scheme, row[None])[0] * weights).sum()

    rows = tokens, weights / weights.sum()
    return summed_gradient(loss, at, rows, config=of(at)[0].config, length=tokens.shape[1])


class LossProgram(SchemeProgram):
    """The next-token losses of one decoder.

    Args:
      decoder: the model.
      attention: computes every layer's attention; see `Decoder.hidden`.
    """

    def __init__(self, decoder: Decoder, *, attention: Attend = attend) -> None:
        super().__init__(decoder, functools.partial(next_token_losses, attention=attention))

    def __call__(self, scheme: Schemes, tokens: np.ndarray) -> np.ndarray:
        """Returns losses `[rows, tokens - 1]` of `tokens` `[rows, tokens]`, on the host."""
        return self.run(scheme, jnp.asarray(tokens, jnp.int32))
