"""The loaded decoder against logits that transformers gave for the same weights, also where torch is not installed."""

import json
import pathlib
import sys

import numpy as np
import pytest

from rope_jax.checkpoints.loading import load_checkpoint

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
sys.path.append(str(GOLDEN))
from logit_cases import CASES, MODELS, RUNS, our_logits, write  # noqa: E402

# Measured: 4e-6 near, 2.5e-4 far. At position 5000 a float32 angle is coarse by 2e-4 radians, and the two libraries'
# float32 frequencies differ in the last bit; tests/peers shows that nothing else differs.
NEAR, FAR = 2e-5, 1e-3
EXACT_TOO = {f"{model}-{rope}" for model in MODELS for rope in ("default", "dynamic", "yarn", "llama3", "longrope")}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "transformers_logits.npz") as file:
        return dict(file)


def test_the_file_says_where_it_comes_from_and_covers_every_case(golden):
    source = json.loads(str(golden["source"]))
    assert source["transformers"].startswith("5.")
    assert {"torch", "command", "settings"} <= set(source)
    assert source["runs"] == {run: [first, count, list(kept)] for run, (first, count, kept) in RUNS.items()}
    assert set(golden) == {"source", *CASES}


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_transformers(case, golden, tmp_path):
    write(tmp_path, CASES[case])
    checkpoint = load_checkpoint(tmp_path)
    row = 0
    for run, (_, _, kept) in RUNS.items():
        expected = golden[case][row : row + len(kept)]
        row += len(kept)
        for phase in ("float32", "exact") if case in EXACT_TOO else ("float32",):
            ours = our_logits(checkpoint, run, phase=phase)[list(kept)]
            tolerance = FAR if run == "far" else NEAR
            np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance, err_msg=f"{run}, {phase}")
