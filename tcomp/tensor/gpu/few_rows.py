"""Products of few rows on GPUs, which read their large operand once and at memory's speed.

The right operand says how. Where its columns lie along memory in the depth, a warp has some columns: its
threads take neighbours in the depth, and add their sums by shuffles. Where rows do, a thread has some
columns, those of a warp being neighbours; the warps of a block take different steps of the depth, and add
their sums in shared memory. Either way a thread asks for the elements of several steps before it multiplies,
so that enough of memory is under way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, gcd
from typing import Protocol

from tcomp.target.target import Gpu
from tcomp.tensor.gpu.block_tile import STATIC_SHARED_BYTES
from tcomp.tensor.gpu.matrices import Index, Matrices
from tcomp.tensor.gpu.operand import Operand
from tcomp.tensor.gpu.rates import resident_blocks
from tcomp.tensor.gpu.shared_tiles import each_sum
from tcomp.tensor.gpu.shares import Parts, Segment, Tiling
from tcomp.tensor.gpu.threads import digits, launch, shared, synchronize
from tcomp.tensor.gpu.totals import Destination, Totals
from tcomp.tensor.gpu.warps import WARP, combine_lanes
from tcomp.tensor.knobs import Config
from tcomp.tensor.loops import (
    Buffer,
    Expression,
    Statement,
    constant,
    left_to_compiler,
    local,
    loop,
    sequence,
    unrolled,
    vectorized,
)
from tcomp.tensor.template import Scheduled
from tcomp.tvm_api import tirx

MOST_ROWS = 8
_OTHER_REGISTERS = 40


@dataclass(frozen=True)
class RowsPlan:
    """The knobs."""

    warps: int
    """Of a block."""
    columns: int
    """Sums of each row that a thread has."""
    vector: int
    """Most elements of a load."""
    unroll: int
    """Steps whose elements are loaded together."""
    split: int
    """Parts of the depth that different blocks sum up."""

    @staticmethod
    def of(config: Config) -> RowsPlan:
        return RowsPlan(*(int(config[name]) for name in ("warps", "columns", "vector", "unroll", "split")))

    def reason(
        self,
        gpu: Gpu,
        rows: int,
        depth: int,
        itemsize: int,
        lanes: int = 0,
        of_column: int = 0,
        in_depth: bool = True,
    ) -> str | None:
        """Why no block can be like this, or None.

        A step has `lanes` elements of a row and takes `of_column` registers of a column, each `vector` where
        not given.
        """
        lanes = lanes or self.vector
        registers = self.registers(rows, itemsize, lanes, of_column)
        most = min(gpu.thread_registers, gpu.registers // (self.warps * WARP))
        if registers > most:
            return f"a thread needs {registers} registers; it can have {most}"
        shared_bytes = self.shared_bytes(rows, itemsize)
        if shared_bytes > STATIC_SHARED_BYTES:
            return f"sums take {shared_bytes} bytes of shared memory; there are {STATIC_SHARED_BYTES}"
        if self.split > 1 and self.split * self.step(lanes, in_depth) > depth:
            return f"a depth of {depth} is too short for {self.split} parts"
        return None

    def step(self, lanes: int, in_depth: bool) -> int:
        """Of the depth, that a block loads at once."""
        return self.unroll * (lanes * WARP if in_depth else self.warps)

    def registers(self, rows: int, itemsize: int, lanes: int = 0, of_column: int = 0) -> int:
        """Of a thread; `lanes` and `of_column` as for `reason`."""
        lanes = lanes or self.vector
        values = self.unroll * (lanes * rows + (of_column or lanes) * self.columns)
        return (rows * self.columns + values) * max(1, itemsize // 4) + _OTHER_REGISTERS

    def shared_bytes(self, rows: int, itemsize: int) -> int:
        """Where the warps of a block add their sums."""
        return self.warps * rows * self.columns * WARP * itemsize

    def under_way(self, gpu: Gpu, blocks: int, registers: int, shared_bytes: int, of_column: int) -> int:
        """Bytes of the large operand that all blocks which run at once have asked for.

        A step takes `of_column` bytes of each of a thread's columns.
        """
        resident = resident_blocks(gpu, self.warps * WARP, registers, shared_bytes)
        threads = min(blocks, resident * gpu.processors) * self.warps * WARP
        return threads * self.unroll * self.columns * of_column


Column = Callable[[Expression], Expression]
"""From a thread's c-th column, a multiple of `column_lanes`, to that of the matrix."""


class LargeOperand(Protocol):
    """How a thread reads the right operand, and multiplies what it has read of it."""

    @property
    def in_depth(self) -> bool:
        """Whether neighbouring threads read neighbours in the depth."""
        ...

    @property
    def depth_lanes(self) -> int:
        """Neighbours in the depth that one load gets."""
        ...

    @property
    def column_lanes(self) -> int:
        """Neighbouring columns that one load gets."""
        ...

    @property
    def allocations(self) -> Sequence[Statement]:
        """Of registers."""
        ...

    def read(
        self, batch: Index, group: Expression, k: Expression, step: Expression, column: Column
    ) -> Statement:
        """Load group `group` of a thread's columns at depth `k` for step `step` of those loaded together."""
        ...

    def blank(self, group: Expression, step: Expression) -> Statement:
        """The same where the depth has ended."""
        ...

    def add_products(self, sums: Buffer, left: Buffer) -> Statement:
        """`sums[r, c]` += what was loaded of column c times `left[r, k]`."""
        ...


