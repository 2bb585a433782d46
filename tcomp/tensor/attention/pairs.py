"""The operands of attention of bfloat16 in pairs, which one instruction multiplies (`tensor.groups`).

Queries and keys are in pairs of neighbours of the depth, values and their weights in pairs of keys. Scores
and totals are float32; weights are rounded to bfloat16 for the second product. Where a pair's second half
lies beyond the depth or the last key, it is zero in the packed keys and values.
"""

from __future__ import annotations

from tcomp.tensor import bfloat16, loops
from tcomp.tensor.access import load_along
from tcomp.tensor.attention.operands import AttentionOperands, Batch, Keep, LeftRows
from tcomp.tensor.groups import BFLOAT16_PAIRS, WORD
from tcomp.tensor.intrinsics import vector
from tcomp.tensor.loops import Buffer, Expression, Statement
from tcomp.tvm_api import Tensor, tirx


class PairedOperands(AttentionOperands):
    """Operands whose groups are pairs."""

    group = BFLOAT16_PAIRS.size

    @property
    def dtype(self) -> str:
        return WORD

    def queries(self, batch: Batch, row: Expression, size: int) -> LeftRows:
        """A copy of the queries, whose pairs may lie anywhere."""
        allocate, words = loops.local((size, self.score_steps), WORD, "queries")
        copy = loops.loop(size, lambda r: self._copy_query(batch, row + r, words, r), "r")
        return _rows(self.score_steps, words, allocate, copy)

    def weights(self, scores: Buffer) -> tuple[LeftRows, Keep]:
        rows, width = (int(n) for n in scores.shape)
        allocate, words = loops.local((rows, width // self.group), WORD, "weights")
        count = self.lanes // self.group

        def keep(r: Expression, v: Expression) -> list[Statement]:
            weights = tirx.BufferLoad(scores, [r, tirx.Ramp(v * self.lanes, 1, self.lanes)])
            pairs = tirx.reinterpret(vector(WORD, count), bfloat16.rounded(weights))
            return [tirx.BufferStore(words, pairs, [r, tirx.Ramp(v * count, 1, count)])]

        return _rows(self.value_steps, words, allocate), keep

    def multiply_add(self, total: Expression, left: Expression, right: Expression) -> Expression:
        return BFLOAT16_PAIRS.multiply_add(total, left, right)

    def _copy_query(self, batch: Batch, row: Expression, words: Buffer, r: Expression) -> Statement:
        steps, lanes = self.score_steps, self.lanes

        def copy(k: Expression) -> Statement:
            needed, pair = self._group_of_row(self.query, batch, row, k)
            return loops.sequence([*needed, tirx.BufferStore(words, pair, [r, k])])

        if steps < lanes or self._groups_of_row(self.query, batch, row, loops.constant(0), lanes) is None:
            return loops.sequence(loops.vector_loop(steps, lanes, 1, copy))
        # The last vector ends with the row, and overlaps the one before it.
        starts = [min(k, steps - lanes) for k in range(0, steps, lanes)]
        pairs = [self._groups_of_row(self.query, batch, row, loops.constant(k), lanes) for k in starts]
        return loops.sequence(
            [
                tirx.BufferStore(words, vector, [r, tirx.Ramp(k, 1, lanes)])
                for k, vector in zip(starts, pairs, strict=True)
            ]
        )

    def _group_of_row(
        self, tensor: Tensor, batch: Batch, row: Expression, k: Expression
    ) -> tuple[list[Statement], Expression]:
        return BFLOAT16_PAIRS.word(k, self.shape.depth, lambda i: self.stored(tensor, batch, row, i))

    def _groups_of_row(
        self, tensor: Tensor, batch: Batch, row: Expression, k: Expression, count: int
    ) -> Expression | None:
        if self.shape.depth % self.group:
            return None
        index = self._own(tensor, batch, row, k * self.group)
        pairs = load_along(self.anchored.elements(), tensor, index, count * self.group)
        return None if pairs is None else tirx.reinterpret(vector(WORD, count), pairs)

    def _group_of_values(
        self, batch: Batch, t: Expression, column: Expression
    ) -> tuple[list[Statement], Expression]:
        return BFLOAT16_PAIRS.word(t, self.shape.length, lambda i: self.stored(self.value, batch, i, column))


def _rows(steps: int, words: Buffer, *before: Statement) -> LeftRows:
    return LeftRows(
        steps, lambda r, k: ([], tirx.BufferLoad(words, [r, k])), lambda r, k: None, tuple(before)
    )
