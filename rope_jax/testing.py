"""Assertions for users' own tests of positional code; each raises `AssertionError` with the worst offender.

They take plain functions, so that code which knows nothing of this library can be checked with them. Some call the
function dozens of times: pass it compiled.
"""

import json
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from rope_jax import double_float, phases, rotation
from rope_jax.frequencies import Rotary

# (vectors [tokens, dim], positions [tokens]) -> vectors turned to their positions
Rotate = Callable[[Float[Array, "tokens dim"], Int[Array, " tokens"]], Float[Array, "tokens dim"]]

# What an angle formed in float32 may be off, relative to itself: 2^-24 each for rounding the frequency and the product,
# and as much again several times over for a frequency worked out in float32.
FLOAT32_ANGLES = 2.0**-21


def rotation_of(rotary: Rotary, *, layout: rotation.Layout = "half", phase: phases.Phase = "exact") -> Rotate:
    """Returns the rotation of a (scaled) record as a plain function, times its cos/sin factor."""
    high, low = (jnp.asarray(half) for half in double_float.split(rotary.inverse_frequencies))
    factor = np.float32(rotary.cos_sin_factor)

    def rotate(x: Float[Array, "tokens dim"], positions: Integer[Array, " tokens"]) -> Float[Array, "tokens dim"]:
        cos, sin = phases.cos_sin(positions, high, low, phase=phase)
        return rotation.rotate(x[:, None], factor * cos, factor * sin, layout=layout)[:, 0]

    return rotate


def _vectors(dim: int, tokens: int, seed: int) -> Float[Array, "tokens dim"]:
    return jnp.asarray(np.random.default_rng(seed).standard_normal((tokens, dim)), jnp.float32)


def _default_positions(reach: int) -> Int[Array, " tokens"]:
    powers = [sign * 2**k for k in range(reach.bit_length()) for sign in (1, -1)]
    return jnp.asarray([0, *powers, reach - 1, -(reach - 1)], jnp.int32)


def _assert_within(actual, expected, allowed, where: Callable[[int], str]) -> None:
    """Fails where two arrays differ by more than `allowed`, or one is NaN; `where` names a row."""
    actual, expected = (np.asarray(x, np.float64) for x in (actual, expected))
    if actual.shape != expected.shape:
        raise AssertionError(f"the output has shape {actual.shape}, expected {expected.shape}")
    difference = np.abs(actual - expected)
    excess = np.where(np.isnan(difference), np.inf, difference - allowed)
    if excess.size and excess.max() > 0:
        worst = np.unravel_index(int(excess.argmax()), excess.shape)
        limit = np.broadcast_to(allowed, excess.shape)[worst]
        raise AssertionError(
            f"{where(int(worst[0]) if worst else 0)}: {actual[worst]:.9g} in place of {expected[worst]:.9g}, a "
            f"difference of {difference[worst]:.3g} where {limit:.3g} is allowed"
        )


def assert_angle_equivalence(
    scaled: Rotate,
    transformed: Rotary,
    *,
    dim: int,
    layout: rotation.Layout = "half",
    reach: int = 2**20,
    atol: float = 1e-5,
    angle_rtol: float = FLOAT32_ANGLES,
    seed: int = 0,
) -> None:
    r"""Asserts that a scaled rotation is the original rotation with a transformed angle, times the cos/sin factor.

    .. math:: R'(x, p\,\theta) = a\,R(x, p\,\theta') \text{ for every position } p

    Args:
      scaled: the rotation under test.
      transformed: the record whose inverse frequencies are `theta'` and whose cos/sin factor is `a`; the reference
        turns by them in float64.
      dim: dimensions of a vector; those beyond `transformed.dim` must pass through.
      layout: how pairs lie in a vector.
      reach: positions up to plus and minus this are tried.
      atol: largest difference allowed for vectors of unit scale.
      angle_rtol: what an angle may be off beside, relative to itself; by default what phases in float32 are. 0 asks for
        exact phases.
      seed: of the random vectors.
    """
    positions = _default_positions(reach)
    x = _vectors(dim, len(positions), seed)
    expected, per_radian = _rotate_float64(x, positions, transformed, layout)
    _assert_within(
        scaled(x, positions), expected, atol + angle_rtol * per_radian, lambda row: f"at position {positions[row]}"
    )


def _rotate_float64(x, positions, rotary: Rotary, layout: rotation.Layout) -> tuple[np.ndarray, np.ndarray]:
    """Returns the turned vectors, and how far a relative error of all angles moves each of their elements at most."""
    x = np.asarray(x, np.float64)
    angle = np.asarray(positions, np.float64)[:, None] * rotary.inverse_frequencies
    turning, rest = x[:, : rotary.dim], x[:, rotary.dim :]
    order = np.arange(rotary.dim) if layout == "half" else rotation.interleaved_to_half(rotary.dim)
    first, second = np.split(turning[:, order], 2, axis=1)
    cos, sin = rotary.cos_sin_factor * np.cos(angle), rotary.cos_sin_factor * np.sin(angle)
    turned = np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=1)
    moved = np.tile(rotary.cos_sin_factor * np.abs(angle) * np.hypot(first, second), 2)
    back = np.argsort(order)
    return (
        np.concatenate([turned[:, back], rest], axis=1),
        np.concatenate([moved[:, back], np.zeros_like(rest)], axis=1),
    )


