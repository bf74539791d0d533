"""A causal line as extra channels of queries and keys, for kernels that know no bias but multiply bfloat16 exactly."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

CHANNELS = 8
MOST_TOKENS = 131_072  # offsets from the middle are two digits of at most 256, which bfloat16 holds

_BASE = 256


def line_channels(
    slopes: Float32[Array, "*batch heads"], tokens: int
) -> tuple[Float32[Array, "*batch tokens heads channels"], Float32[Array, "tokens channels"]]:
    r"""Returns channels of queries and keys whose product is the line `-m (i - j)` but for a term constant in a row.

    .. math:: \sum_c a_c(i) b_c(j) = \sum_{p=1}^{3} m_p\,(256\,h_j + l_j) + r_1(i) + r_2(i)
        \approx m (j - c) - m (i - c)

    with `c` the middle of the tokens, `j - c = 256 h + l`, and `m_1 + m_2 + m_3` the slope to 2^-24 of itself. Every
    number is one of bfloat16, so that a product of two is exact in float32. `r`, `-m (i - c)` to 2^-16 of itself, is
    constant in a row, so no softmax sees how it is rounded; it keeps the sum small where `j` is near `i`. What is lost
    is what adding up in float32 loses, 2^-24 of `m` times half the tokens; nothing for a slope that is a power of 2.

    Args:
      slopes: `m`, nats per token.
      tokens: how many there are, of queries and of keys, each at one position more than the one before.

    Raises:
      ValueError: for more than 131,072 tokens.

    Source: after Wu et al., arXiv 2505.12044, where a line is a product of rank 2.
    """
    if tokens > MOST_TOKENS:
        raise ValueError(f"a line fits into channels up to {MOST_TOKENS} tokens, got {tokens}")
    offset = np.arange(tokens) - tokens // 2
    high = np.rint(offset / _BASE)
    low = offset - _BASE * high
    ones = np.ones(tokens)
    of_keys = np.stack([high, high, high, low, low, low, ones, ones], axis=-1).astype(np.float32)

    shape = (*slopes.shape[:-1], tokens, slopes.shape[-1])
    spread = jnp.broadcast_to(slopes.astype(jnp.float32)[..., None, :], shape)
    parts = _split(spread, 3)
    row = -spread * jnp.broadcast_to(jnp.asarray(offset, jnp.float32)[:, None], shape)
    of_queries = jnp.stack([*(_BASE * part for part in parts), *parts, *_split(row, 2)], axis=-1)
    return of_queries, jnp.asarray(of_keys)


def _split(x: Array, parts: int) -> list[Array]:
    """Returns numbers of bfloat16's precision that add up to `x`, the largest first."""
    found = []
    for _ in range(parts):
        part = jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)  # a pair of casts may be optimised away
        found.append(part)
        x = x - part
    return found
