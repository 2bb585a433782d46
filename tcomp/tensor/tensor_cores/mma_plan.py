"""How a matrix product is cut for tensor cores: tiles of blocks and warps, stages, and what they take.

A block computes `block_rows x block_columns` sums in steps of `depth_chunks` chunks of depth, each of its
warps `warp_rows x warp_columns` of them. A chunk is 16 bytes: what one thread copies at a time, and one row
of the matrices of 8 rows that `ldmatrix` reads. An instruction multiplies 16 rows by 8 columns over two
chunks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product

from tcomp.relay.types import numpy_dtype, stored_as
from tcomp.target.target import Gpu
from tcomp.tensor.gpu.rates import (
    CACHE_BYTES,
    INSTRUCTIONS,
    LAUNCH_CYCLES,
    SHARED_BYTES,
    clock,
    in_rounds,
    resident_blocks,
)
from tcomp.tensor.gpu.shares import Parts, Shares, Streams, Tiling
from tcomp.tensor.knobs import Config, Ordered, Space
from tcomp.tensor.tensor_cores.stored_output import Output

CHUNK_BYTES = 16
CAPABILITIES: Mapping[str, int] = {
    "float16": 80, "bfloat16": 80, "int8": 80, "tf32": 80, "float8_e4m3fn": 89, "float8_e5m2": 89,
}  # fmt: skip
"""Types of operands, and from which capability on GPUs have the instructions for each."""
MATRIX = 8
"""Rows of a matrix of `ldmatrix` or `stmatrix`, and chunks of 16 bytes in a line of all 32 banks; columns of
sums of which a thread has two."""
_BLOCKS = (16, 32, 64, 128, 256)
_WARPS = (16, 32, 64)
_STAGES = (2, 3, 4, 5)
SPLITS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
GROUPS = (1, 2, 4, 8, 16)
STREAMED = (0, 1, 2)
_OTHER_REGISTERS = 44
"""Addresses, conditions and counters of a thread, as the compiler has them."""
_DEFAULT_BLOCKS = (
    (256, 128, 64, 64), (128, 256, 64, 64), (128, 128, 64, 64), (128, 64, 64, 32), (64, 128, 32, 64),
    (64, 64, 32, 32), (32, 128, 32, 32), (32, 64, 16, 32), (16, 128, 16, 32), (16, 64, 16, 16),
)  # fmt: skip
"""Tiles of blocks and warps that a default may have: 128 threads or more."""
_LEAST_CYCLES = 1.3
"""That a multiprocessor's tensor cores take for one of these instructions: from sm_90 on, other instructions
alone reach their rate."""
_BUSY_WARPS = 8
"""Warps of a multiprocessor that hide each other's latencies."""
_STEP_CYCLES = 40
"""Of a step's barrier and addresses."""
_LINE_PAIR = 2.75
"""Instructions of two sums that are rounded and stored by way of shared memory."""
BLOCK_CYCLES = 1500
"""Until a block's first copies are there and its last stores are out."""


@dataclass(frozen=True)
class TiledProduct:
    """A product `[batch, rows, depth] x [batch, depth, columns]`, of which a block computes a tile."""

    dtype: str
    batch: int
    rows: int
    columns: int
    depth: int
    """In elements, whole chunks."""
    block_rows: int
    block_columns: int
    group: int = field(default=8, kw_only=True)
    """Rows of tiles that blocks which run at the same time share."""
    output: Output = field(kw_only=True)

    @property
    def tiling(self) -> Tiling:
        extents = (self.rows, self.columns, self.block_rows, self.block_columns)
        return Tiling((self.batch,), *extents, self.group)

    @property
    def tiles(self) -> tuple[int, int]:
        """Of blocks, along rows and columns."""
        return self.tiling.along


