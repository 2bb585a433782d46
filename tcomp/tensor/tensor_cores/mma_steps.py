"""Steps of a block that multiplies by tensor cores: a ring of stages in shared memory, pieces in registers.

A step is one straight piece of code, without a branch around what the last steps do not need: copies have a
condition each (chunks that are computed stand in a branch), and the wait, barrier and first load of the next
step are there for the last one too, whose pieces nothing multiplies. So the compiler can put copies and loads
between products, of which each takes it one slot of several; it cannot move them over a branch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from tcomp.tensor.gpu.shares import Segment
from tcomp.tensor.gpu.threads import synchronize
from tcomp.tensor.loops import (
    Buffer,
    Expression,
    Statement,
    call,
    constant,
    local,
    rolled,
    sequence,
    written_out,
)
from tcomp.tensor.tensor_cores.chunk_copies import ChunkCopies, CopyStep
from tcomp.tensor.tensor_cores.mma_operand import Place, swizzle
from tcomp.tensor.tensor_cores.mma_plan import CHUNK_BYTES, MATRIX, MmaPlan
from tcomp.tvm_api import tirx


@dataclass(frozen=True)
class Side(ChunkCopies):
    """One operand as the threads of a block see it.

    `warp` is the number of the thread's warp along its rows. `halves_swapped` says which bit of the thread's
    number tells the halves of a 16x16 piece apart along the depth: 16, or 8 where swapped.
    """

    plan: MmaPlan
    warp_rows: int
    halves_swapped: bool
    warp: Expression

    @property
    def pieces(self) -> int:
        """Of 16 rows, of a warp."""
        return self.warp_rows // 16

    @property
    def copied(self) -> Sequence[int]:
        """The thread's chunks of a step that are copied as they are."""
        return range(0 if self.operand.filling is not None else self.count)

    def load(self, into: Buffer, which: int, memory: Buffer, stage: Expression, k: int) -> Statement:
        """Load the warp's pieces of the `k`-th two chunks of depth into set `which` of `into`.

        A stage begins at byte `stage` of `memory`, a multiple of whole lines. Steps by two chunks are an
        exclusive or with that place, which takes an instruction and no register of its own.
        """
        lane = tirx.floormod(self.thread, 32)
        row_in_matrix, upper = tirx.floormod(lane, MATRIX), tirx.floordiv(lane, 2 * MATRIX)
        lower = tirx.floormod(tirx.floordiv(lane, MATRIX), 2)
        by_depth = self.operand.by_depth
        line_half, chunk_half = (upper, lower) if self.halves_swapped == by_depth else (lower, upper)
        line = row_in_matrix + line_half * MATRIX
        warp_chunk = 0 if by_depth else self.warp * (self.warp_rows // self.plan.chunk)
        own = tirx.bitwise_xor(warp_chunk + chunk_half, swizzle(line, self.chunks))
        warp_line = self.warp * self.warp_rows if by_depth else 0
        place = stage + ((line + warp_line) * self.chunks + own) * CHUNK_BYTES
        rounds = self.plan.dtype == "tf32" and not self.operand.is_rounded

        def piece(i: int) -> Statement:
            first_line, chunk = (16 * i, 2 * k) if by_depth else (16 * k, 2 * i)
            further = (self.begin + first_line * self.chunks) * CHUNK_BYTES
            at = tirx.bitwise_xor(place, constant(chunk * CHUNK_BYTES)) + further
            name = "tcomp_load_matrices" + ("" if by_depth else "_transposed")
            registers = tirx.address_of(into[which, i, 0])
            loads = call(name, registers, tirx.address_of(memory[at]))
            return sequence([loads, call("tcomp_round_tf32", registers)]) if rounds else loads

        return sequence([piece(i) for i in range(self.pieces)])


@dataclass(frozen=True)
class Steps:
    """Those of a segment: `sums` += left x right, by way of `memory`, in bytes."""

    plan: MmaPlan
    left: Side
    right: Side
    sums: Buffer
    memory: Buffer
    segment: Segment

    @property
    def statements(self) -> list[Statement]:
        steps, ahead = self.segment.steps, self.plan.stages - 1
        fillings = [side.operand.filling for side in (self.left, self.right)]
        registers = [one for filling in fillings if filling is not None for one in filling.allocations]
        allocations = [allocate for allocate, _ in (self._left, self._right, self._ring)]
        statements = [*allocations, *registers, *self.left.known, *self.right.known]
        for step in range(ahead):
            stage, found = constant(step * self._stage_bytes), self._step(constant(step))
            copies = [*_known(found), *self._fetches(found), *self._copies(stage, found), *self._puts(stage)]
            statements += [*_where(step < steps, copies), call("tcomp_commit_copies")]
        statements += self._turn(constant(0), constant(ahead * self._stage_bytes))
        statements += [*self._next(), *self._load(0)]
        return [*statements, rolled(steps, self._body, "step")]

    def _body(self, step: Expression) -> Statement:
        """Of each two chunks of depth the products, behind the loads of those that come next and the part of
        the copies that goes beside. The last ones come behind the barrier of the next step."""
        groups = self.plan.depth_chunks // 2
        live = step + (self.plan.stages - 1) < self.segment.steps
        found, (read, write) = self._step(step + (self.plan.stages - 1)), self._stages
        parts = _known(found)
        if fetches := self._fetches(found):
            parts.append(tirx.IfThenElse(live, sequence(fetches), None))
        for k in range(groups - 1):
            parts += [*self._load(k + 1), *self._copies(write, found, (k, groups - 1), live)]
            parts.append(self._multiply(k))
        if puts := self._puts(write):
            parts.append(tirx.IfThenElse(live, sequence(puts), None))
        following, end = read + self._stage_bytes, self.plan.stages * self._stage_bytes
        parts += [call("tcomp_commit_copies"), *self._next()]
        parts += self._turn(tirx.Select(following < end, following, constant(0)), read)
        return sequence([*parts, *self._load(0), self._multiply(groups - 1)])

    @property
    def _stage_bytes(self) -> int:
        return self.plan.stage_chunks * CHUNK_BYTES

    @cached_property
    def _left(self) -> tuple[Statement, Buffer]:
        return local((2, self.left.pieces, 4), "uint32", "left_pieces")

    @cached_property
    def _right(self) -> tuple[Statement, Buffer]:
        return local((2, self.right.pieces, 4), "uint32", "right_pieces")

    @cached_property
    def _ring(self) -> tuple[Statement, Buffer]:
        return local((2,), "int32", "ring")

    @property
    def _stages(self) -> tuple[Expression, Expression]:
        """Where the stage begins that is read, and the one that is written."""
        return self._ring[1][0], self._ring[1][1]

    def _turn(self, read: Expression, write: Expression) -> list[Statement]:
        _, ring = self._ring
        return [tirx.BufferStore(ring, write, [1]), tirx.BufferStore(ring, read, [0])]

    def _next(self) -> list[Statement]:
        """Wait until the next step is in shared memory, of all threads."""
        return [call(f"tcomp_wait_copies<{self.plan.stages - 2}>"), synchronize()]

    def _step(self, step: Expression) -> tuple[CopyStep, CopyStep]:
        depth = (self.segment.first + step) * self.plan.block_depth
        return self.left.step(depth), self.right.step(depth)

    def _copies(
        self,
        stage: Expression,
        found: tuple[CopyStep, CopyStep],
        part: tuple[int, int] = (0, 1),
        live: Expression | None = None,
    ) -> list[Statement]:
        """Part (number, of so many) of a step's copies to the stage that begins at byte `stage`."""
        both = ((self.left, found[0]), (self.right, found[1]))
        chunks = [(side, step, number) for side, step in both for number in side.copied]
        first, last = (len(chunks) * (part[0] + i) // part[1] for i in range(2))
        statements: list[Statement] = []
        for side, step, number in chunks[first:last]:
            statements += side.copies(self._place(stage), step, [number], live)
        return statements

    def _fetches(self, found: tuple[CopyStep, CopyStep]) -> list[Statement]:
        return [*self.left.fetches(found[0]), *self.right.fetches(found[1])]

    def _puts(self, stage: Expression) -> list[Statement]:
        return [*self.left.puts(self._place(stage)), *self.right.puts(self._place(stage))]

    def _place(self, stage: Expression) -> Place:
        return lambda chunk: tirx.address_of(self.memory[stage + chunk * CHUNK_BYTES])

    def _load(self, k: int) -> list[Statement]:
        read, _ = self._stages
        return [
            side.load(pieces, k % 2, self.memory, read, k)
            for side, (_, pieces) in ((self.left, self._left), (self.right, self._right))
        ]

    def _multiply(self, k: int) -> Statement:
        (_, left), (_, right) = self._left, self._right

        def one(at: list[Expression]) -> Statement:
            i, j = at
            a = tirx.address_of(left[k % 2, i, 0])
            b = tirx.address_of(right[k % 2, tirx.floordiv(j, 2), tirx.floormod(j, 2) * 2])
            return call(f"tcomp_multiply_{self.plan.dtype}", tirx.address_of(self.sums[i, j, 0]), a, b)

        return written_out((self.left.pieces, 2 * self.right.pieces), one)


def _known(found: tuple[CopyStep, CopyStep]) -> list[Statement]:
    return [statement for side in found for statement in side.known]


def _where(condition: bool | Expression, statements: list[Statement]) -> list[Statement]:
    if isinstance(condition, bool):
        return statements if condition else []
    return [tirx.IfThenElse(condition, sequence(statements), None)]
