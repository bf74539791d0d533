"""Attention as a TPU kernel: rotation, biases and masks are worked out in the tile; memory grows with the tokens.

One grid step meets a tile of queries with a tile of keys. What is needed to treat it cheaply comes as a few integers a
tile: whether anything is seen (if not, nothing is computed), whether all is seen and the strip is constant (a *plain*
tile needs no mask and no strip), and where the offsets begin. Any other tile reads its bias as diagonals of the strip,
or, where positions jump within a tile, entry by entry.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32

from rope_jax.attention.call import NOTHING, Settings, Tokens, without_padding
from rope_jax.attention.tiles import Tiles, cut
from rope_jax.scheme import Scheme

LANES = 128
HIDDEN = -2e30  # so far below NOTHING that its exponential is zero even in a row that has seen nothing yet
# A head's numbers lie in one row: each of these three repeated over 128 lanes, then the strip.
SLOPE, SINK, SCALE, STRIP = 0, LANES, 2 * LANES, 3 * LANES
_VMEM = 64 * 2**20
_DTYPES = (jnp.float32, jnp.bfloat16)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The static side of a kernel; hashable.

    Attributes:
      settings: of the call.
      queries: queries of a tile.
      keys: keys of a tile.
      groups: query heads a key head.
      pairs: rotated pairs of a head.
      reach: largest offset with a strip entry of its own.
      interpret: whether to run without a TPU.
    """

    settings: Settings
    queries: int
    keys: int
    groups: int
    pairs: int
    reach: int
    interpret: bool

    @property
    def centre(self) -> int:
        """Where the stored strip holds offset 0: the ends repeat so far that any tile's diagonals lie inside."""
        return -(-(self.reach + self.queries + self.keys) // LANES) * LANES if self.reach else 0


class Extent(NamedTuple):
    """What is known of a tile of tokens: `Tiles` as integers, and the position of its first slot."""

    first: Array
    last: Array
    low: Array
    high: Array
    some: Array
    full: Array
    contiguous: Array
    start: Array


class Meeting(NamedTuple):
    """How a tile of queries meets a tile of keys."""

    sees: Array  # whether any query may see any key
    plain: Array  # whether every query sees every key and the strip has one value
    after: Array  # whether no key comes later than a query
    flat: Array  # whether the strip has one value
    least: Array  # smallest offset
    most: Array  # largest offset


class Operands(NamedTuple):
    """The arrays a call differentiates; heads before tokens, tokens padded to whole tiles."""

    q: Array  # [B, H, N, d]
    k: Array  # [B, K, S, d]
    v: Array  # [B, K, S, e]
    q_turn: Array  # cos, then sin: [B, N, 2 * pairs]; a placeholder without rotation
    k_turn: Array
    table: Array  # [B or 1, H, 1, STRIP + strip]


class Layout(NamedTuple):
    """The integers of a call."""

    q_marks: Array  # [B, 2, N]: position and segment of every slot
    k_marks: Array  # [B, 2, S]
    q_info: Array  # [B * tiles * fields of Extent]
    k_info: Array
    q_span: Array  # [B * tiles * 2 + 1]: first and last tile of keys that a tile of queries sees; then `q_steps`
    k_span: Array  # the reverse
    aligned: Array  # [B]: whether what is seen has the offset of its slots, also where positions jump
    q_steps: Array  # []: longest of `q_span`
    k_steps: Array


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
    """Returns outputs and log-sum-exps; arguments as in `rope_jax.attention.attention`.

    Raises:
      NotImplementedError: without a TPU, or for what `attend_with` does not take.
    """
    if jax.default_backend() != "tpu":
        raise NotImplementedError(f"the TPU kernel needs a TPU, the default backend is {jax.default_backend()}")
    return attend_with(q, k, v, scheme, sinks, queries, keys, settings)


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
    tile: tuple[int, int] = (1024, 512),
    interpret: bool = False,
) -> tuple[Float[Array, "batch queries heads v_dim"], Float32[Array, "batch queries heads"]]:
    """Returns what `attend` does, whatever the default backend: for tests, and to compile ahead of time.

    Args:
      q: queries; the rest as in `attend`.
      tile: queries and keys of a tile, multiples of 128; cut to what the call holds.
      interpret: whether to run on any platform, slowly.

    Raises:
      NotImplementedError: for dtypes other than float32 and bfloat16.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dtype not in _DTYPES:
            raise NotImplementedError(f"the TPU kernel takes float32 and bfloat16, {name} is {x.dtype}")
    if 0 in (*q.shape, *k.shape, *v.shape):
        raise NotImplementedError("the TPU kernel takes no empty arrays")
    shared = jnp.promote_types(q.dtype, k.dtype)
    pairs = scheme.rotary_dim // 2
    size_q, size_k = (min(size, _whole(x.shape[1], LANES)) for size, x in zip(tile, (q, k), strict=True))
    plan = Plan(settings, size_q, size_k, q.shape[2] // k.shape[2], pairs, scheme.max_offset, interpret)
    q, k, v = without_padding(q, queries), without_padding(k, keys), without_padding(v, keys)
    if scheme.layout == "interleaved":
        q, k = _halves(q, pairs), _halves(k, pairs)
    operands = Operands(
        q=_heads_first(q.astype(shared), size_q),
        k=_heads_first(k.astype(shared), size_k),
        v=_heads_first(v, size_k),
        q_turn=_turns(scheme, queries, size_q),
        k_turn=_turns(scheme, keys, size_k),
        table=_table(scheme, sinks, plan),
    )
    out, lse = _attention(plan, operands, _layout(queries, keys, plan))
    count = q.shape[1]
    return jnp.swapaxes(out[:, :, :count], 1, 2), jnp.swapaxes(lse[:, :, 0, :count], 1, 2)


def _whole(count: int, size: int) -> int:
    return -(-count // size) * size


def _halves(x: Array, pairs: int) -> Array:
    """Reorders interleaved pairs into halves; done to queries and keys alike, it leaves their products alone."""
    turning = x[..., : 2 * pairs].reshape(*x.shape[:-1], pairs, 2)
    turning = jnp.swapaxes(turning, -1, -2).reshape(*x.shape[:-1], 2 * pairs)
    return jnp.concatenate([turning, x[..., 2 * pairs :]], axis=-1)


def _heads_first(x: Array, size: int) -> Array:
    return jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, -x.shape[1] % size), (0, 0)))


def _turns(scheme: Scheme, tokens: Tokens, size: int) -> Array:
    if scheme.rotary_dim == 0:
        return jnp.zeros((1, 8, LANES), jnp.float32)
    turn = jnp.concatenate(scheme.cos_sin(tokens.positions), axis=-1)
    return jnp.pad(turn, ((0, 0), (0, -turn.shape[1] % size), (0, 0)))


def _table(scheme: Scheme, sinks: Array | None, plan: Plan) -> Array:
    """Returns each head's numbers in one row, the strip from the largest offset to the smallest."""
    heads = scheme.num_heads
    slopes = scheme.slopes.reshape(-1, heads)
    scale = plan.settings.scale * jnp.broadcast_to(scheme.logit_scale.reshape(-1, 1), slopes.shape)
    sink = jnp.full((heads,), NOTHING) if sinks is None else jnp.maximum(sinks, NOTHING)
    sink = jnp.broadcast_to(sink[None], slopes.shape)
    strip = jnp.flip(scheme.offset_bias.reshape(-1, heads, 2 * plan.reach + 1), axis=-1)
    before, behind = plan.centre - plan.reach, plan.centre + LANES - plan.reach - 1
    strip = jnp.pad(strip, ((0, 0), (0, 0), (before, behind)), mode="edge")
    numbers = [jnp.broadcast_to(x.astype(jnp.float32)[..., None], (*x.shape, LANES)) for x in (slopes, sink, scale)]
    return jnp.concatenate([*numbers, strip], axis=-1)[:, :, None, :]


