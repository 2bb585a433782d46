"""Where blocks of a GPU leave sums: in the outputs, or each its part of the depth beside those of others."""

from __future__ import annotations

from math import prod

from tcomp.tensor.alignment import anywhere, vector_lanes
from tcomp.tensor.loops import Expression, Statement, vectorized
from tcomp.tensor.matrices import Index, Sums
from tcomp.tensor.threads import digits, spread
from tcomp.tvm_api import tirx

_THREADS = 256
_LANES = 4


class Totals:
    """The sums of a product whose depth is summed up in `split` parts."""

    def __init__(self, sums: Sums, split: int) -> None:
        self._sums, self._split = sums, split
        if split > 1:
            shape = (split, *sums.batch, sums.rows, sums.columns)
            self._parts = sums.anchored.add_scratch(shape, sums.accumulator, "parts")

    def store(
        self, part: Expression, batch: Index, row: Expression, column: Expression, value: Expression
    ) -> Statement:
        """Leave the sum `value` of a part."""
        if self._split == 1:
            return self._sums.store(batch, row, column, value)
        return tirx.BufferStore(self._parts, value, [part, *batch, row, column])

    def lanes(self, most: int) -> int:
        """How many columns can be stored at once, a power of two up to `most`."""
        m = self._sums
        value = tirx.const(0, m.accumulator)

        def lanes(index: Index) -> int:
            part, *batch, row = index
            return vector_lanes(lambda column: self.store(part, batch, row, column, value), m.columns, most)

        return anywhere((self._split, *m.batch, m.rows), lanes)

    def launches(self) -> list[Statement]:
        """What adds the parts, in order: bits do not depend on which came first."""
        if self._split == 1:
            return []
        m = self._sums

        def total(batch: Index, row: Expression, column: Expression) -> Statement:
            first, *others = (self._parts[(part, *batch, row, column)] for part in range(self._split))
            return m.store(batch, row, column, sum(others, first))

        def lanes(index: Index) -> int:
            *batch, row = index
            return vector_lanes(lambda column: total(batch, row, column), m.columns, _LANES)

        together = anywhere((*m.batch, m.rows), lanes)

        def some(number: Expression) -> Statement:
            *batch, row, vector = digits(number, (*m.batch, m.rows, m.columns // together))
            return vectorized(together, lambda i: total(batch, row, vector * together + i))

        return [spread(prod((*m.batch, m.rows, m.columns)) // together, _THREADS, some)]
