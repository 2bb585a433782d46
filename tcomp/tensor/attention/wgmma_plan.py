"""How attention is cut for the products of warp groups on sm_90a, and what it takes.

A block has `consumers` groups of four warps, each of 64 rows of queries. One thread of a further group
fetches tiles: queries once, keys and values into `stages`. A tile in shared memory is pieces of 64 elements
of depth or width of all its rows, lines of the 128-byte swizzle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tcomp.target.target import Gpu
from tcomp.tensor.attention.plan import EXPONENTIAL_CYCLES, AttentionPlan, StepCycles, together
from tcomp.tensor.gpu.rates import (
    CACHE_BYTES,
    SHARED_BYTES,
    clock,
    equal_registers,
    resident_blocks,
)
from tcomp.tensor.tensor_cores.wgmma_plan import (
    BARRIER_BYTES,
    DEPTH_BYTES,
    GROUP_THREADS,
    INSTRUCTION_BYTES,
    INSTRUCTION_ROWS,
)

ITEMSIZE = 2
LINE = DEPTH_BYTES // ITEMSIZE
"""Elements of a line of a tile."""
ALONG = INSTRUCTION_BYTES // ITEMSIZE
"""Elements of what an instruction adds up."""
COLUMNS = 32
"""Those of products whose left operand is in registers are multiples of this."""
_ALIGNMENT = 1024
_CONSUMERS = (1, 2, 3)
_KEYS = (64, 128, 192)
_STAGES = (2, 3, 4)
_TURNS = (0, 1)
_PERSISTENT = (0, 1)
_MOST_COLUMNS = 256
"""Of an instruction."""
_SHARED_REGISTERS = {2: (40, 232), 3: (32, 160)}
"""By consumers: of a thread of the producer and of one of a consumer, of all that a multiprocessor has."""
_OTHER_REGISTERS, _MASK_REGISTERS = 32, 24
"""Addresses, conditions and counters of a thread; those of a mask."""
_LEAST_SHARED = 140
"""Registers of a consumer beyond which it takes some of the producer's: for fewer, ptxas shares none."""
_STORE_CYCLES = 500
"""Until a tile's last stores are on their way; what the next needs is fetched meanwhile."""
_STEP_INSTRUCTIONS = 60
_STEP_CYCLES = 300
"""That a group waits in a step where no other runs meanwhile: barriers, first products, shuffles."""


