"""Direct convolution into blocked output on CPUs: over 1 to 3 spatial axes, grouped or not.

The register tile is `tile_height x tile_width` output pixels by `oc_blocks` channel blocks. One step of
the reduction loads the weights of the channel blocks and multiplies them with one broadcast input
scalar a pixel. A 1x1 convolution without strides runs over the flattened pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import gcd, prod

from tcomp.target.target import Target
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.convolution import Convolution, dense_steps
from tcomp.tensor.cpu.channel_panels import packed_by_blocks
from tcomp.tensor.cpu.direct_convolution import (
    DirectProduct,
    PixelTile,
    copy_cycles,
    default_passes,
    direct_cycles,
    input_phases,
    inputs_are_far,
    is_far,
    pixel_tiles,
    place_in_phases,
    register_tile,
    registers_of,
    row_lanes,
    starts_from_addend,
    together,
    vectors_of,
    walk_order,
    weight_steps,
)
from tcomp.tensor.cpu.register_tile import FMA_LATENCY, Index, Point, RegisterTile
from tcomp.tensor.cpu.tile_sums import Reduction, passes_nest, tile_nest
from tcomp.tensor.cpu.weight_panels import WeightPanels
from tcomp.tensor.epilogue import epilogue_fits, placeholder_index
from tcomp.tensor.groups import ways_to_sum
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Choice, Config, Ordered, Space
from tcomp.tensor.loops import Expression, Statement
from tcomp.tensor.template import TEMPLATES, PackedBy, Scheduled, Template

OPERATORS = ("conv1d", "conv2d", "conv3d")
PREFETCH_STEPS = (0, 4, 8, 16, 32, 64)
_FAR_CHANNELS = 1.1
"""Times as long where the channels that follow each other in the reduction lie a whole image apart."""
PARTIAL_SUMS = (1, 2, 4, 8)
PASSES = (1, 2, 4, 8, 16)
UNROLLED_PRODUCTS = 96
"""Multiplications that one iteration of the innermost loop has written out at most."""


class Conv2dDirect(Template):
    """Direct convolution, register tiled; see the module's text."""

    name = "conv_direct_cpu"
    version = 2

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        anchor = kernel.anchor
        if anchor is None or anchor.op not in OPERATORS or not epilogue_fits(kernel):
            return False
        return Convolution.of(anchor).out_block > 1

    def space(self, kernel: Kernel, target: Target) -> Space:
        conv = _convolution(kernel, target)
        return direct_space(conv, target, list(pixel_tiles(conv, target)))

    def packings(self, kernel: Kernel, target: Target) -> PackedBy:
        """Panels of as many channel blocks as the register tile has."""
        conv = _convolution(kernel, target)
        tiles = list(pixel_tiles(conv, target))
        group = None if conv.sums is None else (conv.sums.size, conv.sums.dtype)

        by_blocks = packed_by_blocks(
            tiles, lambda own: direct_space(conv, target, own).default, lambda own: _cycles(conv, own, target)
        )
        return {(group, blocks): packed for blocks, packed in by_blocks.items()}

    def estimate(self, kernel: Kernel, target: Target) -> float:
        conv = _convolution(kernel, target)
        cycles = _cycles(conv, pixel_tiles(conv, target), target)
        return cycles * (_FAR_CHANNELS if conv.in_block == 1 else 1.0)

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        """1. Pack weights and pad the input where necessary. 2. One nest over register tiles."""
        assert kernel.anchor is not None
        conv = _convolution(kernel, target)
        lanes = target.lanes(conv.sum_dtype)
        passes = int(config["passes"])
        tile = register_tile(conv, tile_of(config), str(config["order"]), lanes, with_rest=passes == 1)
        panels = WeightPanels(conv, tile.axes[1])
        weights = placeholder_index(kernel, kernel.anchor.inputs[1])
        constant = weights is not None and weights in kernel.constant_inputs
        packing = {weights: panels.packing} if constant and weights is not None else {}
        with_addends = starts_from_addend(conv, target)
        anchored = Anchored(kernel, packing, with_addends=with_addends)
        phases = input_phases(conv, target)
        copies, data = conv.padded_input(anchored, lanes, phases)
        if constant:
            packed = anchored.buffer_of(anchored.operands[1])
        else:
            pack, packed = panels.pack_in_kernel(anchored, lanes)
            copies += pack
        if conv.sums is not None:
            declaration, data = conv.sums.view(data, "data_groups")
            copies = [*copies, declaration]

        def start(index: Index) -> Expression:
            return anchored.start(output_index(conv, index))

        product = DirectProduct(conv, data, packed, place_in_phases(phases), phases)
        reduction = direct_reduction(product, tile, config, target, start if with_addends else None)

        nest = direct_nest(conv, tile, reduction, passes, anchored)
        return anchored.scheduled([*copies, nest], tile.disjoint)


