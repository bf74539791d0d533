"""How others read a config, against numbers of their own code.

The golden values are those of transformers 5.24.0 and 4.57.6 and mlx-lm 0.32.2, built from the same configs, and of the
rotary classes of vLLM 0.33.0 and SGLang 0.5.23: inverse frequencies of pairs 0, 6, 10 and 15 of 16 for a sequence of
eight times `max_position_embeddings`, and the cos/sin factor. Those of llama.cpp are what its formulas make of the keys
that the converter of llama-cpp-python 0.3.36 wrote.
"""

import copy
import json
import random

import numpy as np
import pytest

from rope_jax import cli
from rope_jax.checkpoints.peer_readings import readings, record_of
from rope_jax.checkpoints.peers import PEERS
from rope_jax.commands.readings_table import readings_table
from rope_jax.errors import InputError, RopeJaxError, UnsupportedError

SHAPE = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
SHORT, LONG = ([1 + step * pair for pair in range(16)] for step in (0.05, 0.5))
CONFIGS = {
    "yarn": {
        "model_type": "qwen3",
        "head_dim": 32,
        "max_position_embeddings": 16384,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": 4.0,
            "original_max_position_embeddings": 4096,
            "attention_factor": 1.0,
            "truncate": False,
            "beta_slow": 2.0,
        },
    },
    "yarn, mscale alone": {
        "model_type": "llama",
        "max_position_embeddings": 16384,
        "rope_theta": 5e5,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7},
    },
    "dynamic": {
        "model_type": "llama",
        "max_position_embeddings": 4096,
        "rope_theta": 1e4,
        "rope_scaling": {"rope_type": "dynamic", "factor": 4.0},
    },
    "llama3": {
        "model_type": "llama",
        "max_position_embeddings": 16384,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 2048,
        },
    },
    "longrope": {
        "model_type": "mistral",
        "max_position_embeddings": 16384,
        "rope_theta": 1e4,
        "rope_scaling": {
            "rope_type": "longrope",
            "factor": 2.0,
            "attention_factor": 1.25,
            "original_max_position_embeddings": 4096,
            "short_factor": SHORT,
            "long_factor": LONG,
        },
    },
    "no base": {"model_type": "qwen2", "max_position_embeddings": 4096},
}
LINEAR, DEFAULT = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}, {"rope_type": "default", "rope_theta": 1e4}
UNSCALED = ([1.0, 0.0316228, 0.00316228, 0.000177828], 1.0)
YARN = [1.0, 0.00232756, 4.4457e-05, 5.92843e-07]
LONE = [1.0, 0.00619877, 6.8562e-05, 1.13542e-06]
DYNAMIC = ([1.0, 0.0082232, 0.000335018, 6.132e-06], 1.0)
LLAMA3 = ([1.0, 0.00384058, 3.4281e-05, 5.67709e-07], 1.0)
LONGROPE = [1.0, 0.00790569, 0.000527046, 2.09209e-05]
GOLDEN = {  # in the order of PEERS: transformers, transformers4, vllm, sglang, mlx, llama.cpp; None where it stops
    "yarn": (
        (YARN, 1.0),
        UNSCALED,
        (YARN, 1.0),
        (YARN, 1.138629),
        ([1.0, 0.00246024, 4.4457e-05, 5.92843e-07], 1.138629),
        ([1.0, 0.00246024, 4.4457e-05, 5.92843e-07], 1.138629),
    ),
    "yarn, mscale alone": (
        (LONE, 1.138629),
        (LONE, 1.138629),
        (LONE, 1.138629),
        (LONE, 1.138629),
        ([1.0, 0.00401097, 6.8562e-05, 1.13542e-06], 1.097041),
        None,
    ),
    "dynamic": (DYNAMIC, DYNAMIC, UNSCALED, ([1.0, 0.011335, 0.000571967, 1.36791e-05], 1.0), DYNAMIC, UNSCALED),
    "llama3": (LLAMA3, UNSCALED, LLAMA3, LLAMA3, UNSCALED, LLAMA3),
    "longrope": ((LONGROPE, 1.25), None, (LONGROPE, 1.080123), (LONGROPE, 1.080123), (LONGROPE, 1.080123), UNSCALED),
    "no base": (UNSCALED, UNSCALED, UNSCALED, UNSCALED, ([1.0, 0.00562341, 0.000177828, 2.37137e-06], 1.0), UNSCALED),
}
ERRORS = {"transformers4": "head_dim is None", "llama.cpp": "original_max_position_embeddings is looked for"}


