"""Windows of a convolution as tiles that a GPU's copy engine brings to shared memory: its im2col mode.

A tile is one tap of the windows of consecutive output pixels, with as many channels as a line has: rows of
the product that `conv_windows` makes of a convolution, and a step of its depth. The engine walks over pixels
and images as rows do, and gives zeros beyond borders (`tcomp.target.tile_map.Walk`).

Where channels lie in several blocks, each is an image plane. Rows go on in the same block of the next image,
so images are the outermost axis of pixels, blocks what the engine takes for images. Behind the last image a
tile goes on in another block: rows that are not stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from tcomp.relay.types import numpy_dtype
from tcomp.target.tile_map import LINE_BYTES, TileMap, Walk
from tcomp.tensor.convolution import Convolution
from tcomp.tensor.gpu.threads import digits
from tcomp.tensor.loops import Expression, constant
from tcomp.tvm_api import tirx

_AXES = (1, 2, 3)
"""Of pixels, that a map may have."""


@dataclass(frozen=True)
class WindowTiles:
    """Windows of an input `[image, block, pixel..., channel]`, of `blocks` of `block` channels."""

    conv: Convolution
    block: int
    blocks: int

    @staticmethod
    def of(conv: Convolution, block: int, blocks: int) -> WindowTiles | None:
        """None where the engine cannot bring them: lines are not whole, a border is not zero, or a map lacks
        room for a number."""
        tiles = WindowTiles(conv, block, blocks)
        whole = block * numpy_dtype(conv.dtype).itemsize % LINE_BYTES == 0
        if not whole or conv.border or len(tiles._pixels) not in _AXES:
            return None
        return tiles if tiles._walk.is_within_reach(tiles._last_offsets) else None

    @property
    def channels(self) -> int:
        """Of a tap."""
        return self.block * self.blocks

    @property
    def _is_split(self) -> bool:
        return self.blocks > 1

    @property
    def _pixels(self) -> tuple[int, ...]:
        """Extents of the axes of pixels as the engine sees them, the innermost first."""
        images = (self.conv.batch,) if self._is_split else ()
        return (*reversed(self.conv.in_size), *images)

    @property
    def _walk(self) -> Walk:
        conv, images = self.conv, (0,) if self._is_split else ()
        lower = [-begin for begin in conv.pad_begin]
        upper = [
            begin + (out - 1) * stride - (extent - 1)
            for begin, out, stride, extent in zip(
                lower, conv.out_size, conv.strides, conv.in_size, strict=True
            )
        ]
        steps = (*reversed(conv.strides), *(1 for _ in images))
        return Walk((*reversed(lower), *images), (*reversed(upper), *images), steps)

    @property
    def _last_offsets(self) -> Sequence[int]:
        conv = self.conv
        return [(size - 1) * step for size, step in zip(conv.kernel, conv.dilation, strict=True)]

    def map(self, dtype: str, pixels: int) -> TileMap:
        """Of the input, of which copies bring so many pixels; float32 is rounded where `dtype` is tf32."""
        conv, itemsize = self.conv, numpy_dtype(self.conv.dtype).itemsize
        last = self.blocks if self._is_split else conv.batch
        behind = [prod(conv.in_size[axis:]) * self.block * itemsize for axis in range(len(conv.in_size) + 1)]
        plane, *strides = behind
        strides.reverse()
        if self._is_split:
            strides.append(plane * self.blocks)
        box = (LINE_BYTES // itemsize, pixels)
        return TileMap(dtype, (self.block, *self._pixels, last), (*strides, plane), box, walk=self._walk)

    def place(self, row: Expression, k: Expression, end: int) -> list[Expression]:
        """Coordinates and offsets of the tile at (row, k) for an instruction.

        `k` is less than `end`. Behind the depth, which may be less, tiles are zeros.
        """
        conv, depth = self.conv, prod(self.conv.kernel) * self.channels
        image, *out = digits(row, (conv.batch, *conv.out_size))
        pixel = [
            i * stride - begin for i, stride, begin in zip(out, conv.strides, conv.pad_begin, strict=True)
        ]
        inside = k if end <= depth else tirx.min(k, constant(depth - 1))
        channel = tirx.floormod(inside, self.channels)
        tap = digits(tirx.floordiv(inside, self.channels), conv.kernel)
        offsets = [i * step for i, step in zip(tap, conv.dilation, strict=True)]
        first = tirx.floormod(channel, self.block)
        if end > depth:
            first = tirx.Select(k < depth, first, constant(self.block))
        coordinates = [first, *reversed(pixel), image]
        if self._is_split:
            coordinates.append(tirx.floordiv(channel, self.block))
            offsets.insert(0, constant(0))
        return [*coordinates, *reversed(offsets)]
