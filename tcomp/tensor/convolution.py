"""What all convolution templates share: geometry, packed weights, the padded copy of the input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, prod
from typing import Any

import numpy as np

from tcomp.relay.attributes import integer, integers, text
from tcomp.relay.graph import Node
from tcomp.relay.layouts import channel_block
from tcomp.relay.types import Array, TensorType
from tcomp.tensor.template import Packing
from tcomp.tvm_api import Tensor, te, tirx


def accumulator_dtype(dtype: str) -> str:
    """The element type that sums of products are kept in: half precision is summed in float32."""
    return "float32" if dtype in ("float16", "bfloat16") else dtype


@dataclass(frozen=True)
class Convolution:
    """The numbers of one convolution node with any count of spatial axes.

    `in_channels` and `out_channels` are true counts; a blocked tensor is padded up to whole blocks.
    `in_block` and `out_block` are 1 for plain layouts. Spatial tuples have one entry an axis.
    """

    dtype: str
    batch: int
    in_channels: int
    out_channels: int
    groups: int
    in_size: tuple[int, ...]
    out_size: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    pad_begin: tuple[int, ...]
    pad_end: tuple[int, ...]
    in_block: int = 1
    out_block: int = 1

    @staticmethod
    def of(node: Node) -> Convolution:
        """The convolution that a static `conv1d`, `conv2d` or `conv3d` node computes."""
        data, weight = node.inputs[0].type.static_shape, node.inputs[1].type.static_shape
        out = node.output.type.static_shape
        rank = len(weight) - 2
        groups = integer(node.attrs, "groups")
        padding = integers(node.attrs, "padding")
        return Convolution(
            dtype=node.inputs[0].dtype,
            batch=data[0],
            in_channels=weight[1] * groups,
            out_channels=weight[0],
            groups=groups,
            in_size=data[2 : 2 + rank],
            out_size=out[2 : 2 + rank],
            kernel=weight[2:],
            strides=integers(node.attrs, "strides"),
            dilation=integers(node.attrs, "dilation"),
            pad_begin=padding[:rank],
            pad_end=padding[rank:],
            in_block=channel_block(text(node.attrs, "data_layout")) or 1,
            out_block=channel_block(text(node.attrs, "out_layout")) or 1,
        )

    @property
    def accumulator(self) -> str:
        return accumulator_dtype(self.dtype)

    @property
    def is_padded(self) -> bool:
        return any(self.pad_begin) or any(self.pad_end)

    @property
    def is_pointwise(self) -> bool:
        """A 1x1 convolution over all pixels: a matrix product whose rows are pixels."""
        ones = (1,) * len(self.kernel)
        return self.kernel == ones and self.strides == ones and not self.is_padded

    @property
    def out_blocks(self) -> int:
        return -(-self.out_channels // self.out_block)

    @property
    def in_blocks(self) -> int:
        return -(-self.in_channels // self.in_block)

    @property
    def reduction_chunk(self) -> int:
        """Input channels of the innermost reduction loop: a whole block, or the largest part of one that
        divides a ragged channel count; 1 for a plain layout."""
        common = gcd(self.in_channels, self.in_block)
        return common if common >= min(4, self.in_block) else self.in_block

    @property
    def reduction_chunks(self) -> int:
        return -(-self.in_channels // self.reduction_chunk)

    @property
    def taps(self) -> int:
        """Kernel positions."""
        return prod(self.kernel)


def pad_input(conv: Convolution, data: Tensor, name: str = "padded_input") -> Tensor:
    """A copy of `data` ([N, C, spatial...] or [N, C/c, spatial..., c]) with zeros around it."""
    rank = len(conv.in_size)
    shape = [int(d) for d in data.shape]
    padded = [
        *shape[:2],
        *(b + s + e for b, s, e in zip(conv.pad_begin, conv.in_size, conv.pad_end, strict=True)),
        *shape[2 + rank :],
    ]
    zero = tirx.const(0, data.dtype)

    def element(*index: Any) -> Any:
        inside: list[Any] = []
        source: list[Any] = list(index)
        for axis in range(rank):
            begin, size, end = conv.pad_begin[axis], conv.in_size[axis], conv.pad_end[axis]
            source[2 + axis] = index[2 + axis] - begin
            inside += [index[2 + axis] >= begin] if begin else []
            inside += [index[2 + axis] < begin + size] if end else []
        value = data(*source)
        return tirx.if_then_else(tirx.all(*inside), value, zero) if inside else value

    return te.compute(padded, element, name=name)


def pack_dense_weights(conv: Convolution, oc_blocks: int) -> Packing:
    """Packing of ungrouped `[O, I, kernel...]` weights to `[O/tile, I/chunk, kernel..., chunk, tile]`.

    `tile` is `oc_blocks` output blocks; channels beyond the true counts are zero.
    """
    tile = oc_blocks * conv.out_block
    tiles = -(-conv.out_blocks // oc_blocks)
    chunks, chunk = conv.reduction_chunks, conv.reduction_chunk
    shape = (tiles, chunks, *conv.kernel, chunk, tile)
    rank = len(conv.kernel)

    def pack(weights: Array) -> Array:
        padded: Array = np.zeros((tiles * tile, chunks * chunk, *conv.kernel), weights.dtype)
        padded[: conv.out_channels, : conv.in_channels] = weights
        split: Array = padded.reshape(tiles, tile, chunks, chunk, *conv.kernel)
        axes = (0, 2, *range(4, 4 + rank), 3, 1)
        return np.ascontiguousarray(np.transpose(split, axes))

    return Packing(TensorType(shape, conv.dtype), pack)


def pack_dense_weights_in_kernel(conv: Convolution, weights: Tensor, oc_blocks: int) -> Tensor:
    """As `pack_dense_weights`, computed at run time for weights that are not constant."""
    shape = pack_dense_weights(conv, oc_blocks).type.static_shape
    tile, chunk = shape[-1], conv.reduction_chunk

    def element(*index: Any) -> Any:
        out, channel = index[0] * tile + index[-1], index[1] * chunk + index[-2]
        inside = ragged_guard(out, conv.out_channels, shape[0] * tile)
        inside += ragged_guard(channel, conv.in_channels, shape[1] * chunk)
        value = weights(out, channel, *index[2:-2])
        return tirx.if_then_else(tirx.all(*inside), value, tirx.const(0, weights.dtype)) if inside else value

    return te.compute(shape, element, name="packed_weights")


def ragged_guard(index: Any, true_extent: int, padded_extent: int) -> list[Any]:
    """The condition that `index` is a true one, where the padded extent holds more."""
    return [index < true_extent] if true_extent < padded_extent else []


def input_position(conv: Convolution, out: Sequence[Any], tap: Sequence[Any]) -> list[Any]:
    """Indices into the padded input that output position `out` reads at kernel position `tap`."""
    return [o * s + k * d for o, s, k, d in zip(out, conv.strides, tap, conv.dilation, strict=True)]
