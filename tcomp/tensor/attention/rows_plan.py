"""How attention of few queries is cut among threads of plain instructions, and what that takes.

A block has all rows, and of the keys of a step `tile_n / groups` for each group of `lanes` threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tcomp.target.target import Gpu
from tcomp.tensor.attention.parts import DTYPE
from tcomp.tensor.attention.plan import AttentionPlan, StepCycles, together
from tcomp.tensor.gpu.block_tile import STATIC_SHARED_BYTES
from tcomp.tensor.gpu.rates import multiply_adds
from tcomp.tensor.gpu.simt_space import ARRIVAL_CYCLES, SECOND_LEVEL_BYTES

MOST_ROWS = 8
VECTOR = 4
"""Elements of a load, at most."""
_MOST_KEYS = 8
_OTHER_REGISTERS = 40
_STEP_INSTRUCTIONS = 40


@dataclass(frozen=True)
class RowsAttentionPlan(AttentionPlan):
    """Blocks of `warps`, whose threads are groups of `lanes`."""

    values: ClassVar = {"tile_n": (8, 16, 32, 64, 128, 256), "lanes": (4, 8, 16, 32), "warps": (1, 2, 4, 8)}
    lanes: int
    warps: int

    @property
    def block_rows(self) -> int:
        return self.shape.rows

    @property
    def threads(self) -> int:
        return self.warps * Gpu.warp

    @property
    def groups(self) -> int:
        return self.threads // self.lanes

    @property
    def keys(self) -> int:
        """Of a group, of a step."""
        return self.tile_n // self.groups

    @property
    def depth(self) -> int:
        """Elements of a key that a thread has."""
        return self.shape.depth // self.lanes

    @property
    def width(self) -> int:
        """Elements of a value that a thread has."""
        return self.shape.width // self.lanes

    @property
    def registers(self) -> int:
        """Queries, sums, keys and values, scores, three numbers a row."""
        rows, keys = self.shape.rows, self.keys
        return (rows + keys) * (self.depth + self.width) + rows * (keys + 3) + _OTHER_REGISTERS

    @property
    def shared_bytes(self) -> int:
        return self.groups * self.shape.rows * (self.shape.width + 2) * 4

    def complaint(self, gpu: Gpu) -> str | None:
        if self.shape.depth % self.lanes or self.shape.width % self.lanes:
            return f"{self.lanes} threads do not share {self.shape.depth} and {self.shape.width} elements"
        if self.tile_n % self.groups or not 1 <= self.keys <= _MOST_KEYS:
            return f"{self.groups} groups do not share {self.tile_n} keys, at most {_MOST_KEYS} each"
        if self.shared_bytes > STATIC_SHARED_BYTES:
            return f"{self.shared_bytes} bytes of shared memory; there are {STATIC_SHARED_BYTES}"
        most = min(gpu.thread_registers, gpu.registers // self.threads)
        if self.registers > most:
            return f"a thread needs {self.registers} registers; it can have {most}"
        return super().complaint(gpu)

    def step_cycles(self, gpu: Gpu) -> StepCycles:
        """Of plain instructions and of the second-level cache; a warp alone waits for memory."""
        shape, elements = self.shape, self.depth + self.width
        of_row = elements + 2 * (self.lanes.bit_length() - 1) + shape.score_instructions
        of_key = shape.rows * of_row + 2 * elements / VECTOR
        instructions = self.keys * of_key + shape.rows * (self.width + 8) + _STEP_INSTRUCTIONS
        issue = instructions * self.threads / multiply_adds(gpu, 4)
        copied = self.tile_n * (shape.depth + shape.width) * (4 if shape.dtype == DTYPE else 2)
        busy = together(issue, copied / SECOND_LEVEL_BYTES)
        return StepCycles(busy, ARRIVAL_CYCLES + 2 * instructions)
