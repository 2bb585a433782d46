"""Elementwise and movement kernels on CPUs: vectorised nests for each output, nothing stored between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod

from tcomp.target.target import Target
from tcomp.tensor.access import Access, Region, access_of, position
from tcomp.tensor.cpu.regions import regions
from tcomp.tensor.cpu.square_transpose import transpose_square
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Ordered, Space
from tcomp.tensor.loops import (
    Body,
    Buffer,
    Elements,
    Expression,
    Statement,
    TensorMap,
    buffers_of,
    constant,
    function,
    loop,
    loops_around,
    parallel,
    sequence,
    vector_loop,
    vectorized,
)
from tcomp.tensor.lower import lower_body, placeholders
from tcomp.tensor.template import TEMPLATES, Scheduled, Template
from tcomp.tvm_api import Tensor, tirx

_PARALLEL_BYTES = 1 << 16
"""Kernels that touch fewer bytes run on the calling thread: waking others costs more."""
_CHUNKS = 64
"""Pieces into which a single long loop is cut for threads."""
_LEAST_SQUARE = 4
"""Smaller squares are not worth transposing in registers."""

Point = Callable[[Sequence[Expression]], Statement]
Source = Callable[[Sequence[Expression]], Expression]


class InjectiveCpu(Template):
    """Steps: inline everything into each output; cut it where the position decides what to load; merge loops
    that are contiguous in every operand; share the outermost loop among threads; vectorise the innermost, in
    square tiles where an operand is transposed.
    """

    name = "injective_cpu"

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        return kernel.anchor is None

    def space(self, kernel: Kernel, target: Target) -> Space:
        return Space((Ordered("unroll", (1, 2, 4, 8), 4),))

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        inputs = placeholders(kernel)
        outputs = lower_body(kernel, inputs)
        input_buffers, output_buffers = buffers_of(inputs, "input"), buffers_of(outputs, "output")
        buffers = TensorMap(zip(inputs, input_buffers, strict=True))
        threaded = kernel.nbytes >= _PARALLEL_BYTES
        nests: list[Statement] = []
        unroll = int(config["unroll"])
        for tensor, output in zip(outputs, output_buffers, strict=True):
            lanes = target.lanes(str(tensor.dtype))
            point, source = partial(_store, buffers, output, tensor), partial(_source, buffers, tensor)
            for region in regions(tensor, buffers):
                access = access_of(tensor, buffers, region)
                nest = _Nest(region, access, point, source, output, lanes, unroll, threaded)
                nests.append(nest.statement())
        return Scheduled(function([*input_buffers, *output_buffers], sequence(nests)))


def _store(buffers: TensorMap, output: Buffer, tensor: Tensor, index: Sequence[Expression]) -> Statement:
    return Elements(buffers, loops_around()).store(output, tensor, index)


def _source(buffers: TensorMap, tensor: Tensor, index: Sequence[Expression]) -> Expression:
    """The element of `tensor` at `index`, which is a load."""
    return Elements(buffers, loops_around()).element(tensor, index)


def _offset(indices: Sequence[Expression], shape: Sequence[Expression]) -> Expression:
    offset: Expression = constant(0)
    for index, extent in zip(indices, shape, strict=True):
        offset = offset * extent + index
    return offset


def _run(buffer: Buffer, offset: Expression, lanes: int) -> list[Expression]:
    """The index of `lanes` elements side by side from element `offset` of `buffer` on."""
    return [constant(0)] * (len(buffer.shape) - 1) + [tirx.Ramp(offset, constant(1), lanes)]


@dataclass(frozen=True)
class _Nest:
    """The loops of one region of an output."""

    region: Region
    access: Access
    point: Point
    source: Source
    output: Buffer
    lanes: int
    unroll: int
    threaded: bool

    @cached_property
    def groups(self) -> list[list[int]]:
        return self.access.merged()

    @cached_property
    def extents(self) -> list[int]:
        return [prod(self.access.shape[axis] for axis in group) for group in self.groups]

    def statement(self) -> Statement:
        if not self.groups:
            return self.at(())
        transposed = self._transposed()
        if transposed is None:
            return self._contiguous()
        moved = self.access.is_move and self.access.all_linear
        if moved and min(self.extents[transposed], self.extents[-1]) >= _LEAST_SQUARE:
            return self._squares(transposed)
        return self._tiled(transposed)

    def at(self, index: Sequence[Expression]) -> Statement:
        """Store the element at `index`, one number for each group."""
        return self.point(self.position(index))

    def position(self, index: Sequence[Expression]) -> list[Expression]:
        """The output's index that `index`, one number for each group, stands for."""
        values: list[Expression] = [constant(0)] * len(self.access.shape)
        for group, value in zip(self.groups, index, strict=True):
            for axis in reversed(group[1:]):
                extent = constant(self.access.shape[axis])
                values[axis] = tirx.floormod(value, extent)
                value = tirx.floordiv(value, extent)
            values[group[0]] = value
        return position(self.region, values)

    def _transposed(self) -> int | None:
        """The group that is contiguous in a load for which the innermost one is not."""
        for strides in self.access.strides:
            steps = [strides[group[-1]] for group in self.groups]
            if steps[-1] > 1 and 1 in steps[:-1]:
                return steps.index(1)
        return None

    def _contiguous(self) -> Statement:
        """The innermost group in vectors."""
        *outer, inner = self.extents

        def row(index: Sequence[Expression]) -> Statement:
            return sequence(vector_loop(inner, self.lanes, self.unroll, lambda i: self.at([*index, i])))

        if self.threaded and not outer:
            return self._chunked(inner, lambda i: self.at([i]))
        return self._loops(outer, row)

    def _chunked(self, extent: int, body: Callable[[Expression], Statement]) -> Statement:
        """One long loop in equal pieces for threads, and the rest."""
        block = self.lanes * self.unroll
        chunk = extent // _CHUNKS // block * block
        if chunk == 0:
            return sequence(vector_loop(extent, self.lanes, self.unroll, body))

        def piece(p: Expression) -> Statement:
            return sequence(vector_loop(chunk, self.lanes, self.unroll, lambda i: body(p * chunk + i)))

        done = chunk * _CHUNKS
        shared = parallel(_CHUNKS, piece, "chunk")
        if extent == done:
            return shared
        return sequence(
            [shared, *vector_loop(extent - done, self.lanes, self.unroll, lambda i: body(i + done))]
        )

    def _loops(
        self, extents: Sequence[int], body: Callable[[tuple[Expression, ...]], Statement]
    ) -> Statement:
        """Nested loops, the first of more than one iteration shared among threads."""
        first = next((i for i, extent in enumerate(extents) if extent > 1), None)

        def level(index: tuple[Expression, ...]) -> Statement:
            depth = len(index)
            if depth == len(extents):
                return body(index)
            make = parallel if self.threaded and depth == first else loop
            return make(extents[depth], lambda i: level((*index, i)))

        return level(())

    def _squares(self, axis: int) -> Statement:
        """Squares of elements, transposed in registers: read along `axis`, written along the innermost."""
        last = len(self.extents) - 1
        extent, inner = self.extents[axis], self.extents[last]
        lanes = self.lanes
        while lanes > min(extent, inner):
            lanes //= 2
        outer = [d for a, d in enumerate(self.extents) if a not in (axis, last)]

        def place(index: Sequence[Expression], row: Expression, column: Expression) -> list[Expression]:
            full = list(index)
            full.insert(axis, row)
            return self.position([*full, column])

        def square(index: Sequence[Expression], row: Expression, column: Expression) -> Statement:
            rows: list[Expression] = []
            for lane in range(lanes):
                load = self.source(place(index, row, column + lane))
                offset = _offset(load.indices, load.source.shape)
                rows.append(tirx.BufferLoad(load.source, _run(load.source, offset, lanes)))
            statements, columns = transpose_square(rows)
            for lane, value in enumerate(columns):
                offset = _offset(place(index, row + lane, column), self.output.shape)
                statements.append(tirx.BufferStore(self.output, value, _run(self.output, offset, lanes)))
            return sequence(statements)

        def line(index: Sequence[Expression], row: Expression) -> Statement:
            return _covered(inner, lanes, lambda column: square(index, row, column))

        def body(index: tuple[Expression, ...]) -> Statement:
            return _covered(extent, lanes, lambda row: line(index, row))

        return self._loops(outer, body)

    def _tiled(self, axis: int) -> Statement:
        """Square tiles over `axis` and the innermost, so that each cache line read is used up at once."""
        last = len(self.extents) - 1
        extent, inner = self.extents[axis], self.extents[last]
        lanes = self.lanes
        while lanes > inner:
            lanes //= 2
        tile = min(extent, self.lanes)
        blocks, rest = extent // tile, extent % tile
        outer = [d for a, d in enumerate(self.extents) if a not in (axis, last)]

        def tile_row(index: tuple[Expression, ...], start: Expression, count: int) -> Statement:
            def square(column: Expression) -> Statement:
                def line(i: Expression) -> Statement:
                    def store(lane: Expression) -> Statement:
                        full = list(index)
                        full.insert(axis, start + i)
                        return self.at([*full, column + lane])

                    return vectorized(lanes, store)

                return loop(count, line, "line")

            whole = loop(inner // lanes, lambda b: square(b * lanes), "tile")
            tail = [square(constant(inner - lanes))] if inner % lanes else []
            return sequence([whole, *tail])

        def body(index: tuple[Expression, ...]) -> Statement:
            return tile_row(index[1:], index[0] * tile, tile)

        statements = [self._loops([blocks, *outer], body)]
        if rest:
            remainder = constant(blocks * tile)
            statements.append(self._loops(outer, lambda index: tile_row(index, remainder, rest)))
        return sequence(statements)


def _covered(extent: int, step: int, body: Body) -> Statement:
    """`body` at multiples of `step`, and where the last `step` elements begin; these may be done twice."""
    statements = [loop(extent // step, lambda i: body(i * step))]
    if extent % step:
        statements.append(body(constant(extent - step)))
    return sequence(statements)


TEMPLATES.register(InjectiveCpu.name, InjectiveCpu())