def _layout(queries: Tokens, keys: Tokens, plan: Plan) -> Layout:
    q_tiles = jax.vmap(lambda tokens: cut(tokens, plan.queries))(queries)
    k_tiles = jax.vmap(lambda tokens: cut(tokens, plan.keys))(keys)
    q_extent, k_extent = _extent(q_tiles), _extent(k_tiles)
    sees = meet(
        Extent(*(x[:, :, None] for x in q_extent)),
        Extent(*(x[:, None, :] for x in k_extent)),
        plan.settings,
        plan.reach,
    ).sees
    q_span, q_steps = _span(sees)
    k_span, k_steps = _span(jnp.swapaxes(sees, 1, 2))
    return Layout(
        q_marks=_marks(q_tiles, -1),
        k_marks=_marks(k_tiles, -2),
        q_info=jnp.stack(q_extent, axis=-1).reshape(-1),
        k_info=jnp.stack(k_extent, axis=-1).reshape(-1),
        q_span=q_span,
        k_span=k_span,
        aligned=_aligned(queries, keys).astype(jnp.int32),
        q_steps=q_steps,
        k_steps=k_steps,
    )


def _extent(tiles: Tiles) -> Extent:
    flags = (tiles.first, tiles.last, tiles.low, tiles.high, tiles.some, tiles.full, tiles.contiguous)
    return Extent(*(x.astype(jnp.int32) for x in (*flags, tiles.positions[:, :, 0])))


