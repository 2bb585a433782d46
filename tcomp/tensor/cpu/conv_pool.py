"""A convolution and the max pooling of what it makes, as at the beginning of ResNet: one kernel by rows.

The tensor between them is the largest of such a model. By rows it never leaves the nearer caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from tcomp.relay.attributes import text
from tcomp.relay.graph import Node
from tcomp.relay.layouts import channel_block
from tcomp.relay.types import numpy_dtype
from tcomp.tensor.convolution import Convolution
from tcomp.tensor.cpu.conv_chain import PRODUCTS_A_SAVED_BYTE
from tcomp.tensor.cpu.pool_windows import Taps, pool_window
from tcomp.tensor.cpu.row_pieces import RowPieces

MOST_TAPS = 25
"""Taps of a window, which are written out."""


@dataclass(frozen=True)
class ConvPool:
    """The numbers of a convolution into blocked output, whose pixels `windows` (rows, columns) are over."""

    conv: Convolution
    windows: tuple[Taps, Taps]

    @staticmethod
    def of(nodes: Sequence[Node]) -> ConvPool | None:
        """What a conv2d and a max_pool2d are; None when they are of other kinds.

        Every window begins inside or at a border of what it pools: the rows and columns that it has outside
        may then be read as the nearest ones inside, which it has as well.
        """
        if [n.op for n in nodes] != ["conv2d", "max_pool2d"] or not all(
            v.type.is_static and v.dtype == "float32" for n in nodes for v in (*n.inputs, *n.outputs)
        ):
            return None
        conv, (rows, columns) = Convolution.of(nodes[0]), pool_window(nodes[1])
        windows = (rows, columns)
        overlaps = all(
            axis.dilation == 1
            and axis.begin < axis.kernel
            and (axis.positions - 1) * axis.stride - axis.begin < axis.extent
            for axis in windows
        )
        block = channel_block(text(nodes[1].attrs, "data_layout"))
        is_blocked = conv.out_block > 1 and conv.out_block == block
        few_taps = prod(axis.kernel for axis in windows) <= MOST_TAPS
        fits = is_blocked and few_taps and overlaps and conv.groups == 1
        return ConvPool(conv, windows) if fits else None

    @cached_property
    def row(self) -> Convolution:
        """One row of the convolution of one image."""
        return replace(self.conv, batch=1, out_size=(1, self.conv.out_size[1]))

    @cached_property
    def row_pieces(self) -> RowPieces:
        """How the rows of windows are cut, and which of the convolution they read."""
        rows = self.windows[0]
        return RowPieces(self.conv.batch, rows.positions, rows.extent, rows.kernel, rows.stride, rows.begin)

    def pays(self, near_bytes: int, cores: int) -> bool:
        """Whether one kernel is worth more than two on cores with a second-level cache of `near_bytes`.

        What of the convolution's output does not fit there goes out and comes back. Against that stand rows
        at the borders of pieces, which are computed twice. Convolutions that Winograd's algorithm may
        compute, of which a row is no part, are left alone.
        """
        conv = self.conv
        if conv.kernel == (3, 3) and conv.in_block > 1:
            return False
        output = conv.out_blocks * conv.out_block * prod(conv.out_size) * numpy_dtype(conv.dtype).itemsize
        saved = 2 * conv.batch * max(0, output - near_bytes)
        row = conv.out_channels * conv.group_inputs * prod(conv.kernel) * conv.out_size[1]
        return saved * PRODUCTS_A_SAVED_BYTE > self.row_pieces.repeated(cores) * row
