"""Names of users reach every picture as they stand: nothing is typeset, nothing breaks the SVG, nothing warns."""

import copy
import json
import xml.etree.ElementTree

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from rope_jax import cli
from rope_jax.diagnosis.report import svg
from rope_jax.diagnosis.theory.inspection import inspect
from rope_jax.diagnosis.theory.plot import draw

NAMES = st.text(st.characters(blacklist_categories=("Cc", "Cs", "Cn", "Z")), min_size=1, max_size=20)


@pytest.fixture(scope="module")
def record():
    return inspect("pythia-410m", target_length=4096).record


def texts(picture: bytes | str) -> list[str]:
    """The texts of an SVG as its reader sees them, each in one piece."""
    root = xml.etree.ElementTree.fromstring(picture)
    return ["".join(element.itertext()) for element in root.iter() if element.tag.endswith("}text")]


@settings(max_examples=15)
@given(NAMES)
@example("cost$x_1$.json")
@example("$")
@example(r"\$a$ \frac{1}{2} <b>&amp; --")
@example("日本🙂")
def test_a_name_is_drawn_as_it_stands(record, name):
    named = copy.deepcopy(record)
    named["model"]["origin"] = name
    for option in named["options"]:
        option["scaling"] = f"{name} {option['scaling']}"
    found = texts(draw(named, kind="svg"))
    assert any(text.startswith(f"{name}: ") for text in found)
    for option in named["options"]:
        assert any(option["scaling"] in text for text in found)
    assert draw(named, kind="png").startswith(b"\x89PNG")


@settings(max_examples=15)
@given(NAMES)
@example("cost$x_1$")
@example("$a$ <b> 日本")
@example("\u0900")
def test_a_page_of_a_report_too(name):
    with svg.styled():
        figure = Figure(layout="constrained")
        axis = figure.subplots()
        axis.plot([1, 2], label=f"a {name}")
        axis.set_title(name)
        axis.set_xlabel(name)
        axis.legend()
        found = texts(svg.written(figure, name))
    assert found.count(name) >= 2
    assert f"a {name}" in found


def test_a_config_with_a_formula_for_a_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config |= {"max_position_embeddings": 128, "rope_theta": 200.0}
    # The second is no formula that can be read: it ended in a traceback.
    for name in ("cost$x_1$.json", r"$\nothing{$.json"):
        (tmp_path / name).write_text(json.dumps(config))
        assert cli.main(["inspect", name, "--target_length=256", "--plot=out.svg"]) == 0
        assert any(text.startswith(name) for text in texts((tmp_path / "out.svg").read_bytes()))
    assert capsys.readouterr().err == ""
