"""Elementwise and movement kernels on CPUs: one vectorised nest for each output, nothing stored between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

from tcomp.target.target import Target
from tcomp.tensor.access import Access, access_of
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
    loop,
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

Point = Callable[[Sequence[Expression]], Statement]


class InjectiveCpu(Template):
    """Steps: inline everything into each output; merge loops that are contiguous in every operand; share the
    outermost loop among threads; vectorise the innermost, in square tiles where an operand is transposed.
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
            point = partial(_store, buffers, output, tensor)
            nests.append(_Nest(access_of(tensor, buffers), point, lanes, unroll, threaded).statement())
        return Scheduled(function([*input_buffers, *output_buffers], sequence(nests)))


def _store(buffers: TensorMap, output: Buffer, tensor: Tensor, index: Sequence[Expression]) -> Statement:
    return Elements(buffers).store(output, tensor, index)


@dataclass(frozen=True)
class _Nest:
    """The loops of one output."""

    access: Access
    point: Point
    lanes: int
    unroll: int
    threaded: bool

    def statement(self) -> Statement:
        if not self.access.shape:
            return self.point(())
        transposed = self.access.transposed_axis()
        return self._contiguous() if transposed is None else self._tiled(transposed)

    def _contiguous(self) -> Statement:
        """Loops over merged axes, the innermost in vectors."""
        groups = self._merged_axes()
        extents = [prod(self.access.shape[a] for a in group) for group in groups]
        *outer, inner = extents

        def at(index: Sequence[Expression]) -> Statement:
            parts: list[Expression] = []
            for group, value in zip(groups, index, strict=True):
                parts += self._unmerged(group, value)
            return self.point(parts)

        def row(index: Sequence[Expression]) -> Statement:
            return sequence(vector_loop(inner, self.lanes, self.unroll, lambda i: at([*index, i])))

        if self.threaded and prod(outer) == 1:
            zeros = [constant(0)] * len(outer)
            return self._chunked(inner, lambda i: at([*zeros, i]))
        return self._loops(outer, row)

    def _merged_axes(self) -> list[list[int]]:
        groups = [[0]]
        for axis in range(1, len(self.access.shape)):
            if self.access.contiguous_with_next(axis - 1):
                groups[-1].append(axis)
            else:
                groups.append([axis])
        return groups

    def _unmerged(self, group: Sequence[int], value: Expression) -> list[Expression]:
        index: list[Expression] = []
        for axis in reversed(group[1:]):
            extent = constant(self.access.shape[axis])
            index.insert(0, tirx.floormod(value, extent))
            value = tirx.floordiv(value, extent)
        return [value, *index]

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

    def _tiled(self, axis: int) -> Statement:
        """Square tiles over `axis` and the innermost, so that each cache line read is used up at once."""
        shape, last = self.access.shape, len(self.access.shape) - 1
        extent, inner = shape[axis], shape[last]
        lanes = self.lanes
        while lanes > inner:
            lanes //= 2
        tile = min(extent, self.lanes)
        blocks, rest = extent // tile, extent % tile
        outer = [d for a, d in enumerate(shape) if a not in (axis, last)]

        def tile_row(index: tuple[Expression, ...], start: Expression, count: int) -> Statement:
            def square(column: Expression) -> Statement:
                def line(i: Expression) -> Statement:
                    def store(lane: Expression) -> Statement:
                        full = list(index)
                        full.insert(axis, start + i)
                        return self.point([*full, column + lane])

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


TEMPLATES.register(InjectiveCpu.name, InjectiveCpu())
