"""Matrix products on GPUs' tensor cores; see `tcomp.tensor.mma_nest`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np

from tcomp.relay.graph import Node
from tcomp.relay.types import Array, TensorType, numpy_dtype
from tcomp.target.target import Target
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.gemm import constant_right, fits
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Space
from tcomp.tensor.loops import Elements, Expression, Statement, constant
from tcomp.tensor.mma_kernel import (
    as_factors,
    factor_dtype,
    materialize,
    multiplies,
    padded,
    schedule_mma,
    stored_in_vectors,
)
from tcomp.tensor.mma_nest import MmaOperand
from tcomp.tensor.mma_plan import MmaPlan, chunk_elements, estimated_cycles, plan_of, plan_space
from tcomp.tensor.product import Product
from tcomp.tensor.schedules.matmul_cuda import MatmulCuda
from tcomp.tensor.template import TEMPLATES, Packing, Scheduled, Template
from tcomp.tensor.threads import digits
from tcomp.tensor.unpacked_operand import PackedWeights, UnpackedChunks
from tcomp.tvm_api import Tensor


class MatmulMmaCuda(Template):
    """Products of float16, bfloat16 and tf32 with float32 sums, of int8 with int32 ones, on tensor cores.

    Steps: pack a constant right operand as [columns, depth]; bring operands that are computed, or whose rows
    are not whole chunks, into memory so; multiply; add parts of the depth where there are several.
    """

    name = "matmul_mma_cuda"
    family = "cuda"
    alternative_to = MatmulCuda.name

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        if not multiplies(kernel, target) or not fits(kernel):
            return False
        return Product.of(_anchor(kernel)).right.rank > 1

    def space(self, kernel: Kernel, target: Target) -> Space:
        assert target.gpu is not None
        matrices = _Matrices(kernel)
        return plan_space(factor_dtype(kernel), matrices.extents, target.gpu)

    def estimate(self, kernel: Kernel, target: Target) -> float:
        assert target.gpu is not None
        matrices = _Matrices(kernel)
        return estimated_cycles(factor_dtype(kernel), matrices.extents, kernel.nbytes, target.gpu)

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        matrices = _Matrices(kernel)
        product = matrices.product
        plan = plan_of(factor_dtype(kernel), matrices.extents, config)
        anchored = Anchored(kernel, matrices.packing)
        before: list[Statement] = []
        left = matrices.left(anchored, before)
        right = _unpacked(anchored, plan) or matrices.right(anchored, before)

        def index(batch: Expression, row: Expression, column: Expression) -> Sequence[Expression]:
            return product.index(digits(batch, product.batch), row, column)

        vector = 2 if stored_in_vectors(kernel, product.columns) else 1
        return schedule_mma(anchored, plan, before, left, right, index, vector)


def _unpacked(anchored: Anchored, plan: MmaPlan) -> MmaOperand | None:
    """A right operand that is unpacked on its way to shared memory, if that is what the kernel has."""
    weights = PackedWeights.of(anchored.kernel)
    if weights is None or not UnpackedChunks.fit(weights, plan.dtype):
        return None
    count = plan.block_columns * plan.depth_chunks // plan.threads
    return MmaOperand(
        anchored.input_buffer(0),
        lambda batch, column, k: [column, k],
        filling=UnpackedChunks(anchored, weights, plan.dtype, plan.columns, count),
    )


def _anchor(kernel: Kernel) -> Node:
    assert kernel.anchor is not None
    return kernel.anchor


@dataclass(frozen=True)
class _Matrices:
    """The operands of a kernel's product, of a depth that is whole chunks."""

    kernel: Kernel

    @cached_property
    def product(self) -> Product:
        return Product.of(_anchor(self.kernel))

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
        if self._is_ready(anchored, tensor, not product.transpose_left):
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


TEMPLATES.register(MatmulMmaCuda.name, MatmulMmaCuda())