def _marks(tiles: Tiles, hidden: int) -> Array:
    """Returns positions and segments, negative ones as a number that the other side does not use."""
    segments = jnp.where(tiles.segments < 0, hidden, tiles.segments)
    return jnp.stack([x.reshape(x.shape[0], -1) for x in (tiles.positions, segments)], axis=1)


def _span(sees: Array) -> tuple[Array, Array]:
    count = sees.shape[-1]
    some = sees.any(axis=-1)
    first = jnp.where(some, jnp.argmax(sees, axis=-1), 0)
    last = jnp.where(some, count - 1 - jnp.argmax(jnp.flip(sees, axis=-1), axis=-1), -1)
    steps = jnp.maximum(jnp.max(last - first) + 1, 1).astype(jnp.int32)
    spans = jnp.stack([first, last], axis=-1).reshape(-1).astype(jnp.int32)
    return jnp.append(spans, steps), steps


def _aligned(queries: Tokens, keys: Tokens) -> Array:
    """Returns whether queries and keys are the same packed documents, each in one piece and counted by ones.

    Then a query and a key that see each other are as far apart as their slots, wherever a document begins.
    """
    batch = queries.positions.shape[0]
    if queries.positions.shape != keys.positions.shape:
        return jnp.zeros((batch,), bool)
    p, s = (
        (tokens.positions, jnp.zeros_like(tokens.positions) if tokens.segments is None else tokens.segments)
        for tokens in (queries, keys)
    )
    same = ((p[0] == s[0]) & (p[1] == s[1])).all(axis=1)
    positions, segments = p
    steps = positions[:, 1:] - positions[:, :-1] == 1
    goes_on = (segments[:, 1:] == segments[:, :-1]) & steps
    begins = segments[:, 1:] > jax.lax.cummax(segments, axis=1)[:, :-1]
    return same & (goes_on | begins | (segments[:, 1:] < 0)).all(axis=1)


def meet(queries: Extent, keys: Extent, settings: Settings, reach: int) -> Meeting:
    """Returns how tiles meet, from what is known of each."""
    least, most = queries.first - keys.last, queries.last - keys.first
    sees = (queries.some != 0) & (keys.some != 0)
    sees &= (queries.low <= keys.high) & (keys.low <= queries.high)
    plain = (queries.full != 0) & (keys.full != 0) & (queries.low == keys.high)
    plain &= (queries.low == queries.high) & (keys.low == keys.high)
    if settings.causal:
        sees &= most >= 0
        plain &= least >= 0
    if settings.window is not None:
        sees &= (least < settings.window) & (most > -settings.window)
        plain &= (most < settings.window) & (least > -settings.window)
    flat = (least >= reach) | (most <= -reach)
    return Meeting(sees=sees, plain=plain & flat, after=least >= 0, flat=flat, least=least, most=most)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(plan: Plan, operands: Operands, layout: Layout) -> tuple[Array, Array]:
    return _forward(plan, operands, layout)


def _attention_forward(plan: Plan, operands: Operands, layout: Layout):
    out, lse = _forward(plan, operands, layout)
    return (out, lse), (operands, layout, out, lse)


def _attention_backward(plan: Plan, residuals, cotangents):
    # The backward kernels build on this module's pieces.
    from rope_jax.attention.pallas_tpu_backward import backward

    return backward(plan, *residuals, *cotangents), None


_attention.defvjp(_attention_forward, _attention_backward)


