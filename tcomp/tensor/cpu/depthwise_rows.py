"""Rows of a depthwise convolution in blocked layout, without a padded copy of the input.

Lanes are channels of a block. A tile of output pixels of one row keeps its sums in registers over all
taps. Rows above and below the input are left out by the bounds of the loop over kernel rows; tiles at the
left and right border are written out apart, without the taps that lie outside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np

from tcomp.relay.types import Array, TensorType, numpy_dtype
from tcomp.target.target import Target
from tcomp.tensor.convolution import Convolution
from tcomp.tensor.cpu.primitives import Tiles
from tcomp.tensor.loops import (
    Buffer,
    Expression,
    Statement,
    constant,
    local,
    loop,
    sequence,
    unrolled,
    vectorized,
)
from tcomp.tensor.template import Packing
from tcomp.tvm_api import tirx


def tile_widths(conv: Convolution, target: Target) -> tuple[tuple[int, ...], int]:
    """Pixels of a tile whose sums and inputs fit in registers, and the default among them."""
    vectors = conv.out_block // gcd(conv.out_block, target.lanes(conv.accumulator))
    most = max(1, (target.vector_registers - 4) // vectors // 2)
    if target.takes_any_lane and conv.strides[-1] > 1:
        # NEON's neighbours are loaded in pairs, so that all inputs of a row of taps are held at once.
        most = max(1, (target.vector_registers - 2 * conv.kernel[-1]) // vectors // (1 + conv.strides[-1]))
    widths = tuple(range(1, min(most, conv.out_size[-1]) + 1))
    # Border tiles and inner ones are written out apart: long rows take shorter tiles, for less code.
    longest = widths[-1] if conv.out_size[-1] <= 2 * widths[-1] else min(widths[-1], 8)
    fewest = -(-conv.out_size[-1] // longest)
    return widths, -(-conv.out_size[-1] // fewest)


def pack_depthwise(conv: Convolution) -> Packing:
    """`[C, 1, kernel...] -> [C/c, kernel..., c]` in the sums' type, zero in the lanes beyond C."""

    def pack(weights: Array) -> Array:
        padded: Array = np.zeros((conv.out_blocks * conv.out_block, *conv.kernel), weights.dtype)
        padded[: conv.out_channels] = weights[:, 0]
        split: Array = padded.reshape(conv.out_blocks, conv.out_block, *conv.kernel)
        return np.ascontiguousarray(np.moveaxis(split, 1, -1), numpy_dtype(conv.accumulator))

    return Packing(TensorType((conv.out_blocks, *conv.kernel, conv.out_block), conv.accumulator), pack)


Index = Sequence[Expression]


