"""How attention is cut for GPUs: what plans of its forms have in common.

A block has rows of queries and walks keys and values `tile_n` at a time; several blocks may share the keys.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import product
from typing import ClassVar, TypeVar

from tcomp.target.target import Gpu
from tcomp.tensor.attention.parts import SPLITS, KeyParts
from tcomp.tensor.attention.shape import Limit, Walk
from tcomp.tensor.gpu.rates import CACHE_BYTES, LAUNCH_CYCLES, in_rounds, resident_blocks
from tcomp.tensor.knobs import Config, Ordered, Space
from tcomp.tensor.tensor_cores.mma_plan import BLOCK_CYCLES

SCORE_INSTRUCTIONS = 5
"""Of a score that becomes a weight: highest, scale and shift, exponential, total, half a conversion."""
MASK_INSTRUCTIONS = 4
"""Beside these with a mask: load, position, and scaling apart from the shift."""
EXPONENTIAL_CYCLES = 8
"""Of a scheduler, for the exponentials of a warp."""
_IN_THE_WAY = 0.2
"""The part of a unit's time that does not pass beside that of the busiest."""


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

    @property
    def score_instructions(self) -> int:
        """Of a score that becomes a weight."""
        return SCORE_INSTRUCTIONS + (MASK_INSTRUCTIONS if self.masked else 0)


@dataclass(frozen=True)
class StepCycles:
    """Of a step: those in which it keeps a multiprocessor busy, and those that a warp takes alone."""

    busy: float
    alone: float


@dataclass(frozen=True)
class AttentionPlan(ABC):
    """The knobs, fields by their names, and what they mean for one attention."""

    values: ClassVar[Mapping[str, tuple[int, ...]]]
    """Of the knobs but `split`."""
    added: ClassVar[Mapping[str, int]] = {"split": 1}
    """What records say that are older than a knob."""
    shape: AttentionShape
    tile_n: int
    """Keys of a step."""
    split: int
    """Parts of the keys, each a block's."""

    @classmethod
    def of(cls: type[Plan], config: Config, shape: AttentionShape) -> Plan:
        return cls(shape, **{name: int({**cls.added, **config}[name]) for name in cls._all_values()})

    @classmethod
    def fitting(cls: type[Plan], shape: AttentionShape, gpu: Gpu) -> Iterator[Plan]:
        """Every plan that can run on `gpu`."""
        names, values = zip(*cls._all_values().items(), strict=True)
        for knobs in product(*values):
            plan = cls(shape, **dict(zip(names, knobs, strict=True)))
            if plan.complaint(gpu) is None:
                yield plan

    @classmethod
    def default(cls: type[Plan], shape: AttentionShape, gpu: Gpu) -> Plan:
        """The plan of the fewest estimated cycles; of equals the one of less `burden`.

        Keys are in parts only where blocks are too few otherwise, and where that pays.
        """
        return _default(cls, shape, gpu)

    @classmethod
    def space(cls, shape: AttentionShape, gpu: Gpu) -> Space:
        best = cls.default(shape, gpu).config
        knobs = tuple(Ordered(name, values, best[name]) for name, values in cls._all_values().items())
        return Space(knobs, lambda config: cls.of(config, shape).complaint(gpu), cls.added)

    @classmethod
    def _all_values(cls) -> dict[str, tuple[int, ...]]:
        return {**cls.values, "split": SPLITS}

    @property
    def config(self) -> dict[str, int]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "shape"}

    @property
    @abstractmethod
    def block_rows(self) -> int:
        """Rows of queries of a block."""

    @property
    @abstractmethod
    def threads(self) -> int:
        """Of a block."""

    @property
    @abstractmethod
    def registers(self) -> int:
        """Of a thread."""

    @property
    @abstractmethod
    def shared_bytes(self) -> int:
        """Of a block."""

    @property
    def burden(self) -> tuple[int, ...]:
        """What decides among plans of as many cycles."""
        return (self.shared_bytes,)

    @property
    def parts(self) -> KeyParts:
        shape = self.shape
        sums = shape.batch * shape.rows * shape.width
        return KeyParts(self.split, -(-shape.length // self.tile_n), sums)

    @property
    def walk(self) -> Walk:
        """Steps of blocks that do not share them."""
        return Walk.of(self.shape.limit, min(self.block_rows, self.shape.limit.rows), self.tile_n)

    @property
    def row_blocks(self) -> int:
        return -(-self.shape.rows // self.block_rows)

    @property
    def blocks(self) -> int:
        """That there are for each part of the keys."""
        return self.shape.batch * self.row_blocks

    def grid(self, gpu: Gpu) -> int:
        """Blocks of the launch."""
        return self.parts.count * self.blocks

    @property
    def price(self) -> float:
        """What cycles are multiplied by where plans are compared."""
        return self.parts.price

    @property
    def between_cycles(self) -> int:
        """From the end of the steps of rows to the beginning of those of the next."""
        return BLOCK_CYCLES

    def complaint(self, gpu: Gpu) -> str | None:
        """Why this plan cannot run on `gpu`."""
        if self.shared_bytes > gpu.block_shared_bytes:
            return f"{self.shared_bytes} bytes of shared memory; a block has {gpu.block_shared_bytes}"
        return self.parts.complaint

    @abstractmethod
    def step_cycles(self, gpu: Gpu) -> StepCycles:
        """Estimated."""

    def cycles(self, gpu: Gpu) -> float:
        """Estimated cycles, in whole rounds of the blocks that run at once.

        Of tensor cores, exponentials, instructions, shared memory and second-level cache the busiest counts,
        and a part of the others, but no less than a warp takes alone.
        """
        step = self.step_cycles(gpu)
        fitting = resident_blocks(gpu, self.threads, self.registers, self.shared_bytes)
        steps = self.walk.mean / self.split

        def of_round(resident: int) -> float:
            return steps * max(resident * step.busy, step.alone) + self.between_cycles

        rounds = in_rounds(self.blocks * self.split, fitting, gpu, of_round)
        rounds += BLOCK_CYCLES - self.between_cycles
        longest = self.parts.share * max(step.busy, step.alone) + BLOCK_CYCLES
        rows = self.shape.batch * self.shape.rows
        combining = self.parts.cycles(rows, self.shape.width, gpu, CACHE_BYTES)
        return max(rounds, longest) + LAUNCH_CYCLES + combining


Plan = TypeVar("Plan", bound=AttentionPlan)


@lru_cache(maxsize=256)
def _default(kind: type[Plan], shape: AttentionShape, gpu: Gpu) -> Plan:
    plans = (p for p in kind.fitting(shape, gpu) if p.split == 1 or p.blocks < gpu.processors)
    return min(plans, key=lambda plan: (plan.price * plan.cycles(gpu), plan.burden))


def together(*units: float) -> float:
    """Cycles in which units of a multiprocessor work side by side that take so many alone."""
    return max(units) + _IN_THE_WAY * (sum(units) - max(units))
