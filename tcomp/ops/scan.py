"""Sequential operators: running sums and the k best of a row, written as loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np

from tcomp.errors import TypeRuleError
from tcomp.ops.shapes import accumulator, check_axis, static_shape
from tcomp.relay.attributes import flag, integer
from tcomp.relay.graph import Attrs
from tcomp.relay.op import REQUIRED, FusionKind, Op, Sample, declare
from tcomp.relay.types import FLOATS, INTEGERS, Array, TensorType, type_of
from tcomp.tensor.loops import (
    Buffer,
    Expression,
    Statement,
    constant,
    extern,
    local,
    loop,
    parallel,
    sequence,
)
from tcomp.tvm_api import Tensor, tirx

_NUMBERS = FLOATS + INTEGERS


def _along(
    shape: Sequence[int], axis: int, row: Callable[[Callable[[Expression], list[Expression]]], Statement]
) -> Statement:
    """`row(at)` for every row along `axis`; `at(i)` is the index of the row's element i."""
    rest = [d for i, d in enumerate(shape) if i != axis]

    def at_row(r: Expression) -> Statement:
        index: list[Expression] = []
        for extent in reversed(rest):
            index.insert(0, tirx.floormod(r, constant(extent)))
            r = tirx.floordiv(r, constant(extent))
        return row(lambda i: [*index[:axis], i, *index[axis:]])

    return parallel(prod(rest), at_row, "row")


