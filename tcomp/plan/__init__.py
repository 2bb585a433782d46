"""Kernels in order, buffers at fixed offsets in one arena, constants packed."""

from tcomp.plan.packing_program import packing_program
from tcomp.plan.planner import distinct_kernels, plan, plan_variants
from tcomp.plan.program import Program

__all__ = ["Program", "distinct_kernels", "packing_program", "plan", "plan_variants"]
