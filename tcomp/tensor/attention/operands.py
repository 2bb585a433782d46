"""The operands of attention on CPUs: how they are packed, and read by the products of `attention.nest`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from tcomp.tensor import loops
from tcomp.tensor.access import vector_load
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.attention.shape import Shape
from tcomp.tensor.cpu.primitives import transpose_square
from tcomp.tensor.loops import Buffer, Expression, Statement
from tcomp.tensor.math import convert
from tcomp.tvm_api import Tensor, tirx

Batch = Sequence[Expression]
Keep = Callable[[Expression, Expression], list[Statement]]
UNROLL = 4
"""Steps of the inner loops of both products that are written out."""


@dataclass(frozen=True)
class LeftRows:
    """The left operand of a product, for the rows `r` of a tile, at each step `k` of `steps`."""

    steps: int
    factor: Callable[[Expression, Expression], tuple[list[Statement], Expression]]
    """What is needed for the factor of (r, k), and that factor."""
    row: Callable[[Expression, Expression], Expression | None]
    """The UNROLL factors of r from k on as one load, where they lie so."""
    before: tuple[Statement, ...] = ()
    """What brings them there."""


class AttentionOperands:
    """The operands of one kernel, those of `slots` heads packed at a time.

    They are packed in groups of neighbours of a reduction, each of which is multiplied in one step.
    """

    group: ClassVar[int] = 1
    """Elements of a group."""

    def __init__(self, anchored: Anchored, shape: Shape, lanes: int, slots: int) -> None:
        self.anchored, self.shape, self.lanes = anchored, shape, lanes
        self.query, self.key, self.value, *mask = anchored.operands
        self.mask: Tensor | None = mask[0] if mask else None
        self.keys = shape.key_vectors(lanes)
        self.columns = shape.value_vectors(lanes)
        self.score_steps, self.value_steps = (-(-n // self.group) for n in (shape.depth, shape.length))
        self.packed_keys = anchored.add_scratch(
            (slots, self.keys, self.score_steps, lanes), self.dtype, "packed_keys"
        )
        self.packed_values = anchored.add_scratch(
            (slots, self.value_steps, self.columns, lanes), self.dtype, "packed_values"
        )

    @property
    def dtype(self) -> str:
        """The type of a group."""
        return self.shape.dtype

    def pack(self, batch: Batch, slot: Expression) -> Statement:
        """Pack the keys and values of a head."""
        return loops.sequence([self._pack_keys(batch, slot), self._pack_values(batch, slot)])

    def queries(self, batch: Batch, row: Expression, size: int) -> LeftRows:
        """A tile of `size` queries from `row` on."""

        def several(r: Expression, k: Expression) -> Expression | None:
            if self.shape.depth < UNROLL:
                return None
            return self._groups_of_row(self.query, batch, row + r, k, UNROLL)

        return LeftRows(
            self.score_steps, lambda r, k: self._group_of_row(self.query, batch, row + r, k), several
        )

    def weights(self, scores: Buffer) -> tuple[LeftRows, Keep]:
        """A tile of weights, and what keeps vector `v` of row `r` of them once it lies in `scores`."""
        rows = LeftRows(
            self.value_steps,
            lambda r, k: ([], tirx.BufferLoad(scores, [r, k])),
            lambda r, k: tirx.BufferLoad(scores, [r, tirx.Ramp(k, 1, UNROLL)]),
        )
        return rows, lambda r, v: []

    def multiply_add(self, total: Expression, left: Expression, right: Expression) -> Expression:
        """`total` and the products of two groups, the same `left` in all lanes."""
        return total + left * right

    def _own(self, tensor: Tensor, batch: Batch, row: Expression, column: Expression) -> list[Expression]:
        """(batch, row, column) as an index into an operand with fewer axes, or axes of extent 1."""
        return own_index(tensor, [*batch, row, column], 0)

    def stored(
        self, tensor: Tensor, batch: Batch, row: Expression, column: Expression
    ) -> tuple[list[Statement], Expression]:
        """What is needed for an element of an operand, and that element, in its own type."""
        elements = self.anchored.elements()
        value = elements.element(tensor, self._own(tensor, batch, row, column))
        return elements.statements, value

    def element(
        self, tensor: Tensor, batch: Batch, row: Expression, column: Expression
    ) -> tuple[list[Statement], Expression]:
        """The same, in the type of sums."""
        needed, value = self.stored(tensor, batch, row, column)
        return needed, convert(value, self.shape.dtype)

    def _group_of_row(
        self, tensor: Tensor, batch: Batch, row: Expression, k: Expression
    ) -> tuple[list[Statement], Expression]:
        """Group `k` of a row of queries or keys."""
        return self.element(tensor, batch, row, k)

    def _groups_of_row(
        self, tensor: Tensor, batch: Batch, row: Expression, k: Expression, count: int
    ) -> Expression | None:
        """So many groups of a row from `k` on, where they are one load."""
        if str(tensor.dtype) != self.shape.dtype:
            return None
        index = self._own(tensor, batch, row, k)
        return vector_load(self.anchored.elements(), tensor, index, count)

    def _group_of_values(
        self, batch: Batch, t: Expression, column: Expression
    ) -> tuple[list[Statement], Expression]:
        """Group `t` of a column of values."""
        return self.element(self.value, batch, t, column)

    # Packing

    def _pack_keys(self, batch: Batch, slot: Expression) -> Statement:
        """`[length, depth] -> [vector, depth, key]`, the last vector filled up with zeros."""
        lanes, rest = self.lanes, self.shape.length % self.lanes
        full = loops.loop(
            self.shape.length // lanes, lambda v: self._pack_key_vector(batch, slot, v, lanes), "v"
        )
        if not rest:
            return full
        last = self._pack_key_vector(batch, slot, loops.constant(self.keys - 1), rest)
        return loops.sequence([full, last]) if self.keys > 1 else last

    def _pack_key_vector(self, batch: Batch, slot: Expression, v: Expression, count: int) -> Statement:
        lanes, depth, keys = self.lanes, self.score_steps, self.packed_keys
        zero = tirx.const(0, self.dtype)

        def row(i: int, k: Expression) -> Expression | None:
            return self._groups_of_row(self.key, batch, v * lanes + i, k, lanes)

        if depth % lanes == 0 and row(0, loops.constant(0)) is not None:

            def square(k: Expression) -> Statement:
                def load(i: int) -> Expression:
                    return row(i, k) if i < count else tirx.Broadcast(zero, lanes)

                def store(i: int, vector: Expression) -> Statement:
                    return tirx.BufferStore(keys, vector, [slot, v, k + i, tirx.Ramp(0, 1, lanes)])

                return transpose_square(load, store, lanes, self.dtype)

            return loops.loop(depth // lanes, lambda k: square(k * lanes), "k")

        def one(k: Expression, i: Expression) -> Statement:
            needed, value = self._group_of_row(self.key, batch, v * lanes + i, k)
            return loops.sequence([*needed, tirx.BufferStore(keys, value, [slot, v, k, i])])

        def blank(k: Expression, i: Expression) -> Statement:
            return tirx.BufferStore(keys, zero, [slot, v, k, i + count])

        def step(k: Expression) -> Statement:
            parts = [loops.unrolled(count, lambda i: one(k, i))]
            if count < lanes:
                parts.append(loops.unrolled(lanes - count, lambda i: blank(k, i)))
            return loops.sequence(parts)

        return loops.loop(depth, step, "k")

    def _pack_values(self, batch: Batch, slot: Expression) -> Statement:
        """`[length, width] -> [key, vector, column]`, the last vector filled up with zeros."""
        lanes, width = self.lanes, self.shape.width
        rest = width % lanes

        def copy(t: Expression, v: Expression, lane: Expression) -> Statement:
            needed, value = self._group_of_values(batch, t, v * lanes + lane)
            return loops.sequence([*needed, tirx.BufferStore(self.packed_values, value, [slot, t, v, lane])])

        def row(t: Expression) -> Statement:
            statements = [
                loops.unrolled(
                    width // lanes, lambda v: loops.vectorized(lanes, lambda lane: copy(t, v, lane))
                )
            ]
            if rest:
                last = loops.constant(self.columns - 1)
                zero = tirx.const(0, self.dtype)
                statements.append(loops.unrolled(rest, lambda i: copy(t, last, i)))
                statements.append(
                    loops.unrolled(
                        lanes - rest,
                        lambda i: tirx.BufferStore(self.packed_values, zero, [slot, t, last, i + rest]),
                    )
                )
            return loops.sequence(statements if width >= lanes else statements[1:])

        return loops.loop(self.value_steps, row, "t")


def own_index(tensor: Tensor, index: Sequence[Expression], rest: int) -> list[Expression]:
    """`index` as one into all axes of `tensor` but the last `rest`, which may be fewer or of extent 1."""
    shape = [int(d) for d in tensor.shape][: len(tensor.shape) - rest]
    own = list(index)[len(index) - len(shape) :]
    return [loops.constant(0) if extent == 1 else i for extent, i in zip(shape, own, strict=True)]
