"""The loops of attention on CPUs: softmax(q k^T scale + mask) v, a tile of query rows at a time.

    for each batch (head):
      pack the keys as [vector of keys, depth, key] and the values as [key, vector of columns, column]
      for each tile of rows:
        for each few vectors of keys:    scores = q k^T scale + mask, and the highest score of each lane
        for each row:                    weights = exp(scores - highest score), and their total
        for each few vectors of columns: (weights v) / total, the epilogue, the output

One head's packed operands and one tile's scores stay in the nearest caches; nothing of size [S, T] reaches
memory. Keys beyond the last are zeros with a score of minus infinity, so that rows are whole vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import e, gcd, inf, log2, prod
from typing import Any

from tcomp.relay.attributes import number
from tcomp.relay.graph import Node
from tcomp.target.target import Target
from tcomp.tensor import loops
from tcomp.tensor.access import vector_load
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.convolution import accumulator_dtype
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.lane_factors import rows_apart, rows_fit
from tcomp.tensor.loops import Buffer, Expression, Statement
from tcomp.tensor.math import convert, exp2
from tcomp.tensor.primitives import Tiles, transpose_square
from tcomp.tensor.product import unravel
from tcomp.tensor.template import Scheduled
from tcomp.tvm_api import Tensor, tirx

Index = Sequence[Any]
UNROLL = 4
"""Steps of the inner loops of both products that are written out."""


@dataclass(frozen=True)
class Shape:
    """queries [*batch, rows, depth], keys [*batch, length, depth], values [*batch, length, width]."""

    batch: tuple[int, ...]
    rows: int
    length: int
    depth: int
    width: int
    dtype: str
    scale: float

    @staticmethod
    def of(node: Node) -> Shape:
        query, key, value = (v.type.static_shape for v in node.inputs[:3])
        batch = node.output.type.static_shape[:-2]
        dtype = accumulator_dtype(node.output.dtype)
        scale = number(node.attrs, "scale")
        return Shape(batch, query[-2], key[-2], query[-1], value[-1], dtype, scale)

    def key_vectors(self, lanes: int) -> int:
        """Vectors of one row of scores."""
        return -(-self.length // lanes)

    def value_vectors(self, lanes: int) -> int:
        """Vectors of one row of the output."""
        return -(-self.width // lanes)


@dataclass(frozen=True)
class Plan:
    """Register tiles: rows by vectors of scores, rows by vectors of output columns; who shares the work."""

    rows: Tiles
    score_vectors: int
    value_vectors: int
    parallel: str
    """`no`, over the `batch` or over the `tiles` of rows of all batches."""


class AttentionNest:
    """The loops of one kernel."""

    def __init__(self, kernel: Kernel, plan: Plan, target: Target) -> None:
        assert kernel.anchor is not None
        self.shape = shape = Shape.of(kernel.anchor)
        self.plan, self.lanes, self.target = plan, target.lanes(shape.dtype), target
        self.anchored = Anchored(kernel)
        self.query, self.key, self.value, *mask = self.anchored.operands
        self.mask: Tensor | None = mask[0] if mask else None
        self.keys = shape.key_vectors(self.lanes)
        self.columns = shape.value_vectors(self.lanes)
        slots = 1 if plan.parallel == "no" else prod(shape.batch)
        self.packed_keys = self.anchored.add_scratch(
            (slots, self.keys, shape.depth, self.lanes), shape.dtype, "packed_keys"
        )
        self.packed_values = self.anchored.add_scratch(
            (slots, shape.length, self.columns, self.lanes), shape.dtype, "packed_values"
        )

    def scheduled(self) -> Scheduled:
        batches, tiles = prod(self.shape.batch), self.plan.rows.count
        by_tiles = self.plan.parallel == "tiles"
        over_batches = loops.loop if self.plan.parallel == "no" else loops.parallel

        def pack(number: Expression) -> Statement:
            batch, slot = self._batch(number)
            return loops.sequence([self._pack_keys(batch, slot), self._pack_values(batch, slot)])

        def tile(number: Expression, t: Expression) -> Statement:
            return self._tile(*self._batch(number), self.plan.rows.base(t))

        def whole(number: Expression) -> Statement:
            return loops.sequence([pack(number), loops.loop(tiles, lambda t: tile(number, t), "tile")])

        if not by_tiles:
            return self.anchored.scheduled([over_batches(batches, whole, "batch")])
        every = loops.parallel(batches * tiles, lambda i: tile(*unravel(i, (batches, tiles))), "tile")
        return self.anchored.scheduled([over_batches(batches, pack, "batch"), every])

    def _batch(self, number: Expression) -> tuple[list[Any], Expression]:
        """The batch index of batch `number`, and its place in the packed operands."""
        slot = loops.constant(0) if self.plan.parallel == "no" else number
        index = unravel(number, self.shape.batch)
        return [
            loops.constant(0) if d == 1 else i for d, i in zip(self.shape.batch, index, strict=True)
        ], slot

    def _own(self, tensor: Tensor, batch: Index, row: Expression, column: Expression) -> list[Any]:
        """(batch, row, column) as an index into an operand with fewer axes, or axes of extent 1."""
        shape = [int(d) for d in tensor.shape]
        index = [*batch, row, column][len(batch) + 2 - len(shape) :]
        return [loops.constant(0) if d == 1 else i for d, i in zip(shape, index, strict=True)]

    def _element(
        self, tensor: Tensor, batch: Index, row: Expression, column: Expression
    ) -> tuple[list[Statement], Expression]:
        elements = self.anchored.elements()
        value = elements.element(tensor, self._own(tensor, batch, row, column))
        return elements.statements, convert(value, self.shape.dtype)

    # Packing

    def _pack_keys(self, batch: Index, slot: Expression) -> Statement:
        """`[length, depth] -> [vector, depth, key]`, the last vector filled up with zeros."""
        lanes, rest = self.lanes, self.shape.length % self.lanes
        full = loops.loop(
            self.shape.length // lanes, lambda v: self._pack_key_vector(batch, slot, v, lanes), "v"
        )
        if not rest:
            return full
        last = self._pack_key_vector(batch, slot, loops.constant(self.keys - 1), rest)
        return loops.sequence([full, last]) if self.keys > 1 else last

    def _pack_key_vector(self, batch: Index, slot: Expression, v: Expression, count: int) -> Statement:
        lanes, depth, keys = self.lanes, self.shape.depth, self.packed_keys
        zero = tirx.const(0, self.shape.dtype)

        def row(i: int, k: Expression) -> Expression | None:
            index = self._own(self.key, batch, v * lanes + i, k)
            return vector_load(self.anchored.elements(), self.key, index, lanes)

        in_squares = str(self.key.dtype) == self.shape.dtype and depth % lanes == 0
        if in_squares and row(0, loops.constant(0)) is not None:

            def square(k: Expression) -> Statement:
                def load(i: int) -> Expression:
                    return row(i, k) if i < count else tirx.Broadcast(zero, lanes)

                def store(i: int, vector: Expression) -> Statement:
                    return tirx.BufferStore(keys, vector, [slot, v, k + i, tirx.Ramp(0, 1, lanes)])

                return transpose_square(load, store, lanes, self.shape.dtype)

            return loops.loop(depth // lanes, lambda k: square(k * lanes), "k")

        def one(k: Expression, i: Expression) -> Statement:
            needed, value = self._element(self.key, batch, v * lanes + i, k)
            return loops.sequence([*needed, tirx.BufferStore(keys, value, [slot, v, k, i])])

        def blank(k: Expression, i: Expression) -> Statement:
            return tirx.BufferStore(keys, zero, [slot, v, k, i + count])

        def step(k: Expression) -> Statement:
            parts = [loops.unrolled(count, lambda i: one(k, i))]
            if count < lanes:
                parts.append(loops.unrolled(lanes - count, lambda i: blank(k, i)))
            return loops.sequence(parts)

        return loops.loop(depth, step, "k")

    def _pack_values(self, batch: Index, slot: Expression) -> Statement:
        """`[length, width] -> [key, vector, column]`, the last vector filled up with zeros."""
        lanes, width = self.lanes, self.shape.width
        rest = width % lanes

        def copy(t: Expression, v: Expression, lane: Expression) -> Statement:
            needed, value = self._element(self.value, batch, t, v * lanes + lane)
            return loops.sequence([*needed, tirx.BufferStore(self.packed_values, value, [slot, t, v, lane])])

        def row(t: Expression) -> Statement:
            statements = [
                loops.unrolled(
                    width // lanes, lambda v: loops.vectorized(lanes, lambda lane: copy(t, v, lane))
                )
            ]
            if rest:
                last = loops.constant(self.columns - 1)
                zero = tirx.const(0, self.shape.dtype)
                statements.append(loops.unrolled(rest, lambda i: copy(t, last, i)))
                statements.append(
                    loops.unrolled(
                        lanes - rest,
                        lambda i: tirx.BufferStore(self.packed_values, zero, [slot, t, last, i + rest]),
                    )
                )
            return loops.sequence(statements if width >= lanes else statements[1:])

        return loops.loop(self.shape.length, row, "t")

    # A tile of rows

    def _tile(self, batch: Index, slot: Expression, row: Expression) -> Statement:
        shape, plan, lanes, size = self.shape, self.plan, self.lanes, self.plan.rows.size
        allocate, scores = loops.local((size, self.keys * lanes), shape.dtype, "scores")
        allocate_tops, tops = loops.local((size, lanes), shape.dtype, "tops")
        allocate_scales, scales = loops.local((size,), shape.dtype, "scales")
        low = tirx.const(-inf, shape.dtype)
        clear = loops.loop(
            size, lambda r: loops.vectorized(lanes, lambda i: tirx.BufferStore(tops, low, [r, i])), "r"
        )
        return loops.sequence(
            [
                allocate,
                allocate_tops,
                allocate_scales,
                clear,
                *_parts(
                    self.keys,
                    plan.score_vectors,
                    lambda first, count: self._scores(batch, slot, row, first, count, scores, tops),
                ),
                loops.loop(size, lambda r: self._exponentials(scores, tops, scales, r), "r"),
                *_parts(
                    self.columns,
                    plan.value_vectors,
                    lambda first, count: self._weighted(batch, slot, row, first, count, scores, scales),
                ),
            ]
        )

    def _product(
        self,
        vectors: int,
        depth: int,
        left: Callable[[Expression, Expression], tuple[list[Statement], Expression]],
        row: Callable[[Expression, Expression], Expression | None],
        right: Callable[[Expression, Expression, Expression], Expression],
        store: Callable[[Buffer, Expression, int], Statement],
    ) -> Statement:
        """Sums of `left(r, k) right(k, v, lane)` in registers, then `store(sums, r, v)`.

        `row(r, k)` are the UNROLL factors of a row from `k` on as one load, where they lie so.
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
        by_lane = rows_fit(self.target, size, vectors) and row(zeros, zeros) is not None

        def several(k: Expression) -> Statement:
            if not by_lane:
                return loops.unrolled(UNROLL, lambda u: step(k + u, lambda r: left(r, k + u)))
            factors = rows_apart(row, size, UNROLL, dtype)
            steps = [step(k + u, lambda r, u=u: ([], factors.at(r, u))) for u in range(UNROLL)]
            return loops.sequence([*factors.load(k), *steps])

        def step(
            k: Expression, factor: Callable[[Expression], tuple[list[Statement], Expression]]
        ) -> Statement:
            def add(r: Expression, v: Expression, lane: Expression) -> Statement:
                needed, a = factor(r)
                total = tirx.BufferLoad(sums, [r, v, lane]) + a * right(k, v, lane)
                return loops.sequence([*needed, tirx.BufferStore(sums, total, [r, v, lane])])

            return tile(add)

        whole = depth // UNROLL
        steps: list[Statement] = []
        if whole:
            steps.append(loops.loop(whole, lambda k: several(k * UNROLL), "k"))
        if depth % UNROLL:
            begin = whole * UNROLL
            steps.append(
                loops.unrolled(depth % UNROLL, lambda u: step(begin + u, lambda r: left(r, begin + u)))
            )
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
        batch: Index,
        slot: Expression,
        row: Expression,
        first: Expression,
        count: int,
        scores: Buffer,
        tops: Buffer,
    ) -> Statement:
        """Scaled and masked scores of `count` vectors of keys from `first`, and the highest in each lane."""
        lanes, shape = self.lanes, self.shape
        scale, low = tirx.const(shape.scale, shape.dtype), tirx.const(-inf, shape.dtype)
        rest = shape.length % lanes

        def finish(value: Expression, r: Expression, at: Expression, lane: Expression) -> Statement:
            place = [r, at * lanes + lane]
            highest = tirx.max(tirx.BufferLoad(tops, [r, lane]), tirx.BufferLoad(scores, place))
            return loops.sequence(
                [tirx.BufferStore(scores, value, place), tirx.BufferStore(tops, highest, [r, lane])]
            )

        def store(sums: Buffer, r: Expression, v: int) -> Statement:
            at = first + v
            is_last = rest > 0 and isinstance(at, int) and at == self.keys - 1

            def scaled(lane: Expression) -> Expression:
                return tirx.BufferLoad(sums, [r, v, lane]) * scale

            def one(lane: Expression) -> Statement:
                if self.mask is None:
                    return finish(scaled(lane), r, loops.constant(at) if isinstance(at, int) else at, lane)
                needed, mask = self._element(self.mask, batch, row + r, at * lanes + lane)
                return loops.sequence([*needed, finish(scaled(lane) + mask, r, at, lane)])

            if not is_last:
                return loops.vectorized(lanes, one)
            blank = loops.vectorized(
                lanes - rest, lambda i: tirx.BufferStore(scores, low, [r, at * lanes + rest + i])
            )
            return loops.sequence([loops.vectorized(rest, one), blank])

        return self._product(
            count,
            shape.depth,
            lambda r, k: self._element(self.query, batch, row + r, k),
            lambda r, k: self._query_row(batch, row + r, k),
            lambda k, v, lane: tirx.BufferLoad(self.packed_keys, [slot, first + v, k, lane]),
            store,
        )

    def _query_row(self, batch: Index, row: Expression, k: Expression) -> Expression | None:
        """UNROLL elements of a row of queries, where one load gets them as factors."""
        if str(self.query.dtype) != self.shape.dtype or self.shape.depth < UNROLL:
            return None
        index = self._own(self.query, batch, row, k)
        return vector_load(self.anchored.elements(), self.query, index, UNROLL)

    def _exponentials(self, scores: Buffer, tops: Buffer, scales: Buffer, r: Expression) -> Statement:
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

        # LLVM for ARM fills registers with constants anew in each iteration.
        together = gcd(self.keys, UNROLL) if self.target.by_lane else 1

        def several(v: Expression) -> Statement:
            def one(u: Expression) -> Statement:
                return loops.vectorized(lanes, lambda lane: exponential(v * together + u, lane))

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
                loops.loop(self.keys // together, several, "v"),
                *loops.fold_lanes(totals, lanes, lambda a, b: a + b),
                tirx.BufferStore(scales, tirx.const(1.0, dtype) / tirx.BufferLoad(totals, [0]), [r]),
            ]
        )

    def _weighted(
        self,
        batch: Index,
        slot: Expression,
        row: Expression,
        first: Expression,
        count: int,
        scores: Buffer,
        scales: Buffer,
    ) -> Statement:
        """`count` vectors of values from `first`, weighted, times one over the total, with the epilogue."""
        lanes, rest = self.lanes, self.shape.width % self.lanes

        def store(sums: Buffer, r: Expression, v: int) -> Statement:
            at = first + v
            is_last = rest > 0 and isinstance(at, int) and at == self.columns - 1

            def one(lane: Expression) -> Statement:
                value = tirx.BufferLoad(sums, [r, v, lane]) * tirx.BufferLoad(scales, [r])
                index = [*batch, row + r, at * lanes + lane]
                return self.anchored.finish(index, value)

            return loops.vectorized(rest if is_last else lanes, one)

        return self._product(
            count,
            self.shape.length,
            lambda r, k: ([], tirx.BufferLoad(scores, [r, k])),
            lambda r, k: tirx.BufferLoad(scores, [r, tirx.Ramp(k, 1, UNROLL)]),
            lambda k, v, lane: tirx.BufferLoad(self.packed_values, [slot, k, first + v, lane]),
            store,
        )


def _parts(count: int, size: int, body: Callable[[Expression, int], Statement]) -> list[Statement]:
    """`body(first, size)` for whole groups of `size` below `count`, and once for what is left.

    `first` is an `int` where the group is the last one, so that its edge can be told.
    """
    whole, rest = count // size, count % size
    if not rest:
        whole, rest = whole - 1, size
    statements: list[Statement] = []
    if whole:
        statements.append(loops.loop(whole, lambda i: body(i * size, size), "part"))
    statements.append(body(whole * size, rest))
    return statements
