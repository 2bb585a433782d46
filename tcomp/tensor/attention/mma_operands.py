"""The operands of attention on tensor cores: where chunks of their rows lie, which operators before may move.

Rows of the kernel are the queries of all heads that share keys and values: those of the last batch axes along
which these do not change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

from tcomp.relay.graph import Node
from tcomp.relay.types import numpy_dtype
from tcomp.target.target import Gpu
from tcomp.tensor.alignment import anywhere, lies_in_chunks, vector_lanes
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.attention.mma_plan import chunks
from tcomp.tensor.attention.operands import own_index
from tcomp.tensor.attention.plan import AttentionShape
from tcomp.tensor.attention.shape import Shape
from tcomp.tensor.gpu.rates import LAUNCH_CYCLES, memory_cycles
from tcomp.tensor.gpu.threads import digits
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.loops import (
    Elements,
    Expression,
    Statement,
    constant,
    loops_around,
)
from tcomp.tensor.tensor_cores.kernel import materialize, padded
from tcomp.tensor.tensor_cores.mma_plan import chunk_elements
from tcomp.tvm_api import Tensor, tirx, tvm

Chunk = Callable[[Expression, Expression, Expression], Expression]
"""The first element of a chunk by batch, row and element, as a load."""
Load = Callable[[Sequence[Expression]], Expression]
"""An element of an operand by batch axes, row and element, as a load."""


@dataclass(frozen=True)
class Heads:
    """How batch and row of the kernel make up the index of a row of attention."""

    outer: tuple[int, ...]
    inner: tuple[int, ...]
    """Extents of batch axes that are part of rows."""
    queries: int
    """Rows of queries in one matrix."""

    @staticmethod
    def of(kernel: Kernel) -> Heads:
        assert kernel.anchor is not None
        _, keys, values = (v.type.static_shape[:-2] for v in kernel.anchor.inputs[:3])
        batch = kernel.anchor.output.type.static_shape[:-2]
        shared = 0
        while shared < len(batch) and all(
            shared >= len(own) or own[-1 - shared] == 1 for own in (keys, values)
        ):
            shared += 1
        split = len(batch) - shared
        return Heads(batch[:split], batch[split:], kernel.anchor.output.type.static_shape[-2])

    @staticmethod
    def apart(kernel: Kernel) -> Heads:
        """Each head's queries being a matrix, whether it shares keys and values with others or not."""
        assert kernel.anchor is not None
        *batch, queries, _ = kernel.anchor.output.type.static_shape
        return Heads(tuple(batch), (), queries)

    @property
    def batch(self) -> int:
        return prod(self.outer)

    @property
    def rows(self) -> int:
        return prod(self.inner) * self.queries

    def of_query(self, batch: Expression, row: Expression) -> list[Expression]:
        """Batch axes and row of a query, and of what belongs to it."""
        return [*digits(batch, self.outer), *digits(row, (*self.inner, self.queries))]

    def bounds(self, row: Expression, count: int) -> tuple[Expression, Expression]:
        """The lowest and the highest query of a head among `count` rows from `row` on."""
        if not self.inner:
            return row, row + (count - 1)
        first = tirx.floormod(row, self.queries)
        is_one_head = first + count <= self.queries
        return tirx.Select(is_one_head, first, 0), tirx.Select(is_one_head, first + count, self.queries) - 1

    def query(self, row: Expression) -> Expression:
        """Which of its head's queries a row is."""
        return tirx.floormod(row, self.queries) if self.inner else row

    def of_key(self, batch: Expression, row: Expression) -> list[Expression]:
        return [*digits(batch, self.outer), *(constant(0) for _ in self.inner), row]


def attention_shape(anchor: Node, heads: Heads) -> AttentionShape:
    """What an attention computes, as tensor cores do."""
    own, inputs = Shape.of(anchor), anchor.inputs
    dtype = inputs[0].dtype
    depth, width = (chunks(extent, dtype) for extent in (own.depth, own.width))
    return AttentionShape(
        dtype, heads.batch, heads.rows, own.length, depth, width, len(inputs) > 3, own.limit
    )


