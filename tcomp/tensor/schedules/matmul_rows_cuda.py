"""Products of few rows or few columns on GPUs; see `tcomp.tensor.gpu.few_rows`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import ceil, prod

from tcomp.relay.types import numpy_dtype
from tcomp.target.target import Gpu, Target
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.gpu.few_rows import MOST_ROWS, FewRows, RowsPlan
from tcomp.tensor.gpu.matrices import Matrices, ProductMatrices, Transposed
from tcomp.tensor.gpu.rates import LAUNCH_CYCLES, clock, memory_cycles, multiply_adds
from tcomp.tensor.gpu.simt_space import Problem, problem_of
from tcomp.tensor.gpu.unpacked_operand import PackedWeights
from tcomp.tensor.gpu.warps import WARP
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Ordered, Space
from tcomp.tensor.product import Product, fits
from tcomp.tensor.schedules.matmul_cuda import MatmulCuda
from tcomp.tensor.template import TEMPLATES, Cycles, Scheduled, Template

WARPS = (1, 2, 4, 8, 16)
COLUMNS = (1, 2, 4, 8)
VECTORS = (1, 2, 4)
UNROLLS = (1, 2, 4, 8)
SPLITS = (1, 2, 4, 8, 16, 32)
_LATENCY = 700e-9
"""Seconds until what is asked of memory arrives while it is busy."""
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
        gpu = target.gpu
        assert gpu is not None
        return rows_space(_default(kernel, gpu), lambda plan: _complaint(kernel, gpu, plan))

    def cycles(self, kernel: Kernel, target: Target) -> Cycles:
        """By memory, which needs enough loads under way, or by multiply-adds and loads of the few rows."""
        gpu = target.gpu
        assert gpu is not None
        return lambda config: _cycles(kernel, gpu, RowsPlan.of(config))

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


def _default(kernel: Kernel, gpu: Gpu) -> RowsPlan:
    """The plan of least estimated cycles; of equal ones that of the fewest loads at once."""
    plans = (
        RowsPlan(warps, columns, VECTORS[-1], unroll, split)
        for split, unroll, columns, warps in product(SPLITS, UNROLLS, COLUMNS[:3], (8, 4))
    )
    legal = [plan for plan in plans if _complaint(kernel, gpu, plan) is None]
    return min(legal, key=lambda plan: _cycles(kernel, gpu, plan))


def _complaint(kernel: Kernel, gpu: Gpu, plan: RowsPlan) -> str | None:
    problem, in_depth = problem_of(kernel), _in_depth(kernel)
    rows, lanes = min(problem.rows, problem.columns), plan.vector if in_depth else 1
    return plan.reason(gpu, rows, problem.depth, problem.itemsize, lanes, in_depth=in_depth)


def _cycles(kernel: Kernel, gpu: Gpu, plan: RowsPlan) -> float:
    assert kernel.anchor is not None
    problem, in_depth = problem_of(kernel), _in_depth(kernel)
    rows, columns = sorted((problem.rows, problem.columns))
    large = kernel.anchor.inputs[1 if problem.rows <= problem.columns else 0]
    lanes = plan.vector if in_depth else 1
    blocks = prod(problem.batch) * ceil(columns / (plan.columns * (plan.warps if in_depth else WARP)))
    blocks *= plan.split
    registers = plan.registers(rows, problem.itemsize, lanes)
    shared_bytes = 0 if in_depth else plan.shared_bytes(rows, problem.itemsize)
    of_column = lanes * numpy_dtype(large.dtype).itemsize
    under_way = plan.under_way(gpu, blocks, registers, shared_bytes, of_column)
    # Multiply-adds, and loads of both factors. What is loaded beyond the depth takes as long.
    instructions = rows * (1 + 1 / plan.columns) + 1 / (lanes if in_depth else plan.columns)
    step = plan.split * plan.step(lanes, in_depth)
    made = ceil(problem.depth / step) * step / problem.depth
    return rows_cycles(problem, gpu, plan, blocks, instructions * made, int(under_way / made))


def rows_cycles(
    problem: Problem, gpu: Gpu, plan: RowsPlan, blocks: int, instructions: float, under_way: int
) -> float:
    """Estimated cycles of a product of few rows, or columns, by `blocks`, that takes `instructions` for each
    element of its large operand, of which so many bytes are under way.

    Memory gives these in its latency, and no more than its bandwidth: Little's law.
    """
    columns = max(problem.rows, problem.columns)
    busy = min(1.0, blocks * plan.warps / (gpu.processors * _WARPS_TO_FILL))
    latency = _LATENCY * clock(gpu)
    memory = max(memory_cycles(gpu, problem.nbytes), latency * problem.nbytes / under_way)
    elements = prod(problem.batch) * columns * problem.depth
    issue = instructions * elements / (gpu.processors * multiply_adds(gpu, problem.itemsize))
    return max(memory, issue) / busy + latency + LAUNCH_CYCLES * (1 if plan.split == 1 else 2)


def _in_depth(kernel: Kernel) -> bool:
    """Whether neighbours of the large operand are those in the depth, if it lies in memory as it is read."""
    assert kernel.anchor is not None
    anchor = Product.of(kernel.anchor)
    return anchor.transpose_right if anchor.rows <= anchor.columns else not anchor.transpose_left


TEMPLATES.register(MatmulRowsCuda.name, MatmulRowsCuda())
