"""Attention by the Mosaic GPU kernel of the optional package tokamax: no bias, or a causal line without gradients."""

import functools
import importlib.util
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from rope_jax.attention import library_kernels
from rope_jax.attention.call import Settings, Tokens
from rope_jax.attention.library_kernels import Kernels
from rope_jax.scheme import Scheme

LARGEST_DIM = 128

# Takes queries that are scaled already, keys, values, a bias of keys or None, and what a call says of its mask and cap.
Core = Callable[..., Array]


def attend(
    q: Float[Array, "batch queries heads dim"],
    k: Float[Array, "batch keys kv_heads dim"],
    v: Float[Array, "batch keys kv_heads v_dim"],
    scheme: Scheme,
    sinks: Float[Array, " heads"] | None,
    queries: Tokens,
    keys: Tokens,
    settings: Settings,
) -> tuple[Float[Array, "batch queries heads v_dim"], Float32[Array, "batch queries heads"]]:
    """Returns outputs, and NaN in place of log-sum-exps; arguments as in `rope_jax.attention.attention`.

    Raises:
      NotImplementedError: without an NVIDIA GPU of compute capability 9 or 10, without the package or a JAX that it
        runs with, or for what `attend_with` does not take.
    """
    major = library_kernels.compute_capability("tokamax")[0]
    if major not in (9, 10):
        raise NotImplementedError(f"tokamax's kernel needs compute capability 9 or 10, the GPU has {major}")
    library_kernels.check_jax("tokamax")
    if importlib.util.find_spec("tokamax") is None:
        raise NotImplementedError("the package tokamax is not installed")
    return attend_with(q, k, v, scheme, sinks, queries, keys, settings, core=_tokamax)


def attend_with(
    q: Float[Array, "batch queries heads dim"],
    k: Float[Array, "batch keys kv_heads dim"],
    v: Float[Array, "batch keys kv_heads v_dim"],
    scheme: Scheme,
    sinks: Float[Array, " heads"] | None,
    queries: Tokens,
    keys: Tokens,
    settings: Settings,
    *,
    core: Core,
) -> tuple[Float[Array, "batch queries heads v_dim"], Float32[Array, "batch queries heads"]]:
    r"""Returns what `attend` does with any kernel in tokamax's place: for tests.

    .. math:: -m (i - j) = m (j - c) - m (i - c)

    Under a causal mask the last term is constant in a row and no softmax sees it, so that a line is a bias of keys,
    `[heads, 1, keys]`. The kernel's backward pass would write out every logit's gradient for it: a line is the
    kernel's in calls that are not differentiated, and blockwise attention's in those that are. Blockwise attention runs
    too where positions are no run, where a soft cap meets a line (tokamax adds a bias before its cap), and where
    anything of the scheme is differentiated. A strip of one entry is constant in a row: no output depends on it.

    Args:
      q: queries; the rest as in `attend`.
      core: `core(q, k, v, bias, causal=..., window=..., soft_cap=...)`, attention by slots with a scale of 1.

    Raises:
      NotImplementedError: for dtypes other than bfloat16, heads wider than 128, 16 queries or fewer, sinks, segments,
        a strip of several entries, numbers of queries and of keys that differ where there is a mask, what tokamax
        itself refuses, or inside a `jax.shard_map` that checks what varies.

    Source: Press et al., arXiv 2108.12409, for the line; tokamax 0.0.17 for the kernel.
    """
    library_kernels.refuse("tokamax", q, k, v, scheme, sinks, queries, keys, settings)
    dim = max(q.shape[-1], v.shape[-1])
    if dim > LARGEST_DIM:
        raise NotImplementedError(f"tokamax's kernel takes heads of at most {LARGEST_DIM} dimensions, got {dim}")
    window = library_kernels.reach(settings, q, k)
    run = functools.partial(core, causal=settings.causal, window=window, soft_cap=settings.soft_cap)

    def plain(q: Array, k: Array, v: Array) -> Array:
        return run(q, k, v, None)

    def line(q: Array, k: Array, v: Array, slopes: Array) -> Array:
        shape = (*slopes.shape, 1, k.shape[1])
        offset = jnp.asarray(np.arange(k.shape[1]) - k.shape[1] // 2, jnp.float32)
        return run(q, k, v, slopes[..., None, None] * jnp.broadcast_to(offset, shape))

    library_kernels.check_served("tokamax", plain, q, k, v)
    kernels = Kernels(plain, line if settings.soft_cap is None else None, line_has_gradients=False)
    return library_kernels.attend(kernels, q, k, v, scheme, queries, keys, settings)


def _tokamax(
    q: Array, k: Array, v: Array, bias: Array | None, *, causal: bool, window: int | None, soft_cap: float | None
) -> Array:
    import tokamax  # optional, and slow to import

    return tokamax.dot_product_attention(
        q,
        k,
        v,
        bias,
        scale=1.0,
        is_causal=causal,
        local_window_size=None if window is None else (window - 1, 0 if causal else window - 1),
        logits_soft_cap=soft_cap,
        implementation="mosaic",
    )
