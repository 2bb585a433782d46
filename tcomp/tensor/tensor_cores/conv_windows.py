"""Convolutions as products for tensor cores: rows are output pixels, the depth is a window.

The depth is the taps of the window and, within each, the input channels, so that a chunk of 16 bytes is some
channels of one input pixel: it is copied from where it lies, or zeros where the window hangs over the border.
From sm_90 on the copy engine brings whole lines of tiles, where the input has them (`window_tiles`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np

from tcomp.relay.types import Array, TensorType, numpy_dtype
from tcomp.target.target import Gpu, Target
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.convolution import Convolution
from tcomp.tensor.epilogue import output_axes
from tcomp.tensor.gpu.rates import LAUNCH_CYCLES, memory_cycles
from tcomp.tensor.gpu.threads import digits
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.loops import Buffer, Elements, Expression, Statement
from tcomp.tensor.product import constant_right
from tcomp.tensor.template import Packing
from tcomp.tensor.tensor_cores.kernel import as_factors, materialize, multiplies, padded
from tcomp.tensor.tensor_cores.mma_operand import MmaOperand
from tcomp.tensor.tensor_cores.mma_plan import chunk_elements
from tcomp.tensor.tensor_cores.window_tiles import WindowTiles

OPERATORS = ("conv1d", "conv2d", "conv3d")


def has_windows(kernel: Kernel, target: Target) -> bool:
    """Whether `kernel` is an ungrouped convolution that tensor cores of `target` multiply."""
    anchor = kernel.anchor
    if anchor is None or anchor.op not in OPERATORS or not multiplies(kernel, target):
        return False
    conv = Convolution.of(anchor)
    plain = conv.groups == 1 and (conv.border == 0 or conv.dtype == "int8")
    return plain and output_axes(kernel) is not None


@dataclass(frozen=True)
class Windows:
    """A convolution as the product of its windows and its weights."""

    kernel: Kernel

    @cached_property
    def conv(self) -> Convolution:
        assert self.kernel.anchor is not None
        return Convolution.of(self.kernel.anchor)

    @property
    def in_blocks(self) -> int:
        return -(-self.conv.in_channels // self.conv.in_block)

    @property
    def is_whole(self) -> bool:
        """Whether chunks of channels lie side by side in the input's layout."""
        return self.conv.in_block % chunk_elements(self.conv.dtype) == 0

    @property
    def channels(self) -> int:
        """Input channels of a tap, with those that fill the last block or chunk."""
        unit = self.conv.in_block if self.is_whole else chunk_elements(self.conv.dtype)
        return -(-self.conv.in_channels // unit) * unit

    @property
    def columns(self) -> int:
        """Output channels, with those that fill the last block."""
        return self.conv.out_blocks * self.conv.out_block

    @property
    def taps(self) -> int:
        return prod(self.conv.kernel)

    @property
    def extents(self) -> tuple[int, int, int, int]:
        conv = self.conv
        return 1, conv.batch * prod(conv.out_size), self.columns, self.taps * self.channels

    @cached_property
    def tiles(self) -> WindowTiles | None:
        """The input, or what a launch before makes of it, as the copy engine brings tiles of its windows."""
        block = self.conv.in_block if self._is_in_place else self.channels
        return WindowTiles.of(self.conv, block, self.channels // block)

    @cached_property
    def _is_in_place(self) -> bool:
        """Whether the input lies in memory, in whole chunks."""
        assert self.kernel.anchor is not None
        return self.is_whole and self.kernel.anchor.inputs[0] in self.kernel.body.inputs

    def gathering(self, gpu: Gpu) -> float:
        """Cycles of the launch that brings an input into chunks, if there is one."""
        if self._is_in_place:
            return 0.0
        moved = 2 * numpy_dtype(self.conv.dtype).itemsize * self.conv.batch * prod(self.conv.in_size)
        return LAUNCH_CYCLES + memory_cycles(gpu, moved * self.channels)

    @property
    def packing(self) -> dict[int, Packing]:
        index = constant_right(self.kernel)
        if index is None:
            return {}
        type_ = TensorType((self.columns, self.taps * self.channels), self.conv.dtype)
        return {index: Packing(type_, self._pack)}

    def _pack(self, weights: Array) -> Array:
        conv = self.conv
        result = np.zeros((self.columns, self.taps, self.channels), weights.dtype)
        taps = weights.reshape(conv.out_channels, conv.in_channels, self.taps)
        result[: conv.out_channels, :, : conv.in_channels] = np.swapaxes(taps, 1, 2)
        return as_factors(self.kernel, result.reshape(self.columns, -1))

    def output(self, batch: Expression, row: Expression, column: Expression) -> list[Expression]:
        """Where the output has the sum of (row, column)."""
        conv = self.conv
        n, *at = digits(row, (conv.batch, *conv.out_size))
        if conv.out_block == 1:
            return [n, column, *at]
        return [n, column // conv.out_block, *at, column % conv.out_block]

    def left(self, anchored: Anchored, before: list[Statement]) -> MmaOperand:
        """Windows, of the input where it lies if it can be read in chunks."""
        conv, tensor = self.conv, anchored.operands[0]
        own = anchored.buffer_of(tensor)
        if own is not None and self.is_whole:
            return self._windows_of(own, conv.in_block)
        shape = (conv.batch, *conv.in_size, self.channels)

        def element(elements: Elements, index: list[Expression]) -> Expression:
            n, *at, channel = index
            return padded(
                channel,
                conv.in_channels,
                lambda c: elements.element(tensor, conv.place(n, c, at)),
                conv.dtype,
            )

        launch, buffer = materialize(
            anchored, shape, conv.dtype, "pixels", 1 if conv.in_block == 1 else len(shape) - 1, element
        )
        before.append(launch)
        return self._windows_of(buffer, 0)

    def _windows_of(self, buffer: Buffer, block: int) -> MmaOperand:
        """Windows of an input in blocks of channels; 0 where each pixel has all its channels side by side."""
        conv = self.conv

        def position(row: Expression, k: Expression) -> tuple[Expression, list[Expression]]:
            n, *out = digits(row, (conv.batch, *conv.out_size))
            at = conv.position(out, digits(k // self.channels, conv.kernel))
            return n, [i - begin for i, begin in zip(at, conv.pad_begin, strict=True)]

        def index(batch: Expression, row: Expression, k: Expression) -> list[Expression]:
            (n, at), channel = position(row, k), k % self.channels
            return [n, channel // block, *at, channel % block] if block else [n, *at, channel]

        def inside(row: Expression, k: Expression) -> list[Expression]:
            conditions: list[Expression] = []
            for axis, i in enumerate(position(row, k)[1]):
                if conv.pad_begin[axis]:
                    conditions.append(i >= 0)
                if conv.pad_end[axis]:
                    conditions.append(i < conv.in_size[axis])
            return conditions

        border = (conv.border & 0xFF) * 0x01010101 if conv.border else None
        return MmaOperand(buffer, index, inside=inside, border=border, windows=self.tiles)

    def right(self, anchored: Anchored, before: list[Statement]) -> MmaOperand:
        conv, tensor = self.conv, anchored.operands[1]

        def index(batch: Expression, column: Expression, k: Expression) -> list[Expression]:
            return [column, k]

        if self.packing:
            return MmaOperand(anchored.buffer_of(tensor), index, is_rounded=True)

        def element(elements: Elements, at: list[Expression]) -> Expression:
            column, k = at
            taps = digits(k // self.channels, conv.kernel)

            def value(out: Expression, channel: Expression) -> Expression:
                return elements.element(tensor, [out, channel, *taps])

            def of_channel(out: Expression) -> Expression:
                return padded(k % self.channels, conv.in_channels, lambda c: value(out, c), conv.dtype)

            return padded(column, conv.out_channels, of_channel, conv.dtype)

        shape = (self.columns, self.taps * self.channels)
        launch, buffer = materialize(anchored, shape, conv.dtype, "weights", 1, element)
        before.append(launch)
        return MmaOperand(buffer, index)
