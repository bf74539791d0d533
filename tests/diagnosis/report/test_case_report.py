import copy
import html
import html.parser
import json
import re

import numpy as np
import pytest
from rope_jax.diagnosis.evaluation.scalings import scaling_rule
from rope_jax.diagnosis.report.case_report import html_page
from rope_jax.diagnosis.report.case_table import adapted_lines

from rope_jax import frequencies
from rope_jax.diagnosis.report.svg import COLOURS

KINDS = (
    "option 1",
    "option 2",
    "option 3",
    "implementation",
    "outside these options",
    "no fault found",
    "undetermined",
)
VOID = {"meta", "br", "link", "img", "hr"}
PROBES = ["ret", "bind", "ord"]
HOSTILE = "<script>alert('x')</script>\"&"


def estimate(mean: float, spread: float = 0.1) -> dict[str, float | None]:
    return {"mean": mean, "low": mean - spread, "high": mean + spread}


def cell(scaling: str, bias: str, *, temperature: bool = False, long: float = 0.5) -> dict:
    edges = [0, 64, 128, 256]
    return {
        "scaling": scaling,
        "bias": bias,
        "temperature": temperature,
        "loss": {"short": estimate(0.5), "long": estimate(2 - long)},
        "accuracy": {
            "short": dict.fromkeys(PROBES, estimate(0.98)),
            "long": dict.fromkeys(PROBES, estimate(long)),
        },
        "log_odds": {
            "short": dict.fromkeys(PROBES, estimate(4.0)),
            "long": dict.fromkeys(PROBES, estimate(5 * long - 1)),
        },
        "bind_errors": {"short": {"0": 40}, "long": {"-1": 5, "0": 30, "2": 5}},
        "bind_g50": {"short": 0, "long": None},
        "by_distance": {
            name: {"edges": edges, "count": [0, 4, 9], "log_odds": [None, 1.0, -0.5], "accuracy": [None, 0.7, 0.2]}
            for name in PROBES
        },
        "loss_by_position": {"edges": edges, "loss": [None, 0.5, 1.5]},
    }


def option(number: str, change: str, scaling: str, bias: str, gain: float) -> dict:
    return {
        "option": {"number": number, "change": change, "scaling": scaling, "bias": bias, "temperature": False},
        "helps": "yes" if gain > 0.4 else "unclear",
        "qualifies": "yes" if gain > 0.4 else "no",
        "lost": {} if gain > 0.4 else {"long retrieval": "yes"},
        "gain_simultaneous": estimate(gain, 0.15),
        "precision": estimate(gain),
        "precision_accuracy": estimate(0.2),
        "retrieval_loss": estimate(0.0),
        "short_loss": estimate(0.0, 0.01),
        "short_cost": estimate(3.0, 0.01),  # far from its margin: drawn on a log scale
        "long_gain": estimate(0.4),
        "by_probe": dict.fromkeys(PROBES, estimate(gain)),
    }


def judgement(kind: str) -> dict:
    judged = [
        option("1", "drop the bias", "ntk", "none", 0.1),
        option("2", "undo the scaling", "none", "alibi", 0.3),
        option("3", "scale by llama3 instead", "llama3", "alibi", 1.2),
        option("0", "take back the whole retrofit", "none", "none", -0.5),
    ]
    chosen = judged[int(kind[-1]) - 1]["option"] if kind.startswith("option") else None
    return {
        "status_quo": {"scaling": "ntk", "bias": "alibi", "temperature": False},
        "contexts": 8,
        "confidence": 0.95,
        "symptom": {
            "precision_drop": estimate(2.5),
            "retrieval_drop": estimate(0.1),
            "specific": estimate(2.4),
            "by_probe": dict.fromkeys(PROBES, estimate(2.5)),
            "accuracy": {reach: dict.fromkeys(PROBES, estimate(0.5)) for reach in ("short", "long")},
        },
        "verdict": {
            "kind": kind,
            "chosen": chosen,
            "reason": f"why it is {kind}",
            "cause": "scaling" if chosen else None,
            "cause_gain": estimate(1.2) if chosen else None,
            "ties": [],
            "would_change": ["more contexts"],
        },
        "options": judged,
        "shapley": {name: estimate(-0.5) for name in ("scaling", "bias", "interaction")},
        "links": {"rotation": "Pairs turn.", "scaling": "They turn slower.", "bias": "A line."},
    }


