"""The output of a product by `mma.sync` on its way through shared memory.

Behind the last step stages are free. A warp writes what it computed of its tile to a part of them that is its
own, two elements of a row at a time, and reads it in chunks of 16 bytes, neighbours in a row by neighbouring
threads: so it stores up to 128 bytes of a row at once, not half sectors. Lines are in the order of stages.
Elements of 16 bits are written and read without conflicts of banks, and those of 32 bits are read so.
"""

from __future__ import annotations

from dataclasses import dataclass

from tcomp.relay.types import numpy_dtype
from tcomp.tensor.gpu.warps import WARP
from tcomp.tensor.loops import (
    Buffer,
    Expression,
    Statement,
    call,
    constant,
    local,
    sequence,
    written_out,
)
from tcomp.tensor.tensor_cores.mma_operand import swizzle
from tcomp.tensor.tensor_cores.mma_plan import CHUNK_BYTES, MATRIX, MmaPlan
from tcomp.tensor.tensor_cores.output_tiles import OutputTiles
from tcomp.tvm_api import tirx

_PIECE_ROWS = 16


@dataclass(frozen=True)
class LineStores:
    """Stores of a thread, number `lane` of warp `warp`, by way of `memory`."""

    plan: MmaPlan
    output: OutputTiles
    memory: Buffer
    warp: Expression
    lane: Expression

    @property
    def _row_chunks(self) -> int:
        """Of a row of a warp's tile."""
        return self.plan.warp_columns * self.plan.output.nbytes // CHUNK_BYTES

    @property
    def _line_chunks(self) -> int:
        return min(MATRIX, self._row_chunks)

    def _place(self, piece: Expression, line: Expression, chunk: Expression, byte: Expression) -> Expression:
        """Where byte `byte` of a chunk of a row of a piece of 16 rows is."""
        of_warp = self.plan.warp_rows * self._row_chunks
        part, own = tirx.floordiv(chunk, self._line_chunks), tirx.floormod(chunk, self._line_chunks)
        number = (piece * (self._row_chunks // self._line_chunks) + part) * _PIECE_ROWS + line
        own = tirx.bitwise_xor(own, swizzle(line, self._line_chunks))
        at = (self.warp * of_warp + number * self._line_chunks + own) * CHUNK_BYTES + byte
        return tirx.address_of(self.memory[tirx.floordiv(at, numpy_dtype(str(self.memory.dtype)).itemsize)])

    def stored(self, sums: Buffer, batch: Expression, row: Expression, column: Expression) -> Statement:
        """Store `sums[piece, columns / 8, 4]`: pieces of 16 rows, from (row, column) on. See `Fragments`."""
        plan, lane = self.plan, self.lane
        pieces, eights = (int(extent) for extent in sums.shape[:2])
        allocate, words = local((2,), self.output.dtype, "words")
        line, pair = tirx.floordiv(lane, 4), tirx.floormod(lane, 4)
        chunks_of_eight = MATRIX * plan.output.nbytes // CHUNK_BYTES
        byte = tirx.floormod(pair, 4 // chunks_of_eight) * (2 * plan.output.nbytes)

        def write(at: list[Expression]) -> Statement:
            i, half, j = at
            own_row = row + i * _PIECE_ROWS + half * MATRIX + line
            own_column = column + j * MATRIX + pair * 2
            chunk = j * chunks_of_eight + tirx.floordiv(pair, 4 // chunks_of_eight)
            place = self._place(i, half * MATRIX + line, chunk, byte)
            return sequence(
                [
                    self.output.pair(
                        (batch, own_row, own_column),
                        lambda which: sums[i, j, half * 2 + which],
                        words,
                        constant(0),
                    ),
                    call(f"tcomp_put_words<{plan.output.nbytes // 2}>", place, tirx.address_of(words[0])),
                ]
            )

        def read(at: list[Expression]) -> Statement:
            i, number = at
            within = number * WARP + lane
            lines = self._line_chunks * _PIECE_ROWS
            own_line = tirx.floormod(tirx.floordiv(within, self._line_chunks), _PIECE_ROWS)
            chunk = tirx.floordiv(within, lines) * self._line_chunks + tirx.floormod(
                within, self._line_chunks
            )
            own_row = row + i * _PIECE_ROWS + own_line
            own_column = column + chunk * (CHUNK_BYTES // plan.output.nbytes)
            place = self._place(i, own_line, chunk, constant(0))
            store = call("tcomp_store_chunk", self.output.chunk(batch, own_row, own_column), place)
            return self.output.guarded(own_row, own_column, store)

        return sequence(
            [
                allocate,
                written_out((pieces, 2, eights), write),
                call("__syncwarp"),
                written_out((pieces, _PIECE_ROWS * self._row_chunks // WARP), read),
            ]
        )