def direct_nest(
    conv: Convolution, tile: RegisterTile, reduction: Reduction, passes: int, anchored: Anchored
) -> Statement:
    """The loops around register tiles, whose sums go to the kernel's epilogue after so many `passes`."""

    def finish(index: Index, value: Expression) -> Statement:
        return anchored.finish(output_index(conv, index), value)

    if passes == 1:
        return tile_nest(tile, reduction, finish, anchored.threaded)
    return passes_nest(tile, reduction, finish, anchored.threaded, 2, reduction.extents[0] // passes)


def direct_space(conv: Convolution, target: Target, tiles: Sequence[PixelTile]) -> Space:
    """The knobs of register tiles out of `tiles`."""
    best = min(tiles, key=lambda tile: direct_cycles(conv, tile, target))
    legal = set(tiles)

    def reason(config: Config) -> str | None:
        tile, sums = tile_of(config), int(config["partial_sums"])
        if int(config["passes"]) > 1 and config["order"] != "weights":
            return "passes are over the weights of a panel: they need the order `weights`"
        if int(config["unroll"]) % sums:
            return f"{sums} partial sums do not share {config['unroll']} steps evenly"
        if sums > 1 and int(config["passes"]) > 1:
            return f"{sums} partial sums are of a single pass"
        too_many = sums > 1 and registers_of(conv, tile, target, sums) > target.vector_registers
        if tile not in legal or too_many:
            return (
                f"register tile {tile.height}x{tile.width}x{tile.oc_blocks} breaks a row or a group, or "
                f"needs more than {target.vector_registers} vector registers"
            )
        return None

    partial_sums = _partial_sums(conv, best, target)
    order = walk_order(conv, best, target)
    passes = default_passes(conv, best, target, _passes(conv)) if order == "weights" else 1
    unroll = max(_unroll(conv, best, target), together(conv, target), partial_sums)
    written_row = row_lanes(conv, target) > 1 or input_phases(conv, target) > 1
    return Space(
        (
            Ordered("tile_height", tuple(sorted({t.height for t in tiles})), best.height),
            Ordered("tile_width", tuple(sorted({t.width for t in tiles})), best.width),
            Ordered("oc_blocks", tuple(sorted({t.oc_blocks for t in tiles})), best.oc_blocks),
            Choice("order", ("weights", "pixels"), order),
            Ordered("unroll", _unrolls(conv), unroll),
            Choice("unroll_kernel", (False, True), written_row),
            Ordered("prefetch", PREFETCH_STEPS, 32),
            Ordered("partial_sums", PARTIAL_SUMS if conv.sums is None else (1,), partial_sums),
            Choice("next_panel", (False, True), not target.by_lane),
            Ordered("passes", _passes(conv), passes),
        ),
        reason,
        {"partial_sums": 1, "next_panel": False, "passes": 1},
    )


def _convolution(kernel: Kernel, target: Target) -> Convolution:
    """The kernel's convolution, in groups of input channels where the target multiplies those faster."""
    assert kernel.anchor is not None
    conv = Convolution.of(kernel.anchor)
    weights = placeholder_index(kernel, kernel.anchor.inputs[1])
    constant = weights is not None and weights in kernel.constant_inputs
    return conv.in_groups(ways_to_sum(target, conv.dtype)) if constant else conv


def _cycles(conv: Convolution, tiles: Iterable[PixelTile], target: Target) -> float:
    """Estimated cycles with the best of `tiles`."""
    products = min(direct_cycles(conv, tile, target) for tile in tiles)
    delay = 1 if conv.sums is None else conv.sums.delay
    return conv.batch * (delay * products + copy_cycles(conv, target))


def tile_of(config: Config) -> PixelTile:
    """The register tile that `config` names."""
    return PixelTile(int(config["tile_height"]), int(config["tile_width"]), int(config["oc_blocks"]))


def _partial_sums(conv: Convolution, tile: PixelTile, target: Target) -> int:
    """How many sums of each element hide the latency of an addition, where a tile has half or less of those
    that it takes: outputs of one pixel and few channels."""
    sums, wanted = tile.pixels * tile.oc_blocks * vectors_of(conv, target), FMA_LATENCY * target.fma_ports
    if 2 * sums > wanted or conv.sums is not None:
        return 1
    room, unrolls = target.vector_registers, _unrolls(conv)
    fitting = [n for n in PARTIAL_SUMS if n in unrolls and registers_of(conv, tile, target, n) <= room]
    return next((n for n in fitting if n * sums >= wanted), max(fitting, default=1))


def _passes(conv: Convolution) -> tuple[int, ...]:
    return tuple(p for p in PASSES if dense_steps(conv)[0] % p == 0)


def _unrolls(conv: Convolution) -> tuple[int, ...]:
    steps, chunks = conv.chunk_steps, conv.reduction_chunks
    dense = prod(conv.kernel) == 1  # Chunks then follow each other in one loop.
    return tuple(
        u for u in (1, 2, 4, 8) if steps % u == 0 or (dense and u % steps == 0 and chunks % (u // steps) == 0)
    )


def _unroll(conv: Convolution, tile: PixelTile, target: Target) -> int:
    """Steps written out. Below several taps the loop over a chunk's channels is short, and its end is
    mispredicted: there fewer iterations pay; the deeper loops of a 1x1 convolution gain nothing."""
    if prod(conv.kernel) == 1:
        return max(_unrolls(conv)) if together(conv, target) > 1 else 1
    step = tile.pixels * tile.oc_blocks * vectors_of(conv, target)
    return max(u for u in _unrolls(conv) if u == 1 or u * step <= UNROLLED_PRODUCTS)


def direct_reduction(
    product: DirectProduct,
    tile: RegisterTile,
    config: Config,
    target: Target,
    start: Callable[[Index], Expression] | None,
) -> Reduction:
    """The sums of `tile` as `config` has them."""
    distance, unroll, passes = (int(config[name]) for name in ("prefetch", "unroll", "passes"))
    steps = gcd(together(product.conv, target), unroll)
    far = is_far(product.conv, int(config["oc_blocks"]), target)
    far_inputs = inputs_are_far(product.conv, target)
    next_panel = far and bool(config["next_panel"]) and config["order"] == "weights"

    def ahead(tile: RegisterTile, first: Point, step: Index) -> list[Statement]:
        if len(step) == 1:
            fetches = far_inputs or steps == 1
            return product.inputs_ahead(tile, first, step[0], within=steps == 1) if fetches else []
        near = product.weights_ahead(first, step, distance, steps) if far else []
        return [*near, *product.next_pass_ahead(tile, first, step, passes)] if next_panel else near

    return product.reduction(
        tile,
        steps,
        unroll,
        bool(config["unroll_kernel"]),
        ahead if distance else None,
        int(config["partial_sums"]),
        row_lanes(product.conv, target) if config["unroll_kernel"] and int(config["tile_height"]) == 1 else 1,
        weight_steps(product.conv, tile_of(config), target, int(config["partial_sums"]), steps),
        start,
    )


def output_index(conv: Convolution, index: Sequence[Expression]) -> list[Expression]:
    """The output's index of an element of the register tiles."""
    n, block, *pixel, lane = index
    return [n, block, *(conv.unflatten(*pixel) if conv.is_pointwise else pixel), lane]


TEMPLATES.register(Conv2dDirect.name, Conv2dDirect())
