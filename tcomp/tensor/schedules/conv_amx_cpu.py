"""Direct convolution of blocked bfloat16 channels by tile registers; see `tcomp.tensor.amx`.

A tile of the left operand is `tile_rows` neighbouring pixels of a row by the channels of a block, where they
lie. A block of tiles is `tile_height x tile_width` pixels by `oc_blocks` channel blocks. A 1x1 convolution
without strides runs over the flattened pixels. Another one without strides may run over those of the
`padded` image, so that tiles are full where rows are of few pixels: what is computed for places beyond the
ends of rows is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from tcomp.target.target import Target
from tcomp.tensor.amx import LANES, ROWS, TILES, WORD_BYTES, TileBlock, has_tiles
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.convolution import Convolution, WeightPanels, dense_steps
from tcomp.tensor.direct_convolution import (
    PixelTile,
    copy_cycles,
    pixels_of,
    register_tile,
    source_block,
    walk_order,
)
from tcomp.tensor.epilogue import epilogue_fits, placeholder_index
from tcomp.tensor.groups import ways_to_sum
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Choice, Config, Ordered, Space
from tcomp.tensor.loops import Expression, Statement
from tcomp.tensor.register_tile import Index, Point
from tcomp.tensor.schedules.conv2d_cpu import OPERATORS, Conv2dDirect, output_index
from tcomp.tensor.template import TEMPLATES, Packed, PackedBy, Scheduled, Template
from tcomp.tensor.tile_nest import Steps, blocks_cycles, panel_ahead, threads_for, tile_blocks_nest
from tcomp.tvm_api import tirx

_DTYPE = "bfloat16"


@dataclass(frozen=True)
class _Choice:
    """A block of tiles as pixels by channel blocks."""

    pixels: PixelTile
    block: TileBlock
    padded: bool = False
    """Whether pixels are those of the padded image."""


class ConvAmxCpu(Template):
    """Convolution by tile registers; see the module's text."""

    name = "conv_amx_cpu"
    alternative_to = Conv2dDirect.name

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        anchor = kernel.anchor
        if not has_tiles(target) or anchor is None or anchor.op not in OPERATORS or not epilogue_fits(kernel):
            return False
        conv = Convolution.of(anchor)
        constant = placeholder_index(kernel, anchor.inputs[1]) in kernel.constant_inputs
        if conv.dtype != _DTYPE or target.fast_dtype != _DTYPE or not constant or conv.groups > 1:
            return False
        conv = conv.in_groups(ways_to_sum(target, _DTYPE))
        return conv.sums is not None and conv.out_block > 1 and bool(_choices(conv))

    def packings(self, kernel: Kernel, target: Target) -> PackedBy:
        """Panels of as many channel blocks as a block of tiles has."""
        conv = _convolution(kernel, target)
        found = _choices(conv)

        def packed(blocks: int) -> Packed:
            own = [c for c in found if c.pixels.oc_blocks == blocks]
            default = _space(conv, kernel, target, own).default
            cycles = min(_cycles(conv, c, target) for c in own)
            return Packed(default, cycles, lambda config: config["oc_blocks"] == blocks)

        return {blocks: packed(blocks) for blocks in sorted({c.pixels.oc_blocks for c in found})}

    def estimate(self, kernel: Kernel, target: Target) -> float:
        conv = _convolution(kernel, target)
        return min(_cycles(conv, choice, target) for choice in _choices(conv))

    def space(self, kernel: Kernel, target: Target) -> Space:
        conv = _convolution(kernel, target)
        return _space(conv, kernel, target, _choices(conv))

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        """1. Pad the input where necessary. 2. One nest over blocks of tiles."""
        assert kernel.anchor is not None
        conv = _convolution(kernel, target)
        (choice,) = (c for c in _choices(conv) if _key(c) == _key_of(config))
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
        cycles = _cycles(conv, choice, target)
        kept = is_output if choice.padded else None
        nest = tile_blocks_nest(tile, block, columns, steps, finish, threads, cycles, kept)
        return anchored.scheduled([*copies, declaration, nest], tile.disjoint)


