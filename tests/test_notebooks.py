"""The notebooks run as they are stored, and what is stored with them is clean."""

import json
import pathlib
import re

import matplotlib
import matplotlib.pyplot as plt
import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).resolve().parents[1] / "experiments" / "notebooks").glob("*.ipynb"))
assert NOTEBOOKS, "there are no notebooks to run"
# A slash at the start of a word and two names, a drive letter, or a home: not a fraction, not a web address.
ABSOLUTE_PATH = re.compile(r"(?<![\w/.:<>])/\w[\w.-]*/[\w.-]+|\b[A-Za-z]:\\\w|(?<!\w)~/\w")
MAX_PICTURE = 60_000  # bytes of a decoded PNG

pytestmark = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook: pathlib.Path) -> list[tuple[str, dict]]:
    """Returns the code cells with the names that failures give them."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [(f"{notebook.name}, cell {n}", cell) for n, cell in enumerate(cells) if cell["cell_type"] == "code"]


def test_it_runs_and_its_claims_hold(notebook, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *_, **__: None)
    cells = code_cells(notebook)
    assert cells, f"{notebook.name} has no code"
    assert "assert " in "".join(cells[-1][1]["source"]), f"{notebook.name} does not end with its claims asserted"
    plt.switch_backend("Agg")
    names: dict = {"__name__": "__main__"}
    try:
        with matplotlib.rc_context():
            for name, cell in cells:
                try:
                    exec(compile("".join(cell["source"]), f"<{name}>", "exec"), names)
                    for number in plt.get_fignums():
                        plt.figure(number).canvas.draw()
                except Exception as error:
                    raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error
                finally:
                    plt.close("all")
    finally:
        plt.close("all")


def test_what_is_stored_is_clean(notebook):
    stored = json.loads(notebook.read_text(encoding="utf-8"))
    assert stored["metadata"]["kernelspec"]["name"] == "python3"
    assert set(stored["metadata"]) <= {"kernelspec", "language_info"}
    for position, (name, cell) in enumerate(code_cells(notebook), start=1):
        assert cell["execution_count"] == position, f"{name} was not executed in order: run the notebook from the top"
        assert not cell["metadata"], f"{name} holds metadata of its execution"
        for output in cell["outputs"]:
            assert output["output_type"] != "error", f"{name} holds an error: {output.get('evalue')}"
            assert output.get("name") != "stderr", f"{name} holds what was written to stderr"
            picture = output.get("data", {}).get("image/png", "")
            assert len(picture) * 3 // 4 <= MAX_PICTURE, f"{name} holds a picture of {len(picture) * 3 // 4} bytes"
    for n, cell in enumerate(stored["cells"]):
        # Sources too; pictures, in base64, are not text.
        texts = ["".join(cell["source"])]
        for output in cell.get("outputs", []):
            texts += ["".join(output.get("text", ""))]
            texts += ["".join(text) for kind, text in output.get("data", {}).items() if kind.startswith("text/")]
        for text in texts:
            found = ABSOLUTE_PATH.search(text)
            assert not found, f"{notebook.name}, cell {n} holds an absolute path: {found.group()}"
