"""Matrix products by tensor cores: the launch that computes the sums.

Steps of a block:
1. Copies of the first `stages - 1` steps of both operands are on their way to shared memory.
2. At each step, while the copies of later ones go on, warps load 16x16 pieces of their operands by
   `ldmatrix` and multiply them. The pieces of the next 32 bytes of depth are loaded before those at hand are
   multiplied, over the borders of steps too. So one barrier a step is enough, just before the first load of
   the next: behind it every warp has loaded all it needs of this step, whose stage may be overwritten then.
   Chunks that are computed (`Filling`) are loaded before the first multiplications of a step, and stored
   before that barrier.
3. The sums are stored from registers, two neighbours of a row at a time, or through the stages, which no warp
   needs any more behind another barrier, in whole lines (`LineStores`).

A block whose share of the steps has several segments does so for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tcomp.relay.types import stored_as
from tcomp.target.target import Gpu
from tcomp.tensor.convolution import accumulator_dtype
from tcomp.tensor.gpu.shares import Segment, Shares
from tcomp.tensor.gpu.threads import digits, dynamic_shared, launch, synchronize
from tcomp.tensor.gpu.totals import Destination, Totals
from tcomp.tensor.loops import (
    Buffer,
    Expression,
    Statement,
    call,
    constant,
    local,
    loop,
    sequence,
    written_out,
)
from tcomp.tensor.tensor_cores.fragments import Fragments
from tcomp.tensor.tensor_cores.mma_operand import ChunkCopies, MmaOperand, Place, swizzle
from tcomp.tensor.tensor_cores.mma_plan import MATRIX, MmaPlan
from tcomp.tensor.tensor_cores.mma_stores import LineStores
from tcomp.tensor.tensor_cores.output_tiles import OutputTiles
from tcomp.tvm_api import tirx


@dataclass(frozen=True)
class _Side(ChunkCopies):
    """One operand as the threads of a block see it.

    `warp` is the number of the thread's warp along its rows. `halves_swapped` says which bit of the thread's
    number tells the halves of a 16x16 piece apart along the depth: 16, or 8 where swapped.
    """

    plan: MmaPlan
    warp_rows: int
    halves_swapped: bool
    warp: Expression

    @property
    def pieces(self) -> int:
        """Of 16 rows, of a warp."""
        return self.warp_rows // 16

    def load(self, into: Buffer, which: int, stage: Place, k: int) -> Statement:
        """Load the warp's pieces of the `k`-th two chunks of depth into set `which` of `into`."""
        lane = tirx.floormod(self.thread, 32)
        row_in_matrix, upper = tirx.floormod(lane, MATRIX), tirx.floordiv(lane, 2 * MATRIX)
        lower = tirx.floormod(tirx.floordiv(lane, MATRIX), 2)
        line_half, chunk_half = (
            (upper, lower) if self.halves_swapped == self.operand.by_depth else (lower, upper)
        )
        line = row_in_matrix + line_half * MATRIX
        warp_chunk = 0 if self.operand.by_depth else self.warp * (self.warp_rows // self.plan.chunk)
        own = tirx.bitwise_xor(warp_chunk + chunk_half, swizzle(line, self.chunks))

        rounds = self.plan.dtype == "tf32" and not self.operand.is_rounded

        def piece(i: int) -> Statement:
            first_line = self.warp * self.warp_rows + 16 * i if self.operand.by_depth else 16 * k
            chunk = 2 * k if self.operand.by_depth else 2 * i
            place = (line + first_line) * self.chunks + tirx.bitwise_xor(own, constant(chunk))
            name = "tcomp_load_matrices" + ("" if self.operand.by_depth else "_transposed")
            registers = tirx.address_of(into[which, i, 0])
            loads = call(name, registers, stage(place + self.begin))
            return sequence([loads, call("tcomp_round_tf32", registers)]) if rounds else loads

        return sequence([piece(i) for i in range(self.pieces)])


def mma_launch(
    plan: MmaPlan, left: MmaOperand, right: MmaOperand, gpu: Gpu, output: OutputTiles
) -> Callable[[Totals], Statement]:
    """The launch of a product, by where sums are left."""
    return lambda totals: MmaNest(plan, left, right, totals, plan.shares(gpu), output).statement


def _where(condition: bool | Expression, statements: list[Statement]) -> list[Statement]:
    if isinstance(condition, bool):
        return statements if condition else []
    return [tirx.IfThenElse(condition, sequence(statements), None)]


@dataclass(frozen=True)
class MmaNest:
    """The launch of one product."""

    plan: MmaPlan
    left: MmaOperand
    right: MmaOperand
    totals: Totals
    shares: Shares
    output: OutputTiles
    """Which a plan that stores lines needs."""

    @property
    def statement(self) -> Statement:
        def block(block: Sequence[Expression], threads: Sequence[Expression]) -> Statement:
            if self.shares.most_segments == 1:
                return self.shares.segments(block[0], lambda segment: self._segment(segment, threads[0]))

            def of_segment(segment: Segment) -> Statement:
                # Else the compiler keeps places in shared memory from one segment to the next, and spills.
                thread = tirx.Var("thread", "int32")
                anew = tirx.call_extern("int32", "tcomp_anew", threads[0])
                return sequence([tirx.Bind(thread, anew), self._segment(segment, thread)])

            return self.shares.segments(block[0], of_segment)

        return launch((self.shares.blocks,), (self.plan.threads,), block)

    def _segment(self, segment: Segment, thread: Expression) -> Statement:
        plan = self.plan
        (batch,), first_row, first_column = plan.tiling.place(segment.tile)
        warp_row, warp_column = digits(tirx.floordiv(thread, 32), plan.warps)
        left = _Side(
            self.left, plan, 0, plan.rows, plan.block_rows, batch, first_row, thread,
            plan.warp_rows, False, warp_row,
        )  # fmt: skip
        right = _Side(
            self.right, plan, plan.block_rows * plan.depth_chunks, plan.columns, plan.block_columns,
            batch, first_column, thread, plan.warp_columns, True, warp_column,
        )  # fmt: skip
        allocate, sums = local(
            (plan.warp_rows // 16, plan.warp_columns // 8, 4), accumulator_dtype(plan.dtype), "sums"
        )

        def store(to: Destination) -> Statement:
            row, column = to.row + warp_row * plan.warp_rows, to.column + warp_column * plan.warp_columns
            fragments = Fragments(16, sums, to.rows, to.columns, min(2, to.lanes))
            block = (plan.block_rows, plan.block_columns)
            return fragments.stored(tirx.floormod(thread, 32), row, column, block, to.store)

        allocate_stages, stages = dynamic_shared(
            (plan.stages * plan.stage_chunks * plan.chunk,), stored_as(plan.dtype), "stages"
        )

        def finish() -> Statement:
            warp, lane = tirx.floordiv(thread, 32), tirx.floormod(thread, 32)
            row, column = (
                first_row + warp_row * plan.warp_rows,
                first_column + warp_column * plan.warp_columns,
            )
            stores = LineStores(plan, self.output, stages, warp, lane)
            return sequence([synchronize(), stores.stored(sums, batch, row, column)])

        zero = tirx.const(0, str(sums.dtype))
        clear = written_out([int(d) for d in sums.shape], lambda at: tirx.BufferStore(sums, zero, at))
        return sequence(
            [
                allocate,
                allocate_stages,
                clear,
                # Until others have loaded what they need of the segment before.
                *([synchronize()] if self.shares.most_segments > 1 else []),
                *self._multiply(left, right, sums, stages, segment),
                self.totals.stored(segment, store, finish if plan.lines else None),
            ]
        )

    def _multiply(
        self, left: _Side, right: _Side, sums: Buffer, memory: Buffer, segment: Segment
    ) -> list[Statement]:
        plan, steps = self.plan, segment.steps
        depth = segment.first * plan.block_depth
        stages, stage_chunks = plan.stages, plan.stage_chunks
        allocate_left, left_pieces = local((2, left.pieces, 4), "uint32", "left_pieces")
        allocate_right, right_pieces = local((2, right.pieces, 4), "uint32", "right_pieces")
        inner = plan.depth_chunks // 2

        def stage_of(step: Expression) -> Place:
            first = tirx.floormod(step, stages) * stage_chunks
            return lambda chunk: tirx.address_of(memory[(first + chunk) * plan.chunk])

        def copy(step: Expression) -> Statement:
            at = stage_of(step)
            begin = depth + step * plan.block_depth
            return sequence([*left.copies(at, begin), *right.copies(at, begin)])

        def load(step: Expression, k: int) -> list[Statement]:
            at = stage_of(step)
            return [left.load(left_pieces, k % 2, at, k), right.load(right_pieces, k % 2, at, k)]

        def multiply(k: int) -> Statement:
            def one(at: list[Expression]) -> Statement:
                i, j = at
                a = tirx.address_of(left_pieces[k % 2, i, 0])
                b = tirx.address_of(right_pieces[k % 2, tirx.floordiv(j, 2), tirx.floormod(j, 2) * 2])
                return call(f"tcomp_multiply_{plan.dtype}", tirx.address_of(sums[i, j, 0]), a, b)

            return written_out((left.pieces, 2 * right.pieces), one)

        def put(step: Expression) -> list[Statement]:
            at = stage_of(step)
            return [*left.puts(at), *right.puts(at)]

        wait = [call(f"tcomp_wait_copies<{stages - 2}>"), synchronize()]
        commit = call("tcomp_commit_copies")
        fillings = [f for f in (left.operand.filling, right.operand.filling) if f is not None]
        registers = [one for f in fillings for one in f.allocations]
        statements: list[Statement] = [allocate_left, allocate_right, *registers]
        for step in range(stages - 1):
            began = [copy(constant(step)), *put(constant(step))]
            statements += [*_where(step < steps, began), commit]
        statements += [*wait, *load(constant(0), 0)]

        def body(step: Expression) -> Statement:
            parts: list[Statement] = []
            ahead = step + (stages - 1)
            for k in range(inner):
                if k + 1 < inner:
                    parts += load(step, k + 1)
                else:
                    if fillings:
                        parts.append(tirx.IfThenElse(ahead < steps, sequence(put(ahead)), None))
                    following = sequence([*wait, *load(step + 1, 0)])
                    parts.append(tirx.IfThenElse(step + 1 < steps, following, None))
                if k == 0:
                    parts += [tirx.IfThenElse(ahead < steps, copy(ahead), None), commit]
                parts.append(multiply(k))
            return sequence(parts)

        return [*statements, loop(steps, body, "step")]
