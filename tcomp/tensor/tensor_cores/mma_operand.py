"""Operands of products on tensor cores, and how threads copy them to shared memory by chunks of 16 bytes.

A stage holds lines of chunks. Chunk c of line l lies at c ^ (l mod 8), so that the 8 lines of a matrix, and
the chunks that 8 threads copy, lie in different banks. As many lines of less than 8 chunks as fill 128 bytes
count as one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from tcomp.tensor.loops import Buffer, Expression, Statement, call
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
class MmaOperand:
    """An operand in memory as `[batch, rows, depth]`, where columns of the right one count as rows.

    Chunks run along the depth, or along rows where not `by_depth`. `index` gives where (batch, row, k) lies
    in `buffer`, `inside` whether it exists at all; what does not is zero, or `border`.
    """

    buffer: Buffer
    index: Callable[[Expression, Expression, Expression], Sequence[Any]]
    by_depth: bool = True
    inside: Callable[[Expression, Expression], Sequence[Expression]] = lambda row, k: ()
    is_rounded: bool = False
    """Whether float32 numbers are of tf32 already, where these are multiplied."""
    border: int | None = None
    """Four bytes of what does not exist, where that is not zero."""
    filling: Filling | None = None
    """What makes chunks that are not copied as they are."""
    windows: WindowTiles | None = None
    """What copies of tiles are of, where rows are windows of a convolution."""


@dataclass(frozen=True)
class ChunkCopies:
    """One operand as the threads that copy it see it.

    `begin` is where it begins in a stage, in chunks; `first` the first row of the block's tile; `thread` a
    number among those that copy.
    """

    copy: ClassVar[str] = "tcomp_copy_async"
    """The function that copies a chunk."""

    operand: MmaOperand
    plan: CopyPlan
    begin: int
    rows: int
    block_rows: int
    batch: Expression
    first: Expression
    thread: Expression

    @property
    def chunks(self) -> int:
        """Of a line."""
        return self.plan.depth_chunks if self.operand.by_depth else self.block_rows // self.plan.chunk

    def _chunks_at(self, depth: Expression) -> Iterator[tuple[int, Expression, Expression, Expression]]:
        """Number, (row, k) and whether it exists, of this thread's chunks of the step from `depth` on."""
        plan = self.plan
        chunk = tirx.floormod(self.thread, self.chunks)
        for number in range(self.block_rows * plan.depth_chunks // plan.copy_threads):
            along = chunk * plan.chunk
            row, k = (self._line(number), along) if self.operand.by_depth else (along, self._line(number))
            row, k = row + self.first, k + depth
            conditions = list(self.operand.inside(row, k))
            if self.rows % self.block_rows:
                conditions.insert(0, row < self.rows)
            if plan.depth % (plan.steps * plan.block_depth):
                conditions.insert(0, k < plan.depth)
            yield number, row, k, tirx.all(*conditions) if conditions else tirx.const(1, "bool")

    def _line(self, number: int) -> Expression:
        return tirx.floordiv(self.thread, self.chunks) + number * self.plan.copy_threads // self.chunks

    def _target(self, stage: Place, number: int) -> Expression:
        """The address of this thread's chunk `number` of a step."""
        line, chunk = self._line(number), tirx.floormod(self.thread, self.chunks)
        place = line * self.chunks + tirx.bitwise_xor(chunk, swizzle(line, self.chunks))
        return stage(place + self.begin)

    def copies(self, stage: Place, depth: Expression) -> list[Statement]:
        """This thread's share of the copies, or loads, of the step that begins at `depth`."""
        statements: list[Statement] = []
        for number, row, k, inside in self._chunks_at(depth):
            if self.operand.filling is not None:
                statements.append(self.operand.filling.fetch(number, row, k, inside))
                continue
            source = tirx.address_of(
                tirx.BufferLoad(self.operand.buffer, list(self.operand.index(self.batch, row, k)))
            )
            border = self.operand.border
            if border is not None:
                source = tirx.call_extern("handle", f"tcomp_or_border<{border}u>", source, inside)
                inside = tirx.const(1, "bool")
            statements.append(call(self.copy, self._target(stage, number), source, inside))
        return statements

    def puts(self, stage: Place) -> list[Statement]:
        """Store what `copies` loaded, where it has to be computed."""
        filling = self.operand.filling
        if filling is None:
            return []
        count = self.block_rows * self.plan.depth_chunks // self.plan.copy_threads
        return [filling.put(number, self._target(stage, number)) for number in range(count)]


def swizzle(line: Expression, chunks: int) -> Expression:
    """What the numbers of the chunks of `line`, `chunks` a line, are exclusive-ored with."""
    lines = max(1, MATRIX // chunks)
    return tirx.floormod(tirx.floordiv(line, lines), min(chunks, MATRIX))
