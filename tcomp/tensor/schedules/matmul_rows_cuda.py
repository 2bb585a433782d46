"""Products of few rows or few columns on GPUs; see `tcomp.tensor.gpu.few_rows`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product as combinations
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
        problem = _FewRows.of(kernel)
        return rows_space(default_plan(problem, gpu), lambda plan: problem.complaint(plan, gpu))

    def cycles(self, kernel: Kernel, target: Target) -> Cycles:
        """By memory, which needs enough loads under way, or by multiply-adds and loads of the few rows."""
        gpu = target.gpu
        assert gpu is not None
        problem = _FewRows.of(kernel)
        return lambda config: problem.cycles(RowsPlan.of(config), gpu)

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


@dataclass(frozen=True)
class _FewRows:
    """A product, and how its large operand lies in memory."""

    product: Problem
    in_depth: bool
    """Whether neighbours of the large operand are those in the depth, if it lies as it is read."""
    itemsize: int
    """Bytes of an element of it."""

    @staticmethod
    def of(kernel: Kernel) -> _FewRows:
        assert kernel.anchor is not None
        anchor = Product.of(kernel.anchor)
        few = anchor.rows <= anchor.columns
        large = kernel.anchor.inputs[1 if few else 0]
        in_depth = anchor.transpose_right if few else not anchor.transpose_left
        return _FewRows(problem_of(kernel), in_depth, numpy_dtype(large.dtype).itemsize)

    @property
    def rows(self) -> int:
        return min(self.product.rows, self.product.columns)

    def lanes(self, plan: RowsPlan) -> int:
        """Neighbours in the depth that a load gets."""
        return plan.vector if self.in_depth else 1

    def complaint(self, plan: RowsPlan, gpu: Gpu) -> str | None:
        """Why no block can be like this, or None."""
        depth, itemsize = self.product.depth, self.product.itemsize
        return plan.reason(gpu, self.rows, depth, itemsize, self.lanes(plan), in_depth=self.in_depth)

    def cycles(self, plan: RowsPlan, gpu: Gpu) -> float:
        """Estimated."""
        product, rows, lanes = self.product, self.rows, self.lanes(plan)
        columns = max(product.rows, product.columns)
        of_block = plan.columns * (plan.warps if self.in_depth else WARP)
        blocks = prod(product.batch) * ceil(columns / of_block) * plan.split
        registers = plan.registers(rows, product.itemsize, lanes)
        shared_bytes = 0 if self.in_depth else plan.shared_bytes(rows, product.itemsize)
        under_way = plan.under_way(gpu, blocks, registers, shared_bytes, lanes * self.itemsize)
        # Multiply-adds, and loads of both factors. What is loaded beyond the depth takes as long.
        instructions = rows * (1 + 1 / plan.columns) + 1 / (lanes if self.in_depth else plan.columns)
        step = plan.split * plan.step(lanes, self.in_depth)
        made = ceil(product.depth / step) * step / product.depth
        return rows_cycles(product, gpu, plan, blocks, instructions * made, int(under_way / made))


@lru_cache(maxsize=256)
def default_plan(problem: _FewRows, gpu: Gpu) -> RowsPlan:
    """The plan of least estimated cycles; of equal ones that of the fewest loads at once."""
    plans = (
        RowsPlan(warps, columns, VECTORS[-1], unroll, split)
        for split, unroll, columns, warps in combinations(SPLITS, UNROLLS, COLUMNS[:3], (8, 4))
    )
    legal = [plan for plan in plans if problem.complaint(plan, gpu) is None]
    return min(legal, key=lambda plan: problem.cycles(plan, gpu))


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


TEMPLATES.register(MatmulRowsCuda.name, MatmulRowsCuda())
