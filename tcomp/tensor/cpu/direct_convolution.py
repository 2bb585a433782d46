"""Direct convolution into blocked output: register tiles, their cost, their products.

A register tile is pixels by channel blocks. One step of the reduction loads the weights of the channel blocks
and multiplies them with one broadcast input scalar a pixel. A 1x1 convolution without strides runs over the
flattened pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import gcd, prod

from tcomp.relay.types import numpy_dtype
from tcomp.target.target import Target
from tcomp.tensor.convolution import Convolution, dense_steps
from tcomp.tensor.cpu.lane_factors import LaneFactors, RowFactors, WeightRows
from tcomp.tensor.cpu.primitives import Tiles
from tcomp.tensor.cpu.register_tile import FMA_LATENCY, Index, Point, RegisterTile
from tcomp.tensor.cpu.streams import LANES, has_streams, registers_of_loads, steps_together
from tcomp.tensor.cpu.tile_sums import Reduction
from tcomp.tensor.loops import (
    CACHE_LINE,
    Buffer,
    Expression,
    Statement,
    loop_nest,
    prefetch,
    prefetch_share,
)
from tcomp.tvm_api import tirx

MAX_TILE_PIXELS = 28
MAX_OC_BLOCKS = 8
CROWDED = 1.3
"""Times as long where a tile takes registers that it should leave (`Target.spare_registers`)."""

FAR_LINE = 0.4
"""Cycles that a line of weights from the second-level cache adds to a step."""


@dataclass(frozen=True)
class PixelTile:
    """The register tile: pixels (rows by columns) and channel blocks."""

    height: int
    width: int
    oc_blocks: int

    @property
    def pixels(self) -> int:
        return self.height * self.width


def pixels_of(conv: Convolution) -> tuple[int, ...]:
    """The output's spatial extents, flattened where the convolution does not look at neighbours."""
    return (prod(conv.out_size),) if conv.is_pointwise else conv.out_size


def vectors_of(conv: Convolution, target: Target) -> int:
    """Vector registers of one channel block."""
    return conv.out_block // gcd(conv.out_block, target.lanes(conv.sum_dtype))


