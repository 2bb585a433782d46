"""Direct convolution into blocked output on CPUs: over 1 to 3 spatial axes, grouped or not.

The register tile is `tile_height x tile_width` output pixels by `oc_blocks` channel blocks. One step of
the reduction loads the weights of the channel blocks and multiplies them with one broadcast input
scalar a pixel. A 1x1 convolution without strides runs over the flattened pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import gcd, prod

from tcomp.relay.types import numpy_dtype
from tcomp.target.target import Target
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.convolution import Convolution, WeightPanels, dense_steps
from tcomp.tensor.epilogue import epilogue_fits, placeholder_index
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Choice, Config, Ordered, Space
from tcomp.tensor.loops import CACHE_LINE, Buffer, Expression, Statement, loop_nest, prefetch
from tcomp.tensor.pairs import as_pairs, multiplies_pairs, pair_sums
from tcomp.tensor.primitives import Tiles
from tcomp.tensor.register_tile import (
    FMA_LATENCY,
    LOAD_PORTS,
    Index,
    Point,
    Reduction,
    RegisterTile,
    tile_nest,
)
from tcomp.tensor.template import TEMPLATES, Scheduled, Template
from tcomp.tvm_api import tirx

OPERATORS = ("conv1d", "conv2d", "conv3d")
MAX_TILE_PIXELS = 28
MAX_OC_BLOCKS = 8
PREFETCH_STEPS = (0, 4, 8, 16, 32, 64)
_FAR_CHANNELS = 1.1
"""Times as long where the channels that follow each other in the reduction lie a whole image apart."""
PARTIAL_SUMS = (1, 2, 4, 8)
UNROLLED_PRODUCTS = 96
"""Multiplications that one iteration of the innermost loop has written out at most."""


@dataclass(frozen=True)
class _Tile:
    """The register tile: pixels (rows by columns) and channel blocks."""

    height: int
    width: int
    oc_blocks: int

    @property
    def pixels(self) -> int:
        return self.height * self.width


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
        tiles = list(_tiles(conv, target))
        best = min(tiles, key=lambda tile: _cycles(conv, tile, target))
        legal = set(tiles)

        def reason(config: Config) -> str | None:
            tile, sums = _tile_of(config), int(config.get("partial_sums", 1))
            if int(config["unroll"]) % sums:
                return f"{sums} partial sums do not share {config['unroll']} steps evenly"
            too_many = sums > 1 and _registers(conv, tile, target, sums) > target.vector_registers
            if tile not in legal or too_many:
                return (
                    f"register tile {tile.height}x{tile.width}x{tile.oc_blocks} breaks a row or a group, or "
                    f"needs more than {target.vector_registers} vector registers"
                )
            return None

        partial_sums = _partial_sums(conv, best, target)
        unroll = max(_unroll(conv, best, target), partial_sums)
        return Space(
            (
                Ordered("tile_height", tuple(sorted({t.height for t in tiles})), best.height),
                Ordered("tile_width", tuple(sorted({t.width for t in tiles})), best.width),
                Ordered("oc_blocks", tuple(sorted({t.oc_blocks for t in tiles})), best.oc_blocks),
                Choice("order", ("weights", "pixels"), _order(conv, best, target)),
                Ordered("unroll", _unrolls(conv), unroll),
                Choice("unroll_kernel", (False, True), False),
                Ordered("prefetch", PREFETCH_STEPS, 32),
                Ordered("partial_sums", (1,) if conv.pairs else PARTIAL_SUMS, partial_sums),
            ),
            reason,
            {"partial_sums": 1},
        )

    def estimate(self, kernel: Kernel, target: Target) -> float:
        conv = _convolution(kernel, target)
        cycles = conv.batch * min(_cycles(conv, tile, target) for tile in _tiles(conv, target))
        return cycles * (_FAR_CHANNELS if conv.in_block == 1 else 1.0)

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        """1. Pack weights and pad the input where necessary. 2. One nest over register tiles."""
        assert kernel.anchor is not None
        conv = _convolution(kernel, target)
        lanes = target.lanes(conv.accumulator)
        tile = _register_tile(conv, _tile_of(config), str(config["order"]), lanes)
        panels = WeightPanels(conv, tile.axes[1])
        weights = placeholder_index(kernel, kernel.anchor.inputs[1])
        constant = weights is not None and weights in kernel.constant_inputs
        packing = {weights: panels.packing} if constant and weights is not None else {}
        anchored = Anchored(kernel, packing)
        copies, data = conv.padded_input(anchored, lanes)
        if constant:
            packed = anchored.buffer_of(anchored.operands[1])
        else:
            pack, packed = panels.pack_in_kernel(anchored, lanes)
            copies += pack
        if conv.pairs:
            declaration, data = as_pairs(data, "data_pairs")
            copies = [*copies, declaration]
        reduction = _reduction(conv, data, packed, config)

        def finish(index: Sequence[Expression], value: Expression) -> Statement:
            return anchored.finish(_output_index(conv, index), value)

        return anchored.scheduled([*copies, tile_nest(tile, reduction, finish, anchored.threaded)])


def _convolution(kernel: Kernel, target: Target) -> Convolution:
    """The kernel's convolution, in pairs of input channels where the target multiplies pairs."""
    assert kernel.anchor is not None
    conv = Convolution.of(kernel.anchor)
    weights = placeholder_index(kernel, kernel.anchor.inputs[1])
    constant = weights is not None and weights in kernel.constant_inputs
    return conv.in_pairs() if constant and multiplies_pairs(target, conv.dtype) else conv


