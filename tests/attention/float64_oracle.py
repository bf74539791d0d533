"""The oracle of attention: float64 NumPy, values and gradients, nothing shared with the library but a scheme's numbers.

`test_reference.py` holds its gradients against its own finite differences.
"""

import dataclasses
import functools

import jax
import numpy as np

from rope_jax.attention.call import NOTHING, Settings, Tokens
from rope_jax.scheme import Scheme

SCHEME = ("inverse_frequencies", "cos_sin_factor", "logit_scale", "slopes", "offset_bias")
INPUTS = ("q", "k", "v", "sinks", *SCHEME)


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A call, and the cotangents of its results."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    scheme: Scheme
    sinks: jax.Array | None
    queries: Tokens
    keys: Tokens
    settings: Settings
    d_out: np.ndarray
    d_lse: np.ndarray

    @functools.cached_property
    def numbers(self) -> dict[str, np.ndarray]:
        """What has a gradient, in float64, one scheme a sequence; zeros in padded slots."""
        batch, heads = self.q.shape[0], self.q.shape[2]
        clean = lambda x, tokens: np.where(_held(x, tokens), np.asarray(x, np.float64), 0.0)  # noqa: E731
        numbers = {
            "q": clean(self.q, self.queries),
            "k": clean(self.k, self.keys),
            "v": clean(self.v, self.keys),
            "sinks": np.full(heads, -np.inf) if self.sinks is None else np.asarray(self.sinks, np.float64),
        }
        per_sequence = self.scheme.slopes.ndim == 2
        for name in (*SCHEME, "remainder"):
            leaf = np.asarray(getattr(self.scheme, name), np.float64)
            numbers[name] = leaf if per_sequence else np.broadcast_to(leaf, (batch, *leaf.shape))
        return numbers


def _held(x, tokens: Tokens) -> np.ndarray:
    if tokens.segments is None:
        return np.ones((*x.shape[:2], 1, 1), bool)
    return np.asarray(tokens.segments)[..., None, None] >= 0