class PlainOperand:
    """A right operand of which each element is loaded, or computed, alone or with its neighbours."""

    def __init__(self, matrices: Matrices, plan: RowsPlan) -> None:
        self._matrices, self._plan = matrices, plan
        self._operand = Operand.right(matrices, plan.vector)
        self.in_depth = self._operand.along_depth
        self.depth_lanes = self._operand.lanes if self.in_depth else 1
        self.column_lanes = 1 if self.in_depth else gcd(self._operand.lanes, plan.columns)
        steps = plan.unroll * self.depth_lanes
        # Vectors lie side by side: along the depth, or along columns.
        shape = (plan.columns, steps) if self.in_depth else (steps, plan.columns)
        allocate, self._values = local(shape, matrices.accumulator, "right_values")
        self.allocations = (allocate,)

    def _place(self, c: Expression, step: Expression, i: Expression) -> list[Expression]:
        return [c, step * self.depth_lanes + i] if self.in_depth else [step, c + i]

    def read(
        self, batch: Index, group: Expression, k: Expression, step: Expression, column: Column
    ) -> Statement:
        c, columns = group * self.column_lanes, self._matrices.columns

        def at(i: Expression) -> Statement:
            place = self._place(c, step, i)
            x = tirx.min(column(c), constant(columns - self.column_lanes))
            if self.in_depth:
                return self._operand.read(batch, x, k + i, self._values, place)
            return self._operand.read(batch, x + i, k, self._values, place)

        return vectorized(self.depth_lanes * self.column_lanes, at)

    def blank(self, group: Expression, step: Expression) -> Statement:
        zero = tirx.const(0, self._matrices.accumulator)

        def at(i: Expression) -> Statement:
            return tirx.BufferStore(self._values, zero, self._place(group * self.column_lanes, step, i))

        return vectorized(self.depth_lanes * self.column_lanes, at)

    def add_products(self, sums: Buffer, left: Buffer) -> Statement:
        def multiply(s: Expression) -> Statement:
            def add(r: Expression, c: Expression) -> Statement:
                right = self._values[(c, s) if self.in_depth else (s, c)]
                return tirx.BufferStore(sums, sums[r, c] + left[r, s] * right, [r, c])

            return each_sum(sums, add)

        return unrolled(self._plan.unroll * self.depth_lanes, multiply, "s")


