"""How attention is cut for tensor cores: queries of blocks and warps, keys of a step, and what they take.

Each warp of a block has 16 or 32 rows of queries. Operands lie in shared memory as lines of chunks of 16
bytes, one line a query, key or value. Lines begin an odd number of chunks apart, so that chunk c of 8 lines
in a row is in 8 different banks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from tcomp.target.target import Gpu
from tcomp.tensor.attention.plan import EXPONENTIAL_CYCLES, AttentionPlan, StepCycles, together
from tcomp.tensor.gpu.rates import CACHE_BYTES, SHARED_BYTES
from tcomp.tensor.tensor_cores.mma_plan import CHUNK_BYTES, chunk_elements, instruction_cycles

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
_STEP_INSTRUCTIONS = 60
_STEP_CYCLES = 500
"""That a warp waits in a step where no other runs meanwhile: barrier, first matrices, shuffles."""


@dataclass(frozen=True)
class MmaAttentionPlan(AttentionPlan):
    """Blocks of `warps` that share `tile_m` rows."""

    values: ClassVar = {"tile_m": ROWS, "tile_n": KEYS, "warps": WARPS, "stages": STAGES}
    tile_m: int
    warps: int
    stages: int

    @property
    def block_rows(self) -> int:
        return self.tile_m

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
        return self.tile_n // 16

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
        return self.tile_n * (self.depth_line + self.width_line)

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
    def registers(self) -> int:
        """Of a thread: sums, scores, weights that replace them, queries, pieces, two numbers a row."""
        sums = self.warp_rows * 16 * self.width_pieces // Gpu.warp
        scores = self.warp_rows * self.tile_n // Gpu.warp
        queries = 4 * self.row_pieces * (self.depth_pieces if self.keeps_queries else 2)
        return sums + scores + queries + 4 * PIECES + 4 * self.row_pieces + _OTHER_REGISTERS

    def complaint(self, gpu: Gpu) -> str | None:
        """Why this plan cannot run on `gpu`."""
        if self.block_rows % self.warps or self.warp_rows not in _WARP_ROWS:
            return f"{self.warps} warps do not share {self.block_rows} rows by 16 or 32"
        if self.threads > gpu.block_threads:
            return f"a block would have {self.threads} threads; at most {gpu.block_threads} are possible"
        if self.registers > gpu.thread_registers or self.registers * self.threads > gpu.registers:
            most = f"{gpu.thread_registers} each and {gpu.registers} together"
            return f"{self.threads} threads of {self.registers} registers; they have {most}"
        return super().complaint(gpu)

    @cached_property
    def step(self) -> StepCounts:
        scores = self.row_pieces * self.key_pieces * self.depth_pieces
        sums = self.row_pieces * self.key_pieces * self.width_pieces
        queries = 0 if self.keeps_queries else self.row_pieces * self.depth_pieces
        return StepCounts(
            products=2 * (scores + sums),
            matrices=queries + self.key_pieces * (self.depth_pieces + self.width_pieces),
            scores=self.warp_rows * self.tile_n // Gpu.warp,
            sums=self.warp_rows * 16 * self.width_pieces // Gpu.warp,
            chunks=-(-self.tile_n * 2 * (self.depth_pieces + self.width_pieces) // self.threads),
        )

    def step_cycles(self, gpu: Gpu) -> StepCycles:
        counts = self.step
        products = counts.products * instruction_cycles(self.shape.dtype, gpu)
        others = (
            counts.matrices
            + counts.scores * self.shape.score_instructions
            + counts.sums
            + 3 * counts.chunks
            + _STEP_INSTRUCTIONS
        )
        issue = (counts.products + others) / SCHEDULERS
        exponentials = counts.scores * EXPONENTIAL_CYCLES / SCHEDULERS
        copied = self.tile_n * 2 * (self.depth_pieces + self.width_pieces) * CHUNK_BYTES
        read = self.warps * counts.matrices * 32 * CHUNK_BYTES
        alone = SCHEDULERS * products + others + _STEP_CYCLES
        busy = together(
            *(self.warps * unit for unit in (products, issue, exponentials)),
            (read + copied) / SHARED_BYTES,
            copied / CACHE_BYTES,
        )
        return StepCycles(busy, alone)


@dataclass(frozen=True)
class StepCounts:
    """Of one step: instructions of a warp that multiply and that load matrices; what a thread has of scores,
    sums and copied chunks."""

    products: int
    matrices: int
    scores: int
    sums: int
    chunks: int


def chunks(extent: int, dtype: str) -> int:
    """`extent` in elements, filled up to whole chunks."""
    size = chunk_elements(dtype)
    return -(-extent // size) * size
