"""What the knobs of Winograd convolution mean, and which values are fastest by estimate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from tcomp.target.target import Target
from tcomp.tensor.convolution import Convolution
from tcomp.tensor.cpu.direct_convolution import (
    CROWDED,
    PixelTile,
    registers_of,
    step_cycles,
    together,
    vectors_of,
)
from tcomp.tensor.cpu.primitives import Tiles
from tcomp.tensor.knobs import Config
from tcomp.tensor.winograd.filtering import OUTPUTS, Scheme

MAX_ROWS = 28
MAX_OC_BLOCKS = 8
GROUPS = (8, 12, 16, 20, 28, 36, 49, 64, 84, 112)
"""Sizes of a group to choose from, beside all tiles."""
PARTS = (1, 2, 4)
PASSES = (1, 2, 4, 8)
"""Into how many parts of the channels a product is cut; those of `pass_counts` for a convolution."""
ROWS = (2, 4)
"""Rows of a tile of pixels."""
COLUMNS = (0, 1, 2)
"""Columns of a tile of pixels: 0 for as many as rows, 1 for a convolution that is direct along rows."""
MIN_ROWS = 4
"""Fewer rows of a register tile share a load of weights only where there are no more tiles."""


@dataclass(frozen=True)
class WinogradChoice:
    """The values of the knobs."""

    outputs: int
    group: int
    rows: int
    oc_blocks: int
    parts: int
    prefetch: bool
    columns: int = 0
    passes: int = 1

    @staticmethod
    def of(config: Config) -> WinogradChoice:
        numbers = {name: int(value) for name, value in config.items() if name != "prefetch"}
        return WinogradChoice(**numbers, prefetch=bool(config["prefetch"]))

    @property
    def pixels(self) -> tuple[int, int]:
        """Rows and columns of a tile."""
        return self.outputs, self.columns or self.outputs


def pixel_tiles(strides: Sequence[int] = (1, 1)) -> tuple[tuple[int, int], ...]:
    """Rows and columns of all tiles of pixels that have a scheme."""
    down, across = (OUTPUTS[stride] for stride in strides)
    tiles = ((rows, columns or rows) for rows in ROWS for columns in COLUMNS if columns != rows)
    return tuple((rows, columns) for rows, columns in tiles if rows in down and columns in across)


def scheme_of(conv: Convolution, pixels: tuple[int, int]) -> Scheme:
    down, across = conv.strides
    return Scheme.of(pixels, (down, across))


def tile_counts(conv: Convolution, pixels: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of tiles of an image."""
    height, width = conv.out_size
    return -(-height // pixels[0]), -(-width // pixels[1])


def group_sizes(conv: Convolution, pixels: tuple[int, int]) -> tuple[int, ...]:
    """Sizes of a group of tiles, ascending."""
    tiles = conv.batch * prod(tile_counts(conv, pixels))
    return (*(size for size in GROUPS if size < tiles), tiles)


def pass_counts(conv: Convolution) -> tuple[int, ...]:
    """Numbers of passes that divide the channels."""
    return tuple(passes for passes in PASSES if conv.reduction_chunks % passes == 0)


def default_passes(conv: Convolution, oc_blocks: int, walks: int, target: Target) -> int:
    """In how many parts to walk over the weights of a position and a panel, so that a part stays in half of
    the first-level cache while `walks` register tiles are multiplied with it. A panel that fits as a whole
    is not cut: sums go to memory between passes."""
    panel = _position_bytes(conv, oc_blocks, target)
    near, counts = target.cache_bytes[0], pass_counts(conv)
    if target.by_lane or walks == 1 or panel <= near:
        return 1
    return next((n for n in counts if panel <= n * near // 2), counts[-1])


def _position_bytes(conv: Convolution, oc_blocks: int, target: Target) -> int:
    """Of the weights of so many channel blocks at one position."""
    channels = conv.reduction_chunks * conv.reduction_chunk
    return channels * vectors_of(conv, target) * oc_blocks * target.vector_bits // 8


def sum_registers(conv: Convolution, rows: int, blocks: int, target: Target) -> int:
    """Of the sums of a tile, the weights of one step, and its inputs: see `registers_of`."""
    return registers_of(conv, PixelTile(1, rows, blocks), target)


def register_tiles(conv: Convolution, target: Target) -> Iterator[tuple[int, int]]:
    """Rows and channel blocks whose sums fit beside the weights of one step and a broadcast value."""
    fewest = min(MIN_ROWS, *(group_sizes(conv, pixels)[0] for pixels in pixel_tiles(conv.strides)))
    for blocks in range(1, min(MAX_OC_BLOCKS, conv.out_blocks) + 1):
        for rows in range(fewest, MAX_ROWS + 1):
            registers = sum_registers(conv, rows, blocks, target)
            if registers <= target.vector_registers or (rows == fewest and blocks == 1):
                yield rows, blocks


@lru_cache(maxsize=256)
def best_choice(conv: Convolution, target: Target) -> WinogradChoice:
    """The default of a kernel. It is kept: thousands are estimated, and each config asks for it again."""
    return min(default_choices(conv, target), key=lambda choice: winograd_cycles(conv, choice, target))


def default_choices(conv: Convolution, target: Target) -> Iterator[WinogradChoice]:
    """All that a default may be."""
    parts = PARTS if target.cores > 1 else PARTS[:1]
    tiles = tuple(register_tiles(conv, target))
    return (
        WinogradChoice(
            height,
            group,
            rows,
            blocks,
            split,
            prefetch=True,
            columns=0 if width == height else width,
            passes=default_passes(conv, blocks, -(-group // rows), target),
        )
        for height, width in pixel_tiles(conv.strides)
        for group in group_sizes(conv, (height, width))
        for rows, blocks in tiles
        for split in parts
        if rows <= group
    )


def winograd_cycles(conv: Convolution, choice: WinogradChoice, target: Target) -> float:
    """Estimated cycles of the whole convolution: products, weights from far caches, transforms."""
    lanes = target.lanes(conv.accumulator)
    scheme = scheme_of(conv, choice.pixels)
    positions = scheme.positions
    groups = Tiles.of(conv.batch * prod(tile_counts(conv, choice.pixels)), choice.group)
    panels = Tiles.of(conv.out_blocks, choice.oc_blocks, choice.parts)
    in_blocks, vectors = -(-conv.in_channels // lanes), vectors_of(conv, target) * choice.oc_blocks
    channels = conv.reduction_chunks * conv.reduction_chunk
    line = target.vector_bits // 8
    second_level, last_level, memory = target.bytes_per_cycle
    room = target.vector_registers - target.spare_registers
    crowded = CROWDED if sum_registers(conv, choice.rows, choice.oc_blocks, target) > room else 1.0

    def product(rows: int) -> float:
        """Cycles of a register tile."""
        if not rows:
            return 0.0
        inputs = rows / together(conv, target)
        step = step_cycles(target, rows, vectors, inputs, vectors, far)
        step = max(step, vectors * line / second_level) if far else step
        return crowded * channels * step + 2 * choice.passes * rows * vectors + 20

    part = _position_bytes(conv, choice.oc_blocks, target) / choice.passes
    far = choice.passes == 1 or part > target.cache_bytes[0] / 2
    whole, rest = divmod(groups.size, choice.rows)
    products = whole * product(choice.rows) + product(rest)
    multiply = groups.count * panels.count * positions * products

    near = target.cache_bytes[1]
    weights = positions * channels * panels.count * vectors * line
    again = (groups.count - 1) * weights if weights > near / 2 else 0
    held = positions * groups.size * (in_blocks + vectors) * line
    spilled = 3 * groups.count * max(0.0, held - 0.6 * near)
    load = weights / memory + (again + spilled) / last_level

    blocks = choice.parts * in_blocks + panels.count * vectors
    transforms = groups.count * groups.size * blocks * positions * (scheme.down.size + scheme.across.size) / 2
    work = groups.count * choice.parts
    idle = -(-work // target.cores) * target.cores / work
    return (max(multiply, load) + 0.2 * min(multiply, load) + transforms) * idle