class FewRows:
    """The launches of one product."""

    def __init__(self, matrices: Matrices, plan: RowsPlan, right: LargeOperand | None = None) -> None:
        """`right` is a `PlainOperand` where not given."""
        self.matrices, self.plan = matrices, plan
        self.right: LargeOperand = PlainOperand(matrices, plan) if right is None else right
        self.left = Operand.left(matrices, plan.vector)
        self.in_depth, self.depth_lanes = self.right.in_depth, self.right.depth_lanes
        self.column_lanes = self.right.column_lanes
        m = matrices
        self.tiling = Tiling(m.batch, m.rows, m.columns, m.rows, m.columns)
        self.shares = Parts(self.tiling.tiles, self.steps, plan.split)
        self.totals = Totals(matrices, self.tiling, self.shares, lanes=1)
        dtype, steps = matrices.accumulator, plan.unroll * self.depth_lanes
        self.allocate_sums, self.sums = local((matrices.rows, plan.columns), dtype, "sums")
        self.allocate_left, self.left_values = local((matrices.rows, steps), dtype, "left_values")

    @property
    def block_columns(self) -> int:
        """Columns of a block."""
        return self.plan.columns * (self.plan.warps if self.in_depth else WARP)

    @property
    def stride(self) -> int:
        """Elements of the depth from one step of a thread to the next."""
        return WARP * self.depth_lanes if self.in_depth else self.plan.warps

    @property
    def steps(self) -> int:
        """Groups of `unroll` steps that each thread makes in a part of the depth."""
        return ceil(self.matrices.depth / (self.stride * self.plan.unroll * self.plan.split))

    def scheduled(self) -> Scheduled:
        """1. Sums of each part of the depth. 2. Their sums, where there are several."""
        m, plan = self.matrices, self.plan
        blocks_across = ceil(m.columns / self.block_columns)

        def body(block: Sequence[Expression], thread: Sequence[Expression]) -> Statement:
            share, columns = digits(block[0], (self.shares.blocks, blocks_across))

            def of_segment(segment: Segment) -> Statement:
                return self._block(segment, columns * self.block_columns, thread[0], thread[1])

            return left_to_compiler(self.shares.segments(share, of_segment))

        blocks = launch((self.shares.blocks * blocks_across,), (WARP, plan.warps), body)
        return m.anchored.scheduled([blocks, *self.totals.launches()])

    def _block(self, segment: Segment, columns: Expression, lane: Expression, warp: Expression) -> Statement:
        m, plan = self.matrices, self.plan
        batch, _, _ = self.tiling.place(segment.tile)
        zero = tirx.const(0, m.accumulator)
        begin = segment.first * (plan.unroll * self.stride)
        begin = begin + (lane * self.depth_lanes if self.in_depth else warp)
        column = self._column(columns, warp if self.in_depth else lane)

        def step(number: Expression) -> Statement:
            return self._step(batch, begin + number * (plan.unroll * self.stride), column)

        return sequence(
            [
                *(self.allocate_sums, self.allocate_left, *self.right.allocations),
                each_sum(self.sums, lambda r, c: tirx.BufferStore(self.sums, zero, [r, c])),
                loop(self.steps, step, "step"),
                *(
                    self._add_lanes(segment, column, lane)
                    if self.in_depth
                    else self._add_warps(segment, columns, lane, warp)
                ),
            ]
        )

    def _column(self, columns: Expression, place: Expression) -> Column:
        if self.in_depth:
            return lambda c: columns + place * self.plan.columns + c
        # Groups of as many columns as a load has, side by side among the threads of the warp.
        return lambda c: columns + (c // self.column_lanes * WARP + place) * self.column_lanes

    def _step(self, batch: Index, first: Expression, column: Column) -> Statement:
        """Load and multiply the elements of `unroll` steps, the first of them at `first` of the depth."""
        m, plan, lanes = self.matrices, self.plan, self.depth_lanes
        whole = self.steps * plan.unroll * plan.split * self.stride == m.depth
        zero = tirx.const(0, m.accumulator)

        def guarded(k: Expression, load: Statement, otherwise: Statement) -> Statement:
            return load if whole else tirx.IfThenElse(k < m.depth, load, otherwise)

        def loads(u: Expression) -> Statement:
            k = first + u * self.stride

            def of_left(r: Expression) -> Statement:
                width = gcd(lanes, self.left.lanes) if self.left.along_depth else 1

                def some(v: Expression) -> Statement:
                    def at(i: Expression) -> Statement:
                        place = [r, u * lanes + v * width + i]
                        return self.left.read(batch, r, k + v * width + i, self.left_values, place)

                    return vectorized(width, at)

                return unrolled(lanes // width, some, "v")

            def zeros(r: Expression) -> Statement:
                def one(i: Expression) -> Statement:
                    return tirx.BufferStore(self.left_values, zero, [r, u * lanes + i])

                return unrolled(lanes, one, "v")

            groups = plan.columns // self.column_lanes
            read = unrolled(groups, lambda group: self.right.read(batch, group, k, u, column), "group")
            blank = unrolled(groups, lambda group: self.right.blank(group, u), "group")
            load = [read, unrolled(m.rows, of_left, "r")]
            otherwise = [blank, unrolled(m.rows, zeros, "r")]
            return guarded(k, sequence(load), sequence(otherwise))

        products = self.right.add_products(self.sums, self.left_values)
        return sequence([unrolled(plan.unroll, loads, "u"), products])

    def _add_lanes(self, segment: Segment, column: Column, lane: Expression) -> list[Statement]:
        """Add what the threads of a warp have; the first stores it."""
        m = self.matrices

        def add(r: Expression, c: Expression) -> Statement:
            return sequence(combine_lanes(self.sums, [r, c], WARP, lambda a, b: a + b))

        def store(to: Destination) -> Statement:
            def one(r: Expression, c: Expression) -> Statement:
                write = to.store(r, column(c), self.sums[r, c])
                whole = m.columns % self.block_columns == 0
                inside = lane == 0 if whole else tirx.all(lane == 0, column(c) < m.columns)
                return tirx.IfThenElse(inside, write, None)

            return each_sum(self.sums, one)

        return [each_sum(self.sums, add), self.totals.stored(segment, store)]

    def _add_warps(
        self, segment: Segment, columns: Expression, lane: Expression, warp: Expression
    ) -> list[Statement]:
        """Add what the warps of the block have; each output element is stored by one thread."""
        m, plan = self.matrices, self.plan
        allocate, kept = shared((plan.warps, m.rows, plan.columns, WARP), m.accumulator, "warps")
        keep = each_sum(self.sums, lambda r, c: tirx.BufferStore(kept, self.sums[r, c], [warp, r, c, lane]))
        count = m.rows * plan.columns

        def store(to: Destination) -> Statement:
            def total(turn: Expression) -> Statement:
                number = turn * plan.warps + warp
                r, c = digits(number, (m.rows, plan.columns))
                first, *others = (kept[w, r, c, lane] for w in range(plan.warps))
                column = self._column(columns, lane)(c) + tirx.floormod(c, self.column_lanes)
                write = to.store(r, column, sum(others, first))
                inside = [number < count] if count % plan.warps else []
                inside += [column < m.columns] if m.columns % self.block_columns else []
                return tirx.IfThenElse(tirx.all(*inside), write, None) if inside else write

            return loop(ceil(count / plan.warps), total, "turn")

        return [allocate, keep, synchronize(), self.totals.stored(segment, store)]
