"""Factors that whole vectors share, for targets that multiply by one lane of a register (`Target.by_lane`).

Where elements that follow each other in memory are factors of steps that follow each other, one load gets
those of several steps: `lanes` of a register are the factors of as many steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import gcd

from tcomp.tensor.loops import (
    Buffer,
    Expression,
    Statement,
    local,
    sequence,
    unrolled,
    vectorized,
    written_out,
)
from tcomp.tensor.register_tile import Factors, Index, Point, RegisterTile
from tcomp.tensor.streams import LANES, Stream
from tcomp.tvm_api import tirx


@dataclass(frozen=True)
class LaneFactors:
    """`read(point, step)` is the factor at a step, for all elements of `tile` that differ on none of `axes`.

    `steps` steps of the last axis of a reduction are loaded together, for each place on `axes`.
    """

    tile: RegisterTile
    axes: Sequence[int]
    steps: int
    read: Callable[[Point, Index], Expression]
    allocation: Statement
    buffer: Buffer

    @staticmethod
    def of(
        tile: RegisterTile,
        axes: Sequence[int],
        steps: int,
        dtype: str,
        read: Callable[[Point, Index], Expression],
    ) -> LaneFactors:
        shape = [*(tile.axes[axis].size for axis in axes), steps]
        return LaneFactors(tile, axes, steps, read, *local(shape, dtype, "factors"))

    def at(self, point: Point, step: Index) -> Expression:
        """The factor, from memory where only one step is loaded at a time."""
        if self.steps == 1:
            return self.read(point, step)
        return tirx.BufferLoad(self.buffer, [*self._places(point), step[-1] % self.steps])

    @property
    def factors(self) -> Factors | None:
        """What a `Reduction` needs to know of them."""
        return Factors(self.steps, self._load) if self.steps > 1 else None

    def _places(self, point: Point) -> list[Expression]:
        return [point.places[axis] for axis in self.axes]

    def _load(self, tile: RegisterTile, first: Point, step: Index) -> list[Statement]:
        *outer, last = step

        def one(places: Sequence[Expression]) -> Statement:
            held: list[Expression] = list(first.places)
            for axis, place in zip(self.axes, places, strict=True):
                held[axis] = place
            point = Point(first.tiles, first.bases, tuple(held))

            def lane(i: Expression) -> Statement:
                return tirx.BufferStore(self.buffer, self.read(point, [*outer, last + i]), [*places, i])

            return vectorized(self.steps, lane)

        return [self.allocation, written_out([tile.axes[axis].size for axis in self.axes], one)]


@dataclass(frozen=True)
class RowFactors:
    """Factors of neighbouring elements of a row (the axis `row` of a tile) at all steps of an axis, the last
    but one of a reduction: element `i` has that of place `i * stride + step` of a stretch in memory.

    `read(point, step, place)` is the factor at a place of the stretch that begins with `point` at `step`.
    """

    row: int
    stride: int
    taps: int
    lanes: int
    read: Callable[[Point, Index, Expression], Expression]
    allocation: Statement
    buffer: Buffer

    @staticmethod
    def of(
        tile: RegisterTile,
        row: int,
        stride: int,
        taps: int,
        lanes: int,
        dtype: str,
        read: Callable[[Point, Index, Expression], Expression],
    ) -> RowFactors:
        shape = [_reach(tile, row, stride, taps)]
        return RowFactors(row, stride, taps, lanes, read, *local(shape, dtype, "factors"))

    def at(self, point: Point, step: Index) -> Expression:
        """The factor, from the registers that hold the row."""
        return tirx.BufferLoad(self.buffer, [point.places[self.row] * self.stride + step[-2]])

    @property
    def factors(self) -> Factors:
        """What a `Reduction` needs to know of them."""
        return Factors(self.taps, self._load, axis=2)

    def _load(self, tile: RegisterTile, first: Point, step: Index) -> list[Statement]:
        """The stretch, in as few vectors as end with it."""
        statements, begin, end = [self.allocation], 0, _reach(tile, self.row, self.stride, self.taps)
        while begin < end:
            width = min(self.lanes, 1 << ((end - begin).bit_length() - 1))

            def lane(i: Expression, begin: int = begin) -> Statement:
                return tirx.BufferStore(self.buffer, self.read(first, step, begin + i), [begin + i])

            statements.append(vectorized(width, lane))
            begin += width
        return [sequence(statements)]


def _reach(tile: RegisterTile, row: int, stride: int, taps: int) -> int:
    """Places that the elements of a tile read of a stretch."""
    return (tile.axes[row].size - 1) * stride + taps


@dataclass(frozen=True)
class MatrixFactors:
    """Elements of a matrix's rows at `steps` steps from one on, loaded together.

    `at(row, place)` is that of a row at the `place`-th of these steps. `reading(body)` is what loads them in
    it.
    """

    steps: int
    load: Callable[[Expression], list[Statement]]
    at: Callable[[Expression, int], Expression]
    reading: Callable[[Statement], Statement] = lambda body: body


def packed_rows(
    tiles: Buffer, tile: Sequence[Expression], rows: int, lanes: int, dtype: str
) -> MatrixFactors | None:
    """Those of one step, in as few registers as rows fill: `tiles` is `[*tile, step, row]`."""
    width = gcd(rows, lanes)
    if width == 1:
        return None
    allocate, held = local((rows,), dtype, "factors")

    def load(k: Expression) -> list[Statement]:
        def lane(r: Expression) -> Statement:
            return tirx.BufferStore(held, tirx.BufferLoad(tiles, [*tile, k, r]), [r])

        vectors = unrolled(rows // width, lambda v: vectorized(width, lambda i: lane(v * width + i)))
        return [allocate, vectors]

    return MatrixFactors(1, load, lambda r, _: tirx.BufferLoad(held, [r]))


def streamed_rows(
    tiles: Buffer, first: Sequence[Expression], rows: int, steps: int, sums: Buffer
) -> MatrixFactors:
    """Those of several steps, which lie side by side from `tiles[first]` on, as a stream."""
    stream = Stream.of(steps * rows // LANES, "factors")
    return MatrixFactors(
        steps,
        lambda _: stream.load(steps * rows // LANES, sums),
        lambda r, place: tirx.BufferLoad(stream.held, [r + place * rows]),
        lambda body: stream.reading(tiles, first, body),
    )


def rows_apart(
    vector: Callable[[Expression, Expression], Expression | None], rows: int, steps: int, dtype: str
) -> MatrixFactors:
    """Those of several steps, a register for each row: `vector(row, step)` is one load."""
    allocate, held = local((rows, steps), dtype, "factors")

    def load(k: Expression) -> list[Statement]:
        every = tirx.Ramp(0, 1, steps)
        return [allocate, unrolled(rows, lambda r: tirx.BufferStore(held, vector(r, k), [r, every]))]

    return MatrixFactors(steps, load, lambda r, place: tirx.BufferLoad(held, [r, place]))
