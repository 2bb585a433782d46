"""Operators whose compute states loops of its own, on GPUs: one thread does them."""

from __future__ import annotations

from tcomp.target.target import Target
from tcomp.tensor.blocks import lower_blocks
from tcomp.tensor.gpu.threads import launch
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Space
from tcomp.tensor.lower import lower_body, placeholders
from tcomp.tensor.template import TEMPLATES, Scheduled, Template
from tcomp.tvm_api import PrimFunc, s_tir, te, tirx, tvm


class OpaqueCuda(Template):
    """The loops as the operators' tensor expressions say, by one thread: fine for small tensors alone."""

    name = "opaque_cuda"
    family = "cuda"
    priority = -10

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        return True

    def space(self, kernel: Kernel, target: Target) -> Space:
        return Space(())

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        inputs = placeholders(kernel)
        outputs = lower_body(kernel, inputs)
        plain = _without_blocks(te.create_prim_func([*inputs, *outputs]))
        return Scheduled(plain.with_body(launch((1,), (1,), lambda block, thread: plain.body)))


def _without_blocks(function: PrimFunc) -> PrimFunc:
    """`function` as plain loops."""
    variable = tvm.ir.GlobalVar("kernel")
    module = lower_blocks(tvm.IRModule({variable: function.with_attr("global_symbol", "kernel")}))
    plain = tirx.transform.StmtSimplify()(s_tir.transform.LowerOpaqueBlock()(module))
    return plain[variable].with_attr("tirx.noalias", True)


TEMPLATES.register(OpaqueCuda.name, OpaqueCuda())
