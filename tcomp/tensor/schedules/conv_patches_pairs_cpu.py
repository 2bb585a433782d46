"""Convolution of few plain channels by products of bfloat16 pairs: the first layer of an image network.

The kernel's float32 input is rounded and copied once into rows of pixels, each of which has its channels in
pairs side by side (`tcomp.tensor.cpu.patches`); weights are rounded at compile time. What follows is direct
convolution of a block of channels, as in `conv2d_cpu`.
"""

from __future__ import annotations

from collections.abc import Sequence

from tcomp.relay.types import Array, numpy_dtype
from tcomp.target.target import Target
from tcomp.tensor.amx import DTYPE
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.convolution import Convolution
from tcomp.tensor.cpu.channel_panels import packed_by_blocks
from tcomp.tensor.cpu.direct_convolution import (
    DirectProduct,
    PixelTile,
    direct_cycles,
    is_far,
    pixel_tiles,
    register_tile,
)
from tcomp.tensor.cpu.patches import Patches, has_patches, multiplies_patches
from tcomp.tensor.cpu.register_tile import Index, Point, RegisterTile
from tcomp.tensor.cpu.weight_panels import WeightPanels
from tcomp.tensor.epilogue import epilogue_fits, placeholder_index
from tcomp.tensor.groups import BFLOAT16_PAIRS, WORD, ways_to_sum
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Space
from tcomp.tensor.loops import (
    Buffer,
    Expression,
    Statement,
    loop,
    parallel,
)
from tcomp.tensor.schedules.conv2d_cpu import Conv2dDirect, direct_nest, direct_space, tile_of
from tcomp.tensor.template import (
    TEMPLATES,
    PackedBy,
    Packing,
    Scheduled,
    Template,
)


class ConvPatchesPairsCpu(Template):
    """Convolution of few plain channels by products of pairs; see the module's text."""

    name = "conv_patches_pairs_cpu"
    alternative_to = Conv2dDirect.name

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        anchor = kernel.anchor
        if not multiplies_patches(target) or BFLOAT16_PAIRS not in ways_to_sum(target, DTYPE):
            return False
        if anchor is None or not has_patches(anchor):
            return False
        if anchor.attrs["multiply_as"] != DTYPE or not epilogue_fits(kernel):
            return False
        return placeholder_index(kernel, anchor.inputs[1]) in kernel.constant_inputs

    def packings(self, kernel: Kernel, target: Target) -> PackedBy:
        """Panels of as many channel blocks as the register tile has."""
        patches = _patches(kernel)
        conv = patches.blocked(BFLOAT16_PAIRS)
        copied = patches.copy_cycles(conv.in_size[0])

        def cycles(tiles: Sequence[PixelTile]) -> float:
            return conv.batch * (min(direct_cycles(conv, tile, target) for tile in tiles) + copied)

        return packed_by_blocks(
            list(pixel_tiles(conv, target)), lambda own: direct_space(conv, target, own).default, cycles
        )

    def estimate(self, kernel: Kernel, target: Target) -> float:
        return min(packed.cycles for packed in self.packings(kernel, target).values())

    def space(self, kernel: Kernel, target: Target) -> Space:
        conv = _patches(kernel).blocked(BFLOAT16_PAIRS)
        return direct_space(conv, target, list(pixel_tiles(conv, target)))

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        """1. Copy the input. 2. One nest over register tiles."""
        assert kernel.anchor is not None
        patches = _patches(kernel)
        conv = patches.blocked(BFLOAT16_PAIRS)
        passes, lanes = int(config["passes"]), target.lanes(conv.sum_dtype)
        tile = register_tile(conv, tile_of(config), str(config["order"]), lanes, with_rest=passes == 1)
        constant = placeholder_index(kernel, kernel.anchor.inputs[1])
        assert constant is not None
        anchored = Anchored(kernel, {constant: _rounded(WeightPanels(conv, tile.axes[1]))})
        panels = anchored.buffer_of(anchored.operands[1])
        copy, data = _copy(patches, conv, anchored)
        product = DirectProduct(conv, data, panels, lambda index: _in_rows(index, patches.words))
        distance, unroll = int(config["prefetch"]), int(config["unroll"])
        far = distance > 0 and is_far(conv, int(config["oc_blocks"]), target)

        def ahead(tile: RegisterTile, first: Point, step: Index) -> list[Statement]:
            return product.weights_ahead(first, step, distance) if far and len(step) > 1 else []

        reduction = product.reduction(tile, 1, unroll, bool(config["unroll_kernel"]), ahead)

        nest = direct_nest(conv, tile, reduction, passes, anchored)
        return anchored.scheduled([copy, nest], tile.disjoint)


def _patches(kernel: Kernel) -> Patches:
    assert kernel.anchor is not None
    return Patches(Convolution.of(kernel.anchor))


def _rounded(panels: WeightPanels) -> Packing:
    """Panels of weights in bfloat16, of weights in float32."""
    packing = panels.packing

    def pack(weights: Array) -> Array:
        return packing.pack(weights.astype(numpy_dtype(DTYPE)))

    return Packing(packing.type, pack)


def _copy(patches: Patches, conv: Convolution, anchored: Anchored) -> tuple[Statement, Buffer]:
    """What copies the padded input of all images, and the copy: `[image, row, word]`."""
    height = conv.in_size[0]
    copy = anchored.add_scratch((conv.batch, height, patches.row_words), WORD, "patches")
    make = parallel if anchored.threaded else loop

    def row(number: Expression) -> Statement:
        image, y = number // height, number % height
        return patches.copy_row(anchored, image, y, copy, [image, y])

    return make(conv.batch * height, row, "row"), copy


def _in_rows(index: Index, words: int) -> Index:
    """Where the copy has word `index[-1]` of a pixel."""
    image, _, y, x, word = index
    return [image, y, x * words + word]


TEMPLATES.register(ConvPatchesPairsCpu.name, ConvPatchesPairsCpu())
