"""Stages of tiles in shared memory on sm_90a, between the producer and the warps that multiply.

A stage has two barriers: at `full` the bytes of a step arrive, at `empty` the warps that have read it. Lines
of a tile are in the order of the 128-byte swizzle.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tcomp.tensor.loops import (
    Expression,
    Statement,
    call,
    constant,
    sequence,
)
from tcomp.tensor.tensor_cores.mma_plan import CHUNK_BYTES
from tcomp.tensor.tensor_cores.wgmma_plan import DEPTH_BYTES
from tcomp.tvm_api import tirx

BARRIER = 8
"""Bytes."""
LINES = 8
"""After which the swizzle repeats."""


@dataclass(frozen=True)
class Pipe:
    """So many `stages`, each used again and again: addresses of barriers from `barriers` on, of tiles from
    `tiles` on. Steps are counted over all that pass."""

    stages: int
    barriers: Expression
    tiles: Expression
    stage_bytes: int
    passed: Expression | int = field(default=0, kw_only=True)
    """Steps before the first that is counted."""

    def behind(self, steps: Expression) -> Pipe:
        """The same when so many steps have passed."""
        return replace(self, passed=steps)

    def stage(self, step: Expression) -> Expression:
        return tirx.floormod(step + self.passed, self.stages)

    def parity(self, step: Expression) -> Expression:
        """Of the phase of a step."""
        return tirx.floormod(tirx.floordiv(step + self.passed, self.stages), 2)

    def full(self, step: Expression) -> Expression:
        return self.barriers + self.stage(step) * BARRIER

    def empty(self, step: Expression) -> Expression:
        return self.barriers + (self.stage(step) + self.stages) * BARRIER

    def place(self, step: Expression) -> Expression:
        return self.tiles + self.stage(step) * self.stage_bytes

    def initialise(self, readers: int, arrivals: int = 1) -> list[Statement]:
        """A stage is full when so many threads have arrived, and empty when so many warps have."""
        return [
            call("tcomp_barrier_init", barrier(constant(stage)), constant(count))
            for stage in range(self.stages)
            for barrier, count in ((self.full, arrivals), (self.empty, readers))
        ]

    def wait_for(self, step: Expression) -> Statement:
        """Until the tile of a step is there."""
        return call("tcomp_barrier_wait", self.full(step), self.parity(step))

    def wait_for_room(self, step: Expression) -> Statement:
        # Before its first use a stage is free: the phase before the first counts as over.
        return call("tcomp_barrier_wait", self.empty(step), 1 - self.parity(step))

    def give_back(self, step: Expression, lane: Expression) -> Statement:
        """This warp has read the tile of a step."""
        return tirx.IfThenElse(lane < 1, call("tcomp_barrier_arrive", self.empty(step)), None)


def matrix(place: Expression, leading: int) -> Expression:
    """What instructions are told of a tile; `leading` as in tcomp_wgmma.cuh."""
    arguments = place, constant(leading), constant(LINES * DEPTH_BYTES)
    return tirx.call_pure_extern("uint64", "tcomp_matrix", *arguments)


def matrix_step(count: int) -> Expression:
    """From a matrix to the one that begins so many bytes behind it."""
    return tirx.const(count // CHUNK_BYTES, "uint64")


def by_roles(
    consumes: Expression,
    consume: list[Statement],
    produce: list[Statement],
    registers: tuple[int, int] | None,
) -> Statement:
    """What groups do that multiply, and what the other one does, which first gives registers to them:
    `registers` of a thread of the producer and of a consumer, unless all keep as many as they have."""
    give, take = (
        [] if registers is None else [call(f"tcomp_{verb}_registers<{count}>")]
        for verb, count in zip(("give", "take"), registers or (0, 0), strict=True)
    )
    return tirx.IfThenElse(consumes, sequence([*take, *consume]), sequence([*give, *produce]))
