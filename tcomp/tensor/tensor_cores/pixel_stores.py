"""The output of a convolution, in blocks of channels, as tiles that the copy engine stores.

Rows of the product are pixels of all images. In memory each image has a plane of pixels for each block of
channels, so consecutive rows lie side by side until the end of an image. A copy stores so few that no image
ends among them. It cannot begin before an image, to store what goes on there: CUDA C++ Programming Guide,
"Negative indices and out of bounds".
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, prod

from tcomp.relay.types import numpy_dtype
from tcomp.target.tile_map import LINE_BYTES
from tcomp.tensor.convolution import Convolution
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.tensor_cores.mma_plan import CHUNK_BYTES
from tcomp.tensor.tensor_cores.output_tiles import OutputTiles, Place, has_lines
from tcomp.tensor.tensor_cores.stored_output import Output, output_of
from tcomp.tensor.tensor_cores.wgmma_plan import PLACE_ROWS
from tcomp.tvm_api import tirx

_FEWEST = 4
"""Pixels that are worth a copy."""


def pixel_output(kernel: Kernel, conv: Convolution, by_engine: bool) -> Output:
    """The output of a convolution, of which the copy engine stores tiles, or threads chunks of a pixel.

    Threads store whole sectors from registers where a pixel has but one chunk of a block.
    """
    block = conv.out_block
    neighbours = {1: conv.out_channels} if block == 1 else {kernel.body.outputs[0].type.rank - 1: block}
    row_bytes = block * numpy_dtype(kernel.body.outputs[0].dtype).itemsize
    if by_engine:
        whole = conv.out_blocks == 1 or row_bytes % LINE_BYTES == 0
        worth = whole and _side_by_side(conv, PLACE_ROWS) >= _FEWEST
    else:
        worth = row_bytes > CHUNK_BYTES
    return output_of(kernel, neighbours, block > 1 and worth and has_lines(kernel, block))


def _side_by_side(conv: Convolution, rows: int) -> int:
    return rows if conv.batch == 1 else gcd(prod(conv.out_size), rows)


@dataclass(frozen=True)
class PixelTiles(OutputTiles):
    """The only output of a kernel, `[image, block, pixel, channel]` as its convolution's."""

    conv: Convolution

    @property
    def extents(self) -> tuple[int, ...]:
        conv = self.conv
        return conv.out_block, prod(conv.out_size), conv.out_blocks, conv.batch

    def side_by_side(self, rows: int) -> int:
        return _side_by_side(self.conv, rows)

    def at(self, place: Place) -> Place:
        _, row, column = place
        channels, pixels, _, _ = self.extents
        image, pixel = tirx.floordiv(row, pixels), tirx.floormod(row, pixels)
        block, channel = tirx.floordiv(column, channels), tirx.floormod(column, channels)
        return channel, pixel, block, image