def values(problem: Problem, numbers: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """Returns outputs, log-sum-exps and everything on the way, float64; `numbers` replaces the problem's own."""
    x = problem.numbers if numbers is None else numbers
    q_positions, kv_positions = np.asarray(problem.queries.positions), np.asarray(problem.keys.positions)
    groups = x["q"].shape[2] // x["k"].shape[2]
    q, q_turns = _turn(x["q"], q_positions, x, problem.scheme.layout)
    k, k_turns = _turn(x["k"], kv_positions, x, problem.scheme.layout)
    shared = np.repeat(k, groups, axis=2)
    scale = problem.settings.scale * x["logit_scale"][:, None, None, None]
    raw = scale * np.einsum("bqhd,bkhd->bhqk", q, shared)
    bent = np.zeros_like(raw) if problem.settings.soft_cap is None else np.tanh(raw / problem.settings.soft_cap)
    capped = raw if problem.settings.soft_cap is None else problem.settings.soft_cap * bent
    offset = q_positions[:, :, None] - kv_positions[:, None, :]
    reach = x["offset_bias"].shape[-1] // 2
    index = np.clip(offset, -reach, reach) + reach
    strip = np.stack([row[:, at] for row, at in zip(x["offset_bias"], index, strict=True)])
    bias = strip - x["slopes"][:, :, None, None] * np.abs(offset)[:, None]
    logits = capped + bias
    seen = offset >= 0 if problem.settings.causal else np.ones(offset.shape, bool)
    if problem.settings.window is not None:
        seen &= np.abs(offset) < problem.settings.window
    q_segments, kv_segments = problem.queries.segments, problem.keys.segments
    if q_segments is not None:
        q_segments, kv_segments = np.asarray(q_segments)[:, :, None], np.asarray(kv_segments)[:, None, :]
        seen &= (q_segments == kv_segments) & (q_segments >= 0)
    logits = np.where(seen[:, None], logits, -np.inf)
    sinks = np.broadcast_to(x["sinks"].reshape(1, -1, 1), logits.shape[:-1])
    top = np.maximum(logits.max(axis=-1), sinks)
    some = top > -np.inf
    top = np.where(some, top, 0.0)
    weights, by_sink = np.exp(logits - top[..., None]), np.exp(sinks - top)
    total = np.where(some, weights.sum(axis=-1) + by_sink, 1.0)
    weights, by_sink = weights / total[..., None], by_sink / total
    out = np.einsum("bhqk,bkhe->bqhe", weights, np.repeat(x["v"], groups, axis=2))
    lse = np.where(some, top + np.log(total), NOTHING)
    return {
        "out": out, "lse": np.swapaxes(lse, 1, 2), "weights": weights, "by_sink": by_sink, "bent": bent, "raw": raw,
        "scale": scale, "offset": offset, "index": index, "q": q, "k": shared, "q_turns": q_turns, "k_turns": k_turns,
        "bias": bias,
    }  # fmt: skip


def gradients(problem: Problem) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Returns gradients, float64, and for each the largest sum of magnitudes that makes up one of its entries.

    Under "logits" stands the same of what a weight is the exponential of, times the weight's share of all keys; under
    "frequencies, absolute" that of frequencies where their gradient is summed over positions and not over offsets.
    """
    x, made = problem.numbers, values(problem)
    kv_heads = x["k"].shape[2]
    groups = x["q"].shape[2] // kv_heads
    by_kv_head = lambda y: y.reshape(*y.shape[:2], kv_heads, groups, -1).sum(axis=3)  # noqa: E731
    d_out, through_lse = problem.d_out, np.swapaxes(problem.d_lse - (problem.d_out * made["out"]).sum(axis=-1), 1, 2)
    d_weights = np.einsum("bqhe,bkhe->bhqk", d_out, np.repeat(x["v"], groups, axis=2))
    d_logits = made["weights"] * (d_weights + through_lse[..., None])
    # What a row's cotangents sum to may be a small difference: its parts count.
    of_out = (np.abs(problem.d_out) * np.abs(made["out"])).sum(axis=-1) + np.abs(problem.d_lse)
    magnitude = made["weights"] * (np.abs(d_weights) + np.swapaxes(of_out, 1, 2)[..., None])
    d_sinks = made["by_sink"] * through_lse
    d_raw = d_logits * (1 - made["bent"] ** 2)
    d_q = np.einsum("bhqk,bkhd->bqhd", made["scale"] * d_raw, made["k"])
    d_k = by_kv_head(np.einsum("bhqk,bqhd->bkhd", made["scale"] * d_raw, made["q"]))
    by_logit_scale = made["raw"] / x["logit_scale"][:, None, None, None]
    distance = np.abs(made["offset"])[:, None]
    found = {"v": by_kv_head(np.einsum("bhqk,bqhe->bkhe", made["weights"], d_out))}
    found["q"], q_phases, q_factors = _turn_back(d_q, x["q"], made["q_turns"], x, problem.scheme.layout)
    found["k"], k_phases, k_factors = _turn_back(d_k, x["k"], made["k_turns"], x, problem.scheme.layout)
    sizes = {name: np.abs(gradient).max(initial=0.0) for name, gradient in found.items()}
    positions = [np.asarray(tokens.positions)[:, :, None, None] for tokens in (problem.queries, problem.keys)]
    bent = 1 - made["bent"] ** 2
    parts = {
        "sinks": ((d_sinks,), (d_sinks,), (0, 2)),
        "inverse_frequencies": (((positions[0] * q_phases), (positions[1] * k_phases)),) * 2 + ((1, 2),),
        "cos_sin_factor": ((q_factors, k_factors),) * 2 + ((1, 2, 3),),
        "logit_scale": ((d_raw * by_logit_scale,), (magnitude * bent * by_logit_scale,), (1, 2, 3)),
        "slopes": ((-d_logits * distance,), (magnitude * distance,), (2, 3)),
    }
    for name, (terms, magnitudes, axes) in parts.items():
        found[name] = sum(term.sum(axis=axes) for term in terms)
        sizes[name] = sum(np.abs(term).sum(axis=axes) for term in magnitudes)
    sizes["frequencies, absolute"] = sizes["inverse_frequencies"].sum(axis=0)
    grown = np.abs(made["scale"]) * magnitude * (1 + made["bent"] ** 2)  # a cap's slope is the difference of these two
    sizes["sinks"] = (made["by_sink"] * np.swapaxes(of_out, 1, 2)).sum(axis=(0, 2))
    sizes["q"] = np.einsum("bhqk,bkhd->bqhd", grown, np.abs(made["k"]))
    sizes["k"] = by_kv_head(np.einsum("bhqk,bqhd->bkhd", grown, np.abs(made["q"])))
    sizes["v"] = by_kv_head(np.einsum("bhqk,bqhe->bkhe", made["weights"], np.abs(d_out)))
    # Of a pair of tokens only the offset counts, so an error may grow with that, and with half the extent of a call.
    both = np.concatenate([np.asarray(tokens.positions) for tokens in (problem.queries, problem.keys)], axis=1)
    extent = (both.max(axis=1) - both.min(axis=1))[:, None, None, None] / 2
    parts = [np.abs(_pairs(y, made["q_turns"], problem.scheme.layout)) for y in (made["q"], made["k"])]
    far = np.einsum("bhqk,bkhp->bqhp", grown * (1 + extent + distance), parts[1])
    products = np.einsum("bqhd,bkhd->bhqk", np.abs(made["q"]), np.abs(made["k"]))
    sizes["cos_sin_factor"] = 2 * (grown * products).sum(axis=(1, 2, 3)) / x["cos_sin_factor"]
    sizes["logit_scale"] = (grown * products).sum(axis=(1, 2, 3)) / x["logit_scale"]
    of_keys = made["weights"].sum(axis=-1, keepdims=True)
    share = np.divide(made["weights"], of_keys, out=np.zeros_like(made["weights"]), where=of_keys > 0)
    against = np.swapaxes(np.where(made["lse"] > NOTHING, np.abs(made["lse"]), 0.0), 1, 2)[..., None]
    sizes["logits"] = share * (np.abs(made["scale"]) * products + np.abs(made["bias"]) + against)
    sizes["inverse_frequencies"] = (far * parts[0]).sum(axis=(1, 2))
    for of, terms in ((found, d_logits), (sizes, magnitude)):
        of["offset_bias"] = np.zeros_like(x["offset_bias"])
        for row, at in enumerate(made["index"]):
            for head in range(terms.shape[1]):
                np.add.at(of["offset_bias"][row, head], at, terms[row, head])
    if problem.scheme.slopes.ndim == 1:  # the sequences share one scheme
        for of in (found, sizes):
            of.update({name: of[name].sum(axis=0) for name in SCHEME})
    return found, {name: float(np.max(size, initial=0.0)) for name, size in sizes.items()}


def _turn(x, positions, numbers, layout):
    theta = numbers["inverse_frequencies"] + numbers["remainder"]
    turns = np.exp(1j * theta[:, None, :] * positions[:, :, None])[:, :, None, :]
    return _put(x, _pairs(x, turns, layout) * turns * _factor(numbers), layout), turns


def _turn_back(d, x, turns, numbers, layout):
    """Returns the gradients of what was turned, of each phase and of each factor."""
    g, z = _pairs(d, turns, layout), _pairs(x, turns, layout)
    by_factor = g * np.conj(z * turns)
    return _put(d, g * np.conj(turns) * _factor(numbers), layout), _factor(numbers) * by_factor.imag, by_factor.real


def _factor(numbers):
    return numbers["cos_sin_factor"][:, None, None, None]


def _pairs(x, turns, layout):
    first, second = _places(turns.shape[-1], layout)
    return x[..., first] + 1j * x[..., second]


def _put(x, z, layout):
    first, second = _places(z.shape[-1], layout)
    x = x.copy()
    x[..., first], x[..., second] = z.real, z.imag
    return x


def _places(pairs, layout):
    i = np.arange(pairs)
    return (i, i + pairs) if layout == "half" else (2 * i, 2 * i + 1)
