"""Kernels for GPUs, written as what one thread does: launches, shared memory, barriers.

The body of a scheduled function for a GPU is a sequence of launches, which run one after the other. Each
gets all parameters of the function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tcomp.tensor.loops import (
    Buffer,
    Expression,
    Statement,
    constant,
    under,
)
from tcomp.tvm_api import PrimFunc, structural_walk, tirx, tvm

Body = Callable[[Sequence[Expression], Sequence[Expression]], Statement]
Extents = tuple[int, int, int]

_THREAD_INDEX = 1
"""TVM's `IterVar::kThreadIndex`."""
_AXES = "xyz"
_EXTENT = "thread_extent"
DYNAMIC_SHARED = "shared.dyn"
"""The scope of shared memory whose size is given at launch."""


def launch(grid: Sequence[int], block: Sequence[int], body: Body) -> Statement:
    """`body(block index, thread index)` by a grid of blocks of threads, at most three axes each, x first."""
    axes = [(f"{of}.{axis}", extent) for of, extents in (("blockIdx", grid), ("threadIdx", block))
            for axis, extent in zip(_AXES, extents, strict=False)]  # fmt: skip

    def level(index: tuple[Expression, ...]) -> Statement:
        if len(index) == len(axes):
            return body(index[: len(grid)], index[len(grid) :])
        tag, extent = axes[len(index)]
        variable = tirx.Var(tag.replace(".", "_"), "int32")
        axis = tirx.IterVar(tvm.ir.Range(0, extent), variable, _THREAD_INDEX, tag)
        value = variable if extent > 1 else constant(0)
        inner = under(variable, constant(extent), lambda _: level((*index, value)))
        return tirx.AttrStmt(axis, _EXTENT, constant(extent), inner)

    return level(())


def launches_of(function: PrimFunc) -> list[Statement]:
    """The launches of a scheduled function, in order."""
    return list(function.body.seq) if isinstance(function.body, tirx.SeqStmt) else [function.body]


def grid_and_block(part: Statement) -> tuple[Extents, Extents]:
    """Blocks of a launch and threads of a block, along x, y and z."""
    extents = {f"{of}.{axis}": 1 for of in ("blockIdx", "threadIdx") for axis in _AXES}

    def on_attribute(statement: Any) -> None:
        if statement.attr_key == _EXTENT:
            extents[str(statement.node.thread_tag)] = int(statement.value)

    structural_walk(part, [(tirx.AttrStmt, on_attribute)])
    x, y, z, *block = extents.values()
    return (x, y, z), (block[0], block[1], block[2])


def shared(shape: Sequence[int], dtype: str, name: str) -> tuple[Statement, Buffer]:
    """A buffer that the threads of a block have in common, at most 48 KiB of them in a kernel."""
    buffer = tirx.decl_buffer(list(shape), dtype, name=name, scope="shared")
    return tirx.AllocBuffer(buffer), buffer


def dynamic_shared(shape: Sequence[int], dtype: str, name: str) -> tuple[Statement, Buffer]:
    """As `shared`, of any size that the target's blocks may have. A launch has at most one such buffer."""
    buffer = tirx.decl_buffer(list(shape), dtype, name=name, scope=DYNAMIC_SHARED)
    return tirx.AllocBuffer(buffer), buffer


def synchronize() -> Statement:
    """Wait for all threads of the block; what they stored in shared memory is then seen by all."""
    return tirx.Evaluate(tirx.call_intrin("int32", "tirx.tvm_storage_sync", "shared"))


def digits(position: Expression, extents: Sequence[int]) -> list[Expression]:
    """The index into `extents` of element number `position` in row-major order."""
    index: list[Expression] = []
    for extent in reversed(extents):
        index.insert(0, tirx.floormod(position, constant(extent)))
        position = tirx.floordiv(position, constant(extent))
    return index


def spread(count: int, threads: int, body: Callable[[Expression], Statement]) -> Statement:
    """A launch that does `body(i)` for every i below `count`, one a thread."""
    if count == 0:
        return launch((1,), (1,), lambda block, thread: tirx.Evaluate(0))
    threads = min(threads, -(-count // 32) * 32)

    def point(block: Sequence[Expression], thread: Sequence[Expression]) -> Statement:
        number = block[0] * threads + thread[0]
        inside = body(number)
        return inside if count % threads == 0 else tirx.IfThenElse(number < count, inside, None)

    return launch((-(-count // threads),), (threads,), point)
