"""Factors that whole vectors share, for targets that multiply by one lane of a register (`Target.by_lane`).

Where elements that follow each other in memory are factors of steps that follow each other, one load gets
those of several steps: `lanes` of a register are the factors of as many steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tcomp.tensor.loops import Expression, Statement, local, vectorized, written_out
from tcomp.tensor.register_tile import Factors, Index, Point, RegisterTile
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
    buffer: Any

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
