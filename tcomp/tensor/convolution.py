"""The geometry of a convolution, which all its templates share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import gcd, prod

from tcomp.relay.attributes import integer, integers, text
from tcomp.relay.graph import Node
from tcomp.relay.layouts import channel_block
from tcomp.relay.types import SUMMED_AS
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.groups import GroupSums
from tcomp.tensor.loops import (
    Buffer,
    Expression,
    Statement,
)
from tcomp.tvm_api import tirx


def accumulator_dtype(dtype: str) -> str:
    """The element type that sums of products are kept in."""
    wide = {"tf32": "float32", "int8": "int32"}
    return wide.get(dtype) or SUMMED_AS.get(dtype, dtype)


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
    pad_value: int = 0
    in_block: int = 1
    out_block: int = 1
    sums: GroupSums | None = None
    """How input channels are multiplied in groups, if they are; see `tcomp.tensor.groups`."""
    in_one: bool = False
    """Whether the channels of a single block that is not full are one chunk, in pairs."""

    @staticmethod
    def of(node: Node) -> Convolution:
        """The convolution that a static `conv1d`, `conv2d` or `conv3d` node computes."""
        data, weight = node.inputs[0].type.static_shape, node.inputs[1].type.static_shape
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
            out_size=node.output.type.static_shape[2 : 2 + rank],
            kernel=weight[2:],
            strides=integers(node.attrs, "strides"),
            dilation=integers(node.attrs, "dilation"),
            pad_begin=padding[:rank],
            pad_end=padding[rank:],
            pad_value=integer(node.attrs, "pad_value"),
            in_block=channel_block(text(node.attrs, "data_layout")) or 1,
            out_block=channel_block(text(node.attrs, "out_layout")) or 1,
        )

    @cached_property
    def accumulator(self) -> str:
        return accumulator_dtype(self.dtype)

    @cached_property
    def is_padded(self) -> bool:
        return any(self.pad_begin) or any(self.pad_end)

    @cached_property
    def border(self) -> int:
        """The number that is read around the input; zero where nothing is."""
        return self.pad_value if self.is_padded else 0

    @cached_property
    def is_pointwise(self) -> bool:
        """A 1x1 convolution over all pixels: a matrix product whose rows are pixels."""
        ones = (1,) * len(self.kernel)
        return self.kernel == ones and self.strides == ones and not self.is_padded

    @property
    def is_depthwise(self) -> bool:
        """Every output channel reads the one input channel of its own number."""
        return 1 < self.groups == self.in_channels == self.out_channels

    @property
    def group_inputs(self) -> int:
        return self.in_channels // self.groups

    @property
    def group_outputs(self) -> int:
        return self.out_channels // self.groups

    @cached_property
    def needed(self) -> tuple[int, ...]:
        """Extents of the padded input that the outputs read."""
        return tuple(
            (o - 1) * s + (k - 1) * d + 1
            for o, s, k, d in zip(self.out_size, self.strides, self.kernel, self.dilation, strict=True)
        )

    @cached_property
    def out_blocks(self) -> int:
        return -(-self.out_channels // self.out_block)

    @cached_property
    def merged_groups(self) -> int:
        """Groups that are computed as one, so that a vector of output channels has one set of inputs.

        The weights between different groups are zero then. Products with them are wasted, but vectors
        stay whole: four groups of 4 channels are one of 16.
        """
        merged = self.out_block // gcd(self.out_block, self.group_outputs)
        return merged if self.groups % merged == 0 else self.groups

    @cached_property
    def reduced_channels(self) -> int:
        """Input channels that one output channel reads, those of merged groups included."""
        return self.group_inputs * self.merged_groups

    @cached_property
    def reduction_chunk(self) -> int:
        """Input channels of the innermost reduction loop: a whole block, or the largest part of one that
        divides a ragged channel count; 1 for a plain layout."""
        common = gcd(self.reduced_channels, self.in_block)
        if self.in_one and self.reduced_channels < self.in_block and self.reduced_channels % 2 == 0:
            return self.reduced_channels
        if common < min(4, self.in_block) and self.groups == self.merged_groups:
            return self.in_block
        return common

    @cached_property
    def group(self) -> int:
        """Input channels that are multiplied at a time."""
        return 1 if self.sums is None else self.sums.size

    @cached_property
    def side(self) -> int:
        """Pixels and channels of a square of sums; 1 where sums are not in squares."""
        return 1 if self.sums is None else self.sums.side

    @cached_property
    def chunk_steps(self) -> int:
        """Steps in which a chunk is multiplied."""
        return self.reduction_chunk // self.group

    @property
    def packed_dtype(self) -> str:
        """The element type of weights as they are packed."""
        return self.dtype if self.sums is None else self.sums.dtype

    @cached_property
    def sum_dtype(self) -> str:
        """An element type of as many lanes to a vector as the innermost sums have."""
        return self.accumulator if self.sums is None else self.sums.dtype

    def in_groups(self, ways: Sequence[GroupSums]) -> Convolution:
        """This convolution with input channels in groups, by the first of `ways` that whole chunks of a
        blocked input allow; in squares of neighbouring pixels and channels where these read neighbours."""
        for sums in ways:
            groups = self.in_block > 1 and not (self.in_block % sums.size or self.reduction_chunk % sums.size)
            if groups and (sums.side == 1 or self._has_squares(sums)):
                return replace(self, sums=sums)
        return self

    def _has_squares(self, sums: GroupSums) -> bool:
        pixels = prod(self.out_size) if self.is_pointwise else self.out_size[-1]
        beside = self.strides[-1] == 1 and self.in_block == sums.size
        return beside and pixels >= sums.side and self.out_block % sums.side**2 == 0

    @cached_property
    def reduction_chunks(self) -> int:
        return -(-self.reduced_channels // self.reduction_chunk)

    def first_input(self, out_channel: Expression) -> Expression:
        """The first input channel that the (merged) group of `out_channel` reads."""
        if self.merged_groups == self.groups:
            return 0
        return out_channel // (self.group_outputs * self.merged_groups) * self.reduced_channels

    def place(self, n: Expression, channel: Expression, at: Sequence[Expression]) -> list[Expression]:
        """Where a buffer in the input's layout holds the element (or group) `channel` at position `at`."""
        if self.in_block == 1:
            return [n, channel, *at]
        block = self.in_block // self.group
        return [n, channel // block, *at, channel % block]

    def read(
        self, buffer: Buffer, n: Expression, channel: Expression, at: Sequence[Expression]
    ) -> Expression:
        """The element (or group) `channel` at spatial position `at` of a buffer in the input's layout."""
        return tirx.BufferLoad(buffer, self.place(n, channel, at))

    def unflatten(self, pixel: Expression) -> list[Expression]:
        """Output position of number `pixel` of all pixels in row-major order."""
        at: list[Expression] = []
        for extent in reversed(self.out_size[1:]):
            at.insert(0, pixel % extent)
            pixel = pixel // extent
        return [pixel, *at]

    def position(self, out: Sequence[Expression], tap: Sequence[Expression]) -> list[Expression]:
        """Position in the padded input that output position `out` reads at kernel position `tap`."""
        return [o * s + k * d for o, s, k, d in zip(out, self.strides, tap, self.dilation, strict=True)]

    def padded_input(
        self, anchored: Anchored, lanes: int, phases: int = 1, stage: int = -1
    ) -> tuple[list[Statement], Buffer]:
        """The input with its padding around it, and the statements that copy it where that is necessary.

        A copy has rows in so many `phases`, each of which lies side by side.
        """
        blocks = [0] if self.in_block > 1 else []
        dtype = self.accumulator if self.sums is None else self.dtype
        return anchored.copy(
            anchored.stages[stage].operands[0],
            [0, 0, *self.pad_begin, *blocks],
            [0, 0, *self.pad_end, *blocks],
            tirx.const(self.pad_value, dtype),
            lanes,
            phases=phases,
        )


def dense_steps(conv: Convolution) -> tuple[int, ...]:
    """Extents of the reduction: input channel chunks, kernel positions, channels (or groups) of a chunk."""
    return (conv.reduction_chunks, *conv.kernel, conv.chunk_steps)
