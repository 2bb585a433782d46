"""Rows of attention's operands on their way to shared memory, where tensor cores read them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tcomp.tensor.attention.mma_operands import Chunk
from tcomp.tensor.gpu.threads import digits
from tcomp.tensor.loops import Expression, Statement, call
from tcomp.tvm_api import tirx


@dataclass(frozen=True)
class Lines:
    """Rows of an operand in shared memory: `count` lines, `distance` chunks from one to the next.

    A line has `extent` elements, and zeros up to `chunks` chunks; lines from row `rows` on are zeros.
    """

    source: Chunk
    rows: int
    extent: int
    count: int
    chunks: int
    size: int
    """Elements of a chunk."""
    threads: int

    @property
    def distance(self) -> int:
        return self.chunks + 1

    def copies(
        self, at: Callable[[Expression], Expression], batch: Expression, first: Expression, thread: Expression
    ) -> list[Statement]:
        """This thread's share of the copies of rows from `first` on to the chunks `at`."""
        total = self.count * self.chunks
        return [self._copy(at, batch, first, thread, n, total) for n in range(-(-total // self.threads))]

    def _copy(
        self,
        at: Callable[[Expression], Expression],
        batch: Expression,
        first: Expression,
        thread: Expression,
        number: int,
        total: int,
    ) -> Statement:
        begin = number * self.threads
        if self.threads % self.chunks:
            line, chunk = digits(thread + begin, (self.count, self.chunks))
        else:
            line = tirx.floordiv(thread, self.chunks) + begin // self.chunks
            chunk = tirx.floormod(thread, self.chunks)
        row, k = first + line, chunk * self.size
        conditions = [row < self.rows] if self.rows % self.count else []
        if self.extent < self.chunks * self.size:
            conditions.append(k < self.extent)
        inside = tirx.all(*conditions) if conditions else tirx.const(1, "bool")
        source = tirx.address_of(self.source(batch, row, k))
        copy = call("tcomp_copy_async", at(line * self.distance + chunk), source, inside)
        fits = begin + self.threads <= total
        return copy if fits else tirx.IfThenElse(thread + begin < total, copy, None)
