"""Products of matrices by plain instructions of a GPU: tiles in shared memory, sums in registers.

    for each tile of rows and columns, and part of the depth, that a block of threads has:
      for each tile of the depth:
        load the tiles of both operands that come next into registers
        for k in the tile of the depth:
          at the last: store what was loaded into the other buffer of shared memory; wait for the block
          load the factors of the next k: column of the left tile (shared memory), row of the right tile
          sums += column x row of those at hand
    for each output element, if there are parts: add their sums in order

Both tiles lie as `[k, row or column]`. Loads from memory are vectors where the operand allows them. Edges:
rows and columns outside are those of the last inside again, whose sums are not stored; the depth is filled up
with zeros. See `block_tile` for which thread has which sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tcomp.tensor.gpu.block_tile import BlockTile
from tcomp.tensor.gpu.matrices import Matrices
from tcomp.tensor.gpu.operand import Operand
from tcomp.tensor.gpu.shared_tiles import (
    Factors,
    Products,
    SharedTile,
    TileLoader,
    each_sum,
    tile_elements,
)
from tcomp.tensor.gpu.shares import Segment, Shares, Tiling
from tcomp.tensor.gpu.step_table import StepTable
from tcomp.tensor.gpu.threads import launch, shared, synchronize
from tcomp.tensor.gpu.totals import Destination, Totals
from tcomp.tensor.loops import (
    Expression,
    Statement,
    constant,
    left_to_compiler,
    local,
    loop,
    sequence,
    under,
    unrolled,
    vectorized,
)
from tcomp.tensor.template import Scheduled
from tcomp.tvm_api import tirx


class SimtProduct:
    """The launches of one product."""

    def __init__(
        self, matrices: Matrices, tile: BlockTile, shares: Shares, table: StepTable | None = None
    ) -> None:
        """`table` is what the right matrix finds in shared memory, and the end of the depth."""
        self.matrices, self.tile, self.shares, self.table = matrices, tile, shares, table
        left, right = Operand.left(matrices, tile.vector), Operand.right(matrices, tile.vector)
        guarded = self.steps * tile.depth > matrices.depth
        self.left = TileLoader(left, tile.rows, tile.depth, tile.threads, guarded, "left")
        self.right = TileLoader(
            right, tile.columns, tile.depth, tile.threads, guarded and table is None, "right"
        )
        dtype = matrices.accumulator
        sizes = [tile.stages * tile_elements(size, tile.depth) for size in (tile.rows, tile.columns)]
        self.allocate_left, self.left_tiles = shared(sizes[:1], dtype, "left_tiles")
        self.allocate_right, self.right_tiles = shared(sizes[1:], dtype, "right_tiles")
        m = matrices
        self.tiling = Tiling(m.batch, m.rows, m.columns, tile.rows, tile.columns)
        self.totals = Totals(matrices, self.tiling, self.shares)
        self.allocate_sums, self.sums = local((tile.thread_rows, tile.thread_columns), dtype, "sums")
        self.products = Products(self.sums)

    @property
    def steps(self) -> int:
        """Tiles of the whole depth."""
        return self.tile.steps(self.matrices.depth) * self.tile.split

    def launches(self) -> list[Statement]:
        """1. Sums of each block's share of the steps. 2. Their sums, where there are several."""

        def body(block: Sequence[Expression], thread: Sequence[Expression]) -> Statement:
            of_block = self.shares.segments(block[0], lambda segment: self._segment(segment, thread[0]))
            before = [] if self.table is None else self.table.fill(thread[0], self.tile.threads)
            return left_to_compiler(sequence([*before, of_block]))

        blocks = launch((self.shares.blocks,), (self.tile.threads,), body)
        return [blocks, *self.totals.launches()]

    def scheduled(self) -> Scheduled:
        """A kernel of nothing but `launches`."""
        return self.matrices.anchored.scheduled(self.launches())

    def _segment(self, segment: Segment, thread: Expression) -> Statement:
        batch, rows, columns = self.tiling.place(segment.tile)
        place = self.tile.place(thread)

        def load(step: Expression) -> list[Statement]:
            # A variable of its own, of which the range is known, so that indices simplify.
            number, count = tirx.Var("step_number", "int32"), constant(self.steps)

            def both(at: Expression) -> Statement:
                left = self.left.load(thread, batch, rows, at)
                return sequence([left, self.right.load(thread, batch, columns, at)])

            return [tirx.Bind(number, segment.first + step), under(number, count, both)]

        def store(stage: Expression) -> list[Statement]:
            return [
                self.left.store(thread, self._left_tile(stage)),
                self.right.store(thread, self._right_tile(stage)),
            ]

        zero = tirx.const(0, self.matrices.accumulator)
        return sequence(
            [
                *(self.allocate_left, self.allocate_right, self.left.allocate, self.right.allocate),
                *(self.allocate_sums, self.products.allocate),
                each_sum(self.sums, lambda r, c: tirx.BufferStore(self.sums, zero, [r, c])),
                *load(constant(0)),
                # Until others have multiplied the last tiles of the segment before.
                *([synchronize()] if self.shares.most_segments > 1 else []),
                *self._walk(segment.steps, load, store, place),
                self.totals.stored(segment, lambda to: self._store(to, place)),
            ]
        )

    def _walk(
        self,
        steps: int | Expression,
        load: Callable[[Expression], list[Statement]],
        store: Callable[[Expression], list[Statement]],
        place: tuple[Expression, Expression],
    ) -> list[Statement]:
        """All steps of the segment; the first tile is loaded."""
        last = steps - 1
        if self.tile.stages == 1:

            def one(step: Expression) -> Statement:
                multiply = self._multiply(constant(0), place)
                return sequence(
                    [*store(constant(0)), synchronize(), *load(step + 1), multiply, synchronize()]
                )

            end = [*store(constant(0)), synchronize(), self._multiply(constant(0), place)]
            return end if isinstance(last, int) and last == 0 else [loop(last, one, "step"), *end]

        def overlapped(step: Expression) -> Statement:
            stage = tirx.floormod(step, 2)
            # Behind the barrier others have loaded all of this step's factors: its tiles may be overwritten.
            following = [*store(1 - stage), synchronize(), self._begin(1 - stage, place)]
            return sequence([*load(step + 1), self._add(stage, place, sequence(following))])

        begin = [*store(constant(0)), synchronize(), self._begin(constant(0), place)]
        if isinstance(last, int):
            end = self._add(constant(last % 2), place)
            return [*begin, loop(last, overlapped, "step"), end] if last else [*begin, end]
        end = self._add(tirx.floormod(last, 2), place)
        return [*begin, loop(last, overlapped, "step"), end]

    def _left_tile(self, stage: Expression) -> SharedTile:
        size = self.tile.rows
        return SharedTile(self.left_tiles, stage * tile_elements(size, self.tile.depth), size)

    def _right_tile(self, stage: Expression) -> SharedTile:
        size = self.tile.columns
        return SharedTile(self.right_tiles, stage * tile_elements(size, self.tile.depth), size)

    def _factors(self, stage: Expression, place: tuple[Expression, Expression]) -> tuple[Factors, Factors]:
        """What a thread multiplies."""
        tile, along = self.tile, self.tile.threads_along
        return (
            Factors(self._left_tile(stage), place[0], along[0], tile.thread_rows),
            Factors(self._right_tile(stage), place[1], along[1], tile.thread_columns),
        )

    def _begin(self, stage: Expression, place: tuple[Expression, Expression]) -> Statement:
        """Load the first factors of the tiles in buffer `stage`."""
        return self.products.begin(*self._factors(stage, place))

    def _add(
        self, stage: Expression, place: tuple[Expression, Expression], following: Statement | None = None
    ) -> Statement:
        """Add the products of the tiles in buffer `stage`."""
        return self.products.add(*self._factors(stage, place), self.tile.depth, following)

    def _multiply(self, stage: Expression, place: tuple[Expression, Expression]) -> Statement:
        return sequence([self._begin(stage, place), self._add(stage, place)])

    def _store(self, to: Destination, place: tuple[Expression, Expression]) -> Statement:
        tile = self.tile
        left, right = self._factors(constant(0), place)
        lanes = min(to.lanes, right.width)

        def vector(r: Expression, c: Expression) -> Statement:
            """The sums from column `c` of row `r` of the thread's on."""
            row, column = to.row + left.at(r), to.column + right.at(c)
            inside = [
                condition
                for condition, ragged in (
                    (row < to.rows, to.rows % tile.rows),
                    (column < to.columns, to.columns % tile.columns),
                )
                if ragged
            ]
            store = vectorized(lanes, lambda i: to.store(row, column + i, self.sums[r, c + i]))
            return tirx.IfThenElse(tirx.all(*inside), store, None) if inside else store

        def row(r: Expression) -> Statement:
            return unrolled(tile.thread_columns // lanes, lambda c: vector(r, c * lanes), "c")

        return unrolled(tile.thread_rows, row, "r")