def _infer_cumsum(types: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    if types[0].dtype not in _NUMBERS:
        raise TypeRuleError(f"`cumsum` takes numbers, not {types[0].dtype}; insert a cast")
    check_axis("cumsum", integer(attrs, "axis"), types[0].rank)
    return [types[0]]


def _evaluate_cumsum(arrays: Sequence[Array], attrs: Attrs) -> list[Array]:
    axis, reverse = integer(attrs, "axis"), flag(attrs, "reverse")
    x = arrays[0].astype(accumulator(type_of(arrays[0]).dtype), copy=False)
    x = np.flip(x, axis) if reverse else x
    total = np.cumsum(x, axis=axis, dtype=x.dtype)
    if flag(attrs, "exclusive"):
        total = total - x
    return [(np.flip(total, axis) if reverse else total).astype(arrays[0].dtype)]


def _compute_cumsum(inputs: Sequence[Tensor], attrs: Attrs, outputs: Sequence[TensorType]) -> list[Tensor]:
    axis, exclusive, reverse = integer(attrs, "axis"), flag(attrs, "exclusive"), flag(attrs, "reverse")
    shape, dtype = outputs[0].static_shape, outputs[0].dtype
    extent, wide = shape[axis], accumulator(dtype)

    def build(ins: Sequence[Buffer], outs: Sequence[Buffer]) -> Statement:
        def row(at: Callable[[Expression], list[Expression]]) -> Statement:
            allocate, total = local((1,), wide, "total")

            def step(i: Expression) -> Statement:
                place = at(extent - 1 - i if reverse else i)
                value = tirx.BufferLoad(ins[0], place).astype(wide)
                advance = tirx.BufferStore(total, total[0] + value, [0])
                store = tirx.BufferStore(outs[0], total[0].astype(dtype), place)
                return sequence([store, advance] if exclusive else [advance, store])

            return sequence([allocate, tirx.BufferStore(total, tirx.const(0, wide), [0]), loop(extent, step)])

        return _along(shape, axis, row)

    return extern(inputs, [(shape, dtype)], build, "cumsum")


declare(
    Op(
        name="cumsum",
        infer=_infer_cumsum,
        evaluate=_evaluate_cumsum,
        compute=_compute_cumsum,
        kind=FusionKind.OPAQUE,
        attrs={"axis": REQUIRED, "exclusive": False, "reverse": False},
        samples=(
            Sample((TensorType((3, 17)),), {"axis": 1}),
            Sample((TensorType((3, 5, 4)),), {"axis": 1, "exclusive": True}),
            Sample((TensorType((9,), "int64"),), {"axis": 0, "reverse": True}, -9, 9, rtol=0, atol=0),
            Sample(
                (TensorType((2, 9), "float16"),),
                {"axis": 1, "exclusive": True, "reverse": True},
                rtol=2e-3,
                atol=2e-3,
            ),
        ),
    )
)


def _infer_topk(types: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    x, k = types[0], integer(attrs, "k")
    if x.dtype not in _NUMBERS:
        raise TypeRuleError(f"`topk` takes numbers, not {x.dtype}; insert a cast")
    axis = check_axis("topk", integer(attrs, "axis"), x.rank)
    extent = x.shape[axis]
    if k < 1 or (isinstance(extent, int) and k > extent):
        raise TypeRuleError(f"`topk`: k is {k}; it must be at least 1 and at most the axis' extent, {extent}")
    shape = (*x.shape[:axis], k, *x.shape[axis + 1 :])
    return [TensorType(shape, x.dtype), TensorType(shape, "int64")]


def _evaluate_topk(arrays: Sequence[Array], attrs: Attrs) -> list[Array]:
    x, axis, k = arrays[0], integer(attrs, "axis"), integer(attrs, "k")
    wide = x.astype(accumulator(type_of(x).dtype), copy=False)
    if flag(attrs, "largest"):
        # a stable descending order: reverse, sort ascending, reverse back
        order = np.flip(x.shape[axis] - 1 - np.argsort(np.flip(wide, axis), axis=axis, kind="stable"), axis)
    else:
        order = np.argsort(wide, axis=axis, kind="stable")
    indices = np.take(order, np.arange(k), axis=axis)
    return [np.take_along_axis(x, indices, axis), indices.astype(np.int64)]


class _WorstFirstHeap:
    """A binary heap in the output rows: the root is the worst of the k best so far.

    Equal values are ordered by index, the smaller one being better, so the result does not depend on the
    order of insertions. Heapsort then leaves the row sorted, best first.
    """

    def __init__(
        self,
        values: Buffer,
        indices: Buffer,
        at: Callable[[Expression], list[Expression]],
        wide: str,
        largest: bool,
    ) -> None:
        self._values, self._indices, self._at = values, indices, at
        self._wide, self._largest = wide, largest
        self._allocate_hole, self._hole = local((1,), "int32", "hole")
        self._allocate_child, self._child = local((1,), "int32", "child")
        self.allocations = [self._allocate_hole, self._allocate_child]

    def value(self, place: Expression) -> Expression:
        return tirx.BufferLoad(self._values, self._at(place))

    def index(self, place: Expression) -> Expression:
        return tirx.BufferLoad(self._indices, self._at(place))

    def put(self, place: Expression, value: Expression, index: Expression) -> Statement:
        return sequence(
            [
                tirx.BufferStore(self._values, value, self._at(place)),
                tirx.BufferStore(self._indices, index, self._at(place)),
            ]
        )

    def better(self, a: Expression, a_index: Expression, b: Expression, b_index: Expression) -> Expression:
        a, b = a.astype(self._wide), b.astype(self._wide)
        ahead = a > b if self._largest else a < b
        return tirx.any(ahead, tirx.all(tirx.EQ(a, b), a_index < b_index))

    def sift_down(self, size: Expression, value: Expression, index: Expression) -> Statement:
        """Place (value, index) into the heap of `size` entries whose root is free."""
        hole, child = self._hole[0], self._child[0]
        right = child + 1
        worse_right = tirx.all(
            right < size,
            tirx.if_then_else(
                right < size,
                self.better(self.value(child), self.index(child), self.value(right), self.index(right)),
                tirx.const(False, "bool"),
            ),
        )
        step = tirx.IfThenElse(worse_right, tirx.BufferStore(self._child, right, [0]), None)
        beats = self.better(value, index, self.value(child), self.index(child))
        descend = sequence(
            [
                self.put(hole, self.value(child), self.index(child)),
                tirx.BufferStore(self._hole, child, [0]),
                tirx.BufferStore(self._child, self._hole[0] * 2 + 1, [0]),
            ]
        )
        stop = tirx.BufferStore(self._child, size, [0])
        body = sequence([step, tirx.IfThenElse(beats, descend, stop)])
        return sequence(
            [
                tirx.BufferStore(self._hole, constant(0), [0]),
                tirx.BufferStore(self._child, constant(1), [0]),
                tirx.While(child < size, body),
                self.put(self._hole[0], value, index),
            ]
        )


def _compute_topk(inputs: Sequence[Tensor], attrs: Attrs, outputs: Sequence[TensorType]) -> list[Tensor]:
    axis, k, largest = integer(attrs, "axis"), integer(attrs, "k"), flag(attrs, "largest")
    shape = static_shape(inputs[0])
    dtype = outputs[0].dtype

    def build(ins: Sequence[Buffer], outs: Sequence[Buffer]) -> Statement:
        def row(at: Callable[[Expression], list[Expression]]) -> Statement:
            heap = _WorstFirstHeap(outs[0], outs[1], at, accumulator(dtype), largest)
            allocate_value, value = local((1,), dtype, "value")
            allocate_index, index = local((1,), "int64", "index")

            def take(new_value: Expression, new_index: Expression) -> Statement:
                return sequence(
                    [tirx.BufferStore(value, new_value, [0]), tirx.BufferStore(index, new_index, [0])]
                )

            def fill(i: Expression) -> Statement:
                return heap.put(i, tirx.BufferLoad(ins[0], at(i)), i.astype("int64"))

            def heapify(i: Expression) -> Statement:
                # the heap of i + 1 entries from the heap of i: take the new entry, sift it up
                return _sift_up(heap, i, value, index, take)

            def consider(i: Expression) -> Statement:
                place = i + k
                replace = heap.better(value[0], index[0], heap.value(constant(0)), heap.index(constant(0)))
                return sequence(
                    [
                        take(tirx.BufferLoad(ins[0], at(place)), place.astype("int64")),
                        tirx.IfThenElse(replace, heap.sift_down(constant(k), value[0], index[0]), None),
                    ]
                )

            def extract(i: Expression) -> Statement:
                last = k - 1 - i
                return sequence(
                    [
                        take(heap.value(last), heap.index(last)),
                        heap.put(last, heap.value(constant(0)), heap.index(constant(0))),
                        heap.sift_down(last, value[0], index[0]),
                    ]
                )

            statements = [*heap.allocations, allocate_value, allocate_index, loop(k, fill)]
            if k > 1:
                statements.append(loop(k - 1, lambda i: heapify(i + 1)))
            if shape[axis] > k:
                statements.append(loop(shape[axis] - k, consider))
            if k > 1:
                statements.append(loop(k - 1, extract))
            return sequence(statements)

        return _along(shape, axis, row)

    return extern(inputs, [(t.static_shape, t.dtype) for t in outputs], build, "topk")


def _sift_up(
    heap: _WorstFirstHeap, start: Expression, value: Buffer, index: Buffer, take: Callable[..., Statement]
) -> Statement:
    """Make entries [0, start] a heap when [0, start) is one."""
    allocate, at = local((1,), "int32", "place")
    parent = tirx.floordiv(at[0] - 1, constant(2))
    worse = heap.better(heap.value(parent), heap.index(parent), value[0], index[0])
    climb = sequence(
        [heap.put(at[0], heap.value(parent), heap.index(parent)), tirx.BufferStore(at, parent, [0])]
    )
    done_allocate, done = local((1,), "int32", "done")
    body = tirx.IfThenElse(worse, climb, tirx.BufferStore(done, constant(1), [0]))
    return sequence(
        [
            allocate,
            done_allocate,
            take(heap.value(start), heap.index(start)),
            tirx.BufferStore(at, start, [0]),
            tirx.BufferStore(done, constant(0), [0]),
            tirx.While(tirx.all(at[0] > 0, done[0] == 0), body),
            heap.put(at[0], value[0], index[0]),
        ]
    )


_TIES = np.array([[1, 3, 3, 0, 3, 2, 1], [2, 2, 1, 2, 2, 0, 2]], "int32")
declare(
    Op(
        name="topk",
        infer=_infer_topk,
        evaluate=_evaluate_topk,
        compute=_compute_topk,
        kind=FusionKind.OPAQUE,
        attrs={"axis": REQUIRED, "k": REQUIRED, "largest": True, "sorted": True},
        flops_per_element=8,
        samples=(
            Sample((TensorType((3, 37)),), {"axis": 1, "k": 5}, rtol=0, atol=0),
            Sample((TensorType((3, 20, 4)),), {"axis": 1, "k": 7, "largest": False}, rtol=0, atol=0),
            Sample((TensorType((2, 7), "int32"),), {"axis": 1, "k": 7}, inputs={0: _TIES}, rtol=0, atol=0),
            Sample(
                (TensorType((2, 7), "int32"),),
                {"axis": 1, "k": 4, "largest": False},
                inputs={0: _TIES},
                rtol=0,
                atol=0,
            ),
            Sample((TensorType((2, 9), "bfloat16"),), {"axis": 1, "k": 1}, rtol=0, atol=0),
        ),
    )
)
