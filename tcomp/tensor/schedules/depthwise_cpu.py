"""Depthwise convolution in blocked layout on CPUs, without a padded copy of the input.

Lanes are channels of a block. A tile of output pixels of one row keeps its sums in registers over all
taps. Rows above and below the input are left out by the bounds of the loop over kernel rows; tiles at the
left and right border are written out apart, without the taps that lie outside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd, prod

import numpy as np

from tcomp.relay.types import Array, TensorType, numpy_dtype
from tcomp.target.target import Target
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.convolution import Convolution
from tcomp.tensor.epilogue import epilogue_fits, placeholder_index
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Ordered, Space
from tcomp.tensor.loops import (
    Buffer,
    Expression,
    Statement,
    constant,
    local,
    loop,
    parallel,
    sequence,
    unrolled,
    vectorized,
)
from tcomp.tensor.primitives import Tiles
from tcomp.tensor.template import TEMPLATES, Packing, Scheduled, Template
from tcomp.tvm_api import tirx

OPERATORS = ("conv1d", "conv2d", "conv3d")


class DepthwiseCpu(Template):
    """Depthwise convolution in blocked layout; see the module's text."""

    name = "depthwise_cpu"
    priority = 1

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        anchor = kernel.anchor
        if anchor is None or anchor.op not in OPERATORS or not epilogue_fits(kernel):
            return False
        conv = Convolution.of(anchor)
        weights = placeholder_index(kernel, anchor.inputs[1])
        direct = placeholder_index(kernel, anchor.inputs[0]) is not None and weights in kernel.constant_inputs
        return conv.is_depthwise and conv.in_block == conv.out_block > 1 and direct

    def space(self, kernel: Kernel, target: Target) -> Space:
        conv = _convolution(kernel)
        vectors = conv.out_block // gcd(conv.out_block, target.lanes(conv.accumulator))
        most = max(1, (target.vector_registers - 4) // vectors // 2)
        widths = tuple(range(1, min(most, conv.out_size[-1]) + 1))
        # Border tiles and inner ones are written out apart: long rows take shorter tiles, for less code.
        longest = widths[-1] if conv.out_size[-1] <= 2 * widths[-1] else min(widths[-1], 8)
        fewest = -(-conv.out_size[-1] // longest)
        return Space((Ordered("tile_width", widths, -(-conv.out_size[-1] // fewest)),))

    def estimate(self, kernel: Kernel, target: Target) -> float:
        """Products at the rate of the ports; each vector costs a little more for what is around them."""
        conv = _convolution(kernel)
        vectors = conv.out_block // gcd(conv.out_block, target.lanes(conv.accumulator))
        pixels = conv.batch * conv.out_blocks * vectors * prod(conv.out_size)
        return pixels * (prod(conv.kernel) / target.fma_ports + 1.5)

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        """One nest over rows of output pixels; threads share the rows."""
        assert kernel.anchor is not None
        conv = _convolution(kernel)
        weights = placeholder_index(kernel, kernel.anchor.inputs[1])
        assert weights is not None
        anchored = Anchored(kernel, {weights: _pack_weights(conv)})
        return anchored.scheduled([_Nest(conv, anchored, int(config["tile_width"]), target).statement()])


def _convolution(kernel: Kernel) -> Convolution:
    assert kernel.anchor is not None
    return Convolution.of(kernel.anchor)


def _pack_weights(conv: Convolution) -> Packing:
    """`[C, 1, kernel...] -> [C/c, kernel..., c]` in the sums' type, zero in the lanes beyond C."""

    def pack(weights: Array) -> Array:
        padded: Array = np.zeros((conv.out_blocks * conv.out_block, *conv.kernel), weights.dtype)
        padded[: conv.out_channels] = weights[:, 0]
        split: Array = padded.reshape(conv.out_blocks, conv.out_block, *conv.kernel)
        return np.ascontiguousarray(np.moveaxis(split, 1, -1), numpy_dtype(conv.accumulator))

    return Packing(TensorType((conv.out_blocks, *conv.kernel, conv.out_block), conv.accumulator), pack)


class _Nest:
    """The loops of one depthwise convolution."""

    def __init__(self, conv: Convolution, anchored: Anchored, tile_width: int, target: Target) -> None:
        self.conv = conv
        self.anchored = anchored
        self.tiles = Tiles.of(conv.out_size[-1], tile_width)
        self.lanes = gcd(conv.out_block, target.lanes(conv.accumulator))
        self.data: Buffer = anchored.buffer_of(anchored.operands[0])
        self.weights: Buffer = anchored.buffer_of(anchored.operands[1])

    def statement(self) -> Statement:
        rows = (self.conv.batch, self.conv.out_blocks, *self.conv.out_size[:-1])
        count = int(np.prod(rows))

        def row(number: Expression) -> Statement:
            index: list[Expression] = []
            for extent in reversed(rows):
                index.insert(0, number % extent if extent > 1 else 0)
                number = number // extent if extent > 1 else number
            return self._row(index)

        return (parallel if self.anchored.threaded else loop)(count, row, "row")

    def _row(self, row: Sequence[Expression]) -> Statement:
        """The border tiles, with their places known, and a loop over the tiles between them."""
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
            return tirx.BufferStore(sums, tirx.const(0, conv.accumulator), [place * block + lane])

        def finish(place: Expression, lane: Expression) -> Statement:
            value = tirx.BufferLoad(sums, [place * block + lane])
            return self.anchored.finish([*row, base + place, lane], value)

        def multiply(taps: Sequence[Expression], tap: int, place: int, lane: Expression) -> Statement:
            n, channels, *outer = row
            at = [
                o * s + t * d - b
                for o, s, t, d, b in zip(
                    outer, conv.strides, taps, conv.dilation, conv.pad_begin, strict=False
                )
            ]
            source = [n, channels, *at, self._column(base, place, tap), lane]
            value = tirx.BufferLoad(self.data, source).astype(conv.accumulator)
            weight = tirx.BufferLoad(self.weights, [channels, *taps, tap, lane])
            at_sum = [place * block + lane]
            return tirx.BufferStore(sums, tirx.BufferLoad(sums, at_sum) + value * weight, at_sum)

        def row_of_taps(taps: Sequence[Expression]) -> Statement:
            inside = [
                (tap, place)
                for tap in range(conv.kernel[-1])
                for place in range(self.tiles.size)
                if not isinstance(base, int) or 0 <= self._column(base, place, tap) < conv.in_size[-1]
            ]
            steps = [
                vectors(lambda lane, tap=tap, place=place: multiply(taps, tap, place, lane))
                for tap, place in inside
            ]
            return sequence(steps) if steps else tirx.Evaluate(0)

        return sequence([allocation, every(clear), self._outer_taps(row, row_of_taps), every(finish)])

    def _outer_taps(
        self, row: Sequence[Expression], body: Callable[[Sequence[Expression]], Statement]
    ) -> Statement:
        """`body` at all kernel positions of the axes before the last that lie inside the input."""
        conv, rank = self.conv, len(self.conv.kernel)

        def nest(taps: tuple[Expression, ...]) -> Statement:
            axis = len(taps)
            if axis == rank - 1:
                return body(taps)
            start = row[2 + axis] * conv.strides[axis] - conv.pad_begin[axis]
            dilation, kernel = conv.dilation[axis], conv.kernel[axis]
            if not conv.pad_begin[axis] and not conv.pad_end[axis]:
                return loop(kernel, lambda t: nest((*taps, t)), "tap")
            first = tirx.min(tirx.max((dilation - 1 - start) // dilation, 0), kernel)
            end = tirx.min((conv.in_size[axis] - 1 - start) // dilation + 1, kernel)
            tap = tirx.Var("tap", "int32")
            return tirx.For(
                tap, constant(0), tirx.max(end - first, 0), tirx.ForKind.SERIAL, nest((*taps, tap + first))
            )

        return nest(())


TEMPLATES.register(DepthwiseCpu.name, DepthwiseCpu())
