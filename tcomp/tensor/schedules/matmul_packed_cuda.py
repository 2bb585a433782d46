"""Products of few rows with weights of 4 or 8 bits on GPUs: what is read of memory is what they take there.

The walk is that of `tensor.gpu.few_rows`, along the depth; a load of a thread is a word of weights, which
it unpacks in registers. See `tcomp.tensor.gpu.unpacked_operand`.
"""

from __future__ import annotations

from math import ceil

from tcomp.target.target import Target
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.gpu.few_rows import MOST_ROWS, FewRows, RowsPlan
from tcomp.tensor.gpu.matrices import ProductMatrices
from tcomp.tensor.gpu.simt_space import problem_of
from tcomp.tensor.gpu.unpacked_operand import REGISTERS, PackedWeights, UnpackedOperand
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Space
from tcomp.tensor.product import Product, fits
from tcomp.tensor.schedules.matmul_cuda import MatmulCuda
from tcomp.tensor.schedules.matmul_rows_cuda import SPLITS, rows_cycles, rows_space
from tcomp.tensor.template import TEMPLATES, Cycles, Scheduled, Template

_WARPS = 16
"""Of a multiprocessor, which together have enough loads under way."""
_WORD_BYTES = 4
"""That a thread loads of a column at a time."""
_UNPACK = 2.5
"""Instructions that make a number of a packed weight."""


class MatmulPackedCuda(Template):
    """Products of up to 8 rows by weights `[columns, depth]` of 4 or 8 bits, with scales in blocks."""

    name = "matmul_packed_cuda"
    family = "cuda"
    alternative_to = MatmulCuda.name

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        if not fits(kernel) or PackedWeights.of(kernel) is None:
            return False
        problem = problem_of(kernel)
        return problem.rows <= MOST_ROWS and problem.accumulator == "float32"

    def space(self, kernel: Kernel, target: Target) -> Space:
        problem, gpu, weights = problem_of(kernel), target.gpu, PackedWeights.of(kernel)
        assert gpu is not None
        assert weights is not None

        def complaint(plan: RowsPlan) -> str | None:
            return plan.reason(gpu, problem.rows, problem.depth, 4, weights.word, REGISTERS)

        # What a warp reads of the few rows serves all its columns; but warps must be many enough.
        columns = next(c for c in (4, 2, 1) if c == 1 or problem.columns >= _WARPS * c * gpu.processors)
        wanted = max(1, _WARPS * gpu.processors // ceil(problem.columns / columns))
        splits = [s for s in SPLITS if s <= wanted]
        plans = [RowsPlan(4, columns, 4, unroll, split) for unroll in (4, 2, 1) for split in splits[::-1]]
        return rows_space(next(plan for plan in plans if complaint(plan) is None), complaint)

    def cycles(self, kernel: Kernel, target: Target) -> Cycles:
        problem, gpu = problem_of(kernel), target.gpu
        assert gpu is not None
        weights = PackedWeights.of(kernel)
        assert weights is not None

        def of(config: Config) -> float:
            plan = RowsPlan.of(config)
            blocks = ceil(problem.columns / (plan.columns * plan.warps)) * plan.split
            registers = plan.registers(problem.rows, 4, weights.word, REGISTERS)
            under_way = plan.under_way(gpu, blocks, registers, 0, _WORD_BYTES)
            instructions = problem.rows * (1 + 1 / plan.columns) + _UNPACK
            return rows_cycles(problem, gpu, plan, blocks, instructions, under_way)

        return of

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        anchored, weights, plan = Anchored(kernel), PackedWeights.of(kernel), RowsPlan.of(config)
        assert kernel.anchor is not None
        assert weights is not None
        matrices = ProductMatrices(anchored, Product.of(kernel.anchor))
        right = UnpackedOperand(anchored, weights, matrices.columns, plan)
        return FewRows(matrices, plan, right).scheduled()


TEMPLATES.register(MatmulPackedCuda.name, MatmulPackedCuda())
