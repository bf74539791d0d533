"""Integers of any width become int32; everything else is refused by the argument's name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rope_jax.integers import as_int32

WIDTHS = (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)


@given(st.sampled_from(WIDTHS), st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5))
def test_known_values_survive_every_width(width, values):
    values = [value for value in values if np.iinfo(width).min <= value <= np.iinfo(width).max]
    result = as_int32("positions", np.asarray(values, width))
    assert result.dtype == jnp.int32
    assert result.tolist() == values


@pytest.mark.parametrize("value", [2**31, 2**63 - 1, -(2**31) - 1])
def test_a_known_value_beyond_int32_is_refused(value):
    with pytest.raises(ValueError, match=rf"^lengths must fit into int32, got {value}"):
        as_int32("lengths", np.int64(value))


def test_a_traced_width_that_may_exceed_int32_saturates():
    assert jax.jit(lambda x: as_int32("positions", x))(jnp.asarray([5, 2**32 - 1], jnp.uint32)).tolist() == [
        5,
        2**31 - 1,
    ]


@pytest.mark.parametrize(
    "value", [np.ones(2), jnp.ones(2, jnp.bfloat16), np.array([True]), [0.5], np.array(["a"]), np.timedelta64(3, "s")]
)
def test_what_is_no_integer_is_refused_by_name(value):
    with pytest.raises(TypeError, match=r"^q_positions must be integers, got "):
        as_int32("q_positions", value)
