"""Attention on arrays whose types say how they are sharded (meshes with Explicit axes): each device its own shard.

Sequences and heads are independent of each other, so nothing is sent; a head's slope, strip and sink follow it. A
sequence that is itself sharded needs `ring.ring_attention`.
"""

import dataclasses
from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Float32

from rope_jax.attention.call import Settings, Tokens
from rope_jax.scheme import Scheme


def by_shard(
    attend,
    q: Float[Array, "batch queries heads dim"],
    k: Float[Array, "batch keys kv_heads dim"],
    v: Float[Array, "batch keys kv_heads v_dim"],
    scheme: Scheme,
    sinks: Float[Array, " heads"] | None,
    queries: Tokens,
    keys: Tokens,
    settings: Settings,
) -> tuple[Float[Array, "batch queries heads v_dim"], Float32[Array, "batch queries heads"]]:
    """Returns `attend` of the other arguments, shard by shard where their types are sharded.

    Batch and heads are sharded as those of `q`; keys and values alike, or with all key heads on every device.
    Positions, segments and what belongs to the heads are brought to the same sharding.

    Raises:
      NotImplementedError: if tokens or dimensions are sharded, or a device's heads do not group over the key heads.
      ValueError: if queries, keys and values are sharded differently.
    """
    of_scheme = {field.name: getattr(scheme, field.name) for field in dataclasses.fields(scheme)}
    of_scheme = {name: x for name, x in of_scheme.items() if not isinstance(x, str)}  # the static fields are names
    arrays = {"q": q, "k": k, "v": v, "sinks": sinks, **of_scheme}
    arrays |= {"q_positions": queries.positions, "q_segments": queries.segments}
    arrays |= {"kv_positions": keys.positions, "kv_segments": keys.segments}
    arrays = {name: x for name, x in arrays.items() if x is not None}
    mesh = next((jax.typeof(x).sharding.mesh for x in arrays.values() if any(_spec(x))), None)
    if mesh is None:
        return attend(q, k, v, scheme, sinks, queries, keys, settings)

    batch, heads = _batch_and_heads(q, k, v)
    by_row = P(batch) if scheme.slopes.ndim == 2 else P()
    specs = {name: by_row if name in of_scheme else P(batch) for name in arrays}
    specs |= {name: P(*_spec(arrays[name])) for name in "qkv"}
    specs |= {"slopes": P(*by_row, heads), "offset_bias": P(*by_row, heads)}
    if sinks is not None:
        specs["sinks"] = P(heads)
    arrays = {name: jax.sharding.reshard(x, NamedSharding(mesh, specs[name])) for name, x in arrays.items()}
    narrow = {name for name in "kv" if _spec(arrays[name])[2] != heads}

    def of_shard(local: dict[str, Array]) -> tuple[Array, Array]:
        chosen = {name: _own_heads(local[name], q.shape[2], local["q"].shape[2], heads) for name in narrow}
        local = local | chosen
        return attend(
            *(local[name] for name in "qkv"),
            _with_arrays(scheme, {name: local[name] for name in of_scheme}),
            local.get("sinks"),
            Tokens(local["q_positions"], local.get("q_segments")),
            Tokens(local["kv_positions"], local.get("kv_segments")),
            settings,
        )

    out_specs = P(batch, None, heads, None), P(batch, None, heads)
    return jax.shard_map(
        of_shard, mesh=mesh, in_specs=(specs,), out_specs=out_specs, axis_names=set(mesh.explicit_axes)
    )(arrays)


def _with_arrays(scheme: Scheme, arrays: dict[str, Any]) -> Scheme:
    return dataclasses.replace(scheme, **arrays)


def _spec(x: Array) -> tuple:
    """Returns over which mesh axes each dimension is sharded, as far as the type says it."""
    spec = tuple(jax.typeof(x).sharding.spec)
    return spec + (None,) * (x.ndim - len(spec))


def _batch_and_heads(q: Array, k: Array, v: Array) -> tuple:
    """Returns over which mesh axes the sequences and the heads are sharded."""
    batch, _, heads, _ = _spec(q)
    for name, x in (("q", q), ("k", k), ("v", v)):
        of_batch, of_tokens, of_heads, of_dim = _spec(x)
        if of_tokens or of_dim:
            raise NotImplementedError(
                f"{name} is sharded as {P(*_spec(x))}: only the batch and the heads can be; a sharded sequence needs "
                "rope_jax.attention.ring.ring_attention, inside jax.shard_map"
            )
        if of_batch != batch or of_heads not in (heads, None):
            raise ValueError(f"q is sharded as {P(*_spec(q))}, {name} as {P(*_spec(x))}: reshard one like the other")
    return batch, heads


def _own_heads(x: Array, all_heads: int, own_heads: int, axes) -> Array:
    """Returns the key heads of this device's query heads, from all of them."""
    groups = all_heads // x.shape[2]
    if own_heads % groups and groups % own_heads:
        raise NotImplementedError(f"{own_heads} query heads on a device do not group over key heads of {groups} each")
    first = jax.lax.axis_index(axes) * own_heads // groups
    return jax.lax.dynamic_slice_in_dim(x, first, max(own_heads // groups, 1), axis=2)
