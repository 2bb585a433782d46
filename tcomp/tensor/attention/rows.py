"""Attention of few queries by plain instructions of a GPU: keys and values are read once, at memory's speed.

`lanes` threads of a warp share a key: each has every `lanes`-th vector of it and of its value, which lie side
by side in memory. They are a group; groups of a block take neighbouring keys:

    for each few keys of a group:
      ask for the keys' and values' elements of this thread
      scores = queries x keys, added up by shuffles in the group
      weights by the highest score so far of the group; sums += weights x values

Groups do not wait for each other before the end. What each has is then put together in shared memory, and
where blocks share the keys, as `attention.parts` does, once more. Rows are the queries of all heads that
share keys and values. Source: Dao et al., "Flash-Decoding for long-context inference", 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd, inf

from tcomp.tensor.anchored import Anchored
from tcomp.tensor.attention.mma_operands import Heads
from tcomp.tensor.attention.operands import own_index
from tcomp.tensor.attention.parts import (
    DTYPE,
    LOWEST,
    KeptParts,
    Pieces,
    exponential,
)
from tcomp.tensor.attention.plan import AttentionShape
from tcomp.tensor.attention.rows_plan import VECTOR, RowsAttentionPlan
from tcomp.tensor.attention.shape import Shape
from tcomp.tensor.gpu.matrices import Index
from tcomp.tensor.gpu.operand import Operand
from tcomp.tensor.gpu.shared_tiles import each_sum
from tcomp.tensor.gpu.threads import digits, launch, shared, synchronize
from tcomp.tensor.gpu.warps import combine_lanes
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.loops import (
    Buffer,
    Elements,
    Expression,
    Statement,
    constant,
    left_to_compiler,
    local,
    loop,
    loops_around,
    sequence,
    unrolled,
    vectorized,
)
from tcomp.tensor.template import Scheduled
from tcomp.tvm_api import Tensor, tirx


class RowsOperands:
    """Where the elements of one kernel's operands lie."""

    def __init__(self, kernel: Kernel) -> None:
        assert kernel.anchor is not None
        self.heads, self.own = Heads.of(kernel), Shape.of(kernel.anchor)
        self.anchored = Anchored(kernel)
        query, key, value, *mask = self.anchored.operands
        self.mask: Tensor | None = mask[0] if mask else None
        own = self.own
        self.queries = self._operand(query, own.rows, own.depth)
        self.keys, self.values = (
            self._operand(tensor, own.length, size) for tensor, size in ((key, own.depth), (value, own.width))
        )

    def _operand(self, tensor: Tensor, extent: int, depth: int) -> Operand:
        def element(elements: Elements, batch: Index, x: Expression, k: Expression) -> Expression:
            return elements.element(tensor, [*own_index(tensor, batch, 2), x, k])

        return Operand(self.anchored, element, DTYPE, self.own.batch, extent, depth).in_vectors(VECTOR)

    @property
    def lie_in_rows(self) -> bool:
        """Whether elements of a key, and of a value, lie side by side."""
        return self.keys.along_depth and self.values.along_depth

    @property
    def shape(self) -> AttentionShape:
        own, heads = self.own, self.heads
        dtype = str(self.anchored.operands[1].dtype)
        masked = self.mask is not None
        return AttentionShape(
            dtype, heads.batch, heads.rows, own.length, own.depth, own.width, masked, own.limit
        )

    def finish(self, head: Expression, row: Expression, column: Expression, value: Expression) -> Statement:
        return self.anchored.finish([*self.heads.of_query(head, row), column], value)


class AttentionRows:
    """The launches of one kernel."""

    def __init__(self, operands: RowsOperands, plan: RowsAttentionPlan) -> None:
        self.operands, self.plan = operands, plan
        shape, parts = plan.shape, plan.parts
        extents = shape.batch, shape.rows, shape.width
        self.pieces = Pieces(operands.anchored, parts, *extents) if parts.count > 1 else None

    def scheduled(self) -> Scheduled:
        """1. Each part of the keys. 2. Their sums, where there are several."""
        plan, operands = self.plan, self.operands

        def body(block: Sequence[Expression], thread: Sequence[Expression]) -> Statement:
            part, head = digits(block[0], (plan.parts.count, plan.blocks))
            return left_to_compiler(_Block(self, part, head, thread[0]).statement())

        launches = [launch((plan.parts.count * plan.blocks,), (plan.threads,), body)]
        if self.pieces is not None:
            launches.append(self.pieces.combined(operands.own, exponential, operands.finish))
        return operands.anchored.scheduled(launches)


