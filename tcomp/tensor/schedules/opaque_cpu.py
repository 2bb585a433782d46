"""Operators whose compute already states its loops, and any kernel that no other template takes."""

from __future__ import annotations

from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Space
from tcomp.tensor.lower import lower_body, placeholders
from tcomp.tensor.template import TEMPLATES, Scheduled, Template
from tcomp.tvm_api import te


class OpaqueCpu(Template):
    """Nothing is scheduled beyond what the operators' tensor expressions say."""

    name = "opaque_cpu"
    priority = -10

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        return True

    def space(self, kernel: Kernel, target: Target) -> Space:
        return Space(())

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        inputs = placeholders(kernel)
        outputs = lower_body(kernel, inputs)
        function = te.create_prim_func([*inputs, *outputs])
        return Scheduled(function.with_attr("tirx.noalias", True))


TEMPLATES.register(OpaqueCpu.name, OpaqueCpu())
