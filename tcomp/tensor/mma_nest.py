"""Matrix products by tensor cores: the launch that computes the sums.

Steps of a block:
1. Copies of the first `stages - 1` steps of both operands are on their way to shared memory.
2. At each step, while the copies of later ones go on, warps load 16x16 pieces of their operands by
   `ldmatrix` and multiply them. The pieces of the next 32 bytes of depth are loaded before those at hand are
   multiplied, over the borders of steps too. So one barrier a step is enough, just before the first load of
   the next: behind it every warp has loaded all it needs of this step, whose stage may be overwritten then.
   Chunks that are computed (`Filling`) are loaded before the first multiplications of a step, and stored
   before that barrier.
3. The sums are stored from registers, two neighbours of a row at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tcomp.relay.types import stored_as
from tcomp.tensor.convolution import accumulator_dtype
from tcomp.tensor.loops import (
    Buffer,
    Expression,
    Statement,
    constant,
    local,
    loop,
    sequence,
    written_out,
)
from tcomp.tensor.mma_fragments import Fragments
from tcomp.tensor.mma_operand import ChunkCopies, MmaOperand, Place, swizzle
from tcomp.tensor.mma_plan import MATRIX, MmaPlan
from tcomp.tensor.threads import digits, dynamic_shared, launch, synchronize
from tcomp.tvm_api import tirx

Store = Callable[[Expression, Expression, Expression, Expression, Expression], Statement]
"""Of one sum: part of the depth, batch, row, column, value."""


@dataclass(frozen=True)
class _Side(ChunkCopies):
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

    def load(self, into: Buffer, which: int, stage: Place, k: int) -> Statement:
        """Load the warp's pieces of the `k`-th two chunks of depth into set `which` of `into`."""
        lane = tirx.floormod(self.thread, 32)
        row_in_matrix, upper = tirx.floormod(lane, MATRIX), tirx.floordiv(lane, 2 * MATRIX)
        lower = tirx.floormod(tirx.floordiv(lane, MATRIX), 2)
        line_half, chunk_half = (
            (upper, lower) if self.halves_swapped == self.operand.by_depth else (lower, upper)
        )
        line = row_in_matrix + line_half * MATRIX
        warp_chunk = 0 if self.operand.by_depth else self.warp * (self.warp_rows // self.plan.chunk)
        own = tirx.bitwise_xor(warp_chunk + chunk_half, swizzle(line, self.chunks))

        rounds = self.plan.dtype == "tf32" and not self.operand.is_rounded

        def piece(i: int) -> Statement:
            first_line = self.warp * self.warp_rows + 16 * i if self.operand.by_depth else 16 * k
            chunk = 2 * k if self.operand.by_depth else 2 * i
            place = (line + first_line) * self.chunks + tirx.bitwise_xor(own, constant(chunk))
            name = "tcomp_load_matrices" + ("" if self.operand.by_depth else "_transposed")
            registers = tirx.address_of(into[which, i, 0])
            loads = _call(name, registers, stage(place + self.begin))
            return sequence([loads, _call("tcomp_round_tf32", registers)]) if rounds else loads

        return sequence([piece(i) for i in range(self.pieces)])


def grouped(number: Expression, tiles: tuple[int, int], group: int) -> tuple[Expression, Expression]:
    """The row and column of tile `number`: down `group` rows, then on to the next column."""
    rows, columns = tiles
    group = min(group, rows)
    within = tirx.floormod(number, group * columns)
    first = tirx.floordiv(number, group * columns) * group
    height = constant(group) if rows % group == 0 else tirx.min(rows - first, constant(group))
    return first + tirx.floormod(within, height), tirx.floordiv(within, height)


def mma_launch(plan: MmaPlan, left: MmaOperand, right: MmaOperand) -> Callable[[Store, int], Statement]:
    """The launch of a product, by how sums are stored, and how many neighbours at once."""
    return lambda store, vector: MmaNest(plan, left, right, store, vector).statement


def _call(name: str, *arguments: Expression) -> Statement:
    return tirx.Evaluate(tirx.call_extern("int32", name, *arguments))


@dataclass(frozen=True)
class MmaNest:
    """The launch of one product."""

    plan: MmaPlan
    left: MmaOperand
    right: MmaOperand
    store: Store
    vector: int
    """Neighbours of a row that are stored at once: 2, or 1 where they do not lie side by side."""

    @property
    def statement(self) -> Statement:
        return launch((self.plan.blocks,), (self.plan.threads,), self._block)

    def _block(self, block: Sequence[Expression], threads: Sequence[Expression]) -> Statement:
        plan, thread = self.plan, threads[0]
        batch, part, number = digits(block[0], (plan.batch, plan.splits, plan.tiles[0] * plan.tiles[1]))
        row_tile, column_tile = grouped(number, plan.tiles, plan.group)
        warp_row, warp_column = digits(tirx.floordiv(thread, 32), plan.warps)
        first_row, first_column = row_tile * plan.block_rows, column_tile * plan.block_columns
        left = _Side(
            self.left, plan, 0, plan.rows, plan.block_rows, batch, first_row, thread,
            plan.warp_rows, False, warp_row,
        )  # fmt: skip
        right = _Side(
            self.right, plan, plan.block_rows * plan.depth_chunks, plan.columns, plan.block_columns,
            batch, first_column, thread, plan.warp_columns, True, warp_column,
        )  # fmt: skip
        row, column = first_row + warp_row * plan.warp_rows, first_column + warp_column * plan.warp_columns
        allocate, sums = local(
            (plan.warp_rows // 16, plan.warp_columns // 8, 4), accumulator_dtype(plan.dtype), "sums"
        )

        def store(row: Expression, column: Expression, value: Expression) -> Statement:
            return self.store(part, batch, row, column, value)

        zero = tirx.const(0, str(sums.dtype))
        clear = written_out([int(d) for d in sums.shape], lambda at: tirx.BufferStore(sums, zero, at))
        return sequence(
            [
                allocate,
                clear,
                *self._multiply(left, right, sums, part * (plan.steps * plan.block_depth)),
                Fragments(16, sums, plan.rows, plan.columns, self.vector).stored(
                    tirx.floormod(thread, 32), row, column, (plan.block_rows, plan.block_columns), store
                ),
            ]
        )

    def _multiply(self, left: _Side, right: _Side, sums: Buffer, depth: Expression) -> list[Statement]:
        plan = self.plan
        stages, stage_chunks = plan.stages, plan.stage_chunks
        allocate, memory = dynamic_shared(
            (stages * stage_chunks * plan.chunk,), stored_as(plan.dtype), "stages"
        )
        allocate_left, left_pieces = local((2, left.pieces, 4), "uint32", "left_pieces")
        allocate_right, right_pieces = local((2, right.pieces, 4), "uint32", "right_pieces")
        inner = plan.depth_chunks // 2

        def stage_of(step: Expression) -> Place:
            first = tirx.floormod(step, stages) * stage_chunks
            return lambda chunk: tirx.address_of(memory[(first + chunk) * plan.chunk])

        def copy(step: Expression) -> Statement:
            at = stage_of(step)
            begin = depth + step * plan.block_depth
            return sequence([*left.copies(at, begin), *right.copies(at, begin)])

        def load(step: Expression, k: int) -> list[Statement]:
            at = stage_of(step)
            return [left.load(left_pieces, k % 2, at, k), right.load(right_pieces, k % 2, at, k)]

        def multiply(k: int) -> Statement:
            def one(at: list[Expression]) -> Statement:
                i, j = at
                a = tirx.address_of(left_pieces[k % 2, i, 0])
                b = tirx.address_of(right_pieces[k % 2, tirx.floordiv(j, 2), tirx.floormod(j, 2) * 2])
                return _call(f"tcomp_multiply_{plan.dtype}", tirx.address_of(sums[i, j, 0]), a, b)

            return written_out((left.pieces, 2 * right.pieces), one)

        def put(step: Expression) -> list[Statement]:
            at = stage_of(step)
            return [*left.puts(at), *right.puts(at)]

        wait = [_call(f"tcomp_wait_copies<{stages - 2}>"), synchronize()]
        commit = _call("tcomp_commit_copies")
        fillings = [f for f in (left.operand.filling, right.operand.filling) if f is not None]
        registers = [one for f in fillings for one in f.allocations]
        statements: list[Statement] = [allocate, allocate_left, allocate_right, *registers]
        for step in range(stages - 1):
            began = [copy(constant(step)), *put(constant(step))] if step < plan.steps else []
            statements += [*began, commit]
        statements += [*wait, *load(constant(0), 0)]

        def body(step: Expression) -> Statement:
            parts: list[Statement] = []
            ahead = step + (stages - 1)
            for k in range(inner):
                if k + 1 < inner:
                    parts += load(step, k + 1)
                else:
                    if fillings:
                        parts.append(tirx.IfThenElse(ahead < plan.steps, sequence(put(ahead)), None))
                    following = sequence([*wait, *load(step + 1, 0)])
                    parts.append(tirx.IfThenElse(step + 1 < plan.steps, following, None))
                if k == 0:
                    parts += [tirx.IfThenElse(ahead < plan.steps, copy(ahead), None), commit]
                parts.append(multiply(k))
            return sequence(parts)

        return [*statements, loop(plan.steps, body, "step")]
