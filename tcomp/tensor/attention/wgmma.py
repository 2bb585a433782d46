"""Attention on the tensor cores of sm_90a by products of warp groups: a tile of query rows a block.

The last four warps of a block are the producer: one thread of them asks for the queries, and for keys and
values tile by tile as their stage is free, from the last tile of keys to the first. The others are consumers,
each group of 64 rows:

    scores = queries x keys of the last tile, of which some may be beyond the end; weights of these
    for each tile before:
      when the sums are there, multiply them by exp(old highest - new highest)
      begin scores = queries x its keys, then sums += weights x values of the tile behind
      when the scores are there: weights of the tile, while the sums are on their way
    the same for the sums, and those of weights x values of the first tile
    output = sums / totals, with the epilogue

Weights are left operands in the registers in which they were computed. With turns, a group begins its
products when the one before it has begun its own, so that one computes weights while another multiplies.
Source: Shah et al., "FlashAttention-3", 2024.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tcomp.target.target import Gpu
from tcomp.tensor.attention.launches import AttentionLaunches, BlockShare, BlockShares
from tcomp.tensor.attention.online_softmax import DTYPE, OnlineSoftmax, WarpRows
from tcomp.tensor.attention.wgmma_operands import TiledAttentionOperands, TiledRows
from tcomp.tensor.attention.wgmma_plan import ALONG, LINE, WgmmaAttentionPlan
from tcomp.tensor.gpu.threads import dynamic_shared, synchronize
from tcomp.tensor.gpu.warps import WARP, from_first_lane
from tcomp.tensor.loops import (
    Buffer,
    Expression,
    Statement,
    call,
    constant,
    local,
    loop,
    sequence,
)
from tcomp.tensor.template import Scheduled
from tcomp.tensor.tensor_cores.copy_engine import address_of_map, map_variable, with_map
from tcomp.tensor.tensor_cores.wgmma_plan import (
    BARRIER_BYTES,
    DEPTH_BYTES,
    GROUP_THREADS,
    INSTRUCTION_BYTES,
    INSTRUCTION_ROWS,
)
from tcomp.tensor.tensor_cores.wgmma_stages import (
    BARRIER,
    Pipe,
    by_roles,
    matrix,
    matrix_step,
)
from tcomp.tvm_api import tirx

_FIRST_TURN = 1
"""The number of the first barrier of the groups' turns; 0 is that of the whole block."""


@dataclass(frozen=True)
class _Tiles:
    """One operand, fetched `rows` at a time: `lines` pieces of 64 elements of all of them."""

    source: TiledRows
    map: Any
    rows: int
    lines: int

    @property
    def line_bytes(self) -> int:
        """Of a piece."""
        return self.rows * DEPTH_BYTES

    def copies(self, place: Expression, full: Expression, batch: Expression, row: Expression) -> Statement:
        """Ask for the tile from `row` on; all of it arrives at the barrier `full`."""

        def one(number: int) -> Statement:
            at = self.source.at(batch, row, number * LINE)
            to = place + number * self.line_bytes
            return call("tcomp_copy_tile", to, address_of_map(self.map), full, *at)

        expect = call("tcomp_barrier_expect", full, constant(self.lines * self.line_bytes))
        return sequence([expect, *(one(number) for number in range(self.lines))])

    def along_depth(self, k: int) -> Expression:
        """From a matrix whose depth lies along memory to its `k`-th 32 bytes of that."""
        line, part = divmod(k * INSTRUCTION_BYTES, DEPTH_BYTES)
        return matrix_step(line * self.line_bytes + part)

    def along_rows(self, k: int) -> Expression:
        """From a matrix whose depth are the rows of the tile to its `k`-th 16 of these."""
        return matrix_step(k * ALONG * DEPTH_BYTES)


class WgmmaAttention:
    """The launches of one kernel."""

    def __init__(self, operands: TiledAttentionOperands, plan: WgmmaAttentionPlan, gpu: Gpu) -> None:
        found = operands.tiled()
        assert found is not None
        self.operands, self.plan = operands, plan
        self.launches = AttentionLaunches(operands, plan, gpu)
        self.before, (query, key, value) = found
        self.queries, self.keys, self.values = (
            _Tiles(source, map_variable(name), rows, lines)
            for source, name, rows, lines in (
                (query, "query_map", plan.block_rows, plan.depth_lines),
                (key, "key_map", plan.tile_n, plan.depth_lines),
                (value, "value_map", plan.tile_n, plan.width_lines),
            )
        )

    def scheduled(self) -> Scheduled:
        def with_maps(own: Statement) -> Statement:
            for tiles in (self.values, self.keys, self.queries):
                map_ = tiles.source.tiles(self.plan.shape.dtype, tiles.rows)
                own = with_map(tiles.map, tiles.source.buffer, map_, own)
            return own

        return self.launches.scheduled(
            self.before, lambda shares, thread: _Block(self, shares, thread).statement(), with_maps
        )


