"""How attention is cut for tensor cores: queries of blocks and warps, keys of a step, and what they take.

A block has `block_rows` rows of queries, each of its warps 16 or 32 of them, and walks keys and values
`block_keys` at a time. Operands lie in shared memory as lines of chunks of 16 bytes, one line a query, key or
value. Lines begin an odd number of chunks apart, so that chunk c of 8 lines in a row is in 8 different banks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from tcomp.target.target import Gpu
from tcomp.tensor.attention_parts import SPLITS, KeyParts
from tcomp.tensor.attention_shape import Limit, Walk
from tcomp.tensor.gpu_rates import CACHE_BYTES, LAUNCH_CYCLES, SHARED_BYTES, in_rounds, resident_blocks
from tcomp.tensor.knobs import Config, Ordered, Space
from tcomp.tensor.mma_plan import (
    BLOCK_CYCLES,
    CHUNK_BYTES,
    chunk_elements,
    instruction_cycles,
)

ROWS = (16, 32, 64, 128, 256)
KEYS = (32, 64, 128)
WARPS = (1, 2, 4, 8)
STAGES = (2, 3, 4)
PIECES = 3
"""Pieces of 16x16 keys or values that a thread has registers for: one is multiplied, two are on their way."""
_WARP_ROWS = (16, 32)
_QUERY_REGISTERS = 32
"""Most of a thread that hold queries; more are loaded again at each step."""
_OTHER_REGISTERS = 40
"""Addresses, conditions and counters of a thread."""
SCHEDULERS = 4
"""Of a multiprocessor; each has a tensor core."""
SCORE_INSTRUCTIONS = 5
"""Of a score that becomes a weight: highest, scale and shift, exponential, total, half a conversion."""
MASK_INSTRUCTIONS = 4
"""Beside these with a mask: load, position, and scaling apart from the shift."""
EXPONENTIAL_CYCLES = 8
"""Of a scheduler, for the exponentials of a warp."""
_IN_THE_WAY = 0.2
"""The part of a unit's time that does not pass beside that of the busiest."""
_STEP_INSTRUCTIONS = 60
_STEP_CYCLES = 500
"""That a warp waits in a step where no other runs meanwhile: barrier, first matrices, shuffles."""


@dataclass(frozen=True)
class AttentionShape:
    """Queries `[batch, rows, depth]`, keys `[batch, length, depth]`, values `[batch, length, width]`."""

    dtype: str
    batch: int
    rows: int
    length: int
    depth: int
    width: int
    """Depth and width in elements, whole chunks."""
    masked: bool
    limit: Limit
    """Of each head's own rows."""


