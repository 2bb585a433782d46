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
queries sees; blocks that walk furthest come first. Several blocks may share the keys; see `attention_parts`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from math import e as euler
from math import gcd, inf, log2

from tcomp.relay.types import stored_as
from tcomp.target.target import Gpu
from tcomp.tensor.alignment import anywhere, vector_lanes
from tcomp.tensor.attention_parts import DTYPE, LOWEST, Pieces
from tcomp.tensor.attention_shape import Blocks
from tcomp.tensor.loops import (
    Buffer,
    Expression,
    Statement,
    constant,
    left_to_compiler,
    local,
    loop,
    sequence,
    unrolled,
    written_out,
)
from tcomp.tensor.math import convert
from tcomp.tensor.mma_attention_lines import Lines, call
from tcomp.tensor.mma_attention_operands import MmaAttentionOperands
from tcomp.tensor.mma_attention_plan import PIECES, AttentionPlan
from tcomp.tensor.mma_fragments import Fragments
from tcomp.tensor.mma_plan import MATRIX, chunk_elements
from tcomp.tensor.template import Scheduled
from tcomp.tensor.threads import digits, dynamic_shared, launch, synchronize
from tcomp.tensor.warps import WARP, combine_lanes
from tcomp.tvm_api import tirx

_ROW_LANES = 4
"""Threads that share a row."""


class MmaAttention:
    """The launches of one kernel."""

    def __init__(self, operands: MmaAttentionOperands, plan: AttentionPlan, gpu: Gpu) -> None:
        self.operands, self.plan = operands, plan
        self.blocks = Blocks.of(operands.anchor, plan.shape.batch, plan.row_blocks, gpu)
        self.before, (query, key, value) = operands.sources()
        shape, size = plan.shape, chunk_elements(plan.shape.dtype)
        depth, width = 2 * plan.depth_pieces, 2 * plan.width_pieces
        rows, keys, threads = plan.block_rows, plan.block_keys, plan.threads
        self.queries = Lines(query, shape.rows, shape.depth, rows, depth, size, threads)
        self.keys = Lines(key, shape.length, shape.depth, keys, depth, size, threads)
        self.values = Lines(value, shape.length, shape.width, keys, width, size, threads)
        # Without a mask scores are plain products: their factor and that of the exponential are one.
        self.folded = operands.mask is None and operands.of_anchor.scale > 0
        extents = self.blocks.heads, shape.rows, operands.of_anchor.width
        parts = plan.parts
        self.pieces = Pieces(operands.anchored, parts, *extents) if parts.count > 1 else None

    @cached_property
    def vector(self) -> int:
        """Neighbours of a row of the output that are stored at once."""
        one, extents = tirx.const(1, DTYPE), (self.plan.shape.batch, self.plan.shape.rows)

        def lanes(index: list[Expression]) -> int:
            batch, row = index
            return vector_lanes(
                lambda c: self.operands.finish(batch, row, c, one), self.operands.of_anchor.width, 2
            )

        return anywhere(extents, lanes)

    def scheduled(self) -> Scheduled:
        plan = self.plan

        def body(block: Sequence[Expression], thread: Sequence[Expression]) -> Statement:
            part, number = digits(block[0], (plan.parts.count, self.blocks.count))
            batch, rows = self.blocks.place(number)
            return left_to_compiler(_Block(self, part, batch, rows * plan.block_rows, thread[0]).statement())

        launches = [*self.before, launch((plan.parts.count * self.blocks.count,), (plan.threads,), body)]
        if self.pieces is not None:
            launches.append(self.pieces.combined(self.exponential, self.operands.finish))
        return self.operands.anchored.scheduled(launches)

    def exponential(self, score: Expression, top: Expression) -> Expression:
        """The weight of a score where `top` is the highest of its row."""
        base = tirx.const(log2(euler), DTYPE)
        if not self.folded:
            return _exp2((score - top) * base)
        factor = tirx.const(self.operands.of_anchor.scale * log2(euler), DTYPE)
        return _exp2(score * factor - top * factor)