class _Block:
    """What one thread of one block does."""

    def __init__(self, nest: WgmmaAttention, shares: BlockShares, thread: Expression) -> None:
        self.nest, self.plan, self.shares, self.thread = nest, nest.plan, shares, thread
        plan = self.plan
        self.allocate, self.memory = dynamic_shared((plan.shared_bytes,), "uint8", "tiles")
        self.begin = tirx.Var("begin", "int32")
        barriers, tiles = self.begin, self.begin + BARRIER_BYTES
        self.queries = Pipe(1, barriers, tiles, plan.query_bytes)
        barriers, tiles = barriers + 2 * BARRIER, tiles + plan.query_bytes
        self.keys = Pipe(plan.stages, barriers, tiles, plan.key_bytes)
        barriers, tiles = barriers + 2 * plan.stages * BARRIER, tiles + plan.stages * plan.key_bytes
        self.values = Pipe(plan.stages, barriers, tiles, plan.value_bytes)
        # In a buffer, as TVM would put what a variable is bound to in the place of each use.
        self.allocate_group, self._group = local((1,), "int32", "warp_group")
        self.lane = tirx.floormod(thread, WARP)

    @property
    def group(self) -> Expression:
        """Of this thread in the block."""
        return self._group[0]

    def statement(self) -> Statement:
        plan = self.plan
        address = tirx.call_pure_extern("int32", "tcomp_shared_begin", tirx.address_of(self.memory[0]))
        # Taken from a warp's first thread, so that what depends on it is known to be the same for the warp.
        own_group = from_first_lane(tirx.floordiv(self.thread, GROUP_THREADS))
        readers = plan.consumers * GROUP_THREADS // WARP
        pipes = self.queries, self.keys, self.values
        initialise = [one for pipe in pipes for one in pipe.initialise(readers)]
        consume, produce, known = self._roles()
        is_producer = tirx.floormod(self.thread, GROUP_THREADS) < 1
        return sequence(
            [
                self.allocate,
                *known,
                tirx.Bind(self.begin, address),
                self.allocate_group,
                tirx.BufferStore(self._group, own_group, [0]),
                tirx.IfThenElse(
                    self.thread < 1, sequence([*initialise, call("tcomp_barriers_are_ready")]), None
                ),
                synchronize(),
                by_roles(
                    self.group < plan.consumers,
                    consume,
                    [tirx.IfThenElse(is_producer, produce, None)],
                    plan.shared_registers,
                ),
            ]
        )

    def _roles(self) -> tuple[list[Statement], Statement, list[Statement]]:
        """What consumers and the producer do, and what is bound before."""
        if not self.plan.persistent:
            only = _Tile(self, self.shares.at(constant(0)), constant(0))
            return [*only.begin_turns(), *only.consume()], only.produce(), only.share.known

        def tile(turn: Expression) -> _Tile:
            return _Tile(self, self.shares.at(turn), turn)

        consume = loop(self.shares.count, lambda turn: sequence(tile(turn).consume()), "tile")
        produce = loop(self.shares.count, lambda turn: tile(turn).produce(), "tile")
        return [*tile(constant(0)).begin_turns(), consume], produce, []


