"""Operands of products on tensor cores, in memory and in shared memory, by chunks of 16 bytes.

A stage holds lines of chunks. Chunk c of line l lies at c ^ (l mod 8), so that the 8 lines of a matrix, and
the chunks that 8 threads copy, lie in different banks. As many lines of less than 8 chunks as fill 128 bytes
count as one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tcomp.tensor.loops import Buffer, Expression, Statement
from tcomp.tensor.tensor_cores.mma_plan import MATRIX
from tcomp.tensor.tensor_cores.window_tiles import WindowTiles
from tcomp.tvm_api import tirx

Place = Callable[[Expression], Expression]
"""The address of a chunk of a stage, by its number."""


class CopyPlan(Protocol):
    """Of a plan, what those who copy know: chunks of a line and elements of one, steps of the depth."""

    @property
    def chunk(self) -> int: ...
    @property
    def depth_chunks(self) -> int: ...
    @property
    def copy_threads(self) -> int:
        """That share the copies of a step."""
        ...

    @property
    def depth(self) -> int: ...
    @property
    def block_depth(self) -> int: ...
    @property
    def steps(self) -> int: ...


class Filling(Protocol):
    """How chunks that are computed get into a stage: they are loaded, and unpacked some time later."""

    @property
    def allocations(self) -> Sequence[Statement]:
        """Of registers."""
        ...

    def fetch(self, number: int, row: Expression, k: Expression, inside: Expression) -> Statement:
        """Load what the thread's chunk `number`, of (row, k), is made of; it is zero where not `inside`."""
        ...

    def put(self, number: int, target: Expression) -> Statement:
        """Make chunk `number` and store it at the address `target`."""
        ...


@dataclass(frozen=True)
class Border:
    """Words of 31 bits and a sign. Those of a row and of a depth have no bit in common where there is an
    element; that of a depth has one at least. Bit `BEYOND` of the first is in neither."""

    outside: Callable[[Expression], list[Expression]]
    """By row."""
    tap: Callable[[Expression], list[Expression]]
    """By depth."""


@dataclass(frozen=True)
class MmaOperand:
    """An operand in memory as `[batch, rows, depth]`, where columns of the right one count as rows.

    Chunks run along the depth, or along rows where not `by_depth`. `index` gives where (batch, row, k) lies
    in `buffer`; its numbers are sums of one that follows from (batch, row) and one that follows from k. What
    `border` says is outside, and what is beyond the last row or depth, is zero, or `border_word`.
    """

    buffer: Buffer
    index: Callable[[Expression, Expression, Expression], Sequence[Any]]
    by_depth: bool = True
    is_rounded: bool = False
    """Whether float32 numbers are of tf32 already, where these are multiplied."""
    border: Border | None = None
    """That windows hang over, along whose taps the depth is."""
    border_word: int | None = None
    """Four bytes of what does not exist, where that is not zero."""
    filling: Filling | None = None
    """What makes chunks that are not copied as they are."""
    windows: WindowTiles | None = None
    """What copies of tiles are of, where rows are windows of a convolution."""


def swizzle(line: Expression, chunks: int) -> Expression:
    """What the numbers of the chunks of `line`, `chunks` a line, are exclusive-ored with."""
    lines = max(1, MATRIX // chunks)
    return tirx.floormod(tirx.floordiv(line, lines), min(chunks, MATRIX))
