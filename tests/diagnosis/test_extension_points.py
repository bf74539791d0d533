"""From outside the package: a rule, a bias and a fault of one's own, in Python and by `--load` on the command line."""

import dataclasses
import io
import json
import pathlib
import tokenize

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import HEADS, SMALL, TARGET, save_bundled_model, untimed_costs

import rope_jax
from rope_jax import diagnose, scaling
from rope_jax.biases import PerOffset, alibi_paper
from rope_jax.biases import registry as biases
from rope_jax.cli import main
from rope_jax.decoder import each_scheme
from rope_jax.diagnosis.evaluation import costs, faults
from rope_jax.diagnosis.report.record import record_of
from rope_jax.errors import InputError
from rope_jax.rules import Rule
from rope_jax.scaling import registry as scalings
from rope_jax.scheme import Retrofit, rescale

PACKAGE = pathlib.Path(rope_jax.__file__).parent

FILE = """
import dataclasses
import jax.numpy as jnp
import numpy as np
from rope_jax.biases import PerOffset
from rope_jax.biases.registry import BiasRecord, register as register_bias
from rope_jax.decoder import each_scheme
from rope_jax.diagnosis.evaluation.faults import Fault, register as register_fault
from rope_jax.rules import Rule
from rope_jax.scaling.registry import Scaling, register as register_scaling


def mine(factor, original_length):
    def halve(rotary):
        theta = np.array(rotary.inverse_frequencies)
        theta[len(theta) // 2 :] /= factor
        return dataclasses.replace(rotary, inverse_frequencies=theta)
    return Rule("mine", halve, {"factor": factor})


def my_bias(request):
    return PerOffset(jnp.tile(-jnp.arange(9.0) / 4, (request.num_heads, 1)))


def deaf(request):
    silence = lambda scheme: dataclasses.replace(scheme, logit_scale=0 * scheme.logit_scale)
    return Fault("deaf", "all logits are 0", scheme=lambda schemes: each_scheme(silence, schemes))


register_scaling(Scaling("mine", mine, "my rule", "#123456", "the slower half divided by s"))
register_bias(BiasRecord("mybias", my_bias, "my bias", "#654321", "a quarter nat a token up to eight"))
register_fault("deaf", deaf)
"""