def read(config, *peers, ratio=8):
    config = {**SHAPE, **config}
    return readings(config, peers or list(PEERS), target_length=ratio * config["max_position_embeddings"])


@pytest.mark.parametrize("name", CONFIGS)
def test_numbers_are_those_of_their_own_code(name):
    found = read(CONFIGS[name])
    assert [one.peer.split()[0] for one in found] == list(PEERS)
    for one, golden in zip(found, GOLDEN[name], strict=True):
        if golden is None:
            assert not one.differences
            assert ERRORS[one.peer.split()[0]] in one.reasons[-1]
            continue
        frequencies, factor = golden
        np.testing.assert_allclose(one.inverse_frequencies[[0, 6, 10, 15]], frequencies, rtol=3e-6, err_msg=one.peer)
        assert one.cos_sin_factor == pytest.approx(factor, abs=1e-6), one.peer


@pytest.mark.parametrize("name", CONFIGS)
def test_a_difference_has_a_reason_and_only_a_difference_has(name):
    for one in read(CONFIGS[name]):
        assert one.same != bool(one.reasons), one.peer
    reference = read(CONFIGS[name], "transformers")[0]
    assert reference.same
    assert all(each.phase == 0 for each in reference.differences)


def test_the_phase_is_taken_at_the_length():
    (found,) = read(CONFIGS["llama3"], "mlx")
    (own,) = read(CONFIGS["llama3"], "transformers")
    apart = np.abs(found.inverse_frequencies - own.inverse_frequencies).max()
    lengths = (2048, 16384, 131072)
    assert [(one.length, one.phase) for one in found.differences] == [(x, pytest.approx(x * apart)) for x in lengths]


def test_one_list_for_all_lengths_is_found_at_short_ones():
    for peer in ("vllm", "mlx"):
        (found,) = read(CONFIGS["longrope"], peer)
        assert [one.frequency > 0 for one in found.differences] == [True, False, False]
        assert "long_factor for every sequence" in found.reasons[0]


@pytest.mark.parametrize("model_type", ["mixtral", "gemma", "gemma2"])
def test_classes_that_take_the_base_alone_scale_nothing(model_type):
    scaling = {"rope_type": "linear", "factor": 4.0}
    config = {"model_type": model_type, "head_dim": 32, "max_position_embeddings": 4096, "rope_theta": 20000.5}
    if model_type == "gemma2":
        config |= {"sliding_window": 512}
    for one in read({**config, "rope_scaling": scaling}):
        name = one.peer.split()[0]
        if name == "llama.cpp" and model_type != "mixtral":
            assert "the converter writes no rope keys" in one.reasons[0]
            np.testing.assert_allclose(one.inverse_frequencies, 1e4 ** (-np.arange(0, 32, 2) / 32), rtol=1e-12)
            continue
        assert one.same == (name not in ("sglang", "mlx")), one.peer
        base = 20000.0 if (name, model_type) == ("sglang", "mixtral") else 20000.5
        unscaled = base ** (-np.arange(0, 32, 2) / 32)
        np.testing.assert_allclose(one.inverse_frequencies, unscaled / (4 if one.same else 1), rtol=1e-12)
        assert (
            one.same
            or f"no scaling is read ({'srt/' if name == 'sglang' else ''}models/{model_type}.py)" in one.reasons
        )


