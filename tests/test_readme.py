"""What the README shows works as shown."""

import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from rope_jax.attention import attention

README = pathlib.Path(__file__).resolve().parents[1] / "README.md"


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_library_example_makes_one_scheme_for_each_option():
    (example,) = (one for one in python_blocks() if "stack(" in one)
    names: dict = {}
    exec(example, names)
    schemes = names["schemes"]
    assert schemes.slopes.shape == (4, 32)
    # Any slice of it serves attention: without a bias, and without a scaling.
    second, third = (jax.tree.map(lambda leaf, at=at: leaf[at], schemes) for at in (1, 2))
    assert float(abs(second.slopes).max()) == 0
    assert jnp.array_equal(third.inverse_frequencies, names["trained"].inverse_frequencies.astype("float32"))
    x = jnp.ones((1, 3, 32, 128))
    positions = jnp.arange(3)[None]
    for scheme in (second, third):
        out = attention(x, x, x, scheme, q_positions=positions, kv_positions=positions)
        assert out.shape == x.shape


@pytest.mark.parametrize("heading", ["## Start", "## Tests"])
def test_the_commands_that_ci_runs_are_there(heading):
    block = README.read_text().split(f"\n{heading}\n")[1].split("```sh\n")[1].split("```")[0]
    assert block.startswith("python3 -m venv .venv\n")


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target
