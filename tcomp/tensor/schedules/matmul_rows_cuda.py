"""Products of few rows or few columns on GPUs; see `tcomp.tensor.few_rows`."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, prod

from tcomp.target.target import Gpu, Target
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.few_rows import MOST_ROWS, FewRows, RowsPlan
from tcomp.tensor.gemm import fits
from tcomp.tensor.gpu_rates import LAUNCH_CYCLES, memory_cycles, multiply_adds
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Ordered, Space
from tcomp.tensor.matrices import Matrices, ProductMatrices, Transposed
from tcomp.tensor.product import Product
from tcomp.tensor.schedules.matmul_cuda import MatmulCuda
from tcomp.tensor.simt_space import Problem, problem_of
from tcomp.tensor.template import TEMPLATES, Cycles, Scheduled, Template
from tcomp.tensor.unpacked_operand import PackedWeights
from tcomp.tensor.warps import WARP

WARPS = (1, 2, 4, 8, 16)
COLUMNS = (1, 2, 4, 8)
VECTORS = (1, 2, 4)
UNROLLS = (1, 2, 4, 8)
SPLITS = (1, 2, 4, 8, 16, 32)
_LATENCY = 800
"""Cycles until what is asked of memory arrives."""
_WARPS_TO_FILL = 8
"""Of a multiprocessor, so that its loads follow each other closely."""


class MatmulRowsCuda(Template):
    """Products of up to 8 rows; those of as few columns are transposed."""

    name = "matmul_rows_cuda"
    family = "cuda"
    alternative_to = MatmulCuda.name

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        if not fits(kernel) or PackedWeights.of(kernel) is not None:
            return False
        problem = problem_of(kernel)
        return min(problem.rows, problem.columns) <= MOST_ROWS

    def space(self, kernel: Kernel, target: Target) -> Space:
        problem, gpu = problem_of(kernel), target.gpu
        assert gpu is not None
        rows, columns = sorted((problem.rows, problem.columns))

        def complaint(plan: RowsPlan) -> str | None:
            return plan.reason(gpu, rows, problem.depth, problem.itemsize)

        of_thread = 2 if columns >= 2 * WARP * gpu.processors else 1
        blocks = prod(problem.batch) * ceil(columns / (of_thread * (8 if _in_depth(kernel) else WARP)))
        wanted = max(1, 2 * gpu.processors // blocks)
        plans = [RowsPlan(8, of_thread, 4, 2 if _in_depth(kernel) else 4, s) for s in SPLITS if s <= wanted]
        return rows_space([p for p in plans if complaint(p) is None][-1], complaint)

    def cycles(self, kernel: Kernel, target: Target) -> Cycles:
        """By memory, which needs enough loads under way, or by multiply-adds and loads of the few rows."""
        problem, gpu = problem_of(kernel), target.gpu
        assert gpu is not None
        # A multiply-add and a load of a factor for each product.
        instructions = 2 * min(problem.rows, problem.columns)
        return lambda config: rows_cycles(problem, gpu, RowsPlan.of(config), instructions)

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        assert kernel.anchor is not None
        matrices: Matrices = ProductMatrices(Anchored(kernel), Product.of(kernel.anchor))
        if matrices.rows > matrices.columns:
            matrices = Transposed(matrices)
        return FewRows(matrices, RowsPlan.of(config)).scheduled()


def rows_space(best: RowsPlan, complaint: Callable[[RowsPlan], str | None]) -> Space:
    """The knobs of plans, by the names of their fields."""
    values = {"warps": WARPS, "columns": COLUMNS, "vector": VECTORS, "unroll": UNROLLS, "split": SPLITS}
    knobs = tuple(Ordered(name, of, int(getattr(best, name))) for name, of in values.items())
    return Space(knobs, lambda config: complaint(RowsPlan.of(config)))


def rows_cycles(problem: Problem, gpu: Gpu, plan: RowsPlan, instructions: float) -> float:
    """Estimated cycles of a product of few rows, or columns, that takes so many instructions for each element
    of its large operand."""
    columns = max(problem.rows, problem.columns)
    warps = prod(problem.batch) * ceil(columns / plan.columns) * plan.split
    busy = min(1.0, warps / (gpu.processors * _WARPS_TO_FILL))
    memory = memory_cycles(gpu, problem.nbytes)
    elements = prod(problem.batch) * columns * problem.depth
    issue = instructions * elements / (gpu.processors * multiply_adds(gpu, problem.itemsize))
    return max(memory, issue) / busy + _LATENCY + LAUNCH_CYCLES * (1 if plan.split == 1 else 2)


def _in_depth(kernel: Kernel) -> bool:
    """Whether neighbours of the large operand are those in the depth, if it lies in memory as it is read."""
    assert kernel.anchor is not None
    product = Product.of(kernel.anchor)
    return product.transpose_right if product.rows <= product.columns else not product.transpose_left


TEMPLATES.register(MatmulRowsCuda.name, MatmulRowsCuda())
