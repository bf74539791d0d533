"""What a report says where the layout check cannot tell."""

import types

import pytest

from rope_jax.checkpoints.layout import LayoutLoss
from rope_jax.diagnosis.evaluation.measurement import _findings


@pytest.mark.parametrize("asked", [None, "interleaved"])
@pytest.mark.parametrize("undecided", ["", "in neither layout is the text read"])
def test_a_check_that_cannot_tell_is_a_finding(undecided, asked, without_type_checks):
    rule = types.SimpleNamespace(name="none")
    positions = types.SimpleNamespace(findings=(), main_group=types.SimpleNamespace(rule=rule))
    checkpoint = types.SimpleNamespace(positions=positions, layout="half")
    settings = types.SimpleNamespace(layout=asked, biases=())
    loss = LayoutLoss(9.0, 8.0, 0.1, None, undecided)
    findings = _findings(checkpoint, settings, loss)
    used = asked or "half"
    expected = (f"LAYOUT NOT CHECKED: {undecided}; the weights are taken to be {used}, as stated",)
    assert findings == (expected if undecided else ())