def test_llama_cpp_makes_factors_of_llama_3_for_llamas_alone():
    assert all(read({**CONFIGS["llama3"], "model_type": kind}, "llama.cpp")[0].same for kind in ("llama", "mistral"))
    (found,) = read({**CONFIGS["llama3"], "model_type": "qwen2"}, "llama.cpp")
    np.testing.assert_allclose(found.inverse_frequencies, 5e5 ** (-np.arange(0, 32, 2) / 32), rtol=1e-12)
    assert "for Llama's class alone" in found.reasons[0]


def test_layers_of_each_type_are_read_apart():
    local, scaled = (
        {"rope_type": "default", "rope_theta": 1e4},
        {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    )
    config = {
        "model_type": "gemma3_text",
        "head_dim": 32,
        "max_position_embeddings": 32768,
        "sliding_window": 512,
        "num_hidden_layers": 6,
        "layer_types": [*["sliding_attention"] * 5, "full_attention"],
        "rope_parameters": {"sliding_attention": local, "full_attention": scaled},
    }
    found = {(one.peer.split()[0], one.layer_type): one for one in read(config)}
    assert len(found) == 2 * len(PEERS)
    assert all(found[peer, "sliding_attention"].same for peer in PEERS)
    assert [peer for peer in PEERS if not found[peer, "full_attention"].same] == ["transformers4", "mlx"]
    assert found["mlx", "full_attention"].inverse_frequencies[-1] == pytest.approx(1e6 ** -(30 / 32))


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is not covered by --as"),
        ({"rope_theta": None, "rope_scaling": None, "rope_parameters": dict(DEFAULT)}, "rope_theta is null"),
        ({"model_type": "qwen3"}, "head_dim is not stated"),
        ({"model_type": "qwen2", "head_dim": 16}, "head_dim 16 is not hidden_size"),
        ({"original_max_position_embeddings": 2048}, "is not read for rope type dynamic by others"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attn_factor": 0.5}}, "attn_factor is not covered"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "truncate": None}}, "truncate is null"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "mscale": 0.0}}, "mscale 0 counts as given for some"),
        ({"rope_scaling": {}}, "null or empty is an error to some"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "original_max_position_embeddings": 1024},
            "beside the rope section, and not in it as well",
        ),
        (
            {
                "rope_scaling": {**CONFIGS["longrope"]["rope_scaling"], "rope_type": "su"},
                "max_position_embeddings": 16384,
            },
            "su is translated by some and an error to others",
        ),
        ({"model_type": "phi3"}, "how others read it was not looked at"),
    ],
)
def test_what_was_not_looked_at_is_refused(keys, why):
    with pytest.raises(UnsupportedError, match=why):
        read({**CONFIGS["dynamic"], **keys})


GEMMA = {
    "model_type": "gemma3_text",
    "head_dim": 32,
    "num_hidden_layers": 6,
    "max_position_embeddings": 32768,
    "sliding_window": 512,
    "layer_types": [*["sliding_attention"] * 5, "full_attention"],
}


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"layer_types": ["full_attention", "sliding_attention"] * 3}, "every layer 6 for a full one"),
        ({"rope_scaling": {"type": "linear", "factor": 8.0}}, "without rope_type"),
        ({"rope_scaling": {"full_attention": LINEAR, "sliding_attention": DEFAULT}}, "a section for each layer type"),
        ({"rope_parameters": DEFAULT}, "a section for each layer type, or one for all"),
        ({"rope_parameters": {"full_attention": DEFAULT, "sliding_attention": LINEAR}}, "rope type linear of sliding"),
        ({"rope_parameters": {"full_attention": None, "sliding_attention": DEFAULT}}, "null or empty is an error"),
    ],
)
def test_gemma_3_is_refused_where_its_readers_part_in_ways_of_their_own(keys, why):
    assert all(one.same for one in read(GEMMA))
    with pytest.raises(UnsupportedError, match=why):
        read({**GEMMA, **keys})


def test_unknown_readers_and_targets_are_refused():
    with pytest.raises(InputError, match="as: unknown reader 'jaxtext'; there are: transformers"):
        read(CONFIGS["dynamic"], "jaxtext")
    with pytest.raises(InputError, match="target_length 4096 is below the trained length 16384"):
        readings({**SHAPE, **CONFIGS["llama3"]}, ["vllm"], target_length=4096)