def assert_relative_identity(
    rotate: Rotate,
    *,
    dim: int,
    reach: int = 2**20,
    atol: float = 1e-5,
    angle_rtol: float = FLOAT32_ANGLES,
    cos_sin_factor: float = 1.0,
    seed: int = 0,
) -> None:
    r"""Asserts that only offsets matter, `R(m)^T R(n) = R(n - m)`, at offsets up to `reach`, and that they do.

    Args:
      rotate: the rotation under test.
      dim: dimensions of a vector.
      reach: the largest offset tried.
      atol: largest difference allowed for vectors of unit scale.
      angle_rtol: what an angle may be off beside, relative to itself; by default what phases in float32 are. 0 asks for
        exact phases.
      cos_sin_factor: what `rotate` multiplies vectors by beside turning them.
      seed: of the random vectors and positions.
    """
    rng = np.random.default_rng(seed)
    tokens = 128
    # Of every magnitude alike: near ones are held to the least, and far ones reach where a counter wraps.
    scale = np.exp2(rng.uniform(0, math.log2(reach), tokens))
    m = jnp.asarray(rng.uniform(0, scale), jnp.int32)
    offset = jnp.asarray(np.rint(rng.uniform(-scale, scale)), jnp.int32)
    q, k = _vectors(dim, tokens, seed), _vectors(dim, tokens, seed + 1)
    wide = lambda x: np.asarray(x, np.float64) / cos_sin_factor  # noqa: E731
    turned = wide(rotate(k, offset))
    if np.allclose(turned, wide(rotate(k, jnp.zeros_like(offset))), atol=atol):
        raise AssertionError("no vector turns with its position: the check has nothing to see")
    absolute = np.sum(wide(rotate(q, m)) * wide(rotate(k, m + offset)), axis=-1) / dim**0.5
    relative = np.sum(np.asarray(q, np.float64) * turned, axis=-1) / dim**0.5
    # An angle that is off by e radians moves the product of a pair by at most e |q| |k| <= e (|q|^2 + |k|^2) / 2.
    positions = sum(np.abs(np.asarray(p, np.float64)) for p in (m, m + offset, offset))
    per_radian = (np.asarray(q, np.float64) ** 2 + np.asarray(k, np.float64) ** 2) / 2 / dim**0.5
    allowed = atol + angle_rtol * positions * (per_radian @ _radians_a_token(rotate, dim, cos_sin_factor))
    _assert_within(absolute, relative, allowed, lambda row: f"from {m[row]} to {m[row] + offset[row]}")


def _radians_a_token(rotate: Rotate, dim: int, cos_sin_factor: float) -> np.ndarray:
    """Returns by what angle, up to half a turn, each dimension is seen to turn from position 0 to 1."""
    before, after = (rotate(jnp.eye(dim, dtype=jnp.float32), jnp.full(dim, p, jnp.int32)) for p in (0, 1))
    chord = np.linalg.norm(np.asarray(after, np.float64) - np.asarray(before, np.float64), axis=-1) / cos_sin_factor
    return 2 * np.arcsin(np.minimum(chord / 2, 1))


def assert_preserves_norms_and_angles(
    rotate: Rotate, *, dim: int, reach: int = 2**20, rtol: float = 1e-5, cos_sin_factor: float = 1.0, seed: int = 0
) -> None:
    """Asserts that vectors turned to one position keep their lengths and the angles between them.

    Args:
      rotate: the rotation under test.
      dim: dimensions of a vector.
      reach: positions up to plus and minus this are tried.
      rtol: largest relative difference of an inner product, against the product of the lengths.
      cos_sin_factor: what `rotate` multiplies vectors by beside turning them.
      seed: of the random vectors.
    """
    positions = _default_positions(reach)
    x, y = (_vectors(dim, len(positions), s) for s in (seed, seed + 1))
    wide = lambda x: np.asarray(x, np.float64)  # noqa: E731
    lengths = np.linalg.norm(wide(x), axis=-1) * np.linalg.norm(wide(y), axis=-1)
    for a, b in ((x, x), (y, y), (x, y)):
        before = np.sum(wide(a) * wide(b), axis=-1) / lengths
        after = np.sum(wide(rotate(a, positions)) * wide(rotate(b, positions)), axis=-1) / cos_sin_factor**2 / lengths
        _assert_within(after, before, rtol * (1 + np.abs(before)), lambda row: f"at position {positions[row]}")


