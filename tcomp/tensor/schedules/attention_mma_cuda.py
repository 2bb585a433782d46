"""Attention on GPUs' tensor cores; see `tcomp.tensor.attention.mma`."""

from __future__ import annotations

from tcomp.target.target import Gpu, Target
from tcomp.tensor.attention.mma import MmaAttention
from tcomp.tensor.attention.mma_operands import Heads, MmaAttentionOperands, attention_shape
from tcomp.tensor.attention.mma_plan import MmaAttentionPlan
from tcomp.tensor.attention.plan import AttentionShape
from tcomp.tensor.epilogue import output_axes
from tcomp.tensor.gpu.rates import memory_cycles
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Space
from tcomp.tensor.schedules.attention_cuda import AttentionCuda
from tcomp.tensor.template import TEMPLATES, Cycles, Scheduled, Template
from tcomp.tensor.tensor_cores.kernel import multiplies

_TYPES = ("float16", "bfloat16")
"""Of queries, keys and values: those whose sums lie in registers as operands do."""


def is_narrow_attention(kernel: Kernel, target: Target) -> bool:
    """Whether `kernel` is attention whose operands tensor cores multiply in 16 bits."""
    anchor = kernel.anchor
    if anchor is None or anchor.op != "attention" or output_axes(kernel) is None:
        return False
    return anchor.inputs[0].dtype in _TYPES and multiplies(kernel, target)


class AttentionMmaCuda(Template):
    """Attention of 16-bit operands with scores, weights before rounding, and sums in float32.

    Operands are read where they lie, which may be slices and transposes of what is in memory, if their rows
    are whole chunks of 16 bytes there. Others are brought into that form by a launch before.
    """

    name = "attention_mma_cuda"
    family = "cuda"
    alternative_to = AttentionCuda.name

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        if not is_narrow_attention(kernel, target):
            return False
        return any(True for _ in MmaAttentionPlan.fitting(_shape(kernel), _gpu(target)))

    def space(self, kernel: Kernel, target: Target) -> Space:
        return MmaAttentionPlan.space(_shape(kernel), _gpu(target))

    def cycles(self, kernel: Kernel, target: Target) -> Cycles:
        gpu, shape = _gpu(target), _shape(kernel)
        least, before = memory_cycles(gpu, kernel.nbytes), MmaAttentionOperands(kernel).moving_cycles(gpu)
        return lambda config: max(MmaAttentionPlan.of(config, shape).cycles(gpu), least) + before

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        plan = MmaAttentionPlan.of(config, _shape(kernel))
        return MmaAttention(MmaAttentionOperands(kernel), plan, _gpu(target)).scheduled()


def _shape(kernel: Kernel) -> AttentionShape:
    assert kernel.anchor is not None
    return attention_shape(kernel.anchor, Heads.of(kernel))


def _gpu(target: Target) -> Gpu:
    assert target.gpu is not None
    return target.gpu


TEMPLATES.register(AttentionMmaCuda.name, AttentionMmaCuda())
