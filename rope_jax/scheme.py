"""A positional scheme as data: one pytree of one structure for every rotary embedding and every bias.

All arrays are traced, so one compiled program serves every retrofit, a stack of schemes can be swept by `lax.map` or
`vmap`, and a batch can hold a scheme for each of its sequences. Only the layout, the way of computing phases, and the
shapes (pairs, heads, longest distinct offset) are static.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Integer

from rope_jax import double_float, dynamic, phases, rotation
from rope_jax.biases import Alibi, Bias
from rope_jax.frequencies import Rotary, check_whole
from rope_jax.integers import as_int32
from rope_jax.length_rules import LengthRule, at_length
from rope_jax.rules import Rule
from rope_jax.scaling import no_rotation, none


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["inverse_frequencies", "remainder", "cos_sin_factor", "logit_scale", "slopes", "offset_bias"],
    meta_fields=["layout", "phase"],
)
@dataclasses.dataclass(frozen=True)
class Scheme:
    r"""Everything a decoder needs to know about positions.

    .. math:: \text{logit}_h(i, j) = c\,\sigma\, (R(i) q)\cdot(R(j) k) - m_h |i-j| + s_h[\mathrm{clip}(i-j, -M, M)]

    with `c` the logit scale, `sigma` the attention's own `1/sqrt(head_dim)`, and `R` multiplied by the cos/sin factor.
    Every array is float32 and may carry leading batch axes, all the same: one scheme a sequence.

    Attributes:
      inverse_frequencies: `theta`, `[pairs]`, radians per token. Gradients reach it.
      remainder: what float32 rounding left of `theta`, `[pairs]`; a constant under differentiation.
      cos_sin_factor: `[]`, multiplies cos and sin: rotary dimensions only, logits by its square.
      logit_scale: `[]`, multiplies every `q.k`, before the bias.
      slopes: `m`, `[heads]`, nats per token; 0 without a line.
      offset_bias: `s`, `[heads, 2 * max_offset + 1]`, nats; offset 0 in the middle, the ends hold beyond them.
      layout: "half" or "interleaved"; static, a property of the weights.
      phase: "exact" or "float32"; static.

    Raises:
      ValueError: on an unknown layout or phase.
    """

    inverse_frequencies: Array
    remainder: Array
    cos_sin_factor: Array
    logit_scale: Array
    slopes: Array
    offset_bias: Array
    layout: rotation.Layout = "half"
    phase: phases.Phase = "exact"

    def __post_init__(self) -> None:
        # The arrays may be anything a transformation puts in their place; only what is static is known here.
        rotation.check_layout(self.layout)
        phases.check_phase(self.phase)

    @property
    def num_heads(self) -> int:
        return self.slopes.shape[-1]

    @property
    def rotary_dim(self) -> int:
        return 2 * self.inverse_frequencies.shape[-1]

    @property
    def max_offset(self) -> int:
        """The largest offset with a bias of its own, beside the line; every farther one shares it."""
        return self.offset_bias.shape[-1] // 2

    def cos_sin(
        self, positions: Integer[Array | np.ndarray, "*batch tokens"]
    ) -> tuple[Float32[Array, "*batch tokens pairs"], Float32[Array, "*batch tokens pairs"]]:
        """Returns cos and sin at `positions`, times the cos/sin factor; errors as in `phases.cos_sin`."""
        positions = as_int32("positions", positions)
        cos, sin = phases.cos_sin(positions, self.inverse_frequencies, self.remainder, phase=self.phase)
        factor = self.cos_sin_factor
        factor = factor.reshape((1,) * (positions.ndim - 1 - factor.ndim) + factor.shape + (1, 1))
        return cos * factor, sin * factor

    def rotate(
        self, x: Float[Array, "*batch tokens heads dim"], positions: Integer[Array | np.ndarray, "*batch tokens"]
    ) -> Float[Array, "*batch tokens heads dim"]:
        """Returns queries or keys turned to `positions`, in their own dtype."""
        cos, sin = self.cos_sin(positions)
        return rotation.rotate(x, cos, sin, layout=self.layout)

    def bias(
        self, offset: Integer[Array | np.ndarray, "*batch queries keys"]
    ) -> Float32[Array, "*batch heads queries keys"]:
        """Returns the bias of every head at `offset = i - j`, query minus key position, integers of any width."""
        offset = as_int32("offset", offset)
        index = jnp.clip(offset, -self.max_offset, self.max_offset) + self.max_offset

        def of_one(slopes: Array, strip: Array, offset: Array, index: Array) -> Array:
            line = -slopes[:, None, None] * jnp.abs(offset.astype(jnp.float32))[None]  # |-2^31| is no int32
            return line + jnp.take(strip, index, axis=1)

        shared = self.slopes.ndim - 1
        for axis in range(offset.ndim - 2):
            in_axes = (0, 0) if axis < shared else (None, None)
            of_one = jax.vmap(of_one, in_axes=(*in_axes, 0, 0))
        return of_one(self.slopes, self.offset_bias, offset, index)


def build(
    rotary: Rotary | None,
    bias: Bias | None = None,
    *,
    num_heads: int,
    head_dim: int,
    layout: rotation.Layout = "half",
    phase: phases.Phase = "exact",
    max_offset: int | None = None,
) -> Scheme:
    """Returns the scheme of a (scaled) rotary embedding and a bias.

    Args:
      rotary: the record to turn by; None for no rotation at all (NoPE, or a bias alone).
      bias: the bias to add; None for none.
      num_heads: query heads, at least 1.
      head_dim: dimensions of a head, at least 1, of which `rotary.dim` rotate.
      layout: "half" or "interleaved".
      phase: "exact" or "float32".
      max_offset: offsets the strip tells apart; by default as many as the bias needs. Schemes of one size run in one
        compiled program, so a sweep gives all of them the largest.

    Raises:
      ValueError: if a number is out of range, the layout or the phase unknown, the head counts differ, more dimensions
        rotate than a head has, or `max_offset` is too small for the bias (or missing, for one that never becomes flat).
    """
    rotation.check_layout(layout)
    phases.check_phase(phase)
    least = {"num_heads": (num_heads, 1), "head_dim": (head_dim, 1), "max_offset": (max_offset or 0, 0)}
    for name, (value, smallest) in least.items():
        check_whole(name, value, at_least=smallest)
    if bias is not None and bias.num_heads != num_heads:
        raise ValueError(f"the bias has {bias.num_heads} heads, the model {num_heads}")
    if rotary is not None and rotary.dim > head_dim:
        raise ValueError(f"{rotary.dim} rotary dimensions do not fit into a head of {head_dim}")
    frequencies = np.zeros(0) if rotary is None else rotary.inverse_frequencies
    high, low = double_float.split(frequencies)
    logit_scale = 1.0 if rotary is None else rotary.logit_scale
    if getattr(bias, "unscaled_logits", False):
        logit_scale *= math.sqrt(head_dim)
    slopes, strip = _lower(bias, num_heads, max_offset)
    return Scheme(
        inverse_frequencies=jnp.asarray(high),
        remainder=jnp.asarray(low),
        cos_sin_factor=jnp.float32(1.0 if rotary is None else rotary.cos_sin_factor),
        logit_scale=jnp.float32(logit_scale),
        slopes=slopes,
        offset_bias=strip,
        layout=layout,
        phase=phase,
    )


def _lower(
    bias: Bias | None, num_heads: int, max_offset: int | None
) -> tuple[Float32[Array, " heads"], Float32[Array, "heads offsets"]]:
    """Writes a bias as a line plus a strip, by operations that gradients pass through."""
    nothing = jnp.zeros((num_heads,), jnp.float32)
    if bias is None or isinstance(bias, Alibi):
        slopes = nothing if bias is None else bias.slopes
        return slopes, jnp.zeros((num_heads, 2 * (max_offset or 0) + 1), jnp.float32)
    needed = getattr(bias, "flat_from", None)
    if needed is None and max_offset is None:
        raise ValueError(f"{type(bias).__name__} never becomes flat: pass max_offset, the longest sequence - 1")
    if needed is not None and max_offset is not None and max_offset < needed:
        raise ValueError(f"max_offset {max_offset} is too small: the bias still changes at offset {needed}")
    extent = needed if max_offset is None else max_offset
    assert extent is not None
    return nothing, bias(jnp.arange(-extent, extent + 1, dtype=jnp.int32)).astype(jnp.float32)


def stack(schemes: Sequence[Scheme]) -> Scheme:
    """Returns one scheme with a leading axis over `schemes`, their strips widened (exactly) to the widest.

    Raises:
      ValueError: if they differ in layout, phase, pairs or heads, or there are none.
    """
    if not schemes:
        raise ValueError("there are no schemes to stack")
    first = schemes[0]
    for other in schemes[1:]:
        for name in ("layout", "phase", "rotary_dim", "num_heads"):
            if getattr(first, name) != getattr(other, name):
                raise ValueError(
                    f"schemes of different {name} do not stack: {getattr(first, name)} and {getattr(other, name)}"
                )
    widest = max(scheme.max_offset for scheme in schemes)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(widen(scheme, widest) for scheme in schemes))


def widen(scheme: Scheme, max_offset: int) -> Scheme:
    """Returns the same scheme with a strip up to `max_offset`, its ends repeated."""
    extra = max_offset - scheme.max_offset
    if extra < 0:
        raise ValueError(f"a strip up to {scheme.max_offset} cannot be cut to {max_offset}")
    padding = [(0, 0)] * (scheme.offset_bias.ndim - 1) + [(extra, extra)]
    return dataclasses.replace(scheme, offset_bias=jnp.pad(scheme.offset_bias, padding, mode="edge"))


def without_rotation(scheme: Scheme) -> Scheme:
    """Returns the scheme's factors and biases for queries and keys that are turned already."""
    nothing = scheme.inverse_frequencies[..., :0]
    return dataclasses.replace(scheme, inverse_frequencies=nothing, remainder=nothing)


