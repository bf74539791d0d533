"""Inverse frequencies of rotary embeddings, in float64 on the host.

Symbols: `d` rotary dimension, `b` base, `theta_i = b^(-2i/d)` for pair `i = 0 ... d/2 - 1`,
`T_i = 2 pi / theta_i` its wavelength in tokens.
"""

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Float64

from rope_jax.errors import ScalingError

Frequencies = Float64[np.ndarray, " pairs"]

# Radians per token. A scheme keeps 48 bits of a frequency, so the error of an angle grows with it: at position 2^24 it
# is 1e-6 up to 3 radians a token and 3e-5 here, 20 turns a token. No model was trained beyond 1.
LARGEST_FREQUENCY = 128.0


@dataclasses.dataclass(frozen=True, eq=False)
class Rotary:
    """What a scaling rule reads and writes: one rotary embedding, on the host.

    Attributes:
      inverse_frequencies: `theta`, float64 `[pairs]`, radians per token; 0 for a pair that does not turn, and at most
        `LARGEST_FREQUENCY`.
      base: `b`, the base the frequencies were made from (after any change of base).
      dim: `d`, the dimensions that rotate; `2 * pairs`.
      original_length: `L`, tokens the model was trained on before any length extension.
      cos_sin_factor: multiplies cos and sin, so the logits of the rotary dimensions by its square.
      logit_scale: multiplies every `q.k` logit, before a bias is added.
      rules: names of the scaling rules applied so far, in order.
      stages: the `rules.Stage` of each, or None.
      unscaled: the embedding before a scaling that counts as trained, for a rule that replaces it; None where there is
        none.

    Raises:
      ScalingError: if the frequencies are not one a pair, or one is not finite or beyond `LARGEST_FREQUENCY`; if
        another number is not finite and above zero.
    """

    inverse_frequencies: Frequencies
    base: float
    dim: int
    original_length: int
    cos_sin_factor: float = 1.0
    logit_scale: float = 1.0
    rules: tuple[str, ...] = ()
    stages: tuple[Any, ...] = ()
    unscaled: "Rotary | None" = None

    def __post_init__(self) -> None:
        check_dim(self.dim)
        for name in ("base", "original_length", "cos_sin_factor", "logit_scale"):
            check_positive(name, getattr(self, name))
        theta = np.asarray(self.inverse_frequencies, np.float64)
        object.__setattr__(self, "inverse_frequencies", theta)
        if theta.shape != (self.dim // 2,):
            raise ScalingError(
                f"inverse_frequencies of shape {theta.shape} are not one for each pair of dim {self.dim}"
            )
        if not (np.abs(theta) <= LARGEST_FREQUENCY).all():  # also where one is NaN
            pair = int(np.argmax(np.abs(theta)))
            raise ScalingError(
                f"with base {self.base:g}, pair {pair} would turn by {theta[pair]:g} radians a token: more than "
                f"{LARGEST_FREQUENCY:g} loses its phase at far positions"
            )


def check_dim(dim: int) -> None:
    """Raises `ScalingError` unless `dim` is a positive even number of dimensions."""
    if dim < 2 or dim % 2:
        raise ScalingError(f"rotary dim must be a positive even number, got {dim}")


def check_positive(name: str, value: float, *, at_least: float = 0) -> None:
    """Raises `ScalingError` unless `value` is a finite number above zero, and not below `at_least`."""
    if not (math.isfinite(value) and value > 0):
        raise ScalingError(f"{name} must be a finite positive number, got {value}")
    if value < at_least:
        raise ScalingError(f"{name} must be at least {at_least}, got {value}")


def check_whole(name: str, value: int | np.integer, *, at_least: int) -> None:
    """Raises `ScalingError` unless `value` is an integer, of any kind but a boolean, and not below `at_least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < at_least:
        raise ScalingError(f"{name} must be a whole number, at least {at_least}, got {value!r}")


def inverse_frequencies(dim: int, *, base: float) -> Frequencies:
    r"""Returns the inverse frequency of every rotary pair.

    .. math:: \theta_i = b^{-2i/d}

    Args:
      dim: `d`, the number of dimensions that rotate; even.
      base: `b`. It has no default: a forgotten base is a silent, wrong model.

    Returns:
      float64 `[dim / 2]`, radians per token, from 1 downwards.

    Raises:
      ScalingError: if `dim` is odd or not positive, or `base` is not above zero.

    Source: Su et al., arXiv 2104.09864, section 3.2.2.

    >>> inverse_frequencies(4, base=10000.0)
    array([1.  , 0.01])
    """
    check_dim(dim)
    check_positive("base", base)
    with np.errstate(over="ignore"):  # a record refuses what is infinite
        return np.float64(base) ** -(np.arange(0, dim, 2, dtype=np.float64) / dim)


def rotary(dim: int, *, base: float, original_length: int) -> Rotary:
    """Returns the unscaled record that scaling rules act on.

    Args:
      dim: `d`, the number of dimensions that rotate; even.
      base: `b`.
      original_length: `L`, tokens the model was trained on.

    Raises:
      ScalingError: if an argument is out of range.
    """
    check_positive("original_length", original_length)
    return Rotary(inverse_frequencies(dim, base=base), float(base), dim, original_length)


def wavelengths(inverse_frequencies: Frequencies) -> Frequencies:
    r"""Returns `T_i = 2 pi / theta_i` in tokens, infinite for a pair that does not turn."""
    with np.errstate(divide="ignore"):
        return 2 * np.pi / inverse_frequencies


def turns(inverse_frequencies: Frequencies, length: int) -> Frequencies:
    r"""Returns how many periods each pair completes over `length` tokens, `r_i = L theta_i / 2 pi`."""
    return length * inverse_frequencies / (2 * np.pi)


def base_multiplier(dim: int, *, factor: float) -> float:
    r"""Returns the `lambda` that stretches the longest wavelength by exactly `factor`.

    .. math:: (\lambda b)^{(d-2)/d} = s\, b^{(d-2)/d} \quad\Rightarrow\quad \lambda = s^{d/(d-2)}

    Args:
      dim: `d`; at least 4, since with one pair no base changes anything.
      factor: `s`, target length over trained length.

    Source: Peng et al., arXiv 2309.00071, equation 16.

    >>> round(base_multiplier(128, factor=8.0), 4)
    8.2685
    """
    check_dim(dim)
    check_positive("factor", factor)
    if dim == 2:
        raise ScalingError("base scaling needs a rotary dim of at least 4: the only pair of dim 2 has frequency 1")
    try:
        return float(factor) ** (dim / (dim - 2))
    except OverflowError:
        raise ScalingError(f"factor {factor:g} is too large to scale the base of dim {dim} by") from None


def period_matched_base(base: float, *, factor: float, dim: int) -> float:
    """Returns `b' = b s^(d/(d-2))`, the base whose longest wavelength is `factor` times the old one."""
    check_positive("base", base)
    return base * base_multiplier(dim, factor=factor)


def period_growth(before: Frequencies, after: Frequencies) -> Frequencies:
    r"""Returns how much longer each pair's period became, `T'_i / T_i`, 1 where neither turns.

    Base scaling by `lambda` gives `lambda^(2i/d)`: 1 for the first pair and `s` for the last, so no
    single number describes it; linear interpolation gives `s` everywhere.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(before == after, 1.0, before / after)


def grows_uniformly(before: Frequencies, after: Frequencies, *, tolerance: float = 1e-9) -> bool:
    """Returns whether every period grew by the same factor, as linear interpolation does and base scaling does not."""
    growth = period_growth(before, after)
    return bool(np.ptp(growth) <= tolerance * growth.min())


def critical_dimension(dim: int, *, base: float, length: int) -> int:
    r"""Returns how many dimensions complete at least one period over the trained length.

    .. math:: 2 \left\lceil \tfrac d2 \log_b \tfrac{L}{2\pi} \right\rceil

    between 0 and `d`.

    Raises:
      ScalingError: if an argument is out of range; a base of 1 or less has no slow pairs to count.

    Source: Liu et al., arXiv 2310.05209, definition of the critical dimension.

    >>> critical_dimension(128, base=10000.0, length=4096)
    92
    """
    check_dim(dim)
    check_positive("length", length)
    check_positive("base", base)
    if base <= 1:
        raise ScalingError(f"the critical dimension needs a base above 1, got {base}")
    pairs = math.ceil(dim / 2 * math.log(length / (2 * math.pi), base))
    return 2 * min(max(pairs, 0), dim // 2)