@pytest.fixture(autouse=True)
def registries(monkeypatch):
    """Forgets what a test registers; times nothing."""
    monkeypatch.setattr(costs, "costs_record", untimed_costs)
    known = [(one, dict(one)) for one in (scalings.SCALINGS, biases.BIASES, faults.FAULTS)]
    yield
    for registry, before in known:
        registry.clear()
        registry.update(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_bundled_model(tmp_path_factory.mktemp("model"))


def mine(factor, original_length):
    """Divides the slower half of the pairs."""

    def transform(rotary):
        theta = np.array(rotary.inverse_frequencies)
        theta[len(theta) // 2 :] /= factor
        return dataclasses.replace(rotary, inverse_frequencies=theta)

    return Rule("mine", transform, {"factor": factor})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MyBias:
    """A bias of one's own: the root of the distance."""

    slopes_of_root: jax.Array

    @property
    def num_heads(self):
        return self.slopes_of_root.shape[0]

    def __call__(self, offset):
        root = jnp.sqrt(jnp.abs(jnp.asarray(offset, jnp.float32)))
        return -self.slopes_of_root.reshape(-1, *(1,) * root.ndim) * root[None]


def fitted(request):
    unit = jnp.ones(request.num_heads, jnp.float32)
    return MyBias(unit * request.fitter.largest_safe(lambda multiplier: MyBias(unit * multiplier)))


def test_a_rule_a_bias_and_a_fault_of_ones_own_are_used_by_their_names(model):
    scalings.register(scalings.Scaling("mine", mine, "my rule", "#123456", "the slower half divided by s"))
    biases.register(biases.BiasRecord("mybias", fitted, "my bias", "#654321", "falls by the root", fitted=True))
    deaf = faults.Fault(
        "deaf", "all logits are 0",
        lambda schemes: each_scheme(lambda one: dataclasses.replace(one, logit_scale=0 * one.logit_scale), schemes),
    )  # fmt: skip
    faults.register("deaf", lambda request: deaf)
    options = SMALL | {"transforms": ("mine", "llama3"), "faults": ("deaf",)}
    found = diagnose(model, deployed=("mine+mybias", "ntk+mybias"), **options)
    assert set(found.recommendation) == {"mine + mybias", "ntk + mybias"}
    assert {"mine + none", "none + mybias", "llama3 + mybias"} <= set(found.conditions)
    assert "scale by mine instead" in [change.words for change in found.findings.judgements[1].verdict.changes]
    assert "deaf" in [effect.name for effect in found.findings.judgements[0].verdict.implementation.faults]
    assert "my rule" in found.to_html() or "mine" in found.to_html()
    assert "times the bias of multiplier 1: the most that raises" in found.conditions["mine + mybias"].fitted


def test_objects_and_whole_configurations_are_taken_where_names_are(model):
    rule, bias = mine(2.0, 192), PerOffset(jnp.tile(-jnp.arange(9.0) / 4, (HEADS, 1)))
    found = diagnose(model, deployed=[(rule, bias), ("ntk", MyBias(jnp.ones(HEADS)))], **SMALL | {"transforms": [rule]})
    assert set(found.recommendation) == {"mine + peroffset", "ntk + mybias"}
    assert "mine + mybias" in found.conditions
    rotary = found.findings.subjects[0].checkpoint.positions.main_group.rotary
    whole = Retrofit(rotary, scaling.ntk(factor=2.0), alibi_paper(HEADS), temperature=1.5, bias_name="ours")
    again = diagnose(model, deployed=rescale(whole, rule), **SMALL)
    assert set(again.recommendation) == {"mine + ours + temperature 1.5"}
    assert record_of(again.findings)["settings"]["deployed"] == ["mine + ours + temperature 1.5"]


def command(model, out, *flags):
    return main([
        "diagnose", str(model), f"--out={out}", f"--target_length={TARGET}", "--contexts=3", "--text_rows=2",
        "--margins=learned=0", *flags,
    ])  # fmt: skip


def test_a_file_of_ones_own_is_loaded_by_the_command(model, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(FILE)
    flags = ["--deployed=mine+mybias", "--transforms=mine,llama3", "--faults=deaf", f"--load={tmp_path / 'mine.py'}"]
    assert command(model, tmp_path / "out", *flags, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    (judgement,) = record["judgements"]
    assert judgement["deployed"] == "mine + mybias"
    assert [effect["name"] for effect in judgement["verdict"]["implementation"]["faults"]] == ["deaf"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("def", "SyntaxError"),
        (FILE.replace('"mine", mine', '"ntk", mine'), "there is a scaling 'ntk' already"),
        (FILE.replace('"mybias", my_bias', '"my bias", my_bias'), "must be one word, got 'my bias'"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_one_line(model, tmp_path, capsys, content, message):
    if content is not None:
        (tmp_path / "mine.py").write_text(content)
    before = sorted(tmp_path.iterdir())
    assert command(model, tmp_path / "out", f"--load={tmp_path / 'mine.py'}") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith("rope-jax diagnose: error: --load: ")
    assert message in err
    assert sorted(tmp_path.iterdir()) == before


def test_a_directory_is_no_file_to_load(model, tmp_path, capsys):
    assert command(model, tmp_path / "out", f"--load={tmp_path}") == 2
    assert f"--load: {str(tmp_path)!r}: not a regular file" in capsys.readouterr().err


BROKEN_RULES = {
    "raise KeyError('k')": "scaling 'mine': KeyError: 'k'",
    "return None": "scaling 'mine' makes NoneType, not Rule or DynamicNtk or LongRope",
    "return Rule('mine', lambda rotary: rotary.nothing)": "mine: AttributeError: 'Rotary' object has no",
    "return Rule('mine', lambda rotary: None)": "mine: its transform gives NoneType, not Rotary",
}
BROKEN_BIASES = {
    "raise KeyError('k')": "bias 'mybias': KeyError: 'k'",
    "return 3": "bias mybias is int, not a Bias",
    "return PerOffset(jnp.zeros((request.num_heads + 1, 9)))": f"bias mybias has {HEADS + 1} heads, the model {HEADS}",
    "return PerOffset(jnp.full((request.num_heads, 9), jnp.nan))": "bias mybias is nan for head 0 at offset 0",
}
BROKEN_FAULTS = {
    "raise KeyError('k')": "fault 'deaf': KeyError: 'k'",
    "return None": "fault 'deaf' makes NoneType, not Fault",
    "return Fault('deaf', '', scheme=lambda schemes: schemes.nothing)": "fault 'deaf': AttributeError",
}


@pytest.mark.parametrize(
    ("maker", "body", "message"),
    [
        (maker, body, message)
        for maker, broken in (("mine(factor", BROKEN_RULES), ("my_bias(", BROKEN_BIASES), ("deaf(", BROKEN_FAULTS))
        for body, message in broken.items()
    ],
)
def test_a_record_of_ones_own_that_fails_is_one_line(
    model, tmp_path, capsys, without_type_checks, maker, body, message
):
    head, _, rest = FILE.partition(f"def {maker}")
    arguments, _, rest = rest.partition("\n")
    (tmp_path / "mine.py").write_text(f"{head}def {maker}{arguments}\n    {body}\n{rest}")
    flags = ["--deployed=mine+mybias", "--transforms=llama3", "--faults=deaf", f"--load={tmp_path / 'mine.py'}"]
    assert command(model, tmp_path / "out", *flags) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith("rope-jax diagnose: error: ")
    assert message in err.splitlines()[-1]
    assert not (tmp_path / "out" / "diagnosis.json").exists()


def test_a_failure_of_the_packages_own_record_stays_a_bug():
    def broken(factor, original_length):
        raise KeyError("k")

    broken.__module__ = "rope_jax.scaling.registry"
    scalings.register(scalings.Scaling("mine", broken, "my rule", "#123456", "it fails"))
    with pytest.raises(KeyError):
        scalings.scaling_rule("mine", factor=2.0, original_length=64)


def test_names_are_taken_once_and_are_one_word():
    record = scalings.Scaling("mine", mine, "my rule", "#123456", "the slower half divided by s")
    scalings.register(record)
    with pytest.raises(InputError, match="there is a scaling 'mine' already"):
        scalings.register(record)
    with pytest.raises(InputError, match="must be one word, got 'my rule'"):
        scalings.register(dataclasses.replace(record, name="my rule"))


def places(name):
    """Returns the files of the package in whose code, comments and docstrings left out, a name stands."""
    found = set()
    for file in PACKAGE.rglob("*.py"):
        for token in tokenize.generate_tokens(io.StringIO(file.read_text("utf-8")).readline):
            said = token.type == tokenize.STRING and token.string.strip("rbf").strip("\"'") == name
            if said or (token.type == tokenize.NAME and token.string in (name, f"_{name}")):
                found.add(file.relative_to(PACKAGE).as_posix())
    return found


def test_inside_the_package_a_rule_is_one_record_in_one_registry():
    assert places("ntk4") == {"scaling/registry.py"}


def test_inside_the_package_a_bias_and_a_fault_are_one_record():
    assert places("alibi_star") <= {
        "biases/registry.py", "diagnosis/evaluation/plan.py", "commands/search.py", "commands/diagnose.py",
    }  # fmt: skip
    assert places("bf16_frequencies") == {"diagnosis/evaluation/faults.py"}