@pytest.fixture
def record() -> dict:
    trained = frequencies.rotary(16, base=200.0, original_length=64)
    scalings = {
        name: scaling_rule(name, factor=4.0, original_length=64)(trained)  # type: ignore[operator]
        for name in ("none", "ntk", "llama3")
    }
    return {
        "models": [{"origin": "standin", "sha256": "ab" * 32, "parameters": 1234}],
        "lengths": {"trained": 64, "target": 256, "factor": 4.0},
        "items": {"contexts": 8, "text_rows": 8, "language": "their own"},
        "settings": {
            "margins": {"gain": 0.3, "retrieval": 0.3, "short_accuracy": 0.02, "short_cost": 0.02, "gate": 0.9},
            "num_buckets": 8,
            "max_distance": 32,
            "looks": 1,
            "seed": 7,
        },
        "probes": {
            "used": PROBES,
            "refused": {"count": "not learned"},
            "accuracy": dict.fromkeys([*PROBES, "count"], 0.95),
        },
        "frequencies": {name: rotary.inverse_frequencies.tolist() for name, rotary in scalings.items()},
        "biases": [
            {
                "alibi": {"slopes": [0.25, 0.0625]},
                "alibi_star": {"slopes": [0.5, 0.125], "multiplier": 2.0, "short_cost": 0.01},
                "t5": {"table": np.linspace(0, -1, 16).reshape(2, 8).tolist(), "buckets_reached": 8},
            }
        ],
        "cells": [
            cell(scaling, bias, temperature=temperature)
            for scaling in scalings
            for bias in ("none", "alibi")
            for temperature in (False, True)
        ],
        "judgements": [judgement("option 3")],
        "interval_method": "t over contexts",
        "omitted": {"yarn": "does not compose"},
        "versions": {"rope_jax": "0.1.0"},
    }


