"""What templates of Strassen's algorithm share: knobs, estimates and ways to pack, of a product's shape."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable
from typing import ClassVar

from tcomp.target.target import Target
from tcomp.tensor.anchored import PARALLEL_FLOPS
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Space
from tcomp.tensor.strassen_plan import (
    WORTH,
    Shape,
    StrassenPlan,
    best_choices,
    plain_cycles,
    strassen_cycles,
    strassen_space,
)
from tcomp.tensor.template import Packed, PackedBy, Template


class StrassenTemplate(Template):
    """An alternative to the template `plain`, by whose estimate its own goes."""

    plain: ClassVar[Template]

    @abstractmethod
    def shape_of(self, kernel: Kernel) -> Shape:
        """The kernel's product."""

    def space(self, kernel: Kernel, target: Target) -> Space:
        return strassen_space(self.shape_of(kernel), target, _threaded(kernel, target))

    def estimate(self, kernel: Kernel, target: Target) -> float:
        return min(packed.cycles for packed in self.packings(kernel, target).values())

    def packings(self, kernel: Kernel, target: Target) -> PackedBy:
        """Panels as wide as the register tile."""
        shape = self.shape_of(kernel)
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
