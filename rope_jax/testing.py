"""Assertions for users' own tests of positional code; each raises `AssertionError` with the worst offender.

They take plain functions, so that code which knows nothing of this library can be checked with them.
"""

import json
import pathlib
from collections.abc import Callable

import chex
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rope_jax import double_float, phases, rotation
from rope_jax.frequencies import Rotary

# (vectors [tokens, dim], positions [tokens]) -> vectors turned to their positions
Rotate = Callable[[Float[Array, "tokens dim"], Int[Array, " tokens"]], Float[Array, "tokens dim"]]


def rotation_of(rotary: Rotary, *, layout: rotation.Layout = "half", phase: phases.Phase = "exact") -> Rotate:
    """Returns the rotation of a (scaled) record as a plain function, without its cos/sin factor."""
    high, low = (jnp.asarray(half) for half in double_float.split(rotary.inverse_frequencies))

    def rotate(x: Float[Array, "tokens dim"], positions: Int[Array, " tokens"]) -> Float[Array, "tokens dim"]:
        cos, sin = phases.cos_sin(jnp.asarray(positions), high, low, phase=phase)
        return rotation.rotate(x[:, None], cos, sin, layout=layout)[:, 0]

    return rotate


def _vectors(dim: int, tokens: int, seed: int) -> Float[Array, "tokens dim"]:
    return jnp.asarray(np.random.default_rng(seed).standard_normal((tokens, dim)), jnp.float32)


def _default_positions(reach: int) -> Int[Array, " tokens"]:
    powers = [sign * 2**k for k in range(reach.bit_length()) for sign in (1, -1)]
    return jnp.asarray([0, *powers, reach - 1, -(reach - 1)], jnp.int32)


def assert_angle_equivalence(
    scaled: Rotate,
    transformed: Rotary,
    *,
    dim: int,
    layout: rotation.Layout = "half",
    reach: int = 2**20,
    atol: float = 1e-5,
    seed: int = 0,
) -> None:
    r"""Asserts that a scaled rotation is the original rotation with a transformed angle.

    .. math:: R'(x, p\,\theta) = R(x, p\,\theta') \text{ for every position } p

    Args:
      scaled: the rotation under test.
      transformed: the record whose inverse frequencies are `theta'`; the reference turns by them in float64.
      dim: dimensions of a vector; those beyond `transformed.dim` must pass through.
      layout: how pairs lie in a vector.
      reach: positions up to plus and minus this are tried.
      atol: largest difference allowed for vectors of unit scale.
      seed: of the random vectors.
    """
    positions = _default_positions(reach)
    x = _vectors(dim, len(positions), seed)
    chex.assert_trees_all_close(scaled(x, positions), _rotate_float64(x, positions, transformed, layout), atol=atol)


def _rotate_float64(x, positions, rotary: Rotary, layout: rotation.Layout) -> np.ndarray:
    x = np.asarray(x, np.float64)
    angle = np.asarray(positions, np.float64)[:, None] * rotary.inverse_frequencies
    turning, rest = x[:, : rotary.dim], x[:, rotary.dim :]
    order = np.arange(rotary.dim) if layout == "half" else rotation.interleaved_to_half(rotary.dim)
    first, second = np.split(turning[:, order], 2, axis=1)
    turned = np.concatenate(
        [first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle)], axis=1
    )
    return np.concatenate([turned[:, np.argsort(order)], rest], axis=1).astype(np.float32)


def assert_relative_identity(
    rotate: Rotate, *, dim: int, reach: int = 2**20, atol: float = 1e-5, seed: int = 0
) -> None:
    r"""Asserts that only offsets matter, `R(m)^T R(n) = R(n - m)`, at offsets up to `reach`.

    Args:
      rotate: the rotation under test.
      dim: dimensions of a vector.
      reach: the largest offset tried.
      atol: largest difference allowed for vectors of unit scale.
      seed: of the random vectors and positions.
    """
    rng = np.random.default_rng(seed)
    tokens = 64
    m = jnp.asarray(rng.integers(0, reach, tokens), jnp.int32)
    offset = jnp.asarray(rng.integers(-reach, reach, tokens), jnp.int32)
    q, k = _vectors(dim, tokens, seed), _vectors(dim, tokens, seed + 1)
    absolute = jnp.sum(rotate(q, m) * rotate(k, m + offset), axis=-1) / dim**0.5
    relative = jnp.sum(q * rotate(k, offset), axis=-1) / dim**0.5
    chex.assert_trees_all_close(absolute, relative, atol=atol)