def _convolution(kernel: Kernel, target: Target) -> Convolution:
    assert kernel.anchor is not None
    return Convolution.of(kernel.anchor).in_groups(ways_to_sum(target, _DTYPE))


def _pitch(conv: Convolution) -> int:
    """Pixels of a row of the padded image."""
    return conv.in_size[-1] + conv.pad_begin[-1] + conv.pad_end[-1]


def _padded_pixels(conv: Convolution) -> int:
    """Pixels of the padded image from the first to the last one that an output begins at."""
    return (conv.out_size[0] - 1) * _pitch(conv) + conv.out_size[-1]


def _choices(conv: Convolution) -> list[_Choice]:
    """Blocks of tiles that lie in the output: side by side in a row, or in rows below each other."""
    *_, height, width = (1, *pixels_of(conv))
    lanes = min(LANES, conv.out_block)
    if conv.out_block % lanes or conv.chunk_steps > LANES:
        return []
    found: list[_Choice] = []
    has_flat = len(conv.kernel) == 2 and conv.strides == (1, 1) and not conv.is_pointwise
    padded = _padded_pixels(conv) if has_flat else 0
    for oc_blocks in range(1, conv.out_blocks + 1):
        across = oc_blocks * conv.out_block // lanes
        if across >= TILES:
            break
        for rows in range(1, min(ROWS, max(width, padded)) + 1):
            for down in range(1, TILES):
                block = TileBlock(down, across, rows, lanes, conv.chunk_steps)
                if not block.fits:
                    break
                if down * rows <= padded and rows == ROWS:
                    found.append(_Choice(PixelTile(1, down * rows, oc_blocks), block, padded=True))
                if rows > width:
                    continue
                if down * rows <= width:
                    found.append(_Choice(PixelTile(1, down * rows, oc_blocks), block))
                elif down > 1 and down <= height:
                    found.append(_Choice(PixelTile(down, rows, oc_blocks), block))
                if 1 < down <= height and down * rows <= width:
                    found.append(_Choice(PixelTile(down, rows, oc_blocks), block))
    return found


def _key(choice: _Choice) -> tuple[bool, int, int, int, int]:
    pixels = choice.pixels
    return choice.padded, pixels.height, pixels.width, pixels.oc_blocks, choice.block.rows


def _key_of(config: Config) -> tuple[bool, int, int, int, int]:
    return (
        bool(config["padded"]),
        int(config["tile_height"]),
        int(config["tile_width"]),
        int(config["oc_blocks"]),
        int(config["tile_rows"]),
    )


def _space(conv: Convolution, kernel: Kernel, target: Target, found: Sequence[_Choice]) -> Space:
    best = min(found, key=lambda choice: _cycles(conv, choice, target))
    legal = {_key(choice) for choice in found}

    def reason(config: Config) -> str | None:
        _, height, width, oc_blocks, rows = _key_of(config)
        if _key_of(config) not in legal:
            return f"{height}x{width}x{oc_blocks} is no block of tiles of {rows} pixels that fits"
        return None

    weights = 2 * conv.out_blocks * conv.out_block * conv.reduced_channels * prod(conv.kernel)
    return Space(
        (
            Ordered("tile_height", tuple(sorted({c.pixels.height for c in found})), best.pixels.height),
            Ordered("tile_width", tuple(sorted({c.pixels.width for c in found})), best.pixels.width),
            Ordered("oc_blocks", tuple(sorted({c.pixels.oc_blocks for c in found})), best.pixels.oc_blocks),
            Ordered("tile_rows", tuple(sorted({c.block.rows for c in found})), best.block.rows),
            Choice("padded", (False, True), best.padded),
            Choice("order", ("weights", "pixels"), walk_order(conv, best.pixels, target)),
            Choice("prefetch", (False, True), weights > target.cache_bytes[1] // 2),
        ),
        reason,
    )


def _cycles(conv: Convolution, choice: _Choice, target: Target) -> float:
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
