"""How far every implementation's output and gradients lie from float64, for the same (rounded) inputs."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from problem import BIASES

from accelerator_parts import float64, on_jax
from accelerator_parts.jobs import Found, Job, words
from accelerator_parts.on_jax import CUDNN, card, check
from accelerator_parts.records import RATIO
from rope_jax.frequencies import rotary

__all__ = ["card", "check", "jobs"]

_AGAIN = 20  # further runs on the same arguments
_TOKENS = 1500  # no multiple of any tile
_HEADS, _KV_HEADS, _DIM = 8, 2, 128
_MASKS = ("causal", "window", "packed")
_PRODUCTS = {"highest": "float32", "default": "float32", "bfloat16": "bfloat16"}


@dataclasses.dataclass(frozen=True)
class _Case:
    """One comparison; `products` is a precision of float32 products, or bfloat16 for inputs of that dtype."""

    mask: str
    products: str
    bias: str
    tokens: int
    rotation: bool = True

    @property
    def shown(self) -> dict[str, str | int]:
        """The case as it is kept."""
        of_gpu = {"highest": "float32, highest", "default": "float32, default precision"}
        products = of_gpu.get(self.products, self.products)
        return {"tokens": self.tokens, "mask": self.mask, "products": products, "bias": self.bias}

    @property
    def window(self) -> int | None:
        return self.tokens // 3 if self.mask == "window" else None


def jobs(*, quick: bool) -> Iterator[Job]:
    """Yields a job for each case and implementation, cuDNN's own error for bfloat16 without a bias among them."""
    for case in _cases(quick):
        for name in on_jax.implementations():
            yield _job(case, name, functools.partial(_ours, case, name))
        if case.bias == "none" and case.products == "bfloat16" and case.mask != "packed":
            unturned = dataclasses.replace(case, rotation=False)
            yield _job(unturned, CUDNN, functools.partial(on_jax.cudnn, window=case.window))


def _job(case: _Case, name: str, attend_of: Callable[[], Callable[..., Any]]) -> Job:
    return Job(case.shown, name, functools.partial(_errors, case), functools.partial(_program, case, attend_of))


def _cases(quick: bool) -> Iterator[_Case]:
    if quick:
        yield from (_Case("packed", "highest", bias, 200) for bias in ("alibi", "t5"))
        yield _Case("causal", "bfloat16", "none", 200)
        return
    for mask in _MASKS:
        for products in ("bfloat16", "highest", "default"):
            if mask == "causal" or products != "default":
                yield from (_Case(mask, products, bias, _TOKENS) for bias in BIASES)


def _ours(case: _Case, implementation: str) -> Callable[..., Any]:
    _, segments = _where(case)
    packed: dict[str, Any] = {"segment_ids": (segments, segments)} if case.mask == "packed" else {}
    return on_jax.attention_of(case.bias, window=case.window, implementation=implementation, **packed)


def _program(
    case: _Case, attend_of: Callable[[], Callable[..., Any]]
) -> tuple[Callable[..., Any], NotImplementedError | None]:
    """Returns what gives output and gradients, or the output alone and why there are no gradients."""
    attend, arguments = attend_of(), _inputs(case)
    with jax.default_matmul_precision("highest" if case.products == "highest" else None):
        try:
            return on_jax.compiled(on_jax.with_gradients(attend), arguments), None
        except NotImplementedError as error:
            forward = on_jax.compiled(attend, arguments[:5])
            return lambda *x: (forward(*x[:5]),), error


def _errors(case: _Case, program: tuple[Callable[..., Any], NotImplementedError | None]) -> Iterator[Found]:
    """Yields how far the output and every gradient are off, each over its norm, and the output of the worst token.

    And in how many more runs on the same arguments some bit differs from the first.
    """
    (run, refusal), arguments = program, _inputs(case)
    wanted, names = _wanted(case), ["out", "d_q", "d_k", "d_v"]
    names += [name for name in ("d_slopes", "d_table") if name in wanted]
    if refusal is not None:
        names = ["out"]
    found = jax.block_until_ready(run(*arguments))
    arrays = dict(zip(names, (_float64(x) for x in found), strict=False))
    for name in names:
        yield Found(name, _relative(arrays[name], wanted[name]), RATIO)
        if name == "out":
            off = np.linalg.norm((arrays[name] - wanted[name]).reshape(case.tokens, -1), axis=-1)
            typical = np.linalg.norm(wanted[name]) / np.sqrt(case.tokens)
            yield Found("out, worst token", float(off.max() / typical), RATIO)
    yield Found("runs that differ", float(_differing(run, arguments, found)), f"of {_AGAIN}")
    if refusal is not None:
        yield Found("gradients", None, error=words(refusal))


def _differing(run: Callable[..., Any], arguments: Sequence[Any], first: Sequence[jax.Array]) -> int:
    """Returns how many further runs are not the same to the bit."""
    same = jax.jit(lambda xs, ys: jnp.all(jnp.array([_same_bits(x, y) for x, y in zip(xs, ys, strict=True)])))
    found = [same(tuple(first), tuple(run(*arguments))) for _ in range(_AGAIN)]
    return sum(not bool(one) for one in found)


def _same_bits(x: jax.Array, y: jax.Array) -> jax.Array:
    kind = jnp.uint16 if x.dtype == jnp.bfloat16 else jnp.uint32
    x, y = (jax.lax.bitcast_convert_type(one, kind) for one in (x, y))
    return jnp.all(x == y)


def _relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def _float64(x: jax.Array) -> np.ndarray:
    """Returns the one sequence of an array, or a parameter's gradient."""
    wide = np.asarray(x.astype(jnp.float32), np.float64)
    return wide[0] if wide.ndim == 4 else wide


def _where(case: _Case) -> tuple[np.ndarray, np.ndarray]:
    """Returns positions and segments; packed: three documents, each from position 0 on, and padding."""
    if case.mask != "packed":
        return np.arange(case.tokens), np.zeros(case.tokens, int)
    parts = [case.tokens // 4, case.tokens // 2, case.tokens // 5]
    parts.append(case.tokens - sum(parts))
    return np.concatenate([np.arange(n) for n in parts]), np.repeat([0, 1, 2, -1], parts)


@functools.lru_cache(maxsize=2)
def _inputs(case: _Case) -> tuple[jax.Array, ...]:
    """Returns queries, keys, values, slopes or table, positions, and a cotangent."""
    dtype, rng = jnp.dtype(_PRODUCTS[case.products]), np.random.default_rng(0)
    q, k, v, d_out = (
        jnp.asarray(rng.standard_normal((1, case.tokens, heads, _DIM)), dtype)
        for heads in (_HEADS, _KV_HEADS, _KV_HEADS, _HEADS)
    )
    return q, k, v, on_jax.parameter_of(case.bias, _HEADS), jnp.asarray(_where(case)[0], jnp.int32), d_out


@functools.lru_cache(maxsize=2)
def _wanted(case: _Case) -> dict[str, np.ndarray]:
    q, k, v, parameter, _, d_out = (_float64(x) for x in _inputs(case))
    positions, segments = _where(case)
    offset = positions[:, None] - positions
    seen = (offset >= 0) & (segments[:, None] == segments) & (segments >= 0)
    if case.window is not None:
        seen &= offset < case.window
    frequencies = rotary(_DIM, base=10000.0, original_length=4096).inverse_frequencies if case.rotation else np.zeros(0)
    return float64.attention(
        q, k, v, d_out, parameter, bias=case.bias, positions=positions, seen=seen, frequencies=frequencies
    )