@dataclasses.dataclass(frozen=True)
class Retrofit:
    """A context extension, on the host: the case this library is about.

    Attributes:
      rotary: the rotary embedding as trained.
      rule: how its frequencies are scaled; a rule by sequence length is turned into a scheme by `per_length`.
      bias: the bias that is added, or None.
      temperature: multiplies every logit, beside what the rule itself brings along; 1 for none.
      bias_name: what reports call the bias; its type's name where None.
    """

    rotary: Rotary
    rule: Rule | LengthRule = dataclasses.field(default_factory=none)
    bias: Bias | None = None
    temperature: float = 1.0
    bias_name: str | None = None

    @property
    def scaling(self) -> str:
        """The name of the rule."""
        return self.rule.name

    @property
    def bias_label(self) -> str:
        """The name of the bias, "none" for none."""
        return "none" if self.bias is None else self.bias_name or type(self.bias).__name__.lower()

    @property
    def name(self) -> str:
        """Rule, bias and temperature in words, such as "ntk + alibi"."""
        sharpened = "" if self.temperature == 1 else f" + temperature {self.temperature:.3g}"
        return f"{self.scaling} + {self.bias_label}{sharpened}"


def drop_bias(retrofit: Retrofit) -> Retrofit:
    """Returns option 1: the scaling stays, the bias goes."""
    return dataclasses.replace(retrofit, bias=None, bias_name=None)