class _Block:
    """What one thread of one block does."""

    def __init__(
        self, nest: MmaAttention, part: Expression, batch: Expression, rows: Expression, thread: Expression
    ) -> None:
        self.nest, self.part, self.batch, self.rows, self.thread = nest, part, batch, rows, thread
        plan = nest.plan
        self.plan, self.warp, self.lane = plan, tirx.floordiv(thread, WARP), tirx.floormod(thread, WARP)
        self.size = chunk_elements(plan.shape.dtype)
        pieces, width = plan.row_pieces, 2 * plan.width_pieces
        limit = nest.operands.of_anchor.limit
        self.lowest, self.highest = nest.operands.heads.bounds(rows, plan.block_rows)
        self.allocations: list[Statement] = []
        whole = limit.steps_of(self.highest, 1, plan.block_keys)
        self.begin, self.steps = plan.parts.of_block(part, whole)
        if not isinstance(self.steps, int):
            count = tirx.Var("steps", "int32")
            self.allocations.append(tirx.Bind(count, self.steps))
            self.steps = count
        allocate, self.memory = dynamic_shared(
            (plan.shared_chunks * self.size,), stored_as(plan.shape.dtype), "stages"
        )
        self.allocations.append(allocate)
        self.sums = self._local((pieces, width, 4), DTYPE, "sums")
        self.scores = self._local((pieces, 2 * plan.key_pieces, 4), DTYPE, "scores")
        self.weights = self._local((pieces, plan.key_pieces, 4), "uint32", "weights")
        kept = plan.depth_pieces if plan.keeps_queries else 2
        self.query_pieces = self._local((kept, pieces, 4), "uint32", "query_pieces")
        self.pieces = self._local((PIECES, 4), "uint32", "pieces")
        self.tops, self.totals, self.tile_tops = (
            self._local((2 * pieces,), DTYPE, name) for name in ("tops", "totals", "tile_tops")
        )
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
        queries = self.nest.queries.copies(
            lambda chunk: self._address(chunk + plan.query_begin), self.batch, self.rows, self.thread
        )
        kept = [
            _wait(plan.stages - 1),
            synchronize(),
            *(self._load_queries(k, k) for k in range(plan.depth_pieces)),
        ]
        lowest, nothing = tirx.const(LOWEST, DTYPE), tirx.const(0, DTYPE)

        def begin(r: Expression) -> Statement:
            return sequence(
                [tirx.BufferStore(self.tops, lowest, [r]), tirx.BufferStore(self.totals, nothing, [r])]
            )

        return sequence(
            [
                *self.allocations,
                *queries,
                _commit(),
                *started,
                unrolled(2 * plan.row_pieces, begin, "r"),
                _clear(self.sums),
                *(kept if plan.keeps_queries else []),
                loop(self.steps, self._step, "step"),
                # A part without steps has not waited for its queries.
                *([] if plan.parts.count == 1 else [_wait(0)]),
                self._finish(),
            ]
        )

    def _address(self, chunk: Expression) -> Expression:
        return tirx.address_of(self.memory[chunk * self.size])

    def _stage(self, step: Expression) -> Expression:
        """The first chunk of the stage of a step: its keys, behind which its values lie."""
        return tirx.floormod(step, self.plan.stages) * self.plan.stage_chunks

    def _copies(self, step: Expression, begin: Expression) -> list[Statement]:
        """Those of the keys and values of a step, if there is one; the block's first is `begin` of all."""
        plan, stage, first = self.plan, self._stage(step), (begin + step) * self.plan.block_keys
        values = stage + plan.block_keys * plan.depth_line
        of = self.batch, first, self.thread
        copies = [
            *self.nest.keys.copies(lambda chunk: self._address(stage + chunk), *of),
            *self.nest.values.copies(lambda chunk: self._address(values + chunk), *of),
        ]
        return [tirx.IfThenElse(step < self.steps, sequence(copies), None)]

    def _step(self, step: Expression) -> Statement:
        plan, begin = self.plan, self.begin
        known: list[Statement] = []
        if plan.split > 1:
            # Else nvcc keeps places of all copies from one step to the next, and spills.
            begin = tirx.Var("begin", "int32")
            known.append(tirx.Bind(begin, tirx.call_extern("int32", "tcomp_anew", self.begin)))
        return sequence(
            [
                *known,
                _wait(plan.stages - 2),
                synchronize(),
                *self._copies(step + (plan.stages - 1), begin),
                _commit(),
                _clear(self.scores),
                *self._multiply_keys(self._stage(step)),
                *self._weigh((begin + step) * plan.block_keys),
                *self._multiply_values(self._stage(step) + plan.block_keys * plan.depth_line),
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

            return self._multiply(self.scores, j, left, slot)

        return self._products(plan.depth_pieces * plan.key_pieces, load, multiply)

    def _multiply_values(self, stage: Expression) -> Iterator[Statement]:
        """sums += weights x values."""
        plan = self.plan

        def load(number: int, slot: int) -> list[Statement]:
            t, j = divmod(number, plan.width_pieces)
            return [self._load(True, slot, stage + self.value_place + (16 * t * plan.width_line + 2 * j))]

        def multiply(number: int, slot: int) -> Statement:
            t, j = divmod(number, plan.width_pieces)
            return self._multiply(self.sums, j, lambda i: tirx.address_of(self.weights[i, t, 0]), slot)

        return self._products(plan.key_pieces * plan.width_pieces, load, multiply)

    def _weigh(self, first: Expression) -> list[Statement]:
        """Scores of keys from `first` on to weights; what was summed up before, to the new highest score."""
        parts = [] if self.nest.folded else [self._scale(first)]
        return [*parts, *self._hidden(first), self._each_row(self._weigh_row), self._round()]

    def _each_row(self, body: Callable[[Expression, Expression], Statement]) -> Statement:
        """`body(piece, half of it)` for each row of this thread."""
        return unrolled(self.plan.row_pieces, lambda i: unrolled(2, lambda h: body(i, h), "h"), "i")

    def _each_score(self, body: Callable[[list[Expression], Expression, Expression], Statement]) -> Statement:
        """`body(index into the scores, row, key)`, both counted from the first of the tile."""
        plan = self.plan
        own_row = self.warp * plan.warp_rows + tirx.floordiv(self.lane, _ROW_LANES)
        own_key = tirx.floormod(self.lane, _ROW_LANES) * 2

        def one(at: list[Expression]) -> Statement:
            i, half, j, which = at
            return body([i, j, half * 2 + which], own_row + (i * 16 + half * 8), own_key + (j * 8 + which))

        return written_out((plan.row_pieces, 2, 2 * plan.key_pieces, 2), one)

    def _scale(self, first: Expression) -> Statement:
        """Products of queries and keys to scores, of keys from `first` on."""
        operands, shape = self.nest.operands, self.plan.shape
        scale = tirx.const(operands.of_anchor.scale, DTYPE)

        def one(at: list[Expression], row: Expression, key: Expression) -> Statement:
            if operands.mask is None:
                return tirx.BufferStore(self.scores, self.scores[tuple(at)] * scale, at)
            inside = tirx.min(self.rows + row, constant(shape.rows - 1))
            position = tirx.min(first + key, constant(shape.length - 1))
            statements, value = operands.mask_at(self.batch, inside, position)
            score = self.scores[tuple(at)] * scale + convert(value, DTYPE)
            return sequence([*statements, tirx.BufferStore(self.scores, score, at)])

        return self._each_score(one)

    def _hidden(self, first: Expression) -> list[Statement]:
        """Scores of keys that a query does not see become minus infinity, in tiles that have such keys."""
        limit, keys = self.nest.operands.of_anchor.limit, self.plan.block_keys
        if not limit.causal and limit.length % keys == 0:
            return []

        def hide(at: list[Expression], row: Expression, key: Expression) -> Statement:
            query = self.nest.operands.heads.query(self.rows + row)
            shown = tirx.Select(
                first + key < limit.seen_by(query), self.scores[tuple(at)], tirx.const(-inf, DTYPE)
            )
            return tirx.BufferStore(self.scores, shown, at)

        return [tirx.IfThenElse(first + keys > limit.seen_by(self.lowest), self._each_score(hide), None)]

    def _weigh_row(self, i: Expression, half: Expression) -> Statement:
        r, count = i * 2 + half, 2 * self.plan.key_pieces

        def each(body: Callable[[list[Expression]], Statement]) -> Statement:
            return unrolled(count, lambda j: unrolled(2, lambda w: body([i, j, half * 2 + w]), "w"), "j")

        def highest(at: list[Expression]) -> Statement:
            return tirx.BufferStore(self.tile_tops, tirx.max(self.tile_tops[r], self.scores[tuple(at)]), [r])

        change, top = tirx.Var("change", DTYPE), tirx.Var("top", DTYPE)
        exponential = self.nest.exponential

        def weigh(at: list[Expression]) -> Statement:
            return sequence(
                [
                    tirx.BufferStore(self.scores, exponential(self.scores[tuple(at)], top), at),
                    tirx.BufferStore(self.totals, self.totals[r] + self.scores[tuple(at)], [r]),
                ]
            )

        def rescale(at: list[Expression]) -> Statement:
            j, which = at
            own = [i, j, half * 2 + which]
            return tirx.BufferStore(self.sums, self.sums[tuple(own)] * change, own)

        return sequence(
            [
                tirx.BufferStore(self.tile_tops, self.tops[r], [r]),
                each(highest),
                *combine_lanes(self.tile_tops, [r], _ROW_LANES, tirx.max),
                tirx.Bind(top, self.tile_tops[r]),
                tirx.Bind(change, exponential(self.tops[r], top)),
                tirx.BufferStore(self.tops, top, [r]),
                tirx.BufferStore(self.totals, self.totals[r] * change, [r]),
                written_out((2 * self.plan.width_pieces, 2), rescale),
                each(weigh),
            ]
        )

    def _round(self) -> Statement:
        """Weights to 16 bits, as left operands."""
        name = f"tcomp_pack_{self.plan.shape.dtype}"

        def one(at: list[Expression]) -> Statement:
            i, t, which = at
            pair = [self.scores[i, 2 * t + which // 2, which % 2 * 2 + n] for n in range(2)]
            return tirx.BufferStore(self.weights, tirx.call_pure_extern("uint32", name, *pair), at)

        return written_out((self.plan.row_pieces, self.plan.key_pieces, 4), one)

    def _finish(self) -> Statement:
        nest, plan = self.nest, self.plan
        operands, columns, pieces = nest.operands, 16 * plan.width_pieces, nest.pieces
        first = self.rows + self.warp * plan.warp_rows
        width = operands.of_anchor.width

        def store(row: Expression, column: Expression, value: Expression) -> Statement:
            if pieces is not None:
                return pieces.keep_sum(self.part, self.batch, row, column, value)
            return operands.finish(self.batch, row, column, value)

        vector = nest.vector if pieces is None else gcd(width, 2)
        fragments = Fragments(16, self.sums, plan.shape.rows, width, vector)
        block = (plan.block_rows, columns)

        def end(i: Expression, half: Expression) -> Statement:
            return self._divide(i, half) if pieces is None else self._keep(pieces, i, half)

        return sequence(
            [
                self._each_row(end),
                fragments.stored(self.lane, first, constant(0), block, store),
            ]
        )

    def _divide(self, i: Expression, half: Expression) -> Statement:
        """The sums of a row by the total of its weights."""
        r, inverse = i * 2 + half, tirx.Var("inverse", DTYPE)

        def divide(at: list[Expression]) -> Statement:
            own = [i, at[0], half * 2 + at[1]]
            return tirx.BufferStore(self.sums, self.sums[tuple(own)] * inverse, own)

        return sequence(
            [
                *combine_lanes(self.totals, [r], _ROW_LANES, lambda a, b: a + b),
                tirx.Bind(inverse, tirx.const(1, DTYPE) / self.totals[r]),
                written_out((2 * self.plan.width_pieces, 2), divide),
            ]
        )

    def _keep(self, pieces: Pieces, i: Expression, half: Expression) -> Statement:
        """The highest score and the total of a row to where parts are put together."""
        plan, r = self.plan, i * 2 + half
        own = self.warp * plan.warp_rows + tirx.floordiv(self.lane, _ROW_LANES) + (i * 16 + half * 8)
        row, is_first = self.rows + own, tirx.floormod(self.lane, _ROW_LANES) == 0
        keep = pieces.keep_row(self.part, self.batch, row, self.tops[r], self.totals[r])
        return sequence(
            [
                *combine_lanes(self.totals, [r], _ROW_LANES, lambda a, b: a + b),
                tirx.IfThenElse(tirx.all(is_first, row < plan.shape.rows), keep, None),
            ]
        )


def _exp2(x: Expression) -> Expression:
    return tirx.call_pure_extern(DTYPE, "tcomp_exp2", x)


def _commit() -> Statement:
    return call("tcomp_commit_copies")


def _wait(pending: int) -> Statement:
    return call(f"tcomp_wait_copies<{pending}>")


def _clear(buffer: Buffer) -> Statement:
    zero = tirx.const(0, DTYPE)
    return written_out([int(d) for d in buffer.shape], lambda at: tirx.BufferStore(buffer, zero, at))
