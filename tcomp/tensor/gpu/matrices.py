"""Products of matrices whose elements are read and written by index, wherever they lie and however made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tcomp.tensor.anchored import Anchored
from tcomp.tensor.loops import Elements, Expression, Statement, constant
from tcomp.tensor.product import Product

Index = Sequence[Any]
Element = Callable[[Elements, Index, Expression, Expression], Expression]


def expressions(index: Index) -> list[Expression]:
    """`index` without Python's integers, which expressions do not take everywhere."""
    return [constant(i) if isinstance(i, int) else i for i in index]


class Sums(Protocol):
    """The sums `[*batch, rows, columns]` of a product, and what becomes of them."""

    @property
    def anchored(self) -> Anchored: ...
    @property
    def batch(self) -> tuple[int, ...]: ...
    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def accumulator(self) -> str:
        """The type that sums are kept in."""
        ...

    def store(self, batch: Index, row: Expression, column: Expression, value: Expression) -> Statement:
        """Store what follows from the sum `value` into the outputs."""
        ...


class Matrices(Sums, Protocol):
    """`[*batch, rows, depth] x [*batch, depth, columns]`, and what becomes of the result."""

    @property
    def depth(self) -> int: ...

    def left(self, elements: Elements, batch: Index, row: Expression, k: Expression) -> Expression:
        """An element of the left operand; what it needs before comes into `elements`."""
        ...

    def right(self, elements: Elements, batch: Index, k: Expression, column: Expression) -> Expression:
        """An element of the right operand."""
        ...


@dataclass(frozen=True)
class ProductMatrices:
    """The operands of a `matmul`."""

    anchored: Anchored
    product: Product

    @property
    def batch(self) -> tuple[int, ...]:
        return self.product.batch

    @property
    def rows(self) -> int:
        return self.product.rows

    @property
    def columns(self) -> int:
        return self.product.columns

    @property
    def depth(self) -> int:
        return self.product.depth

    @property
    def accumulator(self) -> str:
        return self.product.accumulator

    def left(self, elements: Elements, batch: Index, row: Expression, k: Expression) -> Expression:
        index = self.product.left_index(batch, row, k)
        return elements.element(self.anchored.operands[0], expressions(index))

    def right(self, elements: Elements, batch: Index, k: Expression, column: Expression) -> Expression:
        index = self.product.right_index(batch, k, column)
        return elements.element(self.anchored.operands[1], expressions(index))

    def store(self, batch: Index, row: Expression, column: Expression, value: Expression) -> Statement:
        return self.anchored.finish(expressions(self.product.index(batch, row, column)), value)


@dataclass(frozen=True)
class Transposed:
    """The transposed product, `right^T x left^T`: few columns become few rows."""

    of: Matrices

    @property
    def anchored(self) -> Anchored:
        return self.of.anchored

    @property
    def batch(self) -> tuple[int, ...]:
        return self.of.batch

    @property
    def rows(self) -> int:
        return self.of.columns

    @property
    def columns(self) -> int:
        return self.of.rows

    @property
    def depth(self) -> int:
        return self.of.depth

    @property
    def accumulator(self) -> str:
        return self.of.accumulator

    def left(self, elements: Elements, batch: Index, row: Expression, k: Expression) -> Expression:
        return self.of.right(elements, batch, k, row)

    def right(self, elements: Elements, batch: Index, k: Expression, column: Expression) -> Expression:
        return self.of.left(elements, batch, column, k)

    def store(self, batch: Index, row: Expression, column: Expression, value: Expression) -> Statement:
        return self.of.store(batch, column, row, value)
