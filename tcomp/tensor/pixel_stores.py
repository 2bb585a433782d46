"""The output of a convolution, in blocks of channels, as tiles that the copy engine stores.

Rows of the product are pixels of all images. In memory each image has a plane of pixels for each block of
channels, so consecutive rows lie side by side until the end of an image. A copy stores so few that no image
ends among them. It cannot begin before an image, to store what goes on there: CUDA C++ Programming Guide,
"Negative indices and out of bounds".
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, prod

from tcomp.target.tile_map import LINE_BYTES
from tcomp.tensor.convolution import Convolution
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.output_tiles import OutputTiles, Place, tiled_itemsize
from tcomp.tensor.wgmma_plan import PLACE_ROWS
from tcomp.tvm_api import tirx

_FEWEST = 4
"""Pixels that are worth a copy."""


def pixel_itemsize(kernel: Kernel, conv: Convolution) -> int:
    """Bytes of an element of the output of `kernel` if tiles of its pixels can be stored, else 0."""
    itemsize = tiled_itemsize(kernel, conv.out_block) if conv.out_block > 1 else 0
    whole = conv.out_blocks == 1 or conv.out_block * itemsize % LINE_BYTES == 0
    return itemsize if whole and _side_by_side(conv, PLACE_ROWS) >= _FEWEST else 0


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
