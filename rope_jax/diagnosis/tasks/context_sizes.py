"""How much memory contexts take, told before any is made."""

from collections.abc import Sequence

from rope_jax.errors import InputError

LARGEST = 2**32
"""Bytes of contexts and text that are made at once."""

_CONTEXT_BYTES = 8  # a token: int32, once more while rows are stacked
_TEXT_BYTES = 12  # a token: int32, and its weight
_MAKING_BYTES = 64  # a token of the one row that is being made: Python integers, and which places are taken


def check_size(*, rows: int, lengths: Sequence[int], text_rows: int = 0) -> None:
    """Raises unless so many contexts and rows of text fit into memory together; nothing is made.

    Args:
      rows: contexts of each length.
      lengths: of the contexts, tokens.
      text_rows: rows of text of the largest length.

    Raises:
      InputError: with the estimate of bytes, if they are more than `LARGEST`.
    """
    longest = max(lengths)
    needed = rows * sum(lengths) * _CONTEXT_BYTES + longest * (text_rows * _TEXT_BYTES + _MAKING_BYTES)
    if needed > LARGEST:
        made = [f"{rows} contexts of {' and '.join(map(str, lengths))} tokens"] if rows else []
        made += [f"{text_rows} rows of text of {longest} tokens"] if text_rows else []
        raise InputError(
            f"{' and '.join(made)} need about {needed} bytes ({needed / 2**30:.1f} GiB); at most {LARGEST} are taken: "
            "ask for fewer or shorter ones"
        )
