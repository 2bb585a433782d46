"""Matrix products by tensor cores: the launch that computes the sums.

Steps of a block:
1. Copies of the first `stages - 1` steps of both operands are on their way to shared memory.
2. At each step, while the copies of later ones go on, warps load 16x16 pieces of their operands by
   `ldmatrix` and multiply them (`mma_steps`). The pieces of the next 32 bytes of depth are loaded before
   those at hand are multiplied, over the borders of steps too, and a part of the copies is begun there. So
   one barrier a step is enough, just before the first load of the next: behind it every warp has loaded all
   it needs of this step, whose stage may be overwritten then.
   Chunks that are computed (`Filling`) are loaded before the first multiplications of a step, and stored
   before that barrier.
3. The sums are stored from registers, two neighbours of a row at a time, or through the stages, which no warp
   needs any more behind another barrier, in whole lines (`LineStores`).

A block whose share of the steps has several segments does so for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tcomp.target.target import Gpu
from tcomp.tensor.convolution import accumulator_dtype
from tcomp.tensor.gpu.shares import Segment, Shares
from tcomp.tensor.gpu.threads import digits, dynamic_shared, launch, synchronize
from tcomp.tensor.gpu.totals import Destination, Totals
from tcomp.tensor.loops import (
    Expression,
    Statement,
    local,
    sequence,
    written_out,
)
from tcomp.tensor.tensor_cores.fragments import Fragments
from tcomp.tensor.tensor_cores.mma_operand import MmaOperand
from tcomp.tensor.tensor_cores.mma_plan import CHUNK_BYTES, MmaPlan
from tcomp.tensor.tensor_cores.mma_steps import Side, Steps
from tcomp.tensor.tensor_cores.mma_stores import LineStores
from tcomp.tensor.tensor_cores.output_tiles import OutputTiles
from tcomp.tvm_api import tirx


def mma_launch(
    plan: MmaPlan, left: MmaOperand, right: MmaOperand, gpu: Gpu, output: OutputTiles
) -> Callable[[Totals], Statement]:
    """The launch of a product, by where sums are left."""
    return lambda totals: MmaNest(plan, left, right, totals, plan.shares(gpu), output).statement


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
        left = Side(
            self.left, plan, 0, plan.rows, plan.block_rows, batch, first_row, thread,
            plan.warp_rows, False, warp_row,
        )  # fmt: skip
        right = Side(
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
            (plan.stages * plan.stage_chunks * CHUNK_BYTES,), "uint8", "stages"
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
                *Steps(plan, left, right, sums, stages, segment).statements,
                self.totals.stored(segment, store, finish if plan.lines else None),
            ]
        )
