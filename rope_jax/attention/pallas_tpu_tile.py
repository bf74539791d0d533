"""What the TPU kernels are made of: the call as integers and blocks, and one tile's bias, mask and products.

One grid step meets a tile of queries with a tile of keys. What is needed to treat it cheaply comes as a few integers a
tile: whether anything is seen (if not, nothing is computed), whether all is seen and the strip is constant (a *plain*
tile needs no mask and no strip), and where the offsets begin. Any other tile reads its bias as diagonals of the strip,
or, where positions jump within a tile, entry by entry.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from rope_jax.attention.call import Settings

LANES = 128
HIDDEN = -2e30  # so far below NOTHING that its exponential is zero even in a row that has seen nothing yet
# A head's numbers lie in one row: each of these three repeated over 128 lanes, then the strip.
SLOPE, SINK, SCALE, STRIP = 0, LANES, 2 * LANES, 3 * LANES
_VMEM = 64 * 2**20


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
        # Both count from the row that is nearest to the columns: where a bias is small, and matters most, both are.
        anchor = jnp.where(self.at_left, self._tile.own.first, self._tile.own.last)
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
    return settings.soft_cap * squashed, (1 - squashed) * (1 + squashed)  # near 1 a square loses what is left


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