def undo_scaling(retrofit: Retrofit) -> Retrofit:
    """Returns option 2: the bias stays, the rotary embedding is the trained one again; the rule's temperature goes."""
    return dataclasses.replace(retrofit, rule=none())


def rescale(retrofit: Retrofit, rule: Rule | LengthRule) -> Retrofit:
    """Returns option 3: the bias stays, and the angle is transformed by another `rule`.

    The temperature that the replaced rule brings along goes with it, and that of `rule` comes;
    `keeping_temperature` makes it a change of the map alone.
    """
    return dataclasses.replace(retrofit, rule=rule)


def keeping_temperature(before: Retrofit, after: Retrofit, *, length: int) -> Retrofit:
    r"""Returns `after` with the temperature of `before`, so that nothing but the map of the frequencies differs.

    .. math:: t = t_{before}\,(f_{before} / f_{after})^2\, c_{before} / c_{after}

    with `f` the cos/sin factor and `c` the logit scale that each rule brings along.

    Args:
      before: whose logits' scale is kept.
      after: what is to have it.
      length: tokens, for rules that depend on it.
    """

    def brought(retrofit: Retrofit) -> float:
        rotary = at_length(retrofit.rule, length)(retrofit.rotary)
        return rotary.cos_sin_factor**2 * rotary.logit_scale

    # Exactly 1 where both bring the same, so that names stay plain.
    return dataclasses.replace(after, temperature=before.temperature * (brought(before) / brought(after)))


