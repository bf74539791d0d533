"""The default config of every causal model type of transformers: never read wrongly, most read, each refusal named."""

import json
import pathlib
import sys
import warnings

import pytest

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # theirs, at import
    transformers = pytest.importorskip("transformers")

sys.path.append(str(pathlib.Path(__file__).parent))
import causal_defaults  # noqa: E402

KEPT = json.loads(causal_defaults.FILE.read_text())
OTHER = transformers.__version__ not in KEPT["made by"]
# One a way of saying which layers turn, slide, or are no attention; the others are measured by the slow test.
SOME = ("beam", "dots3_note_text", "gemma3_text", "granite_swa", "kimi_linear", "lfm3", "llama4_text", "ministral3")
SOME += ("modernbert-decoder", "zamba")


@pytest.fixture(autouse=True)
def quiet():
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)


def test_the_list_is_of_every_causal_model_type_and_none_is_wrong():
    found = KEPT["model_types"]
    if not OTHER:
        assert set(found) == set(causal_defaults.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert not [name for name, entry in found.items() if "wrong" in entry or "not measured" in entry]
    assert sum("read" in entry for entry in found.values()) >= 120
    for entry in found.values():
        assert "read" in entry or entry["refused"].partition(": ")[2]


@pytest.mark.skipif(OTHER, reason="the list is of another release of transformers")
def test_readings_are_those_of_the_list():
    for name, entry in KEPT["model_types"].items():
        assert causal_defaults.reading(name) == {key: value for key, value in entry.items() if key != "by"}, name


@pytest.mark.parametrize("name", SOME)
def test_some_are_what_their_models_do(name):
    assert "wrong" not in causal_defaults.outcome(name)


@pytest.mark.slow
@pytest.mark.skipif(OTHER, reason="the list is of another release of transformers")
def test_all_are_what_their_models_do():
    assert {name: causal_defaults.outcome(name) for name in KEPT["model_types"]} == KEPT["model_types"]
