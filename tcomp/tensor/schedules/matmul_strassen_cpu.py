"""Products with constant weights by Strassen's algorithm; see `tcomp.tensor.strassen.nest`."""

from __future__ import annotations

import numpy as np

from tcomp.relay.types import Array
from tcomp.target.target import Target
from tcomp.tensor.cpu.register_tile import Index
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.loops import Expression, constant
from tcomp.tensor.product import Product, constant_right, fits
from tcomp.tensor.schedules.matmul_cpu import MatmulCpu
from tcomp.tensor.strassen.plan import DTYPE, Shape
from tcomp.tensor.strassen.template import ConstantProduct, StrassenTemplate
from tcomp.tensor.template import TEMPLATES


class MatmulStrassenCpu(StrassenTemplate):
    """See the module's text."""

    name = "matmul_strassen_cpu"
    alternative_to = MatmulCpu.name
    plain = MatmulCpu()

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        if not fits(kernel) or constant_right(kernel) is None:
            return False
        assert kernel.anchor is not None
        if not kernel.anchor.attrs["strassen"]:
            return False
        product = _product(kernel)
        plain = product.merged and not product.transpose_left and product.right.rank == 2
        types = {product.left.dtype, product.right.dtype, product.accumulator}
        return plain and types == {DTYPE} and _shape(product).fits(target)

    def product_of(self, kernel: Kernel) -> ConstantProduct:
        product, index = _product(kernel), constant_right(kernel)
        assert index is not None

        def matrix_of(weights: Array) -> Array:
            return np.swapaxes(weights, -1, -2) if product.transpose_right else weights

        def left_index(row: Expression, step: Expression) -> Index:
            return [constant(i) if isinstance(i, int) else i for i in product.left_index([], row, step)]

        def at(row: Expression, column: Expression) -> Index:
            return product.index([], row, column)

        return ConstantProduct(_shape(product), index, matrix_of, left_index, at)


def _product(kernel: Kernel) -> Product:
    assert kernel.anchor is not None
    return Product.of(kernel.anchor)


def _shape(product: Product) -> Shape:
    return Shape(product.rows, product.depth, product.columns)


TEMPLATES.register(MatmulStrassenCpu.name, MatmulStrassenCpu())
