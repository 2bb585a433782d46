"""Reductions, softmax and norms over other than the innermost axis on CPUs: each lane a row of its own."""

from __future__ import annotations

from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Ordered, Space
from tcomp.tensor.schedules.rows_cpu import reduction_nest, reduction_space
from tcomp.tensor.template import TEMPLATES, Scheduled, Template


class ReductionCpu(Template):
    """Steps: share outer rows (or strips of the innermost axis) among threads; vectorise across the
    innermost kept axis; reduce in `vectors` registers. Where that axis fills fewer of them, each takes
    every so many elements of a row, so that one addition need not wait for the other.
    """

    name = "reduction_cpu"

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        space = reduction_space(kernel)
        return space is not None and not space.innermost_is_column

    def space(self, kernel: Kernel, target: Target) -> Space:
        return Space((Ordered("vectors", (1, 2, 4, 8), 8),))

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        return reduction_nest(kernel, target, int(config["vectors"]), horizontal=False)


TEMPLATES.register(ReductionCpu.name, ReductionCpu())
