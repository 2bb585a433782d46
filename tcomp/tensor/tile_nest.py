"""The loops of products by tile registers (`tcomp.tensor.amx`).

A thread takes whole pieces of the walk over the output, since what tiles look like is said once a piece.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import gcd, prod

from tcomp.target.target import Target
from tcomp.tensor.amx import STORE, WORD_BYTES, TileBlock
from tcomp.tensor.anchored import PARALLEL_FLOPS
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.loops import (
    CACHE_LINE,
    Buffer,
    Expression,
    Statement,
    local,
    loop,
    parallel,
    prefetch,
    sequence,
    unrolled,
    vectorized,
)
from tcomp.tensor.register_tile import Index, Point, RegisterTile
from tcomp.tvm_api import tirx

WIDEST = 32
"""Sums that are finished together: those of one cache line of 16-bit results."""
PIECES = 8
"""Most pieces of the walk for each thread, so that none waits long for another."""
PIECE_CYCLES = 20_000
"""Least cycles of a piece, unless threads have none then."""
BEGIN_CYCLES = 30.0
"""Cycles of beginning a block."""
FASTER = 8
"""Times that tiles multiply as fast as vectors."""
FINISH_CYCLES = 3.0
"""Cycles of finishing a row of a tile's sums."""


@dataclass(frozen=True)
class Steps:
    """What is summed up: at each step of `extents`, a tile of the left operand and one of the right.

    `left(point, step)` loads the first pair of the element's row, `left_bytes` before that of the next row;
    `right(first, step, place)` that of a column of the tile, `width` words before the next pair's.
    `ahead(first, step)` are statements that fetch what is read later.
    """

    extents: tuple[int, ...]
    left: Callable[[Point, Index], Expression]
    left_bytes: int
    right: Callable[[Point, Index, int], Expression]
    width: int
    ahead: Callable[[Point, Index], Sequence[Statement]]


def tile_blocks_nest(
    tile: RegisterTile,
    block: TileBlock,
    columns: Sequence[int],
    steps: Steps,
    finish: Callable[[Index, Expression], Statement],
    threads: int,
    cycles: float,
) -> Statement:
    """For every tile of the output what `one_block` does; `threads` share pieces of a walk of so many
    `cycles`."""
    count = tile.count
    pieces = pieces_for(count, threads, cycles)

    def piece(number: Expression) -> Statement:
        begin, end = share_of(count, number, pieces)
        walk = loop(
            count if pieces == 1 else end - begin,
            lambda i: one_block(tile, block, columns, steps, finish, tile.numbers(begin + i)),
            "tile",
        )
        return sequence([block.configure(), walk, block.release()])

    return parallel(pieces, piece, "piece")


def pieces_for(count: int, threads: int, cycles: float) -> int:
    """Into how many pieces `threads` cut a walk of `count` parts and so many `cycles`."""
    wanted = min(PIECES * threads, int(cycles / PIECE_CYCLES)) if threads > 1 else 1
    return min(count, max(threads, wanted))


def share_of(count: int, number: Expression, pieces: int) -> tuple[Expression, Expression]:
    """Where piece `number` of a walk of `count` parts begins and ends."""
    return number * count // pieces, (number + 1) * count // pieces


def one_block(
    tile: RegisterTile,
    block: TileBlock,
    columns: Sequence[int],
    steps: Steps,
    finish: Callable[[Index, Expression], Statement],
    numbers: Sequence[Expression],
) -> Statement:
    """For the tile at place `numbers`: clear the sums, go through the steps, and `finish(index, sum)`.

    `columns` are the axes of `tile` that are columns of the product, the last one among them; the others are
    its rows. The registers are configured for `block`.
    """
    sizes = [t.size for t in tile.axes]
    rows = [a for a in range(len(sizes)) if a not in columns]
    assert prod(sizes[a] for a in rows) == block.height
    assert prod(sizes[a] for a in columns) == block.width
    first = tile.first(numbers)
    allocation, sums = local([block.height, block.width], "float32", "sums")

    def left(i: int, step: Index) -> Expression:
        places = [0] * len(sizes)
        place = i * block.rows
        for axis in reversed(rows):
            places[axis], place = place % sizes[axis], place // sizes[axis]
        point = Point(first.tiles, first.bases, tuple(places))
        return tirx.address_of(steps.left(point, step))

    def step(taken: tuple[Expression, ...]) -> Statement:
        if len(taken) < len(steps.extents):
            return loop(steps.extents[len(taken)], lambda i: step((*taken, i)), "step")
        multiply = block.step(
            lambda i: left(i, taken),
            steps.left_bytes,
            lambda j: tirx.address_of(steps.right(first, taken, j * block.lanes)),
            WORD_BYTES * steps.width,
        )
        return sequence([*steps.ahead(first, taken), *multiply])

    stores = block.store(
        lambda i, j: tirx.address_of(tirx.BufferLoad(sums, [i * block.rows, j * block.lanes])),
        WORD_BYTES * block.width,
    )
    work = [allocation, *block.clear(), step(()), *stores]
    return sequence([*work, _finished(tile, first, rows, columns, sums, finish)])


def _finished(
    tile: RegisterTile,
    first: Point,
    rows: Sequence[int],
    columns: Sequence[int],
    sums: Buffer,
    finish: Callable[[Index, Expression], Statement],
) -> Statement:
    """`finish(index, sum)` for all sums of a tile, row by row."""
    sizes = [t.size for t in tile.axes]
    *outer, last = columns
    lanes = gcd(sizes[last], WIDEST)

    def flat(places: dict[int, Expression], axes: Sequence[int]) -> Expression:
        at: Expression = 0
        for axis in axes:
            at = at * sizes[axis] + places[axis]
        return at

    def element(places: dict[int, Expression]) -> Statement:
        point = Point(first.tiles, first.bases, tuple(places[a] for a in range(len(sizes))))
        at = [flat(places, rows), flat(places, columns)]
        return finish(point.index, tirx.BufferLoad(sums, at))

    def strip(places: dict[int, Expression]) -> Statement:
        return unrolled(
            sizes[last] // lanes,
            lambda v: vectorized(lanes, lambda lane: element({**places, last: v * lanes + lane})),
        )

    def nest(places: dict[int, Expression], axes: Sequence[int]) -> Statement:
        if not axes:
            return strip(places)
        axis, *inner = axes
        make = unrolled if axis in outer else loop
        return make(sizes[axis], lambda i: nest({**places, axis: i}, inner))

    return nest({}, [*rows, *outer])


def blocks_cycles(block: TileBlock, steps: int) -> float:
    """Estimated cycles of one block of tiles."""
    finish = block.down * block.across * (STORE + FINISH_CYCLES * block.rows)
    return steps * block.step_cycles + finish + BEGIN_CYCLES


def threads_for(kernel: Kernel, target: Target) -> int:
    """Threads that share a kernel: one where waking others takes as long. Tiles multiply many times as fast
    as vectors, which the common limit is for, and move bytes no faster."""
    return target.cores if kernel.flops / FASTER + kernel.nbytes >= PARALLEL_FLOPS else 1


def panel_ahead(
    panels: Buffer, begin: Sequence[Expression], number: Expression, words: int, rounds: int
) -> list[Statement]:
    """Fetch share `number` of the words of a step, of which the panel walked next takes `words`, one of
    `rounds` a tile of the present one; `begin` is where that step begins."""
    line = CACHE_LINE // WORD_BYTES
    share = -(-words // (line * rounds)) * line
    *outer, last = begin
    return [prefetch(panels, [*outer, last + number * share + n], near=False) for n in range(0, share, line)]
