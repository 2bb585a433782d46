"""Kernels whose anchor is computed by a hand-made nest: buffers, copies of operands, the fused epilogue."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from tcomp.relay.graph import Node
from tcomp.relay.types import TensorType
from tcomp.tensor.epilogue import addend_of, epilogue_operands, output_axes
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.loops import (
    Buffer,
    Elements,
    Expression,
    Statement,
    TensorMap,
    buffers_of,
    function,
    loop,
    parallel,
    sequence,
    vector_loop,
    vectorized,
)
from tcomp.tensor.lower import AnchorCompute, lower_body, placeholders
from tcomp.tensor.math import convert, dtype_of
from tcomp.tensor.reach import check_reach
from tcomp.tensor.template import Packing, Scheduled
from tcomp.tvm_api import Tensor, te, tirx

PARALLEL_FLOPS = 500_000
"""Kernels of fewer operations run on the calling thread: waking others costs more."""


@dataclass(frozen=True)
class AnchorTensors:
    """The tensors around one anchor: `value` is its output, or what the template made of it.

    With an `addend`, `value` is the sum of both, and what the anchor sums up starts from the addend.
    """

    operands: tuple[Tensor, ...]
    value: Tensor
    addend: Tensor | None = None


class Anchored:
    """The tensors and buffers of one kernel.

    `stages` has the tensors around each anchor in order; `operands` and `value` are those of the last. Where
    `buffer_of` has none for an operand, a prologue or the stage before computes it.
    """

    def __init__(
        self,
        kernel: Kernel,
        packing: Mapping[int, Packing] | None = None,
        anchor: Callable[[Node, Sequence[Tensor]], tuple[Tensor, Sequence[Tensor]]] | None = None,
        with_addends: bool = False,
    ) -> None:
        """`with_addends` is for templates that start their sums from `start`."""
        self.kernel = kernel
        found = {node: addend_of(kernel, node) for node in kernel.anchors} if with_addends else {}
        self._additions = {pair[0]: pair[1] for pair in found.values() if pair is not None}
        self.packing = dict(packing or {})
        self.stages: list[AnchorTensors] = []
        self._inputs = placeholders(kernel, {i: p.type for i, p in self.packing.items()})
        self._input_buffers = buffers_of(self._inputs, "input")
        self._buffers = TensorMap(zip(self._inputs, self._input_buffers, strict=True))
        self._scratch: list[Buffer] = []
        self._outputs = lower_body(kernel, self._inputs, self._replace(anchor), self._additions)
        self._output_buffers = buffers_of(self._outputs, "output")

    def _replace(
        self, anchor: Callable[[Node, Sequence[Tensor]], tuple[Tensor, Sequence[Tensor]]] | None
    ) -> AnchorCompute:
        def compute(node: Node, operands: Sequence[Tensor]) -> Sequence[Tensor]:
            if node in self._additions:
                addend = operands[node.inputs.index(self._additions[node])]
                value = te.placeholder(node.output.type.static_shape, node.output.dtype, name="sum")
                self.stages[-1] = AnchorTensors(self.stages[-1].operands, value, addend)
                return [value]
            if anchor is not None:
                value, results = anchor(node, operands)
            else:
                value = te.placeholder(node.output.type.static_shape, node.output.dtype, name="anchor")
                results = [value]
            self.stages.append(AnchorTensors(tuple(operands), value))
            return results

        return compute

    @property
    def operands(self) -> tuple[Tensor, ...]:
        return self.stages[-1].operands

    @property
    def value(self) -> Tensor:
        return self.stages[-1].value

    @property
    def threaded(self) -> bool:
        """Whether the kernel is worth waking other threads for."""
        return self.kernel.flops + self.kernel.nbytes >= PARALLEL_FLOPS

    def buffer_of(self, tensor: Tensor) -> Buffer | None:
        """The buffer that holds `tensor`; None when it is computed."""
        if tensor not in self._buffers:
            return None
        return self._buffers[tensor]

    def input_buffer(self, index: int) -> Buffer:
        """The buffer of kernel input `index`."""
        return self._input_buffers[index]

    def elements(self, ranges: Iterable[tuple[Any, Expression]] = ()) -> Elements:
        """Elements of the operands at one point of a nest, whose variables have these extents."""
        return Elements(self._buffers, ranges)

    def add_scratch(self, shape: Sequence[int], dtype: str, name: str) -> Buffer:
        """A buffer that the caller provides, uninitialised.

        Raises UnsupportedError when it has more elements than kernels count.
        """
        check_reach(TensorType(tuple(shape), dtype), f"scratch buffer `{name}` of kernel {self.kernel.label}")
        buffer = tirx.decl_buffer(list(shape), dtype, name=name)
        self._scratch.append(buffer)
        return buffer

    def start(self, index: Sequence[Expression], stage: int = -1) -> Expression:
        """What the sum of a stage starts from where its value has the element at `index`."""
        tensors = self.stages[stage]
        if tensors.addend is None:
            return tirx.const(0, str(tensors.value.dtype))
        shape = [int(extent) for extent in tensors.addend.shape]
        own = list(index)[len(index) - len(shape) :]
        at = [0 if extent == 1 else i for extent, i in zip(shape, own, strict=True)]
        return tirx.BufferLoad(self.buffer_of(tensors.addend), at)

    def finish(self, index: Sequence[Expression], value: Expression) -> Statement:
        """Store the outputs where they have the element of `self.value` at `index`, which is `value`."""
        index = self.output_index(index)
        stores: list[Statement] = []
        for tensor, buffer in zip(self._outputs, self._output_buffers, strict=True):
            elements = self.elements()
            elements.bind(self.value, convert(value, str(self.value.dtype)))
            stores.append(elements.store(buffer, tensor, index))
        return sequence(stores)

    def output_index(self, index: Sequence[Expression]) -> list[Expression]:
        """Where the outputs have the element of the anchor's at `index`."""
        axes = output_axes(self.kernel)
        return list(index) if axes is None else [index[axis] for axis in axes]

    @property
    def only_output(self) -> Buffer:
        """The output of a kernel that has one."""
        (buffer,) = self._output_buffers
        return buffer

    def finish_in(
        self, index: Sequence[Expression], value: Expression, buffer: Buffer, at: Sequence[Expression]
    ) -> Statement:
        """As `finish` of the only output, but what it would have there is stored into `buffer[at]`."""
        (output,) = self._outputs
        elements = self.elements()
        elements.bind(self.value, convert(value, str(self.value.dtype)))
        read = elements.element(output, self.output_index(index))
        return sequence([*elements.statements, tirx.BufferStore(buffer, read, list(at))])

    def pass_on(
        self,
        stage: int,
        index: Sequence[Expression],
        value: Expression,
        buffer: Buffer,
        at: Sequence[Expression],
    ) -> Statement:
        """Store what the next stage reads at `index` into `buffer[at]`; the sum of `stage` is `value`."""
        elements = self.elements()
        elements.bind(self.stages[stage].value, value)
        read = elements.element(self.stages[stage + 1].operands[0], index)
        return sequence([*elements.statements, tirx.BufferStore(buffer, read, list(at))])

    def copy(
        self,
        tensor: Tensor,
        begin: Sequence[int],
        end: Sequence[int],
        fill: Expression,
        lanes: int,
        name: str = "padded",
        phases: int = 1,
    ) -> tuple[list[Statement], Buffer]:
        """`tensor` in memory with `begin` and `end` elements of `fill` around it on each axis.

        The copy has `fill`'s element type. There is no statement, and the buffer is the operand's own, when
        there is nothing to do. Negative padding crops. With `phases`, which is for copies of rows of short
        vectors, every so many places of a row lie side by side: the row axis becomes two, the first of them
        of the phases.
        """
        own = self.buffer_of(tensor)
        if own is not None and not any(begin) and not any(end):
            return [], own
        extents = [int(d) for d in tensor.shape]
        shape = [b + d + e for b, d, e in zip(begin, extents, end, strict=True)]
        rows = len(shape) - (2 if shape[-1] <= lanes and not begin[-1] and not end[-1] else 1)
        in_phases = [phases, -(-shape[rows] // phases)] if phases > 1 else [shape[rows]]
        target = self.add_scratch([*shape[:rows], *in_phases, *shape[rows + 1 :]], dtype_of(fill), name)

        def place(index: Sequence[Expression]) -> list[Expression]:
            outer, column, inner = index[:rows], index[rows], index[rows + 1 :]
            parts = [column % phases, column // phases] if phases > 1 else [column]
            return [*outer, *parts, *inner]

        def element(index: Sequence[Expression]) -> Statement:
            source = [i - b for i, b in zip(index, begin, strict=True)]
            elements = self.elements()
            value = elements.element(tensor, source).astype(dtype_of(fill))
            return sequence([*elements.statements, tirx.BufferStore(target, value, place(index))])

        def blank(index: Sequence[Expression]) -> Statement:
            return tirx.BufferStore(target, fill, place(index))

        def run(
            outer: list[Expression], first: int, count: int, body: Callable[..., Statement]
        ) -> list[Statement]:
            """`body` at `count` positions from `first` of the row axis."""
            if count <= 0:
                return []
            if phases > 1:
                return [
                    loop(
                        len(own),
                        lambda i, own=own: vectorized(
                            shape[-1], lambda v: body([*outer, i * phases + own[0], v])
                        ),
                    )
                    for own in (range(first, first + count)[p::phases] for p in range(phases))
                    if own
                ]
            if rows == len(shape) - 1:
                return vector_loop(count, lanes, 4, lambda i: body([*outer, i + first]))
            return [
                loop(
                    count,
                    lambda i: sequence(
                        vector_loop(shape[-1], lanes, 4, lambda v: body([*outer, i + first, v]))
                    ),
                )
            ]

        def row(number: Expression) -> Statement:
            outer: list[Expression] = []
            for extent in reversed(shape[:rows]):
                outer.insert(0, number % extent if extent > 1 else 0)
                number = number // extent if extent > 1 else number
            inside = [
                condition
                for i, b, d, e in zip(outer, begin, extents, end, strict=False)
                for condition in ([i >= b] if b > 0 else []) + ([i < b + d] if e > 0 else [])
            ]
            left, right = max(begin[rows], 0), max(end[rows], 0)
            filled = sequence(
                run(outer, 0, left, blank)
                + run(outer, left, shape[rows] - left - right, element)
                + run(outer, shape[rows] - right, right, blank)
            )
            if not inside:
                return filled
            return tirx.IfThenElse(tirx.all(*inside), filled, sequence(run(outer, 0, shape[rows], blank)))

        make = parallel if self.threaded else loop
        return [make(prod(shape[:rows]), row, "row")], target

    def scheduled(self, statements: Sequence[Statement], disjoint: bool = False) -> Scheduled:
        """The function that runs `statements`; `disjoint` says that they finish each element once."""
        parameters = [*self._input_buffers, *self._scratch, *self._output_buffers]
        scratch = tuple(TensorType(tuple(int(d) for d in b.shape), str(b.dtype)) for b in self._scratch)
        in_place = epilogue_operands(self.kernel) if disjoint else frozenset[int]()
        return Scheduled(function(parameters, sequence(statements)), self.packing, scratch, in_place)
