"""How a factor of a product is read from a GPU's memory: along which axis, how many elements at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tcomp.tensor.alignment import anywhere, is_contiguous, vector_lanes
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.gpu.matrices import Index, Matrices
from tcomp.tensor.loops import (
    Buffer,
    Elements,
    Expression,
    Statement,
    constant,
    local,
    loops_around,
    sequence,
)
from tcomp.tensor.math import convert
from tcomp.tvm_api import tirx

Source = Callable[[Elements, Index, Expression, Expression], Expression]
"""An element by batch, row (or column), and k."""


@dataclass(frozen=True)
class Operand:
    """One of the two factors, `[*batch, extent, depth]`."""

    anchored: Anchored
    source: Source
    accumulator: str
    batch: tuple[int, ...]
    extent: int
    depth: int
    along_depth: bool = False
    """Whether neighbouring threads load neighbours in the depth."""
    lanes: int = 1
    """Elements of a load."""

    @staticmethod
    def left(matrices: Matrices, most: int) -> Operand:
        """The left operand with loads of up to `most` elements."""
        m = matrices
        return Operand(m.anchored, m.left, m.accumulator, m.batch, m.rows, m.depth).in_vectors(most)

    @staticmethod
    def right(matrices: Matrices, most: int) -> Operand:
        """The right operand, its columns being what the left one's rows are."""
        m = matrices

        def source(elements: Elements, batch: Index, column: Expression, k: Expression) -> Expression:
            return m.right(elements, batch, k, column)

        return Operand(m.anchored, source, m.accumulator, m.batch, m.columns, m.depth).in_vectors(most)

    def in_vectors(self, most: int) -> Operand:
        """With loads of up to `most` elements, along whichever axis has the longer ones."""
        _, value = local((1,), self.accumulator, "value")

        def over_depth(index: Index) -> Callable[[Expression], Statement]:
            *batch, x = index
            return lambda k: self.read(batch, x, k, value, [constant(0)])

        def over_extent(index: Index) -> Callable[[Expression], Statement]:
            *batch, k = index
            return lambda x: self.read(batch, x, k, value, [constant(0)])

        rows, columns = (*self.batch, self.extent), (*self.batch, self.depth)
        in_depth = anywhere(rows, lambda i: vector_lanes(over_depth(i), self.depth, most))
        in_extent = anywhere(columns, lambda i: vector_lanes(over_extent(i), self.extent, most))
        contiguous = anywhere(rows, lambda i: is_contiguous(over_depth(i), self.depth))
        along_depth = in_depth > in_extent or (in_depth == in_extent and contiguous)
        return replace(self, along_depth=along_depth, lanes=max(in_depth, in_extent))

    def read(
        self, batch: Index, x: Expression, k: Expression, target: Buffer, at: Sequence[Expression]
    ) -> Statement:
        """`target[at] = element`, in the type of sums."""
        elements = self.anchored.elements(loops_around())
        value = convert(self.source(elements, batch, x, k), self.accumulator)
        return sequence([*elements.statements, tirx.BufferStore(target, value, list(at))])