@dataclass(frozen=True)
class WgmmaAttentionPlan(AttentionPlan):
    """Blocks of `consumers`, groups of 64 rows."""

    values: ClassVar = {
        "consumers": _CONSUMERS,
        "tile_n": _KEYS,
        "stages": _STAGES,
        "turns": _TURNS,
        "persistent": _PERSISTENT,
    }
    added: ClassVar = {"split": 1, "persistent": 0}
    consumers: int
    stages: int
    turns: int
    """Whether groups begin their products in turns, so that one computes weights while another multiplies."""
    persistent: int
    """Whether blocks are as many as run at once, and take one tile of queries after the other."""

    @property
    def threads(self) -> int:
        return (self.consumers + 1) * GROUP_THREADS

    @property
    def block_rows(self) -> int:
        return self.consumers * INSTRUCTION_ROWS

    @property
    def depth_lines(self) -> int:
        """Pieces of 64 elements, filled up with zeros."""
        return -(-self.shape.depth // LINE)

    @property
    def width_lines(self) -> int:
        return -(-self.shape.width // LINE)

    @property
    def columns(self) -> int:
        """Of the output that are computed."""
        return -(-self.shape.width // COLUMNS) * COLUMNS

    @property
    def depth_steps(self) -> int:
        """Instructions along the depth."""
        return -(-self.shape.depth // ALONG)

    @property
    def query_bytes(self) -> int:
        return self.block_rows * self.depth_lines * DEPTH_BYTES

    @property
    def key_bytes(self) -> int:
        """Of a tile of keys."""
        return self.tile_n * self.depth_lines * DEPTH_BYTES

    @property
    def value_bytes(self) -> int:
        return self.tile_n * self.width_lines * DEPTH_BYTES

    @property
    def shared_bytes(self) -> int:
        stages = self.stages * (self.key_bytes + self.value_bytes)
        return _ALIGNMENT + BARRIER_BYTES + self.query_bytes + stages

    @property
    def burden(self) -> tuple[int, ...]:
        """Turns take nothing."""
        return (self.persistent, -self.turns, self.shared_bytes)

    def grid(self, gpu: Gpu) -> int:
        if not self.persistent:
            return super().grid(gpu)
        at_once = resident_blocks(gpu, self.threads, self.registers, self.shared_bytes)
        return min(self.blocks, gpu.processors * at_once)

    @property
    def price(self) -> float:
        """Persistent blocks must save a twentieth."""
        return super().price * (1.05 if self.persistent else 1)

    @property
    def between_cycles(self) -> int:
        return _STORE_CYCLES if self.persistent else super().between_cycles

    @property
    def takes_turns(self) -> bool:
        return self.turns == 1 and self.consumers > 1

    @property
    def needed(self) -> int:
        """Registers of a thread of a consumer: sums, scores, weights, and others."""
        others = _OTHER_REGISTERS + (_MASK_REGISTERS if self.shape.masked else 0)
        return self.columns // 2 + self.tile_n // 2 + self.tile_n // 4 + others

    @property
    def registers(self) -> int:
        """Of a thread when the block begins."""
        return self._equal_registers if self.shares_registers else self.needed

    @property
    def _equal_registers(self) -> int:
        """Of a thread where all threads of a multiprocessor have as many."""
        return min(Gpu.thread_registers, equal_registers(self.threads))

    @property
    def shares_registers(self) -> bool:
        """Whether consumers get registers that the producer gives up."""
        return self.consumers > 1 and self.needed > _LEAST_SHARED

    @property
    def shared_registers(self) -> tuple[int, int] | None:
        """Of a thread of the producer and of one of a consumer, where they share all."""
        return _SHARED_REGISTERS[self.consumers] if self.shares_registers else None

    def complaint(self, gpu: Gpu) -> str | None:
        """Why this plan cannot run on `gpu`."""
        if self.columns > _MOST_COLUMNS:
            return f"{self.columns} columns of values; a product has at most {_MOST_COLUMNS}"
        if self.turns and self.consumers == 1:
            return "turns of one group of warps"
        if self.persistent and (self.split > 1 or self.shape.limit.causal):
            return "persistent blocks take tiles of as many keys, all that there are"
        most = self.shared_registers[1] if self.shared_registers else self._equal_registers
        if self.needed > most:
            return f"{self.needed} registers of a thread; it has {most}"
        return super().complaint(gpu)

    def step_cycles(self, gpu: Gpu) -> StepCycles:
        shape, keys = self.shape, self.tile_n
        operations = 2 * INSTRUCTION_ROWS * keys * (self.depth_steps * ALONG + self.columns)
        products = operations * gpu.processors * clock(gpu) / gpu.flops[shape.dtype]
        scores = INSTRUCTION_ROWS * keys // GROUP_THREADS
        sums = INSTRUCTION_ROWS * self.columns // GROUP_THREADS
        # Of a group each scheduler has one warp.
        issue = scores * shape.score_instructions + sums + _STEP_INSTRUCTIONS
        exponentials = scores * EXPONENTIAL_CYCLES
        read = INSTRUCTION_BYTES * (
            self.depth_steps * (INSTRUCTION_ROWS + keys) + keys // ALONG * self.columns
        )
        copied = self.key_bytes + self.value_bytes
        busy = together(
            *(self.consumers * unit for unit in (products, issue, exponentials)),
            (self.consumers * read + copied) / SHARED_BYTES,
            copied / CACHE_BYTES,
        )
        alone = products + issue + _STEP_CYCLES
        return StepCycles(busy, alone)