class _Tile:
    """What one thread does for one tile of queries, the block's number `turn`."""

    def __init__(self, block: _Block, share: BlockShare, turn: Expression) -> None:
        self.block, self.nest, self.plan, self.share, self.turn = block, block.nest, block.plan, share, turn
        self.steps, self.lane, self.group = share.steps, block.lane, block.group
        """Steps are the tiles of keys."""
        plan, rows = self.plan, share.rows
        self.queries, self.keys, self.values = block.queries, block.keys, block.values
        if plan.persistent:
            self.queries, steps = self.queries.behind(turn), turn * self.steps
            self.keys, self.values = self.keys.behind(steps), self.values.behind(steps)
        warp = tirx.floormod(tirx.floordiv(block.thread, WARP), GROUP_THREADS // WARP)
        first = rows + self.group * INSTRUCTION_ROWS + warp * (INSTRUCTION_ROWS // 4)
        own = WarpRows(share.batch, first, self.lane)
        self.softmax = OnlineSoftmax(self.nest.operands, plan.shape, own, 1, plan.tile_n, plan.columns)
        self.allocate_changes, self.changes = local((2,), DTYPE, "changes")
        heads = self.nest.operands.heads
        self.lowest, _ = heads.bounds(rows + self.group * INSTRUCTION_ROWS, INSTRUCTION_ROWS)

    def first_key(self, step: Expression) -> Expression:
        """Of the tile of a step."""
        return (self.share.begin + (self.steps - 1 - step)) * self.plan.tile_n

    @property
    def _last(self) -> Expression:
        """The last step."""
        return constant(self.steps - 1) if isinstance(self.steps, int) else self.steps - 1

    def _each_further(self, body: Callable[[Expression], Statement]) -> list[Statement]:
        """`body(step)` for each step but the first."""
        return [loop(self.steps - 1, lambda i: body(i + 1), "step")] if self._has_further else []

    @property
    def _has_further(self) -> bool:
        """Whether there may be more steps than one."""
        return self.plan.parts.share > 1

    def produce(self) -> Statement:
        share = self.share

        def fetch(pipe: Pipe, tiles: _Tiles, step: Expression) -> list[Statement]:
            to = (pipe.place(step), pipe.full(step), share.batch, self.first_key(step))
            return [pipe.wait_for_room(step), tiles.copies(*to)]

        def keys(step: Expression) -> list[Statement]:
            return fetch(self.keys, self.nest.keys, step)

        def values(step: Expression) -> list[Statement]:
            return fetch(self.values, self.nest.values, step)

        zero = constant(0)
        queries = self.queries.place(zero), self.queries.full(zero), share.batch, share.rows
        fetches = sequence(
            [
                *([self.queries.wait_for_room(zero)] if self.plan.persistent else []),
                self.nest.queries.copies(*queries),
                *keys(constant(0)),
                *self._each_further(lambda step: sequence([*keys(step), *values(step - 1)])),
                *values(self._last),
            ]
        )
        return self._where_steps_are(fetches)

    def consume(self) -> list[Statement]:
        return [
            self.allocate_changes,
            *self.softmax.allocations,
            *self.softmax.begin(),
            self._where_steps_are(self._sum_up()),
            *self.nest.launches.left(self.softmax, self.share.part),
        ]

    def _where_steps_are(self, statement: Statement) -> Statement:
        """Parts of the keys that causal queries see may have none."""
        may_be_none = self.plan.split > 1 and self.share.limit.causal
        return tirx.IfThenElse(self.steps > 0, statement, None) if may_be_none else statement

    def _sum_up(self) -> Statement:
        softmax, first, last = self.softmax, constant(0), self._last
        return sequence(
            [
                self.queries.wait_for(first),
                self.keys.wait_for(first),
                *self._multiply_keys(first),
                *self._end_products(0, softmax.scores),
                self.keys.give_back(first, self.lane),
                *self._weigh(first, softmax.hide(self.first_key(first), self.lowest)),
                *self._each_further(self._step),
                *self._given_back(self.queries, first),
                self.values.wait_for(last),
                *self._settle(None),
                *(self._given_back(self.values, last - 1) if self._has_further else []),
                *self._multiply_values(last),
                *self._end_products(0, softmax.sums),
                *self._given_back(self.values, last),
            ]
        )

    def _given_back(self, pipe: Pipe, step: Expression) -> list[Statement]:
        """What a further tile of queries has use for."""
        return [pipe.give_back(step, self.lane)] if self.plan.persistent else []

    def _step(self, step: Expression) -> Statement:
        softmax, turns = self.softmax, self.plan.takes_turns
        # But for a limit, all queries see all keys of tiles before the last.
        hidden = softmax.hide(self.first_key(step), self.lowest) if self.share.limit.causal else []
        give_back = tirx.IfThenElse(step > 1, self.values.give_back(step - 2, self.lane), None)
        return sequence(
            [
                self.keys.wait_for(step),
                *self._settle(give_back),
                *([self._wait_for_turn()] if turns else []),
                *self._multiply_keys(step),
                self.values.wait_for(step - 1),
                *self._multiply_values(step - 1),
                *([self._end_turn(step)] if turns else []),
                *self._end_products(1, softmax.scores),
                self.keys.give_back(step, self.lane),
                *self._weigh(step, hidden),
            ]
        )

    def _settle(self, when_done: Statement | None) -> list[Statement]:
        """When the sums are there, fit them to the newest weights, and make these left operands.

        It must follow a wait at a barrier, of which ptxas moves nothing to the other side: else it would wait
        for the sums before it computes the weights.
        """
        softmax = self.softmax
        return [
            *self._end_products(0, softmax.sums),
            *([] if when_done is None else [when_done]),
            softmax.round(),
            *(softmax.rescale(constant(0), constant(half), self.changes[half]) for half in range(2)),
        ]

    def _weigh(self, step: Expression, hidden: list[Statement]) -> list[Statement]:
        """Scores to weights, of which some are `hidden`."""
        softmax = self.softmax

        def keep(i: Expression, half: Expression, factor: Expression) -> Statement:
            return tirx.BufferStore(self.changes, factor, [half])

        return [*softmax.scale(self.first_key(step)), *hidden, softmax.weigh(keep)]

    # Products

    def _begin_products(self, *used: Buffer) -> list[Statement]:
        """Registers that products are going to use are as they were left."""
        return [*map(_keep, used), call("tcomp_products_begin")]

    def _end_products(self, pending: int, result: Buffer) -> list[Statement]:
        """Wait until only so many groups of products may be under way, and `result` is there."""
        return [call(f"tcomp_products_wait<{pending}>"), _keep(result)]

    def _multiply_keys(self, step: Expression) -> list[Statement]:
        """scores = queries x keys."""
        plan, queries, keys = self.plan, self.nest.queries, self.nest.keys
        name = f"tcomp_product_{plan.shape.dtype}_{plan.tile_n}<0, 0>"
        own = self.queries.place(constant(0)) + self.group * (INSTRUCTION_ROWS * DEPTH_BYTES)
        left, right = tirx.Var("query_matrix", "uint64"), tirx.Var("key_matrix", "uint64")
        scores = tirx.address_of(self.softmax.scores[0, 0, 0])

        def one(k: int) -> Statement:
            accumulate = constant(int(k > 0))
            return call(name, scores, left + queries.along_depth(k), right + keys.along_depth(k), accumulate)

        return [
            *self._begin_products(self.softmax.scores),
            tirx.Bind(left, matrix(own, INSTRUCTION_BYTES // 2)),
            tirx.Bind(right, matrix(self.keys.place(step), INSTRUCTION_BYTES // 2)),
            *map(one, range(plan.depth_steps)),
            call("tcomp_products_commit"),
        ]

    def _multiply_values(self, step: Expression) -> list[Statement]:
        """sums += weights x values."""
        plan, values = self.plan, self.nest.values
        name = f"tcomp_product_of_{plan.shape.dtype}_{plan.columns}<1>"
        right, sums = tirx.Var("value_matrix", "uint64"), tirx.address_of(self.softmax.sums[0, 0, 0])

        def one(t: int) -> Statement:
            weights = tirx.address_of(self.softmax.weights[0, t, 0])
            return call(name, sums, weights, right + values.along_rows(t), constant(1))

        return [
            *self._begin_products(self.softmax.sums, self.softmax.weights),
            tirx.Bind(right, matrix(self.values.place(step), values.line_bytes)),
            *map(one, range(plan.tile_n // ALONG)),
            call("tcomp_products_commit"),
        ]

    # Turns

    def _turn_of(self, group: Expression) -> tuple[Expression, Expression]:
        """The barrier of a group, and the threads that it is for: its own, and those of the one before."""
        return group + _FIRST_TURN, constant(2 * GROUP_THREADS)

    def begin_turns(self) -> list[Statement]:
        if not (self.plan.takes_turns and self._has_further):
            return []
        arrive = call("tcomp_turn_end", *self._turn_of(constant(0)))
        is_awaited = tirx.all(self.group == self.plan.consumers - 1, constant(1) < self.steps)
        return [tirx.IfThenElse(is_awaited, arrive, None)]

    def _wait_for_turn(self) -> Statement:
        return call("tcomp_turn_wait", *self._turn_of(self.group))

    def _end_turn(self, step: Expression) -> Statement:
        count = self.plan.consumers
        following = tirx.floormod(self.group + 1, count)
        arrive = call("tcomp_turn_end", *self._turn_of(following))
        # The first group waits for no turn behind the last step.
        awaited = tirx.any(self.group < count - 1, step < self._last, self.turn < self.block.shares.count - 1)
        return tirx.IfThenElse(awaited, arrive, None)


def _keep(buffer: Buffer) -> Statement:
    extents = [int(extent) for extent in buffer.shape]
    count = extents[0] * extents[1] * extents[2]
    return call(f"tcomp_keep<{count}>", tirx.address_of(buffer[0, 0, 0]))
