"""Faults of an implementation that look like faults of a scheme, each as something a decoder can be run with."""

import dataclasses
import functools
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool

from rope_jax import named_records
from rope_jax.attention.api import attend
from rope_jax.attention.call import Settings, Tokens
from rope_jax.decoder import Attend, Schemes, each_scheme
from rope_jax.errors import InputError
from rope_jax.scheme import Scheme, without_rotation


@dataclasses.dataclass(frozen=True)
class Fault:
    """One way of running a scheme wrongly.

    Attributes:
      name: of the fault.
      description: what an implementation with it does.
      scheme: from the scheme that is meant to the one that is run.
      attention: computes attention.
    """

    name: str
    description: str
    scheme: Callable[[Schemes], Schemes] = lambda scheme: scheme
    attention: Attend = attend


@dataclasses.dataclass(frozen=True)
class FaultRequest:
    """What a fault is made for.

    Attributes:
      length: longest row, tokens, for a bias that is rounded offset by offset.
      trained: the scheme of the original model, under which a stale cache was filled.
      fresh: tokens at the end of every row that came after the scheme was changed; those before were in the cache.
    """

    length: int
    trained: Schemes | None = None
    fresh: int = 0


FaultMaker = Callable[[FaultRequest], Fault]
FAULTS: dict[str, FaultMaker] = {}
"""Every fault by name; `register` adds one of your own."""


def register(name: str, make: FaultMaker) -> None:
    """Adds a fault under its name.

    Raises:
      InputError: if the name is taken, or is no word.
    """
    named_records.add(FAULTS, name, make, kind="fault")


def fault_of(name: str, request: FaultRequest) -> Fault:
    """Returns the fault of a name, made for a model.

    Raises:
      InputError: if there is no such fault, or the model cannot have it.
    """
    if name not in FAULTS:
        raise InputError(f"unknown fault {name!r}; there are: {', '.join(FAULTS)}")
    return named_records.made(FAULTS[name], request, kind="fault", name=name, expected=Fault)


def rounded_bias(scheme: Scheme, *, length: int) -> Scheme:
    """Returns the scheme with its whole bias rounded to bfloat16, offset by offset up to `length`."""
    offsets = jnp.arange(-(length - 1), length, dtype=jnp.int32)
    rounded = scheme.bias(offsets[:, None])[..., 0].astype(jnp.bfloat16).astype(jnp.float32)
    return dataclasses.replace(scheme, slopes=jnp.zeros_like(scheme.slopes), offset_bias=rounded)


def _rounded_frequencies(scheme: Scheme) -> Scheme:
    rounded = scheme.inverse_frequencies.astype(jnp.bfloat16).astype(jnp.float32)
    return dataclasses.replace(scheme, inverse_frequencies=rounded, remainder=jnp.zeros_like(scheme.remainder))


def _other_layout(scheme: Scheme) -> Scheme:
    return dataclasses.replace(scheme, layout="interleaved" if scheme.layout == "half" else "half")


def _with_rounded_positions(q, k, v, scheme, sinks, queries, keys, settings, implementation=None):
    rounded = (
        Tokens(tokens.positions.astype(jnp.bfloat16).astype(jnp.int32), tokens.segments) for tokens in (queries, keys)
    )
    rotated = (scheme.rotate(x, at.positions) for x, at in zip((q, k), rounded, strict=True))
    # Only rotation sees the rounded positions: what is visible, and the bias, go by the true ones.
    return attend(*rotated, v, without_rotation(scheme), sinks, queries, keys, settings, implementation)


def _stale(trained: Scheme, fresh: int) -> Attend:
    def attention(q, k, v, scheme, sinks, queries, keys, settings, implementation=None):
        def old(tokens: Tokens) -> Bool[Array, "B T 1 1"]:
            return (tokens.positions < tokens.positions.shape[1] - fresh)[..., None, None]

        # What the cache holds was worked out under the trained scheme throughout, its bias (or none) included.
        before, before_lse = attend(q, k, v, trained, sinks, queries, keys, settings, implementation)
        read = jnp.where(old(keys), trained.rotate(k, keys.positions), scheme.rotate(k, keys.positions))
        turned = scheme.rotate(q, queries.positions)
        after, after_lse = attend(
            turned, read, v, without_rotation(scheme), sinks, queries, keys, settings, implementation
        )
        return jnp.where(old(queries), before, after), jnp.where(old(queries)[..., 0], before_lse, after_lse)

    return attention


def exempting(first: int) -> Attend:
    """Returns attention whose bias exempts the first `first` keys, for a bias that starves the first tokens.

    Softmax over both groups of keys is put together from the two parts and their log-sum-exps.
    """

    def attention(q, k, v, scheme, sinks, queries: Tokens, keys: Tokens, settings: Settings, implementation=None):
        if sinks is not None:
            raise NotImplementedError("a model with sinks of its own has nothing to exempt")
        plain = dataclasses.replace(
            scheme, slopes=jnp.zeros_like(scheme.slopes), offset_bias=jnp.zeros_like(scheme.offset_bias)
        )
        zeros = jnp.zeros_like(queries.positions)
        query_segments = zeros if queries.segments is None else queries.segments
        key_segments = jnp.zeros_like(keys.positions) if keys.segments is None else keys.segments
        parts = []
        for part, kept in ((plain, keys.positions < first), (scheme, keys.positions >= first)):
            segments = jnp.where(kept, key_segments, -1)
            at = Tokens(queries.positions, query_segments), Tokens(keys.positions, segments)
            parts.append(attend(q, k, v, part, None, *at, settings, implementation))
        (near, near_lse), (far, far_lse) = parts
        together = jnp.logaddexp(near_lse, far_lse)
        out = near * jnp.exp(near_lse - together)[..., None] + far * jnp.exp(far_lse - together)[..., None]
        return out.astype(v.dtype), together

    return attention


def _stale_cache(request: FaultRequest) -> Fault:
    if not isinstance(request.trained, Scheme):
        raise InputError("a stale cache is looked for in models with one scheme for all layers only")
    return Fault(
        "stale_cache",
        "the context was cached under the original scheme, and new tokens read it under the deployed one",
        attention=_stale(request.trained, request.fresh),
    )


def _always(
    name: str, description: str, change: Callable[[Scheme], Scheme] = lambda scheme: scheme, attention: Attend = attend
) -> None:
    """Registers a fault that is the same for every model."""
    fault = Fault(name, description, functools.partial(each_scheme, change), attention)
    register(name, lambda request: fault)


register(
    "bf16_bias",
    lambda request: Fault(
        "bf16_bias",
        "the bias is kept in bfloat16, so that far offsets share one value",
        functools.partial(each_scheme, functools.partial(rounded_bias, length=request.length)),
    ),
)
_always("bf16_frequencies", "inverse frequencies are cast to bfloat16 with the weights", _rounded_frequencies)
_always(
    "bf16_positions",
    "positions are kept in bfloat16, so that beyond 256 neighbours stand in one place",
    attention=_with_rounded_positions,
)
_always(
    "float32_phases", "angles are formed as float32 products", lambda one: dataclasses.replace(one, phase="float32")
)
register("stale_cache", _stale_cache)
_always("wrong_layout", "queries and keys are rotated in the other layout of pairs", _other_layout)