WRONG = [None, 0, -1, 1.5, 2**40, "yarn", "su", [], {}, [1.0] * 16, True, float("nan"), 4096]
OUTER = ["rope_theta", "rope_scaling", "rope_parameters", "head_dim", "max_position_embeddings", "model_type"]
OUTER += ["original_max_position_embeddings", "num_attention_heads", "text_config", "layer_types"]
INNER = ["rope_type", "type", "factor", "original_max_position_embeddings", "attention_factor", "mscale", "truncate"]
INNER += ["mscale_all_dim", "attn_factor", "beta_slow", "long_factor", "rope_theta", "max_trained_positions"]


def test_damaged_configs_end_in_a_table_or_an_error_of_the_project():
    rng, shown = random.Random(0), 0
    for _ in range(600):
        config = copy.deepcopy({**SHAPE, **rng.choice(list(CONFIGS.values()))})
        sections = [config[name] for name in ("rope_parameters", "rope_scaling") if name in config]
        for _ in range(rng.randint(1, 2)):
            into, keys = (sections[0], INNER) if sections and rng.random() < 0.6 else (config, OUTER)
            if rng.random() < 0.3:
                into.pop(rng.choice(keys), None)
            else:
                into[rng.choice(keys)] = rng.choice(WRONG)
        try:
            found = readings(config, list(PEERS), target_length=2**20)
        except RopeJaxError:
            continue
        shown += 1
        assert all(one.same != bool(one.reasons) for one in found)
        assert max(map(len, readings_table(found, origin="config.json").splitlines())) <= 80
    assert shown > 50


class TestCommand:
    def run(self, tmp_path, capsys, *flags, name="yarn"):
        file = tmp_path / "config.json"
        file.write_text(json.dumps({**SHAPE, **CONFIGS[name]}))
        status = cli.main(["inspect", str(file), "--target_length=131072", *flags])
        out, err = capsys.readouterr()
        return status, out, err

    def test_table(self, tmp_path, capsys):
        status, out, _ = self.run(tmp_path, capsys, "--as=transformers,sglang,mlx")
        lines = out.splitlines()
        assert status == 0
        assert max(map(len, lines)) <= 80
        assert next(line for line in lines if line.startswith("transformers 5.24")).split()[-2:] == ["the", "same"]
        assert next(line for line in lines if line.startswith("sglang")).split()[-1] == "1.139"
        assert "  - truncate is not read (models/rope_utils.py)" in lines

    def test_an_error_of_theirs_is_shown(self, tmp_path, capsys):
        _, out, _ = self.run(tmp_path, capsys, "--as=transformers4", name="longrope")
        assert "stops with an error" in out
        assert "TypeError: head_dim is None" in out

    def test_json_holds_what_the_table_shows(self, tmp_path, capsys):
        _, out, _ = self.run(tmp_path, capsys, "--as=vllm,mlx", "--json")
        expected = record_of(readings({**SHAPE, **CONFIGS["yarn"]}, ["vllm", "mlx"], target_length=131072))
        assert json.loads(out) == json.loads(json.dumps(expected))

    def test_names_are_needed_and_taken_once(self, tmp_path, capsys):
        status, out, err = self.run(tmp_path, capsys, "--as=")
        assert (status, out) == (2, "")
        assert "--as: name one at least; there are: transformers" in err
        _, out, _ = self.run(tmp_path, capsys, "--as=vllm,vllm")
        assert out.count("vllm 0.33.0") == 1

    @pytest.mark.parametrize("flag", ["--scaling=ntk", "--bias=alibi", "--details", "--compose"])
    def test_flags_without_effect_are_refused(self, tmp_path, capsys, flag):
        status, out, err = self.run(tmp_path, capsys, "--as=vllm", flag)
        assert (status, out) == (2, "")
        assert flag.split("=")[0] in err