@dataclass(frozen=True)
class DepthwiseRows:
    """Rows of one depthwise convolution.

    `load` is the input's element at an index `[n, channel block, *position, lane]`; `finish` stores an
    output element, whose sum begins with `start`, or with zero.
    """

    conv: Convolution
    tiles: Tiles
    """Tiles of the pixels of a row."""
    lanes: int
    weights: Buffer
    load: Callable[[Sequence[Expression]], Expression]
    finish: Callable[[Sequence[Expression], Expression], Statement]
    start: Callable[[Sequence[Expression]], Expression] | None = None

    def row(self, row: Sequence[Expression]) -> Statement:
        """The outputs of row `[n, channel block, *position but the last]`.

        The border tiles come with their places known, and a loop over the tiles between them.
        """
        inner = [t for t in range(self.tiles.count) if self._is_inner(int(self.tiles.base(t)))]
        if len(inner) < 2:
            return sequence([self._tile(row, int(self.tiles.base(t))) for t in range(self.tiles.count)])
        first, end = inner[0], inner[-1] + 1
        return sequence(
            [self._tile(row, int(self.tiles.base(t))) for t in range(first)]
            + [loop(end - first, lambda t: self._tile(row, self.tiles.base(t + first)), "tile")]
            + [self._tile(row, int(self.tiles.base(t))) for t in range(end, self.tiles.count)]
        )

    def _column(self, base: Expression, place: int, tap: int) -> Expression:
        """The input column that output pixel `base + place` reads at `tap`."""
        offset = place * self.conv.strides[-1] + tap * self.conv.dilation[-1] - self.conv.pad_begin[-1]
        return base * self.conv.strides[-1] + offset

    def _is_inner(self, base: int) -> bool:
        last = self._column(base, self.tiles.size - 1, self.conv.kernel[-1] - 1)
        return self._column(base, 0, 0) >= 0 and last < self.conv.in_size[-1]

    def _tile(self, row: Sequence[Expression], base: Expression) -> Statement:
        """The output pixels from `base` of a row; an `int` base is checked for taps outside."""
        conv, block = self.conv, self.conv.out_block
        allocation, sums = local([self.tiles.size * block], conv.accumulator, "sums")

        def vectors(body: Callable[[Expression], Statement]) -> Statement:
            return unrolled(
                block // self.lanes,
                lambda v: vectorized(self.lanes, lambda lane: body(v * self.lanes + lane)),
            )

        def every(body: Callable[[Expression, Expression], Statement]) -> Statement:
            return unrolled(self.tiles.size, lambda p: vectors(lambda lane: body(p, lane)))

        def clear(place: Expression, lane: Expression) -> Statement:
            zero = tirx.const(0, conv.accumulator)
            value = zero if self.start is None else self.start([*row, base + place, lane])
            return tirx.BufferStore(sums, value, [place * block + lane])

        def finish(place: Expression, lane: Expression) -> Statement:
            value = tirx.BufferLoad(sums, [place * block + lane])
            return self.finish([*row, base + place, lane], value)

        def multiply(taps: Index, at: Index, tap: int, place: int, lane: Expression) -> Statement:
            n, channels, *_ = row
            source = [n, channels, *at, self._column(base, place, tap), lane]
            value = self.load(source).astype(conv.accumulator)
            weight = tirx.BufferLoad(self.weights, [channels, *taps, tap, lane])
            at_sum = [place * block + lane]
            return tirx.BufferStore(sums, tirx.BufferLoad(sums, at_sum) + value * weight, at_sum)

        def row_of_taps(taps: Index, at: Index) -> Statement:
            inside = [
                (tap, place)
                for tap in range(conv.kernel[-1])
                for place in range(self.tiles.size)
                if not isinstance(base, int) or 0 <= self._column(base, place, tap) < conv.in_size[-1]
            ]
            steps = [
                vectors(lambda lane, tap=tap, place=place: multiply(taps, at, tap, place, lane))
                for tap, place in inside
            ]
            return sequence(steps) if steps else tirx.Evaluate(0)

        return sequence([allocation, every(clear), self._outer_taps(row, row_of_taps), every(finish)])

    def _outer_taps(self, row: Index, body: Callable[[Index, Index], Statement]) -> Statement:
        """`body(taps, at)` at all kernel positions of the axes before the last that lie inside the input at
        position `at`."""
        conv, rank = self.conv, len(self.conv.kernel)

        def nest(taps: tuple[Expression, ...], at: tuple[Expression, ...]) -> Statement:
            axis = len(taps)
            if axis == rank - 1:
                return body(taps, at)
            start = row[2 + axis] * conv.strides[axis] - conv.pad_begin[axis]
            dilation, kernel = conv.dilation[axis], conv.kernel[axis]
            if not conv.pad_begin[axis] and not conv.pad_end[axis]:
                return loop(kernel, lambda t: nest((*taps, t), (*at, start + t * dilation)), "tap")
            first = tirx.min(tirx.max((dilation - 1 - start) // dilation, 0), kernel)
            end = tirx.min((conv.in_size[axis] - 1 - start) // dilation + 1, kernel)
            tap = tirx.Var("tap", "int32")
            # The first position inside, said so that no constant lies far below the addresses of loads.
            begin = tirx.max(start, 0) if dilation == 1 else start + first * dilation
            below = nest((*taps, tap + first), (*at, begin + tap * dilation))
            return tirx.For(tap, constant(0), tirx.max(end - first, 0), tirx.ForKind.SERIAL, below)

        return nest((), ())
