"""Attention in float64 NumPy, with or without bfloat16's rounding where the Hopper kernels have it, one row at a time.

Written apart from `float64_oracle`, with which it shares nothing. What rounding alone explains is measured: `noise` is
what several roundings, each of slightly shifted numbers, make of the same call.
"""

import ml_dtypes
import numpy as np

NAMES = ("out", "lse", "q", "k", "v", "inverse_frequencies", "cos_sin_factor", "logit_scale", "slopes", "offset_bias")
SHIFTS = (0.0, 0.13, 0.29, 0.41)  # by which a number is grown before it is rounded, and shrunk after


def exactly(call) -> dict[str, np.ndarray]:
    return _made(call, lambda x: x)


def noise(call, exact: dict[str, np.ndarray]) -> dict[str, float]:
    """Returns how far roundings lead from `exact`, by name, as the norm of a whole array."""
    squares = dict.fromkeys(exact, 0.0)
    for shift in SHIFTS:
        for name, x in _made(call, lambda x, grown=1 + shift: _rounded(x * grown) / grown).items():
            squares[name] += np.square(x - exact[name]).sum() / len(SHIFTS)
    return {name: float(np.sqrt(x)) for name, x in squares.items()}


def _rounded(x):
    return x.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)


def _made(call, r) -> dict[str, np.ndarray]:
    rows = [_of_row(call, row, r) for row in range(call.q.shape[0])]
    made = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    shared = ("sinks", *(name for name in NAMES[5:] if np.ndim(call.scheme.slopes) == 1))
    return {name: x.sum(axis=0) if name in shared else x for name, x in made.items()}


def _of_row(call, row: int, r) -> dict[str, np.ndarray]:
    number = lambda x: np.asarray(x, np.float64)  # noqa: E731
    of_scheme = lambda x, rank: number(x if np.ndim(x) == rank else x[row])  # noqa: E731
    scheme, settings = call.scheme, call.settings
    theta = of_scheme(scheme.inverse_frequencies, 1) + of_scheme(scheme.remainder, 1)
    factor, temperature = of_scheme(scheme.cos_sin_factor, 0), of_scheme(scheme.logit_scale, 0)
    slopes, strip = of_scheme(scheme.slopes, 1), of_scheme(scheme.offset_bias, 2)
    reach, scale = strip.shape[-1] // 2, float(temperature) * settings.scale
    sides, held, places = [], [], []
    for x, tokens in ((call.q, call.queries), (call.k, call.keys)):
        ids = np.zeros(x.shape[1], int) if tokens.segments is None else np.asarray(tokens.segments[row])
        held.append(np.where(ids < 0, -1, ids))
        places.append(np.where(ids < 0, 0, np.asarray(tokens.positions[row], np.int64)))
        sides.append(np.where((ids >= 0)[:, None, None], number(x[row]), 0.0))
    v = np.where((held[1] >= 0)[:, None, None], number(call.v[row]), 0.0)
    d_out = np.where((held[0] >= 0)[:, None, None], number(call.d_out[row]), 0.0)
    heads, kv_heads = sides[0].shape[1], sides[1].shape[1]
    turned = [_turn(x, np.outer(at, theta), factor, scheme.layout) for x, at in zip(sides, places, strict=True)]
    q, k = r(turned[0] * scale), r(turned[1])
    offset = places[0][:, None] - places[1][None, :]
    seen = (held[0][:, None] == held[1][None, :]) & (held[0] >= 0)[:, None] & (offset >= 0)
    if settings.window is not None:
        seen &= offset < settings.window
    index = np.clip(offset, -reach, reach) + reach
    d_q, d_k, d_v = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    out, lse = np.zeros((*q.shape[:2], v.shape[-1])), np.full(q.shape[:2], -1e30)
    d_slopes, d_strip, d_sinks = np.zeros(heads), np.zeros_like(strip), np.zeros(heads)
    for head in range(heads):
        of_key = head // (heads // kv_heads)
        s = q[:, head] @ k[:, of_key].T
        bend = np.ones_like(s)
        if settings.soft_cap is not None:
            bent = np.tanh(s / settings.soft_cap)
            s, bend = settings.soft_cap * bent, 1 - bent**2
        sink = -np.inf if call.sinks is None or call.sinks[head] <= -1e30 else float(call.sinks[head])
        logit = np.where(seen, s - slopes[head] * offset + strip[head][index], -np.inf)
        top = np.maximum(logit.max(axis=1), sink)
        some = top > -np.inf
        top = np.where(some, top, 0.0)
        weights, by_sink = np.exp(logit - top[:, None]), np.exp(sink - top)
        total = np.where(some, weights.sum(axis=1) + by_sink, 1.0)
        out[:, head] = r(r(weights) @ v[:, of_key] / total[:, None])
        lse[:, head] = np.where(some, top + np.log(total), -1e30)
        weights, by_sink = weights / total[:, None], by_sink / total
        d_lse = np.where(some, number(call.d_lse[row, :, head]), 0.0)
        through = (d_out[:, head] * out[:, head]).sum(axis=1) - d_lse
        d_logit = weights * (d_out[:, head] @ v[:, of_key].T - through[:, None])
        d_slopes[head], d_sinks[head] = -(d_logit * offset).sum(), -(by_sink * through).sum()
        np.add.at(d_strip[head], index, d_logit)
        d_s = r(d_logit * bend)
        d_q[:, head] = d_s @ k[:, of_key]
        d_k[:, of_key] += d_s.T @ q[:, head]
        d_v[:, of_key] += r(weights).T @ d_out[:, head]
    d_turned = r(d_q) * scale, r(d_k)
    together = np.concatenate([at[ids >= 0] for at, ids in zip(places, held, strict=True)] or [np.zeros(1)])
    middle = (together.min() + together.max()) // 2 if together.size else 0
    found = {"out": out, "lse": lse, "v": r(d_v), "slopes": d_slopes, "offset_bias": d_strip}
    if call.sinks is not None:
        found["sinks"] = d_sinks
    found["logit_scale"] = (d_turned[0] * turned[0]).sum() / temperature
    found["cos_sin_factor"], found["inverse_frequencies"] = np.zeros(()), np.zeros_like(theta)
    for name, x, d, at in zip("qk", turned, d_turned, places, strict=True):
        found[name] = r(_turn_back(d, np.outer(at, theta), factor, scheme.layout))
        z, g = (_pairs(y, theta.size, scheme.layout) for y in (x, d))
        both = g * np.conj(z)
        found["cos_sin_factor"] += both.real.sum() / factor
        found["inverse_frequencies"] += (both.imag.sum(axis=1) * (at - middle)[:, None]).sum(axis=0)
    return found


def _pairs(x, pairs, layout):
    if layout == "half":
        return x[..., :pairs] + 1j * x[..., pairs : 2 * pairs]
    return x[..., : 2 * pairs : 2] + 1j * x[..., 1 : 2 * pairs : 2]


def _turn(x, phase, factor, layout):
    pairs = phase.shape[-1]
    z = _pairs(x, pairs, layout) * factor * np.exp(1j * phase)[:, None, :]
    x = x.copy()
    if layout == "half":
        x[..., :pairs], x[..., pairs : 2 * pairs] = z.real, z.imag
    else:
        x[..., : 2 * pairs : 2], x[..., 1 : 2 * pairs : 2] = z.real, z.imag
    return x


def _turn_back(x, phase, factor, layout):
    return _turn(x, -phase, factor, layout)
