"""Matrix products on GPUs' tensor cores; see `tcomp.tensor.tensor_cores.mma_nest`."""

from __future__ import annotations

from tcomp.target.target import Target
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.gpu.rates import memory_cycles
from tcomp.tensor.gpu.unpacked_operand import PackedWeights, UnpackedChunks
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Space
from tcomp.tensor.loops import Statement
from tcomp.tensor.schedules.matmul_cuda import MatmulCuda
from tcomp.tensor.template import TEMPLATES, Cycles, Scheduled, Template
from tcomp.tensor.tensor_cores.kernel import multiplies_by_warps, schedule_mma, stored_in_vectors
from tcomp.tensor.tensor_cores.matrices import MmaMatrices, is_product
from tcomp.tensor.tensor_cores.mma_nest import mma_launch
from tcomp.tensor.tensor_cores.mma_operand import MmaOperand
from tcomp.tensor.tensor_cores.mma_plan import MmaPlan, plan_of, plan_space
from tcomp.tensor.tensor_cores.output_tiles import OutputTiles, row_output


class MatmulMmaCuda(Template):
    """Products on tensor cores: of float16, bfloat16, tf32, float8 with float32 sums, int8 with int32 ones.

    Steps: pack a constant right operand as [columns, depth]; bring operands that are computed, or whose rows
    are not whole chunks, into memory so; multiply; add parts of the depth where there are several.
    """

    name = "matmul_mma_cuda"
    family = "cuda"
    alternative_to = MatmulCuda.name

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        return is_product(kernel, target) and multiplies_by_warps(kernel, target)

    def space(self, kernel: Kernel, target: Target) -> Space:
        assert target.gpu is not None
        matrices = MmaMatrices(kernel)
        output = row_output(kernel, matrices.product.columns)
        return plan_space(matrices.dtype, matrices.extents, output, target.gpu, _streams(kernel))

    def cycles(self, kernel: Kernel, target: Target) -> Cycles:
        assert target.gpu is not None
        gpu, matrices = target.gpu, MmaMatrices(kernel)
        least, output = memory_cycles(gpu, kernel.nbytes), row_output(kernel, matrices.product.columns)
        dtype, extents = matrices.dtype, matrices.extents
        return lambda config: max(plan_of(dtype, extents, output, config).cycles(gpu), least)

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        assert target.gpu is not None
        matrices = MmaMatrices(kernel)
        output = row_output(kernel, matrices.product.columns)
        plan = plan_of(matrices.dtype, matrices.extents, output, config)
        anchored = Anchored(kernel, matrices.packing)
        before: list[Statement] = []
        left = matrices.left(anchored, before)
        right = _unpacked(anchored, plan) or matrices.right(anchored, before)
        vector = 2 if stored_in_vectors(kernel, matrices.product.columns) else 1
        tiles = OutputTiles(anchored, plan, matrices.output, vector)
        launch = mma_launch(plan, left, right, target.gpu, tiles)
        return schedule_mma(anchored, plan, plan.shares(target.gpu), before, launch, matrices.output, vector)


def _streams(kernel: Kernel) -> bool:
    """Whether a default may be of streams: with weights to be unpacked some take too many registers."""
    return PackedWeights.of(kernel) is None


def _unpacked(anchored: Anchored, plan: MmaPlan) -> MmaOperand | None:
    """A right operand that is unpacked on its way to shared memory, if that is what the kernel has."""
    weights = PackedWeights.of(anchored.kernel)
    if weights is None or not UnpackedChunks.fit(weights, plan.dtype):
        return None
    count = plan.block_columns * plan.depth_chunks // plan.threads
    return MmaOperand(
        anchored.input_buffer(0),
        lambda batch, column, k: [column, k],
        filling=UnpackedChunks(anchored, weights, plan.dtype, plan.columns, count),
    )


TEMPLATES.register(MatmulMmaCuda.name, MatmulMmaCuda())
