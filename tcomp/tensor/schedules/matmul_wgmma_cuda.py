"""Matrix products on the tensor cores of sm_90a; see `tcomp.tensor.wgmma_nest`."""

from __future__ import annotations

from tcomp.target.target import Target
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Space
from tcomp.tensor.loops import Statement
from tcomp.tensor.mma_kernel import schedule_mma, stored_in_vectors
from tcomp.tensor.mma_matrices import MmaMatrices, is_product
from tcomp.tensor.schedules.matmul_cuda import MatmulCuda
from tcomp.tensor.template import TEMPLATES, Scheduled, Template
from tcomp.tensor.wgmma_nest import WgmmaNest
from tcomp.tensor.wgmma_plan import ARCH, estimated_wgmma_cycles, wgmma_plan_of, wgmma_space


class MatmulWgmmaCuda(Template):
    """Products of float16 and bfloat16 with float32 sums, of int8 with int32 ones, by groups of warps.

    Steps: pack a constant right operand as [columns, depth]; bring operands of which no tiles can be copied
    into memory so; multiply; add parts of the depth where there are several.
    """

    name = "matmul_wgmma_cuda"
    family = "cuda"
    alternative_to = MatmulCuda.name

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        return target.gpu is not None and target.gpu.arch == ARCH and is_product(kernel, target)

    def space(self, kernel: Kernel, target: Target) -> Space:
        assert target.gpu is not None
        matrices = MmaMatrices(kernel, in_tiles=True)
        return wgmma_space(matrices.dtype, matrices.extents, target.gpu)

    def estimate(self, kernel: Kernel, target: Target) -> float:
        assert target.gpu is not None
        matrices = MmaMatrices(kernel, in_tiles=True)
        return estimated_wgmma_cycles(matrices.dtype, matrices.extents, kernel.nbytes, target.gpu)

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        assert target.gpu is not None
        gpu, matrices = target.gpu, MmaMatrices(kernel, in_tiles=True)
        plan = wgmma_plan_of(matrices.dtype, matrices.extents, config)
        anchored = Anchored(kernel, matrices.packing)
        before: list[Statement] = []
        left, right = matrices.left(anchored, before), matrices.right(anchored, before)
        vector = 2 if stored_in_vectors(kernel, matrices.product.columns) else 1
        return schedule_mma(
            anchored,
            plan,
            before,
            lambda store, vector: WgmmaNest(plan, left, right, store, vector, gpu).statement,
            matrices.output,
            vector,
        )


TEMPLATES.register(MatmulWgmmaCuda.name, MatmulWgmmaCuda())
