"""Keys of attention shared among blocks of a GPU, where queries are too few for all multiprocessors.

    for each part of the keys, a block each:  sums = weights v, not divided; the highest score; the total
    for each element of the output:           top = the highest of all parts
                                              factor = exp(highest of the part - top)
                                              the parts' sums by their factors / their totals by these

Dao, Haziza, Massa and Sizov, "Flash-Decoding for long-context inference", 2023. Parts are added in order, in
a launch of its own, so that no block waits for another and bits are the same in every run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import e as euler
from math import log2

import numpy as np

from tcomp.target.target import Gpu
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.attention.shape import Shape
from tcomp.tensor.gpu.rates import LAUNCH_CYCLES
from tcomp.tensor.gpu.threads import digits, spread
from tcomp.tensor.loops import (
    Buffer,
    Expression,
    Statement,
    constant,
    local,
    sequence,
    unrolled,
)
from tcomp.tensor.math import exp2
from tcomp.tensor.reach import REACH
from tcomp.tvm_api import tirx

SPLITS = (1, 2, 4, 8, 16, 32)
DTYPE = "float32"
LOWEST = float(np.finfo(DTYPE).min)
"""The highest score of no keys."""
_THREADS = 128

Exponential = Callable[[Expression, Expression], Expression]
"""Of a score, above another one."""


@dataclass(frozen=True)
class KeyParts:
    """Parts of the `steps` that blocks take along keys, at most; the last may be shorter.

    Each leaves `sums`, as many as there are elements of the output, where there are several.
    """

    count: int
    steps: int
    sums: int

    @property
    def share(self) -> int:
        """Steps of a part."""
        return -(-self.steps // self.count)

    @property
    def complaint(self) -> str | None:
        """Why there are no such parts."""
        if -(-self.steps // self.share) != self.count:
            return f"{self.count} parts of {self.steps} steps: some would have none"
        if self.count > 1 and self.count * self.sums > REACH:
            return f"{self.count} parts of {self.sums} sums: more than kernels count"
        return None

    @property
    def price(self) -> float:
        """What estimates are multiplied by, that a launch more must save a tenth."""
        return 1 if self.count == 1 else 1.1

    def of_block(self, part: Expression, steps: int | Expression) -> tuple[Expression, int | Expression]:
        """The first step of a part, and how many it has where a block takes `steps` in all."""
        if self.count == 1:
            return constant(0), steps
        begin = part * self.share
        return begin, tirx.max(tirx.min(constant(self.share), steps - begin), constant(0))

    def cycles(self, rows: int, width: int, gpu: Gpu, cache_bytes: float) -> float:
        """Estimated cycles of writing and reading what parts have of `rows` queries, `width` columns each;
        the second-level cache gives a multiprocessor `cache_bytes` a cycle."""
        if self.count == 1:
            return 0
        return LAUNCH_CYCLES + 2 * self.count * rows * (width + 2) * 4 / (cache_bytes * gpu.processors)


def exponential(score: Expression, top: Expression) -> Expression:
    """A weight. The factor comes after the difference, as scores may be the lowest numbers there are."""
    return exp2((score - top) * tirx.const(log2(euler), DTYPE))


class KeptParts:
    """What parts leave: sums `[part, *row, column]`, highest scores and totals `[part, *row]`."""

    def __init__(self, count: int, sums: Buffer, tops: Buffer, totals: Buffer) -> None:
        self._count, self._sums, self._tops, self._totals = count, sums, tops, totals

    def keep_sum(
        self, part: Expression, row: Sequence[Expression], column: Expression, value: Expression
    ) -> Statement:
        return tirx.BufferStore(self._sums, value, [part, *row, column])

    def keep_row(
        self, part: Expression, row: Sequence[Expression], top: Expression, total: Expression
    ) -> Statement:
        """The highest score of a row, and the total of its weights."""
        at = [part, *row]
        return sequence([tirx.BufferStore(self._tops, top, at), tirx.BufferStore(self._totals, total, at)])

    def put_together(
        self,
        weigh: Exponential,
        row: Sequence[Expression],
        column: Expression,
        use: Callable[[Expression, Expression, Expression], Statement],
    ) -> Statement:
        """`use(highest score, total, sum)` of all parts."""
        allocate, found = local((3,), DTYPE, "found")
        top, total, value = (constant(i) for i in range(3))

        def highest(part: Expression) -> Statement:
            return tirx.BufferStore(found, tirx.max(found[top], self._tops[(part, *row)]), [top])

        def add(part: Expression) -> Statement:
            factor = tirx.Var("factor", DTYPE)
            more = self._totals[(part, *row)] * factor, self._sums[(part, *row, column)] * factor
            return sequence(
                [
                    tirx.Bind(factor, weigh(self._tops[(part, *row)], found[top])),
                    tirx.BufferStore(found, found[total] + more[0], [total]),
                    tirx.BufferStore(found, found[value] + more[1], [value]),
                ]
            )

        zero = tirx.const(0, DTYPE)
        return sequence(
            [
                allocate,
                tirx.BufferStore(found, tirx.const(LOWEST, DTYPE), [top]),
                tirx.BufferStore(found, zero, [total]),
                tirx.BufferStore(found, zero, [value]),
                unrolled(self._count, highest, "part"),
                unrolled(self._count, add, "part"),
                use(found[top], found[total], found[value]),
            ]
        )


class Pieces(KeptParts):
    """What parts leave in memory, of `heads` matrices of `rows` queries and `width` columns."""

    def __init__(self, anchored: Anchored, parts: KeyParts, heads: int, rows: int, width: int) -> None:
        self._shape, whole = (heads, rows, width), (parts.count, heads, rows)
        own = {"sums": (*whole, width), "tops": whole, "totals": whole}
        kept = (anchored.add_scratch(shape, DTYPE, f"part_{name}") for name, shape in own.items())
        super().__init__(parts.count, *kept)

    def combined(
        self,
        shape: Shape,
        weigh: Exponential,
        finish: Callable[[Expression, Expression, Expression, Expression], Statement],
    ) -> Statement:
        """The launch that does `finish(head, row, column, value)` for each element of the output, a thread
        each."""

        def element(number: Expression) -> Statement:
            head, row, column = digits(number, self._shape)

            def use(_: Expression, total: Expression, value: Expression) -> Statement:
                return finish(head, row, column, shape.settled(value / total, total > 0))

            return self.put_together(weigh, [head, row], column, use)

        heads, rows, width = self._shape
        return spread(heads * rows * width, _THREADS, element)