def _forward(plan: Plan, operands: Operands, layout: Layout) -> tuple[Array, Array]:
    q, v = operands.q, operands.v
    batch, heads, count, dim = q.shape
    tiles = count // plan.queries
    specs = Specs(plan, operands, by_keys=False)
    grid_spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=4,
        grid=(batch, tiles, heads, layout.q_steps),
        in_specs=[
            specs.own(dim),
            specs.other(dim),
            specs.other(v.shape[-1]),
            specs.own_turn(),
            specs.other_turn(),
            specs.own_marks(),
            specs.other_marks(),
            specs.table(),
        ],
        out_specs=[specs.own(v.shape[-1]), specs.own_row()],
        scratch_shapes=[
            pltpu.VMEM((plan.queries, dim), q.dtype),
            pltpu.VMEM((plan.queries, 1), jnp.int32),
            pltpu.VMEM((plan.queries, 1), jnp.int32),
            pltpu.VMEM((plan.queries, LANES), jnp.float32),
            pltpu.VMEM((plan.queries, LANES), jnp.float32),
            pltpu.VMEM((plan.queries, v.shape[-1]), jnp.float32),
            *specs.near(),
        ],
    )
    out, lse = pl.pallas_call(
        functools.partial(_forward_kernel, plan),
        grid_spec=grid_spec,
        out_shape=[
            jax.ShapeDtypeStruct((batch, heads, count, v.shape[-1]), v.dtype),
            jax.ShapeDtypeStruct((batch, heads, 1, count), jnp.float32),
        ],
        compiler_params=parameters("parallel", "parallel", "arbitrary", "arbitrary"),
        interpret=plan.interpret,
        name="rope_jax_forward",
    )(
        *(layout.q_info, layout.k_info, layout.q_span, layout.aligned),
        *(operands.q, operands.k, operands.v, operands.q_turn, operands.k_turn),
        *(layout.q_marks, layout.k_marks, operands.table),
    )
    return out, lse


def _forward_kernel(
    plan: Plan,
    own_info, other_info, span, aligned,
    q_ref, k_ref, v_ref, q_turn, k_turn, q_marks, k_marks, table,
    out_ref, lse_ref,
    turned, q_position, q_segment, top, total, mixed, *near,
):  # fmt: skip
    step = pl.program_id(3)
    tile = Tile(plan, own_info, other_info, span, aligned, by_keys=False)
    bias = Bias(plan, tile, table, near)

    @pl.when(step == 0)
    def _():
        scaled = turn(q_ref[0, 0], q_turn, plan.pairs) * bias.number(SCALE)
        turned[...] = scaled.astype(turned.dtype)
        q_position[...] = jnp.transpose(q_marks[0, 0:1])
        q_segment[...] = jnp.transpose(q_marks[0, 1:2])
        # A sink is a logit that has been seen before any key and adds no value.
        sink = bias.number(SINK)
        top[...] = jnp.broadcast_to(sink, top.shape)
        total[...] = jnp.broadcast_to((sink > NOTHING).astype(jnp.float32), total.shape)
        mixed[...] = jnp.zeros_like(mixed)

    def accumulate(plain: bool):
        k = turn(k_ref[0, 0], k_turn, plan.pairs).astype(turned.dtype)
        own, other = (q_position[...], q_segment[...]), (k_marks[0, 0:1], k_marks[0, 1:2])
        logits, _ = capped(outer(turned[...], k), plan.settings)
        logits = logits + (bias.separated(own[0], other[0])[0] if plain else bias.written(own[0], other[0])[0])
        if not plain:
            logits = jnp.where(mask(own, other, plan.settings, by_keys=False), logits, HIDDEN)
        before = top[...]
        now = jnp.maximum(before, jnp.max(logits, axis=1, keepdims=True))
        weights = jnp.exp(logits - now[:, :1])
        kept = jnp.exp(before - now)
        top[...] = now
        total[...] = kept * total[...] + jnp.sum(weights, axis=1, keepdims=True)
        mixed[...] = kept[:, :1] * mixed[...] + product(weights.astype(v_ref.dtype), v_ref[0, 0])

    bias.write_near(lambda: (q_position[...], k_marks[0, 0:1]))
    pl.when(tile.sees & tile.meeting.plain)(lambda: accumulate(True))
    pl.when(tile.sees & ~tile.meeting.plain)(lambda: accumulate(False))

    @pl.when(tile.last_step)
    def _():
        some = total[...] > 0
        whole = jnp.where(some, total[...], 1.0)
        out_ref[0, 0] = (mixed[...] / whole[:, :1]).astype(out_ref.dtype)
        lse = jnp.where(some, top[...] + jnp.log(whole), NOTHING)
        lse_ref[0, 0] = jnp.transpose(lse[:, :1])


