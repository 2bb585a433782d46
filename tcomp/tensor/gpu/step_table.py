"""Where each element of a convolution's depth lies, in shared memory: tap and channel as bits of a word.

Where channels are no whole steps, neighbours in the depth have different taps, and each would cost divisions
by the sizes of the window for every pixel. A block computes them once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

from tcomp.tensor.gpu.threads import digits, shared, synchronize
from tcomp.tensor.loops import (
    Buffer,
    Expression,
    Statement,
    constant,
    unrolled,
)
from tcomp.tvm_api import tirx

LONGEST = 1024
"""Elements of the depth that a table may have."""
_BITS = 31


@dataclass(frozen=True)
class StepTable:
    """The digits of every number below the product of `extents`, the last of which runs fastest.

    It has `length` words: of numbers beyond that product the first digit is `beyond`, others are zero.
    """

    extents: tuple[int, ...]
    length: int
    beyond: int

    @staticmethod
    def of(extents: Sequence[int], length: int, beyond: int) -> StepTable | None:
        """None where there are too many numbers, one digit is all, or digits have no room in a word."""
        table = StepTable(tuple(extents), length, beyond)
        fits = length <= LONGEST and beyond.bit_length() + sum(table._bits[1:]) <= _BITS
        return table if fits and sum(extent > 1 for extent in extents) > 1 else None

    @property
    def _bits(self) -> list[int]:
        return [(extent - 1).bit_length() for extent in self.extents]

    @cached_property
    def _memory(self) -> tuple[Statement, Buffer]:
        return shared((self.length,), "int32", "taps")

    def fill(self, thread: Expression, threads: int) -> list[Statement]:
        """Allocate and fill it by all threads of a block, of which there are `threads`."""
        allocate, buffer = self._memory

        def some(number: Expression) -> Statement:
            at = number * threads + thread
            word, shift = constant(0), 0
            for digit, bits in zip(digits(at, self.extents)[::-1], self._bits[::-1], strict=True):
                word, shift = word + digit * (1 << shift), shift + bits
            exists = at < prod(self.extents)
            beyond = constant(self.beyond << sum(self._bits[1:]))
            store = tirx.BufferStore(buffer, tirx.Select(exists, word, beyond), [at])
            return tirx.IfThenElse(at < self.length, store, None)

        return [allocate, unrolled(-(-self.length // threads), some, "some"), synchronize()]

    def digits(self, number: Expression) -> list[Expression]:
        """The digits of `number`, as the block finds them."""
        word, shift = tirx.BufferLoad(self._memory[1], [number]), 0
        found = list[Expression]()
        for bits in self._bits[:0:-1]:
            digit = tirx.shift_right(word, constant(shift))
            found.append(tirx.bitwise_and(digit, constant((1 << bits) - 1)))
            shift += bits
        return [tirx.shift_right(word, constant(shift)), *found[::-1]]