def undo_both(retrofit: Retrofit) -> Retrofit:
    """Returns the model as it was trained: no scaling, no bias, no temperature."""
    return Retrofit(retrofit.rotary)


def drop_rotation(retrofit: Retrofit) -> Retrofit:
    """Returns the extension with nothing turning (DroPE, arXiv 2512.12167); bias and temperature stay."""
    return dataclasses.replace(retrofit, rule=no_rotation())


def sharpen(retrofit: Retrofit, temperature: float) -> Retrofit:
    """Returns the extension with all logits multiplied by `temperature`, in place of its own."""
    return dataclasses.replace(retrofit, temperature=temperature)


def scheme_of(retrofit: Retrofit, *, length: int | None = None, **build_arguments) -> Scheme:
    """Returns the scheme of a retrofit; the keyword arguments are those of `build`.

    Args:
      retrofit: rotary, rule, bias and temperature.
      length: tokens, for a rule that depends on it.

    Raises:
      ValueError: if the rule depends on the length and none is given.
    """
    rule = retrofit.rule
    if isinstance(rule, LengthRule):
        if length is None:
            raise ValueError(f"{rule.name} depends on the sequence's length: pass it, or use per_length")
        rule = rule.at(length)
    scheme = build(rule(retrofit.rotary), retrofit.bias, **build_arguments)
    return dataclasses.replace(scheme, logit_scale=scheme.logit_scale * retrofit.temperature)


def per_length(retrofit: Retrofit, **build_arguments) -> Callable[[Integer[Array | np.ndarray, "*batch"]], Scheme]:
    """Returns a function from traced lengths to a scheme for each sequence, for rules that depend on the length.

    For a static rule the function returns the one scheme whatever the lengths. All of a sequence is under the one
    scheme of its length, keys that were cached at a shorter length too. Other libraries, transformers among them, leave
    cached keys as the frequencies of their own step rotated them, so that queries and keys of one step disagree; their
    cached output then differs from this one, and from their own without a cache.

    Raises (the function):
      TypeError: if the lengths are not integers.
    """
    rule = retrofit.rule
    if isinstance(rule, Rule):
        static = scheme_of(retrofit, **build_arguments)
        return lambda lengths: static
    # The scalars and the bias do not depend on the length; only the frequencies are replaced.
    template = scheme_of(retrofit, length=1, **build_arguments)

    def scheme_at(lengths: Integer[Array | np.ndarray, "*batch"]) -> Scheme:
        lengths = as_int32("lengths", lengths)
        batched = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (*lengths.shape, *leaf.shape)), template)
        high, low = dynamic.frequencies_at(rule, retrofit.rotary, lengths)
        return dataclasses.replace(batched, inverse_frequencies=high, remainder=low)

    return scheme_at
