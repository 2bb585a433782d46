"""Matrix products by the tensor cores of sm_90a: the launch that computes the sums.

The last four warps of a block are the producer: one thread of them asks for the tiles of both operands, a
step after the other, as soon as their stage is free. The others are consumers. Each stage has two barriers:

1. `full`: the producer announces the bytes of a step, and they arrive.
2. `empty`: each warp of the consumers arrives when the products that read the stage are done.

Blocks of a cluster have the same columns. Each copies a part of the right operand to all of them, so a stage
is empty when the consumers of all have left it, and each warp arrives in every block.

Rows that are windows of a convolution are tiles where the input's layout allows it (`window_tiles`). Where
there are none (`WgmmaPlan.gathers`) all threads of the producer copy the left operand by chunks of 16 bytes,
wait for their own, and arrive at `full`.

Consumers keep the products of one step under way while they begin those of the next, so they give back a
stage one step later. Those of the last step are waited for in the loop and behind it: with either alone ptxas
sees sums read too early where a block takes one tile, and makes each product wait for the one before.

The phases of barriers go on over all tiles of the output that a block takes, so the producer fetches the next
one's operands while consumers store sums. Consumers that take turns (`WgmmaPlan.pingpong`) have every second
tile each. `turn`, a barrier for each, says that the other has begun all products of the tile before: until
then phases of `full` could be those of two rounds earlier. Source: CUTLASS,
`sm90_gemm_tma_warpspecialized_pingpong.hpp`.

A tile in shared memory has lines of 128 bytes, in the order of the 128-byte swizzle: a row's depth where that
lies along memory, else 64 rows of one element of the depth. `tcomp_wgmma.cuh` says which sums a thread has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tcomp.target.target import Gpu
from tcomp.tensor.convolution import accumulator_dtype
from tcomp.tensor.gpu.shares import Segment
from tcomp.tensor.gpu.threads import dynamic_shared, launch, synchronize
from tcomp.tensor.gpu.totals import Destination, Totals
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
from tcomp.tensor.tensor_cores.copy_engine import in_clusters, map_variable, with_map
from tcomp.tensor.tensor_cores.fragments import Fragments
from tcomp.tensor.tensor_cores.mma_operand import MmaOperand
from tcomp.tensor.tensor_cores.mma_plan import CHUNK_BYTES
from tcomp.tensor.tensor_cores.output_tiles import OutputTiles
from tcomp.tensor.tensor_cores.wgmma_operand import GatheredRows, Side
from tcomp.tensor.tensor_cores.wgmma_plan import (
    BARRIER_BYTES,
    DEPTH_BYTES,
    GROUP_THREADS,
    INSTRUCTION_BYTES,
    INSTRUCTION_ROWS,
    PLACE_BYTES,
    WgmmaPlan,
)
from tcomp.tensor.tensor_cores.wgmma_stages import BARRIER, Pipe, by_roles
from tcomp.tensor.tensor_cores.wgmma_stores import TileStores, output_tiles
from tcomp.tvm_api import tirx


@dataclass(frozen=True)
class _Shared(Pipe):
    """Addresses in shared memory: stages of both operands, and what is behind their barriers and tiles."""

    plan: WgmmaPlan

    @staticmethod
    def of(plan: WgmmaPlan, begin: Expression) -> _Shared:
        return _Shared(plan.stages, begin, begin + BARRIER_BYTES, plan.stage_bytes, plan)

    def turn(self, group: Expression) -> Expression:
        """The barrier at which a consumer that takes turns waits for its own."""
        return self.barriers + (group + 2 * self.stages) * BARRIER

    def buffers(self, warp: Expression) -> Expression:
        """Of warp number `warp` of the consumers, for the output."""
        return self.tiles + self.stages * self.stage_bytes + warp * (self.plan.buffers * PLACE_BYTES)


@dataclass(frozen=True)
class _Tile:
    """Steps of a tile of the output: its place, the steps of its block before; the block's in the cluster."""

    rank: Expression
    turn: Expression
    """Tiles of the block before."""
    before: Expression
    segment: Segment
    batch: Expression
    row: Expression
    column: Expression