def parameters(*semantics: Literal["parallel", "arbitrary"]) -> pltpu.CompilerParams:
    """Returns how a kernel's grid may be run."""
    return pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=_VMEM)


class Specs:
    """Which block of each operand a grid step reads or writes.

    The grid is (batch, own tile, own head, .., step): a kernel keeps a tile of its own, of queries or of keys, and
    goes through the tiles of the other side that it meets.
    """

    def __init__(self, plan: Plan, operands: Operands, *, by_keys: bool, first_head: int = 0):
        self._plan, self._by_keys, self._first_head = plan, by_keys, first_head
        self._sizes = (plan.keys, plan.queries) if by_keys else (plan.queries, plan.keys)
        self._table = operands.table.shape

    def own(self, dim: int) -> pl.BlockSpec:
        return self._spec((1, 1, self._sizes[0], dim), lambda at: (at.batch, at.own_head, at.own, 0))

    def other(self, dim: int) -> pl.BlockSpec:
        return self._spec((1, 1, self._sizes[1], dim), lambda at: (at.batch, at.other_head, at.other, 0))

    def own_row(self) -> pl.BlockSpec:
        return self._spec((1, 1, 1, self._sizes[0]), lambda at: (at.batch, at.own_head, 0, at.own))

    def other_row(self) -> pl.BlockSpec:
        return self._spec((1, 1, 1, self._sizes[1]), lambda at: (at.batch, at.other_head, 0, at.other))

    def own_marks(self) -> pl.BlockSpec:
        return self._spec((1, 2, self._sizes[0]), lambda at: (at.batch, 0, at.own))

    def other_marks(self) -> pl.BlockSpec:
        return self._spec((1, 2, self._sizes[1]), lambda at: (at.batch, 0, at.other))

    def own_turn(self) -> pl.BlockSpec:
        if self._plan.pairs == 0:
            return self._spec((1, 8, LANES), lambda at: (0, 0, 0))
        return self._spec((1, self._sizes[0], 2 * self._plan.pairs), lambda at: (at.batch, at.own, 0))

    def other_turn(self) -> pl.BlockSpec:
        if self._plan.pairs == 0:
            return self.own_turn()
        return self._spec((1, self._sizes[1], 2 * self._plan.pairs), lambda at: (at.batch, at.other, 0))

    def table(self) -> pl.BlockSpec:
        shared = self._table[0] == 1
        return self._spec((1, 1, 1, self._table[-1]), lambda at: (0 if shared else at.batch, at.q_head, 0, 0))

    def near(self) -> list:
        return [pltpu.VMEM(self._sizes, jnp.float32)] if self._plan.reach else []

    def _spec(self, shape: tuple[int, ...], index) -> pl.BlockSpec:
        return pl.BlockSpec(shape, lambda *ids: index(self._at(*ids)))

    def _at(self, batch, own, own_head, *rest) -> "_At":
        groups = self._plan.groups
        if self._by_keys:
            group, step, own_info, _, span, aligned = rest
            q_head = other_head = own_head * groups + group
        else:
            step, own_info, _, span, aligned = rest
            own_head += self._first_head
            q_head, other_head = own_head, jax.lax.div(own_head, groups)
        pair = 2 * (batch * _tiles(own_info, aligned) + own)
        # Beyond the last tile the block stays where it is, so that nothing is fetched for a step that does nothing.
        other = jnp.maximum(jnp.minimum(span[pair] + step, span[pair + 1]), span[pair])
        return _At(batch, own, own_head, other, other_head, q_head)


class _At(NamedTuple):
    batch: Array
    own: Array
    own_head: Array
    other: Array
    other_head: Array
    q_head: Array


def _tiles(info, aligned) -> int:
    return info.shape[0] // (len(Extent._fields) * aligned.shape[0])