@dataclass(frozen=True)
class MmaPlan(TiledProduct):
    """How a product is cut for `mma.sync`.

    `splits` parts of the depth are summed up by blocks of their own. Or, where the tiles do not fill whole
    rounds of the blocks that run at once, these share the steps of the last ones, of so many rounds as
    `streamed` says, the last being no whole one.
    """

    warp_rows: int
    warp_columns: int
    depth_chunks: int
    stages: int
    splits: int = 1
    streamed: int = 0
    lines: int = 0
    """Whether the output goes through shared memory, to be stored in whole lines."""

    @property
    def chunk(self) -> int:
        """Elements of a chunk."""
        return chunk_elements(self.dtype)

    @property
    def block_depth(self) -> int:
        return self.depth_chunks * self.chunk

    @property
    def warps(self) -> tuple[int, int]:
        """Of a block, along rows and columns."""
        return self.block_rows // self.warp_rows, self.block_columns // self.warp_columns

    @property
    def threads(self) -> int:
        return self.warps[0] * self.warps[1] * Gpu.warp

    @property
    def copy_threads(self) -> int:
        """That share the copies of a step: all."""
        return self.threads

    @property
    def steps(self) -> int:
        """Of the depth of one part."""
        return -(-self.depth // (self.block_depth * self.splits))

    def resident(self, gpu: Gpu) -> int:
        """Blocks that run at once on a multiprocessor."""
        return resident_blocks(gpu, self.threads, self.registers, self.shared_bytes)

    def shares(self, gpu: Gpu) -> Shares:
        tiles = self.tiling.tiles
        if self.streamed:
            return Streams.of(tiles, self.steps, self._at_once(gpu), self.streamed)
        return Parts(tiles, self.steps, self.splits)

    @property
    def stage_chunks(self) -> int:
        return (self.block_rows + self.block_columns) * self.depth_chunks

    @property
    def shared_bytes(self) -> int:
        return self.stages * self.stage_chunks * CHUNK_BYTES

    @property
    def registers(self) -> int:
        """Of a thread: its sums, and two sets of operands, one being loaded while the other is multiplied."""
        sums = self.warp_rows * self.warp_columns // Gpu.warp
        return sums + (self.warp_rows + self.warp_columns) // 2 + _OTHER_REGISTERS

    def complaint(self, gpu: Gpu) -> str | None:
        """Why this plan cannot run on `gpu`."""
        block, warp = (self.block_rows, self.block_columns), (self.warp_rows, self.warp_columns)
        if any(b % w for b, w in zip(block, warp, strict=True)):
            return f"tiles of warps, {warp[0]}x{warp[1]}, do not fill the block's {block[0]}x{block[1]}"
        if not 64 <= self.threads <= gpu.block_threads // 2:
            return f"a block of {self.threads} threads; it must have 64 to {gpu.block_threads // 2}"
        if any(side * self.depth_chunks % self.threads for side in block):
            return f"{self.threads} threads do not share the copies of a {block[0]}x{block[1]} tile evenly"
        if self.shared_bytes > gpu.block_shared_bytes:
            return f"{self.shared_bytes} bytes of shared memory; a block has {gpu.block_shared_bytes}"
        if self.registers > gpu.thread_registers or self.registers * self.threads > gpu.registers:
            most = f"{gpu.thread_registers} each and {gpu.registers} together"
            return f"{self.threads} threads of {self.registers} registers; they have {most}"
        if self.lines and not self.output.in_lines:
            return "an output that cannot be stored in whole lines"
        if self.lines and self._tile_bytes > self.shared_bytes:
            return f"{self._tile_bytes} bytes of a tile's output; stages have {self.shared_bytes}"
        if self.splits > 1 and (self.splits - 1) * self.steps * self.block_depth >= self.depth:
            return f"a depth of {self.depth} has no {self.splits} parts"
        if not self.streamed:
            return None
        if self.splits > 1:
            return f"{self.splits} parts of the depth of tiles whose steps are streamed"
        return Streams.complaint(self.tiling.tiles, self.steps, self._at_once(gpu), self.streamed)

    def _at_once(self, gpu: Gpu) -> int:
        """Blocks that run at once."""
        return gpu.processors * self.resident(gpu)

    @property
    def _tile_bytes(self) -> int:
        """Of the output, of a block."""
        return self.block_rows * self.block_columns * self.output.nbytes

    @property
    def _stored(self) -> float:
        """Cycles in which a block's output is stored."""
        sums, size = self.block_rows * self.block_columns, self._tile_bytes
        if not self.lines:
            return self.output.from_registers(sums)
        return sums / 2 * _LINE_PAIR / INSTRUCTIONS + max(size / CACHE_BYTES, 2 * size / SHARED_BYTES)

    def cycles(self, gpu: Gpu) -> float:
        """Estimated cycles: of the busiest of tensor cores, shared memory and second-level cache, in whole
        rounds of the blocks that run at once."""
        along = self.depth_chunks // 2
        warps = self.threads // Gpu.warp
        instructions = self.block_rows // 16 * (self.block_columns // 8) * along
        read = warps * (self.warp_rows + self.warp_columns) * self.depth_chunks * CHUNK_BYTES
        copied = self.stage_chunks * CHUNK_BYTES
        multiply = instructions * instruction_cycles(self.dtype, gpu)
        step = max(multiply, (read + copied) / SHARED_BYTES, copied / CACHE_BYTES) + _STEP_CYCLES
        fitting, shares = self.resident(gpu), self.shares(gpu)

        def rounds(together: int, steps: int, begins: int) -> float:
            """Of so many blocks, of which each begins `begins` times."""

            def of_round(resident: int) -> float:
                idle = max(1.0, _BUSY_WARPS / (resident * warps))
                end = BLOCK_CYCLES + resident * self._stored
                return resident * steps * step * idle + begins * end

            return in_rounds(together, fitting, gpu, of_round)

        adding = adding_cycles(shares, self.block_rows * self.block_columns, gpu)
        if isinstance(shares, Streams):
            whole = rounds(shares.tiles - shares.divided, self.steps, 1)
            return whole + rounds(shares.sharers, shares.share, shares.most_segments) + adding
        return rounds(shares.blocks, self.steps, 1) + adding


def adding_cycles(shares: Shares, tile: int, gpu: Gpu) -> float:
    """Estimated cycles of keeping pieces, of `tile` sums each, and adding them."""
    if not shares.kept:
        return 0.0
    return LAUNCH_CYCLES + BLOCK_CYCLES + 2 * shares.kept * tile * 4 / (CACHE_BYTES * gpu.processors)


def instruction_cycles(dtype: str, gpu: Gpu) -> float:
    """Of one multiprocessor's tensor cores together, for one instruction."""
    operations = 2 * 16 * 8 * 2 * chunk_elements(dtype)
    return max(_LEAST_CYCLES, operations * gpu.processors * clock(gpu) / gpu.flops[dtype])


def chunk_elements(dtype: str) -> int:
    """Elements of 16 bytes."""
    return CHUNK_BYTES // numpy_dtype(stored_as(dtype)).itemsize


@lru_cache(maxsize=256)
def default_plan(
    dtype: str, extents: tuple[int, int, int, int], output: Output, gpu: Gpu, streams: bool = True
) -> MmaPlan:
    """The plan of the fewest estimated cycles for (batch, rows, columns, depth), of `streams` or not."""
    plans = (plan for plan in default_plans(dtype, extents, output, gpu) if streams or not plan.streamed)
    return min(plans, key=lambda plan: plan.cycles(gpu))


def default_plans(
    dtype: str, extents: tuple[int, int, int, int], output: Output, gpu: Gpu
) -> Iterator[MmaPlan]:
    """The plans that a default may be."""
    for block, depth_chunks, stages in product(_DEFAULT_BLOCKS, (4, 8), (4, 3)):
        for lines in (1, 0) if output.in_lines else (0,):
            plan = MmaPlan(dtype, *extents, *block, depth_chunks, stages, lines=lines, output=output)
            shared = [replace(plan, splits=n) for n in SPLITS]
            shared += [replace(plan, streamed=n) for n in STREAMED if n]
            yield from (one for one in shared if one.complaint(gpu) is None)


def plan_space(
    dtype: str, extents: tuple[int, int, int, int], output: Output, gpu: Gpu, streams: bool = True
) -> Space:
    """The knobs of plans of a product, by the names of the plan's fields; `streams` as for `default_plan`."""
    best = default_plan(dtype, extents, output, gpu, streams)
    values = {
        "block_rows": _BLOCKS, "block_columns": _BLOCKS, "warp_rows": _WARPS, "warp_columns": _WARPS,
        "depth_chunks": (4, 8), "stages": _STAGES, "splits": SPLITS, "streamed": STREAMED, "group": GROUPS,
        "lines": (0, 1),
    }  # fmt: skip
    knobs = tuple(Ordered(name, of, int(getattr(best, name))) for name, of in values.items())
    added = {"streamed": 0, "lines": 0}
    return Space(knobs, lambda config: plan_of(dtype, extents, output, config).complaint(gpu), added)


def plan_of(dtype: str, extents: tuple[int, int, int, int], output: Output, config: Config) -> MmaPlan:
    return MmaPlan(dtype, *extents, **{name: int(value) for name, value in config.items()}, output=output)
