"""The output of a convolution, in blocks of channels, as tiles that the copy engine stores.

Rows of the product are pixels of all images. In memory each image has a plane of pixels for each block of
channels, so consecutive rows lie side by side until the end of an image. What goes on in the next image is
stored by a copy of its own, which begins as many pixels before that image: what is beyond ends is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from tcomp.target.tile_map import LINE_BYTES
from tcomp.tensor.convolution import Convolution
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.loops import Expression
from tcomp.tensor.output_tiles import OutputTiles, Part, tiled_itemsize
from tcomp.tvm_api import tirx


def pixel_itemsize(kernel: Kernel, conv: Convolution) -> int:
    """Bytes of an element of the output of `kernel` if tiles of its pixels can be stored, else 0."""
    itemsize = tiled_itemsize(kernel, conv.out_block) if conv.out_block > 1 else 0
    whole = conv.out_blocks == 1 or conv.out_block * itemsize % LINE_BYTES == 0
    return itemsize if whole else 0


@dataclass(frozen=True)
class PixelTiles(OutputTiles):
    """The only output of a kernel, `[image, block, pixel, channel]` as its convolution's."""

    conv: Convolution

    @property
    def extents(self) -> tuple[int, ...]:
        conv = self.conv
        return conv.out_block, prod(conv.out_size), conv.out_blocks, conv.batch

    def parts(self, place: tuple[Expression, Expression, Expression], rows: int) -> list[Part]:
        _, row, column = place
        channels, pixels, _, images = self.extents
        image, pixel = tirx.floordiv(row, pixels), tirx.floormod(row, pixels)
        block, channel = tirx.floordiv(column, channels), tirx.floormod(column, channels)
        # Tiles begin at multiples of the rows of a part.
        crossed = 0 if pixels % rows == 0 or images == 1 else -(-(rows - 1) // pixels)
        return [
            Part(
                (channel, pixel - number * pixels, block, image + number),
                pixel - number * pixels > -rows if number else None,
            )
            for number in range(crossed + 1)
        ]