@dataclass(frozen=True)
class WgmmaNest:
    """The launch of one product."""

    plan: WgmmaPlan
    left: MmaOperand
    right: MmaOperand
    totals: Totals
    gpu: Gpu
    output: OutputTiles
    """Which a plan with buffers needs."""

    @property
    def statement(self) -> Statement:
        plan = self.plan
        left = Side(self.left, map_variable("left_map"), plan, plan.rows, plan.block_rows, 0, 1)
        begin = plan.block_rows * DEPTH_BYTES
        variable = map_variable("right_map")
        right = Side(self.right, variable, plan, plan.columns, plan.block_columns, begin, plan.cluster)
        grid = plan.blocks(self.gpu)
        output_map = map_variable("output_map")

        def block(block: Sequence[Expression], threads: Sequence[Expression]) -> Statement:
            return self._block(left, right, output_map, block[0], threads[0])

        result = launch((grid,), (plan.threads,), block)
        if plan.buffers:
            tiles = output_tiles(plan, self.output)
            result = with_map(output_map, self.output.anchored.only_output, tiles, result)
        for side in (right,) if plan.gathers else (right, left):
            result = with_map(side.map, side.operand.buffer, side.tiles, result)
        return in_clusters(plan.cluster, result)

    def _block(
        self, left: Side, right: Side, output_map: Any, block: Expression, thread: Expression
    ) -> Statement:
        plan = self.plan
        allocate, memory = dynamic_shared((plan.shared_bytes,), "uint8", "tiles")
        begin = tirx.Var("begin", "int32")
        shared = _Shared.of(plan, begin)
        address = tirx.call_pure_extern("int32", "tcomp_shared_begin", tirx.address_of(memory[0]))
        # Taken from a warp's first thread, so that what depends on it is known to be the same for the warp.
        group = tirx.Var("warp_group", "int32")
        own_group = from_first_lane(tirx.floordiv(thread, GROUP_THREADS))
        number = tirx.floormod(thread, GROUP_THREADS)
        if plan.gathers:
            produce = self._each_tile(block, lambda t: self._gather(t, shared, right, number))
        else:
            tiles = self._each_tile(block, lambda t: self._produce(t, shared, left, right))
            produce = tirx.IfThenElse(number < 1, tiles, None)
        stores = self._stores(shared, output_map, thread)
        consume = self._each_tile(
            block,
            lambda t: self._consume(t, shared, left, right, stores, group, thread),
            group if plan.pingpong else None,
        )
        ended = [] if stores is None else [stores.ended()]
        alone = plan.cluster == 1
        wait = call("tcomp_cluster_wait")
        return sequence(
            [
                allocate,
                tirx.Bind(begin, address),
                tirx.Bind(group, own_group),
                tirx.IfThenElse(thread < 1, self._initialise(shared), None),
                synchronize() if alone else wait,
                by_roles(group < plan.consumers, [consume, *ended], [produce], plan.shared_registers),
                # Others may still arrive at barriers here.
                *([] if alone else [wait]),
            ]
        )

    def _stores(self, shared: _Shared, output_map: Any, thread: Expression) -> TileStores | None:
        if not self.plan.buffers:
            return None
        begin = shared.buffers(tirx.floordiv(thread, WARP))
        return TileStores(self.plan, self.output, output_map, begin, tirx.floormod(thread, WARP))

    def _initialise(self, shared: _Shared) -> Statement:
        plan = self.plan
        warps = plan.together * GROUP_THREADS // WARP * plan.cluster
        turns = [
            call("tcomp_barrier_init", shared.turn(constant(group)), constant(GROUP_THREADS // WARP))
            for group in range(plan.consumers if plan.pingpong else 0)
        ]
        stages = shared.initialise(warps, plan.arrivals)
        return sequence([*stages, *turns, call("tcomp_barriers_are_ready")])

    def _each_tile(
        self, block: Expression, body: Callable[[_Tile], Statement], group: Expression | None = None
    ) -> Statement:
        """`body(tile)` for each tile of the output of which a block, or `group` of it, takes steps."""
        plan, grid, shares = self.plan, self.plan.blocks(self.gpu), self.plan.shares(self.gpu)
        first = shares.steps_of(block)
        turns, apart = -(-shares.blocks // grid), 1 if group is None else plan.consumers

        def take(own_turn: Expression) -> Statement:
            turn = own_turn if group is None else own_turn * apart + group
            number = turn * grid + block
            rank = tirx.floormod(block, plan.cluster)
            before = turn * plan.steps
            if not isinstance(first, int):  # Of the share that comes first; others are whole tiles.
                before = tirx.Select(turn > 0, before + (first - plan.steps), constant(0))

            def of_segment(segment: Segment) -> Statement:
                (batch,), row, column = plan.tiling.place(segment.tile)
                return body(_Tile(rank, turn, before + segment.before, segment, batch, row, column))

            inside = shares.segments(number, of_segment)
            whole = shares.blocks % grid == 0 and turns % apart == 0
            return inside if whole else tirx.IfThenElse(number < shares.blocks, inside, None)

        return loop(-(-turns // apart), take, "turn")

    def _produce(self, tile: _Tile, shared: _Shared, left: Side, right: Side) -> Statement:
        plan = self.plan

        def one(step: Expression) -> Statement:
            count = tile.before + step
            k = (tile.segment.first + step) * plan.block_depth
            full, place = shared.full(count), shared.place(count)
            return sequence(
                [
                    shared.wait_for_room(count),
                    call("tcomp_barrier_expect", full, constant(plan.copied_bytes)),
                    *left.copies(place, full, (tile.batch, tile.row, k), tile.rank),
                    *right.copies(place, full, (tile.batch, tile.column, k), tile.rank),
                ]
            )

        return loop(tile.segment.steps, one, "step")

    def _gather(self, tile: _Tile, shared: _Shared, right: Side, number: Expression) -> Statement:
        """As `_produce`, by all threads of the group: thread `number` copies its chunks of the left operand.

        Each waits for its own copies of a step when those of the next ones are under way.
        """
        plan, steps = self.plan, tile.segment.steps
        copies = GatheredRows(self.left, plan, 0, plan.rows, plan.block_rows, tile.batch, tile.row, number)

        def have_arrived(step: Expression) -> Statement:
            return call("tcomp_barrier_arrive", shared.full(tile.before + step))

        def one(step: Expression) -> Statement:
            count = tile.before + step
            k = (tile.segment.first + step) * plan.block_depth
            full, place = shared.full(count), shared.place(count)
            expect = call("tcomp_barrier_expect", full, constant(plan.copied_bytes))
            copied = right.copies(place, full, (tile.batch, tile.column, k), tile.rank)
            arrived = [
                call(f"tcomp_gathers_wait<{plan.ahead}>"),
                call("tcomp_gathers_are_seen"),
                have_arrived(step - plan.ahead),
            ]
            return sequence(
                [
                    shared.wait_for_room(count),
                    tirx.IfThenElse(number < 1, sequence([expect, *copied]), None),
                    *copies.copies(lambda chunk: place + chunk * CHUNK_BYTES, k),
                    call("tcomp_gathers_commit"),
                    tirx.IfThenElse(step >= plan.ahead, sequence(arrived), None),
                ]
            )

        if isinstance(steps, int):
            last = [have_arrived(constant(i)) for i in range(max(0, steps - plan.ahead), steps)]
        else:
            ends = [steps - (plan.ahead - i) for i in range(plan.ahead)]
            last = [tirx.IfThenElse(end >= 0, have_arrived(end), None) for end in ends]
        return sequence(
            [
                loop(steps, one, "step"),
                call("tcomp_gathers_wait<0>"),
                call("tcomp_gathers_are_seen"),
                *last,
            ]
        )

    def _consume(
        self,
        tile: _Tile,
        shared: _Shared,
        left: Side,
        right: Side,
        stores: TileStores | None,
        group: Expression,
        thread: Expression,
    ) -> Statement:
        plan, steps = self.plan, tile.segment.steps
        shape = (plan.pieces, plan.block_columns // 8, 4)
        allocate, sums = local(shape, accumulator_dtype(plan.dtype), "sums")
        group_rows = plan.pieces * INSTRUCTION_ROWS
        lane = tirx.floormod(thread, WARP)

        def give_back(step: Expression) -> Statement:
            if plan.cluster == 1:
                return shared.give_back(step, lane)
            arrive = call("tcomp_barrier_arrive_in", lane, shared.empty(step))
            return tirx.IfThenElse(lane < plan.cluster, arrive, None)

        begin, begun = self._turns(tile, shared, group, lane)
        first = constant(0) if plan.pingpong else group * plan.pieces

        def one(step: Expression) -> Statement:
            count = tile.before + step
            place = shared.place(count)
            return sequence(
                [
                    shared.wait_for(count),
                    call("tcomp_products_begin"),
                    self._multiply(sums, left, right, place, first, step),
                    call("tcomp_products_commit"),
                    tirx.IfThenElse(
                        step + 1 < steps,
                        call("tcomp_products_wait<1>"),
                        sequence([*begun, call("tcomp_products_wait<0>")]),
                    ),
                    # As many steps on is the stage of the step before.
                    tirx.IfThenElse(step > 0, give_back(count + (plan.stages - 1)), None),
                ]
            )

        warp = tirx.floormod(tirx.floordiv(thread, WARP), GROUP_THREADS // WARP)
        own_rows = warp * (INSTRUCTION_ROWS // 4)
        if not plan.pingpong:
            own_rows = tirx.floordiv(thread, GROUP_THREADS) * group_rows + own_rows

        def store(to: Destination) -> Statement:
            fragments = Fragments(INSTRUCTION_ROWS, sums, to.rows, to.columns, min(2, to.lanes))
            block = (plan.block_rows, plan.block_columns)
            return fragments.stored(lane, to.row + own_rows, to.column, block, to.store)

        def finish() -> Statement:
            assert stores is not None
            return stores.stored(sums, tile.batch, tile.row + own_rows, tile.column)

        return sequence(
            [
                allocate,
                *begin,
                loop(steps, one, "step"),
                call("tcomp_products_wait<0>"),
                give_back(tile.before + (steps - 1)),
                self.totals.stored(tile.segment, store, finish if stores is not None else None),
            ]
        )

    def _turns(
        self, tile: _Tile, shared: _Shared, group: Expression, lane: Expression
    ) -> tuple[list[Statement], list[Statement]]:
        """Of consumers that take turns: before the first products of a tile, and when the last have begun."""
        if not self.plan.pingpong:
            return [], []
        # The first group's first turn is there from the beginning: the phase before the first counts as over.
        parity = tirx.floormod(tirx.floordiv(tile.turn + 3, 2), 2)
        arrive = call("tcomp_barrier_arrive", shared.turn(1 - group))
        return (
            [call("tcomp_barrier_wait", shared.turn(group), parity)],
            [tirx.IfThenElse(lane < 1, arrive, None)],
        )

    def _multiply(
        self,
        sums: Buffer,
        left: Side,
        right: Side,
        place: Expression,
        first: Expression,
        step: Expression,
    ) -> Statement:
        plan = self.plan
        transposed = ", ".join(str(int(not side.operand.by_depth)) for side in (left, right))
        name = f"tcomp_product_{plan.dtype}_{plan.block_columns}<{transposed}>"

        a, b = (tirx.Var(f"{side}_matrix", "uint64") for side in ("left", "right"))

        def one(k: int, piece: int) -> Statement:
            accumulate = (step > 0).astype("int32") if k == 0 else constant(1)
            own = tirx.address_of(sums[piece, 0, 0])
            return call(name, own, a + left.offset(piece, k), b + right.offset(0, k), accumulate)

        along = range(DEPTH_BYTES // INSTRUCTION_BYTES)
        return sequence(
            [
                tirx.Bind(a, left.matrix(place, first)),
                tirx.Bind(b, right.matrix(place, constant(0))),
                *(one(k, piece) for k in along for piece in range(plan.pieces)),
            ]
        )


def wgmma_launch(
    plan: WgmmaPlan, left: MmaOperand, right: MmaOperand, gpu: Gpu, output: OutputTiles
) -> Callable[[Totals], Statement]:
    """The launch of a product, by where sums are left."""
    return lambda totals: WgmmaNest(plan, left, right, totals, gpu, output).statement
