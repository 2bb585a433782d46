"""Convolutions on the tensor cores of sm_90a; see `tcomp.tensor.tensor_cores.wgmma_nest`."""

from __future__ import annotations

from tcomp.target.target import Target
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.gpu.rates import memory_cycles
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Space
from tcomp.tensor.loops import Statement
from tcomp.tensor.product import factor_dtype
from tcomp.tensor.schedules.conv_mma_cuda import ConvMmaCuda
from tcomp.tensor.template import TEMPLATES, Cycles, Scheduled, Template
from tcomp.tensor.tensor_cores.conv_windows import Windows, has_windows
from tcomp.tensor.tensor_cores.kernel import schedule_mma, stored_in_vectors
from tcomp.tensor.tensor_cores.pixel_stores import PixelTiles, pixel_output
from tcomp.tensor.tensor_cores.stored_output import Output
from tcomp.tensor.tensor_cores.wgmma_nest import wgmma_launch
from tcomp.tensor.tensor_cores.wgmma_plan import ARCH, most_sums, wgmma_plan_of, wgmma_space

_BESIDE = 4
"""Operators behind a convolution, as a bias, a residual, relu and a cast, beside which a thread has registers
for all sums."""


class ConvWgmmaCuda(Template):
    """Ungrouped convolutions of float16, bfloat16, tf32, float8 and int8, by groups of warps.

    Steps as of `ConvMmaCuda`. Weights are copied by tiles, and windows where the input's layout allows it. Or
    they are copied by chunks (knob `gathers`): on their way nothing could round them to tf32.
    """

    name = "conv_wgmma_cuda"
    family = "cuda"
    priority = ConvMmaCuda.priority
    alternative_to = ConvMmaCuda.name

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        if target.gpu is None or target.gpu.arch != ARCH or not has_windows(kernel, target):
            return False
        return bool(_ways(kernel))

    def space(self, kernel: Kernel, target: Target) -> Space:
        assert target.gpu is not None
        dtype, extents, sums = factor_dtype(kernel), Windows(kernel).extents, most_sums(kernel, _BESIDE)
        return wgmma_space(dtype, extents, _output(kernel), target.gpu, sums, _ways(kernel))

    def cycles(self, kernel: Kernel, target: Target) -> Cycles:
        assert target.gpu is not None
        gpu, windows, dtype = target.gpu, Windows(kernel), factor_dtype(kernel)
        least, before = memory_cycles(gpu, kernel.nbytes), windows.gathering(gpu)
        extents, output = windows.extents, _output(kernel)
        return lambda config: max(wgmma_plan_of(dtype, extents, output, config).cycles(gpu), least) + before

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        assert target.gpu is not None
        gpu, windows = target.gpu, Windows(kernel)
        plan = wgmma_plan_of(factor_dtype(kernel), windows.extents, _output(kernel), config)
        assert plan.gathers in _ways(kernel)
        anchored = Anchored(kernel, windows.packing)
        before: list[Statement] = []
        left, right = windows.left(anchored, before), windows.right(anchored, before)
        vector = 2 if stored_in_vectors(kernel, windows.conv.out_block) else 1
        output = PixelTiles(anchored, plan, windows.output, vector, windows.conv)
        launch = wgmma_launch(plan, left, right, gpu, output)
        return schedule_mma(anchored, plan, plan.shares(gpu), before, launch, windows.output, vector)


def _output(kernel: Kernel) -> Output:
    return pixel_output(kernel, Windows(kernel).conv, by_engine=True)


def _ways(kernel: Kernel) -> tuple[int, ...]:
    """Whether windows may be copied by tiles, 0, and by chunks, 1."""
    tiles = () if Windows(kernel).tiles is None else (0,)
    return tiles if factor_dtype(kernel) == "tf32" else (*tiles, 1)


TEMPLATES.register(ConvWgmmaCuda.name, ConvWgmmaCuda())
