"""Convolutions on the tensor cores of sm_90a; see `tcomp.tensor.wgmma_nest`."""

from __future__ import annotations

from tcomp.target.target import Target
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.conv_windows import Windows, has_windows
from tcomp.tensor.gpu_rates import memory_cycles
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Space
from tcomp.tensor.loops import Statement
from tcomp.tensor.mma_kernel import factor_dtype, schedule_mma, stored_in_vectors
from tcomp.tensor.schedules.conv_mma_cuda import ConvMmaCuda
from tcomp.tensor.template import TEMPLATES, Scheduled, Template
from tcomp.tensor.wgmma_nest import wgmma_launch
from tcomp.tensor.wgmma_plan import (
    ARCH,
    SUMS_WITH_WORK,
    default_wgmma_plan,
    wgmma_plan_of,
    wgmma_space,
)


class ConvWgmmaCuda(Template):
    """Ungrouped convolutions of float16, bfloat16 and int8, by groups of warps.

    Steps as of `ConvMmaCuda`. Weights are copied by tiles, and windows, which have none, by chunks: on their
    way nothing could round them to tf32.
    """

    name = "conv_wgmma_cuda"
    family = "cuda"
    alternative_to = ConvMmaCuda.name

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        if target.gpu is None or target.gpu.arch != ARCH or not has_windows(kernel, target):
            return False
        return factor_dtype(kernel) != "tf32"

    def space(self, kernel: Kernel, target: Target) -> Space:
        assert target.gpu is not None
        dtype, extents = factor_dtype(kernel), Windows(kernel).extents
        return wgmma_space(dtype, extents, target.gpu, SUMS_WITH_WORK, gathers=True)

    def estimate(self, kernel: Kernel, target: Target) -> float:
        assert target.gpu is not None
        gpu, windows = target.gpu, Windows(kernel)
        plan = default_wgmma_plan(factor_dtype(kernel), windows.extents, gpu, SUMS_WITH_WORK, gathers=True)
        return max(plan.cycles(gpu), memory_cycles(gpu, kernel.nbytes)) + windows.gathering(gpu)

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        assert target.gpu is not None
        windows = Windows(kernel)
        plan = wgmma_plan_of(factor_dtype(kernel), windows.extents, config, gathers=True)
        anchored = Anchored(kernel, windows.packing)
        before: list[Statement] = []
        left, right = windows.left(anchored, before), windows.right(anchored, before)
        vector = 2 if stored_in_vectors(kernel, windows.conv.out_block) else 1
        launch = wgmma_launch(plan, left, right, target.gpu)
        return schedule_mma(anchored, plan, plan.shares(target.gpu), before, launch, windows.output, vector)


TEMPLATES.register(ConvWgmmaCuda.name, ConvWgmmaCuda())
