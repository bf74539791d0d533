"""`import rope_jax` and what it advertises."""

import importlib

import pytest

import rope_jax


@pytest.mark.parametrize("name", [*rope_jax._SUBMODULES, *rope_jax._FUNCTIONS])
def test_everything_advertised_is_there(name):
    found = getattr(rope_jax, name)
    assert name in dir(rope_jax)
    assert name in rope_jax.__all__
    if name in rope_jax._SUBMODULES:
        assert found is importlib.import_module(f"rope_jax.{name}")
    else:
        assert callable(found)


@pytest.mark.parametrize("name", ["inspection", "magic", "_nothing"])
def test_an_unknown_name_is_an_attribute_error(name):
    with pytest.raises(AttributeError, match=f"has no attribute '{name}'"):
        getattr(rope_jax, name)
