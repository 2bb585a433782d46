"""The operands of a matrix product as tensor cores need them: in memory, in whole chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np

from tcomp.relay.types import Array, TensorType, numpy_dtype
from tcomp.target.target import Target
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.gpu.threads import digits
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.loops import Elements, Expression, Statement, constant
from tcomp.tensor.product import Product, constant_right, factor_dtype, fits
from tcomp.tensor.template import Packing
from tcomp.tensor.tensor_cores.kernel import (
    as_factors,
    materialize,
    multiplies,
    padded,
)
from tcomp.tensor.tensor_cores.mma_operand import MmaOperand
from tcomp.tensor.tensor_cores.mma_plan import chunk_elements
from tcomp.tvm_api import Tensor


def is_product(kernel: Kernel, target: Target) -> bool:
    """Whether the anchor of `kernel` is a product of matrices that tensor cores of `target` multiply."""
    if not multiplies(kernel, target) or not fits(kernel) or kernel.anchor is None:
        return False
    return Product.of(kernel.anchor).right.rank > 1


@dataclass(frozen=True)
class MmaMatrices:
    """The operands of a kernel's product, of a depth that is whole chunks.

    With `in_tiles` all rows of an operand lie in one matrix, of which tiles can be copied.
    """

    kernel: Kernel
    in_tiles: bool = False

    @cached_property
    def product(self) -> Product:
        assert self.kernel.anchor is not None
        return Product.of(self.kernel.anchor)

    @property
    def dtype(self) -> str:
        """The type in which factors are multiplied."""
        return factor_dtype(self.kernel)

    @property
    def chunk(self) -> int:
        return chunk_elements(self.product.left.dtype)

    @property
    def depth(self) -> int:
        return -(-self.product.depth // self.chunk) * self.chunk

    @property
    def extents(self) -> tuple[int, int, int, int]:
        product = self.product
        return prod(product.batch), product.rows, product.columns, self.depth

    @property
    def packing(self) -> dict[int, Packing]:
        index = constant_right(self.kernel)
        if index is None:
            return {}
        return {index: Packing(TensorType(self._right_shape, self.product.right.dtype), self._pack)}

    @property
    def _right_shape(self) -> tuple[int, ...]:
        return (*self._own_batch, self.product.columns, self.depth)

    @property
    def _own_batch(self) -> tuple[int, ...]:
        """The right operand's own batch axes."""
        return self.product.right.static_shape[:-2] if self.product.batch else ()

    def _pack(self, array: Array) -> Array:
        product = self.product
        matrices = array.reshape(*self._own_batch, *array.shape[-2:])
        if not product.transpose_right:
            matrices = np.swapaxes(matrices, -1, -2)
        result = np.zeros(self._right_shape, array.dtype)
        result[..., : product.depth] = matrices
        return as_factors(self.kernel, result)

    def _is_ready(self, anchored: Anchored, tensor: Tensor, by_depth: bool) -> bool:
        """Whether chunks of an operand are whole and aligned where it lies."""
        whole = int(tensor.shape[-1]) % self.chunk == 0 and self.depth == self.product.depth
        # Matrices are transposed on their way from shared memory by elements of 16 bits only.
        movable = by_depth or numpy_dtype(self.product.left.dtype).itemsize == 2
        return anchored.buffer_of(tensor) is not None and whole and movable

    def left(self, anchored: Anchored, before: list[Statement]) -> MmaOperand:
        product, tensor = self.product, anchored.operands[0]
        # Rows along memory are those of several matrices where the output's batch axes are part of them.
        apart = self.in_tiles and product.transpose_left and product.merged and prod(product.outer[:-1]) > 1
        if self._is_ready(anchored, tensor, not product.transpose_left) and not apart:
            return MmaOperand(
                anchored.buffer_of(tensor),
                lambda batch, row, k: product.left_index(digits(batch, product.batch), row, k),
                not product.transpose_left,
            )
        shape, dtype = (*product.batch, product.rows, self.depth), product.left.dtype

        def element(elements: Elements, at: list[Expression]) -> Expression:
            *batch, row, k = at

            def value(k: Expression) -> Expression:
                return elements.element(tensor, product.left_index(batch, row, k))

            return padded(k, product.depth, value, dtype)

        launch, buffer = materialize(
            anchored, shape, dtype, "left", len(shape) - (2 if product.transpose_left else 1), element
        )
        before.append(launch)
        return MmaOperand(buffer, lambda batch, row, k: [*digits(batch, product.batch), row, k])

    def right(self, anchored: Anchored, before: list[Statement]) -> MmaOperand:
        product, tensor = self.product, anchored.operands[1]

        def packed(batch: Expression, column: Expression, k: Expression) -> list[Expression]:
            return [*product.packed_batch(digits(batch, product.batch)), column, k]

        if self.packing:
            return MmaOperand(anchored.buffer_of(tensor), packed, is_rounded=True)
        if self._is_ready(anchored, tensor, product.transpose_right):
            return MmaOperand(
                anchored.buffer_of(tensor),
                lambda batch, column, k: product.right_index(digits(batch, product.batch), k, column),
                product.transpose_right,
            )
        shape, dtype = self._right_shape, product.right.dtype

        def element(elements: Elements, at: list[Expression]) -> Expression:
            *batch, column, k = at
            outer = batch or [constant(0)] * (product.right.rank - 2)

            def value(k: Expression) -> Expression:
                matrix = [column, k] if product.transpose_right else [k, column]
                return elements.element(tensor, [*outer, *matrix])

            return padded(k, product.depth, value, dtype)

        launch, buffer = materialize(
            anchored, shape, dtype, "right", len(shape) - (1 if product.transpose_right else 2), element
        )
        before.append(launch)
        return MmaOperand(buffer, packed)

    def output(self, batch: Expression, row: Expression, column: Expression) -> Sequence[Expression]:
        """Where the anchor's output has a sum."""
        return self.product.index(digits(batch, self.product.batch), row, column)
