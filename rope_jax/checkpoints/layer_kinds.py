"""The type of every layer, its window, and whether it turns, as a config states them or its model type has them."""

import re
from typing import Any

from rope_jax.checkpoints.ledger import Section, Wrong, boolean, integer, list_of, text
from rope_jax.checkpoints.model_types import CHUNKED, FULL, LINEAR, SLIDING, ModelType, refusal
from rope_jax.checkpoints.rope_types import MAX_LENGTH

COUNT = integer(1, 100_000)
_WITHOUT_WINDOWS = ("listed", "every nth not linear")  # no layer has one unless the config lists it


def window_of(top: Section, spec: ModelType) -> int | None:
    """Returns the window that the config states, in tokens including the query's own, or None."""
    ledger, size = top.ledger, integer(1, MAX_LENGTH)
    use = top.read("use_sliding_window", check=boolean)
    window: int | None = top.read("sliding_window", check=size, name="sliding_window")
    if spec.window_excludes_self:
        before = top.read("sliding_window_size", check=size)
        if before is not None:
            # The published serving code lets a query see this many tokens besides itself.
            ledger.void("sliding_window", "sliding_window_size decides, and counts the tokens before the query")
            window = before + 1
            ledger.use("sliding_window", window, "derived: sliding_window_size + 1, the query's own token")
        top.ignore("attention_chunk_size", "the published code cuts by sliding_window_size")
    if use is None:  # null means the default, as absence does
        use = ledger.defaults.get("use_sliding_window")
    if use is True and window is None:
        if "sliding_window" not in ledger.defaults:
            raise top.error("use_sliding_window", "a window is asked for, and its size, sliding_window, is not stated")
        ledger.find("use_sliding_window is true, but sliding_window is null: no layer has a window")
    if use is not False or (not spec.window_switch and window is None):
        return window
    if spec.window_switch or spec.layers in _WITHOUT_WINDOWS:
        ledger.void("sliding_window", "use_sliding_window is false")
        return None
    # Where published programs disagree, the model's own code says what it was trained with.
    ledger.void("use_sliding_window", f"{ledger.defaults_of}'s published code does not read it")
    ledger.find(
        f"{top.prefix}use_sliding_window is false, but {ledger.defaults_of}'s published code does not read it: the "
        f"window of {window} tokens stays, as in transformers; vLLM obeys the key and drops the window"
    )
    return window


def layer_types_of(top: Section, spec: ModelType, *, layers: int, window: int | None) -> tuple[str, ...]:
    """Returns the type of every layer, as stated or as the model type's pattern gives it.

    Where the published code makes the last layer a full one whatever is stated, it is one here, with a finding.

    Raises:
      ConfigError: if a list has the wrong length or an unknown type, or two statements disagree.
    """
    kinds = _stated_or_by_pattern(top, spec, layers, window)
    if spec.last_full and kinds[-1] == SLIDING:
        top.ledger.find(f"the last layer is read as {FULL}, as {top.ledger.defaults_of}'s published code has it")
        kinds = (*kinds[:-1], FULL)
    return kinds


def _stated_or_by_pattern(top: Section, spec: ModelType, layers: int, window: int | None) -> tuple[str, ...]:
    by_pattern = _layers_by_pattern(top, spec, layers, window)
    stated = top.read("layer_types", check=list_of(text, layers))
    hybrid = top.read("hybrid_layer_pattern", check=list_of(integer(0, 1), layers))
    if hybrid is not None:
        from_hybrid = tuple(SLIDING if entry else FULL for entry in hybrid)
        if stated is not None and stated != from_hybrid:
            raise top.error("hybrid_layer_pattern", "contradicts layer_types")
        stated = from_hybrid
    if stated is None:
        return by_pattern
    for kind in stated:
        if kind == CHUNKED:
            raise refusal(top, "layer_types", "chunked attention")
        if kind not in (FULL, SLIDING, LINEAR):
            raise top.error("layer_types", f"unknown layer type {kind!r:.60}")
    patterns = ["full_attention_interval"] if spec.full_every else ["sliding_window_pattern", "full_attention_interval"]
    pattern = next((key for key in patterns if key in top.content), None)
    if pattern is not None and stated != by_pattern:
        raise top.error(pattern, "contradicts layer_types")
    for name in ("sliding_window_pattern", "full_attention_interval", "max_window_layers"):
        top.ledger.void(name, "layer_types names every layer")
    return stated


