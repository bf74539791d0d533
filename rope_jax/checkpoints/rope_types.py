"""The rope types of published configs, each made into the scaling rule that the published code applies."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from rope_jax import length_rules, scaling
from rope_jax.checkpoints.fixed_alpha import base_of_alpha
from rope_jax.checkpoints.ledger import (
    Check,
    Section,
    Wrong,
    boolean,
    close,
    integer,
    is_off,
    list_of,
    number,
    read_places,
    text,
)
from rope_jax.checkpoints.streams import MULTIMODAL, STREAM_SECTIONS, STREAM_SWITCHES, settle_streams
from rope_jax.checkpoints.type_record import refusal
from rope_jax.errors import ScalingError
from rope_jax.frequencies import Rotary, rotary
from rope_jax.length_rules import LengthRule
from rope_jax.rules import Rule

MAX_LENGTH = 2**31 - 1  # positions are int32
LENGTH = integer(1, MAX_LENGTH)
THETA = number(1.0, 1e15, above=True)
FACTOR = number(1.0, 1e6)
ORIGINAL = "original_max_position_embeddings"
ALIASES = {"su": "longrope", "deepseek_yarn": "yarn"}
# Keys that do not ask for a rope type beside them.
_NEED_NO_TYPE = ("rope_theta", "partial_rotary_factor", "rope_type", "type", *STREAM_SECTIONS, *STREAM_SWITCHES)


@dataclasses.dataclass(frozen=True)
class Scaled:
    """One rotary embedding and how it is scaled.

    Attributes:
      rotary: the unscaled record.
      rule: what scales it.
      original_length: `L`, tokens.
      served_length: tokens it is meant to serve.
    """

    rotary: Rotary
    rule: Rule | LengthRule
    original_length: int
    served_length: int


@dataclasses.dataclass(frozen=True)
class Reading:
    """What the reader of one rope type looks at.

    Attributes:
      rope: the section that names the type.
      dim: rotary dimensions.
      partial: the share of the head that turns.
      declared: `max_position_embeddings`.
      original: the stated original length, or None.
      label: prefix of short names, for a layer type with values of its own.
      scale_logits: whether YaRN's `mscale_all_dim` also scales the softmax (DeepSeek).
    """

    rope: Section
    dim: int
    partial: float
    declared: int
    original: int | None
    label: str
    scale_logits: bool

    @property
    def length(self) -> int:
        return self.declared if self.original is None else self.original

    def read(self, key: str, check: Check) -> Any:
        """Returns the value of a key of the rope section, or None."""
        return self.rope.read(key, check=check, name=self.label + key, default=False)

    def read_or(self, key: str, check: Check, *, default: Any) -> Any:
        """Returns the value of a key of the rope section, or what its rope type takes by default."""
        value = self.read(key, check)
        if value is None:
            self.rope.ledger.use(self.label + key, default, "default of yarn")
            return default
        return value

    def factor(self) -> float | None:
        return self.read("factor", FACTOR)

    def need_factor(self) -> float:
        value = self.factor()
        if value is None:
            raise self.rope.error("factor", "missing")
        return value

    def factor_or_ratio(self) -> float:
        """Returns the stated factor, checked against the two lengths, or their ratio."""
        ledger, ratio = self.rope.ledger, self.declared / self.length
        value = self.factor()
        if value is None:
            if not 1 <= ratio <= 1e6:
                raise self.rope.error("factor", f"missing, and {self.declared} / {self.length} is not a factor")
            ledger.use(f"{self.label}factor", ratio, f"derived: max_position_embeddings / {ORIGINAL}")
            return ratio
        if self.original is not None and self.declared == self.original and value > 1:
            ledger.find(f"factor {value:g} is declared, but max_position_embeddings is the original length itself")
        elif self.original is not None and not close(value, ratio):
            ledger.find(
                f"factor {value:g} disagrees with max_position_embeddings / {ORIGINAL} = {ratio:g}; the factor is used"
            )
        return value

    def compare_attention_factor(self, stated: float, computed: float) -> None:
        """Adds the finding on an attention factor that is stated although it follows from the factor."""
        if close(stated, computed):
            self.rope.ledger.find(f"attention_factor {stated:g} is what the factor gives anyway")
        else:
            self.rope.ledger.find(f"attention_factor {stated:g} replaces the {computed:g} that the factor gives")


def _default(reading: Reading) -> tuple[Rule, int, int]:
    rope = reading.rope
    if close(reading.read("factor", number(0, 1e6)) or 1.0, 1.0):  # changes nothing
        rope.ledger.void(f"{reading.label}factor", "1: changes nothing")
    else:
        raise rope.error("factor", "not understood for rope type default")
    if reading.original is not None and reading.original != reading.declared:
        rope.ledger.find(f"{ORIGINAL} is {reading.original}, but no scaling is declared: it has no effect")
    return scaling.none(), reading.declared, reading.declared


def _documented_lengths(reading: Reading, factor: float) -> tuple[int, int]:
    """Returns original and served length for the types whose published code knows `max_position_embeddings` only.

    Their documentation says to leave `max_position_embeddings` at the trained length, so without a stated original
    length that is `L`, and what is served is `factor` times as long.
    """
    ledger = reading.rope.ledger
    if reading.original is not None:
        return reading.original, reading.declared
    ledger.find(
        f"no {ORIGINAL}: max_position_embeddings {reading.declared} is taken for the trained length, as the rope "
        "type's documentation says; were it extended already, the trained length would be shorter"
    )
    return reading.declared, min(int(factor * reading.declared), MAX_LENGTH)


def _linear(reading: Reading) -> tuple[Rule, int, int]:
    factor = reading.need_factor()
    if reading.original is not None and not close(factor * reading.original, reading.declared):
        ratio = reading.declared / reading.original
        reading.rope.ledger.find(
            f"factor {factor:g} disagrees with max_position_embeddings / {ORIGINAL} = {ratio:g}; the factor is used"
        )
    return scaling.linear(factor=factor), *_documented_lengths(reading, factor)


def _dynamic(reading: Reading) -> tuple[LengthRule, int, int]:
    factor = reading.need_factor()
    original, served = _documented_lengths(reading, factor)
    if original != reading.declared:
        reading.rope.ledger.find(
            f"dynamic scaling is read to start at {ORIGINAL} {original}; transformers starts at max_position_embeddings"
        )
    reading.rope.ledger.find("dynamic scaling changes with the length: keys cached at a shorter one are turned wrongly")
    return length_rules.dynamic_ntk(factor=factor, original_length=original), original, served


def _yarn(reading: Reading) -> tuple[Rule, int, int]:
    rope, ledger, label = reading.rope, reading.rope.ledger, reading.label
    if reading.original is None:
        ledger.find(f"yarn without {ORIGINAL}: max_position_embeddings {reading.declared} is taken for it")
    factor = reading.factor_or_ratio()

    beta_fast = reading.read_or("beta_fast", number(0, 1e6, above=True), default=32.0)
    beta_slow = reading.read_or("beta_slow", number(0, 1e6, above=True), default=1.0)
    attention_factor = reading.read("attention_factor", number(0, 1e3, above=True))
    multiplier = reading.read("attn_factor", number(0, 1e3, above=True))
    mscale = reading.read("mscale", number(0, 1e3))
    mscale_all_dim = reading.read("mscale_all_dim", number(0, 1e3))
    truncate = reading.read_or("truncate", boolean, default=True)
    if reading.read("finetuned", boolean) is not None:
        ledger.void(f"{label}finetuned", "says that the weights were adapted, changes no formula")
    if mscale and mscale_all_dim:
        computed = scaling.yarn_mscale(factor, mscale) / scaling.yarn_mscale(factor, mscale_all_dim)
    else:
        computed = scaling.yarn_mscale(factor)
        if mscale is not None or mscale_all_dim is not None:
            ledger.find("mscale and mscale_all_dim set the cos/sin factor together only; one alone leaves 0.1 ln s + 1")
    if multiplier is not None:
        # The published YaRN code multiplies by `attn_factor`; `attention_factor` is transformers' name and replaces.
        if attention_factor is not None:
            raise rope.error("attn_factor", "multiplies the factor that attention_factor replaces: state one of them")
        ledger.find("attn_factor multiplies the cos/sin factor here, as in YaRN's code; transformers drops it silently")
        attention_factor = computed * multiplier
    elif attention_factor is not None:
        reading.compare_attention_factor(attention_factor, computed)
    used = computed if attention_factor is None else attention_factor
    ledger.use(f"{label}cos_sin_factor", used, "derived: yarn, from the values above")
    rule = scaling.yarn(
        factor=factor,
        original_length=reading.length,
        beta_fast=beta_fast,
        beta_slow=beta_slow,
        truncate=truncate,
        attention_factor=attention_factor,
        mscale=mscale,
        mscale_all_dim=mscale_all_dim,
        scale_logits=reading.scale_logits,
    )
    return rule, reading.length, reading.declared


def _llama3(reading: Reading) -> tuple[Rule, int, int]:
    rope, label = reading.rope, reading.label
    if reading.original is None:
        raise rope.error(ORIGINAL, "missing: the llama3 rope type compares wavelengths with it")
    reading.need_factor()
    factor = reading.factor_or_ratio()
    turns = number(0, 1e6, above=True)
    low = rope.need("low_freq_factor", check=turns, name=f"{label}low_freq_factor")
    high = rope.need("high_freq_factor", check=turns, name=f"{label}high_freq_factor")
    if low == high:
        rope.ledger.find("low_freq_factor equals high_freq_factor: a step here, a division by zero in transformers")
    rule = scaling.llama3(factor=factor, original_length=reading.length, low_freq_factor=low, high_freq_factor=high)
    return rule, reading.length, reading.declared


def _longrope(reading: Reading) -> tuple[LengthRule, int, int]:
    rope, label, original = reading.rope, reading.label, reading.length
    if reading.original is None:
        raise rope.error(ORIGINAL, "missing: longrope changes its factors at that length")
    factor = reading.factor_or_ratio()
    per_pair = list_of(number(0, 1e9, above=True), reading.dim // 2)
    short = rope.need("short_factor", check=per_pair, name=f"{label}short_factor")
    long = rope.need("long_factor", check=per_pair, name=f"{label}long_factor")
    positive = number(0, 1e3, above=True)
    stated = reading.read("attention_factor", positive)
    mscales = [reading.read(key, positive) for key in ("short_mscale", "long_mscale")]
    if mscales != [None, None]:
        if mscales[0] != mscales[1]:
            raise refusal(rope, "short_mscale" if mscales[0] is not None else "long_mscale", "length-dependent factor")
        if stated is not None and stated != mscales[0]:
            raise rope.error("attention_factor", f"contradicts short_mscale ({mscales[0]:g})")
        stated = mscales[0]
    computed = scaling.longrope_factor(factor=factor, original_length=original)
    if stated is not None:
        reading.compare_attention_factor(stated, computed)
    attention_factor = computed if stated is None else stated
    if short == long:
        rope.ledger.find("short_factor and long_factor are the same list: the scaling does not depend on the length")
    rope.ledger.use(f"{label}cos_sin_factor", attention_factor, "derived: longrope, from the values above")
    rule = length_rules.longrope(
        short_factor=short, long_factor=long, original_length=original, attention_factor=attention_factor
    )
    return rule, original, reading.declared


def _proportional(reading: Reading) -> tuple[Rule, int, int]:
    factor = reading.factor()
    rule = scaling.proportional(proportion=reading.partial, factor=1.0 if factor is None else factor)
    return rule, reading.length, reading.declared


ROPE_TYPES: dict[str, Callable[[Reading], tuple[Rule | LengthRule, int, int]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
    "proportional": _proportional,
}


def rope_type_of(rope: Section, *, label: str) -> str:
    """Returns the canonical name of the rope type that a section declares.

    Raises:
      ConfigError: if it is unknown, or stated twice in contradiction, or left out beside keys that need it.
    """
    named = [key for key in ("rope_type", "type") if rope.holds(key)]
    plain = [key for key in named if rope.content[key] not in MULTIMODAL]
    for key in named:
        if key not in plain:
            rope.ledger.account(rope.prefix + key, "positions of text are the same in every stream")
    if named and not plain:
        return "default"
    stated = read_places(
        [(rope, "rope_type"), (rope, "type")] if not plain else [(rope, key) for key in plain],
        check=_canonical,
        name=f"{label}rope_type",
    )
    if stated is None:
        # Both of today's schemas mean "default" by silence, and would then drop a factor without a word.
        needy = next(
            (key for key, value in rope.content.items() if key not in _NEED_NO_TYPE and not is_off(value)), None
        )
        if needy is not None:
            raise rope.error("rope_type", f"missing, beside {needy!r:.60}")
        return "default"
    canonical: str = stated
    return canonical


def _canonical(value: Any) -> str:
    """The check for a rope type."""
    name = text(value)
    canonical = ALIASES.get(name, name)
    if canonical not in ROPE_TYPES:
        known = ", ".join(sorted([*ROPE_TYPES, *ALIASES, *MULTIMODAL]))
        raise Wrong(f"unknown rope type, known are {known}")
    return canonical


def scaled(
    rope: Section,
    rope_type: str,
    *,
    top: Section,
    base: float,
    dim: int,
    partial: float,
    declared: int,
    label: str = "",
    scale_logits: bool = False,
    fixed_alpha: bool = False,
) -> Scaled:
    """Returns the rotary embedding that one rope section describes, and its rule.

    Args:
      rope: the section, `rope_scaling` or `rope_parameters` or one layer type's part of it.
      rope_type: what `rope_type_of` returned for it.
      top: the section around it, which may hold the original length.
      base: `b`, read already.
      dim: rotary dimensions, even; for "proportional" the whole head.
      partial: the share of the head that turns.
      declared: `max_position_embeddings`.
      label: prefix of the short names that values are recorded by.
      scale_logits: see `scaling.yarn`.
      fixed_alpha: whether `alpha` beside type "dynamic" is another base.

    Raises:
      ConfigError: if a key is missing, unknown to the rope type, out of range, or contradicts another.
    """
    places = [(rope, ORIGINAL), (top, ORIGINAL), (top, "initial_context_length")]
    original = read_places(
        places, check=LENGTH, name=f"{label}original_length", default=rope_type != "default", off=True
    )
    reading = Reading(rope, dim, partial, declared, original, label, scale_logits)
    settle_streams(rope, declared=declared, label=label)
    if rope_type == "dynamic" and not is_off(rope.content.get("alpha")):
        base, rope_type = base_of_alpha(rope, base, dim=dim, fixed=fixed_alpha, label=label), "default"
    try:
        rule, length, served = ROPE_TYPES[rope_type](reading)
        for key, value in rope.content.items():
            if rope.ledger.accounted(rope.prefix + key):
                continue
            if not is_off(value) or value == "":
                raise rope.error(key, f"not understood for rope type {rope_type}")
            rope.ignore(key, f"{value}: off")
        record = rotary(dim, base=base, original_length=length)
        _check_range(record, rule, served)
    except ScalingError as error:
        raise rope.ledger.error(rope.prefix.rstrip("."), str(error)) from None
    if original != length:
        if original is not None:
            for section, key in places:
                section.ignore(key, "no scaling is declared")
        if not (label and rope_type == "default"):  # an unscaled layer type has the main layers' length
            rope.ledger.use(f"{label}original_length", length, rope.ledger.values["declared_length"].source)
    return Scaled(record, rule, length, served)


def _check_range(record: Rotary, rule: Rule | LengthRule, served: int) -> None:
    """Applies the rule once, so that what overflows or has no meaning fails here and not in a caller."""
    rules = [rule] if isinstance(rule, Rule) else [rule.at(1), rule.at(served), rule.at(MAX_LENGTH)]
    with np.errstate(all="ignore"):
        for one in rules:
            after = one(record)
            factors = np.array([after.cos_sin_factor, after.logit_scale])
            if not (np.isfinite(after.inverse_frequencies).all() and np.isfinite(factors).all()):
                raise ScalingError(f"{rule.name} gives frequencies beyond float64")
