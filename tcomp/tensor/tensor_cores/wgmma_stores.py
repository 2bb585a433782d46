"""The output of a product by warp groups on its way through shared memory.

A warp writes a part of what it computed, 16 rows of 128 bytes, to one of its own buffers, and one of its
threads asks the copy engine to store it, in whole lines. The warp goes on with the next part, and with the
next tile: it waits only for a buffer that it needs again. No other warp touches these, so none waits for
another.

    wait until the copy engine has read what was there (one thread); tell the warp
    write, each thread its sums; make them seen by the copy engine (each thread); tell the warp
    ask for the store, as a group of its own (one thread)

A buffer has the order of the 128-byte swizzle, so that 8 rows of a matrix of `stmatrix` are in different
banks. Source: CUTLASS, `sm90_epilogue_tma_warpspecialized.hpp`, where four warps share a buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from tcomp.target.tile_map import LINE_BYTES, TileMap
from tcomp.tensor.loops import (
    Buffer,
    Expression,
    Statement,
    call,
    constant,
    local,
    sequence,
    unrolled,
    written_out,
)
from tcomp.tensor.tensor_cores.copy_engine import address_of_map
from tcomp.tensor.tensor_cores.mma_plan import CHUNK_BYTES, MATRIX
from tcomp.tensor.tensor_cores.output_tiles import OutputTiles, Place
from tcomp.tensor.tensor_cores.wgmma_plan import INSTRUCTION_ROWS, PLACE_BYTES, PLACE_ROWS, WgmmaPlan
from tcomp.tvm_api import tirx


def output_tiles(plan: WgmmaPlan, output: OutputTiles) -> TileMap:
    """What is stored at once."""
    extents = output.extents
    strides = tuple(prod(extents[:axis]) * plan.output.nbytes for axis in range(1, len(extents)))
    box = LINE_BYTES // plan.output.nbytes, output.side_by_side(PLACE_ROWS), *(1,) * len(extents[2:])
    return TileMap(output.dtype, extents, strides, box)


@dataclass(frozen=True)
class TileStores:
    """Stores of one warp: its buffers begin at address `begin`, its thread is number `lane` of it."""

    plan: WgmmaPlan
    output: OutputTiles
    map: Any
    begin: Expression
    lane: Expression

    def stored(self, sums: Buffer, batch: Expression, row: Expression, column: Expression) -> Statement:
        """Store `sums[piece, columns / 8, 4]`: pieces of 16 rows from `row` on, 64 apart. See `Fragments`."""
        plan = self.plan
        allocate, words = local((CHUNK_BYTES // plan.output.nbytes,), self.output.dtype, "words")
        part_columns = LINE_BYTES // plan.output.nbytes
        along = plan.block_columns // part_columns

        def part(at: list[Expression]) -> Statement:
            piece, number = at
            buffer = tirx.floormod(piece * along + number, plan.buffers)
            place = tirx.Var("place", "int32")
            first, own_row = column + number * part_columns, row + piece * INSTRUCTION_ROWS

            def values(eight: Expression, half: Expression, to: Expression) -> Statement:
                """Two of a row, of 8 columns of the part, into `words` from `to` on."""
                value_row = own_row + half * MATRIX + tirx.floordiv(self.lane, 4)
                value_column = first + eight * MATRIX + tirx.floormod(self.lane, 4) * 2
                own_eight = number * (part_columns // MATRIX) + eight
                return self.output.pair(
                    (batch, value_row, value_column),
                    lambda which: sums[piece, own_eight, half * 2 + which],
                    words,
                    to,
                )

            write = self._matrices if plan.output.nbytes == 2 else self._pairs
            return sequence(
                [
                    tirx.Bind(place, self.begin + buffer * PLACE_BYTES),
                    self._first(call(f"tcomp_stores_wait<{plan.buffers - 1}>")),
                    call("__syncwarp"),
                    write(place, words, values),
                    call("tcomp_writes_are_seen"),
                    call("__syncwarp"),
                    self._first(
                        *self._asks(place, (batch, own_row, first)),
                        call("tcomp_stores_commit"),
                    ),
                ]
            )

        return sequence([allocate, written_out((plan.pieces, along), part)])

    def _asks(self, buffer: Expression, place: Place) -> Iterator[Statement]:
        """For the stores of what is in a buffer."""
        batch, row, column = place
        for first in range(0, PLACE_ROWS, self.output.side_by_side(PLACE_ROWS)):
            at = self.output.at((batch, row + first, column))
            yield call("tcomp_store_tile", address_of_map(self.map), buffer + first * LINE_BYTES, *at)

    def ended(self) -> Statement:
        """Wait until nothing is read from the buffers any more."""
        return self._first(call("tcomp_stores_wait<0>"))

    def _first(self, *statements: Statement) -> Statement:
        """By one thread, whose groups of stores those of the warp are."""
        return tirx.IfThenElse(self.lane < 1, sequence([*statements]), None)

    def _matrices(self, place: Expression, words: Buffer, values: Callable[..., Statement]) -> Statement:
        """16 bits: 16 rows by 16 columns at once, each 8x8 of which is a register of each thread."""
        line, above = tirx.floormod(self.lane, PLACE_ROWS), tirx.floordiv(self.lane, PLACE_ROWS)
        chunk = tirx.bitwise_xor(above, tirx.floormod(line, MATRIX))
        own = line * LINE_BYTES + chunk * CHUNK_BYTES

        def four(sixteen: Expression) -> Statement:
            at = place + tirx.bitwise_xor(own, sixteen * (2 * CHUNK_BYTES))
            return sequence(
                [
                    written_out((2, 2), lambda i: values(sixteen * 2 + i[0], i[1], i[0] * 4 + i[1] * 2)),
                    call("tcomp_write_matrices", at, tirx.address_of(words[0])),
                ]
            )

        return unrolled(LINE_BYTES // (2 * CHUNK_BYTES), four)

    def _pairs(self, place: Expression, words: Buffer, values: Callable[..., Statement]) -> Statement:
        """32 bits: each thread its two of 8 columns."""
        line, pair = tirx.floordiv(self.lane, 4), tirx.floormod(self.lane, 4)
        chunk = tirx.bitwise_xor(tirx.floordiv(pair, 2), line)
        own = line * LINE_BYTES + chunk * CHUNK_BYTES + tirx.floormod(pair, 2) * 8

        def two(at: list[Expression]) -> Statement:
            eight, half = at
            own_place = place + half * (MATRIX * LINE_BYTES)
            where = own_place + tirx.bitwise_xor(own, eight * (2 * CHUNK_BYTES))
            write = call("tcomp_write_two_words", where, tirx.address_of(words[0]))
            return sequence([values(eight, half, constant(0)), write])

        return written_out((LINE_BYTES // (2 * CHUNK_BYTES), 2), two)
