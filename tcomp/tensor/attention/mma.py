"""Attention on tensor cores (from sm_80 on): softmax(q k^T scale + mask) v, a tile of query rows a block.

    copies of the queries, and of keys and values of the first steps, are on their way to shared memory
    for each tile of keys:
      wait for it; begin the copies of a later one
      scores = queries x keys, in registers, where tensor cores leave sums
      highest of each row by shuffles; weights = exp(scores - highest); totals += weights
      sums = sums exp(old highest - new highest) + weights x values
    output = sums / totals, with the epilogue

That is Dao, "FlashAttention-2", 2023: nothing of size [rows, keys] leaves registers. Two neighbouring pieces
of 8 scores lie in registers as a piece of 16 weights has to ("Matrix Fragments for mma.m16n8k16" of the PTX
ISA), so they are rounded to 16 bits where they are. Four threads of a warp share a row. Keys beyond the last
that a query sees have a score of minus infinity. A block of causal attention walks no further than one of its
queries sees; blocks that walk furthest come first. Several blocks may share the keys; see `attention.parts`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from tcomp.relay.types import stored_as
from tcomp.target.target import Gpu
from tcomp.tensor.attention.launches import AttentionLaunches, BlockShare
from tcomp.tensor.attention.mma_lines import Lines
from tcomp.tensor.attention.mma_operands import MmaAttentionOperands
from tcomp.tensor.attention.mma_plan import PIECES, MmaAttentionPlan
from tcomp.tensor.attention.online_softmax import OnlineSoftmax, WarpRows, clear
from tcomp.tensor.gpu.threads import dynamic_shared, synchronize
from tcomp.tensor.gpu.warps import WARP
from tcomp.tensor.loops import (
    Buffer,
    Expression,
    Statement,
    call,
    constant,
    local,
    loop,
    sequence,
)
from tcomp.tensor.template import Scheduled
from tcomp.tensor.tensor_cores.mma_plan import MATRIX, chunk_elements
from tcomp.tvm_api import tirx


class MmaAttention:
    """The launches of one kernel."""

    def __init__(self, operands: MmaAttentionOperands, plan: MmaAttentionPlan, gpu: Gpu) -> None:
        self.operands, self.plan = operands, plan
        self.launches = AttentionLaunches(operands, plan, gpu)
        self.before, (query, key, value) = operands.sources()
        shape, size = plan.shape, chunk_elements(plan.shape.dtype)
        depth, width = 2 * plan.depth_pieces, 2 * plan.width_pieces
        rows, keys, threads = plan.block_rows, plan.tile_n, plan.threads
        self.queries = Lines(query, shape.rows, shape.depth, rows, depth, size, threads)
        self.keys = Lines(key, shape.length, shape.depth, keys, depth, size, threads)
        self.values = Lines(value, shape.length, shape.width, keys, width, size, threads)

    def scheduled(self) -> Scheduled:
        return self.launches.scheduled(
            self.before, lambda shares, thread: _Block(self, shares.at(constant(0)), thread).statement()
        )


class _Block:
    """What one thread of one block does."""

    def __init__(self, nest: MmaAttention, share: BlockShare, thread: Expression) -> None:
        self.nest, self.share, self.thread = nest, share, thread
        self.begin, self.steps = share.begin, share.steps
        plan = nest.plan
        self.plan, self.warp, self.lane = plan, tirx.floordiv(thread, WARP), tirx.floormod(thread, WARP)
        self.size = chunk_elements(plan.shape.dtype)
        pieces, width = plan.row_pieces, 16 * plan.width_pieces
        self.allocations = [*share.known]
        allocate, self.memory = dynamic_shared(
            (plan.shared_chunks * self.size,), stored_as(plan.shape.dtype), "stages"
        )
        own = WarpRows(share.batch, share.rows + self.warp * plan.warp_rows, self.lane)
        self.softmax = OnlineSoftmax(nest.operands, plan.shape, own, pieces, plan.tile_n, width)
        self.allocations += [allocate, *self.softmax.allocations]
        kept = plan.depth_pieces if plan.keeps_queries else 2
        self.query_pieces = self._local((kept, pieces, 4), "uint32", "query_pieces")
        self.pieces = self._local((PIECES, 4), "uint32", "pieces")
        row, high, low = (
            tirx.floormod(self.lane, MATRIX),
            tirx.floordiv(self.lane, 2 * MATRIX),
            tirx.floormod(tirx.floordiv(self.lane, MATRIX), 2),
        )
        # Of the four matrices of a piece the second is 8 lines on where lines are rows of the left operand or
        # depth of the right one, and 8 elements on where they are columns of the right one.
        self.query_place = (self.warp * plan.warp_rows + row + low * MATRIX) * plan.depth_line + high
        self.key_place = (row + high * MATRIX) * plan.depth_line + low
        self.value_place = (row + low * MATRIX) * plan.width_line + high

    def _local(self, shape: Sequence[int], dtype: str, name: str) -> Buffer:
        allocate, buffer = local(shape, dtype, name)
        self.allocations.append(allocate)
        return buffer

    def statement(self) -> Statement:
        plan = self.plan
        started = [
            statement
            for step in range(plan.stages - 1)
            for statement in (*self._copies(constant(step), self.begin), _commit())
        ]
        share = self.share
        queries = self.nest.queries.copies(
            lambda chunk: self._address(chunk + plan.query_begin), share.batch, share.rows, self.thread
        )
        kept = [
            _wait(plan.stages - 1),
            synchronize(),
            *(self._load_queries(k, k) for k in range(plan.depth_pieces)),
        ]
        return sequence(
            [
                *self.allocations,
                *queries,
                _commit(),
                *started,
                *self.softmax.begin(),
                *(kept if plan.keeps_queries else []),
                loop(self.steps, self._step, "step"),
                # A part without steps has not waited for its queries.
                *([] if plan.parts.count == 1 else [_wait(0)]),
                *self.nest.launches.left(self.softmax, self.share.part),
            ]
        )

    def _address(self, chunk: Expression) -> Expression:
        return tirx.address_of(self.memory[chunk * self.size])

    def _stage(self, step: Expression) -> Expression:
        """The first chunk of the stage of a step: its keys, behind which its values lie."""
        return tirx.floormod(step, self.plan.stages) * self.plan.stage_chunks

    def _copies(self, step: Expression, begin: Expression) -> list[Statement]:
        """Those of the keys and values of a step, if there is one; the block's first is `begin` of all."""
        plan, stage, first = self.plan, self._stage(step), (begin + step) * self.plan.tile_n
        values = stage + plan.tile_n * plan.depth_line
        of = self.share.batch, first, self.thread
        copies = [
            *self.nest.keys.copies(lambda chunk: self._address(stage + chunk), *of),
            *self.nest.values.copies(lambda chunk: self._address(values + chunk), *of),
        ]
        return [tirx.IfThenElse(step < self.steps, sequence(copies), None)]

    def _step(self, step: Expression) -> Statement:
        plan, begin = self.plan, self.begin
        known: list[Statement] = []
        if plan.split > 1:
            # Else the compiler keeps places of all copies from one step to the next, and spills.
            begin = tirx.Var("begin", "int32")
            known.append(tirx.Bind(begin, tirx.call_extern("int32", "tcomp_anew", self.begin)))
        return sequence(
            [
                *known,
                _wait(plan.stages - 2),
                synchronize(),
                *self._copies(step + (plan.stages - 1), begin),
                _commit(),
                clear(self.softmax.scores),
                *self._multiply_keys(self._stage(step)),
                *self._weigh((begin + step) * plan.tile_n),
                *self._multiply_values(self._stage(step) + plan.tile_n * plan.depth_line),
            ]
        )

    def _load(self, transposed: bool, slot: int, chunk: Expression) -> Statement:
        name = "tcomp_load_matrices" + ("_transposed" if transposed else "")
        return call(name, tirx.address_of(self.pieces[slot, 0]), self._address(chunk))

    def _load_queries(self, k: int, slot: int) -> Statement:
        plan = self.plan

        def one(i: int) -> Statement:
            chunk = self.query_place + (plan.query_begin + 16 * i * plan.depth_line + 2 * k)
            registers = tirx.address_of(self.query_pieces[slot, i, 0])
            return call("tcomp_load_matrices", registers, self._address(chunk))

        return sequence([one(i) for i in range(plan.row_pieces)])

    def _products(
        self,
        count: int,
        load: Callable[[int, int], list[Statement]],
        multiply: Callable[[int, int], Statement],
    ) -> Iterator[Statement]:
        """`multiply(number, slot)` of pieces, each loaded some time before by `load(number, slot)`."""
        ahead = PIECES - 1
        for number in range(min(ahead, count)):
            yield from load(number, number % PIECES)
        for number in range(count):
            if number + ahead < count:
                yield from load(number + ahead, (number + ahead) % PIECES)
            yield multiply(number, number % PIECES)

    def _multiply(self, sums: Buffer, column: int, left: Callable[[int], Expression], slot: int) -> Statement:
        """16 columns of `sums` += left operands, by piece of rows, times the right one in `slot`."""
        name = f"tcomp_multiply_{self.plan.shape.dtype}"

        def one(i: int, half: int) -> Statement:
            into = tirx.address_of(sums[i, 2 * column + half, 0])
            return call(name, into, left(i), tirx.address_of(self.pieces[slot, 2 * half]))

        return sequence([one(i, half) for i in range(self.plan.row_pieces) for half in range(2)])

    def _multiply_keys(self, stage: Expression) -> Iterator[Statement]:
        """scores += queries x keys."""
        plan = self.plan

        def queries_of(k: int) -> int:
            return k if plan.keeps_queries else k % 2

        def load(number: int, slot: int) -> list[Statement]:
            k, j = divmod(number, plan.key_pieces)
            chunk = stage + self.key_place + (16 * j * plan.depth_line + 2 * k)
            again = [self._load_queries(k, queries_of(k))] if j == 0 and not plan.keeps_queries else []
            return [*again, self._load(False, slot, chunk)]

        def multiply(number: int, slot: int) -> Statement:
            k, j = divmod(number, plan.key_pieces)

            def left(i: int) -> Expression:
                return tirx.address_of(self.query_pieces[queries_of(k), i, 0])

            return self._multiply(self.softmax.scores, j, left, slot)

        return self._products(plan.depth_pieces * plan.key_pieces, load, multiply)

    def _multiply_values(self, stage: Expression) -> Iterator[Statement]:
        """sums += weights x values."""
        plan, sums, weights = self.plan, self.softmax.sums, self.softmax.weights

        def load(number: int, slot: int) -> list[Statement]:
            t, j = divmod(number, plan.width_pieces)
            return [self._load(True, slot, stage + self.value_place + (16 * t * plan.width_line + 2 * j))]

        def multiply(number: int, slot: int) -> Statement:
            t, j = divmod(number, plan.width_pieces)
            return self._multiply(sums, j, lambda i: tirx.address_of(weights[i, t, 0]), slot)

        return self._products(plan.key_pieces * plan.width_pieces, load, multiply)

    def _weigh(self, first: Expression) -> list[Statement]:
        """Scores of keys from `first` on to weights; what was summed up before, to the new highest score."""
        softmax = self.softmax
        hidden = softmax.hide(first, self.share.lowest)
        return [*softmax.scale(first), *hidden, softmax.weigh(softmax.rescale), softmax.round()]


def _commit() -> Statement:
    return call("tcomp_commit_copies")


def _wait(pending: int) -> Statement:
    return call(f"tcomp_wait_copies<{pending}>")
