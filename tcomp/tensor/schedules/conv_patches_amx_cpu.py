"""Convolution of few plain channels by tile registers: the first layer of an image network.

The kernel's float32 input is rounded and copied for a strip of output rows at a time, `strip` rows of tiles,
so that the copy stays in the nearest caches (`tensor.cpu.patches`). Weights are rounded at compile time.
A block of tiles is `tile_height x tile_width` pixels by `oc_blocks` channel blocks, as in `conv_amx_cpu`; a
strip walks them panel by panel (order `weights`) or pixels first. Threads share pieces of whole strips.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from tcomp.target.target import Target
from tcomp.tensor.amx import DTYPE, LANES, WORD_BYTES, has_tiles
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.convolution import Convolution
from tcomp.tensor.cpu.direct_convolution import register_tile
from tcomp.tensor.cpu.patches import Patches, has_patches
from tcomp.tensor.cpu.pixel_blocks import (
    BlockChoice,
    PixelBlock,
    TileConvolution,
    key_of,
    pixel_blocks,
)
from tcomp.tensor.cpu.register_tile import Index, Point
from tcomp.tensor.cpu.tile_nest import (
    BlockWalk,
    Steps,
    blocks_cycles,
    in_pieces,
    pieces_for,
    threads_for,
)
from tcomp.tensor.epilogue import epilogue_fits, placeholder_index
from tcomp.tensor.groups import WORD, ways_to_sum
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Choice, Config, Knob, Ordered
from tcomp.tensor.loops import (
    Buffer,
    Expression,
    Statement,
    local,
    loop,
    sequence,
)
from tcomp.tensor.schedules.conv2d_cpu import Conv2dDirect, output_index
from tcomp.tensor.template import TEMPLATES, Scheduled
from tcomp.tvm_api import tirx

STRIPS = (1, 2, 4, 8, 16, 32, 64)


class ConvPatchesAmxCpu(TileConvolution):
    """Convolution of few plain channels by tile registers; see the module's text."""

    name = "conv_patches_amx_cpu"
    alternative_to = Conv2dDirect.name

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        anchor = kernel.anchor
        if not has_tiles(target) or anchor is None or not has_patches(anchor):
            return False
        if anchor.attrs["multiply_as"] != DTYPE or not epilogue_fits(kernel):
            return False
        constant = placeholder_index(kernel, anchor.inputs[1]) in kernel.constant_inputs
        return constant and bool(_choices(_patches(kernel)))

    def choice(self, kernel: Kernel, target: Target) -> BlockChoice:
        patches = _patches(kernel)

        def knobs(best: PixelBlock) -> Sequence[Knob]:
            return (
                Choice("order", ("weights", "pixels"), "pixels"),
                Ordered("strip", STRIPS, _strip(patches, best, kernel, target)),
            )

        return BlockChoice(_choices(patches), lambda choice: _cycles(patches, choice), knobs)

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        """For every strip: 1. Copy its part of the input. 2. Walk its blocks of tiles."""
        assert kernel.anchor is not None
        patches = _patches(kernel)
        conv = patches.conv
        (choice,) = (c for c in _choices(patches) if c.key == key_of(config))
        block, order = choice.block, str(config["order"])
        tile = register_tile(conv, choice.pixels, order, LANES, with_rest=False)
        _, channels, tile_rows, tile_columns, _ = tile.axes
        packing, width = patches.weights(ways_to_sum(target, DTYPE)[-1], channels)
        constant = placeholder_index(kernel, kernel.anchor.inputs[1])
        assert constant is not None
        anchored = Anchored(kernel, {constant: packing})
        panels = anchored.buffer_of(anchored.operands[1])

        height = min(int(config["strip"]), tile_rows.count)
        per_image = -(-tile_rows.count // height)
        strips = conv.batch * per_image
        pieces = pieces_for(strips, threads_for(kernel, target), _cycles(patches, choice))
        most_rows = min(patches.rows(height * tile_rows.size), conv.needed[0])

        def strip(copy: Buffer, number: Expression) -> Statement:
            image, first = number // per_image, number % per_image * height
            first_row = tile_rows.base(first) * conv.strides[0]
            rows = tirx.min(conv.needed[0] - first_row, most_rows)

            def left(point: Point, step: Index) -> Expression:
                _, _, y, x, _ = point.index
                row = y * conv.strides[0] + step[0] * conv.dilation[0] - first_row
                word = x * (conv.strides[1] * patches.words) + step[1] * block.pairs
                return tirx.BufferLoad(copy, [row, word])

            def right(point: Point, step: Index, column: int) -> Expression:
                return tirx.BufferLoad(panels, [point.tiles[1], step[0], step[1] * block.pairs, column])

            def finish(index: Index, value: Expression) -> Statement:
                return anchored.finish(output_index(conv, index), value)

            steps = Steps(patches.steps, left, patches.pixel_bytes, right, width, lambda point, step: ())

            across = (channels.count, tile_columns.count)
            exact = tile_rows.count % height == 0
            down = height if exact else tirx.min(tile_rows.count - first, height)

            def numbers(i: Expression) -> Index:
                if order == "weights":
                    rest, column = i // across[1], i % across[1]
                    panel, row = rest // down, rest % down
                else:
                    rest, panel = i // across[0], i % across[0]
                    row, column = rest // across[1], rest % across[1]
                return [image, panel, first + row, column, 0]

            walk = BlockWalk(tile, block, (1, 4), steps, finish)
            blocks = walk.blocks(prod(across) * down, numbers)
            return sequence([patches.copy(anchored, image, first_row, rows, copy), blocks])

        def some(first: Expression, own: int | Expression, number: Expression) -> Statement:
            allocation, copy = local([most_rows, patches.row_words], WORD, "patches")
            return sequence([allocation, loop(own, lambda i: strip(copy, first + i), "strip")])

        return anchored.scheduled([in_pieces(block, strips, pieces, some)], tile.disjoint)


def _patches(kernel: Kernel) -> Patches:
    assert kernel.anchor is not None
    return Patches(Convolution.of(kernel.anchor))


def _choices(patches: Patches) -> list[PixelBlock]:
    return pixel_blocks(patches.conv, patches.pairs)


def _strip(patches: Patches, choice: PixelBlock, kernel: Kernel, target: Target) -> int:
    """As many rows of tiles as leave each thread four strips, of which one takes up little of the cache of
    the second level: rows that two strips read are copied twice."""
    conv, height = patches.conv, choice.pixels.height
    tile_rows = conv.batch * -(-conv.out_size[0] // height)

    def suits(rows: int) -> bool:
        near = WORD_BYTES * patches.row_words * patches.rows(rows * height) <= target.cache_bytes[1] // 8
        return near and tile_rows >= 4 * rows * threads_for(kernel, target)

    return max((rows for rows in STRIPS if suits(rows)), default=STRIPS[0])


def _cycles(patches: Patches, choice: PixelBlock) -> float:
    """Estimated cycles of the whole convolution."""
    conv, pixels = patches.conv, choice.pixels
    (height, width), (rows, columns) = conv.out_size, (pixels.height, pixels.width)
    tiles = -(-height // rows) * -(-width // columns) * -(-conv.out_blocks // pixels.oc_blocks)
    one = blocks_cycles(choice.block, prod(patches.steps))
    return conv.batch * (tiles * one + patches.copy_cycles(conv.needed[0]))


TEMPLATES.register(ConvPatchesAmxCpu.name, ConvPatchesAmxCpu())