class _Block:
    """What one thread of one block does."""

    def __init__(self, nest: AttentionRows, part: Expression, head: Expression, thread: Expression) -> None:
        self.nest, self.part, self.head, self.thread = nest, part, head, thread
        self.plan, self.operands = nest.plan, nest.operands
        plan, rows, keys = self.plan, self.plan.shape.rows, self.plan.keys
        self.lane, self.group = tirx.floormod(thread, plan.lanes), tirx.floordiv(thread, plan.lanes)
        self.allocations: list[Statement] = []
        self.queries = self._local((rows, plan.depth), "queries")
        self.sums = self._local((rows, plan.width), "sums")
        self.keys = self._local((keys, plan.depth), "keys")
        self.values = self._local((keys, plan.width), "values")
        self.scores = self._local((rows, keys), "scores")
        self.tops, self.totals = (self._local((rows,), name) for name in ("tops", "totals"))
        self.change = self._local((1,), "change")
        of_groups = {"sums": (plan.groups, rows, plan.shape.width)}
        of_groups |= dict.fromkeys(("tops", "totals"), (plan.groups, rows))
        buffers = [shared(shape, DTYPE, f"group_{name}") for name, shape in of_groups.items()]
        self.allocations += [allocate for allocate, _ in buffers]
        self.kept = KeptParts(plan.groups, *(buffer for _, buffer in buffers))

    def _local(self, shape: tuple[int, ...], name: str) -> Buffer:
        allocate, buffer = local(shape, DTYPE, name)
        self.allocations.append(allocate)
        return buffer

    def statement(self) -> Statement:
        plan, rows = self.plan, self.plan.shape.rows
        limit = self.operands.own.limit
        _, highest = self.operands.heads.bounds(constant(0), rows)
        begin, steps = plan.parts.of_block(self.part, limit.steps_of(highest, 1, plan.tile_n))
        zero = tirx.const(0, DTYPE)

        def row(r: Expression) -> Statement:
            *batch, query = self.operands.heads.of_query(self.head, r)
            return sequence(
                [
                    tirx.BufferStore(self.tops, tirx.const(LOWEST, DTYPE), [r]),
                    tirx.BufferStore(self.totals, zero, [r]),
                    self._read(self.operands.queries, self._vectors[0], batch, query, self.queries, r),
                ]
            )

        return sequence(
            [
                *self.allocations,
                unrolled(rows, row, "r"),
                each_sum(self.sums, lambda r, c: tirx.BufferStore(self.sums, zero, [r, c])),
                loop(steps, lambda step: self._step((begin + step) * plan.tile_n), "step"),
                *self._leave(),
            ]
        )

    def _element(self, number: Expression, vector: int) -> Expression:
        """Where this thread's element `number` lies in a row, of which it has every so many-th `vector`."""
        first = tirx.floordiv(number, vector) * self.plan.lanes + self.lane
        return first * vector + tirx.floormod(number, vector)

    @property
    def _vectors(self) -> tuple[int, int]:
        """Those of keys, by which queries are taken, too, and of values."""
        operands, plan = self.operands, self.plan
        return gcd(operands.keys.lanes, plan.depth), gcd(operands.values.lanes, plan.width)

    def _read(
        self, operand: Operand, vector: int, batch: Index, x: Expression, own: Buffer, at: Expression
    ) -> Statement:
        """This thread's elements of a row, in vectors, to `own[at]`."""
        at_once = gcd(operand.lanes if operand.along_depth else 1, vector)

        def one(c: Expression) -> Statement:
            first = self._element(c * at_once, vector)
            return vectorized(
                at_once, lambda i: operand.read(batch, x, first + i, own, [at, c * at_once + i])
            )

        return unrolled(int(own.shape[1]) // at_once, one, "c")

    def _step(self, first: Expression) -> Statement:
        """The keys of this group among those from `first` on."""
        plan, rows, length = self.plan, self.plan.shape.rows, self.plan.shape.length

        def key(u: Expression) -> Expression:
            return first + u * plan.groups + self.group

        def load(u: Expression, operand: Operand, vector: int, own: Buffer) -> Statement:
            *batch, row = self.operands.heads.of_key(self.head, tirx.min(key(u), constant(length - 1)))
            return self._read(operand, vector, batch, row, own, u)

        def score(r: Expression, u: Expression) -> Statement:
            def add(e: Expression) -> Statement:
                product = self.queries[r, e] * self.keys[u, e]
                return tirx.BufferStore(self.scores, self.scores[r, u] + product, [r, u])

            needed, value = self._score(r, key(u), self.scores[r, u])
            return sequence(
                [
                    tirx.BufferStore(self.scores, tirx.const(0, DTYPE), [r, u]),
                    unrolled(plan.depth, add, "e"),
                    *combine_lanes(self.scores, [r, u], plan.lanes, lambda a, b: a + b),
                    *needed,
                    tirx.BufferStore(self.scores, value, [r, u]),
                ]
            )

        operands, (of_key, of_value) = self.operands, self._vectors
        return sequence(
            [
                unrolled(plan.keys, lambda u: load(u, operands.keys, of_key, self.keys), "u"),
                unrolled(plan.keys, lambda u: load(u, operands.values, of_value, self.values), "u"),
                each_sum(self.scores, score),
                unrolled(rows, self._weigh, "r"),
            ]
        )

    def _score(
        self, r: Expression, key: Expression, product: Expression
    ) -> tuple[list[Statement], Expression]:
        """The score of a product of query and key, after the statements it needs."""
        own, heads, mask = self.operands.own, self.operands.heads, self.operands.mask
        value, statements = product * tirx.const(own.scale, DTYPE), list[Statement]()
        if mask is not None:
            elements = self.operands.anchored.elements(loops_around())
            index = [*heads.of_query(self.head, r), tirx.min(key, constant(own.length - 1))]
            value = own.masked(value, elements.element(mask, own_index(mask, index, 0)))
            statements = elements.statements
        if own.limit.causal or own.length % self.plan.tile_n:
            seen = key < own.limit.seen_by(heads.query(r))
            value = tirx.Select(seen, value, tirx.const(-inf, DTYPE))
        return statements, value

    def _weigh(self, r: Expression) -> Statement:
        """Scores of a row to weights; what was summed up before, to the new highest score."""
        plan, top, zero = self.plan, tirx.Var("top", DTYPE), constant(0)
        highest = self.tops[r]
        for u in range(plan.keys):
            highest = tirx.max(highest, self.scores[r, u])

        def rescale(e: Expression) -> Statement:
            return tirx.BufferStore(self.sums, self.sums[r, e] * self.change[zero], [r, e])

        def weigh(u: Expression) -> Statement:
            def add(e: Expression) -> Statement:
                more = self.scores[r, u] * self.values[u, e]
                return tirx.BufferStore(self.sums, self.sums[r, e] + more, [r, e])

            return sequence(
                [
                    tirx.BufferStore(self.scores, exponential(self.scores[r, u], top), [r, u]),
                    tirx.BufferStore(self.totals, self.totals[r] + self.scores[r, u], [r]),
                    unrolled(plan.width, add, "e"),
                ]
            )

        return sequence(
            [
                tirx.Bind(top, highest),
                tirx.BufferStore(self.change, exponential(self.tops[r], top), [zero]),
                tirx.BufferStore(self.tops, top, [r]),
                tirx.BufferStore(self.totals, self.totals[r] * self.change[zero], [r]),
                unrolled(plan.width, rescale, "e"),
                unrolled(plan.keys, weigh, "u"),
            ]
        )

    def _leave(self) -> list[Statement]:
        """What groups have to shared memory, and together to the output or to where parts are."""
        plan, pieces, operands = self.plan, self.nest.pieces, self.operands
        rows, width = plan.shape.rows, plan.shape.width
        _, vector = self._vectors

        def keep(r: Expression) -> Statement:
            def one(e: Expression) -> Statement:
                return self.kept.keep_sum(self.group, [r], self._element(e, vector), self.sums[r, e])

            row = self.kept.keep_row(self.group, [r], self.tops[r], self.totals[r])
            return sequence([unrolled(plan.width, one, "e"), tirx.IfThenElse(self.lane < 1, row, None)])

        def element(turn: Expression) -> Statement:
            number = turn * plan.threads + self.thread
            row, column = digits(number, (rows, width))

            def use(top: Expression, total: Expression, value: Expression) -> Statement:
                if pieces is None:
                    settled = operands.own.settled(value / total, total > 0)
                    return operands.finish(self.head, row, column, settled)
                at = [self.head, row]
                of_row = pieces.keep_row(self.part, at, top, total)
                kept = pieces.keep_sum(self.part, at, column, value)
                return sequence([kept, tirx.IfThenElse(column < 1, of_row, None)])

            one = self.kept.put_together(exponential, [row], column, use)
            is_whole = rows * width % plan.threads == 0
            return one if is_whole else tirx.IfThenElse(number < rows * width, one, None)

        turns = -(-rows * width // plan.threads)
        return [unrolled(rows, keep, "r"), synchronize(), loop(turns, element, "turn")]
