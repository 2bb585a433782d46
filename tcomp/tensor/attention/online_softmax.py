"""The softmax of attention in the registers where tensor cores leave sums, a tile of keys after the other.

A thread has scores `[pieces, keys / 8, 4]` of a tile, and sums `[pieces, columns / 8, 4]`, as in `Fragments`:
two rows of each piece of 16, four threads of a warp a row. Of every row it keeps the highest score so far and
the total of the weights. Source: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import e as euler
from math import frexp, gcd, inf, log2

from tcomp.tensor.attention.mma_operands import MmaAttentionOperands
from tcomp.tensor.attention.parts import DTYPE, LOWEST, Pieces
from tcomp.tensor.attention.plan import AttentionShape
from tcomp.tensor.gpu.warps import combine_lanes
from tcomp.tensor.loops import (
    Buffer,
    Expression,
    Statement,
    constant,
    local,
    sequence,
    unrolled,
    written_out,
)
from tcomp.tensor.tensor_cores.fragments import Fragments
from tcomp.tvm_api import tirx

_ROW_LANES = 4
"""Threads that share a row."""
PIECE_ROWS = 16


@dataclass(frozen=True)
class WarpRows:
    """The rows of a warp: pieces of 16 from `first` on, of the matrices of `batch`; `lane` of the thread."""

    batch: Expression
    first: Expression
    lane: Expression


@dataclass(frozen=True)
class Exponential:
    """What makes a weight of a score, where `top` is the highest of its row."""

    operands: MmaAttentionOperands

    @property
    def folded(self) -> bool:
        """Whether scores are plain products: their factor and that of the exponential are one."""
        return self.operands.mask is None and self.operands.of_anchor.scale > 0

    @property
    def factor(self) -> float:
        """Of a score in the exponent of 2."""
        return (self.operands.of_anchor.scale if self.folded else 1) * log2(euler)

    @property
    def lowest(self) -> float:
        """The highest score of no keys.

        It is finite in the exponent, too, and a power of two: nvcc makes one operation of a product and the
        difference, and of two that are equal leaves what rounding took from one.
        """
        return -(2.0 ** (127 - max(0, frexp(self.factor)[1]))) if self.folded else LOWEST

    def __call__(self, score: Expression, top: Expression) -> Expression:
        factor = tirx.const(self.factor, DTYPE)
        if self.folded:
            return _exp2(score * factor - top * factor)
        return _exp2((score - top) * factor)


class OnlineSoftmax:
    """What a thread keeps for its rows, and what it does with them."""

    def __init__(
        self,
        operands: MmaAttentionOperands,
        shape: AttentionShape,
        rows: WarpRows,
        pieces: int,
        keys: int,
        columns: int,
    ) -> None:
        """`keys` of a tile and `columns` of the output, both multiples of 16."""
        self.operands, self.shape, self.rows = operands, shape, rows
        self.pieces, self.keys, self.columns = pieces, keys, columns
        self.allocations: list[Statement] = []
        self.sums = self._local((pieces, columns // 8, 4), DTYPE, "sums")
        self.scores = self._local((pieces, keys // 8, 4), DTYPE, "scores")
        self.weights = self._local((pieces, keys // 16, 4), "uint32", "weights")
        self.tops, self.totals, self.tile_tops = (
            self._local((2 * pieces,), DTYPE, name) for name in ("tops", "totals", "tile_tops")
        )
        self.exponential = Exponential(operands)

    def _local(self, shape: Sequence[int], dtype: str, name: str) -> Buffer:
        allocate, buffer = local(shape, dtype, name)
        self.allocations.append(allocate)
        return buffer

    def begin(self) -> list[Statement]:
        """No keys were seen yet."""
        lowest, nothing = tirx.const(self.exponential.lowest, DTYPE), tirx.const(0, DTYPE)

        def one(r: Expression) -> Statement:
            return sequence(
                [tirx.BufferStore(self.tops, lowest, [r]), tirx.BufferStore(self.totals, nothing, [r])]
            )

        return [unrolled(2 * self.pieces, one, "r"), clear(self.sums)]

    def scale(self, first: Expression) -> list[Statement]:
        """Products of queries and of keys from `first` on to scores, where they are not as good as these."""
        return [] if self.exponential.folded else [self._scale(first)]

    def hide(self, first: Expression, lowest: Expression) -> list[Statement]:
        """Of the tile of keys from `first` on, give those that a query does not see no weight.

        No row is of a lower query than `lowest`. There is nothing to do in tiles that all queries see.
        """
        limit = self.operands.of_anchor.limit
        if not limit.causal and limit.length % self.keys == 0:
            return []

        def one(at: list[Expression], row: Expression, key: Expression) -> Statement:
            is_seen = first + key < limit.seen_by(self.operands.heads.query(row))
            shown = tirx.Select(is_seen, self.scores[tuple(at)], tirx.const(-inf, DTYPE))
            return tirx.BufferStore(self.scores, shown, at)

        is_hidden = first + self.keys > limit.seen_by(lowest)
        return [tirx.IfThenElse(is_hidden, self._each_score(one), None)]

    def weigh(self, change: Callable[[Expression, Expression, Expression], Statement]) -> Statement:
        """Scores of the tile to weights.

        `change(piece, half, factor)` is done for each row; what was summed up for it has to become `factor`
        times as much before anything is added.
        """
        return self._each_row(lambda i, half: self._weigh_row(i, half, change))

    def rescale(self, i: Expression, half: Expression, factor: Expression) -> Statement:
        """Sums of a row times `factor`."""
        return self._change(i, half, lambda value: value * factor)

    def _change(
        self, i: Expression, half: Expression, change: Callable[[Expression], Expression]
    ) -> Statement:
        """Sums of a row become what `change` makes of each."""

        def one(at: list[Expression]) -> Statement:
            j, which = at
            own = [i, j, half * 2 + which]
            return tirx.BufferStore(self.sums, change(self.sums[tuple(own)]), own)

        return written_out((self.columns // 8, 2), one)

    def round(self) -> Statement:
        """Weights to 16 bits, as left operands."""
        name = f"tcomp_pack_{self.shape.dtype}"

        def one(at: list[Expression]) -> Statement:
            i, t, which = at
            pair = [self.scores[i, 2 * t + which // 2, which % 2 * 2 + n] for n in range(2)]
            return tirx.BufferStore(self.weights, tirx.call_pure_extern("uint32", name, *pair), at)

        return written_out((self.pieces, self.keys // 16, 4), one)

    def finish(self, block_rows: int) -> list[Statement]:
        """Divide by the totals and store; blocks begin at multiples of `block_rows`."""

        def row(i: Expression, half: Expression) -> Statement:
            r, shape = i * 2 + half, self.operands.of_anchor
            inverse = tirx.Var("inverse", DTYPE)
            return sequence(
                [
                    *self._add_up(r),
                    tirx.Bind(inverse, tirx.const(1, DTYPE) / self.totals[r]),
                    self._change(i, half, lambda value: shape.settled(value * inverse, self.totals[r] > 0)),
                ]
            )

        def store(row: Expression, column: Expression, value: Expression) -> Statement:
            return self.operands.finish(self.rows.batch, row, column, value)

        return [self._each_row(row), self._stored(block_rows, self.operands.vector, store)]

    def keep(self, block_rows: int, pieces: Pieces, part: Expression) -> list[Statement]:
        """What this part of the keys has of each row to where parts are put together."""
        batch = self.rows.batch

        def row(i: Expression, half: Expression) -> Statement:
            r, own = i * 2 + half, self._own_row(i, half)
            is_first = tirx.floormod(self.rows.lane, _ROW_LANES) == 0
            kept = pieces.keep_row(part, [batch, own], self.tops[r], self.totals[r])
            inside = tirx.all(is_first, own < self.shape.rows)
            return sequence([*self._add_up(r), tirx.IfThenElse(inside, kept, None)])

        def store(row: Expression, column: Expression, value: Expression) -> Statement:
            return pieces.keep_sum(part, [batch, row], column, value)

        return [self._each_row(row), self._stored(block_rows, gcd(self.operands.of_anchor.width, 2), store)]

    def _add_up(self, r: Expression) -> list[Statement]:
        """The totals of the threads that share a row."""
        return combine_lanes(self.totals, [r], _ROW_LANES, lambda a, b: a + b)

    def _own_row(self, i: Expression, half: Expression) -> Expression:
        return self.rows.first + tirx.floordiv(self.rows.lane, _ROW_LANES) + (i * PIECE_ROWS + half * 8)

    def _stored(
        self,
        block_rows: int,
        vector: int,
        store: Callable[[Expression, Expression, Expression], Statement],
    ) -> Statement:
        fragments = Fragments(PIECE_ROWS, self.sums, self.shape.rows, self.operands.of_anchor.width, vector)
        return fragments.stored(
            self.rows.lane, self.rows.first, constant(0), (block_rows, self.columns), store
        )

    def _each_row(self, body: Callable[[Expression, Expression], Statement]) -> Statement:
        """`body(piece, half of it)` for each row of this thread."""
        return unrolled(self.pieces, lambda i: unrolled(2, lambda h: body(i, h), "h"), "i")

    def _each_score(self, body: Callable[[list[Expression], Expression, Expression], Statement]) -> Statement:
        """`body(index into the scores, row, key)`, the key counted from the first of the tile."""
        own_key = tirx.floormod(self.rows.lane, _ROW_LANES) * 2

        def one(at: list[Expression]) -> Statement:
            i, half, j, which = at
            return body([i, j, half * 2 + which], self._own_row(i, half), own_key + (j * 8 + which))

        return written_out((self.pieces, 2, self.keys // 8, 2), one)

    def _scale(self, first: Expression) -> Statement:
        operands, shape = self.operands, self.shape
        scale = tirx.const(operands.of_anchor.scale, DTYPE)

        def one(at: list[Expression], row: Expression, key: Expression) -> Statement:
            if operands.mask is None:
                return tirx.BufferStore(self.scores, self.scores[tuple(at)] * scale, at)
            inside = tirx.min(row, constant(shape.rows - 1))
            position = tirx.min(first + key, constant(shape.length - 1))
            statements, value = operands.mask_at(self.rows.batch, inside, position)
            score = operands.of_anchor.masked(self.scores[tuple(at)] * scale, value)
            return sequence([*statements, tirx.BufferStore(self.scores, score, at)])

        return self._each_score(one)

    def _weigh_row(
        self,
        i: Expression,
        half: Expression,
        changed: Callable[[Expression, Expression, Expression], Statement],
    ) -> Statement:
        r, count = i * 2 + half, self.keys // 8

        def each(body: Callable[[list[Expression]], Statement]) -> Statement:
            return unrolled(count, lambda j: unrolled(2, lambda w: body([i, j, half * 2 + w]), "w"), "j")

        def highest(at: list[Expression]) -> Statement:
            return tirx.BufferStore(self.tile_tops, tirx.max(self.tile_tops[r], self.scores[tuple(at)]), [r])

        change, top = tirx.Var("change", DTYPE), tirx.Var("top", DTYPE)
        exponential = self.exponential

        def weigh(at: list[Expression]) -> Statement:
            return sequence(
                [
                    tirx.BufferStore(self.scores, exponential(self.scores[tuple(at)], top), at),
                    tirx.BufferStore(self.totals, self.totals[r] + self.scores[tuple(at)], [r]),
                ]
            )

        return sequence(
            [
                tirx.BufferStore(self.tile_tops, self.tops[r], [r]),
                each(highest),
                *combine_lanes(self.tile_tops, [r], _ROW_LANES, tirx.max),
                tirx.Bind(top, self.tile_tops[r]),
                tirx.Bind(change, exponential(self.tops[r], top)),
                tirx.BufferStore(self.tops, top, [r]),
                tirx.BufferStore(self.totals, self.totals[r] * change, [r]),
                changed(i, half, change),
                each(weigh),
            ]
        )


def _exp2(x: Expression) -> Expression:
    return tirx.call_pure_extern(DTYPE, "tcomp_exp2", x)


def clear(buffer: Buffer) -> Statement:
    """Zeros in all of a thread's registers."""
    zero = tirx.const(0, DTYPE)
    return written_out([int(d) for d in buffer.shape], lambda at: tirx.BufferStore(buffer, zero, at))
