"""How a matrix product is cut for the tensor cores of sm_90a, and what it takes.

A block computes `block_rows x block_columns` sums in steps of 128 bytes of depth. One warp copies tiles to
shared memory, `consumers` groups of four warps multiply them, each an equal share of the block's rows. An
instruction multiplies 64 rows by all columns over 32 bytes of depth, both operands being in shared memory. As
many blocks as run at once take one tile of the output after the other.

With `pingpong` two groups have a tile each, in turns: one multiplies while the other stores. With `buffers`
the output goes through shared memory, from where the copy engine stores it while the next tile is multiplied.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product

from tcomp.relay.types import numpy_dtype, stored_as
from tcomp.target.target import Gpu
from tcomp.target.tile_map import LINE_BYTES
from tcomp.tensor.gpu.rates import (
    CACHE_BYTES,
    INSTRUCTIONS,
    SHARED_BYTES,
    clock,
    equal_registers,
    resident_blocks,
)
from tcomp.tensor.gpu.shares import Parts, Shares, Streams
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Ordered, Space
from tcomp.tensor.tensor_cores.mma_plan import (
    BLOCK_CYCLES,
    CHUNK_BYTES,
    GROUPS,
    SPLITS,
    STREAMED,
    TiledProduct,
    adding_cycles,
    chunk_elements,
)
from tcomp.tensor.tensor_cores.stored_output import Output

ARCH = "sm_90a"
"""The GPUs that have these instructions."""
DEPTH_BYTES = LINE_BYTES
"""Of a step: a line of the 128-byte swizzle."""
INSTRUCTION_BYTES = 32
"""Of the depth of an instruction."""
INSTRUCTION_ROWS = 64
GROUP_THREADS = 128
"""That execute an instruction together."""
BARRIER_BYTES = 1024
"""Before the tiles in shared memory: two barriers of 8 bytes a stage, and what keeps tiles aligned."""
_ALIGNMENT = 1024
_BLOCK_ROWS = (64, 128, 192, 256)
_BLOCK_COLUMNS = (64, 128, 192, 256)
_CONSUMERS = (1, 2)
_STAGES = (2, 3, 4, 5, 6, 8)
_CLUSTERS = (1, 2, 4)
_BUFFERS = (0, 1, 2, 4)
_PINGPONG = (0, 1)
MOST_SUMS, SUMS_WITH_WORK = 128, 96
"""Of a thread; of a default's, where more than a little is computed of each sum before it is stored."""
_LIGHT = {"add", "mul", "relu", "cast", "reshape"}
_OTHER_REGISTERS = 48
"""Addresses, conditions and counters of a thread, and what follows the sums."""
PRODUCER_REGISTERS, GATHERER_REGISTERS = (40, 232), (72, 216)
"""And those of the consumers, where three groups have all registers of a multiprocessor: 3 * 168 before they
share them anew."""
_DEFAULT_BLOCKS = (
    (128, 256, 2), (256, 128, 2), (128, 192, 2), (128, 128, 2), (64, 256, 1), (128, 128, 1), (128, 64, 2),
    (64, 128, 1), (64, 64, 1),
)  # fmt: skip
_DEFAULT_PAIRS = ((128, 128), (64, 256), (64, 128), (64, 64))
"""Of blocks whose groups take turns."""
_LATENCY = 1000
"""Cycles from asking for a tile until it is multiplied."""
_STEP_CYCLES = 20
"""Of a step's barriers."""
_CHUNK_CYCLES = 44 / 128
"""Of the 42 instructions that find and copy a chunk of a 3x3 window, for 128 threads: 22 are additions,
shifts and comparisons of integers, and a multiprocessor does 64 in a cycle (CUDA C++ Programming Guide)."""
_TILE_CYCLES = 500
"""From the last products of a tile to the first of the next, beside what follows them and stores."""
_PAIR_INSTRUCTIONS = 1.25
"""Of two sums that are rounded and written for the copy engine."""
_PART_CYCLES = 100
"""Of a part of a tile in a warp: waiting for its buffer, a fence, asking for its store."""
PLACE_ROWS = 16
PLACE_BYTES = PLACE_ROWS * DEPTH_BYTES
"""Of shared memory, for rows of a warp on their way to the output."""


