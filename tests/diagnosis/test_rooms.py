"""The rooms of the diagnosis: each imports only from those before it, and the library knows nothing of any."""

import ast
import pathlib

import pytest

import rope_jax

PACKAGE = pathlib.Path(rope_jax.__file__).parent
ROOMS = ("theory", "tasks", "evaluation", "verdict", "prediction", "search", "report")
"""In the order in which data flows."""


def imported(file: pathlib.Path) -> set[str]:
    """Returns the modules that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_imports_from_one_after_it(room):
    later = tuple(f"rope_jax.diagnosis.{name}" for name in ROOMS[ROOMS.index(room) + 1 :])
    for file in (PACKAGE / "diagnosis" / room).glob("*.py"):
        back = {name for name in imported(file) if name.startswith(later)} if later else set()
        assert not back, f"{file.name} imports {sorted(back)}"


def test_the_library_knows_nothing_of_the_diagnosis():
    outside = [file for file in PACKAGE.rglob("*.py") if not {"diagnosis", "commands"} & set(file.parts)]
    assert len(outside) > 50
    for file in outside:
        if file != PACKAGE / "__init__.py":  # which puts two of its functions at the top
            assert not any(name.startswith("rope_jax.diagnosis") for name in imported(file)), file
