"""Loop nests of reductions and of what is computed from them, row by row.

A row's reductions are done one after the other, each in a loop over the row, then the outputs are written
in a last loop. Vector lanes lie along the row (`horizontal`: partial results in lanes, combined at the
end) or across rows (`vertical`: each lane is a row of its own).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from tcomp.tensor.loops import (
    Buffer,
    Elements,
    Expression,
    Statement,
    TensorMap,
    constant,
    local,
    loop,
    parallel,
    sequence,
    unrolled,
    vector_loop,
    vectorized,
)
from tcomp.tensor.math import FUNCTIONS
from tcomp.tensor.row_space import Index, RowSpace
from tcomp.tvm_api import Tensor, structural_mutate, structural_walk, te, tirx, tvm

_LOAD = "te.tensor_load"
_PARALLEL_ROWS = 16
"""Rows are spread over threads by the first axis alone when it has so many entries."""


def operands(tensor: Tensor) -> list[Tensor]:
    """The tensors that the expression of `tensor` reads."""
    found = TensorMap()

    def on_call(call: Any) -> None:
        if call.op.name == _LOAD:
            found[call.args[0]] = None

    for body in tensor.op.body:
        parts = [body] if not isinstance(body, tirx.Reduce) else list(body.source)
        for part in parts:
            structural_walk(part, (tvm.ir.Call, on_call))
    return list(found)


def stages(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Every computed tensor that `outputs` need, producers first."""
    order = TensorMap()
    stack = [(t, False) for t in reversed(outputs)]
    while stack:
        tensor, expanded = stack.pop()
        if tensor in order or not isinstance(tensor.op, te.ComputeOp):
            continue
        if expanded:
            order[tensor] = None
        else:
            stack.append((tensor, True))
            stack += [(t, False) for t in reversed(operands(tensor))]
    return list(order)


def is_reduction(tensor: Tensor) -> bool:
    return isinstance(tensor.op, te.ComputeOp) and isinstance(tensor.op.body[0], tirx.Reduce)


def kept_in_rows(outputs: Sequence[Tensor], full_shape: tuple[int, ...]) -> list[Tensor]:
    """Full-size intermediates worth a row buffer: they call a function and more than one pass reads them."""
    order = stages(outputs)
    passes = [t for t in order if is_reduction(t)] + list(outputs)
    readers = TensorMap((t, 0) for t in order)
    for reader in passes:
        for tensor in _read_by(reader):
            readers[tensor] += 1
    for output in outputs:
        readers[output] = 0
    return [t for t in order if readers[t] > 1 and _shape(t) == full_shape and _calls_function(t)]


def _read_by(reader: Tensor) -> list[Tensor]:
    """Computed tensors that are inlined into `reader`; reductions stop the walk."""
    found = TensorMap()
    stack = operands(reader)
    while stack:
        tensor = stack.pop()
        if tensor in found or not isinstance(tensor.op, te.ComputeOp) or is_reduction(tensor):
            continue
        found[tensor] = None
        stack += operands(tensor)
    return list(found)


def _calls_function(tensor: Tensor) -> bool:
    found: list[bool] = []

    def on_call(call: Any) -> None:
        found.append(call.op.name in FUNCTIONS)

    structural_walk(tensor.op.body[0], (tvm.ir.Call, on_call))
    return any(found)


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(int(d) for d in tensor.shape)


