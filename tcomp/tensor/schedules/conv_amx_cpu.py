"""Direct convolution of blocked bfloat16 channels by tile registers; see `tcomp.tensor.amx`.

A tile of the left operand is `tile_rows` neighbouring pixels of a row by the channels of a block, where they
lie. A block of tiles is `tile_height x tile_width` pixels by `oc_blocks` channel blocks. A 1x1 convolution
without strides runs over the flattened pixels. Another one without strides may run over those of the
`padded` image, so that tiles are full where rows are of few pixels: what is computed for places beyond the
ends of rows is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from tcomp.target.target import Target
from tcomp.tensor.amx import DTYPE, LANES, WORD_BYTES, has_tiles
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.convolution import Convolution, dense_steps
from tcomp.tensor.cpu.direct_convolution import (
    copy_cycles,
    pixels_of,
    register_tile,
    source_block,
    walk_order,
)
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
    panel_ahead,
    threads_for,
    tile_blocks_nest,
)
from tcomp.tensor.cpu.weight_panels import WeightPanels
from tcomp.tensor.epilogue import epilogue_fits, placeholder_index
from tcomp.tensor.groups import ways_to_sum
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Choice, Config, Knob
from tcomp.tensor.loops import Expression, Statement
from tcomp.tensor.schedules.conv2d_cpu import OPERATORS, Conv2dDirect, output_index
from tcomp.tensor.template import TEMPLATES, Scheduled
from tcomp.tvm_api import tirx


class ConvAmxCpu(TileConvolution):
    """Convolution by tile registers; see the module's text."""

    name = "conv_amx_cpu"
    alternative_to = Conv2dDirect.name

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        anchor = kernel.anchor
        if not has_tiles(target) or anchor is None or anchor.op not in OPERATORS or not epilogue_fits(kernel):
            return False
        constant = placeholder_index(kernel, anchor.inputs[1]) in kernel.constant_inputs
        conv = _convolution(kernel, target)
        if conv.dtype != DTYPE or not constant or conv.groups > 1:
            return False
        return conv.sums is not None and conv.out_block > 1 and bool(_choices(conv))

    def choice(self, kernel: Kernel, target: Target) -> BlockChoice:
        conv = _convolution(kernel, target)
        weights = 2 * conv.out_blocks * conv.out_block * conv.reduced_channels * prod(conv.kernel)

        def knobs(best: PixelBlock) -> Sequence[Knob]:
            return (
                Choice("padded", (False, True), best.padded),
                Choice("order", ("weights", "pixels"), walk_order(conv, best.pixels, target)),
                Choice("prefetch", (False, True), weights > target.cache_bytes[1] // 2),
            )

        return BlockChoice(_choices(conv), lambda choice: _cycles(conv, choice, target), knobs)

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        """1. Pad the input where necessary. 2. One nest over blocks of tiles."""
        assert kernel.anchor is not None
        conv = _convolution(kernel, target)
        (choice,) = (c for c in _choices(conv) if c.key == key_of(config))
        block, order = choice.block, str(config["order"])
        extents = (_padded_pixels(conv),) if choice.padded else ()
        tile = register_tile(conv, choice.pixels, order, LANES, with_rest=False, pixels=extents)
        weights = WeightPanels(conv, tile.axes[1])
        constant = placeholder_index(kernel, kernel.anchor.inputs[1])
        assert constant is not None
        assert conv.sums is not None
        anchored = Anchored(kernel, {constant: weights.packing})
        copies, padded = conv.padded_input(anchored, target.lanes(conv.sums.dtype))
        declaration, data = conv.sums.view(padded, "data_groups")
        panels = anchored.buffer_of(anchored.operands[1])
        walked = prod(axis.count for axis in tile.axes[2:-1])

        def left(point: Point, step: Index) -> Expression:
            n, _, *pixel, _ = point.index
            chunk, *taps = step
            if choice.padded:
                pixel = [0, *pixel]
            at = conv.unflatten(*pixel) if conv.is_pointwise else conv.position(pixel, taps)
            return conv.read(data, n, source_block(conv, point.bases[1], chunk), at)

        def right(point: Point, step: Index, column: int) -> Expression:
            return tirx.BufferLoad(panels, [point.tiles[1], *step, 0, column])

        def ahead(point: Point, step: Index) -> Sequence[Statement]:
            if not config["prefetch"] or order != "weights":
                return []
            number: Expression = 0
            for place, axis in zip(point.tiles[2:-1], tile.axes[2:-1], strict=True):
                number = number * axis.count + place
            words = block.pairs * weights.width
            return panel_ahead(panels, [point.tiles[1] + 1, *step, 0, 0], number, words, walked)

        pitch = _pitch(conv)

        def finish(index: Index, value: Expression) -> Statement:
            if choice.padded:
                n, out, pixel, lane = index
                index = [n, out, pixel // pitch, pixel % pitch, lane]
            return anchored.finish(output_index(conv, index), value)

        def is_output(index: Index) -> Expression:
            return index[2] % pitch < conv.out_size[-1]

        row_words = conv.strides[-1] * int(data.shape[-1])
        steps = Steps(dense_steps(conv)[:-1], left, WORD_BYTES * row_words, right, weights.width, ahead)
        columns, threads = (1, len(tile.axes) - 1), threads_for(kernel, target)
        walk = BlockWalk(tile, block, columns, steps, finish, is_output if choice.padded else None)
        nest = tile_blocks_nest(walk, threads, _cycles(conv, choice, target))
        return anchored.scheduled([*copies, declaration, nest], tile.disjoint)


def _convolution(kernel: Kernel, target: Target) -> Convolution:
    assert kernel.anchor is not None
    return replace(Convolution.of(kernel.anchor), in_one=True).in_groups(ways_to_sum(target, DTYPE))


def _pitch(conv: Convolution) -> int:
    """Pixels of a row of the padded image."""
    return conv.in_size[-1] + conv.pad_begin[-1] + conv.pad_end[-1]


def _padded_pixels(conv: Convolution) -> int:
    """Pixels of the padded image from the first to the last one that an output begins at."""
    return (conv.out_size[0] - 1) * _pitch(conv) + conv.out_size[-1]


def _choices(conv: Convolution) -> list[PixelBlock]:
    has_flat = len(conv.kernel) == 2 and conv.strides == (1, 1) and not conv.is_pointwise
    return pixel_blocks(conv, conv.chunk_steps, _padded_pixels(conv) if has_flat else 0)


def _cycles(conv: Convolution, choice: PixelBlock, target: Target) -> float:
    """Estimated cycles of the whole convolution."""
    *outer, height, width = (1, *pixels_of(conv))
    pixels = choice.pixels
    tiles = prod(outer) * -(-height // pixels.height) * -(-width // pixels.width)
    if choice.padded:
        tiles = -(-_padded_pixels(conv) // pixels.width)
    tiles *= -(-conv.out_blocks // pixels.oc_blocks)
    one = blocks_cycles(choice.block, prod(dense_steps(conv)[:-1]))
    return conv.batch * (tiles * one + copy_cycles(conv, target))


TEMPLATES.register(ConvAmxCpu.name, ConvAmxCpu())
