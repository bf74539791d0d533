"""PyTorch's side of the attention benchmarks: SDPA plain and with the bias written out, and compiled FlexAttention.

Queries, keys and values lie as `[batch, heads, tokens, dim]`, the layout these functions are made for.
"""

import os
import shutil

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from problem import Problem, buckets, problem
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from worker import Prepared

_BLOCK = 128  # FlexAttention's default; 256 is no faster on a CPU


def sdpa(*, length: int, dim: int, seed: int, backward: bool = False, saved: str | None = None) -> Prepared:
    """Returns `scaled_dot_product_attention`, causal, without a bias: PyTorch's flash kernel."""
    given = problem(length=length, dim=dim, seed=seed, saved=saved)

    def attend(q, k, v, parameter):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return _prepared(attend, given, "none", backward)


def sdpa_written_bias(*, length: int, dim: int, seed: int, bias: str, backward: bool = False) -> Prepared:
    """Returns `scaled_dot_product_attention` with bias and causal mask as one array of queries times keys.

    For the forward pass the array is there before the clock starts; with a backward pass it must be made of the slopes
    or the table, as gradients go to them, from distances or buckets that are there before.
    """
    given = problem(length=length, dim=dim, seed=seed)
    offset = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    index = torch.from_numpy(buckets())[offset.clamp(0, len(buckets()) - 1)] if bias == "t5" else None
    distance = offset.clamp(min=0).float() if bias == "alibi" else None
    hidden = torch.zeros(length, length).masked_fill(offset < 0, float("-inf"))
    del offset

    def written(parameter):
        if bias == "alibi":
            return hidden - parameter[:, None, None] * distance
        return F.embedding(index, parameter.T).permute(2, 0, 1) + hidden  # as T5 in transformers reads its table

    with torch.no_grad():
        ready = None if backward else written(torch.from_numpy(given.parameter(bias)))[None].contiguous()

    def attend(q, k, v, parameter):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=written(parameter)[None] if ready is None else ready)

    held = sum(x.nbytes for x in (index, distance, hidden, ready) if x is not None)
    return _prepared(attend, given, bias, backward, held=held)


def flex(*, length: int, dim: int, seed: int, bias: str) -> Prepared:
    """Returns compiled `flex_attention` with the bias as a `score_mod` and causality as a block mask; forward only.

    T5's bias is read from a table by offset; no bucket is worked out in the kernel.

    Raises:
      RuntimeError: if there is no C++ compiler.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise RuntimeError(f"compiled FlexAttention needs a C++ compiler: install g++ or set CXX (tried {compiler})")
    given = problem(length=length, dim=dim, seed=seed)
    slopes = torch.from_numpy(given.slopes)
    by_offset = torch.from_numpy(np.ascontiguousarray(given.table[:, buckets()]))
    last = by_offset.shape[1] - 1

    def alibi(score, batch, head, i, j):
        return score - slopes[head] * (i - j)

    def t5(score, batch, head, i, j):
        return score + by_offset[head, torch.clamp(i - j, 0, last)]

    torch._dynamo.reset()
    compiled = torch.compile(flex_attention, dynamic=False)
    score_mod, block_mask = {"alibi": alibi, "t5": t5}[bias], causal_blocks(length)

    def attend(q, k, v, parameter):
        return compiled(q, k, v, score_mod=score_mod, block_mask=block_mask)

    return _prepared(attend, given, bias, backward=False, compiled=True)


def causal_blocks(length: int) -> BlockMask:
    """Returns what `create_block_mask` makes of a causal mask, without its queries times keys (10 GB at 32k)."""
    blocks = -(-length // _BLOCK)
    number = torch.arange(blocks, dtype=torch.int32)
    return BlockMask.from_kv_blocks(
        kv_num_blocks=torch.ones(1, 1, blocks, dtype=torch.int32),
        kv_indices=((number[:, None] + number[None, :]) % blocks)[None, None].contiguous(),  # the diagonal one first
        full_kv_num_blocks=number[None, None].clone(),
        full_kv_indices=number.repeat(blocks, 1)[None, None].contiguous(),
        BLOCK_SIZE=_BLOCK,
        mask_mod=lambda batch, head, i, j: i >= j,
        seq_lengths=(length, length),
    )


def _prepared(attend, given: Problem, bias: str, backward: bool, *, held: int = 0, compiled: bool = False) -> Prepared:
    q, k, v, d_out = (
        torch.from_numpy(x).transpose(1, 2).contiguous() for x in (given.q, given.k, given.v, given.d_out)
    )
    parameter = torch.from_numpy(given.parameter(bias).copy())
    if backward:
        for x in (q, k, v, parameter):
            x.requires_grad_()

    def forward():
        with torch.no_grad():
            return (attend(q, k, v, parameter),)

    def forward_and_backward():
        wanted = (q, k, v) if bias == "none" else (q, k, v, parameter)
        out = attend(q, k, v, parameter)
        return out.detach(), *torch.autograd.grad(out, wanted, d_out)

    def to_numpy(outputs) -> dict[str, np.ndarray]:
        names = ("out", "d_q", "d_k", "d_v", "d_bias")
        return {
            name: (x.transpose(1, 2) if x.ndim == 4 else x).numpy() for name, x in zip(names, outputs, strict=False)
        }

    run = forward_and_backward if backward else forward
    return Prepared(
        run=run,
        compile=run if compiled else None,
        to_numpy=to_numpy,
        input_bytes=(4 if backward else 3) * given.array_bytes + held,
        output_bytes=(4 if backward else 1) * given.array_bytes,
        notes=lambda: {"versions": {"torch": torch.__version__}},
    )
