"""Attention on the tensor cores of sm_90a; see `tcomp.tensor.attention.wgmma`."""

from __future__ import annotations

from tcomp.target.target import Gpu, Target
from tcomp.tensor.attention.wgmma import WgmmaAttention
from tcomp.tensor.attention.wgmma_operands import TiledAttentionOperands
from tcomp.tensor.attention.wgmma_plan import WgmmaAttentionPlan
from tcomp.tensor.gpu.rates import memory_cycles
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Space
from tcomp.tensor.schedules.attention_mma_cuda import AttentionMmaCuda, is_narrow_attention
from tcomp.tensor.template import TEMPLATES, Cycles, Scheduled, Template
from tcomp.tensor.tensor_cores.wgmma_plan import ARCH


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
        if not is_narrow_attention(kernel, target) or _gpu(target).arch != ARCH:
            return False
        operands = TiledAttentionOperands(kernel)
        plans = WgmmaAttentionPlan.fitting(operands.shape, _gpu(target))
        return any(True for _ in plans) and operands.tiled() is not None

    def space(self, kernel: Kernel, target: Target) -> Space:
        return WgmmaAttentionPlan.space(TiledAttentionOperands(kernel).shape, _gpu(target))

    def cycles(self, kernel: Kernel, target: Target) -> Cycles:
        gpu, operands = _gpu(target), TiledAttentionOperands(kernel)
        least, before = memory_cycles(gpu, kernel.nbytes), operands.moving_cycles(gpu)
        return lambda config: max(WgmmaAttentionPlan.of(config, operands.shape).cycles(gpu), least) + before

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        operands = TiledAttentionOperands(kernel)
        plan = WgmmaAttentionPlan.of(config, operands.shape)
        return WgmmaAttention(operands, plan, _gpu(target)).scheduled()


def _gpu(target: Target) -> Gpu:
    assert target.gpu is not None
    return target.gpu


TEMPLATES.register(AttentionWgmmaCuda.name, AttentionWgmmaCuda())
