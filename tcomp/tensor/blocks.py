"""Blocks of TVM's schedules as plain loops around statements."""

from __future__ import annotations

from typing import Any

from tcomp.tvm_api import s_tir, tvm


def lower_blocks(module: Any) -> Any:
    """`module` with blocks that only say what lies where; TVM's LowerOpaqueBlock takes away the rest."""
    passes = [
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.CompactBufferAllocation(),
        s_tir.transform.LowerMatchBuffer(),
    ]
    return tvm.ir.transform.Sequential(passes)(module)
