"""Which blocks of a GPU compute which steps of which tiles of a product.

    tiles             tile 0: block 0           tile 1: block 1           tile 2: block 2
    parts, two        tile 0: block 0, block 3  tile 1: block 1, block 4  tile 2: block 2, block 5
    streams, of four  tile 0: 0 0 0 1           tile 1: 1 1 2 2           tile 2: 2 3 3 3

Streams: Osama et al., "Stream-K: Work-centric Parallel Decomposition for Dense Matrix-Matrix Multiplication
on the GPU", PPoPP 2023; hybrid, as tiles that fill whole rounds of the device have a block each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import gcd, lcm, prod
from typing import Protocol

from tcomp.tensor.gpu.threads import digits
from tcomp.tensor.loops import (
    Expression,
    Statement,
    constant,
    loop,
    sequence,
    under,
)
from tcomp.tvm_api import tirx


@dataclass(frozen=True)
class Segment:
    """Steps of tile number `tile`, from `first` on, that a block takes in a row, after `before` others.

    Their sums are piece number `piece` of the tile's where they are not `whole`.
    """

    tile: Expression
    first: Expression
    steps: int | Expression
    whole: bool | Expression
    piece: Expression
    before: int | Expression = 0


@dataclass(frozen=True)
class Addends:
    """The pieces whose sum is a tile: `count` of them, from `first` on, `stride` numbers apart."""

    first: Expression
    count: int | Expression
    stride: int


class Shares(Protocol):
    """The steps of tiles as blocks share them."""

    @property
    def blocks(self) -> int: ...
    @property
    def most_segments(self) -> int:
        """Of a block."""
        ...

    @property
    def divided(self) -> int:
        """Tiles that may have pieces: as many from number 0 on."""
        ...

    @property
    def pieces(self) -> int:
        """Numbers of pieces, some of which may be of none."""
        ...

    @property
    def kept(self) -> int:
        """Pieces that there are."""
        ...

    def steps_of(self, block: Expression) -> int | Expression:
        """Of all segments of a block."""
        ...

    def segments(self, block: Expression, body: Callable[[Segment], Statement]) -> Statement:
        """`body` for each segment of a block, in order."""
        ...

    def addends(self, tile: Expression) -> Addends:
        """Of one of the `divided` tiles. One that has a single one is whole, and not kept."""
        ...


@dataclass(frozen=True)
class Parts:
    """The depth of each of `tiles` in `parts` parts of `steps` steps, each a block's."""

    tiles: int
    steps: int
    parts: int = 1
    most_segments: int = 1

    @property
    def blocks(self) -> int:
        return self.tiles * self.parts

    @property
    def divided(self) -> int:
        return self.tiles if self.parts > 1 else 0

    @property
    def pieces(self) -> int:
        return self.blocks if self.parts > 1 else 0

    @property
    def kept(self) -> int:
        return self.pieces

    def steps_of(self, block: Expression) -> int | Expression:
        return self.steps

    def segments(self, block: Expression, body: Callable[[Segment], Statement]) -> Statement:
        part, tile = digits(block, (self.parts, self.tiles))
        return body(Segment(tile, part * self.steps, self.steps, self.parts == 1, block))

    def addends(self, tile: Expression) -> Addends:
        return Addends(tile, self.parts, self.tiles)


