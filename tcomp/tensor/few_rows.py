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
from math import ceil, gcd, prod

from tcomp.target.target import Gpu
from tcomp.tensor.block_tile import STATIC_SHARED_BYTES
from tcomp.tensor.knobs import Config
from tcomp.tensor.loops import (
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
from tcomp.tensor.matrices import Index, Matrices
from tcomp.tensor.operand import Operand
from tcomp.tensor.template import Scheduled
from tcomp.tensor.threads import digits, launch, shared, synchronize
from tcomp.tensor.totals import Totals
from tcomp.tensor.warps import WARP, combine_lanes
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

    def reason(self, gpu: Gpu, rows: int, depth: int, itemsize: int) -> str | None:
        """Why no block can be like this, or None."""
        sums, values = rows * self.columns, self.unroll * self.vector * (rows + self.columns)
        registers = (sums + values) * max(1, itemsize // 4) + _OTHER_REGISTERS
        most = min(gpu.thread_registers, gpu.registers // (self.warps * WARP))
        if registers > most:
            return f"a thread needs {registers} registers; it can have {most}"
        shared_bytes = self.warps * sums * WARP * itemsize
        if shared_bytes > STATIC_SHARED_BYTES:
            return f"sums take {shared_bytes} bytes of shared memory; there are {STATIC_SHARED_BYTES}"
        if self.split > 1 and self.split * self.unroll * self.vector * WARP > depth:
            return f"a depth of {depth} is too short for {self.split} parts"
        return None


class FewRows:
    """The launches of one product."""

    def __init__(self, matrices: Matrices, plan: RowsPlan) -> None:
        self.matrices, self.plan = matrices, plan
        self.right = Operand.right(matrices, plan.vector)
        self.left = Operand.left(matrices, plan.vector)
        self.in_depth = self.right.along_depth
        self.depth_lanes = self.right.lanes if self.in_depth else 1
        self.column_lanes = 1 if self.in_depth else gcd(self.right.lanes, plan.columns)
        self.totals = Totals(matrices, plan.split)
        dtype, steps = matrices.accumulator, plan.unroll * self.depth_lanes
        self.allocate_sums, self.sums = local((matrices.rows, plan.columns), dtype, "sums")
        self.allocate_left, self.left_values = local((matrices.rows, steps), dtype, "left_values")
        # Vectors lie side by side: along the depth, or along columns.
        shape = (plan.columns, steps) if self.in_depth else (steps, plan.columns)
        self.allocate_right, self.right_values = local(shape, dtype, "right_values")

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
        grid = (*m.batch, plan.split, ceil(m.columns / self.block_columns))

        def body(block: Sequence[Expression], thread: Sequence[Expression]) -> Statement:
            *batch, part, columns = digits(block[0], grid)
            inside = self._block(batch, part, columns * self.block_columns, thread[0], thread[1])
            return left_to_compiler(inside)

        blocks = launch((prod(grid),), (WARP, plan.warps), body)
        return m.anchored.scheduled([blocks, *self.totals.launches()])

    def _block(
        self, batch: Index, part: Expression, columns: Expression, lane: Expression, warp: Expression
    ) -> Statement:
        m, plan = self.matrices, self.plan
        zero = tirx.const(0, m.accumulator)
        begin = part * (self.steps * plan.unroll * self.stride)
        begin = begin + (lane * self.depth_lanes if self.in_depth else warp)
        column = self._column(columns, warp if self.in_depth else lane)

        def step(number: Expression) -> Statement:
            return self._step(batch, begin + number * (plan.unroll * self.stride), column)

        return sequence(
            [
                *(self.allocate_sums, self.allocate_left, self.allocate_right),
                self._each_sum(lambda r, c: tirx.BufferStore(self.sums, zero, [r, c])),
                loop(self.steps, step, "step"),
                *(
                    self._add_lanes(batch, part, column, lane)
                    if self.in_depth
                    else self._add_warps(batch, part, columns, lane, warp)
                ),
            ]
        )

    def _column(self, columns: Expression, place: Expression) -> Callable[[Expression], Expression]:
        """From a thread's c-th column (a multiple of `column_lanes`) to that of the matrix."""
        if self.in_depth:
            return lambda c: columns + place * self.plan.columns + c
        # Groups of as many columns as a load has, side by side among the threads of the warp.
        return lambda c: columns + (c // self.column_lanes * WARP + place) * self.column_lanes

    def _step(self, batch: Index, first: Expression, column: Callable[[Expression], Expression]) -> Statement:
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

            def of_right(group: Expression) -> Statement:
                c = group * self.column_lanes

                def at(i: Expression) -> Statement:
                    if self.in_depth:
                        x = tirx.min(column(c), constant(m.columns - 1))
                        return self.right.read(batch, x, k + i, self.right_values, [c, u * lanes + i])
                    x = tirx.min(column(c), constant(m.columns - self.column_lanes))
                    return self.right.read(batch, x + i, k, self.right_values, [u, c + i])

                return vectorized(lanes * self.column_lanes, at)

            def zeros(r: Expression) -> Statement:
                return vectorized(
                    lanes, lambda i: tirx.BufferStore(self.left_values, zero, [r, u * lanes + i])
                )

            def no_columns(group: Expression) -> Statement:
                def at(i: Expression) -> Statement:
                    c = group * self.column_lanes
                    place = [c, u * lanes + i] if self.in_depth else [u, c + i]
                    return tirx.BufferStore(self.right_values, zero, place)

                return vectorized(lanes * self.column_lanes, at)

            groups = plan.columns // self.column_lanes
            load = [unrolled(groups, of_right, "group"), unrolled(m.rows, of_left, "r")]
            otherwise = [unrolled(groups, no_columns, "group"), unrolled(m.rows, zeros, "r")]
            return guarded(k, sequence(load), sequence(otherwise))

        def multiply(s: Expression) -> Statement:
            def add(r: Expression, c: Expression) -> Statement:
                right = self.right_values[(c, s) if self.in_depth else (s, c)]
                return tirx.BufferStore(self.sums, self.sums[r, c] + self.left_values[r, s] * right, [r, c])

            return self._each_sum(add)

        return sequence([unrolled(plan.unroll, loads, "u"), unrolled(plan.unroll * lanes, multiply, "s")])

    def _add_lanes(
        self, batch: Index, part: Expression, column: Callable[[Expression], Expression], lane: Expression
    ) -> list[Statement]:
        """Add what the threads of a warp have; the first stores it."""
        m = self.matrices

        def add(r: Expression, c: Expression) -> Statement:
            return sequence(combine_lanes(self.sums, [r, c], WARP, lambda a, b: a + b))

        def store(r: Expression, c: Expression) -> Statement:
            write = self.totals.store(part, batch, r, column(c), self.sums[r, c])
            whole = m.columns % self.block_columns == 0
            inside = lane == 0 if whole else tirx.all(lane == 0, column(c) < m.columns)
            return tirx.IfThenElse(inside, write, None)

        return [self._each_sum(add), self._each_sum(store)]

    def _add_warps(
        self, batch: Index, part: Expression, columns: Expression, lane: Expression, warp: Expression
    ) -> list[Statement]:
        """Add what the warps of the block have; each output element is stored by one thread."""
        m, plan = self.matrices, self.plan
        allocate, kept = shared((plan.warps, m.rows, plan.columns, WARP), m.accumulator, "warps")
        keep = self._each_sum(lambda r, c: tirx.BufferStore(kept, self.sums[r, c], [warp, r, c, lane]))
        count = m.rows * plan.columns

        def total(turn: Expression) -> Statement:
            number = turn * plan.warps + warp
            r, c = digits(number, (m.rows, plan.columns))
            first, *others = (kept[w, r, c, lane] for w in range(plan.warps))
            column = self._column(columns, lane)(c) + tirx.floormod(c, self.column_lanes)
            write = self.totals.store(part, batch, r, column, sum(others, first))
            inside = [number < count] if count % plan.warps else []
            inside += [column < m.columns] if m.columns % self.block_columns else []
            return tirx.IfThenElse(tirx.all(*inside), write, None) if inside else write

        return [allocate, keep, synchronize(), loop(ceil(count / plan.warps), total, "turn")]

    def _each_sum(self, body: Callable[[Expression, Expression], Statement]) -> Statement:
        return unrolled(
            self.matrices.rows, lambda r: unrolled(self.plan.columns, lambda c: body(r, c), "c"), "r"
        )
