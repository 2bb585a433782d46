"""How threads copy an operand of tensor cores to shared memory, by chunks of 16 bytes.

Where a chunk lies is the sum of a part that follows from its row and one that follows from its depth. A
thread keeps the first of each of its chunks in a register, and finds the second out once a step, so that a
copy takes an addition to a pointer. The same holds for what of a window hangs over a border
(`window_border`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from tcomp.tensor.loops import Expression, Statement, call, constant
from tcomp.tensor.tensor_cores.mma_operand import CopyPlan, MmaOperand, Place, swizzle
from tcomp.tensor.tensor_cores.window_border import BEYOND
from tcomp.tvm_api import tirx, tvm


@dataclass(frozen=True)
class CopyStep:
    """What a thread knows of a step of the depth, behind the statements `known`."""

    known: Sequence[Statement]
    depth: Expression
    """Where it begins."""
    along: Expression
    """In elements of memory, from the beginning of the depth to the thread's chunks."""
    tap: Sequence[Expression]
    """The words of the tap, where there is a border."""


@dataclass(frozen=True)
class _Rows:
    """What a thread knows of its chunks of every step, behind the statements `known`."""

    known: Sequence[Statement]
    places: Sequence[Expression]
    outside: Sequence[Sequence[Expression]]


@dataclass(frozen=True)
class ChunkCopies:
    """One operand as the threads that copy it see it.

    `begin` is where it begins in a stage, in chunks; `first` the first row of the block's tile; `thread` a
    number among those that copy.
    """

    copy: ClassVar[str] = "tcomp_copy_async"
    """The function that copies a chunk."""

    operand: MmaOperand
    plan: CopyPlan
    begin: int
    rows: int
    block_rows: int
    batch: Expression
    first: Expression
    thread: Expression

    @property
    def chunks(self) -> int:
        """Of a line."""
        return self.plan.depth_chunks if self.operand.by_depth else self.block_rows // self.plan.chunk

    @property
    def count(self) -> int:
        """Chunks of a step that are a thread's."""
        return self.block_rows * self.plan.depth_chunks // self.plan.copy_threads

    @property
    def known(self) -> Sequence[Statement]:
        """What comes before the first step."""
        return self._rows.known

    def step(self, depth: Expression) -> CopyStep:
        """The step that begins at `depth`."""
        known: list[Statement] = []
        k, zero = self._own(0)[1], constant(0)
        own = k if self.operand.by_depth else zero
        along = self._place(zero, zero, own + depth) - self._place(zero, zero, zero)
        along = tvm.sym.Analyzer().simplify(along)
        border = self.operand.border
        tap = [] if border is None else border.tap(k + depth)
        if tap and self._is_ragged_along_depth:
            tap[0] = tirx.Select(k + depth < self.plan.depth, tap[0], constant(BEYOND))
        return CopyStep(
            known, depth, _kept(along, "along", known), [_kept(word, "tap", known) for word in tap]
        )

    def copies(
        self, stage: Place, step: CopyStep, numbers: Sequence[int], live: Expression | None = None
    ) -> list[Statement]:
        """Copies of the thread's chunks `numbers`, which are made if `live`."""
        statements: list[Statement] = []
        for number in numbers:
            source, inside = self._source(number, step), self._inside(number, step)
            filler = self.operand.border_word
            if filler is not None:
                source = tirx.call_extern("handle", f"tcomp_or_border<{filler}u>", source, inside)
                inside = tirx.const(1, "bool")
            arguments = [self._target(stage, number), source, inside]
            statements.append(call(self.copy, *arguments, *([] if live is None else [live])))
        return statements

    def fetches(self, step: CopyStep) -> list[Statement]:
        """Loads of what chunks are made of, where they have to be computed."""
        filling = self.operand.filling
        if filling is None:
            return []
        statements: list[Statement] = []
        for number in range(self.count):
            row, k = self._own(number)
            statements.append(filling.fetch(number, row, k + step.depth, self._inside(number, step)))
        return statements

    def puts(self, stage: Place) -> list[Statement]:
        """Store what `fetches` loaded."""
        filling = self.operand.filling
        if filling is None:
            return []
        return [filling.put(number, self._target(stage, number)) for number in range(self.count)]

    @property
    def _is_ragged_along_depth(self) -> bool:
        return bool(self.plan.depth % (self.plan.steps * self.plan.block_depth))

    def _line(self, number: int) -> Expression:
        return tirx.floordiv(self.thread, self.chunks) + number * self.plan.copy_threads // self.chunks

    def _own(self, number: int) -> tuple[Expression, Expression]:
        """Row, and depth from the step's first on, of this thread's chunk `number`."""
        along = tirx.floormod(self.thread, self.chunks) * self.plan.chunk
        row, k = (self._line(number), along) if self.operand.by_depth else (along, self._line(number))
        return row + self.first, k

    def _place(self, batch: Expression, row: Expression, k: Expression) -> Expression:
        """Where an element lies, in elements of the operand's memory."""
        place = constant(0)
        extents = (int(extent) for extent in self.operand.buffer.shape)
        for at, extent in zip(self.operand.index(batch, row, k), extents, strict=True):
            place = place * extent + at
        return place

    def _target(self, stage: Place, number: int) -> Expression:
        """The address of this thread's chunk `number` of a step."""
        line, chunk = self._line(number), tirx.floormod(self.thread, self.chunks)
        place = line * self.chunks + tirx.bitwise_xor(chunk, swizzle(line, self.chunks))
        return stage(place + self.begin)

    @cached_property
    def _rows(self) -> _Rows:
        known: list[Statement] = []
        own = [self._own(number) for number in range(self.count)]
        border = self.operand.border
        outside = [] if border is None else [border.outside(row) for row, _ in own]
        for (row, _), words in zip(own, outside, strict=False):
            if self._is_ragged_along_depth:
                words[0] = tirx.bitwise_or(words[0], constant(BEYOND))
            if self.rows % self.block_rows:
                words[:] = [tirx.Select(row < self.rows, word, constant(-1)) for word in words]
            words[:] = [_kept(word, "outside", known) for word in words]
        found = [self._place(self.batch, row, constant(0) if self.operand.by_depth else k) for row, k in own]
        analyzer = tvm.sym.Analyzer()
        places: list[Expression] = []
        for place in found:
            # Where it is always as far from the first, that one's register is enough.
            distance = analyzer.simplify(place - found[0])
            known_distance = bool(places) and isinstance(distance, tirx.IntImm)
            places.append(places[0] + distance if known_distance else _kept(place, "place", known))
        return _Rows(known, places, outside)

    def _source(self, number: int, step: CopyStep) -> Expression:
        buffer = self.operand.buffer
        place = [*(constant(0) for _ in buffer.shape[1:]), self._rows.places[number] + step.along]
        return tirx.address_of(tirx.BufferLoad(buffer, place))

    def _inside(self, number: int, step: CopyStep) -> Expression:
        """Whether a chunk exists."""
        if step.tap:
            both = [
                tirx.bitwise_and(*pair) for pair in zip(self._rows.outside[number], step.tap, strict=True)
            ]
            return tirx.all(*(word == 0 for word in both))
        row, k = self._own(number)
        conditions: list[Expression] = []
        if self._is_ragged_along_depth:
            conditions.append(k + step.depth < self.plan.depth)
        if self.rows % self.block_rows:
            conditions.append(row < self.rows)
        return tirx.all(*conditions) if conditions else tirx.const(1, "bool")


def _kept(value: Expression, name: str, known: list[Statement]) -> Expression:
    """A variable of this value, which `known` is to define, and whose value the compiler does not see.

    Else it would keep sums of these from step to step, in registers of their own, or compute what is known
    before the first step, or once a step, again for every chunk.
    """
    variable = tirx.Var(name, "int32")
    known.append(tirx.Bind(variable, tirx.call_extern("int32", "tcomp_anew", value)))
    return variable
