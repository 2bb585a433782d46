"""Weights of convolutions on CPUs, packed in panels of output channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tcomp.relay.types import Array, TensorType
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.convolution import Convolution
from tcomp.tensor.cpu.primitives import Tiles
from tcomp.tensor.loops import (
    Buffer,
    Expression,
    Statement,
    loop,
    parallel,
    sequence,
    vector_loop,
)
from tcomp.tensor.template import Packing
from tcomp.tvm_api import tirx


@dataclass(frozen=True)
class WeightPanels:
    """Weights as `[panels, chunks, kernel..., chunk, panel]`: what the register tile of one panel of
    output channels reads, in order. Panels overlap as `channels` does; missing channels are zero."""

    conv: Convolution
    channels: Tiles
    """Tiles of output channels, in units of whole blocks."""

    @property
    def width(self) -> int:
        """Output channels of one panel."""
        return self.channels.size * self.conv.out_block

    @property
    def shape(self) -> tuple[int, ...]:
        conv = self.conv
        return (
            self.channels.count,
            conv.reduction_chunks,
            *conv.kernel,
            conv.chunk_steps,
            self.width * conv.side,
        )

    @property
    def packing(self) -> Packing:
        return Packing(TensorType(self.shape, self.conv.packed_dtype), self._pack)

    def _pack(self, weights: Array) -> Array:
        conv, rank = self.conv, len(self.conv.kernel)
        chunks, chunk, block = conv.reduction_chunks, conv.reduction_chunk, conv.out_block
        dense = self._dense(weights, (conv.out_blocks * block, chunks * chunk, *conv.kernel))
        ordered = np.empty((self.channels.count, chunks, *conv.kernel, chunk, self.width), weights.dtype)
        for number, panel in enumerate(ordered):
            first = int(self.channels.base(number)) * block
            rows = dense[first : first + self.width].reshape(self.width, chunks, chunk, *conv.kernel)
            panel[...] = np.transpose(rows, (1, *range(3, 3 + rank), 2, 0))
        return ordered if conv.sums is None else conv.sums.pack(ordered)

    def _dense(self, weights: Array, shape: tuple[int, ...]) -> Array:
        """`[out channels, reduced channels, kernel...]`, zero where groups or blocks have no weight."""
        conv = self.conv
        if weights.shape == shape:
            return weights
        dense: Array = np.zeros(shape, weights.dtype)
        inputs, outputs = conv.group_inputs, conv.group_outputs
        for group in range(conv.groups):
            first = group % conv.merged_groups * inputs
            rows = slice(group * outputs, (group + 1) * outputs)
            dense[rows, first : first + inputs] = weights[rows]
        return dense

    def pack_in_kernel(self, anchored: Anchored, lanes: int) -> tuple[list[Statement], Buffer]:
        """As `packing`, at run time, for weights that are not constant."""
        conv, shape = self.conv, self.shape
        zero, no_padding = tirx.const(0, conv.accumulator), [0] * (len(shape) - 2)
        statements, source = anchored.copy(
            anchored.operands[1], no_padding, no_padding, zero, lanes, "weights"
        )
        target = anchored.add_scratch(shape, conv.accumulator, "packed_weights")

        def store(index: Sequence[Expression]) -> Statement:
            out = self.channels.base(index[0]) * conv.out_block + index[-1]
            channel = index[1] * conv.reduction_chunk + index[-2]
            group = out // conv.group_outputs % conv.merged_groups
            within = channel - group * conv.group_inputs
            inside = tirx.all(within >= 0, within < conv.group_inputs, out < conv.out_channels)
            value = tirx.BufferLoad(source, [out, within, *index[2:-2]]).astype(conv.accumulator)
            return tirx.BufferStore(target, tirx.if_then_else(inside, value, zero), list(index))

        def nest(index: tuple[Expression, ...]) -> Statement:
            if len(index) == len(shape) - 1:
                return sequence(vector_loop(shape[-1], 1, 1, lambda i: store([*index, i])))
            make = parallel if anchored.threaded and not index else loop
            return make(shape[len(index)], lambda i: nest((*index, i)))

        return [*statements, nest(())], target
