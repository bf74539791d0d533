"""Attention by cuDNN's fused kernel, through `jax.nn.dot_product_attention`: no bias, or a causal line."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from rope_jax.attention import library_kernels
from rope_jax.attention.call import Settings, Tokens
from rope_jax.attention.library_kernels import Kernels
from rope_jax.attention.line_channels import CHANNELS, MOST_TOKENS, line_channels
from rope_jax.scheme import Scheme

# Takes queries that are scaled already, keys, values, whether later slots are hidden, and a window.
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
      NotImplementedError: without an NVIDIA GPU of compute capability 8 or more, with jax before 0.11.1, or for what
        `attend_with` does not take.
    """
    major = library_kernels.compute_capability("cuDNN")[0]
    if major < 8:
        raise NotImplementedError(f"cuDNN's kernel needs compute capability 8 or more, the GPU has {major}")
    library_kernels.check_jax("cuDNN")
    return attend_with(
        q, k, v, scheme, sinks, queries, keys, settings, core=_cudnn, largest_dim=256 if major == 9 else 128
    )


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
    largest_dim: int = 256,
) -> tuple[Float[Array, "batch queries heads v_dim"], Float32[Array, "batch queries heads"]]:
    """Returns what `attend` does with any kernel in cuDNN's place: for tests.

    Whether slopes are zero, and whether queries and keys are one run of positions, is known when the call runs only.
    Then it takes the kernel as it is where all slopes are zero, the kernel with 8 more channels of queries and keys
    (`line_channels`) where they are not, and blockwise attention where positions are no run, where a line has no
    channels (not causal, more than 131,072 tokens, or heads too wide), and where anything of the scheme is
    differentiated. A strip of one entry is constant in a row: no output depends on it.

    Args:
      q: queries; the rest as in `attend`.
      core: `core(q, k, v, causal=..., window=...)`, plain attention by slots with a scale of 1.
      largest_dim: of a head.

    Raises:
      NotImplementedError: for dtypes other than bfloat16, wider heads, 16 queries or fewer, sinks, a soft cap,
        segments, a strip of several entries, windows that are not causal, numbers of queries and of keys that differ
        where there is a mask, what cuDNN itself refuses, or inside a `jax.shard_map` that checks what varies.
    """
    library_kernels.refuse("cuDNN", q, k, v, scheme, sinks, queries, keys, settings)
    if settings.soft_cap is not None:
        raise NotImplementedError("cuDNN's kernel takes no soft_cap")
    if settings.window is not None and not settings.causal:
        raise NotImplementedError("cuDNN's kernel takes a window only of causal attention")
    dim = max(q.shape[-1], v.shape[-1])
    if dim > largest_dim:
        raise NotImplementedError(f"cuDNN's kernel takes heads of at most {largest_dim} dimensions here, got {dim}")
    run = functools.partial(core, causal=settings.causal, window=library_kernels.reach(settings, q, k))
    plain = functools.partial(_padded, run)
    library_kernels.check_served("cuDNN", plain, q, k, v)

    wide = max(q.shape[-1] + CHANNELS, v.shape[-1])
    may_line = settings.causal and wide <= largest_dim and q.shape[1] <= MOST_TOKENS
    line = functools.partial(_with_channels, run)
    kernels = Kernels(plain, line if may_line else None)
    return library_kernels.attend(kernels, q, k, v, scheme, queries, keys, settings)


def _cudnn(q: Array, k: Array, v: Array, *, causal: bool, window: int | None) -> Array:
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        scale=1.0,
        is_causal=causal,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )


def _padded(run: Core, q: Array, k: Array, v: Array) -> Array:
    """Returns outputs of heads of any width: zeros fill queries, keys and values up to one multiple of 8."""
    v_dim = v.shape[-1]
    width = -(-max(q.shape[-1], v_dim) // 8) * 8
    fill = lambda x: jnp.pad(x, ((0, 0),) * 3 + ((0, width - x.shape[-1]),))  # noqa: E731
    return run(*(fill(x) for x in (q, k, v)))[..., :v_dim]


def _with_channels(run: Core, q: Array, k: Array, v: Array, slopes: Array) -> Array:
    """Returns outputs under a line. Its channels come first: they add up to little before anything else is added."""
    of_queries, of_keys = (x.astype(q.dtype) for x in line_channels(slopes, q.shape[1]))
    of_queries = jnp.broadcast_to(of_queries, (*q.shape[:3], CHANNELS))
    of_keys = jnp.broadcast_to(of_keys[:, None, :], (*k.shape[:3], CHANNELS))
    q, k = jnp.concatenate([of_queries, q], axis=-1), jnp.concatenate([of_keys, k], axis=-1)
    return _padded(run, q, k, v)