def assert_shift_invariant(
    attend: Callable[[Int[Array, "1 tokens"]], Float[Array, "..."]],
    *,
    tokens: int,
    reach: int = 2**20,
    shifts: Sequence[int] | None = None,
    atol: float = 1e-4,
    angle_rtol: float = FLOAT32_ANGLES,
    seed: int = 0,
) -> None:
    """Asserts that attention under rotations and biases does not change when all positions move together.

    Consecutive positions are moved across every power of two and of ten, where counters wrap and tables end, and
    positions of every spacing by an irregular distance, which shows a wrap anywhere as long as far tokens have weight.
    The tolerance of float32 phases grows to half of what can be seen at a million tokens: there, exact phases and
    `angle_rtol=0` say more.

    Args:
      attend: from positions `[1, tokens]` to any output of attention, inputs held fixed inside; called some 80 times.
      tokens: sequence length, at least 2.
      reach: positions up to about this are tried.
      shifts: how far consecutive positions are moved, in place of all of the above.
      atol: largest difference allowed.
      angle_rtol: what an angle may be off beside, relative to itself; by default what phases in float32 are. 0 asks for
        exact phases.
      seed: of the irregular positions.
    """
    near = np.arange(tokens)
    run = lambda p: np.asarray(attend(jnp.asarray(p, jnp.int32)[None]), np.float64)  # noqa: E731
    here = run(near)
    # Angles here are of a radian: an error of one radian moves the output by about as much as this.
    per_radian = np.abs(run(2 * near) - here).max()
    if per_radian <= atol:
        raise AssertionError("positions twice as far apart give the same output: the check has nothing to see")

    def compare(moved: np.ndarray, shift: int, expected: np.ndarray) -> None:
        allowed = atol + angle_rtol * per_radian * moved.max()
        _assert_within(run(moved), expected, allowed, lambda row: f"positions up to {moved.max()}, moved by {shift}")

    for shift in _shifts(reach, tokens) if shifts is None else shifts:
        compare(near + shift, shift, here)
    for positions, shift in _irregular(reach, tokens, seed) if shifts is None else ():
        compare(positions + shift, shift, run(positions))


def _shifts(reach: int, tokens: int) -> list[int]:
    """Returns 1, and what moves the middle token to each power of two and of ten."""
    boundaries = [base**power for base in (2, 10) for power in range(3, 32) if base**power <= reach]
    return sorted({1, *(boundary - tokens // 2 for boundary in boundaries if boundary > tokens // 2)})


_DRAWS = 5  # of a magnitude: one alone may straddle few of a wrap's ends, or move an angle by nearly whole turns


def _irregular(reach: int, tokens: int, seed: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yields random positions of every magnitude, in order, and an odd distance to move them by."""
    rng = np.random.default_rng(seed)
    for power in range(10, reach.bit_length(), 2):
        half = 2**power // 2
        for _ in range(_DRAWS if half >= 2 * tokens else 0):
            yield np.sort(rng.choice(half, tokens, replace=False)), int(rng.integers(half // 4, half // 2)) * 2 + 1


def assert_causal(
    model: Callable[[Float[Array, "tokens dim"]], Float[Array, "tokens ..."]],
    x: Float[Array, "tokens dim"],
    *,
    at: int | None = None,
    seed: int = 0,
) -> None:
    """Asserts that changing inputs from a token on changes no output before it, to the bit, and some from it on.

    Args:
      model: from inputs to outputs, one a token; called once for each token that is tried.
      x: inputs, of at least two tokens.
      at: the first token that is changed, from 1 to `tokens - 1`, tried with both neighbours: what a chunk that begins
        with it leaks is seen from inside of the chunk only. None tries every token.
      seed: of the random change.
    """
    tokens = x.shape[0]
    if tokens < 2 or (at is not None and not 1 <= at < tokens):
        raise AssertionError(f"of {tokens} tokens, none is before token {at or 1} and none from it on: nothing to see")
    noise = jnp.asarray(np.random.default_rng(seed).standard_normal(x.shape), x.dtype)
    before, changed_any = np.asarray(model(x)), False
    if before.shape[:1] != (tokens,):
        raise AssertionError(f"outputs of shape {before.shape} are not one a token of {tokens}")
    tried = range(1, tokens) if at is None else [n for n in (at, at - 1, at + 1) if 1 <= n < tokens]
    for first in tried:
        after = np.asarray(model(x.at[first:].add(noise[first:])))
        same = (before == after) | (np.isnan(before) & np.isnan(after))
        differs = np.flatnonzero(~same.reshape(tokens, -1).all(axis=1))
        if (differs < first).any():
            raise AssertionError(
                f"outputs at tokens {differs[differs < first].tolist()} saw inputs from token {first} on"
            )
        changed_any |= differs.size > 0
    if not changed_any:
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
