"""Patches of an image of few channels, as tile registers (`tcomp.tensor.amx`) load them.

The input is copied into rows of pixels, each of which has its channels in bfloat16 side by side, with zeros
up to a power of two, and the padding around the image. What an output pixel reads of a kernel row then lies
in one piece, and neighbouring output pixels read such pieces at equal distances, which overlap: they are the
rows of a tile, whatever the kernel's width and strides are. So no element is copied for more than one kernel
position. A step of the depth is a kernel row, or a part of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

from tcomp.relay.graph import Node
from tcomp.relay.types import Array, TensorType, numpy_dtype
from tcomp.target.target import Target
from tcomp.tensor import bfloat16
from tcomp.tensor.amx import DTYPE, LANES, WORD_BYTES
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.convolution import Convolution
from tcomp.tensor.cpu.primitives import Tiles
from tcomp.tensor.cpu.weight_panels import WeightPanels
from tcomp.tensor.groups import WORD, GroupSums
from tcomp.tensor.loops import (
    Buffer,
    Expression,
    Statement,
    constant,
    local,
    loop,
    sequence,
    vector_loop,
    vectorized,
)
from tcomp.tensor.template import Packing
from tcomp.tvm_api import tirx

MOST_CHANNELS = 8
"""More channels are worth a layout in blocks."""
ROW_CYCLES = 20.0
"""Estimated cycles of beginning a row of the copy."""
WORD_CYCLES = 6.0
"""Estimated cycles of a vector of words of the copy."""


def multiplies_patches(target: Target) -> bool:
    """Whether `target` multiplies patches of bfloat16 faster than float32: in tiles, or in pairs of AVX-512.

    ARM's products of float32 take factors out of the rows of such an input, several taps at a load.
    """
    return target.fast_dtype == DTYPE and target.machine == "x86_64"


def has_patches(anchor: Node) -> bool:
    """Whether `anchor` is a convolution of float32 whose operands may be rounded to patches and weights of
    bfloat16: of few plain channels, into blocked ones."""
    if anchor.op != "conv2d" or anchor.inputs[0].dtype != "float32":
        return False
    conv = Convolution.of(anchor)
    plain = conv.in_block == 1 and conv.out_block > 1 and conv.groups == 1
    beside = conv.dilation[-1] == 1 and conv.pad_value == 0 and not conv.is_pointwise
    return plain and beside and conv.in_channels <= MOST_CHANNELS


@dataclass(frozen=True)
class Patches:
    """The patches of `conv`, of which `has_patches` holds."""

    conv: Convolution

    @property
    def words(self) -> int:
        """Pairs of channels of a pixel."""
        return 1 << (-(-self.conv.in_channels // 2) - 1).bit_length()

    @property
    def pairs(self) -> int:
        """Pairs of a step: as many as share a kernel row evenly."""
        row = self.conv.kernel[-1] * self.words
        return max(n for n in range(1, LANES + 1) if row % n == 0)

    @property
    def steps(self) -> tuple[int, int]:
        """Kernel rows, and steps of each."""
        rows, taps = self.conv.kernel
        return rows, taps * self.words // self.pairs

    @property
    def row_words(self) -> int:
        """Words of a row of the copy."""
        return self.conv.needed[-1] * self.words

    @property
    def pixel_bytes(self) -> int:
        """From what an output pixel reads to what the next one in its row reads."""
        return self.conv.strides[-1] * self.words * WORD_BYTES

    def blocked(self, sums: GroupSums) -> Convolution:
        """The convolution of the copy of the whole input, whose pixels are blocks of channels."""
        none = (0,) * len(self.conv.kernel)
        copied = replace(self.conv, in_size=self.conv.needed, pad_begin=none, pad_end=none)
        return replace(copied, dtype=DTYPE, in_block=2 * self.words, sums=sums)

    def rows(self, outputs: int) -> int:
        """Rows of the copy that so many neighbouring rows of the output read."""
        conv = self.conv
        return (outputs - 1) * conv.strides[0] + (conv.kernel[0] - 1) * conv.dilation[0] + 1

    def copy_cycles(self, rows: int) -> float:
        """Estimated cycles of copying so many rows."""
        return rows * (ROW_CYCLES + WORD_CYCLES * -(-self.row_words // LANES))

    def weights(self, sums: GroupSums, channels: Tiles) -> tuple[Packing, int]:
        """Weights as `[panel, kernel row, pair, output channel]`, rounded, and output channels of a panel."""
        panels = WeightPanels(self.blocked(sums), channels)
        rows, taps = self.conv.kernel
        shape = (channels.count, rows, taps * self.words, panels.width)

        def pack(weights: Array) -> Array:
            return panels.packing.pack(weights.astype(numpy_dtype(DTYPE))).reshape(shape)

        return Packing(TensorType(shape, sums.dtype), pack), panels.width

    def copy(
        self,
        anchored: Anchored,
        image: Expression,
        first: Expression,
        rows: Expression,
        target: Buffer,
    ) -> Statement:
        """Copy `rows` rows of the padded input of an image, from row `first` on, to the begin of `target`."""
        return loop(rows, lambda i: self.copy_row(anchored, image, first + i, target, [i]), "row")

    def copy_row(
        self,
        anchored: Anchored,
        image: Expression,
        row: Expression,
        target: Buffer,
        at: Sequence[Expression],
    ) -> Statement:
        """Copy a row of the padded input of an image to `target[at]`."""
        conv = self.conv
        (top, left), (height, width) = conv.pad_begin, conv.in_size
        begin, end = max(left, 0), min(conv.needed[-1], width + left)
        source = row - top
        blank = sequence(self._blank(target, at, 0, conv.needed[-1]))
        if end <= begin:
            return blank
        inside = sequence(
            [
                *self._blank(target, at, 0, begin),
                *self._pixels(anchored, [image, source], target, at, begin, end),
                *self._blank(target, at, end, conv.needed[-1]),
            ]
        )
        if top <= 0 and conv.needed[0] - top <= height:
            return inside
        return tirx.IfThenElse(tirx.all(source >= 0, source < height), inside, blank)

    def _blank(self, target: Buffer, at: Sequence[Expression], begin: int, end: int) -> list[Statement]:
        """Zeros in pixels from `begin` to `end` of a row."""
        zero = tirx.const(0, WORD)
        count = (end - begin) * self.words

        def store(i: Expression) -> Statement:
            return tirx.BufferStore(target, zero, [*at, begin * self.words + i])

        return vector_loop(count, LANES, 4, store) if count > 0 else []

    def _pixels(
        self,
        anchored: Anchored,
        source: Sequence[Expression],
        target: Buffer,
        at: Sequence[Expression],
        begin: int,
        end: int,
    ) -> list[Statement]:
        """The pixels from `begin` to `end` of a row, in vectors of which the last may overlap."""
        count, lanes = end - begin, LANES
        while lanes > count:
            lanes //= 2

        def some(first: Expression) -> Statement:
            return self._interleaved(anchored, source, target, at, first, lanes)

        statements = [loop(count // lanes, lambda i: some(begin + i * lanes), "pixels")]
        return [*statements, some(constant(end - lanes))] if count % lanes else statements

    def _interleaved(
        self,
        anchored: Anchored,
        source: Sequence[Expression],
        target: Buffer,
        at: Sequence[Expression],
        first: Expression,
        lanes: int,
    ) -> Statement:
        """`lanes` pixels from `first` on: vectors of each pair of channels, then all of them shuffled."""
        conv, words = self.conv, self.words
        image, row = source

        def word(buffer: Buffer, number: int, lane: Expression, place: Sequence[Expression]) -> Statement:
            elements = anchored.elements()
            halves: list[Expression] = []
            for channel in range(2 * number, min(2 * number + 2, conv.in_channels)):
                index = [image, channel, row, first + lane - conv.pad_begin[-1]]
                value = elements.element(anchored.operands[0], index)
                bits = bfloat16.rounded(value).astype(WORD)
                halves.append(tirx.shift_left(bits, tirx.const(16, WORD)) if halves else bits)
            joined = reduce(tirx.bitwise_or, halves, tirx.const(0, WORD))
            return sequence([*elements.statements, tirx.BufferStore(buffer, joined, list(place))])

        if words == 1:
            return vectorized(lanes, lambda lane: word(target, 0, lane, [*at, first + lane]))
        allocation, vectors = local([words, lanes], WORD, "pairs")
        filled = [
            vectorized(lanes, lambda lane, number=number: word(vectors, number, lane, [number, lane]))
            for number in range(words)
        ]
        if lanes == 1:
            moved = [
                tirx.BufferStore(target, tirx.BufferLoad(vectors, [n, 0]), [*at, first * words + n])
                for n in range(words)
            ]
            return sequence([allocation, *filled, *moved])
        loads = [tirx.BufferLoad(vectors, [number, tirx.Ramp(0, 1, lanes)]) for number in range(words)]
        order = [number * lanes + lane for lane in range(lanes) for number in range(words)]
        place = tirx.Ramp(first * words, 1, lanes * words)
        store = tirx.BufferStore(target, tirx.Shuffle(loads, order), [*at, place])
        return sequence([allocation, *filled, store])