@dataclass(frozen=True)
class AttentionPlan:
    """The knobs, and what they mean for one attention."""

    shape: AttentionShape
    block_rows: int
    block_keys: int
    warps: int
    stages: int
    split: int = 1
    """Parts of the keys, each a block's."""

    @staticmethod
    def of(config: Config, shape: AttentionShape) -> AttentionPlan:
        names = ("tile_m", "tile_n", "warps", "stages", "split")
        return AttentionPlan(shape, *(int({"split": 1, **config}[name]) for name in names))

    @property
    def config(self) -> dict[str, int]:
        return {
            "tile_m": self.block_rows,
            "tile_n": self.block_keys,
            "warps": self.warps,
            "stages": self.stages,
            "split": self.split,
        }

    @property
    def threads(self) -> int:
        return self.warps * Gpu.warp

    @property
    def warp_rows(self) -> int:
        return self.block_rows // self.warps

    @property
    def row_pieces(self) -> int:
        """Of 16 rows, of a warp."""
        return self.warp_rows // 16

    @property
    def key_pieces(self) -> int:
        """Of 16 keys, of a step."""
        return self.block_keys // 16

    @property
    def depth_pieces(self) -> int:
        """Of 16 elements, filled up with zeros."""
        return -(-self.shape.depth // 16)

    @property
    def width_pieces(self) -> int:
        """Of 16 columns of the output, filled up with zeros."""
        return -(-self.shape.width // 16)

    @property
    def depth_line(self) -> int:
        """Chunks from one query or key to the next."""
        return 2 * self.depth_pieces + 1

    @property
    def width_line(self) -> int:
        """Chunks from one value to the next."""
        return 2 * self.width_pieces + 1

    @property
    def stage_chunks(self) -> int:
        """Of the keys and values of a step."""
        return self.block_keys * (self.depth_line + self.width_line)

    @property
    def keeps_queries(self) -> bool:
        """Whether a thread has all its queries in registers."""
        return 4 * self.row_pieces * self.depth_pieces <= _QUERY_REGISTERS

    @property
    def query_begin(self) -> int:
        """Where queries lie, in chunks: in the last stage if they leave it before the first step, else behind
        it."""
        return (self.stages - 1 if self.keeps_queries else self.stages) * self.stage_chunks

    @property
    def shared_chunks(self) -> int:
        return max(self.stages * self.stage_chunks, self.query_begin + self.block_rows * self.depth_line)

    @property
    def shared_bytes(self) -> int:
        return self.shared_chunks * CHUNK_BYTES

    @property
    def parts(self) -> KeyParts:
        shape = self.shape
        sums = shape.batch * shape.rows * shape.width
        return KeyParts(self.split, -(-shape.length // self.block_keys), sums)

    @property
    def walk(self) -> Walk:
        """Steps of blocks that do not share them."""
        return Walk.of(self.shape.limit, min(self.block_rows, self.shape.limit.rows), self.block_keys)

    @property
    def row_blocks(self) -> int:
        return -(-self.shape.rows // self.block_rows)

    @property
    def blocks(self) -> int:
        """That there are for each part of the keys."""
        return self.shape.batch * self.row_blocks

    @property
    def registers(self) -> int:
        """Of a thread: sums, scores, weights that replace them, queries, pieces, two numbers a row."""
        sums = self.warp_rows * 16 * self.width_pieces // Gpu.warp
        scores = self.warp_rows * self.block_keys // Gpu.warp
        queries = 4 * self.row_pieces * (self.depth_pieces if self.keeps_queries else 2)
        return sums + scores + queries + 4 * PIECES + 4 * self.row_pieces + _OTHER_REGISTERS

    def complaint(self, gpu: Gpu) -> str | None:
        """Why this plan cannot run on `gpu`."""
        if self.block_rows % self.warps or self.warp_rows not in _WARP_ROWS:
            return f"{self.warps} warps do not share {self.block_rows} rows by 16 or 32"
        if self.threads > gpu.block_threads:
            return f"a block would have {self.threads} threads; at most {gpu.block_threads} are possible"
        if self.shared_bytes > gpu.block_shared_bytes:
            return f"{self.shared_bytes} bytes of shared memory; a block has {gpu.block_shared_bytes}"
        if self.registers > gpu.thread_registers or self.registers * self.threads > gpu.registers:
            most = f"{gpu.thread_registers} each and {gpu.registers} together"
            return f"{self.threads} threads of {self.registers} registers; they have {most}"
        return self.parts.complaint

    @cached_property
    def step(self) -> StepCounts:
        scores = self.row_pieces * self.key_pieces * self.depth_pieces
        sums = self.row_pieces * self.key_pieces * self.width_pieces
        queries = 0 if self.keeps_queries else self.row_pieces * self.depth_pieces
        return StepCounts(
            products=2 * (scores + sums),
            matrices=queries + self.key_pieces * (self.depth_pieces + self.width_pieces),
            scores=self.warp_rows * self.block_keys // Gpu.warp,
            sums=self.warp_rows * 16 * self.width_pieces // Gpu.warp,
            chunks=-(-self.block_keys * 2 * (self.depth_pieces + self.width_pieces) // self.threads),
        )

    def cycles(self, gpu: Gpu) -> float:
        """Estimated cycles, in whole rounds of the blocks that run at once.

        Of tensor cores, exponentials, instructions, shared memory and second-level cache the busiest counts,
        and a part of the others, but no less than a warp takes alone.
        """
        counts = self.step
        products = counts.products * instruction_cycles(self.shape.dtype, gpu)
        of_score = SCORE_INSTRUCTIONS + (MASK_INSTRUCTIONS if self.shape.masked else 0)
        others = (
            counts.matrices + counts.scores * of_score + counts.sums + 3 * counts.chunks + _STEP_INSTRUCTIONS
        )
        issue = (counts.products + others) / SCHEDULERS
        exponentials = counts.scores * EXPONENTIAL_CYCLES / SCHEDULERS
        copied = self.block_keys * 2 * (self.depth_pieces + self.width_pieces) * CHUNK_BYTES
        read = self.warps * counts.matrices * 32 * CHUNK_BYTES
        alone = SCHEDULERS * products + others + _STEP_CYCLES
        fitting = resident_blocks(gpu, self.threads, self.registers, self.shared_bytes)
        busy = together(
            *(self.warps * unit for unit in (products, issue, exponentials)),
            (read + copied) / SHARED_BYTES,
            copied / CACHE_BYTES,
        )
        steps = self.walk.mean / self.split

        def of_round(resident: int) -> float:
            return steps * max(resident * busy, alone) + BLOCK_CYCLES

        rounds = in_rounds(self.blocks * self.split, fitting, gpu, of_round)
        longest = self.parts.share * max(busy, alone) + BLOCK_CYCLES
        rows = self.shape.batch * self.shape.rows
        combining = self.parts.cycles(rows, self.shape.width, gpu, CACHE_BYTES)
        return max(rounds, longest) + LAUNCH_CYCLES + combining


def together(*units: float) -> float:
    """Cycles in which units of a multiprocessor work side by side that take so many alone."""
    return max(units) + _IN_THE_WAY * (sum(units) - max(units))


@dataclass(frozen=True)
class StepCounts:
    """Of one step: instructions of a warp that multiply and that load matrices; what a thread has of scores,
    sums and copied chunks."""

    products: int
    matrices: int
    scores: int
    sums: int
    chunks: int


def fitting_plans(shape: AttentionShape, gpu: Gpu) -> Iterator[AttentionPlan]:
    """Every plan that can run on `gpu`."""
    for rows, keys, warps, stages, split in product(ROWS, KEYS, WARPS, STAGES, SPLITS):
        plan = AttentionPlan(shape, rows, keys, warps, stages, split)
        if plan.complaint(gpu) is None:
            yield plan


def default_plan(shape: AttentionShape, gpu: Gpu) -> AttentionPlan:
    """The plan of the fewest estimated cycles; of equals the one that takes less shared memory.

    Keys are in parts only where blocks are too few otherwise, and where that pays.
    """
    plans = (p for p in fitting_plans(shape, gpu) if p.split == 1 or p.blocks < gpu.processors)
    return min(plans, key=lambda plan: (plan.parts.price * plan.cycles(gpu), plan.shared_bytes))


def plan_space(shape: AttentionShape, gpu: Gpu) -> Space:
    best = default_plan(shape, gpu).config
    values = {"tile_m": ROWS, "tile_n": KEYS, "warps": WARPS, "stages": STAGES, "split": SPLITS}
    knobs = tuple(Ordered(name, of, best[name]) for name, of in values.items())
    return Space(knobs, lambda config: AttentionPlan.of(config, shape).complaint(gpu), {"split": 1})


def chunks(extent: int, dtype: str) -> int:
    """`extent` in elements, filled up to whole chunks."""
    size = chunk_elements(dtype)
    return -(-extent // size) * size