@dataclass(frozen=True)
class Streams:
    """`tiles` of `steps` steps each, of which `sharers` blocks share those of the first `divided` tiles.

    Each takes `share` steps of all these tiles in a row, the last one what is left. Other tiles have a block
    each.
    """

    tiles: int
    steps: int
    divided: int
    most_sharers: int

    @staticmethod
    def of(tiles: int, steps: int, at_once: int, rounds: int) -> Streams:
        """As many blocks as run at once share what is left of whole rounds, and `rounds` - 1 of those."""
        divided = min(tiles, tiles % at_once + (rounds - 1) * at_once)
        return Streams(tiles, steps, divided, at_once)

    @staticmethod
    def complaint(tiles: int, steps: int, at_once: int, rounds: int) -> str | None:
        """Why there are no streams `of` these."""
        if tiles % at_once == 0:
            return f"{tiles} tiles fill rounds of {at_once}; none is left to be streamed"
        if tiles < (rounds - 1) * at_once:
            return f"{tiles} tiles are no {rounds} rounds of {at_once}"
        if not Streams.of(tiles, steps, at_once, rounds).kept:
            return f"{tiles} tiles of {steps} steps: each of {at_once} blocks gets a whole one or none"
        return None

    @property
    def share(self) -> int:
        return -(-self.divided * self.steps // self.most_sharers)

    @property
    def sharers(self) -> int:
        return -(-self.divided * self.steps // self.share)

    @property
    def blocks(self) -> int:
        return self.sharers + self.tiles - self.divided

    @property
    def pieces(self) -> int:
        return self.sharers + self.divided - 1

    @property
    def most_segments(self) -> int:
        furthest = self.steps - gcd(self.share, self.steps)
        return (furthest + self.share - 1) // self.steps + 1

    @property
    def kept(self) -> int:
        ends_of_both = (self.divided * self.steps - 1) // lcm(self.share, self.steps)
        cuts = self.sharers - 1 - ends_of_both  # Ends of shares inside of tiles.
        if self.share >= self.steps:  # A tile has one cut at most.
            return 2 * cuts
        return self.divided + cuts

    def _bounds(self, block: Expression) -> tuple[Expression, Expression]:
        """Where a block's share begins and ends in the row of all steps."""
        shared = self.divided * self.steps
        begin, own = block * self.share, shared + (block - self.sharers) * self.steps
        end = tirx.min(begin + self.share, constant(shared))
        is_sharer = block < self.sharers
        return tirx.Select(is_sharer, begin, own), tirx.Select(is_sharer, end, own + self.steps)

    def steps_of(self, block: Expression) -> int | Expression:
        begin, end = self._bounds(block)
        return end - begin

    def segments(self, block: Expression, body: Callable[[Segment], Statement]) -> Statement:
        begin, end = tirx.Var("share_begin", "int32"), tirx.Var("share_end", "int32")
        own_begin, own_end = self._bounds(block)

        def one(number: Expression) -> Statement:
            tile = tirx.Var("tile", "int32")
            first = tirx.max(begin - tile * self.steps, constant(0))
            # No variable, so that a loop of so many steps is known to have no more than a tile's.
            steps = tirx.min(end - tile * self.steps, constant(self.steps)) - first
            before = tile * self.steps + first - begin
            segment = Segment(tile, first, steps, steps == self.steps, block + tile, before)
            inside = under(tile, constant(self.tiles), lambda _: body(segment))
            if self.most_segments > 1:
                inside = tirx.IfThenElse(steps > 0, inside, None)
            return sequence([tirx.Bind(tile, tirx.floordiv(begin, self.steps) + number), inside])

        return sequence(
            [
                tirx.Bind(begin, own_begin),
                tirx.Bind(end, own_end),
                loop(self.most_segments, one, "segment"),
            ]
        )

    def addends(self, tile: Expression) -> Addends:
        first = tirx.floordiv(tile * self.steps, self.share)
        last = tirx.floordiv(tile * self.steps + (self.steps - 1), self.share)
        most = (self.steps + self.share - 2) // self.share + 1
        return Addends(first + tile, tirx.min(last - first + 1, constant(most)), 1)


@dataclass(frozen=True)
class Tiling:
    """Tiles of `tile_rows x tile_columns` of matrices `[*batch, rows, columns]`.

    They are numbered along `group` rows of them, down and then across, so that blocks that run at the same
    time find most of their operands in the second-level cache.
    """

    batch: tuple[int, ...]
    rows: int
    columns: int
    tile_rows: int
    tile_columns: int
    group: int = 1

    @property
    def along(self) -> tuple[int, int]:
        """Tiles along rows and along columns of a matrix."""
        return -(-self.rows // self.tile_rows), -(-self.columns // self.tile_columns)

    @property
    def tiles(self) -> int:
        return prod((*self.batch, *self.along))

    def place(self, tile: Expression) -> tuple[Sequence[Expression], Expression, Expression]:
        """The matrix, row and column of the first element of tile number `tile`."""
        *batch, number = digits(tile, (*self.batch, prod(self.along)))
        row, column = self._down_and_across(number)
        return batch, row * self.tile_rows, column * self.tile_columns

    def _down_and_across(self, number: Expression) -> tuple[Expression, Expression]:
        rows, columns = self.along
        group = min(self.group, rows)
        within = tirx.floormod(number, group * columns)
        first = tirx.floordiv(number, group * columns) * group
        height = constant(group) if rows % group == 0 else tirx.min(rows - first, constant(group))
        return first + tirx.floormod(within, height), tirx.floordiv(within, height)
