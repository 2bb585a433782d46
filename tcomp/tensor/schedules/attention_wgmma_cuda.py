"""Attention on the tensor cores of sm_90a; see `tcomp.tensor.wgmma_attention`."""

from __future__ import annotations

from tcomp.target.target import Gpu, Target
from tcomp.tensor.epilogue import output_axes
from tcomp.tensor.gpu_rates import LAUNCH_CYCLES, memory_cycles
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Space
from tcomp.tensor.mma_kernel import multiplies
from tcomp.tensor.schedules.attention_mma_cuda import TYPES, AttentionMmaCuda
from tcomp.tensor.template import TEMPLATES, Scheduled, Template
from tcomp.tensor.wgmma_attention import WgmmaAttention
from tcomp.tensor.wgmma_attention_operands import TiledAttentionOperands
from tcomp.tensor.wgmma_attention_plan import WgmmaAttentionPlan, default_plan, fitting_plans, plan_space
from tcomp.tensor.wgmma_plan import ARCH


class AttentionWgmmaCuda(Template):
    """Attention of 16-bit operands by products of warp groups.

    Scores, weights before rounding, and sums are float32.
    Operands are fetched by the copy engine where they lie. Those that it cannot fetch are brought into a form
    that it can by a launch before.
    """

    name = "attention_wgmma_cuda"
    family = "cuda"
    alternative_to = AttentionMmaCuda.name

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        anchor = kernel.anchor
        if anchor is None or anchor.op != "attention" or output_axes(kernel) is None:
            return False
        if anchor.inputs[0].dtype not in TYPES or not multiplies(kernel, target):
            return False
        if _gpu(target).arch != ARCH:
            return False
        operands = TiledAttentionOperands(kernel)
        plans = fitting_plans(operands.shape, _gpu(target))
        return any(True for _ in plans) and operands.tiled() is not None

    def space(self, kernel: Kernel, target: Target) -> Space:
        return plan_space(TiledAttentionOperands(kernel).shape, _gpu(target))

    def estimate(self, kernel: Kernel, target: Target) -> float:
        gpu, operands = _gpu(target), TiledAttentionOperands(kernel)
        moving = LAUNCH_CYCLES * len(operands.moved) + memory_cycles(gpu, operands.moved_bytes)
        cycles = default_plan(operands.shape, gpu).cycles(gpu)
        return max(cycles, memory_cycles(gpu, kernel.nbytes)) + moving

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        operands = TiledAttentionOperands(kernel)
        plan = WgmmaAttentionPlan.of(config, operands.shape)
        return WgmmaAttention(operands, plan, _gpu(target)).scheduled()


def _gpu(target: Target) -> Gpu:
    assert target.gpu is not None
    return target.gpu


TEMPLATES.register(AttentionWgmmaCuda.name, AttentionWgmmaCuda())
