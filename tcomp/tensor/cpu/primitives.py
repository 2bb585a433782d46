"""What register-tiled kernels are made of: tiles that overlap at the edge, cut loops, transposed squares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from tcomp.tvm_api import te, tirx

Expression = Any


@dataclass(frozen=True)
class Tiles:
    """`count` tiles of `size` that cover an axis of `extent`; the last ones overlap where they must.

    Every tile is whole and lies inside the axis, so that tiled code needs neither padding nor predicates:
    elements that two tiles cover are computed twice, to the same bits. The tiles' stores must therefore
    not destroy what another tile reads: where they overlap, an output must not share memory with an operand.
    """

    extent: int
    size: int
    count: int
    rest: int = 0
    """Size of the last tile where it is a smaller one that does not overlap, else 0."""

    @staticmethod
    def of(extent: int, size: int, multiple: int = 1) -> Tiles:
        """Tiles of `size` (at most `extent`), their count rounded up to `multiple`."""
        size = min(size, extent)
        count = -(-extent // size)
        return Tiles(extent, size, -(-count // multiple) * multiple)

    @staticmethod
    def with_rest(extent: int, size: int) -> Tiles:
        """Tiles of `size`, the last one of what is left of the extent."""
        size = min(size, extent)
        return Tiles(extent, size, -(-extent // size), extent % size)

    @property
    def disjoint(self) -> bool:
        """Whether each element is in one tile only."""
        return self.exact or self.rest > 0

    @property
    def exact(self) -> bool:
        """Whether whole tiles cover the axis without overlapping."""
        return self.count * self.size == self.extent

    def base(self, tile: Expression) -> Expression:
        """The first element of a tile, for an `int` or an expression."""
        if self.disjoint:
            return tile * self.size
        last = self.extent - self.size
        return min(tile * self.size, last) if isinstance(tile, int) else te.min(tile * self.size, last)

    def locate(self, index: Expression) -> tuple[Expression, Expression]:
        """A tile that covers an element, and the element's place in it."""
        tile = index // self.size
        return (tile, index % self.size) if self.disjoint else (tile, index - self.base(tile))


def vector_tile(extent: int, lanes: int, vectors: int) -> Tiles:
    """Tiles of `vectors` vectors of an axis; of one narrower vector on an axis shorter than a vector."""
    while lanes > extent:
        lanes //= 2
    return Tiles.of(extent, lanes * max(1, min(vectors, extent // lanes)))


def cut(extents: Sequence[int], most: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Nested loops of `extents` as loops around loops that have at most `most` iterations in all.

    One axis is split, so that both share it: `(12, 3, 8), 48 -> (6,), (2, 3, 8)`.
    """
    axis = len(extents) - 1
    while axis > 0 and prod(extents[axis:]) <= most:
        axis -= 1
    rest = prod(extents[axis + 1 :])
    inner = max(
        d for d in range(1, extents[axis] + 1) if extents[axis] % d == 0 and d * rest <= max(most, rest)
    )
    return (*extents[:axis], extents[axis] // inner), (inner, *extents[axis + 1 :])


def transpose_square(
    load: Callable[[int], Expression], store: Callable[[int, Expression], Any], lanes: int, dtype: str
) -> Any:
    """Transpose `lanes x lanes` elements in registers: `for i, j: out[j][i] = in[i][j]`.

    `load(i)` is row i as a vector, `store(j, vector)` the statement that stores column j. `lanes` is a
    power of two. Eklundh's algorithm: log2(lanes) rounds that exchange blocks of pairs of rows.
    """
    statements: list[Any] = []

    def bind(value: Expression) -> Expression:
        vector = tirx.Var("vector", f"{dtype}x{lanes}")
        statements.append(tirx.Bind(vector, value))
        return vector

    rows = [bind(load(i)) for i in range(lanes)]
    step = 1
    while step < lanes:
        low = [lane + lanes - step if lane & step else lane for lane in range(lanes)]
        high = [lane + lanes if lane & step else lane + step for lane in range(lanes)]
        for i in (i for i in range(lanes) if not i & step):
            pair = [rows[i], rows[i + step]]
            rows[i], rows[i + step] = bind(tirx.Shuffle(pair, low)), bind(tirx.Shuffle(pair, high))
        step *= 2
    return tirx.SeqStmt([*statements, *(store(i, row) for i, row in enumerate(rows))])
