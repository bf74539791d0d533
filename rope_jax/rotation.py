"""The rotation itself: pairs of dimensions turned by given cosines and sines.

A rotary embedding never changes; only the angles do. Two layouts of the pairs are in use and give different numbers
for the same weights: "half" pairs dimension `i` with `i + d/2`, "interleaved" pairs `2i` with `2i + 1`.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Float32

Layout = Literal["half", "interleaved"]


def check_layout(layout: str) -> None:
    """Raises `ValueError` unless `layout` is one of the layouts in use."""
    if layout not in get_args(Layout):
        raise ValueError(f"layout must be 'half' or 'interleaved', got {layout!r}")


def rotate(
    x: Float[Array, "*batch tokens heads dim"],
    cos: Float32[Array, "*#batch tokens pairs"],
    sin: Float32[Array, "*#batch tokens pairs"],
    *,
    layout: Layout,
) -> Float[Array, "*batch tokens heads dim"]:
    r"""Returns `x` with each pair of its first `2 * pairs` dimensions turned by its angle; the rest pass through.

    .. math:: (x_1, x_2) \mapsto (x_1 \cos - x_2 \sin,\; x_2 \cos + x_1 \sin)

    Args:
      x: queries or keys, any float dtype; turned in float32 and returned in its own dtype.
      cos: cosines, one a token and pair; with the cos/sin factor multiplied in, if there is one.
      sin: sines. Negated, they turn back: `rotate(rotate(x, c, s), c, -s) = x`.
      layout: "half" or "interleaved"; a property of the weights.

    Raises:
      ValueError: if more dimensions would turn than `x` has, cos and sin are not one a token, or the layout is unknown.

    Source: Su et al., arXiv 2104.09864, equation 34.
    """
    check_layout(layout)
    _check_tokens(x, cos, sin)
    pairs = cos.shape[-1]
    if 2 * pairs > x.shape[-1]:
        raise ValueError(f"{2 * pairs} rotary dimensions do not fit into a head of {x.shape[-1]}")
    if pairs == 0:
        return x
    # The barrier keeps a compiler from working cos and sin out anew for every head.
    c, s = (table[..., None, :] for table in jax.lax.optimization_barrier((cos, sin)))
    return turn(x, c, s, layout=layout)


def turn(x: Float[Array, "*shape dim"], cos: Array, sin: Array, *, layout: Layout) -> Float[Array, "*shape dim"]:
    """Returns what `rotate` does, of tables that broadcast against the pairs of `x` and are kept in memory already."""
    pairs = cos.shape[-1]
    if pairs == 0:
        return x
    first, second = _split(x[..., : 2 * pairs].astype(jnp.float32), layout)
    turned = _join(first * cos - second * sin, second * cos + first * sin, layout).astype(x.dtype)
    return jnp.concatenate([turned, x[..., 2 * pairs :]], axis=-1) if 2 * pairs < x.shape[-1] else turned


def _check_tokens(x: Array, cos: Array, sin: Array) -> None:
    """Cosines of one token would otherwise broadcast over all of them."""
    shared, of_x = cos.shape[:-2], x.shape[:-3]
    fits = cos.shape == sin.shape and x.ndim >= 3 and 2 <= cos.ndim < x.ndim and cos.shape[-2] == x.shape[-3]
    if not fits or any(n not in (1, m) for n, m in zip(shared[::-1], of_x[::-1], strict=False)):
        raise ValueError(
            f"cos {cos.shape} and sin {sin.shape} must be [*batch, tokens, pairs] for an x of [*batch, tokens, heads, "
            f"dim], got {x.shape}"
        )


def as_complex(x: Float[Array, "*shape dim"], *, layout: Layout) -> Complex[Array, "*shape pairs"]:
    """Returns each pair as one complex number, on which a rotation is a product with `e^(i angle)`."""
    first, second = _split(x.astype(jnp.float32), layout)
    return first + 1j * second


def from_complex(z: Complex[Array, "*shape pairs"], *, layout: Layout) -> Float[Array, "*shape dim"]:
    """Returns the real form of `z`; the inverse of `as_complex`."""
    return _join(z.real, z.imag, layout)


def rotation_matrix(
    cos: Float32[Array, "*batch pairs"], sin: Float32[Array, "*batch pairs"], *, layout: Layout
) -> Float[Array, "*batch dim dim"]:
    """Returns the block rotation as a matrix, for checks on paper; `rotate` never forms it."""
    dim = 2 * cos.shape[-1]
    columns = jnp.eye(dim).reshape((1,) * (cos.ndim - 1) + (dim, dim))
    first, second = _split(columns, layout)
    c, s = cos[..., None, :], sin[..., None, :]
    return jnp.swapaxes(_join(first * c - second * s, second * c + first * s, layout), -1, -2)


def interleaved_to_half(dim: int) -> np.ndarray:
    """Returns `p` such that rows `w[p]` of an interleaved projection are its half-split form.

    >>> interleaved_to_half(6).tolist()
    [0, 2, 4, 1, 3, 5]
    """
    return np.arange(dim).reshape(dim // 2, 2).T.reshape(dim)


def half_to_interleaved(dim: int) -> np.ndarray:
    """Returns the inverse permutation of `interleaved_to_half`."""
    return np.argsort(interleaved_to_half(dim))


def sinusoidal(
    cos: Float32[Array, "*batch tokens pairs"],
    sin: Float32[Array, "*batch tokens pairs"],
    *,
    layout: Layout,
) -> Float32[Array, "*batch tokens dim"]:
    """Returns additive sinusoidal embeddings, sine first, from the phases a rotary embedding would turn by.

    Interleaved is the paper's order; "half" puts all sines before all cosines, as tensor2tensor and fairseq do, whose
    frequencies are `b^(-i/(d/2 - 1))`. Source: Vaswani et al., arXiv 1706.03762, section 3.5.
    """
    return _join(sin, cos, layout)


# Halves are taken and put back as two rows of one array: XLA writes each side of a split or a concatenation by itself.


def _split(x: Float[Array, "*shape dim"], layout: Layout):
    check_layout(layout)
    if layout == "half":
        halves = x.reshape(*x.shape[:-1], 2, x.shape[-1] // 2)
        return halves[..., 0, :], halves[..., 1, :]
    pairs = x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2)
    return pairs[..., 0], pairs[..., 1]


def _join(first: Array, second: Array, layout: Layout):
    check_layout(layout)
    if layout == "half":
        return jnp.stack([first, second], axis=-2).reshape(*first.shape[:-1], 2 * first.shape[-1])
    return jnp.stack([first, second], axis=-1).reshape(*first.shape[:-1], 2 * first.shape[-1])
