"""What attention kernels of other libraries can be given: which calls, and what runs where a kernel cannot.

Such a kernel masks by slots, knows no rotation, and gives no log-sum-exps in float32. So a call is served where queries
and keys are one run of positions, which is known when it runs only; a conditional then takes the kernel, or blockwise
attention. The kernel's own backward pass gives the gradients of queries, keys and values; it may add them up in another
order from run to run. Where anything of the scheme is differentiated too, all is left to blockwise attention: what a
kernel rounds to bfloat16 would be multiplied by positions.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from rope_jax import rotation
from rope_jax.attention import blockwise, decode
from rope_jax.attention.call import Settings, Tokens
from rope_jax.attention.operands import primals, varying_axes
from rope_jax.scheme import Scheme

LEAST_JAX = (0, 11, 1)  # the batch rule of cuDNN's kernel in earlier ones takes no axis that only some arrays have

Plain = Callable[[Array, Array, Array], Array]
Line = Callable[[Array, Array, Array, Array], Array]


@dataclasses.dataclass(frozen=True)
class Kernels:
    """What a library has for one call. Queries come turned and scaled, keys turned, all of one dtype.

    Attributes:
      plain: takes queries, keys and values and returns outputs, in the call's order of axes; no bias.
      line: takes slopes too, `[heads]` or `[batch, heads]`; None if there is none for the call.
      line_has_gradients: whether `line` has a backward pass in the memory of the tokens.
    """

    plain: Plain
    line: Line | None = None
    line_has_gradients: bool = True


def compute_capability(library: str) -> tuple[int, ...]:
    """Returns the compute capability of the first device, `(9, 0)` for Hopper.

    Args:
      library: whose kernel it is for, for errors.

    Raises:
      NotImplementedError: if the default backend is no NVIDIA GPU.
    """
    if jax.default_backend() != "gpu":
        raise NotImplementedError(f"{library}'s kernel needs a GPU, the default backend is {jax.default_backend()}")
    device = jax.local_devices()[0]
    found = str(getattr(device, "compute_capability", ""))
    if not found.replace(".", "").isdigit():
        raise NotImplementedError(f"{library}'s kernel needs an NVIDIA GPU, the device is {device.device_kind}")
    return tuple(int(number) for number in found.split("."))


def check_jax(library: str) -> None:
    """Raises `NotImplementedError` where this JAX is too old for the kernels."""
    if jax.__version_info__ < LEAST_JAX:
        least = ".".join(map(str, LEAST_JAX))
        raise NotImplementedError(f"{library}'s kernel needs jax >= {least}, this is {jax.__version__}")


def refuse(
    library: str,
    q: Array,
    k: Array,
    v: Array,
    scheme: Scheme,
    sinks: Array | None,
    queries: Tokens,
    keys: Tokens,
    settings: Settings,
) -> None:
    """Raises `NotImplementedError`, with the feature's name, for a call that no library's kernel can serve."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dtype != jnp.bfloat16:
            raise NotImplementedError(f"{library}'s kernel takes bfloat16, {name} is {x.dtype}")
    if sinks is not None:
        raise NotImplementedError(f"{library}'s kernel takes no sinks")
    if queries.segments is not None or keys.segments is not None:
        raise NotImplementedError(f"{library}'s kernel takes no segment_ids")
    if scheme.max_offset > 0:
        raise NotImplementedError(
            f"{library}'s kernel takes no bias but a line; the scheme's strip has max_offset {scheme.max_offset}"
        )
    if q.shape[1] <= decode.QUERIES:
        raise NotImplementedError(
            f"{library}'s kernel is for more than {decode.QUERIES} queries a sequence, got {q.shape[1]}"
        )
    if _by_slots(settings) and q.shape[1] != k.shape[1]:
        raise NotImplementedError(
            f"{library}'s kernel masks by slots, and there are {q.shape[1]} queries for {k.shape[1]} keys"
        )
    if varying_axes((q, k, v, scheme, queries, keys)):
        raise NotImplementedError(f"inside jax.shard_map {library}'s kernel needs check_vma=False")


def reach(settings: Settings, q: Array, k: Array) -> int | None:
    """Returns the window in slots; None where no two slots are that far apart."""
    return settings.window if settings.window is not None and settings.window < max(q.shape[1], k.shape[1]) else None


def check_served(library: str, plain: Plain, q: Array, k: Array, v: Array) -> None:
    """Raises `NotImplementedError`, with the library's own words, where it refuses shapes or the machine."""
    try:
        jax.eval_shape(plain, q, k, v)
    except (NotImplementedError, RuntimeError, ValueError) as refusal:
        raise NotImplementedError(f"{library} refuses: {refusal}") from refusal