@dataclass(frozen=True)
class ReductionNest:
    """What a nest is made of. `lanes` and `unroll` are of the vector loops; `threaded` shares rows."""

    space: RowSpace
    outputs: TensorMap
    inputs: TensorMap
    lanes: int
    unroll: int
    threaded: bool

    def horizontal(self) -> Statement:
        """Lanes along the row."""
        return self._over_rows(self.space.rows, self._row)

    def vertical(self) -> Statement:
        """Lanes across the rows of the innermost row axis, which ends in overlapping vectors."""
        *outer, inner = self.space.rows
        lanes = self.lanes
        while lanes > inner:
            lanes //= 2

        def strips(row: Index) -> Statement:
            whole = loop(inner // lanes, lambda b: self._columnwise(row, b * lanes, lanes), "strip")
            if inner % lanes == 0:
                return whole
            return sequence([whole, self._columnwise(row, constant(inner - lanes), lanes)])

        if self.threaded and prod(outer) < _PARALLEL_ROWS and inner >= 2 * lanes:
            rest = [self._columnwise_nest(outer, constant(inner - lanes), lanes)] if inner % lanes else []
            whole = parallel(
                inner // lanes, lambda b: self._columnwise_nest(outer, b * lanes, lanes), "strip"
            )
            return sequence([whole, *rest])
        return self._over_rows(tuple(outer), strips)

    def _columnwise_nest(self, outer: Sequence[int], start: Expression, lanes: int) -> Statement:
        return _nest(outer, lambda row: self._columnwise(row, start, lanes))

    def _over_rows(self, rows: tuple[int, ...], body: Callable[[Index], Statement]) -> Statement:
        if not self.threaded or prod(rows) == 1:
            return _nest(rows, body)
        shared = 1
        while shared < len(rows) and prod(rows[:shared]) < _PARALLEL_ROWS:
            shared += 1

        def spread(p: Expression) -> Statement:
            index: list[Expression] = []
            for extent in reversed(rows[1:shared]):
                index.insert(0, tirx.floormod(p, constant(extent)))
                p = tirx.floordiv(p, constant(extent))
            return _nest(rows[shared:], lambda rest: body((p, *index, *rest)))

        return parallel(prod(rows[:shared]), spread, "row")

    # Lanes along the row

    def _row(self, row: Index) -> Statement:
        known = TensorMap()
        buffers = TensorMap(self.inputs.items())
        statements: list[Statement] = []
        unsaved = TensorMap()
        for tensor in kept_in_rows(list(self.outputs), self.space.full_shape):
            allocate, unsaved[tensor] = local(self.space.columns, str(tensor.dtype), f"{tensor.op.name}_row")
            statements.append(allocate)
        for tensor in stages(list(self.outputs)):
            if is_reduction(tensor):
                read = TensorMap((t, None) for t in _read_by(tensor))
                ready = TensorMap((t, b) for t, b in unsaved.items() if t in read)
                statements += self._reduce_row(tensor, row, known, buffers, ready)
                for saved, buffer in ready.items():
                    buffers[saved] = self._row_reader(buffer)
                    del unsaved[saved]
            elif not operands_are_full(tensor, self.space) and tensor not in self.outputs:
                self._bind_row_value(tensor, row, known, buffers, statements)
        statements += self._write_rows(row, known, buffers)
        return sequence(statements)

    def _row_reader(self, buffer: Buffer) -> Callable[[Sequence[Expression]], Expression]:
        axes = self.space.full(
            tuple(range(-1, -1 - len(self.space.rows), -1)), tuple(range(len(self.space.columns)))
        )
        places = [axes.index(i) for i in range(len(self.space.columns))]
        return lambda at: tirx.BufferLoad(buffer, [at[place] for place in places])

    def _point(self, known: TensorMap, buffers: TensorMap) -> Elements:
        elements = Elements(buffers)
        for tensor, value in known.items():
            elements.bind(tensor, value)
        return elements

    def _bind_row_value(
        self,
        tensor: Tensor,
        row: Index,
        known: TensorMap,
        buffers: TensorMap,
        statements: list[Statement],
    ) -> None:
        """Compute a per-row tensor (a mean from a sum) once, before the loops that use it."""
        if _shape(tensor) != self.space.rows or not any(t in known for t in operands(tensor)):
            return
        elements = self._point(known, buffers)
        known[tensor] = elements.element(tensor, row)
        statements += elements.statements

    def _reduce_row(
        self,
        tensor: Tensor,
        row: Index,
        known: TensorMap,
        buffers: TensorMap,
        saves: TensorMap,
    ) -> list[Statement]:
        reduction = Reduction(tensor)
        extents = reduction.extents
        *outer, inner = extents
        lanes, dtype = self.lanes, str(tensor.dtype)
        while lanes > inner:
            lanes //= 2
        unroll = max(1, min(self.unroll, inner // lanes))
        allocate, partial = local((unroll * lanes,), dtype, f"{tensor.op.name}_lanes")

        def accumulate(index: Index, slot: Expression) -> Statement:
            elements = self._point(known, buffers)
            value = reduction.source(elements, row, index)
            stores = [
                tirx.BufferStore(buffer, elements.element(t, self.space.full(row, index)), list(index))
                for t, buffer in saves.items()
            ]
            update = tirx.BufferStore(partial, reduction.combine(partial[slot], value), [slot])
            return sequence([*elements.statements, *stores, update])

        def along(index: Index) -> Statement:
            return sequence(_strips(inner, lanes, unroll, lambda i, slot: accumulate((*index, i), slot)))

        clear = vectorized(
            unroll * lanes, lambda s: tirx.BufferStore(partial, reduction.identity, [s]), "slot"
        )
        statements = [allocate, clear, _nest(outer, along)]
        width = unroll * lanes
        if unroll > 1:
            statements.append(self._fold(partial, reduction, unroll, lanes))
            width = lanes
        while width > 1:
            width //= 2
            statements.append(self._fold(partial, reduction, 2, width))
        value = tirx.Var(tensor.op.name, dtype)
        known[tensor] = value
        return [*statements, tirx.Bind(value, partial[0])]

    def _fold(self, partial: Buffer, reduction: Reduction, parts: int, width: int) -> Statement:
        def fold(slot: Expression) -> Statement:
            value = partial[slot]
            for part in range(1, parts):
                value = reduction.combine(value, partial[slot + part * width])
            return tirx.BufferStore(partial, value, [slot])

        return vectorized(width, fold, "slot")

    def _write_rows(self, row: Index, known: TensorMap, buffers: TensorMap) -> list[Statement]:
        statements: list[Statement] = []
        for tensor, buffer in self.outputs.items():
            if _shape(tensor) == self.space.full_shape and self.space.columns:
                *outer, inner = self.space.columns

                def along(
                    index: Index, tensor: Tensor = tensor, buffer: Buffer = buffer, inner: int = inner
                ) -> Statement:
                    def write(i: Expression) -> Statement:
                        at = self.space.full(row, (*index, i))
                        return self._point(known, buffers).store(buffer, tensor, at)

                    return sequence(vector_loop(inner, self.lanes, self.unroll, write))

                statements.append(_nest(outer, along))
            else:
                statements.append(self._point(known, buffers).store(buffer, tensor, self.space.reduced(row)))
        return statements

    # Lanes across rows

    def _columnwise(self, outer: Index, start: Expression, lanes: int) -> Statement:
        buffers = TensorMap(self.inputs.items())
        results = TensorMap()
        statements: list[Statement] = []

        def point(lane: Expression) -> Elements:
            return self._point(
                TensorMap((t, tirx.BufferLoad(b, [lane])) for t, b in results.items()), buffers
            )

        for tensor in stages(list(self.outputs)):
            if not is_reduction(tensor):
                continue
            reduction = Reduction(tensor)
            *around, inner = reduction.extents
            parts = max(1, min(self.unroll, self.lanes // lanes, inner))
            allocate, partial = local((parts * lanes,), str(tensor.dtype), f"{tensor.op.name}_lanes")
            clear = vectorized(
                parts * lanes, lambda s, r=partial, n=reduction: tirx.BufferStore(r, n.identity, [s]), "slot"
            )

            def step(
                index: Index, part: int, reduction: Reduction = reduction, partial: Buffer = partial
            ) -> Statement:
                def accumulate(lane: Expression) -> Statement:
                    elements, slot = point(lane), part * lanes + lane
                    value = reduction.source(elements, (*outer, start + lane), index)
                    update = tirx.BufferStore(partial, reduction.combine(partial[slot], value), [slot])
                    return sequence([*elements.statements, update])

                return vectorized(lanes, accumulate)

            def along(
                index: Index, parts: int = parts, inner: int = inner, step: Callable[..., Statement] = step
            ) -> Statement:
                def steps(first: Expression, count: int) -> list[Statement]:
                    return [step((*index, first + part), part) for part in range(count)]

                whole = loop(inner // parts, lambda b: sequence(steps(b * parts, parts)), "block")
                return sequence([whole, *steps(constant(inner // parts * parts), inner % parts)])

            statements += [allocate, clear, _nest(around, along)]
            statements += [self._fold(partial, reduction, parts, lanes)] if parts > 1 else []
            results[tensor] = partial
        for tensor, buffer in self.outputs.items():
            is_full = _shape(tensor) == self.space.full_shape and self.space.reduced_shape is None

            def write(
                index: Index, tensor: Tensor = tensor, buffer: Buffer = buffer, is_full: bool = is_full
            ) -> Statement:
                def at(lane: Expression) -> Statement:
                    row = (*outer, start + lane)
                    place = self.space.full(row, index) if is_full else self.space.reduced(row)
                    return point(lane).store(buffer, tensor, place)

                return vectorized(lanes, at)

            statements.append(_nest(self.space.columns if is_full else (), write))
        return sequence(statements)


def operands_are_full(tensor: Tensor, space: RowSpace) -> bool:
    """Whether `tensor` has an element for every column."""
    return bool(space.columns) and _shape(tensor) == space.full_shape


class Reduction:
    """A tensor that reduces: its combiner, its identity, and what it reduces."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._reduce = tensor.op.body[0]
        self.extents = tuple(int(axis.dom.extent) for axis in tensor.op.reduce_axis)
        self.identity = self._reduce.combiner.identity_element[0]

    def combine(self, a: Expression, b: Expression) -> Expression:
        combiner = self._reduce.combiner
        left, right = combiner.lhs[0], combiner.rhs[0]

        def on_variable(variable: Any, mutator: Any) -> Expression:
            return a if variable.same_as(left) else b if variable.same_as(right) else variable

        return structural_mutate(combiner.result[0], (tvm.ir.Var, on_variable))

    def source(self, elements: Elements, row: Index, column: Index) -> Expression:
        """The reduced expression at one element."""
        axes = [*self._tensor.op.axis, *self._tensor.op.reduce_axis]
        return elements.expression(self._reduce.source[0], axes, [*row, *column])


def _nest(extents: Sequence[int], body: Callable[[Index], Statement], index: Index = ()) -> Statement:
    if len(index) == len(extents):
        return body(index)
    return loop(extents[len(index)], lambda i: _nest(extents, body, (*index, i)))


def _strips(
    extent: int, lanes: int, unroll: int, body: Callable[[Expression, Expression], Statement]
) -> list[Statement]:
    """`body(index, slot)` at each index of [0, extent) exactly once, in vectors; slots of accumulators."""
    block = lanes * unroll
    blocks, done = extent // block, extent // block * block
    statements: list[Statement] = []
    if blocks:

        def one(b: Expression) -> Statement:
            return unrolled(
                unroll,
                lambda u: vectorized(
                    lanes, lambda lane: body(b * block + u * lanes + lane, u * lanes + lane)
                ),
            )

        statements.append(loop(blocks, one, "block"))
    width = lanes
    while done < extent:
        while width > extent - done:
            width //= 2
        statements.append(vectorized(width, lambda lane, at=done: body(lane + at, lane)))
        done += width
    return statements
