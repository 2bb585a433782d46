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
from tcomp.tensor.cpu.register_tile import Index, Point, RegisterTile
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.loops import (
    CACHE_LINE,
    Buffer,
    Expression,
    Statement,
    aligned_local,
    loop,
    parallel,
    prefetch,
    sequence,
    unrolled,
    vectorized,
    written_out,
)
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
"""Times that whole kernels by tiles are as fast as by vectors; their products alone are sixteen times."""
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


@dataclass(frozen=True)
class BlockWalk:
    """Tiles of the output, block after block: sums are cleared, go through the steps, and are finished.

    `columns` are the axes of `tile` that are columns of the product, the last one among them; the others are
    its rows. `finish(index, sum)` is what happens with a sum, but for rows whose index `is_output` denies.
    The registers are configured for `block`.
    """

    tile: RegisterTile
    block: TileBlock
    columns: tuple[int, ...]
    steps: Steps
    finish: Callable[[Index, Expression], Statement]
    is_output: Callable[[Index], Expression] | None = None

    def __post_init__(self) -> None:
        assert prod(self._sizes[a] for a in self._rows) == self.block.height
        assert prod(self._sizes[a] for a in self.columns) == self.block.width

    @property
    def _sizes(self) -> list[int]:
        return [t.size for t in self.tile.axes]

    @property
    def _rows(self) -> list[int]:
        return [a for a in range(len(self._sizes)) if a not in self.columns]

    def blocks(self, count: int | Expression, numbers: Callable[[Expression], Index]) -> Statement:
        """`count` blocks, at least one, the i-th being the tile at the place `numbers(i)`.

        Rows of sums are finished between the steps of the next block, by units that wait for its products:
        the registers of tiles are too few for a CPU to get there by itself.
        """
        block = self.block
        allocation, sums = aligned_local([2, block.height, block.width], block.lanes, "float32", "sums")

        def address(half: Expression, row: int, column: int) -> Expression:
            return tirx.address_of(tirx.BufferLoad(sums, [half, row, column]))

        def one(i: Expression) -> Statement:
            first, before = self._first(numbers(i)), self._first(numbers(tirx.max(i - 1, 0)))
            between = self._in_shares(lambda row: self._finished(before, sums, (i + 1) % 2, row), i > 0)
            stores = block.store(
                lambda down, across: address(i % 2, down * block.rows, across * block.lanes),
                WORD_BYTES * block.width,
            )
            return sequence([*block.clear(), self._steps(first, between, ()), *stores])

        last = count - 1
        end = self._first(numbers(last))
        rest = loop(block.height, lambda row: self._finished(end, sums, last % 2, row), "row")
        return sequence([*allocation, loop(count, one, "block"), rest])

    def _first(self, numbers: Index) -> Point:
        return self.tile.first(numbers)

    def _in_shares(
        self, row: Callable[[Expression], Statement], present: Expression
    ) -> Callable[[Expression], Statement]:
        """By the number of a step, its share of the rows of a block, if that is `present`."""
        height, steps = self.block.height, prod(self.steps.extents)
        rows = min(n for n in range(1, height + 1) if height % n == 0 and n * steps >= height)

        def share(step: Expression) -> Statement:
            work = loop(rows, lambda i: row(step * rows + i), "row")
            has_rows = present if steps * rows == height else tirx.all(present, step < height // rows)
            return tirx.IfThenElse(has_rows, work, None)

        return share

    def _steps(self, first: Point, between: Callable[[Expression], Statement], taken: Index) -> Statement:
        """The steps that begin with `taken`; `between(number)` comes behind each."""
        steps, block = self.steps, self.block
        if len(taken) < len(steps.extents):
            extent = steps.extents[len(taken)]
            return loop(extent, lambda i: self._steps(first, between, (*taken, i)), "step")
        number: Expression = 0
        for extent, i in zip(steps.extents, taken, strict=True):
            number = number * extent + i
        multiply = block.step(
            lambda i: tirx.address_of(steps.left(self._row(first, i * block.rows), taken)),
            steps.left_bytes,
            lambda j: tirx.address_of(steps.right(first, taken, j * block.lanes)),
            WORD_BYTES * steps.width,
        )
        return sequence([*steps.ahead(first, taken), *multiply, between(number)])

    def _row(self, first: Point, row: Expression) -> Point:
        """The first element of a row of a block."""
        places: list[Expression] = [0] * len(self._sizes)
        for axis in reversed(self._rows):
            size = self._sizes[axis]
            places[axis], row = (row % size, row // size) if size > 1 else (0, row)
        return Point(first.tiles, first.bases, tuple(places))

    def _finished(self, first: Point, sums: Buffer, half: Expression, row: Expression) -> Statement:
        """`finish(index, sum)` for the sums of a row of a block, which lie in `sums[half]`."""
        begin = self._row(first, row)
        *outer, last = self.columns
        lanes = gcd(self._sizes[last], WIDEST)

        def element(places: dict[int, Expression]) -> Statement:
            column: Expression = 0
            for axis in self.columns:
                column = column * self._sizes[axis] + places[axis]
            at = tuple(places.get(axis, place) for axis, place in enumerate(begin.places))
            point = Point(first.tiles, first.bases, at)
            return self.finish(point.index, tirx.BufferLoad(sums, [half, row, column]))

        def vectors(inner: Sequence[Expression]) -> Statement:
            places = dict(zip(outer, inner, strict=True))
            return unrolled(
                self._sizes[last] // lanes,
                lambda v: vectorized(lanes, lambda lane: element({**places, last: v * lanes + lane})),
            )

        whole = written_out([self._sizes[axis] for axis in outer], vectors)
        if self.is_output is None:
            return whole
        return tirx.IfThenElse(self.is_output(begin.index), whole, None)


def tile_blocks_nest(walk: BlockWalk, threads: int, cycles: float) -> Statement:
    """The whole output; `threads` share pieces of a walk of so many `cycles`."""
    count = walk.tile.count

    def some(begin: Expression, own: int | Expression, number: Expression) -> Statement:
        return walk.blocks(own, lambda i: walk.tile.numbers(begin + i))

    return in_pieces(walk.block, count, pieces_for(count, threads, cycles), some)


def in_pieces(
    block: TileBlock,
    count: int,
    pieces: int,
    body: Callable[[Expression, int | Expression, Expression], Statement],
) -> Statement:
    """`body(first, own, number)` for pieces of `count` parts, which threads share: piece `number` has `own`
    parts from `first` on. The registers are configured for `block`."""
    whole, rest = divmod(count, pieces)

    def piece(number: Expression) -> Statement:
        first = number * whole + (tirx.min(number, rest) if rest else 0)
        own = tirx.Select(number < rest, whole + 1, whole) if rest else whole
        return sequence([block.configure(), body(first, own, number), block.release()])

    return parallel(pieces, piece, "piece")


def pieces_for(count: int, threads: int, cycles: float) -> int:
    """Into how many pieces `threads` cut a walk of `count` parts and so many `cycles`."""
    wanted = min(PIECES * threads, int(cycles / PIECE_CYCLES)) if threads > 1 else 1
    return min(count, max(threads, wanted))


def blocks_cycles(block: TileBlock, steps: int) -> float:
    """Estimated cycles of one block of tiles."""
    finish = block.down * block.across * (STORE + FINISH_CYCLES * block.rows)
    return steps * block.step_cycles + finish + BEGIN_CYCLES


def threads_for(kernel: Kernel, target: Target) -> int:
    """Threads that share a kernel, on any machine: one where waking others takes as long. Tiles multiply many
    times as fast as vectors, which the common limit is for, and move bytes no faster."""
    return target.sharers if kernel.flops / FASTER + kernel.nbytes >= PARALLEL_FLOPS else 1


def panel_ahead(
    panels: Buffer, begin: Sequence[Expression], number: Expression, words: int, rounds: int
) -> list[Statement]:
    """Fetch share `number` of the words of a step, of which the panel walked next takes `words`, one of
    `rounds` a tile of the present one; `begin` is where that step begins."""
    line = CACHE_LINE // WORD_BYTES
    share = -(-words // (line * rounds)) * line
    *outer, last = begin
    return [prefetch(panels, [*outer, last + number * share + n], near=False) for n in range(0, share, line)]
