"""Convolutions on GPUs' tensor cores: matrix products whose rows are output pixels."""

from __future__ import annotations

from tcomp.target.target import Target
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.gpu.rates import memory_cycles
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Space
from tcomp.tensor.loops import Statement
from tcomp.tensor.product import factor_dtype
from tcomp.tensor.template import TEMPLATES, Cycles, Scheduled, Template
from tcomp.tensor.tensor_cores.conv_windows import Windows, has_windows
from tcomp.tensor.tensor_cores.kernel import (
    multiplies_by_warps,
    schedule_mma,
    stored_in_vectors,
)
from tcomp.tensor.tensor_cores.mma_nest import mma_launch
from tcomp.tensor.tensor_cores.mma_plan import plan_of, plan_space
from tcomp.tensor.tensor_cores.output_tiles import OutputTiles
from tcomp.tensor.tensor_cores.pixel_stores import pixel_output
from tcomp.tensor.tensor_cores.stored_output import Output


class ConvMmaCuda(Template):
    """Ungrouped convolutions of the types that tensor cores multiply.

    Steps: pack constant weights as [output channels, taps, input channels]; bring an input that is computed,
    or whose channels do not lie side by side in whole chunks, into memory as [batch, pixels, channels];
    multiply; add parts of the depth where there are several.
    """

    name = "conv_mma_cuda"
    family = "cuda"
    priority = 5

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        return has_windows(kernel, target) and multiplies_by_warps(kernel, target)

    def space(self, kernel: Kernel, target: Target) -> Space:
        assert target.gpu is not None
        windows = Windows(kernel)
        return plan_space(factor_dtype(kernel), windows.extents, _output(windows), target.gpu)

    def cycles(self, kernel: Kernel, target: Target) -> Cycles:
        assert target.gpu is not None
        gpu, windows, dtype = target.gpu, Windows(kernel), factor_dtype(kernel)
        least, before = memory_cycles(gpu, kernel.nbytes), windows.gathering(gpu)
        extents, output = windows.extents, _output(windows)
        return lambda config: max(plan_of(dtype, extents, output, config).cycles(gpu), least) + before

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        assert target.gpu is not None
        windows = Windows(kernel)
        plan = plan_of(factor_dtype(kernel), windows.extents, _output(windows), config)
        anchored = Anchored(kernel, windows.packing)
        before: list[Statement] = []
        left, right = windows.left(anchored, before), windows.right(anchored, before)
        vector = 2 if stored_in_vectors(kernel, windows.conv.out_block) else 1
        tiles = OutputTiles(anchored, plan, windows.output, vector)
        launch = mma_launch(plan, left, right, target.gpu, tiles)
        return schedule_mma(anchored, plan, plan.shares(target.gpu), before, launch, windows.output, vector)


def _output(windows: Windows) -> Output:
    return pixel_output(windows.kernel, windows.conv, by_engine=False)


TEMPLATES.register(ConvMmaCuda.name, ConvMmaCuda())
