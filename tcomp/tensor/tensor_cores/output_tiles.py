"""Outputs of products that pass through shared memory, and are stored from there in whole lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tcomp.relay.types import numpy_dtype
from tcomp.target.tile_map import DRIVER_TYPES
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.epilogue import output_axes
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.loops import (
    Buffer,
    Expression,
    Statement,
    unrolled,
    vectorized,
)
from tcomp.tensor.tensor_cores.mma_plan import CHUNK_BYTES, TiledProduct
from tcomp.tensor.tensor_cores.stored_output import Output, output_of
from tcomp.tvm_api import tirx

_ITEMSIZES = (2, 4)

Place = tuple[Expression, ...]


def row_output(kernel: Kernel, columns: int) -> Output:
    """The output of a product of matrices, which has so many columns."""
    assert kernel.anchor is not None
    return output_of(kernel, {kernel.anchor.output.type.rank - 1: columns}, has_lines(kernel, columns))


def has_lines(kernel: Kernel, columns: int) -> bool:
    """Whether there is one output, of elements of 2 or 4 bytes, that lies as the anchor's does, rows of
    `columns` one after the other, each in whole chunks of 16 bytes."""
    anchor, outputs = kernel.anchor, kernel.body.outputs
    if anchor is None or len(outputs) != 1 or outputs[0].dtype not in DRIVER_TYPES:
        return False
    itemsize = numpy_dtype(outputs[0].dtype).itemsize
    is_in_order = output_axes(kernel) == tuple(range(len(anchor.output.shape)))
    return is_in_order and itemsize in _ITEMSIZES and columns * itemsize % CHUNK_BYTES == 0


@dataclass(frozen=True)
class OutputTiles:
    """The only output of a kernel, which lies in memory as `[batch, rows, columns]` of `product`.

    `index(batch, row, column)` is where the anchor's output has a sum; what follows can be computed of
    `vector` sums of neighbouring columns at once.
    """

    anchored: Anchored
    product: TiledProduct
    index: Callable[[Expression, Expression, Expression], Sequence[Any]]
    vector: int

    @property
    def dtype(self) -> str:
        return str(self.anchored.only_output.dtype)

    @property
    def extents(self) -> tuple[int, ...]:
        """Of the axes along which tiles are cut, one after the other in memory."""
        return self.product.columns, self.product.rows, self.product.batch

    def side_by_side(self, rows: int) -> int:
        """Rows that lie side by side in memory, wherever among `rows` of a tile they begin at a multiple of
        so many."""
        return rows

    def at(self, place: Place) -> Place:
        """Where the rows from `place` (batch, row, column) on lie, along memory first."""
        batch, row, column = place
        return column, row, batch

    def inside(self, row: Expression, column: Expression) -> list[Expression]:
        """What must hold for an element of a tile to be one of the output."""
        product = self.product
        conditions = [row < product.rows] if product.rows % product.block_rows else []
        return conditions + ([column < product.columns] if product.columns % product.block_columns else [])

    def guarded(self, row: Expression, column: Expression, statement: Statement) -> Statement:
        """`statement`, where that is so."""
        inside = self.inside(row, column)
        return tirx.IfThenElse(tirx.all(*inside), statement, None) if inside else statement

    def pair(
        self,
        place: Place,
        sums: Callable[[Expression], Expression],
        words: Buffer,
        to: Expression,
    ) -> Statement:
        """What follows from the sums 0 and 1 of two neighbouring columns, from `place` (batch, row, column)
        on, into `words` from `to` on; nothing beyond the ends."""
        batch, row, column = place

        def one(which: Expression) -> Statement:
            index = self.index(batch, row, column + which)
            return self.anchored.finish_in(index, sums(which), words, [to + which])

        both = vectorized(2, one) if self.vector == 2 else unrolled(2, one)
        return self.guarded(row, column, both)

    def chunk(self, batch: Expression, row: Expression, column: Expression) -> Expression:
        """The address of the 16 bytes that begin there."""
        at = self.anchored.output_index(self.index(batch, row, column))
        return tirx.address_of(tirx.BufferLoad(self.anchored.only_output, at))