class Page(html.parser.HTMLParser):
    """Checks that every tag is closed in order and that no name stands twice."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.names: list[str] = []
        self.feed(text)
        assert self.open == []
        assert len(set(self.names)) == len(self.names)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.names += [value for key, value in attrs if key == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.names += [value for key, value in attrs if key == "id"]


def visible(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", " ", page))


def test_page_is_self_contained_and_well_formed(record):
    page = html_page(record, command="rope-jax diagnose --seed=7")
    tags = Page(page).tags
    assert tags.isdisjoint({"script", "link", "iframe", "img"})
    # Names of formats are no addresses: nothing is fetched.
    assert set(re.findall(r"https?://[\w.]+", page)) <= {"http://www.w3.org"}
    assert not re.search(r"(src|href)=\"(?!#)", page)
    assert "@import" not in page
    assert "prefers-color-scheme: dark" in page
    assert len(page) < 1_500_000
    assert page == html_page(json.loads(json.dumps(record)), command="rope-jax diagnose --seed=7")
    assert "rope-jax diagnose --seed=7" in visible(page)
    assert "ab" * 32 in page
    assert COLOURS["none"] not in page  # ink became the page's own colour


@pytest.mark.slow
def test_every_verdict_is_on_the_page_above_all_else(record):
    record["judgements"] = [judgement(kind) for kind in KINDS]
    for number, one in enumerate(record["judgements"]):
        one["status_quo"] |= {"temperature": number % 2 == 1}
        one["shapley"] = None
        one["options"] = one["options"] if number == 2 else []
    page = html_page(record, command="x")
    top = visible(page[: page.index("The symptom")])
    for kind in KINDS:
        assert f" {kind} " in top
        assert f"Why it is {kind}." in top
    assert "ntk + alibi + temperature" in top


def test_how_far_a_verdict_was_asked_on_is_said(record):
    assert "decided on" not in html_page(record, command="rope-jax diagnose")
    record["settings"]["looks"] = 4
    record["judgements"][0] |= {"contexts": 16, "confidence": 0.99375}
    page = html_page(record, command="rope-jax diagnose")
    assert "ntk + alibi: decided on 16 contexts, look 2 of 4 at most; its intervals are of 99.38%" in page


def test_hostile_names_are_escaped(record):
    record["models"][0]["origin"] = HOSTILE
    record["omitted"] = {HOSTILE: HOSTILE}
    record["probes"]["refused"] = {HOSTILE: HOSTILE}
    record["versions"] = {HOSTILE: HOSTILE}
    record["faults"] = [{"name": HOSTILE, "description": HOSTILE, "precision_loss": estimate(1), "detected": True}]
    record["band_decomposition"] = {HOSTILE: {HOSTILE: HOSTILE}}
    one = record["judgements"][0]
    one["verdict"] |= {"kind": HOSTILE, "reason": HOSTILE, "would_change": [HOSTILE], "chosen": None}
    one["links"] = {"rotation": HOSTILE, HOSTILE: HOSTILE}
    one["signature"] = {"name": HOSTILE, "text": HOSTILE, "evidence": {HOSTILE: HOSTILE}}
    one["options"][0]["option"]["change"] = HOSTILE
    page = html_page(record, command=HOSTILE)
    assert Page(page).tags.isdisjoint({"script"})
    assert HOSTILE in visible(page)


@pytest.mark.slow
def test_optional_parts_are_shown_where_present(record):
    plain = visible(html_page(record, command="x"))
    judged = copy.deepcopy(record["judgements"][0])
    record["judgements"][0]["signature"] = {"name": "moved peak", "text": "It looks back", "evidence": estimate(0.3)}
    costly = {"name": "stale_cache", "description": "old keys", "precision_loss": estimate(1.5)}
    record["judgements"][0] |= {"faults": [costly], "nearest": {"wrong_layout": 0.01, "exact": 0.9}}
    record["faults"] = [costly | {"name": "bf16_bias", "precision_loss": estimate(0), "detected": True}]
    record["prediction"] = {
        "spearman": estimate(0.8),
        "groups": 8,
        "ceiling": 0.9,
        "by_probe": {"ret": estimate(0.6)},
        "blame": [
            {
                "scaling": "ntk",
                "bias": "t5",
                "temperature": False,
                "scheme": estimate(0.25),
                "distance": estimate(1.5),
                "filler": estimate(0.5),
            }
        ],
        "bands": [
            {
                "scaling": "ntk",
                "bias": "t5",
                "temperature": False,
                "edges": [1.0, 8.0, 64.0],
                "logits": [[1.0, 0.5], [0.5, 0.1], [0.2, 0.0], [0.1, 0.0]],
                "bias_nats": [0.0, -0.5],
            }
        ],
        "turns": [1.0, 4.0, 32.0],
        "text": "coherence ranks them",
        "cells": [
            {
                "scaling": "ntk",
                "bias": "alibi",
                "temperature": False,
                "predicted": [0.1, 0.4],
                "measured": [0.2, 0.3],
                "coherence": [0.9, 0.5],
                "g50": [0, 3],
                "just_noticeable": None,
                "horizon": 120.0,
                "step": 0.25,
            }
        ],
    }
    record["costs"] = [{"scaling": "ntk", "bias": "t5", "temperature": False, "milliseconds": 12.5, "mib": 48.0}]
    record["adapted"] = [judged]
    told = adapted_lines(record | {"settings": {"adapt_steps": 100}})
    assert told[1] == "every arm after 100 steps of adaptation:"
    assert told[-1].startswith("  right answers of the status quo, short -> long: ")
    page = html_page(record, command="x")
    Page(page)
    shown = visible(page)
    for part in (
        "moved peak",
        "It looks back",
        "Surely more than 0.3 nats of precision: stale_cache.",
        "bf16_bias: old keys",
        "nearest to wrong_layout",
        "Coherence ranks them",
        "rank correlation +0.80 [+0.70, +0.90]",
        "milliseconds",
        "After adaptation",
        "longer distances",
        "4 to 32 turns",
    ):
        assert part in shown
        assert part not in plain


def test_a_model_without_probes_rotation_or_fitted_bias_still_gets_its_page(record):
    record["probes"] |= {"used": [], "accuracy": {}}
    record["items"]["contexts"] = 0
    record["frequencies"] = {}
    record["biases"] = [{}]
    bare = ("scaling", "bias", "temperature", "loss", "loss_by_position")
    record["cells"] = [{key: one[key] for key in bare} | {"accuracy": {}, "log_odds": {}} for one in record["cells"]]
    one = record["judgements"][0]
    one |= {"symptom": None, "options": [], "shapley": None}
    one["verdict"] |= {"kind": "undetermined", "chosen": None, "cause": None, "cause_gain": None}
    page = html_page(record, command="x")
    Page(page)
    assert "undetermined" in visible(page)
    assert "not measured" in visible(page)


def test_a_deployment_with_a_fault_is_not_called_by_the_name_of_its_exact_run(record):
    one = judgement("implementation")
    one["options"].append(option("implementation", "run the same scheme exactly", "ntk", "alibi", 1.2))
    one["verdict"]["chosen"] = one["options"][-1]["option"]
    record["judgements"] = [one]
    shown = visible(html_page(record, command="x"))
    assert "status quo, run exactly" in shown
    assert "Run the same scheme exactly; the model then runs ntk + alibi." in shown


def test_estimates_of_one_row_have_no_interval(record):
    def without(value):
        if isinstance(value, dict):
            if value.keys() == {"mean", "low", "high"}:
                return {"mean": value["mean"], "low": None, "high": None}
            return {key: without(entry) for key, entry in value.items()}
        return [without(entry) for entry in value] if isinstance(value, list) else value

    page = html_page(without(record), command="x")
    Page(page)
    assert "None" not in visible(page)
    assert "nan" not in page