class Tile:
    """The meeting of the present grid step, from integers that the kernel was given."""

    def __init__(self, plan: Plan, own_info, other_info, span, aligned, *, by_keys: bool):
        batch, own, step = pl.program_id(0), pl.program_id(1), pl.program_id(4 if by_keys else 3)
        pair = 2 * (batch * _tiles(own_info, aligned) + own)
        other = span[pair] + step
        inside = other <= span[pair + 1]
        other = jnp.minimum(other, _tiles(other_info, aligned) - 1)
        self.by_keys = by_keys
        # Not `pl.num_programs`, which counts wrongly under vmap where the grid is not static.
        self.last_step = step == span[span.shape[0] - 1] - 1
        self.own = _read(own_info, batch * _tiles(own_info, aligned) + own)
        self.other = _read(other_info, batch * _tiles(other_info, aligned) + other)
        queries, keys = (self.other, self.own) if by_keys else (self.own, self.other)
        self.meeting = meet(queries, keys, plan.settings, plan.reach)
        self.sees = self.meeting.sees & inside
        sizes = (plan.keys, plan.queries) if by_keys else (plan.queries, plan.keys)
        counted = (self.own.contiguous != 0) & (self.other.contiguous != 0)
        by_slot = aligned[batch] != 0
        self.diagonal = by_slot | counted
        # How far the other tile's first slot lies behind its own tile's.
        self.shift = jnp.where(by_slot, other * sizes[1] - own * sizes[0], self.other.start - self.own.start)


def _read(info, tile) -> Extent:
    count = len(Extent._fields)
    return Extent(*(info[tile * count + field] for field in range(count)))


