"""Sums of tensor cores in registers, and how they are stored."""

from __future__ import annotations

from dataclasses import dataclass

from tcomp.tensor.gpu.totals import StoreSum
from tcomp.tensor.loops import (
    Buffer,
    Expression,
    Statement,
    unrolled,
    vectorized,
    written_out,
)
from tcomp.tvm_api import tirx


@dataclass(frozen=True)
class Fragments:
    """What a thread of a warp has of pieces of 16 rows: `sums[piece, columns / 8, 4]`.

    Of each 8 columns it has two neighbours of row lane / 4, at 2 * (lane % 4), and the same two of the 8th
    row below: PTX ISA, "Matrix Fragments for mma.m16n8k16", and the same for `wgmma`. The product has `rows`
    and `columns` in all. `vector` neighbours of a row are stored at once: 2, or 1 where they do not lie side
    by side.
    """

    distance: int
    """From a warp's piece to its next, in rows."""
    sums: Buffer
    rows: int
    columns: int
    vector: int

    def stored(
        self, lane: Expression, row: Expression, column: Expression, block: tuple[int, int], store: StoreSum
    ) -> Statement:
        """Store those that are inside; pieces begin at (row, column), and tiles are of `block` sums."""
        row, column = row + tirx.floordiv(lane, 4), column + tirx.floormod(lane, 4) * 2
        pieces, columns = (int(extent) for extent in self.sums.shape[:2])

        def two(at: list[Expression]) -> Statement:
            i, half, j = at
            own_row, own_column = row + (i * self.distance + half * 8), column + j * 8

            def one(which: Expression) -> Statement:
                stored = store(own_row, own_column + which, self.sums[i, j, half * 2 + which])
                whole = self.columns % block[1] == 0 or self.vector == 2
                return stored if whole else tirx.IfThenElse(own_column + which < self.columns, stored, None)

            both = vectorized(2, one) if self.vector == 2 else unrolled(2, one)
            inside = [own_row < self.rows] if self.rows % block[0] else []
            if self.columns % block[1] and self.vector == 2:
                inside.append(own_column < self.columns)
            return tirx.IfThenElse(tirx.all(*inside), both, None) if inside else both

        return written_out((pieces, 2, columns), two)
