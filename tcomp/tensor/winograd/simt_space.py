"""What the knobs of Winograd convolution on a GPU may be, and how long it takes by a model of the device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np

from tcomp.target.target import Gpu, Target
from tcomp.tensor.convolution import Convolution
from tcomp.tensor.gpu.block_tile import BlockTile
from tcomp.tensor.gpu.rates import LAUNCH_CYCLES, memory_cycles, multiply_adds
from tcomp.tensor.gpu.simt_space import (
    ARRIVAL_CYCLES,
    SECOND_LEVEL_BYTES,
    Problem,
    cycles,
    default_tile,
    simt_space,
)
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Ordered, Space
from tcomp.tensor.reach import REACH
from tcomp.tensor.winograd.choice import COLUMNS, pixel_tiles
from tcomp.tensor.winograd.simt import PixelTiles

THREADS = (64, 128, 256)
"""Of a block that transforms."""
_NEAR = 0.5
"""The part of the second-level cache in which a tensor outlasts a launch: an A100 has it in two halves."""
_MOVE = 2
"""Instructions that load or store a value of a transform."""


@dataclass(frozen=True)
class WinogradTiles:
    """The values of the knobs: pixels of a tile, of the output, and how the products are computed."""

    pixels: tuple[int, int]
    product: BlockTile
    threads: int

    @staticmethod
    def of(config: Config) -> WinogradTiles:
        return WinogradTiles(pixels_of(config), BlockTile.of(config), int(config["threads"]))

    @property
    def config(self) -> Config:
        rows, columns = self.pixels
        own = {"outputs": rows, "columns": 0 if columns == rows else columns}
        return {**own, **self.product.config, "threads": self.threads}


def pixels_of(config: Config) -> tuple[int, int]:
    """Rows and columns of a tile; `columns` 0 means as many as rows."""
    rows, columns = int(config["outputs"]), int(config["columns"])
    return rows, columns or rows


@dataclass(frozen=True)
class WinogradProblem:
    """A convolution, and the bytes that its kernel reads and writes beside data and weights."""

    conv: Convolution
    other_bytes: int

    @staticmethod
    def of(kernel: Kernel) -> WinogradProblem:
        assert kernel.anchor is not None
        own = sum(value.type.nbytes for value in kernel.anchor.inputs)
        return WinogradProblem(Convolution.of(kernel.anchor), max(0, kernel.nbytes - own))

    @property
    def itemsize(self) -> int:
        return np.dtype(self.conv.accumulator).itemsize

    def passing(self, tiles: PixelTiles, channels: int, gpu: Gpu) -> int:
        """Bytes of memory for what one launch writes and the next reads, of so many channels: none where half
        of the second-level cache holds it."""
        nbytes = tiles.scheme.positions * channels * tiles.columns * self.itemsize
        return nbytes if nbytes > _NEAR * gpu.l2_bytes else 0

    def product(self, tiles: PixelTiles, gpu: Gpu) -> Problem:
        """The products of all positions; memory gives weights, and what does not stay in the cache."""
        conv, positions = self.conv, tiles.scheme.positions
        nbytes = positions * conv.in_channels * conv.out_channels * self.itemsize
        nbytes += sum(self.passing(tiles, c, gpu) for c in (conv.in_channels, conv.out_channels))
        return Problem(
            (positions,), conv.out_channels, tiles.columns, conv.in_channels, conv.accumulator, nbytes
        )


def tiles_within_reach(conv: Convolution) -> tuple[tuple[int, int], ...]:
    """Tiles of pixels whose patches and products kernels can count; none for very many images."""
    return tuple(
        pixels for pixels in pixel_tiles(conv.strides) if _largest(PixelTiles(conv, pixels)) <= REACH
    )


def _largest(tiles: PixelTiles) -> int:
    """Elements of the larger one of patches and products."""
    return tiles.scheme.positions * tiles.columns * max(tiles.conv.in_channels, tiles.conv.out_channels)


def winograd_space(problem: WinogradProblem, target: Target) -> Space:
    """All tiles of pixels and of products; the default is what takes the least estimated cycles."""
    gpu, conv = target.gpu, problem.conv
    assert gpu is not None
    best = best_tiles(problem, target)
    products = {pixels: _product_space(problem, pixels, target) for pixels in tiles_within_reach(conv)}
    own = products[best.pixels]

    def reason(config: Config) -> str | None:
        if config["outputs"] == config["columns"]:
            return "as many columns as rows are `columns` 0"
        rows, columns = pixels_of(config)
        space = products.get((rows, columns))
        if space is None or _largest(PixelTiles(conv, (rows, columns))) * int(config["split"]) > REACH:
            return f"tiles of {rows}x{columns} pixels have more products than kernels count"
        return space.legal(config)

    rows = tuple(sorted({rows for rows, _ in products}))
    default = best.config
    return Space(
        (
            Ordered("outputs", rows, int(default["outputs"])),
            Ordered("columns", COLUMNS, int(default["columns"])),
            *own.knobs,
            Ordered("threads", THREADS, best.threads),
        ),
        reason,
    )


@lru_cache(maxsize=256)
def best_tiles(problem: WinogradProblem, target: Target) -> WinogradTiles:
    """What takes the least estimated cycles."""
    found = (best_of(problem, pixels, target) for pixels in tiles_within_reach(problem.conv))
    return min(found, key=lambda tiles: winograd_cycles(problem, tiles, target))


def best_of(problem: WinogradProblem, pixels: tuple[int, int], target: Target) -> WinogradTiles:
    """The best with tiles of these pixels."""
    assert target.gpu is not None
    product = default_tile(problem.product(PixelTiles(problem.conv, pixels), target.gpu), target)
    return WinogradTiles(pixels, product, min(THREADS))


@lru_cache(maxsize=256)
def _product_space(problem: WinogradProblem, pixels: tuple[int, int], target: Target) -> Space:
    assert target.gpu is not None
    return simt_space(problem.product(PixelTiles(problem.conv, pixels), target.gpu), target)


def winograd_cycles(problem: WinogradProblem, tiles: WinogradTiles, target: Target) -> float:
    """Estimated cycles of all launches."""
    conv, gpu, pixels = problem.conv, target.gpu, PixelTiles(problem.conv, tiles.pixels)
    assert gpu is not None
    inputs = conv.batch * conv.in_channels * prod(conv.in_size) * problem.itemsize
    inputs += problem.passing(pixels, conv.in_channels, gpu)
    others = problem.other_bytes + problem.passing(pixels, conv.out_channels, gpu)
    return (
        _transform_cycles(pixels, conv.in_channels, inputs, tiles.threads, gpu)
        + cycles(problem.product(pixels, gpu), tiles.product, target)
        + _transform_cycles(pixels, conv.out_channels, others, tiles.threads, gpu)
    )


def _transform_cycles(pixels: PixelTiles, channels: int, nbytes: int, threads: int, gpu: Gpu) -> float:
    """Of a launch with a thread for each channel and tile of pixels, and `nbytes` of memory."""
    scheme, itemsize = pixels.scheme, np.dtype(pixels.conv.accumulator).itemsize
    values = 2 * scheme.positions  # Pixels are fewer than positions, but each has its own condition.
    additions = scheme.positions * (scheme.down.size + scheme.across.size) / 2
    blocks = -(-channels * pixels.columns // threads)
    of_processor = -(-blocks // gpu.processors) * threads
    issue = of_processor * (_MOVE * values + additions) / multiply_adds(gpu, itemsize)
    near = of_processor * values * itemsize / SECOND_LEVEL_BYTES
    return LAUNCH_CYCLES + ARRIVAL_CYCLES + max(issue, near, memory_cycles(gpu, nbytes))
