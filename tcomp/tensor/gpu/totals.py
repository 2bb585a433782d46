"""Where blocks of a GPU leave sums: in the outputs, or as pieces, which a second launch adds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tcomp.tensor.alignment import anywhere, vector_lanes
from tcomp.tensor.gpu.matrices import Index, Sums
from tcomp.tensor.gpu.shares import Segment, Shares, Tiling
from tcomp.tensor.gpu.threads import digits, spread
from tcomp.tensor.loops import (
    Expression,
    Statement,
    constant,
    local,
    loop,
    sequence,
    vectorized,
)
from tcomp.tvm_api import tirx

_THREADS = 256
_LANES = 4

StoreSum = Callable[[Expression, Expression, Expression], Statement]
"""Of one sum: row, column, value."""


@dataclass(frozen=True)
class Destination:
    """A matrix of `rows x columns` where the sums of a tile are left: the tile begins at (`row`, `column`).

    `lanes` neighbours of a row can be stored at once.
    """

    row: Expression
    column: Expression
    rows: int
    columns: int
    lanes: int
    store: StoreSum


class Totals:
    """The sums of a product whose tiles are shared by blocks."""

    def __init__(self, sums: Sums, tiling: Tiling, shares: Shares, lanes: int | None = None) -> None:
        """`lanes` neighbours of a row are stored in the outputs at once: as many as can where not given."""
        self._sums, self._tiling, self._shares = sums, tiling, shares
        self._tile = tiling.tile_rows, tiling.tile_columns
        if shares.pieces:
            shape = (shares.pieces, *self._tile)
            self._pieces = sums.anchored.add_scratch(shape, sums.accumulator, "pieces")
        self._lanes = self._output_lanes() if lanes is None else lanes

    def _output_lanes(self) -> int:
        m = self._sums
        value = tirx.const(0, m.accumulator)

        def lanes(index: Index) -> int:
            *batch, row = index
            return vector_lanes(lambda column: m.store(batch, row, column, value), m.columns, _LANES)

        return anywhere((*m.batch, m.rows), lanes)

    def _piece_lanes(self) -> int:
        rows, columns = self._tile
        value = tirx.const(0, self._sums.accumulator)

        def lanes(index: Index) -> int:
            return vector_lanes(
                lambda column: tirx.BufferStore(self._pieces, value, [*index, column]), columns, _LANES
            )

        return anywhere((self._shares.pieces, rows), lanes)

    def stored(
        self,
        segment: Segment,
        write: Callable[[Destination], Statement],
        finish: Callable[[], Statement] | None = None,
    ) -> Statement:
        """`write` to where the sums of a segment go; `finish`, if given, where these are the outputs."""
        if segment.whole is False:
            return write(self._piece(segment))
        outputs = finish() if finish is not None else write(self._outputs(segment))
        if segment.whole is True:
            return outputs
        return tirx.IfThenElse(segment.whole, outputs, write(self._piece(segment)))

    def _outputs(self, segment: Segment) -> Destination:
        m = self._sums
        batch, first_row, first_column = self._tiling.place(segment.tile)

        def store(row: Expression, column: Expression, value: Expression) -> Statement:
            return m.store(batch, row, column, value)

        return Destination(first_row, first_column, m.rows, m.columns, self._lanes, store)

    def _piece(self, segment: Segment) -> Destination:
        def store(row: Expression, column: Expression, value: Expression) -> Statement:
            return tirx.BufferStore(self._pieces, value, [segment.piece, row, column])

        return Destination(constant(0), constant(0), *self._tile, self._piece_lanes(), store)

    def launches(self) -> list[Statement]:
        """What adds the pieces, in order: bits do not depend on which came first."""
        if not self._shares.pieces:
            return []
        rows, columns = self._tile
        together = min(self._output_lanes(), self._piece_lanes())

        def some(number: Expression) -> Statement:
            tile, row, vector = digits(number, (self._shares.divided, rows, columns // together))
            return self._added(tile, row, vector * together, together)

        return [spread(self._shares.divided * rows * columns // together, _THREADS, some)]

    def _added(self, tile: Expression, row: Expression, column: Expression, lanes: int) -> Statement:
        """The totals of `lanes` sums of a tile, from (`row`, `column`) of it on."""
        m = self._sums
        rows, columns = self._tile
        batch, first_row, first_column = self._tiling.place(tile)
        own_row, own_column = first_row + row, first_column + column
        addends = self._shares.addends(tile)
        inside = [own_row < m.rows] if m.rows % rows else []
        inside += [own_column < m.columns] if m.columns % columns else []

        def piece(i: Expression, lane: Expression) -> Expression:
            return self._pieces[(addends.first + i * addends.stride, row, column + lane)]

        if isinstance(addends.count, int):
            count = addends.count

            def total(lane: Expression) -> Statement:
                first, *others = (piece(constant(i), lane) for i in range(count))
                return m.store(batch, own_row, own_column + lane, sum(others, first))

            statement = vectorized(lanes, total)
        else:
            inside.append(addends.count > 1)
            allocate, totals = local((lanes,), m.accumulator, "totals")

            def add(i: Expression) -> Statement:
                return vectorized(
                    lanes,
                    lambda lane: tirx.BufferStore(totals, totals[lane] + piece(i + 1, lane), [lane]),
                )

            statement = sequence(
                [
                    allocate,
                    vectorized(
                        lanes, lambda lane: tirx.BufferStore(totals, piece(constant(0), lane), [lane])
                    ),
                    loop(addends.count - 1, add, "piece"),
                    vectorized(lanes, lambda lane: m.store(batch, own_row, own_column + lane, totals[lane])),
                ]
            )
        return tirx.IfThenElse(tirx.all(*inside), statement, None) if inside else statement