def _tile_of(config: Config) -> _Tile:
    return _Tile(int(config["tile_height"]), int(config["tile_width"]), int(config["oc_blocks"]))


def _pixels(conv: Convolution) -> tuple[int, ...]:
    """The output's spatial extents, flattened where the convolution does not look at neighbours."""
    return (prod(conv.out_size),) if conv.is_pointwise else conv.out_size


def _vectors(conv: Convolution, target: Target) -> int:
    """Vector registers of one channel block."""
    return conv.out_block // gcd(conv.out_block, target.lanes(conv.accumulator))


def _tiles(conv: Convolution, target: Target) -> Iterator[_Tile]:
    """Register tiles whose sums fit beside the weights of one step and a broadcast input."""
    *_, height, width = (1, *_pixels(conv))
    merged_outputs = conv.group_outputs * conv.merged_groups
    for oc_blocks in range(1, min(MAX_OC_BLOCKS, conv.out_blocks) + 1):
        if conv.merged_groups < conv.groups and merged_outputs % (oc_blocks * conv.out_block):
            continue
        for tile_width in range(1, min(MAX_TILE_PIXELS, width) + 1):
            heights = range(1, min(MAX_TILE_PIXELS // width, height) + 1) if tile_width == width else (1,)
            for tile_height in heights:
                tile = _Tile(tile_height, tile_width, oc_blocks)
                fits = _registers(conv, tile, target) <= target.vector_registers
                if fits or tile.pixels == oc_blocks == 1:
                    yield tile


def _registers(conv: Convolution, tile: _Tile, target: Target, partial_sums: int = 1) -> int:
    """Vector registers of the sums, the weights of one step and a broadcast input."""
    return (partial_sums * tile.pixels + 1) * tile.oc_blocks * _vectors(conv, target) + 1


def _partial_sums(conv: Convolution, tile: _Tile, target: Target) -> int:
    """How many sums of each element hide the latency of an addition, where a tile has half or less of those
    that it takes: outputs of one pixel and few channels."""
    sums, wanted = tile.pixels * tile.oc_blocks * _vectors(conv, target), FMA_LATENCY * target.fma_ports
    if 2 * sums > wanted or conv.pairs:
        return 1
    room = target.vector_registers
    fitting = [n for n in PARTIAL_SUMS if n in _unrolls(conv) and _registers(conv, tile, target, n) <= room]
    return next((n for n in fitting if n * sums >= wanted), max(fitting, default=1))


def _cycles(conv: Convolution, tile: _Tile, target: Target) -> float:
    """Estimated cycles of the convolution of one image.

    A step is bound by FMA ports, FMA latency or load ports. Every load, every instruction and every line of
    weights from beyond the first-level cache costs a little more, though out of order and prefetched: where
    another thread shares the core, tiles of more products a load keep more of their speed.
    """
    *outer, height, width = (1, *_pixels(conv))
    vectors = _vectors(conv, target) * tile.oc_blocks
    steps = prod(dense_steps(conv))
    panel = steps * vectors * target.vector_bits // 8
    far = vectors if panel > target.cache_bytes[0] // 2 else 0

    def one_tile(pixels: int) -> float:
        multiply = max(vectors * pixels / target.fma_ports, FMA_LATENCY)
        loads = vectors + pixels
        instructions = vectors * pixels + loads + vectors
        step = max(multiply, loads / LOAD_PORTS) + 0.1 * loads + 0.02 * instructions + 0.12 * far
        return steps * step + vectors * pixels + 10 if pixels else 0.0

    if tile.height > 1:
        rows, rest = divmod(height, tile.height)
        row = rows * one_tile(tile.pixels) + one_tile(rest * width)
    else:
        tiles, rest = divmod(width, tile.width)
        row = height * (tiles * one_tile(tile.pixels) + one_tile(rest))
    return prod(outer) * row * -(-conv.out_blocks // tile.oc_blocks)


def _order(conv: Convolution, tile: _Tile, target: Target) -> str:
    """Which operand stays in the cache while the other one is walked: the operand walked anew for every
    tile of the other should be the smaller one."""
    itemsize = target.vector_bits // 8 // target.lanes(conv.accumulator)
    weights = conv.out_blocks * conv.out_block * prod(dense_steps(conv)) * itemsize
    pixels = prod(conv.in_size) * conv.in_channels * itemsize
    return "pixels" if weights < pixels and weights <= target.cache_bytes[1] // 2 else "weights"


def _unrolls(conv: Convolution) -> tuple[int, ...]:
    return tuple(u for u in (1, 2, 4, 8) if conv.chunk_steps % u == 0)


def _unroll(conv: Convolution, tile: _Tile, target: Target) -> int:
    """Steps written out. Below several taps the loop over a chunk's channels is short, and its end is
    mispredicted: there fewer iterations pay; the deeper loops of a 1x1 convolution gain nothing."""
    if prod(conv.kernel) == 1:
        return 1
    step = tile.pixels * tile.oc_blocks * _vectors(conv, target)
    return max(u for u in _unrolls(conv) if u == 1 or u * step <= UNROLLED_PRODUCTS)


def _register_tile(conv: Convolution, tile: _Tile, order: str, lanes: int) -> RegisterTile:
    *outer, width = _pixels(conv)
    sizes = [1] * len(outer) + [tile.width]
    if outer:
        sizes[-2] = tile.height
    spatial = [Tiles.with_rest(extent, size) for extent, size in zip((*outer, width), sizes, strict=True)]
    axes = [
        Tiles.of(conv.batch, 1),
        Tiles.of(conv.out_blocks, tile.oc_blocks),
        *spatial,
        Tiles.of(conv.out_block, conv.out_block),
    ]
    pixels = list(range(2, 2 + len(spatial)))
    walk = [0, 1, *pixels] if order == "weights" else [0, *pixels, 1]
    return RegisterTile.of(axes, [*walk, len(axes) - 1], lanes, inside=[0, *pixels, 1])


def _reduction(conv: Convolution, data: Buffer, weights: Buffer, config: Config) -> Reduction:
    steps = dense_steps(conv)
    pairs = pair_sums(conv.dtype) if conv.pairs else None
    written = [1] * len(steps)
    written[-1] = int(config["unroll"])
    if config["unroll_kernel"]:
        written[-2] = steps[-2]

    def update(total: Expression, point: Point, step: Index) -> Expression:
        n, _, *pixel, _ = point.index
        chunk, *taps, channel = step
        source = _first_source(conv, point.bases[1], chunk) + channel
        at = conv.unflatten(*pixel) if conv.is_pointwise else conv.position(pixel, taps)
        lane = point.places[1] * conv.out_block + point.places[-1]
        weight = tirx.BufferLoad(weights, [point.tiles[1], *step, lane])
        value, wide = conv.read(data, n, source, at), conv.accumulator
        if pairs is not None:
            return pairs.multiply_add(total, value, weight)
        return total + value.astype(wide) * weight.astype(wide)

    zero, distance = tirx.const(0, conv.accumulator), int(config["prefetch"])
    short = None if pairs is None else pairs.short
    ahead = _Ahead(conv, data, weights, distance) if distance else None
    sums = int(config.get("partial_sums", 1))
    return Reduction(steps, tuple(written), conv.accumulator, zero, update, short, ahead, sums)


def _first_source(conv: Convolution, out_block: Expression, chunk: Expression) -> Expression:
    """The first input channel, or pair of channels, that block `out_block` reads in a chunk."""
    first = conv.first_input(out_block * conv.out_block)
    return (first // 2 if conv.pairs else first) + chunk * conv.chunk_steps


@dataclass(frozen=True)
class _Ahead:
    """Fetches weights `distance` steps before they are multiplied, and one chunk of input channels before
    it is read: both lie in memory in the order of the steps, but in runs too short for hardware to see."""

    conv: Convolution
    data: Buffer
    weights: Buffer
    distance: int

    def __call__(self, tile: RegisterTile, first: Point, step: Index) -> list[Statement]:
        return self._inputs(tile, first, step[0]) if len(step) == 1 else self._weights(first, step)

    def _weights(self, first: Point, step: Index) -> list[Statement]:
        """The lines of one step; at the end of a panel those of the next."""
        width = int(self.weights.shape[-1])
        line = CACHE_LINE // numpy_dtype(str(self.weights.dtype)).itemsize
        return [
            prefetch(self.weights, [first.tiles[1], *step, lane + self.distance * width])
            for lane in range(0, width, line)
        ]

    def _inputs(self, tile: RegisterTile, first: Point, chunk: Expression) -> list[Statement]:
        """The pixels of the tile in the chunk after `chunk`."""
        conv = self.conv
        if conv.reduction_chunk < conv.in_block or conv.in_block == 1:
            return []
        n, block, *pixel, _ = first.bases
        source = _first_source(conv, block, tirx.min(chunk + 1, conv.reduction_chunks - 1))
        sizes = [t.size for t in tile.axes[2:-1]]
        corner = pixel if conv.is_pointwise else conv.position(pixel, [0] * len(pixel))
        axes = zip(sizes, conv.strides, conv.kernel, conv.dilation, strict=True)
        moves = [range(sizes[0])] if conv.is_pointwise else [_reach(*axis) for axis in axes]
        # One fetch a line: pixels of a row lie side by side.
        pixel_bytes = int(self.data.shape[-1]) * numpy_dtype(str(self.data.dtype)).itemsize
        if moves[-1].step == 1:
            moves[-1] = moves[-1][:: max(1, CACHE_LINE // pixel_bytes)]

        def fetch(move: Sequence[Expression]) -> Statement:
            at = [c + m for c, m in zip(corner, move, strict=True)]
            return prefetch(
                self.data, conv.place(n, source, conv.unflatten(*at) if conv.is_pointwise else at)
            )

        # Loops, not a statement for every pixel: those took as long to compile as the products.
        return [loop_nest(moves, fetch)]


def _reach(places: int, stride: int, taps: int, dilation: int) -> range:
    """Offsets that `places` neighbouring outputs read along an axis; all between them if they are uneven."""
    last = (places - 1) * stride + (taps - 1) * dilation
    return range(0, last + 1, stride if taps == 1 else dilation if places == 1 else 1)


def _output_index(conv: Convolution, index: Sequence[Expression]) -> list[Expression]:
    n, block, *pixel, lane = index
    return [n, block, *(conv.unflatten(*pixel) if conv.is_pointwise else pixel), lane]


TEMPLATES.register(Conv2dDirect.name, Conv2dDirect())
