"""Matrix products with seven multiplications of half the size in place of eight, for constant right operands.

The algorithm is Strassen's; `tcomp.tensor.strassen.plan` states it. The right operand's sums are made at
compile time; the left one's are made for a block of rows at a time. A panel of columns goes through all seven
products before the next one does: its intermediate sums wait in the second-level cache.

    for each block of rows:
      the left operands of the seven products               [product, step // inner, row, step % inner]
      for each panel of columns (shared among threads, unless blocks are):
        for each product: its panel, near
          for each row tile: sums, from those that came before, to a quarter of the result or to be kept
          the epilogue of the quarter that it completes, if it does

Halves of rows and columns overlap where they must. What lies in both is computed twice, by sums that round
differently, and the first is taken: bits do not depend on threads. Rounding errors are a few times those of
plain sums, and relative to the largest elements of rows in both halves, not to each result (Higham, "Accuracy
and Stability of Numerical Algorithms", 23.2.2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd

from tcomp.target.target import Target
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.cpu.lane_factors import LaneFactors, WeightRows
from tcomp.tensor.cpu.primitives import Tiles, transpose_square
from tcomp.tensor.cpu.register_tile import Index, Point, RegisterTile
from tcomp.tensor.cpu.streams import LANES, has_streams, steps_together
from tcomp.tensor.cpu.tile_sums import Factors, Finish, Reduction, nest_of_tiles
from tcomp.tensor.loops import (
    Buffer,
    Expression,
    Statement,
    aligned_stack,
    local,
    loop,
    parallel,
    prefetch_share,
    sequence,
    unrolled,
    vectorized,
)
from tcomp.tensor.strassen.plan import (
    DTYPE,
    PRODUCTS,
    SHARED,
    STEPS,
    Kept,
    StrassenPlan,
    choose,
    left_operands,
    shares_blocks,
    steps_of_factors,
)
from tcomp.tvm_api import tirx

QUARTERS = 4


@dataclass(frozen=True)
class Operands:
    """Where a nest finds the left operand and leaves its results."""

    left: Callable[[Expression, Expression], tuple[list[Statement], Expression]]
    """The element at a row and a step, after the statements that it needs."""
    finish: Callable[[Expression, Expression, Expression], Statement]
    """What is done with the result at a row and a column."""


class StrassenNest:
    """The loops of one kernel."""

    def __init__(
        self, anchored: Anchored, weights: Buffer, operands: Operands, plan: StrassenPlan, target: Target
    ) -> None:
        self.anchored, self.weights, self.operands = anchored, weights, operands
        self.plan, self.target = plan, target

    def statements(self) -> list[Statement]:
        """Threads share the blocks of rows where there are enough for all, else the panels of each."""
        plan = self.plan
        by_blocks = shares_blocks(plan, self.target)
        many = parallel if plan.parallel and not by_blocks else loop
        kept = None if by_blocks else self.anchored.add_scratch(plan.left_shape, DTYPE, "left_sums")

        def block(number: Expression) -> Statement:
            keep, sums = local(plan.left_shape, DTYPE, "left_sums") if kept is None else (None, kept)
            form = self._form_beside if plan.rows_beside else self._form
            formed = many(plan.left_shape[1], lambda part: form(number, part, sums), "part")
            panels = many(plan.panels, lambda p: self._panel(number, p, sums), "panel")
            return sequence([*([] if keep is None else [keep]), formed, panels])

        return [(parallel if by_blocks else loop)(plan.blocks.count, block, "block")]

    def _quarters(
        self, block: Expression, r: Expression, k: Expression
    ) -> tuple[list[Statement], list[Expression]]:
        """The elements of the left operand's quarters at a row and a step, after what they need."""
        plan, needed, found = self.plan, list[Statement](), list[Expression]()
        for below in (0, 1):
            for beside in (0, 1):
                statements, value = self.operands.left(plan.row(block, below) + r, beside * plan.depth + k)
                needed += statements
                found.append(value)
        return needed, found

    def _form(self, block: Expression, chunk: Expression, sums: Buffer) -> Statement:
        """The left operands of all products, for the steps of a chunk, which lie side by side."""
        plan = self.plan

        def element(r: Expression, lane: Expression) -> Statement:
            needed, values = self._quarters(block, r, chunk * plan.inner + lane)
            quarters = [tirx.Var("quarter", DTYPE) for _ in values]
            binds = [tirx.Bind(quarter, value) for quarter, value in zip(quarters, values, strict=True)]
            operands = enumerate(left_operands(*quarters))
            stores = [tirx.BufferStore(sums, value, [p, chunk, r, lane]) for p, value in operands]
            return sequence([*needed, *binds, *stores])

        # No vector reaches beyond a block of channels, whose elements alone lie beside each other.
        lanes = gcd(plan.inner, plan.lanes)

        def row(r: Expression) -> Statement:
            return unrolled(
                plan.inner // lanes, lambda v: vectorized(lanes, lambda lane: element(r, v * lanes + lane))
            )

        return loop(plan.half_rows, row, "row")

    def _form_beside(self, block: Expression, tile: Expression, sums: Buffer) -> Statement:
        """As `_form`, for the rows of a tile, which lie side by side: in squares that are transposed."""
        plan, lanes = self.plan, self.target.factor_lanes(DTYPE)
        shape = (QUARTERS, lanes, lanes)

        def square(r: Expression, k: Expression) -> Statement:
            keep, along = local(shape, DTYPE, "along_steps")
            keep_turned, turned = local(shape, DTYPE, "along_rows")

            def read(i: Expression, lane: Expression) -> Statement:
                needed, values = self._quarters(block, tile * plan.tile_rows + r + i, k + lane)
                stores = [tirx.BufferStore(along, v, [q, i, lane]) for q, v in enumerate(values)]
                return sequence([*needed, *stores])

            def turn(q: int) -> Statement:
                every = tirx.Ramp(0, 1, lanes)
                return transpose_square(
                    lambda i: tirx.BufferLoad(along, [q, i, every]),
                    lambda j, vector: tirx.BufferStore(turned, vector, [q, j, every]),
                    lanes,
                    DTYPE,
                )

            def store(j: Expression, lane: Expression) -> Statement:
                quarters = [tirx.BufferLoad(turned, [q, j, lane]) for q in range(QUARTERS)]
                operands = enumerate(left_operands(*quarters))
                return sequence(
                    [tirx.BufferStore(sums, value, [p, tile, k + j, r + lane]) for p, value in operands]
                )

            reads = unrolled(lanes, lambda i: vectorized(lanes, lambda lane: read(i, lane)))
            stores = unrolled(lanes, lambda j: vectorized(lanes, lambda lane: store(j, lane)))
            return sequence([keep, keep_turned, reads, *(turn(q) for q in range(QUARTERS)), stores])

        def squares(k: Expression) -> Statement:
            return loop(plan.tile_rows // lanes, lambda r: square(r * lanes, k * lanes), "row")

        return loop(plan.depth // lanes, squares, "step")

    def _panel(self, block: Expression, panel: Expression, sums: Buffer) -> Statement:
        """All rows of a block by a panel of both halves of the columns."""
        plan = self.plan
        keep, kept = local((len(Kept), plan.half_rows, plan.width), DTYPE, "kept")

        def product(number: Expression) -> Statement:
            products = self._product(panel, number, sums, kept)
            completes = choose([int(step.completes is not None) for step in STEPS], number) == 1
            finish = tirx.IfThenElse(completes, self._finish(block, panel, number, kept), None)
            return sequence([products, finish])

        aligned = aligned_stack(self.target.lanes(DTYPE), DTYPE)
        return sequence([aligned, keep, loop(PRODUCTS, product, "product")])

    def _finish(self, block: Expression, panel: Expression, number: Expression, kept: Buffer) -> Statement:
        """The epilogue of the quarter of the result that a product completes."""
        plan, quarter = self.plan, choose([step.completes or 0 for step in STEPS], number)
        below, beside = quarter // 2, quarter % 2
        first_row, first_column = plan.row(block, below), plan.column(panel, beside)

        def row(r: Expression) -> Statement:
            def vector(v: Expression) -> Statement:
                def element(lane: Expression) -> Statement:
                    value = tirx.BufferLoad(kept, [Kept.QUARTER.value, r, v * plan.lanes + lane])
                    return self.operands.finish(first_row + r, first_column + v * plan.lanes + lane, value)

                is_own = first_column + v * plan.lanes >= beside * plan.panels * plan.width
                elements = vectorized(plan.lanes, element)
                return elements if plan.columns_fit else tirx.IfThenElse(is_own, elements, None)

            vectors = unrolled(plan.width // plan.lanes, vector)
            is_own = first_row + r >= plan.first_own_row(block, below)
            return vectors if plan.rows_fit else tirx.IfThenElse(is_own, vectors, None)

        return loop(plan.half_rows, row, "row")

    def _product(self, panel: Expression, number: Expression, sums: Buffer, kept: Buffer) -> Statement:
        """One product, with what it is added to."""
        plan = self.plan
        axes = [Tiles.of(plan.half_rows, plan.tile_rows), Tiles.of(plan.width, plan.width)]
        tile = RegisterTile.of(axes, (0, 1), plan.lanes)
        steps = (plan.depth // plan.inner, plan.inner)

        factor, factors, together = self._factors(tile, number, sums)
        row_steps = self._weight_steps(together)
        right = WeightRows.of(row_steps, plan.width, self.weights, lambda _, step: [panel, number, *step])

        def start(index: Index) -> Expression:
            # No product is added to a quarter of the result, which stands for nothing here.
            before = choose([Kept.QUARTER if s.start is None else s.start for s in STEPS], number)
            kept_before = tirx.BufferLoad(kept, [before, *index])
            return tirx.Select(before == Kept.QUARTER.value, tirx.const(0, DTYPE), kept_before)

        def update(total: Expression, point: Point, step: Index) -> Expression:
            return total + factor(point, step) * right.at(point, step, point.index[1])

        def ahead(_: RegisterTile, first: Point, step: Index) -> list[Statement]:
            if len(step) != (1 if by_lane else 2):
                return []
            share = (first.tiles[0] * plan.depth + step[0] * plan.inner + sum(step[1:])) // every
            behind = [panel, number, 0, 0, plan.depth * plan.width]
            return prefetch_share(self.weights, behind, share, plan.width * every, plan.row_tiles)

        by_lane = self.target.takes_any_lane
        every, written = (plan.inner, plan.inner) if by_lane else (1, gcd(plan.inner, 4))
        reduction = Reduction(
            steps,
            (1, written),
            DTYPE,
            tirx.const(0, DTYPE),
            update,
            start=start,
            ahead=ahead if plan.prefetch else None,
            factors=factors,
            weights=right.factors,
        )

        def ends(write: Callable[[Finish], Statement]) -> Statement:
            def to(place: Expression) -> Finish:
                return lambda index, value: tirx.BufferStore(kept, value, [place, *index])

            def plus(other: Kept, place: Kept) -> Finish:
                return lambda index, value: tirx.BufferStore(
                    kept, value + tirx.BufferLoad(kept, [other.value, *index]), [place.value, *index]
                )

            shared = sequence([write(plus(Kept.U3, Kept.QUARTER)), write(plus(Kept.U2, Kept.U1))])
            return tirx.IfThenElse(number == SHARED, shared, write(to(choose([s.to for s in STEPS], number))))

        return nest_of_tiles(tile, reduction, ends, threaded=False)

    def _factors(
        self, tile: RegisterTile, number: Expression, sums: Buffer
    ) -> tuple[Callable[[Point, Index], Expression], Factors | None, int]:
        """The left operand's factor of a row at a step, how several are loaded, and of how many steps."""
        plan = self.plan
        if plan.rows_beside:
            return self._factors_beside(number, sums)

        def read(point: Point, step: Index) -> Expression:
            return tirx.BufferLoad(sums, [number, step[0], point.index[0], step[1]])

        together = gcd(plan.inner, steps_of_factors(self.target))
        lanes = LaneFactors.of(tile, (0,), together, DTYPE, read, self._weight_steps(together) > 0)
        return lanes.at, lanes.factors((plan.depth // plan.inner, plan.inner)), together

    def _weight_steps(self, together: int) -> int:
        """Steps whose weights are one load, of several registers; 0 where each vector is one."""
        plan = self.plan
        if not has_streams(self.target, DTYPE) or plan.width % LANES:
            return 0
        vectors = plan.width // LANES
        lanes = self.target.factor_lanes(DTYPE)
        factors = plan.tile_rows // lanes if plan.rows_beside else plan.tile_rows
        free = self.target.vector_registers - plan.tile_rows * vectors - factors
        steps = steps_together(vectors, together, free)
        return steps if steps * vectors > 1 else 0

    def _factors_beside(
        self, number: Expression, sums: Buffer
    ) -> tuple[Callable[[Point, Index], Expression], Factors | None, int]:
        """As `_factors`, where those of a tile's rows lie side by side."""
        plan, lanes = self.plan, self.target.factor_lanes(DTYPE)

        def row(point: Point, step: Index) -> list[Expression]:
            return [number, point.tiles[0], step[0] * plan.inner + step[1]]

        if has_streams(self.target, DTYPE):
            free = self.target.vector_registers - (plan.tile_rows + 1) * plan.width // LANES
            steps = steps_together(plan.tile_rows // LANES, plan.inner, free)
            rows = WeightRows.of(steps, plan.tile_rows, sums, row)
            return lambda point, step: rows.at(point, step, point.places[0]), rows.factors, steps
        allocate, held = local((plan.tile_rows,), DTYPE, "factors")

        def load(_: RegisterTile, first: Point, step: Index, totals: Buffer) -> list[Statement]:
            def lane(r: Expression) -> Statement:
                return tirx.BufferStore(held, tirx.BufferLoad(sums, [*row(first, step), r]), [r])

            vectors = unrolled(
                plan.tile_rows // lanes, lambda v: vectorized(lanes, lambda i: lane(v * lanes + i))
            )
            return [allocate, vectors]

        return lambda point, step: tirx.BufferLoad(held, [point.places[0]]), Factors(1, load), 1
