"""What templates of Strassen's algorithm share: knobs, estimates, ways to pack and the nest, of a product."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import ClassVar

from tcomp.relay.types import Array
from tcomp.target.target import Target
from tcomp.tensor.anchored import PARALLEL_FLOPS, Anchored
from tcomp.tensor.cpu.register_tile import Index
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Space
from tcomp.tensor.loops import Expression, Statement
from tcomp.tensor.strassen.nest import Operands, StrassenNest
from tcomp.tensor.strassen.plan import (
    WORTH,
    Shape,
    StrassenPlan,
    best_choices,
    plain_cycles,
    strassen_cycles,
    strassen_space,
)
from tcomp.tensor.template import Packed, PackedBy, Scheduled, Template


@dataclass(frozen=True)
class ConstantProduct:
    """The product of a kernel's first operand, as a matrix, by its constant second one."""

    shape: Shape
    constant: int
    """The kernel's input that is the second operand."""
    matrix_of: Callable[[Array], Array]
    """That as `[depth, columns]`."""
    left_index: Callable[[Expression, Expression], Index]
    """Where the first operand has the element of a row and a step."""
    index: Callable[[Expression, Expression], Index]
    """Where the kernel's result has the element of a row and a column."""


class StrassenTemplate(Template):
    """An alternative to the template `plain`, by whose estimate its own goes."""

    plain: ClassVar[Template]

    @abstractmethod
    def product_of(self, kernel: Kernel) -> ConstantProduct:
        """The product of a kernel that it accepts."""

    def space(self, kernel: Kernel, target: Target) -> Space:
        return strassen_space(self.product_of(kernel).shape, target, _threaded(kernel, target))

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        product = self.product_of(kernel)
        plan = StrassenPlan.of(product.shape, target, config)
        anchored = Anchored(kernel, {product.constant: plan.packing(product.matrix_of)})
        left, right = anchored.operands

        def element(row: Expression, step: Expression) -> tuple[list[Statement], Expression]:
            elements = anchored.elements()
            value = elements.element(left, product.left_index(row, step))
            return elements.statements, value

        def finish(row: Expression, column: Expression, value: Expression) -> Statement:
            return anchored.finish(product.index(row, column), value)

        nest = StrassenNest(anchored, anchored.buffer_of(right), Operands(element, finish), plan, target)
        return anchored.scheduled(nest.statements(), disjoint=True)

    def estimate(self, kernel: Kernel, target: Target) -> float:
        return min(packed.cycles for packed in self.packings(kernel, target).values())

    def packings(self, kernel: Kernel, target: Target) -> PackedBy:
        """Panels as wide as the register tile."""
        shape = self.product_of(kernel).shape
        scale = WORTH * self.plain.estimate(kernel, target) / plain_cycles(shape, target)

        def holds(width: int) -> Callable[[Config], bool]:
            return lambda config: StrassenPlan.of(shape, target, config).width == width

        found: dict[Hashable, Packed] = {}
        for config in best_choices(shape, target, _threaded(kernel, target)):
            plan = StrassenPlan.of(shape, target, config)
            found[plan.width] = Packed(config, scale * strassen_cycles(plan, target), holds(plan.width))
        return found


def _threaded(kernel: Kernel, target: Target) -> bool:
    return target.sharers > 1 and kernel.flops >= PARALLEL_FLOPS
