"""Times of PyTorch's compiled FlexAttention, ALiBi and T5 as a `score_mod`, in a process without JAX on the card."""

import functools
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from problem import BUCKETS, buckets

from accelerator_parts import shapes, timing
from accelerator_parts.jobs import Found, Job
from accelerator_parts.shapes import Shape
from rope_jax.biases import paper_slopes

jax.config.update("jax_platforms", "cpu")  # the card's memory is PyTorch's

FIXED, LEARNED = "FlexAttention", "FlexAttention, bias learned"
_MEBIBYTE = 2**20


def card() -> str:
    """Returns the accelerator's name, "cpu" without one."""
    if importlib.util.find_spec("torch") is None:
        return "cpu"
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def check() -> None:
    """Raises if the card does nothing any more."""
    if card() != "cpu":
        import torch

        torch.ones(8, device="cuda").sum().item()


def jobs(*, quick: bool) -> Iterator[Job]:
    """Yields a job for each shape and bias; then those whose slopes and table have gradients too."""
    for name in (FIXED, LEARNED):
        for shape in shapes.shapes(quick):
            for bias in ("alibi", "t5"):
                yield Job(shape.case(bias), name, functools.partial(_refused_or_measured, shape, bias, name == LEARNED))


def _refused_or_measured(shape: Shape, bias: str, learned: bool) -> Iterable[Found]:
    if card() == "cpu":
        raise NotImplementedError("torch is not installed or sees no GPU")
    return measured(shape, bias, learned=learned, device="cuda")


def measured(shape: Shape, bias: str, *, learned: bool, device: str, backward: bool = True) -> Iterator[Found]:
    """Yields times and speeds in bfloat16, and the memory of a forward and backward pass.

    Args:
      shape: of queries, keys and values.
      bias: "alibi" or "t5".
      learned: whether slopes or table get gradients.
      device: to run on.
      backward: whether to run the backward pass; there is none on a CPU.
    """
    import torch
    from torch.nn.attention.flex_attention import flex_attention
    from torch_contenders import causal_blocks

    torch._dynamo.reset()
    attend = torch.compile(flex_attention, dynamic=False)
    blocks = causal_blocks(shape.tokens).to(device)
    score_mod, parameter = _score_mod(bias, shape.heads, learned, device)
    made = torch.Generator(device).manual_seed(0)
    size = (1, shape.heads, shape.tokens, shape.dim)  # the layout that these kernels are made for
    arrays = [torch.randn(size, generator=made, device=device, dtype=torch.bfloat16) for _ in range(7)]
    inputs, cotangent = [arrays[:3], arrays[3:6]], arrays[6]

    def forward(q, k, v):
        with torch.no_grad():
            return attend(q, k, v, score_mod=score_mod, block_mask=blocks)

    def both(q, k, v):
        out = attend(q, k, v, score_mod=score_mod, block_mask=blocks)
        return out, *torch.autograd.grad(out, (q, k, v, parameter) if learned else (q, k, v), cotangent)

    wait = lambda _: torch.cuda.synchronize() if device == "cuda" else None  # noqa: E731
    forward_time = timing.milliseconds(forward, inputs, wait)
    yield from shapes.speeds(shape, forward_time)
    if not backward:
        return
    for x in (*arrays[:6], *([parameter] if learned else [])):
        x.requires_grad_()
    both_time = timing.milliseconds(both, inputs, wait)
    yield from shapes.speeds(shape, forward_time, both_time)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    outputs = both(*inputs[0])
    given = sum(x.nbytes for x in outputs)
    taken = torch.cuda.max_memory_allocated() - before - given
    yield Found("memory beside, forward + backward", taken / _MEBIBYTE, "MiB")


def _score_mod(bias: str, heads: int, learned: bool, device: str) -> tuple[Callable[..., Any], Any]:
    """Returns a bias as FlexAttention takes it, and its slopes or table.

    A table that is not learned is written out by offset, one look-up a logit in place of two.
    """
    import torch

    if bias == "alibi":
        slopes = torch.tensor(np.asarray(paper_slopes(heads)), dtype=torch.float32, device=device)
        return (lambda score, batch, head, i, j: score - slopes[head] * (i - j)), slopes
    table = torch.tensor(np.random.default_rng(0).normal(size=(heads, BUCKETS)), dtype=torch.float32, device=device)
    bucket = torch.from_numpy(buckets()).to(device)
    last = len(bucket) - 1
    if learned:
        return (lambda score, batch, head, i, j: score + table[head, bucket[torch.clamp(i - j, 0, last)]]), table
    by_offset = table[:, bucket].contiguous()
    return (lambda score, batch, head, i, j: score + by_offset[head, torch.clamp(i - j, 0, last)]), table
