"""The tiles that a product can have on a GPU, and how long each takes by a model of its multiprocessors.

A multiprocessor works on the blocks that it has room for at once, a tile of the depth at a time: that takes
as long as their multiply-adds, their instructions or their use of shared memory, but no less than a load from
memory takes. `scripts/kernel_sass.py` counts the instructions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product as combinations

import numpy as np

from tcomp.errors import UnsupportedError
from tcomp.target.target import Gpu, Target
from tcomp.tensor.gpu.block_tile import BlockTile
from tcomp.tensor.gpu.rates import (
    INSTRUCTIONS,
    LAUNCH_CYCLES,
    SHARED_BYTES,
    memory_cycles,
    multiply_adds,
    resident_blocks,
)
from tcomp.tensor.gpu.shares import Parts, Shares, Streams, Tiling
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Ordered, Space
from tcomp.tensor.product import Product

TILES = (32, 64, 128, 256)
DEPTHS = (8, 16, 32)
THREAD_TILES = (2, 4, 8)
SPLITS = (1, 2, 4, 8, 16, 32, 64)
VECTORS = (1, 2, 4)
STREAMED = (0, 1, 2)
ARRIVAL_CYCLES = 800
"""Cycles of a tile of the depth that is waited for: load, store to shared memory, barrier."""
SECOND_LEVEL_BYTES = 32
"""What the second-level cache gives each multiprocessor in a cycle."""
_OVERLAP = 0.5
"""The part of that time which work on what is there does not hide."""
_OTHER_UNITS = 0.1
"""The part of their time which the busiest of multiply-adds, instructions and shared memory does not hide."""
_LOAD = 0.75
"""Instructions that bring an element to shared memory, as one of a vector."""
_WINDOW = 4
"""The same where it may lie beyond a border."""
_GATHER = 18
"""The same where its position must be computed anew."""
_STEP_INSTRUCTIONS = 24
"""Of a thread in a tile of the depth, beside those that come with its elements."""


@dataclass(frozen=True)
class Problem:
    """What is multiplied, and the bytes that must move at least."""

    batch: tuple[int, ...]
    rows: int
    columns: int
    depth: int
    accumulator: str
    nbytes: int
    run: int = 0
    """Elements of the depth after which the right operand goes on elsewhere; 0 where it never does."""

    @property
    def itemsize(self) -> int:
        """Bytes of a sum."""
        return np.dtype(self.accumulator).itemsize


def problem_of(kernel: Kernel) -> Problem:
    """The product that is the anchor of `kernel`."""
    assert kernel.anchor is not None
    product = Product.of(kernel.anchor)
    return Problem(
        product.batch, product.rows, product.columns, product.depth, product.accumulator, kernel.nbytes
    )


def _resident(problem: Problem, tile: BlockTile, gpu: Gpu) -> int:
    itemsize = problem.itemsize
    return resident_blocks(gpu, tile.threads, tile.registers(itemsize), tile.shared_bytes(itemsize))


def _tiles(problem: Problem, tile: BlockTile) -> int:
    return Tiling(problem.batch, problem.rows, problem.columns, tile.rows, tile.columns).tiles


def shares_of(problem: Problem, tile: BlockTile, target: Target) -> Shares:
    """Which block computes what."""
    gpu = target.gpu
    assert gpu is not None
    tiles, steps = _tiles(problem, tile), tile.steps(problem.depth)
    if tile.streamed:
        return Streams.of(tiles, steps, gpu.processors * _resident(problem, tile, gpu), tile.streamed)
    return Parts(tiles, steps, tile.split)


def _reason(problem: Problem, tile: BlockTile, gpu: Gpu) -> str | None:
    """Why no product is cut so, or None."""
    reason = tile.reason(gpu, problem.itemsize, problem.depth)
    if reason is not None or not tile.streamed:
        return reason
    if tile.split > 1:
        return f"{tile.split} parts of the depth of tiles whose steps are streamed"
    at_once = gpu.processors * _resident(problem, tile, gpu)
    return Streams.complaint(_tiles(problem, tile), tile.steps(problem.depth), at_once, tile.streamed)


def cycles(problem: Problem, tile: BlockTile, target: Target) -> float:
    """Estimated cycles of all launches."""
    gpu = target.gpu
    assert gpu is not None
    itemsize, rate = problem.itemsize, multiply_adds(gpu, problem.itemsize)
    shares, fitting = shares_of(problem, tile, target), _resident(problem, tile, gpu)
    sums, factors = tile.thread_rows * tile.thread_columns, tile.thread_rows + tile.thread_columns
    moved = (tile.rows + tile.columns) * tile.depth
    # Shared memory serves two threads that read the same vector at once.
    shared = (tile.threads * tile.depth * factors / 2 + moved) * itemsize / SHARED_BYTES
    loads = _LOAD * moved
    if problem.run:
        loads += tile.columns * tile.depth * (_GATHER if problem.run % tile.depth else _WINDOW)
    products = tile.threads * tile.depth * sums
    others = tile.threads * (tile.depth * factors / 4 + _STEP_INSTRUCTIONS) + loads
    units = products / rate, (products + others) / INSTRUCTIONS, shared
    work = max(units) + _OTHER_UNITS * (sum(units) - max(units))
    work += _OVERLAP * moved * itemsize / SECOND_LEVEL_BYTES

    def together(count: int, steps: int, segments: int) -> float:
        """Cycles of so many blocks at once, from beginning to end."""
        step = max(count * work, ARRIVAL_CYCLES + work)
        ends = ARRIVAL_CYCLES + count * tile.rows * tile.columns * itemsize / SECOND_LEVEL_BYTES
        return steps * step + segments * ends

    def rounds(blocks: int, steps: int, segments: int = 1) -> float:
        of_processor = -(-blocks // gpu.processors)
        resident = max(1, min(fitting, of_processor))
        rest = of_processor % resident
        full = of_processor // resident * together(resident, steps, segments)
        return full + (together(rest, steps, segments) if rest else 0)

    if isinstance(shares, Streams):
        compute = rounds(shares.tiles - shares.divided, shares.steps)
        compute += rounds(shares.sharers, shares.share, shares.most_segments)
    else:
        compute = rounds(shares.blocks, tile.steps(problem.depth))
    pieces = 2 * shares.kept * tile.rows * tile.columns * itemsize
    memory = memory_cycles(gpu, problem.nbytes + pieces)
    return max(compute, memory) + LAUNCH_CYCLES * (2 if shares.kept else 1)


@lru_cache(maxsize=256)
def default_tile(problem: Problem, target: Target) -> BlockTile:
    """The tile of least estimated cycles.

    Raises UnsupportedError when none fits the target.
    """
    gpu = target.gpu
    assert gpu is not None
    fitting = list(default_tiles(problem, gpu))
    if not fitting:
        raise UnsupportedError(f"no tile of sums in {problem.accumulator} fits target `{target.name}`")
    return min(fitting, key=lambda tile: cycles(problem, tile, target))


def simt_space(problem: Problem, target: Target) -> Space:
    """All tiles of a product; raises UnsupportedError when none fits the target."""
    gpu = target.gpu
    assert gpu is not None

    def reason(config: Config) -> str | None:
        return _reason(problem, BlockTile.of(config), gpu)

    best = default_tile(problem, target)
    return Space(
        (
            Ordered("tile_m", TILES, best.rows),
            Ordered("tile_n", TILES, best.columns),
            Ordered("tile_k", DEPTHS, best.depth),
            Ordered("thread_m", THREAD_TILES, best.thread_rows),
            Ordered("thread_n", THREAD_TILES, best.thread_columns),
            Ordered("stages", (1, 2), best.stages),
            Ordered("split", SPLITS, best.split),
            Ordered("vector", VECTORS, best.vector),
            Ordered("streamed", STREAMED, best.streamed),
        ),
        reason,
        added={"streamed": 0},
    )


def default_tiles(problem: Problem, gpu: Gpu) -> Iterator[BlockTile]:
    """The tiles that a default may be: the depth is split only where there are few tiles of the output."""
    for rows, columns, depth, m, n in combinations(TILES, TILES, DEPTHS, (4, 8), (4, 8)):
        whole = BlockTile(rows, columns, depth, m, n, 2, 1, max(VECTORS))
        if whole.threads < 64 or _reason(problem, whole, gpu) is not None:
            continue
        few = _tiles(problem, whole) < 2 * gpu.processors
        shared = [replace(whole, split=n) for n in SPLITS if few or n == 1]
        shared += [replace(whole, streamed=n) for n in STREAMED if n]
        yield from (tile for tile in shared if _reason(problem, tile, gpu) is None)
