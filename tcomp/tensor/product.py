"""A matrix product as an operator states it: its extents, and where its elements lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from tcomp.relay.attributes import flag
from tcomp.relay.graph import Node
from tcomp.relay.types import ROUNDED, TensorType
from tcomp.tensor.convolution import accumulator_dtype
from tcomp.tensor.epilogue import output_axes, placeholder_index
from tcomp.tensor.kernel import Kernel

Expression = Any
Index = Sequence[Any]


@dataclass(frozen=True)
class Product:
    """One matrix product as `[*batch, rows, depth] x [*batch, depth, columns]`.

    When the right operand has no batch, the left one's batch axes are merged into `rows`.
    """

    left: TensorType
    right: TensorType
    output: TensorType
    transpose_left: bool
    transpose_right: bool
    batch: tuple[int, ...]
    rows: int
    columns: int
    depth: int

    @staticmethod
    def of(node: Node) -> Product:
        left, right = (v.type for v in node.inputs)
        transpose_left, transpose_right = (flag(node.attrs, f"transpose_{x}") for x in "ab")
        a, b = left.static_shape, right.static_shape
        depth = a[-2] if transpose_left else a[-1]
        rows = 1 if len(a) == 1 else a[-1] if transpose_left else a[-2]
        columns = 1 if len(b) == 1 else b[-2] if transpose_right else b[-1]
        batch = np.broadcast_shapes(a[:-2], b[:-2])
        if prod(b[:-2]) == 1:
            rows, batch = rows * prod(batch), ()
        output = node.output.type
        return Product(left, right, output, transpose_left, transpose_right, batch, rows, columns, depth)

    @property
    def merged(self) -> bool:
        """Whether the output's batch axes are part of `rows`."""
        return not self.batch

    @property
    def batch_size(self) -> int:
        """Matrices of the output."""
        return prod(self.batch)

    @property
    def accumulator(self) -> str:
        return accumulator_dtype(self.output.dtype)

    @property
    def outer(self) -> tuple[int, ...]:
        """The output's axes before the columns, without the batch axes that are not merged."""
        shape = self.output.static_shape[: -1 if self.right.rank > 1 else None]
        return shape[len(self.batch) :]

    def left_index(self, batch: Index, row: Expression, k: Expression) -> list[Any]:
        """Where element (row, k) of the left operand lies."""
        if self.left.rank == 1:
            return [k]
        if self.merged:
            *batch, row = unravel(row, self.outer) if self.outer else (row,)
        matrix = (k, row) if self.transpose_left else (row, k)
        return [*_broadcast(self.left, batch), *matrix]

    def right_index(self, batch: Index, k: Expression, column: Expression) -> list[Any]:
        """Where element (k, column) of the right operand lies."""
        if self.right.rank == 1:
            return [k]
        matrix = (column, k) if self.transpose_right else (k, column)
        return [*_broadcast(self.right, batch), *matrix]

    def index(self, batch: Index, row: Expression, column: Expression) -> list[Any]:
        """The output index of (batch, row, column)."""
        return [*batch, *unravel(row, self.outer), *([column] if self.right.rank > 1 else [])]

    def packed_batch(self, batch: Index) -> list[Any]:
        """`batch` as an index into the right operand's own batch axes, as they are kept when it is packed."""
        return _broadcast(self.right, batch) if self.batch else []


def _broadcast(operand: TensorType, batch: Index) -> list[Any]:
    """`batch` as an index into the operand's own batch axes, which may be fewer or of extent 1."""
    shape = operand.static_shape[:-2]
    own = batch[len(batch) - len(shape) :]
    return (
        [0 if extent == 1 else i for extent, i in zip(shape, own, strict=True)] if own else [0] * len(shape)
    )


def unravel(flat: Expression, shape: Sequence[int]) -> list[Any]:
    """The index into `shape` of element `flat`."""
    index: list[Any] = []
    for axis, extent in enumerate(shape):
        inner = prod(shape[axis + 1 :])
        quotient = flat if inner == 1 else flat // inner
        index.append(0 if extent == 1 else quotient if prod(shape[:axis]) == 1 else quotient % extent)
    return index


def fits(kernel: Kernel) -> bool:
    """Whether `kernel` is a product of non-empty matrices with elementwise work and transposes after it."""
    anchor = kernel.anchor
    if anchor is None or anchor.op != "matmul" or output_axes(kernel) is None:
        return False
    return all(prod(v.type.static_shape) > 0 for v in (*anchor.inputs, *anchor.outputs))


def constant_right(kernel: Kernel) -> int | None:
    """The kernel input that is the anchor's constant right operand, if it is one used by nothing else."""
    assert kernel.anchor is not None
    value = kernel.anchor.inputs[1]
    index = placeholder_index(kernel, value)
    used_once = kernel.body.use_count(value) == 1
    return index if index in kernel.constant_inputs and used_once else None


def factor_dtype(kernel: Kernel) -> str:
    """The type in which tensor cores multiply the operands of the anchor of `kernel`."""
    assert kernel.anchor is not None
    rounded = str(kernel.anchor.attrs.get("multiply_as"))
    return rounded if rounded in ROUNDED else kernel.anchor.inputs[0].dtype
