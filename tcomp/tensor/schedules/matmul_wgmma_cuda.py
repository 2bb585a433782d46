"""Matrix products on the tensor cores of sm_90a; see `tcomp.tensor.tensor_cores.wgmma_nest`."""

from __future__ import annotations

from tcomp.target.target import Target
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.gpu.rates import memory_cycles
from tcomp.tensor.gpu.unpacked_operand import PackedWeights
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Space
from tcomp.tensor.loops import Statement
from tcomp.tensor.schedules.matmul_cuda import MatmulCuda
from tcomp.tensor.template import TEMPLATES, Cycles, Scheduled, Template
from tcomp.tensor.tensor_cores.kernel import schedule_mma, stored_in_vectors
from tcomp.tensor.tensor_cores.matrices import MmaMatrices, is_product
from tcomp.tensor.tensor_cores.output_tiles import OutputTiles, row_output
from tcomp.tensor.tensor_cores.stored_output import Output
from tcomp.tensor.tensor_cores.wgmma_nest import wgmma_launch
from tcomp.tensor.tensor_cores.wgmma_plan import ARCH, most_sums, wgmma_plan_of, wgmma_space


class MatmulWgmmaCuda(Template):
    """Products of float16, bfloat16, tf32, float8 with float32 sums, of int8 with int32 ones, by warp groups.

    Steps: pack a constant right operand as [columns, depth]; bring operands of which no tiles can be copied
    into memory so; multiply; add parts of the depth where there are several.
    """

    name = "matmul_wgmma_cuda"
    family = "cuda"
    alternative_to = MatmulCuda.name

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        if target.gpu is None or target.gpu.arch != ARCH or not is_product(kernel, target):
            return False
        return PackedWeights.of(kernel) is None

    def space(self, kernel: Kernel, target: Target) -> Space:
        assert target.gpu is not None
        matrices = MmaMatrices(kernel, in_tiles=True)
        sums, output = most_sums(kernel), _output(kernel, matrices)
        return wgmma_space(matrices.dtype, matrices.extents, output, target.gpu, sums)

    def cycles(self, kernel: Kernel, target: Target) -> Cycles:
        assert target.gpu is not None
        gpu, matrices = target.gpu, MmaMatrices(kernel, in_tiles=True)
        least, output = memory_cycles(gpu, kernel.nbytes), _output(kernel, matrices)
        dtype, extents = matrices.dtype, matrices.extents
        return lambda config: max(wgmma_plan_of(dtype, extents, output, config).cycles(gpu), least)

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        assert target.gpu is not None
        gpu, matrices = target.gpu, MmaMatrices(kernel, in_tiles=True)
        plan = wgmma_plan_of(matrices.dtype, matrices.extents, _output(kernel, matrices), config)
        anchored = Anchored(kernel, matrices.packing)
        before: list[Statement] = []
        left, right = matrices.left(anchored, before), matrices.right(anchored, before)
        vector = 2 if stored_in_vectors(kernel, matrices.product.columns) else 1
        output = OutputTiles(anchored, plan, matrices.output, vector)
        launch = wgmma_launch(plan, left, right, gpu, output)
        return schedule_mma(anchored, plan, plan.shares(gpu), before, launch, matrices.output, vector)


def _output(kernel: Kernel, matrices: MmaMatrices) -> Output:
    return row_output(kernel, matrices.product.columns)


TEMPLATES.register(MatmulWgmmaCuda.name, MatmulWgmmaCuda())
