"""The loops of attention on CPUs: softmax(q k^T scale + mask) v, a tile of query rows at a time.

    for each batch (head):
      pack the keys as [vector of keys, depth, key] and the values as [key, vector of columns, column]
      for each tile of rows:
        for each few vectors of keys:    scores = q k^T scale + mask, and the highest score of each lane
        for each row:                    weights = exp(scores - highest score), and their total
        for each few vectors of columns: (weights v) / total, the epilogue, the output

One head's packed operands and one tile's scores stay in the nearest caches; nothing of size [S, T] reaches
memory. Keys beyond the last are zeros with a score of minus infinity, so that rows are whole vectors. A tile
of causal attention walks no further than to the last key that one of its rows sees; other rows have scores of
minus infinity from their own last key on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import e, gcd, inf, lcm, log2, prod

from tcomp.target.target import Target
from tcomp.tensor import loops
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.attention.operands import (
    UNROLL,
    AttentionOperands,
    Batch,
    Keep,
    LeftRows,
)
from tcomp.tensor.attention.shape import Shape
from tcomp.tensor.cpu.lane_factors import rows_apart, rows_fit
from tcomp.tensor.cpu.primitives import Tiles
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.loops import Buffer, Expression, Statement
from tcomp.tensor.math import exp2, larger
from tcomp.tensor.product import unravel
from tcomp.tensor.template import Scheduled
from tcomp.tvm_api import tirx


@dataclass(frozen=True)
class Plan:
    """Register tiles: rows by vectors of scores, rows by vectors of output columns; who shares the work."""

    rows: Tiles
    score_vectors: int
    value_vectors: int
    parallel: str
    """`no`, over the `batch` or over the `tiles` of rows of all batches."""


@dataclass(frozen=True)
class _Reach:
    """How far a tile walks along keys, counted in some unit; None: as far as there are any."""

    end: Expression | None = None

    def of_units(self, keys: int) -> _Reach:
        """The same in units of so many keys, of which what is walked is whole, or all there are."""
        return _Reach(None if self.end is None else tirx.floordiv(self.end + (keys - 1), keys))

    def of_loop(self, count: int, size: int) -> int | Expression:
        """Iterations of a loop of `count`, each of `size` units."""
        if self.end is None:
            return count
        return tirx.min(tirx.floordiv(self.end + (size - 1), size), loops.constant(count))

    def where(self, begin: int, statement: Statement) -> Statement:
        """What is done for units from `begin` on."""
        return statement if self.end is None else tirx.IfThenElse(self.end > begin, statement, None)


_ALL = _Reach()


class AttentionNest:
    """The loops of one kernel, whose operands are packed and multiplied as `operands` has it."""

    def __init__(self, kernel: Kernel, plan: Plan, target: Target, operands: type[AttentionOperands]) -> None:
        assert kernel.anchor is not None
        self.shape = shape = Shape.of(kernel.anchor)
        self.plan, self.lanes, self.target = plan, target.lanes(shape.dtype), target
        self.anchored = Anchored(kernel)
        slots = 1 if plan.parallel == "no" else prod(shape.batch)
        self.operands = operands(self.anchored, shape, self.lanes, slots)

    def scheduled(self) -> Scheduled:
        batches, tiles = prod(self.shape.batch), self.plan.rows.count
        by_tiles = self.plan.parallel == "tiles"
        over_batches = loops.loop if self.plan.parallel == "no" else loops.parallel

        def pack(number: Expression) -> Statement:
            batch, slot = self._batch(number)
            return self.operands.pack(batch, slot)

        def tile(number: Expression, t: Expression) -> Statement:
            return self._tile(*self._batch(number), self.plan.rows.base(t))

        def whole(number: Expression) -> Statement:
            return loops.sequence([pack(number), loops.loop(tiles, lambda t: tile(number, t), "tile")])

        if not by_tiles:
            return self.anchored.scheduled([over_batches(batches, whole, "batch")])
        every = loops.parallel(batches * tiles, lambda i: tile(*unravel(i, (batches, tiles))), "tile")
        return self.anchored.scheduled([over_batches(batches, pack, "batch"), every])

    def _batch(self, number: Expression) -> tuple[list[Expression], Expression]:
        """The batch index of batch `number`, and its place in the packed operands."""
        slot = loops.constant(0) if self.plan.parallel == "no" else number
        index = unravel(number, self.shape.batch)
        return [
            loops.constant(0) if d == 1 else i for d, i in zip(self.shape.batch, index, strict=True)
        ], slot

    @property
    def _together(self) -> int:
        """Vectors of exponentials that are written out."""
        # LLVM for ARM fills registers with constants anew in each iteration.
        return gcd(self.operands.keys, UNROLL) if self.target.by_lane else 1

    # A tile of rows

    def _walked(self, row: Expression) -> Expression:
        """Keys that a tile from `row` on walks: whole steps of all its loops, or all whole vectors."""
        step = lcm(self.lanes * self._together, UNROLL * self.operands.group)
        steps = self.shape.limit.steps_of(row, self.plan.rows.size, step)
        return tirx.min(steps * step, self.operands.keys * self.lanes)

    def _tile(self, batch: Batch, slot: Expression, row: Expression) -> Statement:
        shape, plan, lanes, size = self.shape, self.plan, self.lanes, self.plan.rows.size
        operands = self.operands
        allocate, scores = loops.local((size, operands.keys * lanes), shape.dtype, "scores")
        allocate_tops, tops = loops.local((size, lanes), shape.dtype, "tops")
        allocate_scales, scales = loops.local((size,), shape.dtype, "scales")
        low = tirx.const(-inf, shape.dtype)
        queries = operands.queries(batch, row, size)
        weights, keep = operands.weights(scores)
        clear = loops.loop(
            size, lambda r: loops.vectorized(lanes, lambda i: tirx.BufferStore(tops, low, [r, i])), "r"
        )
        walked = tirx.Var("walked", "int32")
        reach = _Reach(walked) if shape.limit.causal else _ALL
        return loops.sequence(
            [
                *([tirx.Bind(walked, self._walked(row))] if shape.limit.causal else []),
                allocate,
                allocate_tops,
                allocate_scales,
                *queries.before,
                *weights.before,
                clear,
                *_parts(
                    operands.keys,
                    plan.score_vectors,
                    lambda first, count: self._scores(batch, slot, row, queries, first, count, scores, tops),
                    reach.of_units(lanes),
                ),
                loops.loop(size, lambda r: self._exponentials(scores, tops, scales, keep, r, reach), "r"),
                *_parts(
                    operands.columns,
                    plan.value_vectors,
                    lambda first, count: self._weighted(
                        batch, slot, row, weights, first, count, scales, reach
                    ),
                ),
            ]
        )

    def _product(
        self,
        vectors: int,
        left: LeftRows,
        right: Callable[[Expression, Expression, Expression], Expression],
        store: Callable[[Buffer, Expression, int], Statement],
        reach: _Reach = _ALL,
    ) -> Statement:
        """Sums of `left(r, k) right(k, v, lane)` in registers, then `store(sums, r, v)`.

        Steps beyond `reach` add nothing.
        """
        dtype, size, lanes = self.shape.dtype, self.plan.rows.size, self.lanes
        allocate, sums = loops.local((size, vectors, lanes), dtype, "sums")
        zero = tirx.const(0.0, dtype)

        def tile(body: Callable[[Expression, Expression, Expression], Statement]) -> Statement:
            return loops.unrolled(
                size,
                lambda r: loops.unrolled(
                    vectors, lambda v: loops.vectorized(lanes, lambda lane: body(r, v, lane)), "v"
                ),
                "r",
            )

        zeros = loops.constant(0)
        by_lane = rows_fit(self.target, size, vectors) and left.row(zeros, zeros) is not None

        def several(k: Expression) -> Statement:
            if not by_lane:
                return loops.unrolled(UNROLL, lambda u: step(k + u, lambda r: left.factor(r, k + u)))
            factors = rows_apart(left.row, size, UNROLL, dtype)
            steps = [step(k + u, lambda r, u=u: ([], factors.at(r, u))) for u in range(UNROLL)]
            return loops.sequence([*factors.load(k), *steps])

        def step(
            k: Expression, factor: Callable[[Expression], tuple[list[Statement], Expression]]
        ) -> Statement:
            def add(r: Expression, v: Expression, lane: Expression) -> Statement:
                needed, a = factor(r)
                total = self.operands.multiply_add(tirx.BufferLoad(sums, [r, v, lane]), a, right(k, v, lane))
                return loops.sequence([*needed, tirx.BufferStore(sums, total, [r, v, lane])])

            return tile(add)

        whole, rest = divmod(left.steps, UNROLL)
        steps: list[Statement] = []
        if whole:
            steps.append(loops.loop(reach.of_loop(whole, UNROLL), lambda k: several(k * UNROLL), "k"))
        if rest:
            begin = whole * UNROLL
            last = loops.unrolled(rest, lambda u: step(begin + u, lambda r: left.factor(r, begin + u)))
            steps.append(reach.where(begin, last))
        return loops.sequence(
            [
                allocate,
                tile(lambda r, v, lane: tirx.BufferStore(sums, zero, [r, v, lane])),
                *steps,
                loops.sequence(
                    [store(sums, loops.constant(r), v) for r in range(size) for v in range(vectors)]
                ),
            ]
        )

    def _scores(
        self,
        batch: Batch,
        slot: Expression,
        row: Expression,
        queries: LeftRows,
        first: Expression,
        count: int,
        scores: Buffer,
        tops: Buffer,
    ) -> Statement:
        """Scaled and masked scores of `count` vectors of keys from `first`, and the highest in each lane."""
        lanes, shape, operands = self.lanes, self.shape, self.operands
        scale, low = tirx.const(shape.scale, shape.dtype), tirx.const(-inf, shape.dtype)
        rest = shape.length % lanes

        def finish(value: Expression, r: Expression, at: Expression, lane: Expression) -> Statement:
            place = [r, at * lanes + lane]
            if shape.limit.causal:
                value = tirx.Select(place[1] < row + r + shape.limit.causal, value, low)
            highest = larger(tirx.BufferLoad(tops, [r, lane]), tirx.BufferLoad(scores, place))
            return loops.sequence(
                [tirx.BufferStore(scores, value, place), tirx.BufferStore(tops, highest, [r, lane])]
            )

        def store(sums: Buffer, r: Expression, v: int) -> Statement:
            at = first + v
            is_last = rest > 0 and isinstance(at, int) and at == operands.keys - 1

            def scaled(lane: Expression) -> Expression:
                return tirx.BufferLoad(sums, [r, v, lane]) * scale

            def one(lane: Expression) -> Statement:
                if operands.mask is None:
                    return finish(scaled(lane), r, loops.constant(at) if isinstance(at, int) else at, lane)
                needed, mask = operands.stored(operands.mask, batch, row + r, at * lanes + lane)
                return loops.sequence([*needed, finish(shape.masked(scaled(lane), mask), r, at, lane)])

            if not is_last:
                return loops.vectorized(lanes, one)
            blank = loops.vectorized(
                lanes - rest, lambda i: tirx.BufferStore(scores, low, [r, at * lanes + rest + i])
            )
            return loops.sequence([loops.vectorized(rest, one), blank])

        return self._product(
            count,
            queries,
            lambda k, v, lane: tirx.BufferLoad(operands.packed_keys, [slot, first + v, k, lane]),
            store,
        )

    def _exponentials(
        self,
        scores: Buffer,
        tops: Buffer,
        scales: Buffer,
        keep: Keep,
        r: Expression,
        reach: _Reach,
    ) -> Statement:
        """Turn a row of scores into exponentials below their highest, and keep one over their total."""
        dtype, lanes = self.shape.dtype, self.lanes
        allocate, totals = loops.local((lanes,), dtype, "totals")
        allocate_top, top = loops.local((lanes,), dtype, "top")

        def exponential(v: Expression, lane: Expression) -> Statement:
            weight = tirx.Var("weight", dtype)
            below = tirx.BufferLoad(scores, [r, v * lanes + lane]) - tirx.BufferLoad(top, [0])
            value = exp2(below * tirx.const(log2(e), dtype))
            total = tirx.BufferLoad(totals, [lane]) + weight
            return loops.sequence(
                [
                    tirx.Bind(weight, value),
                    tirx.BufferStore(scores, weight, [r, v * lanes + lane]),
                    tirx.BufferStore(totals, total, [lane]),
                ]
            )

        together = self._together

        def several(v: Expression) -> Statement:
            def one(u: Expression) -> Statement:
                vector = loops.vectorized(lanes, lambda lane: exponential(v * together + u, lane))
                return loops.sequence([vector, *keep(r, v * together + u)])

            return loops.unrolled(together, one)

        def begin(lane: Expression) -> Statement:
            return loops.sequence(
                [
                    tirx.BufferStore(top, tirx.BufferLoad(tops, [r, lane]), [lane]),
                    tirx.BufferStore(totals, tirx.const(0.0, dtype), [lane]),
                ]
            )

        return loops.sequence(
            [
                allocate,
                allocate_top,
                loops.vectorized(lanes, begin),
                *loops.fold_lanes(top, lanes, tirx.max),
                loops.loop(
                    reach.of_units(lanes).of_loop(self.operands.keys // together, together), several, "v"
                ),
                *loops.fold_lanes(totals, lanes, lambda a, b: a + b),
                tirx.BufferStore(scales, tirx.const(1.0, dtype) / tirx.BufferLoad(totals, [0]), [r]),
            ]
        )

    def _weighted(
        self,
        batch: Batch,
        slot: Expression,
        row: Expression,
        weights: LeftRows,
        first: Expression,
        count: int,
        scales: Buffer,
        reach: _Reach,
    ) -> Statement:
        """`count` vectors of values from `first`, weighted, times one over the total, with the epilogue."""
        lanes, rest = self.lanes, self.shape.width % self.lanes

        def store(sums: Buffer, r: Expression, v: int) -> Statement:
            at = first + v
            is_last = rest > 0 and isinstance(at, int) and at == self.operands.columns - 1

            def one(lane: Expression) -> Statement:
                scale = tirx.BufferLoad(scales, [r])
                # The highest score weighs 1.
                value = self.shape.settled(tirx.BufferLoad(sums, [r, v, lane]) * scale, scale < 2)
                index = [*batch, row + r, at * lanes + lane]
                return self.anchored.finish(index, value)

            return loops.vectorized(rest if is_last else lanes, one)

        return self._product(
            count,
            weights,
            lambda k, v, lane: tirx.BufferLoad(self.operands.packed_values, [slot, k, first + v, lane]),
            store,
            reach.of_units(self.operands.group),
        )


def _parts(
    count: int, size: int, body: Callable[[Expression, int], Statement], reach: _Reach = _ALL
) -> list[Statement]:
    """`body(first, size)` for whole groups of `size` below `count`, and once for the rest; all in `reach`.

    `first` is an `int` where the group is the last one, so that its edge can be told.
    """
    whole, rest = count // size, count % size
    if not rest:
        whole, rest = whole - 1, size
    statements: list[Statement] = []
    if whole:
        statements.append(loops.loop(reach.of_loop(whole, size), lambda i: body(i * size, size), "part"))
    statements.append(reach.where(whole * size, body(whole * size, rest)))
    return statements