def pixel_tiles(conv: Convolution, target: Target) -> Iterator[PixelTile]:
    """Register tiles whose sums fit beside the weights of one step and a broadcast input."""
    *_, height, width = (1, *pixels_of(conv))
    merged_outputs = conv.group_outputs * conv.merged_groups
    for oc_blocks in range(1, min(MAX_OC_BLOCKS, conv.out_blocks) + 1):
        if conv.merged_groups < conv.groups and merged_outputs % (oc_blocks * conv.out_block):
            continue
        for tile_width in range(1, min(MAX_TILE_PIXELS, width) + 1):
            heights = range(1, min(MAX_TILE_PIXELS // width, height) + 1) if tile_width == width else (1,)
            for tile_height in heights:
                tile = PixelTile(tile_height, tile_width, oc_blocks)
                fits = registers_of(conv, tile, target) <= target.vector_registers
                whole = tile_width % conv.side == 0
                if whole and (fits or (tile.pixels == conv.side and oc_blocks == 1)):
                    yield tile


def together(conv: Convolution, target: Target) -> int:
    """Steps whose inputs are loaded as one vector a pixel: 1 where each is broadcast from memory."""
    return (
        gcd(conv.chunk_steps, target.lanes(conv.dtype)) if target.takes_any_lane and conv.sums is None else 1
    )


def weight_steps(
    conv: Convolution, tile: PixelTile, target: Target, partial_sums: int = 1, inputs: int | None = None
) -> int:
    """Steps whose weights are one load, of several registers; 0 where each vector of weights is one.

    They divide the steps whose `inputs` are one load: by default `together`.
    """
    if not has_streams(target, conv.dtype) or conv.sums is not None or conv.out_block % LANES:
        return 0
    own = _weights(conv, tile, target)
    free = target.vector_registers - registers_of(conv, tile, target, partial_sums) + own
    steps = steps_together(own, together(conv, target) if inputs is None else inputs, free)
    return steps if steps * own > 1 else 0


def input_phases(conv: Convolution, target: Target) -> int:
    """Phases of a padded copy of the input: every so many pixels of a row are what neighbouring outputs read,
    and are then one load of several registers."""
    overlap = conv.is_padded and conv.kernel[-1] > 1
    return conv.strides[-1] if overlap and in_streams(conv, target) else 1


def place_in_phases(phases: int) -> Callable[[Index], Index]:
    """Where an input in `phases` has what a padded one has at an index."""

    def place(index: Index) -> Index:
        *outer, column, lane = index
        return [*outer, column % phases, column // phases, lane]

    return place if phases > 1 else list


def in_streams(conv: Convolution, target: Target) -> bool:
    """Whether inputs that lie side by side are one load of several registers."""
    whole = together(conv, target) == LANES and conv.out_block % LANES == 0
    return has_streams(target, conv.dtype) and conv.sums is None and whole


def row_lanes(conv: Convolution, target: Target) -> int:
    """Neighbours of a row that are one load of the inputs for all taps of a row: 1 where none are."""
    overlap = conv.strides[-1] < conv.kernel[-1] and conv.dilation[-1] == 1
    plain = conv.in_block == conv.reduction_chunk == 1
    return target.lanes(conv.dtype) if target.takes_any_lane and overlap and plain else 1


def _inputs(conv: Convolution, tile: PixelTile, target: Target) -> int:
    """Registers of inputs that are loaded together."""
    lanes = row_lanes(conv, target)
    if lanes > 1:
        row = (tile.width - 1) * conv.strides[-1] + conv.kernel[-1]
        return tile.height * -(-row // lanes)
    return tile.pixels if together(conv, target) > 1 else 1


def _weights(conv: Convolution, tile: PixelTile, target: Target) -> int:
    """Registers of the weights of one step."""
    return tile.oc_blocks * vectors_of(conv, target) * conv.side


def registers_of(conv: Convolution, tile: PixelTile, target: Target, partial_sums: int = 1) -> int:
    """Vector registers of the sums, the weights of one step and a broadcast input, or the inputs of several
    steps."""
    sums = partial_sums * tile.pixels * tile.oc_blocks * vectors_of(conv, target)
    return sums + _weights(conv, tile, target) + _inputs(conv, tile, target)


def step_cycles(
    target: Target,
    pixels: int,
    vectors: int,
    inputs: float,
    weights: int,
    far: bool,
    streamed: float | None = None,
    is_spread: bool = False,
) -> float:
    """Estimated cycles of one step of a register tile of `pixels` by `vectors`, with so many loads of inputs
    and of weights, these from beyond the first-level cache where they are `far`.

    It is bound by FMA ports, FMA latency or load ports. Every load, every instruction and every line of far
    weights costs a little more, though out of order and prefetched: where another thread shares the core,
    tiles of more products a load keep more of their speed. On cores in order each load delays products, half
    as long where inputs are numbers, each `is_spread` over a vector. Where loads are of several registers,
    `streamed` instructions load and count.
    """
    multiply, loads = max(vectors * pixels / target.fma_ports, FMA_LATENCY), weights + inputs
    instructions = vectors * pixels + (loads + vectors if streamed is None else streamed)
    a_load = 0.1 if streamed is None else 0.02
    delay = target.load_cycles * (weights + inputs / (2 if is_spread else 1))
    each = 0.1 if target.takes_any_lane else 0.02
    step = max(multiply, loads / target.load_ports) + max(a_load * loads, delay) + each * instructions
    lines = weights * target.vector_bits / 8 / CACHE_LINE
    return step + FAR_LINE * lines if far else step


def direct_cycles(conv: Convolution, tile: PixelTile, target: Target) -> float:
    """Estimated cycles of the convolution of one image."""
    *outer, height, width = (1, *pixels_of(conv))
    vectors = vectors_of(conv, target) * tile.oc_blocks
    steps = prod(dense_steps(conv))
    inputs = (
        _inputs(conv, tile, target) / tile.pixels / conv.kernel[-1]
        if row_lanes(conv, target) > 1
        else 1 / together(conv, target) / conv.side
    )
    room = target.vector_registers - target.spare_registers
    crowded = CROWDED if registers_of(conv, tile, target) > room else 1.0
    weights = _weights(conv, tile, target)
    far = panel_bytes(conv, tile.oc_blocks, target) > target.cache_bytes[0]

    streamed = weight_steps(conv, tile, target) > 0
    is_spread = row_lanes(conv, target) == together(conv, target) == 1

    def one_tile(pixels: int) -> float:
        counted = _stream_instructions(conv, tile, pixels, target) if streamed else None
        step = step_cycles(target, pixels, vectors, pixels * inputs, weights, far, counted, is_spread)
        return crowded * (steps * step + vectors * pixels + 10) if pixels else 0.0

    if tile.height > 1:
        rows, rest = divmod(height, tile.height)
        row = rows * one_tile(tile.pixels) + one_tile(rest * width)
    else:
        tiles, rest = divmod(width, tile.width)
        row = height * (tiles * one_tile(tile.pixels) + one_tile(rest))
    return prod(outer) * row * -(-conv.out_blocks // tile.oc_blocks)


def _stream_instructions(conv: Convolution, tile: PixelTile, pixels: int, target: Target) -> float:
    """Instructions of a step that load, and count, for a tile or a rest of `pixels`."""
    weights = _weights(conv, tile, target)
    if row_lanes(conv, target) > 1:
        taps = conv.kernel[-1]
        return len(registers_of_loads(weights)) + (_inputs(conv, tile, target) / 2 + 5) / taps
    side_by_side = tile.height == 1 and (
        conv.is_pointwise or conv.strides[-1] in (1, input_phases(conv, target))
    )
    address = 0 if conv.is_pointwise else 1
    inputs = len(registers_of_loads(pixels)) + address if side_by_side else pixels
    steps = max(1, weight_steps(conv, tile, target))
    return inputs / LANES + len(registers_of_loads(steps * weights)) / steps + 0.5


def copy_cycles(conv: Convolution, target: Target) -> float:
    """Estimated cycles of the padded copy of an image, if there is one: its bytes come and go."""
    if not conv.is_padded:
        return 0.0
    elements = conv.in_channels * prod(conv.needed)
    second_level, last_level, _ = target.bytes_per_cycle
    rate = last_level if inputs_are_far(conv, target) else second_level
    moving = 2 * elements * numpy_dtype(conv.dtype).itemsize / rate
    return max(3.0 * elements / target.lanes(conv.dtype), moving)


def panel_bytes(conv: Convolution, oc_blocks: int, target: Target) -> int:
    """Of the weights of so many channel blocks."""
    vectors = vectors_of(conv, target) * oc_blocks
    return prod(dense_steps(conv)) * vectors * target.vector_bits // 8


def is_far(conv: Convolution, oc_blocks: int, target: Target) -> bool:
    """Whether the weights of so many channel blocks are too large for the first-level cache."""
    return panel_bytes(conv, oc_blocks, target) > target.cache_bytes[0] // 2


def starts_from_addend(conv: Convolution, target: Target) -> bool:
    """Whether sums start from what is added to them first: an instruction less for each vector of outputs."""
    return target.by_lane and conv.dtype == conv.accumulator


def inputs_are_far(conv: Convolution, target: Target) -> bool:
    """Whether an image is too large for the second-level cache, whose delay other work hides."""
    nbytes = prod(conv.in_size) * conv.in_channels * numpy_dtype(conv.dtype).itemsize
    return nbytes > target.cache_bytes[1]


def walk_order(conv: Convolution, tile: PixelTile, target: Target) -> str:
    """Which operand stays in the cache while the other one is walked: the operand walked anew for every
    tile of the other should be the smaller one."""
    itemsize = target.vector_bits // 8 // target.lanes(conv.accumulator)
    weights = conv.out_blocks * conv.out_block * prod(dense_steps(conv)) * itemsize
    pixels = prod(conv.in_size) * conv.in_channels * itemsize
    return "pixels" if weights < pixels and weights <= target.cache_bytes[1] // 2 else "weights"


def default_passes(conv: Convolution, tile: PixelTile, target: Target, choices: Sequence[int]) -> int:
    """In how many parts to walk over the weights of a panel, so that half of the second-level cache holds two
    parts: the one that all pixels are multiplied with and the next one, which arrives meanwhile. Where the
    whole panel does not fit, the channels of the input that a part is multiplied with have to, as well."""
    panel = panel_bytes(conv, tile.oc_blocks, target)
    room = target.cache_bytes[1] // 2
    walks = -(-prod(pixels_of(conv)) // tile.pixels)
    if target.by_lane or walks == 1 or 2 * panel <= room:
        return 1
    inputs = conv.in_channels * prod(conv.needed) * numpy_dtype(conv.dtype).itemsize
    return next((n for n in choices if 2 * panel + inputs <= n * room), choices[-1])


def register_tile(
    conv: Convolution,
    tile: PixelTile,
    order: str,
    lanes: int,
    with_rest: bool = True,
    pixels: Sequence[int] = (),
) -> RegisterTile:
    """The tiles of the whole output, those of pixels walked inside those of channels (`weights`) or around
    them (`pixels`). The last tile of a row is a smaller one, or overlaps the one before. The extents of
    `pixels` are those of the output where none are given."""
    *outer, width = pixels or pixels_of(conv)
    sizes = [1] * len(outer) + [tile.width]
    if outer:
        sizes[-2] = tile.height
    cut = Tiles.with_rest if with_rest else Tiles.of
    spatial = [cut(extent, size) for extent, size in zip((*outer, width), sizes, strict=True)]
    if conv.side > 1:
        spatial[-1] = Tiles.of(width, tile.width)
    axes = [
        Tiles.of(conv.batch, 1),
        Tiles.of(conv.out_blocks, tile.oc_blocks),
        *spatial,
        Tiles.of(conv.out_block, conv.out_block),
    ]
    inner = list(range(2, 2 + len(spatial)))
    walk = [0, 1, *inner] if order == "weights" else [0, *inner, 1]
    squares = inner[-1] if conv.side > 1 else None
    return RegisterTile.of(axes, [*walk, len(axes) - 1], lanes, [0, *inner, 1], squares)


@dataclass(frozen=True)
class DirectProduct:
    """Products of pixels and packed weights (`WeightPanels`), summed over channels and kernel positions.

    `data` holds the input; `place` is where, for an index in the layout of the convolution's input.
    """

    conv: Convolution
    data: Buffer
    weights: Buffer
    place: Callable[[Index], Index] = list
    phases: int = 1
    """Of the rows in `data`, each of which lies side by side."""

    def reduction(
        self,
        tile: RegisterTile,
        together: int,
        unroll: int = 1,
        unroll_kernel: bool = False,
        ahead: Callable[..., list[Statement]] | None = None,
        partial_sums: int = 1,
        row_lanes: int = 1,
        weight_steps: int = 0,
        start: Callable[[Index], Expression] | None = None,
    ) -> Reduction:
        """The sums of a tile: `unroll` steps of the innermost loops and maybe one kernel axis written out.

        The inputs of `together` steps, which divide `unroll`, are one load for each pixel; those of a row of
        taps, which is written out, are loads of `row_lanes` neighbours where these are more than one. The
        weights of `weight_steps` steps, which divide `together`, are one load where these are not 0.
        """
        conv = self.conv
        steps = dense_steps(conv)
        written = [1] * len(steps)
        written[-1] = gcd(unroll, steps[-1])
        written[0] = unroll // written[-1]
        if unroll_kernel:
            written[-2] = steps[-2]

        def read(point: Point, step: Index) -> Expression:
            n, _, *pixel, _ = point.index
            chunk, *taps, channel = step
            source = source_block(conv, point.bases[1], chunk) + channel
            at = conv.unflatten(*pixel) if conv.is_pointwise else conv.position(pixel, taps)
            *outer, word = conv.place(n, source, at)
            if conv.side > 1:  # Words of neighbouring pixels lie behind each other.
                word = word + point.places[-1] % conv.side**2
            return tirx.BufferLoad(self.data, self.place([*outer, word]))

        def beside(point: Point, step: Index, place: Expression) -> Expression:
            *at, column = read(point, step).indices
            return tirx.BufferLoad(self.data, [*at, column + place])

        if row_lanes > 1:
            sizes = len(tile.axes) - 2, conv.strides[-1], conv.kernel[-1], row_lanes
            inputs = RowFactors.of(tile, *sizes, str(self.data.dtype), beside)
            factors = inputs.factors
        else:
            pixels = range(2, len(tile.axes) - 1)
            inputs = LaneFactors.of(tile, pixels, together, str(self.data.dtype), read, weight_steps > 0)
            factors = inputs.factors(steps)
        width = tile.axes[1].size * conv.out_block * conv.side
        weights = WeightRows.of(
            weight_steps, width, self.weights, lambda point, step: [point.tiles[1], *step]
        )

        def update(total: Expression, point: Point, step: Index) -> Expression:
            lane = point.places[1] * (conv.out_block * conv.side) + point.places[-1]
            value, weight = inputs.at(point, step), weights.at(point, step, lane)
            if conv.sums is not None:
                return conv.sums.multiply_add(total, value, weight)
            return total + value.astype(conv.accumulator) * weight.astype(conv.accumulator)

        short = None if conv.sums is None else conv.sums.short
        return Reduction(
            steps,
            tuple(written),
            conv.accumulator,
            tirx.const(0, conv.accumulator),
            update,
            short,
            ahead,
            partial_sums,
            factors,
            weights.factors,
            start,
        )

    def weights_ahead(self, first: Point, step: Index, distance: int, steps: int = 1) -> list[Statement]:
        """Fetch the weights of the `steps` steps that are `distance` after `step`; at a panel's end those of
        the next.

        Weights and inputs lie in memory in the order of the steps, but in runs too short for hardware to see.
        """
        width = int(self.weights.shape[-1])
        line = CACHE_LINE // numpy_dtype(str(self.weights.dtype)).itemsize
        return [
            prefetch(self.weights, [first.tiles[1], *step, lane + distance * width])
            for lane in range(0, steps * width, line)
        ]

    def next_pass_ahead(self, tile: RegisterTile, first: Point, step: Index, passes: int) -> list[Statement]:
        """Fetch the share of one step in the weights that are walked next, where the tiles of all pixels are
        walked `passes` times for each panel, in parts of its steps."""
        total, *inner = dense_steps(self.conv)
        extents = (total // passes, *inner)
        pixels = tile.order[2:-1]
        places = [(first.tiles[a], tile.axes[a].count) for a in pixels]
        number: Expression = 0
        for place, extent in (*places, *zip((step[0] % extents[0], *step[1:]), extents, strict=True)):
            number = number * extent + place
        rounds = prod(tile.axes[a].count for a in pixels)
        following = first.tiles[1] * passes + step[0] // extents[0] + 1
        behind = tirx.min(following, tile.axes[1].count * passes - 1) * extents[0]
        return prefetch_share(
            self.weights, [0, behind, *(0 for _ in inner), 0], number, int(self.weights.shape[-1]), rounds
        )

    def inputs_ahead(
        self, tile: RegisterTile, first: Point, chunk: Expression, within: bool = True
    ) -> list[Statement]:
        """Fetch the pixels of the tile in the chunk of input channels after `chunk`.

        After the last chunk it is that one again, or what lies behind it where fetches need not stay `within`
        the input: their addresses are then offsets to those of the loads.
        """
        conv = self.conv
        if conv.reduction_chunk < conv.in_block or conv.in_block == 1:
            return []
        n, block, *pixel, _ = first.bases
        following = tirx.min(chunk + 1, conv.reduction_chunks - 1) if within else chunk + 1
        source = source_block(conv, block, following)
        sizes = [t.size for t in tile.axes[2:-1]]
        corner = pixel if conv.is_pointwise else conv.position(pixel, [0] * len(pixel))
        axes = zip(sizes, conv.strides, conv.kernel, conv.dilation, strict=True)
        moves = [range(sizes[0])] if conv.is_pointwise else [_reach(*axis) for axis in axes]
        # One fetch a line: pixels of a row lie side by side, in their phases.
        pixel_bytes = int(self.data.shape[-1]) * numpy_dtype(str(self.data.dtype)).itemsize
        if moves[-1].step == 1:
            moves[-1] = moves[-1][:: max(1, CACHE_LINE // pixel_bytes) * self.phases]
        moves.append(range(self.phases))

        def fetch(move: Sequence[Expression]) -> Statement:
            move = [*move[:-2], move[-2] + move[-1]]
            moved = [c + m for c, m in zip(corner, move, strict=True)]
            at = conv.unflatten(*moved) if conv.is_pointwise else moved
            return prefetch(self.data, self.place(conv.place(n, source, at)))

        # Loops, not a statement for every pixel: those took as long to compile as the products.
        return [loop_nest(moves, fetch)]


def source_block(conv: Convolution, out_block: Expression, chunk: Expression) -> Expression:
    """The first input channel, or group of channels, that block `out_block` reads in a chunk."""
    first = conv.first_input(out_block * conv.out_block)
    return first // conv.group + chunk * conv.chunk_steps


def _reach(places: int, stride: int, taps: int, dilation: int) -> range:
    """Offsets that `places` neighbouring outputs read along an axis; all between them if they are uneven."""
    last = (places - 1) * stride + (taps - 1) * dilation
    return range(0, last + 1, stride if taps == 1 else dilation if places == 1 else 1)
