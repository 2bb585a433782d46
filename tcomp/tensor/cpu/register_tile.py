"""Tiles of an output that are kept in registers, and the points in them.

Tiles overlap at the end of an axis, so that no loop has a rest and no store a predicate; on one axis the last
tile may be a smaller one instead (see `primitives.Tiles`). `tensor.cpu.tile_sums` sums up what they hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import gcd, prod

from tcomp.errors import ScheduleError
from tcomp.tensor.cpu.primitives import Tiles
from tcomp.tensor.groups import SIDE
from tcomp.tensor.loops import Expression, Statement, unrolled, vectorized
from tcomp.tvm_api import tirx

Index = Sequence[Expression]
FMA_LATENCY = 4
"""Cycles until a sum can be added to again: a tile of fewer vectors than this times the ports waits."""


@dataclass(frozen=True)
class RegisterTile:
    """How the output is tiled: one `Tiles` an axis, the last axis being that of vectors of `lanes`.

    `order` lists the axes whose tiles are walked from the outermost to the innermost loop. All of these
    loops are one, so that threads share them evenly. `inside` lists all axes but the last in the order in
    which the elements of a tile are written out: what the innermost of them shares (a broadcast input)
    is needed in a register only once at a time, what the outermost shares stays in registers throughout.
    """

    axes: tuple[Tiles, ...]
    order: tuple[int, ...]
    inside: tuple[int, ...]
    lanes: int
    squares: int | None = None
    """The axis that vectors of sums share with the last one, if any: a vector is a square of `SIDE` places
    of each, row by row. Their tiles are then whole numbers of squares and of vectors.

    Places of the last axis count the elements of squares that lie beside each other while sums are added
    to; finished sums lie in rows again.
    """

    @staticmethod
    def of(
        axes: Sequence[Tiles],
        order: Sequence[int],
        vector_lanes: int,
        inside: Sequence[int] | None = None,
        squares: int | None = None,
    ) -> RegisterTile:
        """`lanes` is the widest vector that divides the last axis of the tile; `inside` in order of axes."""
        written = tuple(range(len(axes) - 1) if inside is None else inside)
        lanes = gcd(axes[-1].size, vector_lanes)
        return RegisterTile(tuple(axes), tuple(order), written, lanes, squares)

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents of a tile's sums: in squares the last axis is longer and the other one shorter."""
        sizes = [t.size for t in self.axes]
        if self.squares is not None:
            sizes[self.squares] //= SIDE
            sizes[-1] *= SIDE
        return tuple(sizes)

    @property
    def disjoint(self) -> bool:
        """Whether each element of the output is in one tile only."""
        return all(axis.disjoint for axis in self.axes)

    @property
    def count(self) -> int:
        """Tiles of the whole output."""
        return prod(t.count for t in self.axes)

    @property
    def size(self) -> int:
        """Elements of one tile."""
        return prod(t.size for t in self.axes)

    def numbers(self, number: Expression) -> list[Expression]:
        """The place of tile `number` among the tiles of every axis."""
        found: list[Expression] = [0] * len(self.axes)
        for axis in reversed(self.order):
            count = self.axes[axis].count
            if count > 1:
                found[axis], number = number % count, number // count
        return found

    def first(self, numbers: Index) -> Point:
        """The first element of the tile at place `numbers` among the tiles of every axis."""
        bases = tuple(t.base(n) for t, n in zip(self.axes, numbers, strict=True))
        return Point(tuple(numbers), bases, (0,) * len(bases))

    def or_rest(self, first: Point, body: Callable[[RegisterTile], Statement]) -> Statement:
        """`body(tile)`, the tile being this one, or the smaller one at the end of an axis with a rest.

        Raises ScheduleError when several axes have one.
        """
        rests = [axis for axis, tiles in enumerate(self.axes) if tiles.rest]
        if not rests:
            return body(self)
        if len(rests) > 1:
            raise ScheduleError(f"register tiles have a rest on {len(rests)} axes; one may have one")
        (axis,) = rests
        tiles = self.axes[axis]
        smaller = (*self.axes[:axis], replace(tiles, size=tiles.rest), *self.axes[axis + 1 :])
        is_whole = first.tiles[axis] < tiles.count - 1
        return tirx.IfThenElse(is_whole, body(self), body(replace(self, axes=smaller)))


@dataclass(frozen=True)
class Point:
    """One element of the output: on every axis its tile, the tile's first element, its place in the tile."""

    tiles: tuple[Expression, ...]
    bases: tuple[Expression, ...]
    places: tuple[Expression, ...]

    @property
    def index(self) -> list[Expression]:
        """The element's place in the output."""
        return [b + p for b, p in zip(self.bases, self.places, strict=True)]


def flat(shape: Sequence[int], index: Sequence[Expression]) -> Expression:
    """The place of `index` in row-major order."""
    at: Expression = 0
    for size, place in zip(shape, index, strict=True):
        at = at * size + place
    return at


def positions(tile: RegisterTile, first: Point, body: Callable[[Point, Expression], Statement]) -> Statement:
    """`body(point, place in the tile)` over the tile: vectors of lanes, everything else written out."""
    *outer, last = tile.shape

    def nest(places: dict[int, Expression]) -> Statement:
        if len(places) < len(outer):
            axis = tile.inside[len(places)]
            return unrolled(outer[axis], lambda i: nest({**places, axis: i}))

        def lane_at(vector: Expression, lane: Expression) -> Statement:
            here = [*(places[axis] for axis in range(len(outer))), vector * tile.lanes + lane]
            at = flat(tile.shape, here)
            if tile.squares is not None:
                here[tile.squares] = here[tile.squares] * SIDE
            return body(Point(first.tiles, first.bases, tuple(here)), at)

        return unrolled(
            last // tile.lanes, lambda vector: vectorized(tile.lanes, lambda lane: lane_at(vector, lane))
        )

    return nest({})
