"""Products of matrices by plain instructions of a GPU: tiles in shared memory, sums in registers.

    for each tile of rows and columns, and part of the depth (a block of threads):
      for each tile of the depth:
        load the tiles of both operands that come next into registers
        for k in the tile of the depth:
          sums += column k of the left tile (shared memory) x row k of the right tile
        store what was loaded into the other buffer of shared memory; wait for the block
    for each output element, if there are parts: add their sums in order

Both tiles lie as `[k, row or column]`. Loads from memory are vectors where the operand allows them. Edges:
rows and columns outside are those of the last inside again, whose sums are not stored; the depth is filled up
with zeros. See `block_tile` for which thread has which sums.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from tcomp.tensor.block_tile import BlockTile
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
from tcomp.tensor.matrices import Index, Matrices
from tcomp.tensor.operand import Operand
from tcomp.tensor.shared_tiles import Factors, SharedTile, TileLoader, add_products, each_sum, tile_elements
from tcomp.tensor.template import Scheduled
from tcomp.tensor.threads import digits, launch, shared, synchronize
from tcomp.tensor.totals import Totals
from tcomp.tvm_api import tirx


class SimtProduct:
    """The launches of one product."""

    def __init__(self, matrices: Matrices, tile: BlockTile) -> None:
        self.matrices, self.tile = matrices, tile
        left, right = Operand.left(matrices, tile.vector), Operand.right(matrices, tile.vector)
        guarded = self.steps * tile.split * tile.depth > matrices.depth
        self.left = TileLoader(left, tile.rows, tile.depth, tile.threads, guarded, "left")
        self.right = TileLoader(right, tile.columns, tile.depth, tile.threads, guarded, "right")
        dtype = matrices.accumulator
        sizes = [tile.stages * tile_elements(size, tile.depth) for size in (tile.rows, tile.columns)]
        self.allocate_left, self.left_tiles = shared(sizes[:1], dtype, "left_tiles")
        self.allocate_right, self.right_tiles = shared(sizes[1:], dtype, "right_tiles")
        self.totals = Totals(matrices, tile.split)
        self.allocate_sums, self.sums = local((tile.thread_rows, tile.thread_columns), dtype, "sums")

    @property
    def steps(self) -> int:
        """Tiles of the depth that a block walks."""
        return self.tile.steps(self.matrices.depth)

    @property
    def grid(self) -> tuple[int, ...]:
        """Batch, parts of the depth, tiles of rows, tiles of columns."""
        m, tile = self.matrices, self.tile
        return (*m.batch, tile.split, -(-m.rows // tile.rows), -(-m.columns // tile.columns))

    def launches(self) -> list[Statement]:
        """1. Sums of each part of the depth. 2. Their sums, where there are several."""
        tile = self.tile
        blocks = launch(
            (prod(self.grid),), (tile.threads,), lambda b, t: left_to_compiler(self._block(b[0], t[0]))
        )
        return [blocks, *self.totals.launches()]

    def scheduled(self) -> Scheduled:
        """A kernel of nothing but `launches`."""
        return self.matrices.anchored.scheduled(self.launches())

    def _block(self, block: Expression, thread: Expression) -> Statement:
        *batch, part, row, column = digits(block, self.grid)
        rows, columns = row * self.tile.rows, column * self.tile.columns
        place = self.tile.place(thread)

        def load(step: Expression) -> list[Statement]:
            # A variable of its own, of which the range is known, so that indices simplify.
            number, count = tirx.Var("step_number", "int32"), constant(self.steps * self.tile.split)

            def both(at: Expression) -> Statement:
                left = self.left.load(thread, batch, rows, at)
                return sequence([left, self.right.load(thread, batch, columns, at)])

            return [tirx.Bind(number, part * self.steps + step), under(number, count, both)]

        def store(stage: Expression) -> list[Statement]:
            return [
                self.left.store(thread, self._left_tile(stage)),
                self.right.store(thread, self._right_tile(stage)),
            ]

        zero = tirx.const(0, self.matrices.accumulator)
        return sequence(
            [
                *(self.allocate_left, self.allocate_right, self.left.allocate, self.right.allocate),
                self.allocate_sums,
                each_sum(self.sums, lambda r, c: tirx.BufferStore(self.sums, zero, [r, c])),
                *load(constant(0)),
                *self._walk(load, store, place),
                self._finish(batch, part, rows, columns, place),
            ]
        )

    def _walk(
        self,
        load: Callable[[Expression], list[Statement]],
        store: Callable[[Expression], list[Statement]],
        place: tuple[Expression, Expression],
    ) -> list[Statement]:
        """All steps of the depth; the first tile is loaded."""
        last = self.steps - 1
        if self.tile.stages == 1:

            def one(step: Expression) -> Statement:
                multiply = self._multiply(constant(0), place)
                return sequence(
                    [*store(constant(0)), synchronize(), *load(step + 1), multiply, synchronize()]
                )

            end = [*store(constant(0)), synchronize(), self._multiply(constant(0), place)]
            return [loop(last, one, "step"), *end] if last else end

        def overlapped(step: Expression) -> Statement:
            stage = tirx.floormod(step, 2)
            return sequence([*load(step + 1), self._multiply(stage, place), *store(1 - stage), synchronize()])

        begin = [*store(constant(0)), synchronize()]
        end = self._multiply(constant(last % 2), place)
        return [*begin, loop(last, overlapped, "step"), end] if last else [*begin, end]

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

    def _multiply(self, stage: Expression, place: tuple[Expression, Expression]) -> Statement:
        """Add the products of the tiles in buffer `stage`."""
        return add_products(self.sums, *self._factors(stage, place), self.tile.depth)

    def _finish(
        self,
        batch: Index,
        part: Expression,
        rows: Expression,
        columns: Expression,
        place: tuple[Expression, Expression],
    ) -> Statement:
        tile, matrices = self.tile, self.matrices
        left, right = self._factors(constant(0), place)
        lanes = self.totals.lanes(right.width)

        def vector(r: Expression, c: Expression) -> Statement:
            """The sums from column `c` of row `r` of the thread's on."""
            row, column = rows + left.at(r), columns + right.at(c)
            inside = [
                condition
                for condition, ragged in (
                    (row < matrices.rows, matrices.rows % tile.rows),
                    (column < matrices.columns, matrices.columns % tile.columns),
                )
                if ragged
            ]
            store = vectorized(
                lanes, lambda i: self.totals.store(part, batch, row, column + i, self.sums[r, c + i])
            )
            return tirx.IfThenElse(tirx.all(*inside), store, None) if inside else store

        def row(r: Expression) -> Statement:
            return unrolled(tile.thread_columns // lanes, lambda c: vector(r, c * lanes), "c")

        return unrolled(tile.thread_rows, row, "r")
