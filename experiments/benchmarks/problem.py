"""The inputs of the attention benchmarks: the same numbers for every contender of one seed, made on the host."""

import dataclasses

import numpy as np
from jaxtyping import Float32

from rope_jax.biases import bucket_starts, paper_slopes

HEADS = 8
BUCKETS, MAX_DISTANCE = 32, 128  # T5's published numbers
BIASES = ("none", "alibi", "t5")


@dataclasses.dataclass(frozen=True)
class Problem:
    """Causal attention over one sequence.

    Attributes:
      q: queries, `[1, tokens, heads, dim]`, turned already where there is rotation.
      k: keys, alike.
      v: values, alike.
      d_out: cotangent of the outputs, alike.
      slopes: ALiBi's, the paper's, `[heads]`.
      table: T5's, random normal, `[heads, buckets]`.
    """

    q: Float32[np.ndarray, "1 tokens heads dim"]
    k: Float32[np.ndarray, "1 tokens heads dim"]
    v: Float32[np.ndarray, "1 tokens heads dim"]
    d_out: Float32[np.ndarray, "1 tokens heads dim"]
    slopes: Float32[np.ndarray, " heads"]
    table: Float32[np.ndarray, "heads buckets"]

    @property
    def array_bytes(self) -> int:
        """Bytes of one array of queries."""
        return self.q.nbytes

    def parameter(self, bias: str) -> np.ndarray:
        """Returns what gradients of the bias go to: slopes, table, or nothing."""
        return {"none": np.zeros((0,), np.float32), "alibi": self.slopes, "t5": self.table}[bias]


def problem(*, length: int, dim: int, seed: int, saved: str | None = None) -> Problem:
    """Returns random normal inputs, or queries, keys and values read from a file.

    Args:
      length: tokens.
      dim: of a head.
      seed: of the generator.
      saved: an `.npz` file with `q`, `k` and `v`; random ones where None.

    Raises:
      ValueError: if the file's arrays have another length.
    """
    rng = np.random.default_rng(seed)
    if saved is None:
        q, k, v = (rng.standard_normal((1, length, HEADS, dim), np.float32) for _ in range(3))
    else:
        with np.load(saved) as file:
            q, k, v = (np.ascontiguousarray(file[name][:, :length], np.float32) for name in "qkv")
    if q.shape[1] != length:
        raise ValueError(f"{saved} holds {q.shape[1]} tokens, {length} were asked for")
    heads = q.shape[2]
    return Problem(
        q=q,
        k=k,
        v=v,
        d_out=rng.standard_normal(q.shape, np.float32),
        slopes=np.asarray(paper_slopes(heads), np.float32),
        table=rng.standard_normal((heads, BUCKETS), np.float32),
    )


def buckets() -> np.ndarray:
    """Returns the T5 bucket of every offset from 0 to the first of the last bucket, beyond which it is the last."""
    starts = bucket_starts(BUCKETS, MAX_DISTANCE)
    return np.searchsorted(np.asarray(starts), np.arange(starts[-1] + 1), side="right") - 1