def attend(
    kernels: Kernels,
    q: Float[Array, "batch queries heads dim"],
    k: Float[Array, "batch keys kv_heads dim"],
    v: Float[Array, "batch keys kv_heads v_dim"],
    scheme: Scheme,
    queries: Tokens,
    keys: Tokens,
    settings: Settings,
) -> tuple[Float[Array, "batch queries heads v_dim"], Float32[Array, "batch queries heads"]]:
    """Returns outputs of a call that `refuse` lets pass, and NaN in place of log-sum-exps."""

    # As leaves: the rule below gets each of them wrapped, which a scheme's own types do not allow.
    of_scheme, scheme_tree = jax.tree.flatten(scheme)
    tokens, token_tree = jax.tree.flatten((queries, keys))

    @jax.custom_vjp
    def run(q, k, v, of_scheme, tokens):
        return _chosen(kernels, q, k, v, scheme_tree.unflatten(of_scheme), *token_tree.unflatten(tokens), settings)

    def forward(*wrapped):
        scheme_wanted = any(x.perturbed for x in wrapped[3])
        q, k, v, of_scheme, tokens = primals(wrapped)
        scheme, (queries, keys) = scheme_tree.unflatten(of_scheme), token_tree.unflatten(tokens)
        if scheme_wanted:
            out, back = jax.vjp(lambda *arrays: _blockwise(*arrays, queries, keys, settings), q, k, v, scheme)
            return out, (None, back)
        trained = kernels if kernels.line_has_gradients else dataclasses.replace(kernels, line=None)
        out, back = jax.vjp(lambda *arrays: _chosen(trained, *arrays, scheme, queries, keys, settings), q, k, v)
        return out, (back, None)

    def backward(residuals, d_out):
        if isinstance(d_out, jax.custom_derivatives.SymbolicZero):
            d_out = jnp.zeros(d_out.shape, d_out.dtype)
        of_kernels, of_blockwise = residuals
        if of_kernels is not None:
            return (*of_kernels(d_out), None, None)
        *gradients, d_scheme = of_blockwise(d_out)
        return (*gradients, jax.tree.leaves(d_scheme), None)

    run.defvjp(forward, backward, symbolic_zeros=True)
    return run(q, k, v, of_scheme, tokens), jnp.full(q.shape[:3], jnp.nan, jnp.float32)


def _by_slots(settings: Settings) -> bool:
    """Returns whether it matters at which positions the slots are."""
    return settings.causal or settings.window is not None


def _blockwise(q, k, v, scheme: Scheme, queries: Tokens, keys: Tokens, settings: Settings) -> Array:
    return blockwise.attend(q, k, v, scheme, None, queries, keys, settings)[0]


def _chosen(kernels: Kernels, q, k, v, scheme: Scheme, queries: Tokens, keys: Tokens, settings: Settings) -> Array:
    """Returns outputs by what the positions and slopes of this run ask for: plain, line, or blockwise."""
    operands = q, k, v, scheme, queries, keys

    def plain(q, k, v, scheme, queries, keys):
        return kernels.plain(*_turned(q, k, scheme, queries, keys, settings), v)

    def line(q, k, v, scheme, queries, keys):
        assert kernels.line is not None
        return kernels.line(*_turned(q, k, scheme, queries, keys, settings), v, scheme.slopes)

    def otherwise(q, k, v, scheme, queries, keys):
        return _blockwise(q, k, v, scheme, queries, keys, settings)

    runs = one_run(queries, keys) if _by_slots(settings) else jnp.bool_(True)
    flat = (scheme.slopes == 0).all()
    if kernels.line is None or not settings.causal:
        return jax.lax.cond(runs & flat, plain, otherwise, *operands)
    index = jnp.where(runs, jnp.where(flat, 0, 1), 2)
    return jax.lax.switch(index, (plain, line, otherwise), *operands)


def one_run(queries: Tokens, keys: Tokens) -> Array:
    """Returns whether queries and keys of every sequence stand at the same positions, counted by ones."""
    same = (queries.positions == keys.positions).all()
    return same & (keys.positions[:, 1:] - keys.positions[:, :-1] == 1).all()


def _turned(q, k, scheme: Scheme, queries: Tokens, keys: Tokens, settings: Settings) -> tuple[Array, Array]:
    """Returns queries turned and scaled, and keys turned; worked out in float32 and rounded once."""
    factor = jnp.broadcast_to(settings.scale * scheme.logit_scale, q.shape[:1])[:, None, None, None]
    turned = rotation.rotate(q.astype(jnp.float32) * factor, *scheme.cos_sin(queries.positions), layout=scheme.layout)
    return turned.astype(q.dtype), scheme.rotate(k, keys.positions)
