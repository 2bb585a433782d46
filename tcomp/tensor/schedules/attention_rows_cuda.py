"""Attention of few queries on GPUs by plain instructions; see `tcomp.tensor.attention.rows`."""

from __future__ import annotations

from tcomp.target.target import Gpu, Target
from tcomp.tensor.alignment import VECTOR_TYPES
from tcomp.tensor.attention.mma_operands import Heads
from tcomp.tensor.attention.plan import together
from tcomp.tensor.attention.rows import AttentionRows, RowsOperands
from tcomp.tensor.attention.rows_plan import MOST_ROWS, RowsAttentionPlan
from tcomp.tensor.gpu.rates import memory_cycles
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Space
from tcomp.tensor.schedules.attention_cuda import AttentionCuda
from tcomp.tensor.template import TEMPLATES, Cycles, Scheduled, Template


class AttentionRowsCuda(Template):
    """Up to 8 queries, those of heads that share keys and values together; keys and values lie in rows
    of float32 or float16. Sums in float32.
    """

    name = "attention_rows_cuda"
    family = "cuda"
    alternative_to = AttentionCuda.name

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        if not TEMPLATES[AttentionCuda.name].accepts(kernel, target) or Heads.of(kernel).rows > MOST_ROWS:
            return False
        assert kernel.anchor is not None
        if any(v.dtype not in VECTOR_TYPES for v in kernel.anchor.inputs[:3]):
            return False
        operands = RowsOperands(kernel)
        plans = RowsAttentionPlan.fitting(operands.shape, _gpu(target))
        return operands.lie_in_rows and any(True for _ in plans)

    def space(self, kernel: Kernel, target: Target) -> Space:
        return RowsAttentionPlan.space(RowsOperands(kernel).shape, _gpu(target))

    def cycles(self, kernel: Kernel, target: Target) -> Cycles:
        gpu, shape = _gpu(target), RowsOperands(kernel).shape
        memory = memory_cycles(gpu, kernel.nbytes)
        return lambda config: together(RowsAttentionPlan.of(config, shape).cycles(gpu), memory)

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        operands = RowsOperands(kernel)
        return AttentionRows(operands, RowsAttentionPlan.of(config, operands.shape)).scheduled()


def _gpu(target: Target) -> Gpu:
    assert target.gpu is not None
    return target.gpu


TEMPLATES.register(AttentionRowsCuda.name, AttentionRowsCuda())
