"""Keys of attention shared among blocks of a GPU, where queries are too few for all multiprocessors.

    for each part of the keys, a block each:  sums = weights v, not divided; the highest score; the total
    for each element of the output:           top = the highest of all parts
                                              factor = exp(highest of the part - top)
                                              the parts' sums by their factors / their totals by these

Dao, Haziza, Massa and Sizov, "Flash-Decoding for long-context inference", 2023. Parts are added in order, in
a launch of its own, so that no block waits for another and bits are the same in every run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tcomp.target.target import Gpu
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.gpu_rates import LAUNCH_CYCLES
from tcomp.tensor.loops import Expression, Statement, constant, local, sequence, unrolled
from tcomp.tensor.reach import REACH
from tcomp.tensor.threads import digits, spread
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


class Pieces:
    """What parts leave in memory, of `heads` matrices of `rows` queries and `width` columns."""

    def __init__(self, anchored: Anchored, parts: KeyParts, heads: int, rows: int, width: int) -> None:
        self._count, self._shape = parts.count, (heads, rows, width)
        whole = (parts.count, heads, rows)
        self._sums = anchored.add_scratch((*whole, width), DTYPE, "part_sums")
        self._tops = anchored.add_scratch(whole, DTYPE, "part_tops")
        self._totals = anchored.add_scratch(whole, DTYPE, "part_totals")

    def keep_sum(
        self, part: Expression, head: Expression, row: Expression, column: Expression, value: Expression
    ) -> Statement:
        return tirx.BufferStore(self._sums, value, [part, head, row, column])

    def keep_row(
        self, part: Expression, head: Expression, row: Expression, top: Expression, total: Expression
    ) -> Statement:
        """The highest score of a row, and the total of its weights."""
        at = [part, head, row]
        return sequence([tirx.BufferStore(self._tops, top, at), tirx.BufferStore(self._totals, total, at)])

    def combined(
        self,
        exponential: Exponential,
        finish: Callable[[Expression, Expression, Expression, Expression], Statement],
    ) -> Statement:
        """The launch that does `finish(head, row, column, value)` for each element, a thread each."""
        allocate, found = local((3,), DTYPE, "found")
        top, total, value = (constant(i) for i in range(3))

        def element(number: Expression) -> Statement:
            head, row, column = digits(number, self._shape)

            def highest(part: Expression) -> Statement:
                own = self._tops[part, head, row]
                return tirx.BufferStore(found, tirx.max(found[top], own), [top])

            def add(part: Expression) -> Statement:
                factor = tirx.Var("factor", DTYPE)
                more = self._totals[part, head, row] * factor, self._sums[part, head, row, column] * factor
                return sequence(
                    [
                        tirx.Bind(factor, exponential(self._tops[part, head, row], found[top])),
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
                    finish(head, row, column, found[value] / found[total]),
                ]
            )

        heads, rows, width = self._shape
        return spread(heads * rows * width, _THREADS, element)
