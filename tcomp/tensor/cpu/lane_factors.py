"""Factors that whole vectors share, for targets that multiply by one lane of a register (`Target.by_lane`).

Where elements that follow each other in memory are factors of steps that follow each other, one load gets
those of several steps: `lanes` of a register are the factors of as many steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd, prod

from tcomp.target.target import Target
from tcomp.tensor.cpu.register_tile import Index, Point, RegisterTile
from tcomp.tensor.cpu.streams import LANES, Stream, registers_of_loads
from tcomp.tensor.cpu.tile_sums import Factors
from tcomp.tensor.loops import (
    Buffer,
    Expression,
    Statement,
    constant,
    local,
    sequence,
    unrolled,
    vectorized,
    written_out,
)
from tcomp.tvm_api import tirx, tvm


@dataclass(frozen=True)
class LaneFactors:
    """`read(point, step)` is the factor at a step, for all elements of `tile` that differ on none of `axes`.

    `steps` steps of the last axis of a reduction of `extents` are loaded together, for each place on `axes`.
    With a `stream`, those of all places are loads of several registers where they lie side by side.
    """

    tile: RegisterTile
    axes: Sequence[int]
    steps: int
    read: Callable[[Point, Index], Expression]
    allocation: Statement
    buffer: Buffer
    stream: Stream | None

    @staticmethod
    def of(
        tile: RegisterTile,
        axes: Sequence[int],
        steps: int,
        dtype: str,
        read: Callable[[Point, Index], Expression],
        streamed: bool = False,
    ) -> LaneFactors:
        shape = [*(tile.axes[axis].size for axis in axes), steps]
        stream = Stream.of("factors") if streamed and steps == LANES else None
        return LaneFactors(tile, axes, steps, read, *local(shape, dtype, "factors"), stream)

    def at(self, point: Point, step: Index) -> Expression:
        """The factor, from memory where only one step is loaded at a time."""
        if self.steps == 1:
            return self.read(point, step)
        return tirx.BufferLoad(self.buffer, [*self._places(point), step[-1] % self.steps])

    def factors(self, extents: Sequence[int]) -> Factors | None:
        """What a `Reduction` of `extents` needs to know of them."""
        if self.steps == 1:
            return None
        if self.stream is None:
            return Factors(self.steps, self._load)
        if prod(extents[1:-1]) == 1 and extents[-1] == self.steps:
            return Factors(self.steps, self._load_on, reading=self._reading)
        return Factors(self.steps, self._load_row)

    def _places(self, point: Point) -> list[Expression]:
        return [point.places[axis] for axis in self.axes]

    def _sizes(self, tile: RegisterTile) -> list[int]:
        return [tile.axes[axis].size for axis in self.axes]

    def _at(self, first: Point, places: Sequence[Expression]) -> Point:
        held: list[Expression] = list(first.places)
        for axis, place in zip(self.axes, places, strict=True):
            held[axis] = place
        return Point(first.tiles, first.bases, tuple(held))

    def _load(self, tile: RegisterTile, first: Point, step: Index, sums: Buffer) -> list[Statement]:
        *outer, last = step

        def one(places: Sequence[Expression]) -> Statement:
            point = self._at(first, places)

            def lane(i: Expression) -> Statement:
                return tirx.BufferStore(self.buffer, self.read(point, [*outer, last + i]), [*places, i])

            return vectorized(self.steps, lane)

        return [self.allocation, written_out(self._sizes(tile), one)]

    def _lie_side_by_side(self, tile: RegisterTile, first: Point, step: Index) -> bool:
        """Whether the factors of all places do."""
        *outer, size = self._sizes(tile)
        places = [self._at(first, [*(0 for _ in outer), i]) for i in range(size)]
        loads = [self.read(point, step) for point in places]
        return prod(outer) == 1 and all(_distance(a, b) == LANES for a, b in pairwise(loads))

    def _stride(self, first: Point, step: Index) -> int | None:
        """How far apart the factors of two chunks of steps lie, where that is the same for all chunks."""
        chunk, *inner = step
        return _distance(self.read(first, step), self.read(first, [chunk + 1, *inner]))

    def _load_row(self, tile: RegisterTile, first: Point, step: Index, sums: Buffer) -> list[Statement]:
        """One stream for each load of all places."""
        if self.stream is None or not self._lie_side_by_side(tile, first, step):
            return self._load(tile, first, step, sums)
        source, loads = self.read(first, step), self.stream.load(self.buffer, prod(self._sizes(tile)), sums)
        return [self.allocation, self.stream.reading(source.source, source.indices, sequence(loads))]

    def _load_on(self, tile: RegisterTile, first: Point, step: Index, sums: Buffer) -> list[Statement]:
        """The next load of one stream for all chunks."""
        if self.stream is None or not self._is_stream(tile, first, step):
            return self._load_row(tile, first, step, sums)
        return [self.allocation, *self.stream.load(self.buffer, prod(self._sizes(tile)), sums, skips=True)]

    def _is_stream(self, tile: RegisterTile, first: Point, step: Index) -> bool:
        return self._lie_side_by_side(tile, first, step) and self._stride(first, step) is not None

    def _reading(self, tile: RegisterTile, first: Point, step: Index, body: Statement) -> Statement:
        stride = self._stride(first, step)
        if self.stream is None or stride is None or not self._is_stream(tile, first, step):
            return body
        source, (last, _) = self.read(first, step), registers_of_loads(prod(self._sizes(tile)))[-1]
        return self.stream.reading(source.source, source.indices, body, stride - last * LANES)


def _distance(one: Expression, other: Expression) -> int | None:
    """Elements between two loads of a buffer, where that is a constant."""
    between: Expression = 0
    for extent, a, b in zip(one.source.shape, one.indices, other.indices, strict=True):
        between = between * extent + (b - a)
    found = tvm.sym.Analyzer().simplify(between + constant(0))
    return int(found) if isinstance(found, tirx.IntImm) else None


@dataclass(frozen=True)
class WeightRows:
    """Rows of `width` elements of `panels`, one for each step of a reduction, in the order of the steps.

    `row(point, step)` is the index of a row. Where `steps` is not 0, the rows of so many are one load.
    """

    steps: int
    width: int
    panels: Buffer
    row: Callable[[Point, Index], Index]
    stream: Stream
    allocation: Statement
    buffer: Buffer

    @staticmethod
    def of(steps: int, width: int, panels: Buffer, row: Callable[[Point, Index], Index]) -> WeightRows:
        held = local((max(1, steps), width), str(panels.dtype), "weights")
        return WeightRows(steps, width, panels, row, Stream.of("weights"), *held)

    def at(self, point: Point, step: Index, place: Expression) -> Expression:
        """An element of a step's row, from memory where rows are not loaded as a stream."""
        if not self.steps:
            return tirx.BufferLoad(self.panels, [*self.row(point, step), place])
        return tirx.BufferLoad(self.buffer, [step[-1] % self.steps, place])

    @property
    def factors(self) -> Factors | None:
        """What a `Reduction` needs to know of them."""
        return Factors(self.steps, self._load, reading=self._reading) if self.steps else None

    def _load(self, tile: RegisterTile, first: Point, step: Index, sums: Buffer) -> list[Statement]:
        return [self.allocation, *self.stream.load(self.buffer, self.steps * self.width // LANES, sums)]

    def _reading(self, tile: RegisterTile, first: Point, step: Index, body: Statement) -> Statement:
        return self.stream.reading(self.panels, [*self.row(first, step), 0], body)


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

    def _load(self, tile: RegisterTile, first: Point, step: Index, sums: Buffer) -> list[Statement]:
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
    stream = Stream.of("factors")
    allocate, held = local((steps, rows), "float32", "factors")
    return MatrixFactors(
        steps,
        lambda _: [allocate, *stream.load(held, steps * rows // LANES, sums)],
        lambda r, place: tirx.BufferLoad(held, [place, r]),
        lambda body: stream.reading(tiles, first, body),
    )


def rows_fit(target: Target, rows: int, vectors: int) -> bool:
    """Whether a tile of rows by vectors leaves registers for factors of each row (`rows_apart`)."""
    return rows <= target.factor_registers and rows * vectors + vectors + rows <= target.vector_registers


def rows_apart(
    vector: Callable[[Expression, Expression], Expression | None], rows: int, steps: int, dtype: str
) -> MatrixFactors:
    """Those of several steps, a register for each row: `vector(row, step)` is one load."""
    allocate, held = local((rows, steps), dtype, "factors")

    def load(k: Expression) -> list[Statement]:
        every = tirx.Ramp(0, 1, steps)
        return [allocate, unrolled(rows, lambda r: tirx.BufferStore(held, vector(r, k), [r, every]))]

    return MatrixFactors(steps, load, lambda r, place: tirx.BufferLoad(held, [r, place]))
