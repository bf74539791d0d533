"""The whole numbers that a diagnosis may be asked for, in Python and on the command line alike. Without JAX."""

from collections.abc import Mapping

MOST = 2**14
"""Contexts, rows or steps."""
LARGEST_RATIO = 1024
"""Of target to trained length."""

_LARGEST_LENGTH = 2**24 - 1

RANGES: Mapping[str, tuple[int, int]] = {
    "target_length": (1, _LARGEST_LENGTH),
    "trained_length": (1, _LARGEST_LENGTH),
    "own_distance": (1, _LARGEST_LENGTH),
    "text_rows": (1, MOST),
    "contexts": (1, MOST),
    "most_contexts": (1, MOST),
    "fit_steps": (1, MOST),
    "exempt_first": (0, MOST),
    "adapt_steps": (0, MOST),
    "num_buckets": (2, MOST),
    "seed": (0, 2**32 - 1),
}
"""The smallest and the largest value of each, by name of the option or flag."""