def assert_preserves_norms_and_angles(
    rotate: Rotate, *, dim: int, reach: int = 2**20, rtol: float = 1e-5, seed: int = 0
) -> None:
    """Asserts that vectors turned to one position keep their lengths and the angles between them.

    Args:
      rotate: the rotation under test, without a cos/sin factor.
      dim: dimensions of a vector.
      reach: positions up to plus and minus this are tried.
      rtol: largest relative difference of an inner product, against the product of the lengths.
      seed: of the random vectors.
    """
    positions = _default_positions(reach)
    x, y = _vectors(dim, len(positions), seed), _vectors(dim, len(positions), seed + 1)
    lengths = jnp.linalg.norm(x, axis=-1) * jnp.linalg.norm(y, axis=-1)
    for a, b in ((x, x), (y, y), (x, y)):
        after = jnp.sum(rotate(a, positions) * rotate(b, positions), axis=-1)
        chex.assert_trees_all_close(after / lengths, jnp.sum(a * b, axis=-1) / lengths, atol=rtol, rtol=rtol)


def assert_shift_invariant(
    attend: Callable[[Int[Array, "1 tokens"]], Float[Array, "..."]],
    *,
    tokens: int,
    shifts: tuple[int, ...] = (1, 1000, 2**20),
    atol: float = 1e-4,
) -> None:
    """Asserts that attention under rotations and biases does not change when all positions move together.

    Args:
      attend: from positions `[1, tokens]` to any output of attention, inputs held fixed inside.
      tokens: sequence length.
      shifts: how far positions are moved.
      atol: largest difference allowed.
    """
    positions = jnp.arange(tokens, dtype=jnp.int32)[None]
    here = attend(positions)
    if np.allclose(attend(positions * 2), here, atol=atol):
        raise AssertionError("positions twice as far apart give the same output: the check has nothing to see")
    for shift in shifts:
        chex.assert_trees_all_close(attend(positions + shift), here, atol=atol)


def assert_causal(
    model: Callable[[Float[Array, "tokens dim"]], Float[Array, "tokens ..."]],
    x: Float[Array, "tokens dim"],
    *,
    at: int,
    seed: int = 0,
) -> None:
    """Asserts that changing inputs from token `at` on changes no output before it, to the bit, and some from it on.

    Args:
      model: from inputs to outputs, one a token.
      x: inputs.
      at: the first token that is changed, from 1 to `tokens - 1`.
      seed: of the random change.
    """
    noise = np.random.default_rng(seed).standard_normal((x.shape[0] - at, *x.shape[1:]))
    changed = x.at[at:].add(jnp.asarray(noise, x.dtype))
    before, after = np.asarray(model(x)), np.asarray(model(changed))
    if not np.array_equal(before[:at], after[:at]):
        differs = np.flatnonzero((before[:at] != after[:at]).reshape(at, -1).any(axis=1))
        raise AssertionError(f"outputs at tokens {differs.tolist()} saw inputs from token {at} on")
    if np.array_equal(before[at:], after[at:]):
        raise AssertionError("no output changed at all: the check has nothing to see")


def assert_golden(
    actual: Array | np.ndarray, path: str | pathlib.Path, key: str, *, rtol: float = 1e-5, atol: float = 0.0
) -> None:
    """Asserts that `actual` equals the numbers under `key` of a JSON file that says where it comes from.

    Args:
      actual: the array under test.
      path: the golden file: an object with a `source` and `key`.
      key: where the expected numbers lie.
      rtol: relative difference allowed.
      atol: absolute difference allowed.
    """
    golden = json.loads(pathlib.Path(path).read_text())
    if not golden.get("source"):
        raise AssertionError(f"{path} does not say where its numbers come from (key 'source')")
    actual, expected = np.asarray(actual), np.asarray(golden[key])
    if actual.shape != expected.shape:  # numpy would broadcast them
        raise AssertionError(f"{path}: {key} has shape {expected.shape}, the array under test {actual.shape}")
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol, err_msg=f"{path}: {key}")
