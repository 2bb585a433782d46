"""Which taps of a window hang over the border of an image, as bits of words.

A bit stands for a tap along one axis. The words of a window have those that lie outside, the words of a step
of the depth those of its tap: it lies inside where they have none in common. So a copy takes one instruction
to know that, and no position of a pixel is computed in a loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from tcomp.tensor.convolution import Convolution
from tcomp.tensor.loops import Expression, constant
from tcomp.tvm_api import tirx

TAP_BITS = 30
"""Of a word. The next bit is that of a depth beyond the end, and the last one the sign."""
BEYOND = 1 << TAP_BITS


@dataclass(frozen=True)
class _Field:
    """Taps `first` to `first + count` along an axis, whose bits begin at `shift` of word number `word`."""

    axis: int
    first: int
    count: int
    word: int
    shift: int


@dataclass(frozen=True)
class WindowBorder:
    """Of the windows of one convolution."""

    conv: Convolution

    @cached_property
    def _fields(self) -> list[_Field]:
        """One after the other; an axis without padding has none, a long one several."""
        fields: list[_Field] = []
        word, shift = 0, 0
        for axis, extent in enumerate(self.conv.kernel):
            first, last = 0, extent if self.conv.pad_begin[axis] or self.conv.pad_end[axis] else 0
            while first < last:
                if shift == TAP_BITS:
                    word, shift = word + 1, 0
                count = min(last - first, TAP_BITS - shift)
                fields.append(_Field(axis, first, count, word, shift))
                first, shift = first + count, shift + count
        return fields

    @property
    def words(self) -> int:
        return self._fields[-1].word + 1 if self._fields else 0

    def outside(self, out: Sequence[Expression]) -> list[Expression]:
        """The words of the window of output pixel `out`."""
        conv, found = self.conv, [constant(0) for _ in range(self.words)]
        for field in self._fields:
            first = out[field.axis] * conv.strides[field.axis] - conv.pad_begin[field.axis]
            size, dilation = conv.in_size[field.axis], conv.dilation[field.axis]
            before, within = (_first_taps(field, end - first, dilation) for end in (0, size))
            bits = tirx.bitwise_or(before, tirx.bitwise_xor(within, constant((1 << field.count) - 1)))
            found[field.word] = tirx.bitwise_or(found[field.word], bits * (1 << field.shift))
        return found

    def tap(self, tap: Sequence[Expression]) -> list[Expression]:
        """The words of a tap of the window."""
        found = [constant(0) for _ in range(self.words)]
        for field in self._fields:
            own = tap[field.axis] - field.first
            # Beyond the end of the depth it may be more, and that of another field less than 0.
            within = tirx.max(constant(0), tirx.min(own, constant(field.count - 1)))
            bit = tirx.shift_left(constant(1 << field.shift), within)
            if field.count < self.conv.kernel[field.axis]:
                bit = tirx.Select(tirx.all(own >= 0, own < field.count), bit, constant(0))
            found[field.word] = tirx.bitwise_or(found[field.word], bit)
        return found


def _first_taps(field: _Field, distance: Expression, dilation: int) -> Expression:
    """Bits of those of a field's taps that are less than `distance` pixels away from the window's first."""
    taps = tirx.floordiv(distance + (dilation - 1), constant(dilation)) - field.first
    count = tirx.max(constant(0), tirx.min(taps, constant(field.count)))
    return tirx.shift_left(constant(1), count) - 1
