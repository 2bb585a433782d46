"""The windows of pooling operators, axis by axis."""

from __future__ import annotations

from dataclasses import dataclass

from tcomp.relay.attributes import flag, integers
from tcomp.relay.graph import Node
from tcomp.tensor.loops import Expression, constant
from tcomp.tvm_api import tirx


@dataclass(frozen=True)
class Taps:
    """The window on one axis: position `p` reads `p * stride + tap * dilation - begin` for each tap."""

    extent: int
    positions: int
    kernel: int
    stride: int
    dilation: int
    begin: int

    @property
    def interior(self) -> tuple[int, int]:
        """The positions [first, end) whose taps all lie inside."""
        first = min(-(-self.begin // self.stride), self.positions)
        reach = (self.kernel - 1) * self.dilation
        last = (self.extent - 1 - reach + self.begin) // self.stride
        return first, max(first, min(last + 1, self.positions))

    def inside(self, position: Expression) -> tuple[Expression, Expression]:
        """The taps [first, end) of `position` that lie inside."""
        if self.interior == (0, self.positions):
            return constant(0), constant(self.kernel)
        start = position * self.stride - self.begin
        first = tirx.max(tirx.floordiv(self.dilation - 1 - start, self.dilation), 0)
        end = tirx.min(tirx.floordiv(self.extent - 1 - start, self.dilation) + 1, self.kernel)
        return tirx.min(first, self.kernel), tirx.max(end, 0)


def pool_window(node: Node, counted: bool = False) -> list[Taps]:
    """The window of a pooling node on each axis; `counted` asks for the taps that an average counts, padding
    maybe included."""
    kernel = integers(node.attrs, "kernel")
    rank = len(kernel)
    padding, strides = integers(node.attrs, "padding"), integers(node.attrs, "strides")
    dilation = integers(node.attrs, "dilation")
    extents = node.inputs[0].type.static_shape[2:]
    positions = node.output.type.static_shape[2:]
    include = counted and "count_include_pad" in node.attrs and flag(node.attrs, "count_include_pad")
    return [
        Taps(
            extents[i] + (padding[i] + padding[rank + i] if include else 0),
            positions[i],
            kernel[i],
            strides[i],
            dilation[i],
            0 if include else padding[i],
        )
        for i in range(rank)
    ]
