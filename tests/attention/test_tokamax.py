"""tokamax's path without a GPU and without the package: plain attention by slots stands in for its kernel."""

import functools
import importlib.machinery
import importlib.util
import sys
import types

import jax
import numpy as np
import pytest
from slot_kernel import by_blocks, by_slots, call_of, check, gradients, nothing, outputs
from test_cudnn import call

from rope_jax.attention import library_kernels, tokamax_gpu

attend = functools.partial(tokamax_gpu.attend_with, core=by_slots)
with_nothing = functools.partial(tokamax_gpu.attend_with, core=nothing)


@pytest.mark.parametrize(
    "arguments",
    [
        {"bias": "none"},
        {"bias": "alibi"},
        {"bias": "learned", "positions": "far away", "window": 20},
        {"bias": "none", "soft_cap": 0.8, "v_dim": 5},
        {"bias": "none", "causal": False, "window": 20},
        {"each": True, "v_dim": 13},
    ],
    ids=lambda arguments: "-".join(arguments),
)
def test_outputs_and_gradients(arguments):
    check(attend, call_of(**arguments))


RUNS = [
    ({"bias": "none"}, True, True),
    ({"bias": "none", "soft_cap": 2.0}, True, True),
    ({"bias": "alibi"}, True, False),
    ({"bias": "alibi", "each": True}, True, False),
    ({"bias": "alibi", "soft_cap": 2.0}, False, False),
    ({"bias": "alibi", "positions": "permuted"}, False, False),
]


@pytest.mark.parametrize(("arguments", "forward", "backward"), RUNS)
def test_what_runs(arguments, forward, backward):
    problem = call_of(**arguments)
    found = {outputs: forward, lambda *of: gradients(*of)[2]: backward}
    for results, by_kernel in found.items():
        ours = results(with_nothing, problem)
        assert np.any(ours) != by_kernel
        if not by_kernel:
            np.testing.assert_array_equal(ours, results(by_blocks, problem))


def test_where_the_scheme_is_differentiated_all_is_blockwise():
    ours, theirs = (gradients(run, call_of(bias="none"), of=(0, 3)) for run in (with_nothing, by_blocks))
    for pair in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(*pair)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "float16"}, "tokamax's kernel takes bfloat16, q is float16"),
        ({"sinks": True}, "tokamax's kernel takes no sinks"),
        ({"segments": "one"}, "takes no segment_ids"),
        ({"bias": "t5", "max_offset": 24}, "takes no bias but a line"),
        ({"keys": 80}, "masks by slots"),
        ({"v_dim": 136}, "at most 128 dimensions, got 136"),
    ],
)
def test_what_it_refuses(arguments, message):
    with pytest.raises(NotImplementedError, match=message):
        outputs(attend, call_of(**arguments))


def test_it_refuses_what_the_kernel_refuses():
    def core(*arrays, **settings):
        raise NotImplementedError("not on sm61")

    with pytest.raises(NotImplementedError, match="tokamax refuses: not on sm61"):
        outputs(functools.partial(tokamax_gpu.attend_with, core=core), call_of())


def test_without_a_gpu_it_is_refused():
    if jax.default_backend() != "cpu":
        pytest.skip("there is a device")
    with pytest.raises(NotImplementedError, match="tokamax's kernel needs a GPU, the default backend is cpu"):
        call(call_of(), implementation="tokamax")


def test_what_a_gpu_would_be_given(monkeypatch):
    run = functools.partial(call, call_of(bias="none"), implementation="tokamax", window=9)
    capability, installed, given = [(8, 0)], [None], []
    monkeypatch.setattr(library_kernels, "compute_capability", lambda library: capability[0])
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: installed[0] if name == "tokamax" else find(name))
    with pytest.raises(NotImplementedError, match="compute capability 9 or 10, the GPU has 8"):
        run()
    capability[0] = 9, 0
    monkeypatch.setattr(library_kernels, "LEAST_JAX", (99, 0, 1))
    with pytest.raises(NotImplementedError, match=r"tokamax's kernel needs jax >= 99\.0\.1, this is"):
        run()
    monkeypatch.setattr(library_kernels, "LEAST_JAX", (0, 0, 0))
    with pytest.raises(NotImplementedError, match="the package tokamax is not installed"):
        run()
    installed[0] = importlib.machinery.ModuleSpec("tokamax", None)

    def dot_product_attention(q, k, v, bias, **settings):
        given.append((bias is None, settings))
        return nothing(q, k, v)

    library = types.ModuleType("tokamax")
    library.dot_product_attention = dot_product_attention  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tokamax", library)
    assert not np.any(run())
    usual = {"scale": 1.0, "logits_soft_cap": None, "implementation": "mosaic"}
    causal = usual | {"is_causal": True, "local_window_size": (8, 0)}
    assert all(settings == causal for _, settings in given)
    assert {plain for plain, _ in given} == {False, True}
    given.clear()
    assert not np.any(run(causal=False))
    assert given[0] == (True, usual | {"is_causal": False, "local_window_size": (8, 8)})
    given.clear()
    assert not np.any(run(causal=False, window=2**31 - 1))
    assert given[0] == (True, usual | {"is_causal": False, "local_window_size": None})
    assert np.any(run(implementation=None))  # it is there, and not chosen