def _layers_by_pattern(top: Section, spec: ModelType, layers: int, window: int | None) -> tuple[str, ...]:
    if spec.without_rotation == "full beside windows" and window is None:
        top.ignore("sliding_window_pattern", "no layer has a window")
        return (FULL,) * layers
    if spec.layers in ("every nth full", "first and every nth full"):
        if isinstance(top.content.get("sliding_window_pattern"), str) and not spec.full_every:
            letters = top.need("sliding_window_pattern", check=_letters)
            kinds = [SLIDING if letters[i % len(letters)] == "L" else FULL for i in range(layers)]
            return (*kinds[:-1], FULL)  # whatever the letters say, as documented where they are
        every = (
            top.need("sliding_window_pattern", check=COUNT)
            if not spec.full_every
            else _fixed_pattern(top, spec, layers)
        )
        first = spec.layers == "first and every nth full"
        return tuple(FULL if (i + 1) % every == 0 or (first and i == 0) else SLIDING for i in range(layers))
    if spec.layers == "every nth not linear":
        every = top.need("full_attention_interval", check=COUNT)
        return tuple(LINEAR if (i + 1) % every else FULL for i in range(layers))
    if spec.layers == "upper sliding":
        first = top.read("max_window_layers", check=integer(0, 100_000))
        if window is None or first is None:
            top.ledger.void("max_window_layers", "no layer has a window")
            return (FULL,) * layers
        return tuple(SLIDING if i >= first else FULL for i in range(layers))
    if spec.layers == "lower alternate sliding":
        last = top.read("max_window_layers", check=integer(0, 100_000))
        if window is None or last is None:
            top.ledger.void("max_window_layers", "no layer has a window")
            return (FULL,) * layers
        return tuple(SLIDING if i % 2 == 0 and i < last else FULL for i in range(layers))
    if spec.layers == "still sliding" and window is not None:
        return tuple(FULL if turns else SLIDING for turns in _listed_turning(top, layers))
    if spec.layers == "alike" and spec.window_switch:
        if window is None:
            top.ignore("max_window_layers", "no layer has a window")
        else:
            top.pass_over(
                "max_window_layers", f"{top.ledger.defaults_of}'s published code has one window in all layers"
            )
    return (FULL,) * layers


def _fixed_pattern(top: Section, spec: ModelType, layers: int) -> int:
    """Returns the distance of full layers that the published code has, whatever the config says of it."""
    key, every, name = "sliding_window_pattern", spec.full_every, top.ledger.defaults_of
    stated, listed = top.content.get(key), top.content.get("layer_types")
    counted = stated if isinstance(stated, int) and not isinstance(stated, bool) and stated > 0 else None
    if counted and listed == [SLIDING if (i + 1) % counted else FULL for i in range(layers)]:
        top.ignore(key, "repeats layer_types")
    elif counted == every and listed is None:
        top.ignore(key, "says what is done anyway")
    else:
        top.pass_over(key, f"{name}'s published code does not read it; unless listed, one layer in {every} is full")
    top.ledger.use(key, every, f"default of {name}")
    return every


def _letters(value: Any) -> str:
    """The check for a pattern of local (L) and global (G) layers."""
    if not isinstance(value, str) or not re.fullmatch("[LG]{1,200}", value):
        raise Wrong("must be a whole number, or letters L (sliding) and G (full)")
    return value


def turning_layers(top: Section, spec: ModelType, kinds: tuple[str, ...], window: int | None) -> tuple[bool, ...]:
    """Returns whether each layer turns at all."""
    if spec.without_rotation == "full" or (spec.without_rotation == "full beside windows" and window is not None):
        return tuple(kind != FULL for kind in kinds)
    if spec.without_rotation != "listed":
        return (True,) * len(kinds)
    return _listed_turning(top, len(kinds))


def _listed_turning(top: Section, layers: int) -> tuple[bool, ...]:
    """Returns whether each layer turns, as a list or an interval says (SmolLM 3)."""
    every = top.read("no_rope_layer_interval", check=COUNT)
    listed = top.read("no_rope_layers", check=list_of(integer(0, 1), layers))  # 1 where the layer does turn
    if listed is not None:
        top.ledger.void("no_rope_layer_interval", "no_rope_layers names every layer")
        return tuple(entry == 1 for entry in listed)
    return tuple(every is None or (i + 1) % every != 0 for i in range(layers))