@dataclass(frozen=True)
class WgmmaPlan(TiledProduct):
    """How a product is cut for `wgmma`.

    `splits` and `streamed` are those of `MmaPlan`.
    """

    consumers: int
    stages: int
    splits: int = 1
    streamed: int = 0
    cluster: int = 1
    """Blocks, of neighbouring rows of tiles, each of which copies a part of the right operand to all."""
    pingpong: int = 0
    """Whether the two consumers have a tile of their own each, and take turns."""
    buffers: int = 0
    """Of a warp, for what it computed, until the copy engine has stored it; without, threads store it."""
    gathers: int = 0
    """Whether the threads of the producer copy the left operand by chunks, as there are no tiles of it."""

    @property
    def chunk(self) -> int:
        """Elements of a chunk."""
        return chunk_elements(self.dtype)

    @property
    def depth_chunks(self) -> int:
        return DEPTH_BYTES // CHUNK_BYTES

    @property
    def copy_threads(self) -> int:
        """That share the copies by chunks of a step."""
        return GROUP_THREADS

    @property
    def ahead(self) -> int:
        """Steps whose copies by chunks are under way when those of another are waited for."""
        return self.stages - 2

    @property
    def arrivals(self) -> int:
        """At the barrier of a full stage: who announces copied bytes, and all who copy chunks."""
        return 1 + (self.copy_threads if self.gathers else 0)

    @property
    def copied_bytes(self) -> int:
        """That are announced for a step."""
        return self.stage_bytes - (self.block_rows * DEPTH_BYTES if self.gathers else 0)

    @property
    def shared_registers(self) -> tuple[int, int] | None:
        """Of a thread of the producer and of one of a consumer, where they share all."""
        if not self.shares_registers:
            return None
        return GATHERER_REGISTERS if self.gathers else PRODUCER_REGISTERS

    @property
    def itemsize(self) -> int:
        return numpy_dtype(stored_as(self.dtype)).itemsize

    @property
    def block_depth(self) -> int:
        return DEPTH_BYTES // self.itemsize

    @property
    def threads(self) -> int:
        return (self.consumers + 1) * GROUP_THREADS

    @property
    def together(self) -> int:
        """Consumers that share a tile."""
        return 1 if self.pingpong else self.consumers

    @property
    def pieces(self) -> int:
        """Of 64 rows, of a consumer."""
        return self.block_rows // (self.together * INSTRUCTION_ROWS)

    @property
    def steps(self) -> int:
        """Of the depth of one part."""
        return -(-self.depth // (self.block_depth * self.splits))

    @property
    def stage_bytes(self) -> int:
        return (self.block_rows + self.block_columns) * DEPTH_BYTES

    @property
    def shared_bytes(self) -> int:
        return _ALIGNMENT + BARRIER_BYTES + self.stages * self.stage_bytes + self._places * PLACE_BYTES

    @property
    def _places(self) -> int:
        """Of all warps, for the output."""
        return self.consumers * GROUP_THREADS // Gpu.warp * self.buffers

    @property
    def parts(self) -> int:
        """Of a warp's sums, each of which fills a buffer."""
        return self.pieces * self.block_columns * self.output.nbytes // DEPTH_BYTES

    @property
    def sums(self) -> int:
        """Of a thread of a consumer."""
        return self.pieces * self.block_columns // 2

    @property
    def registers(self) -> int:
        """Of a thread when the block begins."""
        return equal_registers(self.threads) if self.shares_registers else self.sums + _OTHER_REGISTERS

    @property
    def shares_registers(self) -> bool:
        """Whether consumers get registers that the producer gives up."""
        return self.threads * (self.sums + 2 * _OTHER_REGISTERS) > Gpu.registers

    def resident(self, gpu: Gpu) -> int:
        """Blocks that run at once on a multiprocessor."""
        return resident_blocks(gpu, self.threads, self.registers, self.shared_bytes)

    def _at_once(self, gpu: Gpu) -> int:
        """Blocks that run at once."""
        return gpu.processors * self.resident(gpu) // self.cluster * self.cluster

    def shares(self, gpu: Gpu) -> Shares:
        """Those of the blocks that there would be if each took one."""
        tiles = self.tiling.tiles
        if self.streamed:
            return Streams.of(tiles, self.steps, self._at_once(gpu), self.streamed)
        return Parts(tiles, self.steps, self.splits)

    def blocks(self, gpu: Gpu) -> int:
        """As many as run at once, if there are so many shares; each takes one after the other."""
        return min(self.shares(gpu).blocks, self._at_once(gpu))

    def complaint(self, gpu: Gpu) -> str | None:
        """Why this plan cannot run on `gpu`."""
        if self.block_rows % (self.together * INSTRUCTION_ROWS):
            return f"{self.block_rows} rows are no whole pieces of 64 for each of {self.together} consumers"
        if self.pingpong and self.consumers != 2:
            return f"{self.consumers} consumers that take turns; there must be two"
        if self.buffers and not self.output.in_lines:
            return "an output of which no tiles can be stored, through buffers"
        if self.buffers and self.parts % self.buffers:
            return f"{self.parts} parts of a tile do not go around {self.buffers} buffers"
        if self.sums > MOST_SUMS:
            return f"{self.sums} sums of a thread; it has registers for {MOST_SUMS}"
        if self.shared_bytes > gpu.block_shared_bytes:
            return f"{self.shared_bytes} bytes of shared memory; a block has {gpu.block_shared_bytes}"
        if self.gathers and self.cluster > 1:
            return f"clusters of {self.cluster} blocks, of which each copies pixels of its own"
        if self.tiles[0] % self.cluster or self.group % self.cluster:
            rows = f"{self.tiles[0]} rows of tiles in groups of {self.group}"
            return f"{rows} are no whole clusters of {self.cluster}"
        if self.block_columns // INSTRUCTION_ROWS % self.cluster:
            return f"{self.block_columns} columns that {self.cluster} blocks do not share in pieces of 64"
        if self.splits > 1 and (self.splits - 1) * self.steps * self.block_depth >= self.depth:
            return f"a depth of {self.depth} has no {self.splits} parts"
        if not self.streamed:
            return None
        if self.splits > 1 or self.cluster > 1:
            return f"{self.splits} parts and clusters of {self.cluster}, where blocks take streams of steps"
        if self.pingpong:
            return "consumers in turns, where blocks take streams of steps"
        return Streams.complaint(self.tiling.tiles, self.steps, self._at_once(gpu), self.streamed)

    def cycles(self, gpu: Gpu) -> float:
        """Estimated cycles: of the busiest of tensor cores, shared memory and second-level cache, or of the
        latency that stages do not cover; each multiprocessor takes equally many tiles.

        Tensor cores rest at the end of a tile, unless the other group of two that take turns keeps them busy.
        """
        instructions = self.block_rows // INSTRUCTION_ROWS * (DEPTH_BYTES // INSTRUCTION_BYTES)
        operations = 2 * self.block_rows * self.block_columns * self.block_depth
        multiply = operations * gpu.processors * clock(gpu) / gpu.flops[self.dtype]
        read = instructions * (INSTRUCTION_ROWS + self.block_columns) * INSTRUCTION_BYTES
        fetched = (self.block_rows + self.block_columns / self.cluster) * DEPTH_BYTES / CACHE_BYTES
        shared = (read + self.stage_bytes) / SHARED_BYTES
        chunks = self.block_rows * self.depth_chunks if self.gathers else 0
        busy = max(multiply, shared, fetched, chunks * _CHUNK_CYCLES)
        shares = self.shares(gpu)
        resident = min(self.resident(gpu), -(-shares.blocks // gpu.processors))
        under_way = max(1, self.ahead) if self.gathers else self.stages - 1
        step = max(resident * (busy + _STEP_CYCLES), _LATENCY / under_way)
        beside_cache, beside_shared = self._stored_beside
        beside = max(
            0.0, beside_cache - self.steps * (busy - fetched), beside_shared - self.steps * (busy - shared)
        )
        products, end = self.steps * step + resident * beside, _TILE_CYCLES + resident * self._stored
        at_once = gpu.processors * resident
        adding = adding_cycles(shares, self.block_rows * self.block_columns, gpu)
        if isinstance(shares, Streams):
            rounds = -(-(shares.tiles - shares.divided) // at_once)
            streams = shares.share * step + shares.most_segments * end
            return BLOCK_CYCLES + rounds * (products + end) + streams + adding
        rounds = -(-shares.blocks // at_once)
        if not self.pingpong:
            return BLOCK_CYCLES + rounds * (products + end) + adding
        own = -(-rounds // 2) * (products + end) + (products if rounds % 2 == 0 else 0)
        return BLOCK_CYCLES + max(rounds * products + end, own) + adding

    @property
    def _tile_bytes(self) -> int:
        """Of the output, of a tile."""
        return self.block_rows * self.block_columns * self.output.nbytes

    @property
    def _stored(self) -> float:
        """Cycles in which a tile's consumers compute what follows and store it."""
        sums = self.block_rows * self.block_columns
        if not self.buffers:
            return self.output.from_registers(sums)
        compute = sums / 2 * _PAIR_INSTRUCTIONS / INSTRUCTIONS
        # Words of 32 bits of a row are in the banks of those of the next.
        written = self._tile_bytes * self.output.nbytes // 2 / SHARED_BYTES
        waiting = max(0, self._tile_bytes - self._places * PLACE_BYTES) / CACHE_BYTES
        return compute + max(written, waiting, self.parts * _PART_CYCLES)

    @property
    def _stored_beside(self) -> tuple[float, float]:
        """Cycles of second-level cache and shared memory that stores take while tiles are multiplied."""
        if self.buffers:
            return self._tile_bytes / CACHE_BYTES, 2 * self._tile_bytes / SHARED_BYTES
        sectors = self.block_rows * self.block_columns * self.output.sector_bytes
        return (sectors / CACHE_BYTES if self.pingpong else 0.0), 0.0


def most_sums(kernel: Kernel, light: int = 2) -> int:
    """Of a thread of the default: up to `light` operators of one instruction take few registers beside."""
    others = [node.op for node in kernel.body.nodes if node is not kernel.anchor]
    return MOST_SUMS if len(others) <= light and set(others) <= _LIGHT else SUMS_WITH_WORK


@lru_cache(maxsize=256)
def default_wgmma_plan(
    dtype: str,
    extents: tuple[int, int, int, int],
    output: Output,
    gpu: Gpu,
    sums: int = MOST_SUMS,
    gathers: tuple[int, ...] = (),
) -> WgmmaPlan:
    """The plan of the fewest estimated cycles for (batch, rows, columns, depth).

    A thread has at most `sums`, unless they pass through buffers: of those few are at work at a time.
    `gathers` are the values that plans may have there, the preferred one first; none is 0 alone.
    """
    plans = [
        plan
        for way in gathers or (0,)
        for plan in default_wgmma_plans(dtype, extents, output, gpu, way)
        if plan.buffers or plan.sums <= sums
    ]
    return min(plans, key=lambda plan: plan.cycles(gpu))


def default_wgmma_plans(
    dtype: str, extents: tuple[int, int, int, int], output: Output, gpu: Gpu, gathers: int = 0
) -> Iterator[WgmmaPlan]:
    """The plans that a default may be."""
    blocks = [(*block, 0) for block in _DEFAULT_BLOCKS]
    if not gathers:
        blocks += [(*block, 2, 1) for block in _DEFAULT_PAIRS]
    for rows, columns, consumers, pingpong in blocks:
        for stages, buffers in product((4, 3, 6), (2, 1, 0) if output.in_lines else (0,)):
            plan = WgmmaPlan(
                dtype, *extents, rows, columns, consumers, stages, pingpong=pingpong, buffers=buffers,
                gathers=gathers, output=output,
            )  # fmt: skip
            shared = [replace(plan, splits=n) for n in SPLITS]
            shared += [replace(plan, streamed=n) for n in STREAMED if n]
            yield from (one for one in shared if one.complaint(gpu) is None)


def wgmma_space(
    dtype: str,
    extents: tuple[int, int, int, int],
    output: Output,
    gpu: Gpu,
    sums: int,
    gathers: tuple[int, ...] = (),
) -> Space:
    """The knobs of plans of a product, by the names of the plan's fields; `gathers` is one where given."""
    best = default_wgmma_plan(dtype, extents, output, gpu, sums, gathers)
    values = {
        "block_rows": _BLOCK_ROWS, "block_columns": _BLOCK_COLUMNS, "consumers": _CONSUMERS,
        "stages": _STAGES, "splits": SPLITS, "streamed": STREAMED, "group": GROUPS, "cluster": _CLUSTERS,
        "pingpong": _PINGPONG, "buffers": _BUFFERS,
    }  # fmt: skip
    own = {"gathers": tuple(sorted(gathers))} if gathers else {}
    knobs = tuple(Ordered(name, of, int(getattr(best, name))) for name, of in {**values, **own}.items())
    return Space(
        knobs,
        lambda config: wgmma_plan_of(dtype, extents, output, config).complaint(gpu),
        added={"streamed": 0, "pingpong": 0, "buffers": 0, **dict.fromkeys(own, 1)},
    )


def wgmma_plan_of(
    dtype: str, extents: tuple[int, int, int, int], output: Output, config: Config
) -> WgmmaPlan:
    knobs = {name: int(value) for name, value in config.items()}
    return WgmmaPlan(dtype, *extents, **knobs, output=output)
