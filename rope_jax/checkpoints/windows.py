"""The sliding window or the chunk that a config states, in tokens."""

from typing import Any

from rope_jax.checkpoints.ledger import Section, boolean, integer
from rope_jax.checkpoints.type_record import ModelType
from rope_jax.checkpoints.unread_keys import read_published

__all__ = ["CHUNK", "chunk_of", "window_of"]

MAX_LENGTH = 2**31 - 1  # positions are int32
CHUNK = "attention_chunk_size"
_SIZE = integer(1, MAX_LENGTH)
_NAMES = ("sliding_window", "sliding_window_size", "attention_window_size", "window_size", "local_window_size")
_WITHOUT_WINDOWS = ("listed",)  # no layer has one unless the config lists it


def window_of(top: Section, spec: ModelType, *, known: bool) -> int | None:
    """Returns the window that the config states, in tokens including the query's own, or None.

    The published names that agree repeat each other, and 0, false and null say that there is none. One that a known
    model type's published code does not read counts only beside one that it does.
    """
    ledger = top.ledger
    use = top.read("use_sliding_window", check=boolean)
    window = _stated(top, spec, known)
    if use is None:  # null means the default, as absence does
        use = ledger.defaults.get("use_sliding_window")
    if use is True and window is None:
        if "sliding_window" not in ledger.defaults and not any(name in top.content for name in _NAMES):
            raise top.error("use_sliding_window", "a window is asked for, and its size, sliding_window, is not stated")
        ledger.find("use_sliding_window is true, but sliding_window is null: no layer has a window")
    if use is not False or (not spec.window_switch and window is None):
        return window
    if spec.window_switch or (spec.layers in _WITHOUT_WINDOWS and spec.kinds is None):
        ledger.void("sliding_window", "use_sliding_window is false")
        return None
    # Where published programs disagree, the model's own code says what it was trained with.
    ledger.void("use_sliding_window", f"{ledger.defaults_of}'s published code does not read it")
    ledger.find(
        f"{top.prefix}use_sliding_window is false, but {ledger.defaults_of}'s published code does not read it: the "
        f"window of {window} tokens stays, as in transformers; vLLM obeys the key and drops the window"
    )
    return window


def _stated(top: Section, spec: ModelType, known: bool) -> int | None:
    ledger = top.ledger
    if spec.window_excludes_self:
        window: int | None = top.read("sliding_window", check=_SIZE, off=True)
        before = top.read("sliding_window_size", check=_SIZE, off=True)
        if before is not None:
            # The published serving code lets a query see this many tokens besides itself.
            ledger.void("sliding_window", "sliding_window_size decides, and counts the tokens before the query")
            window = before + 1
            ledger.use("sliding_window", window, "derived: sliding_window_size + 1, the query's own token")
        top.ignore(CHUNK, "the published code cuts by sliding_window_size")
        return window
    places = [(top, name) for name in _NAMES]
    own = spec.own_names.get("sliding_window", "sliding_window")
    unread = [place for place in places if known and place[1] != own]
    window = read_published(places, unread, check=_SIZE, name="sliding_window", off=True)
    both_sides = top.read("local_attention", check=_SIZE, off=True)
    if both_sides is not None:
        # ModernBERT counts the tokens on both sides of the query; half of them, itself among them, come before it.
        half = both_sides // 2
        if window is not None and window != half:
            raise top.error("local_attention", f"contradicts sliding_window ({window}): it is twice as wide")
        window = half
        ledger.use("sliding_window", half, "derived: local_attention / 2, the tokens before the query")
    return window


def chunk_of(top: Section) -> int | None:
    """Returns the length of the chunks that chunked layers see, tokens, or None."""
    chunk: Any = top.read(CHUNK, check=_SIZE, off=True)
    return chunk