class MmaAttentionOperands:
    """The operands of one kernel; launches that bring some into whole chunks before are in `before`."""

    def __init__(self, kernel: Kernel) -> None:
        assert kernel.anchor is not None
        self.anchor, self.heads = kernel.anchor, Heads.of(kernel)
        self.of_anchor = Shape.of(kernel.anchor)
        self.anchored = Anchored(kernel)
        self.dtype = kernel.anchor.inputs[0].dtype
        query, key, value, *mask = self.anchored.operands
        self._tensors: tuple[Tensor, Tensor, Tensor] = (query, key, value)
        self.mask: Tensor | None = mask[0] if mask else None

    @cached_property
    def moved(self) -> tuple[Tensor, ...]:
        """Operands that lie in memory in whole chunks only when a launch has brought them there."""
        return tuple(tensor for tensor in self._tensors if not self._is_ready(tensor))

    @property
    def _moved_bytes(self) -> int:
        """That launches which bring them there read and write."""
        return sum(2 * prod(map(int, t.shape)) * numpy_dtype(self.dtype).itemsize for t in self.moved)

    def moving_cycles(self, gpu: Gpu) -> float:
        """Cycles of these launches."""
        return LAUNCH_CYCLES * len(self.moved) + memory_cycles(gpu, self._moved_bytes)

    def _is_ready(self, tensor: Tensor) -> bool:
        *outer, last = (int(extent) for extent in tensor.shape)

        def whole(index: list[Expression]) -> bool:
            def load(k: Expression) -> Statement:
                elements = self.anchored.elements(loops_around())
                value = elements.element(tensor, [*index, k])
                is_load = isinstance(value, tvm.ir.expr.TensorLoad) and not elements.statements
                # What is computed has no address; a second load at 0 is in no chunk.
                return tirx.Evaluate(value if is_load else constant(0))

            return lies_in_chunks(load, last, chunk_elements(self.dtype))

        return anywhere(outer, whole)

    def sources(self) -> tuple[list[Statement], tuple[Chunk, Chunk, Chunk]]:
        """Launches, and where chunks of queries, keys and values lie after these."""
        before: list[Statement] = []
        query, key, value = self._tensors
        return before, (
            self._source(query, self.heads.of_query, "queries", before),
            self._source(key, self.heads.of_key, "keys", before),
            self._source(value, self.heads.of_key, "values", before),
        )

    def _source(
        self,
        tensor: Tensor,
        place: Callable[[Expression, Expression], list[Expression]],
        name: str,
        before: list[Statement],
    ) -> Chunk:
        load = self._load(tensor, name, before)
        return lambda batch, row, k: load([*place(batch, row), k])

    def _load(self, tensor: Tensor, name: str, before: list[Statement]) -> Load:
        """Where elements of an operand lie, after a launch that moves it, if need be."""
        if tensor not in self.moved:

            def load(index: Sequence[Expression]) -> Expression:
                own = [*own_index(tensor, index[:-1], 1), index[-1]]
                return self.anchored.elements(loops_around()).element(tensor, own)

            return load
        *outer, extent = (int(d) for d in tensor.shape)

        def element(elements: Elements, at: list[Expression]) -> Expression:
            *index, k = at
            return padded(k, extent, lambda k: elements.element(tensor, [*index, k]), self.dtype)

        shape = (*outer, chunks(extent, self.dtype))
        launch, buffer = materialize(self.anchored, shape, self.dtype, name, len(outer), element)
        before.append(launch)
        return lambda index: tirx.BufferLoad(buffer, [*own_index(tensor, index[:-1], 1), index[-1]])

    def mask_at(
        self, batch: Expression, row: Expression, key: Expression
    ) -> tuple[list[Statement], Expression]:
        """What is needed for an element of the mask, and that element, in its own type."""
        assert self.mask is not None
        elements = self.anchored.elements(loops_around())
        index = own_index(self.mask, [*self.heads.of_query(batch, row), key], 0)
        value = elements.element(self.mask, index)
        return elements.statements, value

    @cached_property
    def vector(self) -> int:
        """Neighbours of a row of the output that can be stored at once: 2, or 1."""
        one = tirx.const(1, "float32")

        def lanes(index: list[Expression]) -> int:
            batch, row = index
            return vector_lanes(lambda c: self.finish(batch, row, c, one), self.of_anchor.width, 2)

        return anywhere((self.heads.batch, self.heads.rows), lanes)

    def finish(self, batch: Expression, row: Expression, column: Expression, value: Expression) -> Statement:
        """Store what follows from an element of the anchor's output."""
        return self.anchored.finish([*self.heads.of_query(batch, row), column], value)