class Bias:
    """The bias of one tile: the line, and the strip by diagonals or entry by entry.

    Rows are the kernel's own tokens, columns the other side's. The strip is stored by `column - row`: for a tile of
    queries from the largest offset to the smallest, for a tile of keys the other way round.
    """

    def __init__(self, plan: Plan, tile: Tile, table, near):
        self._plan, self._tile, self._table = plan, tile, table
        self.near: Any = near[0] if near else None  # a scratch tile, where the strip is more than one number
        self.rows, self.columns = (plan.keys, plan.queries) if tile.by_keys else (plan.queries, plan.keys)

    def number(self, at: int) -> Array:
        """Returns one of the head's numbers, `[1, 1]`."""
        return self._table[0, 0, :, at : at + 1]

    @property
    def at_left(self) -> Array:
        """Whether a flat tile reads the strip's first entries."""
        return self._tile.meeting.after ^ self._tile.by_keys

    @property
    def _end(self) -> Array:
        return jnp.where(self.at_left, self.number(STRIP), self.number(self._table.shape[-1] - 1))

    def separated(self, row: Array, column: Array) -> tuple[Array, Array]:
        """Returns bias and distance of a plain tile, each a part of the row plus a part of the column."""
        # Counted from a position of the own tile, the rows' part is small and both are exact.
        anchor = self._tile.own.first
        sign = jnp.where(self.at_left, 1.0, -1.0)
        row, column = ((x.astype(jnp.float32) * sign) for x in (row - anchor, anchor - column))
        slope = -self.number(SLOPE)
        return (slope * row + self._end) + slope * column, row + column

    def written(self, row: Array, column: Array) -> tuple[Array, Array]:
        """Returns bias and distance of any tile, after `write_near`."""
        distance = jnp.abs(column - row).astype(jnp.float32)
        strip = self._end if self.near is None else self.near[...]
        return strip - self.number(SLOPE) * distance, distance

    def write_near(self, positions) -> None:
        """Writes the strip's part of a tile that is not plain; `positions` are read only where needed."""
        if self.near is None:
            return
        meeting = self._tile.meeting
        seen = self._tile.sees & ~meeting.plain
        pl.when(seen & meeting.flat)(lambda: self._write_end())
        pl.when(seen & ~meeting.flat & self._tile.diagonal)(lambda: self._write_diagonals())
        pl.when(seen & ~meeting.flat & ~self._tile.diagonal)(lambda: self._write_entries(*positions()))

    def window(self) -> tuple[Array, Array]:
        """Returns where, in whole lanes, the tile's diagonals begin in the table, and the rest."""
        reach, centre = self._plan.reach, self._plan.centre
        start = jnp.clip(self._tile.shift, -reach - self.columns, reach + self.rows) + (centre - self.rows)
        whole = jax.lax.div(start, LANES)
        return pl.multiple_of(STRIP + whole * LANES, LANES), start - whole * LANES

    @property
    def window_size(self) -> int:
        return self.rows + self.columns + LANES

    def _write_end(self) -> None:
        self.near[...] = jnp.broadcast_to(self._end, self.near.shape)

    def _write_diagonals(self) -> None:
        start, rest = self.window()
        strip = self._table[0, 0, :, pl.ds(start, self.window_size)]
        strip = pltpu.roll(jnp.broadcast_to(strip, (8, self.window_size)), self.window_size - rest, 1)
        rows, columns = self.rows // LANES, self.columns // LANES
        for diagonal in range(rows + columns - 1):
            block = strip[:1, diagonal * LANES : (diagonal + 2) * LANES]
            block = jnp.concatenate([block[:, LANES:], block[:, :LANES]], axis=1)
            # Row r goes r slots to the right: entry (r, c) is number c - r + 128. Each turn doubles the rows.
            for count in (1, 2, 4, 8, 16, 32, 64):
                block = jnp.concatenate([block, pltpu.roll(block, count, 1)], axis=0)
            block = block[:, :LANES]
            for row, column in diagonal_blocks(diagonal, rows, columns):
                self.near[row, column] = block

    def entries(self, row: Array, column: Array) -> Array:
        """Returns where the strip holds each entry of a tile."""
        reach = self._plan.reach
        return jnp.clip(column - row, -reach, reach) + self._plan.centre

    def chunks(self) -> tuple[Array, Array]:
        """Returns from which lanes' worth of the strip to which a tile reads."""
        meeting, reach = self._tile.meeting, self._plan.reach
        low, high = (meeting.least, meeting.most) if self._tile.by_keys else (-meeting.most, -meeting.least)
        low, high = (jnp.clip(x, -reach, reach) + self._plan.centre for x in (low, high))
        return jax.lax.div(low, LANES), jax.lax.div(high, LANES) + 1

    def _write_entries(self, row: Array, column: Array) -> None:
        self._write_end()

        def write(chunk, _):
            strip = self._table[0, 0, :, pl.ds(pl.multiple_of(STRIP + chunk * LANES, LANES), LANES)]
            strip = jnp.broadcast_to(strip, (self.rows, LANES))
            for block in range(self.columns // LANES):
                at = slice(block * LANES, (block + 1) * LANES)
                local = self.entries(row, column[:, at]) - chunk * LANES
                inside = (local >= 0) & (local < LANES)
                local = jnp.where(inside, local, 0)
                found = jnp.take_along_axis(strip, local, axis=1, mode="promise_in_bounds")
                self.near[:, at] = jnp.where(inside, found, self.near[:, at])

        jax.lax.fori_loop(*self.chunks(), write, None)


def diagonal_blocks(diagonal: int, rows: int, columns: int):
    """Yields the blocks of 128 rows and columns on one diagonal, the lower left one first."""
    for row in range(rows):
        column = diagonal + row - rows + 1
        if 0 <= column < columns:
            yield tuple(slice(at * LANES, (at + 1) * LANES) for at in (row, column))


def mask(own: tuple[Array, Array], other: tuple[Array, Array], settings: Settings, *, by_keys: bool) -> Array:
    """Returns which entries of a tile are visible, from positions and segments of rows and of columns."""
    seen = own[1] == other[1]
    offset = other[0] - own[0] if by_keys else own[0] - other[0]
    if settings.causal:
        seen &= offset >= 0
    if settings.window is not None:
        seen &= jnp.abs(offset) < settings.window
    return seen


def turn(x: Array, turns, pairs: int) -> Array:
    """Returns a tile turned to its positions, float32; `turns` holds cos and sin beside each other."""
    x = x.astype(jnp.float32)
    if pairs == 0:
        return x
    first, second, rest = x[:, :pairs], x[:, pairs : 2 * pairs], x[:, 2 * pairs :]
    cos, sin = turns[0, :, :pairs], turns[0, :, pairs:]
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate([*turned, rest] if rest.shape[1] else turned, axis=1)


def capped(logits: Array, settings: Settings) -> tuple[Array, Array | None]:
    """Returns soft-capped logits and their derivative; None where there is no cap."""
    if settings.soft_cap is None:
        return logits, None
    squashed = jnp.tanh(logits * (1 / settings.soft_cap))
    return settings.soft_cap * squashed, 1 - squashed * squashed


def outer(a: Array, b: Array) -> Array:
    """Returns `a b^T` in float32."""
    return _dot(a, b, 1)


def product(a: Array, b: Array) -> Array:
    """Returns `a b` in float32."""
    return _dot(a, b, 0)


def _dot(a: Array, b: Array, axis: int) -> Array:
    # A TPU's default would round float32 factors to bfloat16.
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    dimensions = (((1,), (axis,)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)
