"""The parts of `accelerator.py`, in order of worth, and which of their modules have anything to do."""

from collections.abc import Sequence

PARTS = {  # name: the modules of its processes, each with its share of the time
    "correct": {"correctness": 25},
    "table": {"table": 35, "flex": 12},
    "cache": {"cache": 6},
    "tune": {"tuning": 10},
    "model": {"model": 15},
    "study": {"study": 3},
}
_TORCH = {"flex": "FlexAttention"}  # modules of PyTorch, and how the names of their implementations begin
COMPARING = ("correct", "table")  # implementations with each other


def asked(module: str, only: Sequence[str]) -> bool:
    """Returns whether a part's module has any of the implementations, all where there are none."""
    torch = sum(name.startswith(_TORCH["flex"]) for name in only)
    return not only or (torch > 0 if module in _TORCH else torch < len(only))
