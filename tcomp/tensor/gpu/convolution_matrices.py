"""A convolution in plain layout as a product of matrices whose right operand is never in memory.

    outputs[n, o, i...] = sum over taps t and channels c of
        weights[o, c, t...] * data[n, c, i * strides + t * dilation - padding]

Rows are the output channels of a group, columns the output pixels of all images, the depth is taps by
channels: neighbours in the depth are channels, so that a tile of it, where it divides them, has one tap.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from math import ceil, prod

import numpy as np

from tcomp.relay.types import Array, TensorType
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.convolution import Convolution
from tcomp.tensor.gpu.matrices import Index, expressions
from tcomp.tensor.gpu.step_table import StepTable
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.loops import Elements, Expression, Statement, constant
from tcomp.tensor.product import constant_right, unravel
from tcomp.tensor.template import Packing
from tcomp.tvm_api import Tensor, te, tirx


def padded(conv: Convolution, data: Tensor) -> Tensor:
    """`data`, plain or in blocks of channels, with its padding around it, computed where it is read."""
    if not conv.is_padded:
        return data
    around = tirx.const(conv.pad_value, str(data.dtype))

    def element(*index: Expression) -> Expression:
        image, channel, *at = index
        at, lane = at[: len(conv.in_size)], at[len(conv.in_size) :]
        source = [i - b for i, b in zip(at, conv.pad_begin, strict=True)]
        inside = [
            _is_below(i, size)
            for i, b, e, size in zip(source, conv.pad_begin, conv.pad_end, conv.in_size, strict=True)
            if b or e
        ]
        return tirx.if_then_else(
            reduce(tirx.bitwise_and, inside) != 0, data(image, channel, *source, *lane), around
        )

    sizes = [b + d + e for b, d, e in zip(conv.pad_begin, conv.in_size, conv.pad_end, strict=True)]
    shape = [int(extent) for extent in data.shape]
    shape[2 : 2 + len(sizes)] = sizes
    return te.compute(shape, element, name="padded")


def _is_below(index: Expression, size: int) -> Expression:
    """1 where 0 <= index < size, else 0, without a branch; compilers make one comparison of it."""
    return tirx.bitwise_and((index >= 0).astype("int32"), (index < size).astype("int32"))


@dataclass(frozen=True)
class ConvolutionMatrices:
    """The operands of a convolution; constant weights are packed as `[group, tap, channel, output]`."""

    conv: Convolution
    anchored: Anchored
    packed: bool
    padded: Tensor
    table: StepTable | None
    """Taps and channels, where neighbours in the depth have different taps."""

    @staticmethod
    def of(kernel: Kernel, depth: int, steps: int) -> ConvolutionMatrices:
        """Whose depth is taken in `steps` steps of `depth`."""
        assert kernel.anchor is not None
        conv, weights = Convolution.of(kernel.anchor), constant_right(kernel)
        packing = {} if weights is None else {weights: _packing(conv)}
        anchored = Anchored(kernel, packing)
        data = padded(conv, anchored.operands[0])
        taps = (*conv.kernel, conv.group_inputs)
        # A tap that no output has, and at which even the first reads behind the image.
        beyond = max(conv.kernel[0], ceil((conv.in_size[0] + conv.pad_begin[0]) / conv.dilation[0]))
        table = StepTable.of(taps, steps * depth, beyond) if conv.group_inputs % depth else None
        return ConvolutionMatrices(conv, anchored, weights is not None, data, table)

    @property
    def batch(self) -> tuple[int, ...]:
        return () if self.conv.groups == 1 else (self.conv.groups,)

    @property
    def rows(self) -> int:
        return self.conv.group_outputs

    @property
    def columns(self) -> int:
        return self.conv.batch * prod(self.conv.out_size)

    @property
    def depth(self) -> int:
        return prod(self.conv.kernel) * self.conv.group_inputs

    @property
    def accumulator(self) -> str:
        return self.conv.accumulator

    def left(self, elements: Elements, batch: Index, row: Expression, k: Expression) -> Expression:
        conv, weights = self.conv, self.anchored.operands[1]
        if self.packed:
            return elements.element(weights, [*batch, k, row])
        *tap, channel = self._step(k)
        return elements.element(weights, [self._first(batch, conv.group_outputs) + row, channel, *tap])

    def right(self, elements: Elements, batch: Index, k: Expression, column: Expression) -> Expression:
        conv = self.conv
        *tap, channel = self._step(k) if self.table is None else self.table.digits(k)
        image, *out = self._pixel(column)
        channel = self._first(batch, conv.group_inputs) + channel
        at = conv.position(out, tap)
        if self.table is None:
            return elements.element(self.padded, [image, channel, *at])
        return self._if_inside(elements, tap[0] < self.table.beyond, [image, channel], at)

    def _if_inside(
        self, elements: Elements, is_tap: Expression, place: list[Expression], at: list[Expression]
    ) -> Expression:
        """An element of the padded input; zero behind the end of the depth, where the tap is none."""
        conv, data = self.conv, self.anchored.operands[0]
        buffer, zero = self.anchored.buffer_of(data), tirx.const(0, conv.dtype)
        if buffer is None or conv.dtype != "float32" or conv.pad_value:
            return tirx.if_then_else(is_tap, elements.element(self.padded, [*place, *at]), zero)
        source = [i - begin for i, begin in zip(at, conv.pad_begin, strict=True)]
        # The first axis also tells the depth's end.
        axes = enumerate(zip(source, conv.pad_begin, conv.pad_end, conv.in_size, strict=True))
        inside = [_is_below(i, size) for axis, (i, begin, end, size) in axes if not axis or begin or end]
        address = tirx.address_of(tirx.BufferLoad(buffer, [*place, *source]))
        is_inside = reduce(tirx.bitwise_and, inside) != 0
        return tirx.call_pure_extern("float32", "tcomp_load_inside", address, is_inside)

    def store(self, batch: Index, row: Expression, column: Expression, value: Expression) -> Statement:
        image, *out = self._pixel(column)
        return self.anchored.finish([image, self._first(batch, self.conv.group_outputs) + row, *out], value)

    def _step(self, k: Expression) -> list[Expression]:
        """Tap and channel of the depth's element `k`."""
        return expressions(unravel(k, (*self.conv.kernel, self.conv.group_inputs)))

    def _pixel(self, column: Expression) -> list[Expression]:
        """Image and pixel of a column."""
        return expressions(unravel(column, (self.conv.batch, *self.conv.out_size)))

    @staticmethod
    def _first(batch: Index, channels: int) -> Expression:
        """The first channel of a group."""
        return batch[0] * channels if batch else constant(0)


def _packing(conv: Convolution) -> Packing:
    """`[outputs, channels, tap...]` of all groups to `[group, tap and channel, output]`."""
    groups, outputs, channels = conv.groups, conv.group_outputs, conv.group_inputs
    shape = (prod(conv.kernel) * channels, outputs)

    def pack(weights: Array) -> Array:
        split = weights.reshape(groups, outputs, channels, -1)
        whole = (groups, *shape) if groups > 1 else shape
        return np.ascontiguousarray(np.transpose(split, (0, 3, 2, 1))).reshape(whole)

    return Packing(TensorType((groups, *shape) if groups > 1 else shape, conv.dtype), pack)
