"""Products with constant weights by Strassen's algorithm; see `tcomp.tensor.strassen`."""

from __future__ import annotations

import numpy as np

from tcomp.relay.types import Array
from tcomp.target.target import Target
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.gemm import constant_right, fits
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tensor.loops import Expression, Statement, constant
from tcomp.tensor.product import Product
from tcomp.tensor.schedules.matmul_cpu import MatmulCpu
from tcomp.tensor.strassen import Operands, StrassenNest
from tcomp.tensor.strassen_plan import DTYPE, Shape, StrassenPlan
from tcomp.tensor.strassen_template import StrassenTemplate
from tcomp.tensor.template import TEMPLATES, Scheduled


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

    def shape_of(self, kernel: Kernel) -> Shape:
        return _shape(_product(kernel))

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        product = _product(kernel)
        plan = StrassenPlan.of(self.shape_of(kernel), target, config)

        def matrix_of(original: Array) -> Array:
            return np.swapaxes(original, -1, -2) if product.transpose_right else original

        index = constant_right(kernel)
        assert index is not None
        anchored = Anchored(kernel, {index: plan.packing(matrix_of)})
        left, right = anchored.operands

        def element(row: Expression, k: Expression) -> tuple[list[Statement], Expression]:
            elements = anchored.elements()
            at = [constant(i) if isinstance(i, int) else i for i in product.left_index([], row, k)]
            value = elements.element(left, at)
            return elements.statements, value

        def finish(row: Expression, column: Expression, value: Expression) -> Statement:
            return anchored.finish(product.index([], row, column), value)

        nest = StrassenNest(anchored, anchored.buffer_of(right), Operands(element, finish), plan, target)
        return anchored.scheduled(nest.statements(), disjoint=True)


def _product(kernel: Kernel) -> Product:
    assert kernel.anchor is not None
    return Product.of(kernel.anchor)


def _shape(product: Product) -> Shape:
    return Shape(product.rows, product.depth, product.columns)


TEMPLATES.register(MatmulStrassenCpu.name, MatmulStrassenCpu())
