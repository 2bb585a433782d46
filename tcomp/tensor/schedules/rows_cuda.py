"""Reductions, softmax and norms on GPUs: rows shared by some threads each, or a thread a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

from tcomp.target.target import Target
from tcomp.tensor.gpu.threads import digits, launch, shared, synchronize
from tcomp.tensor.gpu.warps import WARP, combine_lanes
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Ordered, Space
from tcomp.tensor.loops import (
    Buffer,
    Elements,
    Expression,
    Statement,
    TensorMap,
    buffers_of,
    constant,
    function,
    local,
    loop,
    loops_around,
    sequence,
)
from tcomp.tensor.lower import lower_body, placeholders
from tcomp.tensor.reduction_nest import Reduction, is_reduction, operands, stages
from tcomp.tensor.row_space import Index, RowSpace
from tcomp.tensor.schedules.rows_cpu import reduction_space
from tcomp.tensor.template import TEMPLATES, Scheduled, Template
from tcomp.tvm_api import Tensor, tirx

_BLOCK_THREADS = 256
"""Of blocks that hold several rows."""


class RowsCuda(Template):
    """Steps: give each row to `lanes` threads; reduce what each finds in registers, then within warps by
    shuffles, then among warps in shared memory; write the outputs in a last loop.
    """

    name = "rows_cuda"
    family = "cuda"

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        space = reduction_space(kernel)
        return space is not None and bool(space.columns)

    def space(self, kernel: Kernel, target: Target) -> Space:
        rows = reduction_space(kernel)
        assert rows is not None
        return Space((Ordered("lanes", (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024), _lanes(rows, target)),))

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        space = reduction_space(kernel)
        assert space is not None
        inputs = placeholders(kernel)
        outputs = lower_body(kernel, inputs)
        input_buffers, output_buffers = buffers_of(inputs, "input"), buffers_of(outputs, "output")
        nest = _Rows(
            space,
            TensorMap(zip(outputs, output_buffers, strict=True)),
            TensorMap(zip(inputs, input_buffers, strict=True)),
            int(config["lanes"]),
        )
        return Scheduled(function([*input_buffers, *output_buffers], nest.statement()))


def _lanes(rows: RowSpace, target: Target) -> int:
    """Threads of a row: 4 elements each where they lie side by side, and one thread where rows do."""
    assert target.gpu is not None
    columns, count = prod(rows.columns), prod(rows.rows)
    if not rows.innermost_is_column and count >= target.gpu.processors * WARP:
        return 1
    lanes = 4
    while lanes < 1024 and lanes * 4 < columns:
        lanes *= 2
    return lanes


@dataclass(frozen=True)
class _Rows:
    """The launch that computes rows."""

    space: RowSpace
    outputs: TensorMap
    inputs: TensorMap
    lanes: int

    @cached_property
    def of_block(self) -> int:
        """Rows of a block."""
        return max(1, min(_BLOCK_THREADS // self.lanes, prod(self.space.rows)))

    def statement(self) -> Statement:
        count, of_block = prod(self.space.rows), self.of_block
        blocks = -(-count // of_block)

        def body(block: Sequence[Expression], thread: Sequence[Expression]) -> Statement:
            number = block[0] * of_block + thread[1]
            if count % of_block:  # Every thread takes part in shuffles: those too many repeat the last row.
                number = tirx.min(number, constant(count - 1))
            return self._row(tuple(digits(number, self.space.rows)), thread[0], thread[1])

        return launch((blocks,), (self.lanes, of_block), body)

    def _row(self, row: Index, lane: Expression, place: Expression) -> Statement:
        known = TensorMap()
        statements: list[Statement] = []
        for tensor in stages(list(self.outputs)):
            if is_reduction(tensor):
                statements += self._reduce(tensor, row, lane, place, known)
            elif tensor not in self.outputs and any(t in known for t in operands(tensor)):
                self._keep(tensor, row, known, statements)
        return sequence([*statements, *self._write(row, lane, known)])

    def _point(self, known: TensorMap) -> Elements:
        elements = Elements(self.inputs, loops_around())
        for tensor, value in known.items():
            elements.bind(tensor, value)
        return elements

    def _keep(self, tensor: Tensor, row: Index, known: TensorMap, statements: list[Statement]) -> None:
        """Compute what a row has one of (a mean from a sum) once."""
        shape = tuple(int(d) for d in tensor.shape)
        if shape != self.space.rows:
            return
        elements = self._point(known)
        known[tensor] = elements.element(tensor, row)
        statements += elements.statements

    def _reduce(
        self, tensor: Tensor, row: Index, lane: Expression, place: Expression, known: TensorMap
    ) -> list[Statement]:
        reduction, dtype = Reduction(tensor), str(tensor.dtype)
        allocate, partial = local((1,), dtype, f"{tensor.op.name}_part")

        def accumulate(index: Index) -> Statement:
            elements = self._point(known)
            value = reduction.source(elements, row, index)
            update = tirx.BufferStore(partial, reduction.combine(partial[0], value), [0])
            return sequence([*elements.statements, update])

        statements = [
            allocate,
            tirx.BufferStore(partial, reduction.identity, [0]),
            self._along(reduction.extents, lane, accumulate),
        ]
        statements += combine_lanes(partial, [constant(0)], min(self.lanes, WARP), reduction.combine)
        if self.lanes > WARP:
            statements += self._among_warps(reduction, partial, dtype, lane, place)
        value = tirx.Var(tensor.op.name, dtype)
        known[tensor] = value
        return [*statements, tirx.Bind(value, partial[0])]

    def _among_warps(
        self, reduction: Reduction, partial: Buffer, dtype: str, lane: Expression, place: Expression
    ) -> list[Statement]:
        """Combine the results of the row's warps; every thread does, so that all have the sum."""
        warps = self.lanes // WARP
        allocate, results = shared((self.of_block, warps), dtype, "warps")
        first = tirx.BufferStore(results, partial[0], [place, tirx.floordiv(lane, WARP)])
        statements = [allocate, tirx.IfThenElse(tirx.floormod(lane, WARP) == 0, first, None), synchronize()]
        statements.append(tirx.BufferStore(partial, results[place, 0], [0]))
        for warp in range(1, warps):
            update = reduction.combine(partial[0], results[place, warp])
            statements.append(tirx.BufferStore(partial, update, [0]))
        return [*statements, synchronize()]

    def _along(
        self, extents: Sequence[int], lane: Expression, body: Callable[[Index], Statement]
    ) -> Statement:
        """`body` at every column, each thread at every `lanes`-th."""
        count = prod(extents)

        def at(step: Expression) -> Statement:
            number = step * self.lanes + lane
            inside = body(tuple(digits(number, extents)))
            whole = count % self.lanes == 0
            return inside if whole else tirx.IfThenElse(number < count, inside, None)

        return loop(-(-count // self.lanes), at, "column")

    def _write(self, row: Index, lane: Expression, known: TensorMap) -> list[Statement]:
        statements: list[Statement] = []
        for tensor, buffer in self.outputs.items():
            shape = tuple(int(d) for d in tensor.shape)

            def store(index: Index, tensor: Tensor = tensor, buffer: Expression = buffer) -> Statement:
                return self._point(known).store(buffer, tensor, self.space.full(row, index))

            if shape == self.space.full_shape and self.space.reduced_shape is None:
                statements.append(self._along(self.space.columns, lane, store))
            else:
                write = self._point(known).store(buffer, tensor, self.space.reduced(row))
                statements.append(tirx.IfThenElse(lane == 0, write, None) if self.lanes > 1 else write)
        return statements


TEMPLATES.register(RowsCuda.name, RowsCuda())
