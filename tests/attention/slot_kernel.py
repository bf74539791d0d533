"""Plain attention by slots, as a library's fused kernel computes it: stands in for one where there is no GPU."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from backend_suite import ROUGH, exactly, quick_compilation, worst
from float64_oracle import Problem
from problems import problem_of

from rope_jax.attention import blockwise


def by_slots(q, k, v, bias=None, *, causal, window, soft_cap=None):
    """Returns outputs; products of the inputs' dtype are added up in float32, weights are rounded to it."""
    groups = q.shape[2] // k.shape[2]
    k, v = jnp.repeat(k, groups, axis=2), jnp.repeat(v, groups, axis=2)
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + jnp.broadcast_to(bias, logits.shape)
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    offset = np.arange(q.shape[1])[:, None] - np.arange(k.shape[1])[None, :]
    seen = offset >= 0 if causal else np.ones(offset.shape, bool)
    seen &= True if window is None else np.abs(offset) < window
    weights = jax.nn.softmax(jnp.where(seen, logits, -1e30), axis=-1).astype(v.dtype)
    return jnp.einsum("bhqk,bkhe->bqhe", weights, v, preferred_element_type=jnp.float32).astype(q.dtype)


def nothing(q, k, v, *rest, **settings):
    """Stands in for a kernel that can be told from blockwise attention: gives zeros."""
    return jnp.zeros((*q.shape[:3], v.shape[-1]), v.dtype) * q[..., :1]


@functools.cache
def call_of(**arguments) -> Problem:
    """Returns a call that kernels may take, unless the arguments say otherwise; no log-sum-exps are differentiated."""
    usual = {"dtype": "bfloat16", "max_offset": 0, "segments": "absent", "tokens": 70, "bias": "alibi"}
    problem = problem_of(**usual | arguments)
    return dataclasses.replace(problem, d_lse=np.zeros_like(problem.d_lse))


def outputs(attend, problem: Problem):
    """Returns the outputs, no gradients asked for."""
    return compiled(lambda *operands: attend(*operands, problem.settings)[0])(*operands(problem))


def gradients(attend, problem: Problem, *, of=(0, 1, 2)):
    """Returns outputs and the gradients of some of q, k, v and the scheme."""

    def loss(*operands):
        return jnp.sum(attend(*operands, problem.settings)[0].astype(jnp.float32) * problem.d_out)

    return compiled(jax.grad(loss, argnums=of))(*operands(problem))


def by_blocks(*call):
    return blockwise.attend(*call)


def compiled(run):
    return jax.jit(run, compiler_options=quick_compilation())


def operands(problem: Problem):
    return problem.q, problem.k, problem.v, problem.scheme, problem.sinks, problem.queries, problem.keys


def check(attend, problem: Problem):
    """Holds outputs and the gradients of q, k and v against the float64 oracle, as far as the dtype allows."""
    exact, sizes = exactly(problem)
    found = dict(zip("qkv", gradients(attend, problem), strict=True)) | {"out": outputs(attend, problem)}
    for name, ours in found.items():
        assert ours.dtype == problem.q.dtype
        assert ours.shape == exact[name].shape
        floor = ROUGH[problem.q.dtype] * (1 + sizes["logits"] / 16) * sizes[name]
        assert worst(np.asarray(ours, np.float64) - exact[name]) <= floor, name
