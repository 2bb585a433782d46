"""Attention on CPUs: softmax(q k^T scale + mask) v, a block of query rows at a time.

The scores of a block of rows stay in the first-level cache between the two products. Both products are
register tiled as in `tcomp.tensor.gemm`; the keys are packed into panels by a stage of their own. Nothing
of size [S, T] reaches memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf, prod
from typing import Any

import numpy as np

from tcomp.relay.attributes import number
from tcomp.relay.graph import Node
from tcomp.relay.op import OPS, FusionKind
from tcomp.relay.types import TensorType
from tcomp.target.target import Target
from tcomp.tensor import loops
from tcomp.tensor.convolution import accumulator_dtype
from tcomp.tensor.epilogue import epilogue_fits
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Choice, Config, Ordered, Space
from tcomp.tensor.loops import Buffer, Elements, Expression, Statement, TensorMap
from tcomp.tensor.lower import lower_body, placeholders
from tcomp.tensor.primitives import Tiles, transpose_square
from tcomp.tensor.template import TEMPLATES, Scheduled, Template
from tcomp.tvm_api import Tensor, te, tirx

ROW_BUFFER_BYTES = 16 * 1024
"""Largest block of scores; larger ones would leave the stack."""
PARALLEL_FLOPS = 500_000
"""Kernels of fewer operations run on the calling thread: waking others costs more."""
Index = Sequence[Any]


@dataclass(frozen=True)
class Shape:
    """queries [*batch, rows, depth], keys [*batch, length, depth], values [*batch, length, width]."""

    batch: tuple[int, ...]
    rows: int
    length: int
    depth: int
    width: int
    dtype: str
    scale: float

    @staticmethod
    def of(node: Node) -> Shape:
        query, key, value = (v.type.static_shape for v in node.inputs[:3])
        batch = node.output.type.static_shape[:-2]
        dtype = accumulator_dtype(node.output.dtype)
        scale = number(node.attrs, "scale")
        return Shape(batch, query[-2], key[-2], query[-1], value[-1], dtype, scale)

    def padded(self, lanes: int) -> int:
        """Scores of a row, in whole vectors."""
        return -(-self.length // lanes) * lanes


class AttentionCpu(Template):
    """Steps: pack the keys; for each block of rows: scores, softmax without its division, second product."""

    name = "attention_cpu"

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        anchor = kernel.anchor
        if anchor is None or anchor.op != "attention" or not epilogue_fits(kernel):
            return False
        if len(kernel.body.outputs) != 1 or any(prod(v.type.static_shape) == 0 for v in anchor.inputs):
            return False
        after = set(anchor.outputs)
        for node in kernel.body.nodes:
            if after & set(node.inputs):
                if OPS[node.op].kind is not FusionKind.ELEMENTWISE:
                    return False
                after |= set(node.outputs)
        shape = Shape.of(anchor)
        row_bytes = shape.padded(target.lanes(shape.dtype)) * np.dtype(shape.dtype).itemsize
        return row_bytes <= ROW_BUFFER_BYTES

    def space(self, kernel: Kernel, target: Target) -> Space:
        shape = _shape(kernel)
        tiles = tuple(_tiles(shape, target))
        best = min(tiles, key=lambda tile: _cycles(shape, target, *tile))

        def reason(config: Config) -> str | None:
            tile = tuple(int(config[n]) for n in ("tile_rows", "score_vectors", "value_vectors"))
            if tile in tiles:
                return None
            return f"tile {tile} needs more than {target.vector_registers} registers or too many scores"

        names = ("tile_rows", "score_vectors", "value_vectors")
        ordered = [Ordered(n, tuple(sorted({t[i] for t in tiles})), best[i]) for i, n in enumerate(names)]
        threaded = target.cores > 1 and kernel.flops >= PARALLEL_FLOPS
        return Space((*ordered, Choice("parallel", (False, True), threaded)), reason)

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        return _Nest(kernel, target, config).scheduled()


def _shape(kernel: Kernel) -> Shape:
    assert kernel.anchor is not None
    return Shape.of(kernel.anchor)


def _tiles(shape: Shape, target: Target) -> Iterator[tuple[int, int, int]]:
    """(rows, vectors of scores, vectors of values) that fit the registers and the row buffer."""
    lanes = target.lanes(shape.dtype)
    row_bytes = shape.padded(lanes) * np.dtype(shape.dtype).itemsize
    scores = [v for v in (1, 2, 3, 4) if v == 1 or v * lanes <= shape.length]
    values = [v for v in (1, 2, 3, 4) if v == 1 or v * lanes <= shape.width]
    for rows in range(1, min(shape.rows, 16) + 1):
        for s in scores:
            for v in values:
                in_registers = rows * max(s, v) + max(s, v) + 1 <= target.vector_registers
                if in_registers and (rows == 1 or rows * row_bytes <= ROW_BUFFER_BYTES):
                    yield rows, s, v


def _cycles(shape: Shape, target: Target, rows: int, scores: int, values: int) -> float:
    """Estimated cycles: both products by the tightest of FMA ports, FMA latency and loads."""
    lanes = target.lanes(shape.dtype)

    def product(columns: int, vectors: int, depth: int) -> float:
        load = max((rows + vectors) / 2, 2 * vectors)
        step = max(rows * vectors / target.fma_ports, 4, load) + 0.05 * load
        return -(-columns // (vectors * lanes)) * (depth * step + 2 * rows * vectors + 20)

    blocks = -(-shape.rows // rows)
    return blocks * (product(shape.length, scores, shape.depth) + product(shape.width, values, shape.length))


class _Nest:
    """The loops of one kernel."""

    def __init__(self, kernel: Kernel, target: Target, config: Config) -> None:
        self.shape = shape = _shape(kernel)
        self.lanes = lanes = target.lanes(shape.dtype)
        self.rows = Tiles.of(shape.rows, int(config["tile_rows"]))
        self.keys = Tiles.of(shape.length, int(config["score_vectors"]) * min(lanes, shape.length))
        self.values = Tiles.of(shape.width, int(config["value_vectors"]) * min(lanes, shape.width))
        self.padded = shape.padded(lanes)
        self.threaded = bool(config["parallel"])
        inputs = placeholders(kernel)
        self.operands: list[Tensor] = []
        (self.output,) = lower_body(kernel, inputs, self._anchor)
        self.input_buffers = loops.buffers_of(inputs, "input")
        self.buffers = TensorMap(zip(inputs, self.input_buffers, strict=True))
        (self.output_buffer,) = loops.buffers_of([self.output], "output")
        packed = (*shape.batch, self.keys.count, shape.depth, self.keys.size)
        self.packed = TensorType(packed, shape.dtype)
        self.panels = tirx.decl_buffer(list(packed), shape.dtype, name="packed_keys")

    def _anchor(self, node: Node, operands: Sequence[Tensor]) -> list[Tensor]:
        self.operands = list(operands)
        # Its elements are bound where they are computed.
        shape, dtype = node.output.type.static_shape, node.output.dtype
        self.attended = te.placeholder(shape, dtype, name="attended")
        return [self.attended]

    def scheduled(self) -> Scheduled:
        parameters = [*self.input_buffers, self.panels, self.output_buffer]
        body = loops.sequence([self._pack_keys(), self._over_blocks()])
        return Scheduled(loops.function(parameters, body), scratch=(self.packed,))

    def _over_batch(self, extent: int, body: Callable[[Index, Expression], Statement]) -> Statement:
        """`body(batch, i)` for every batch and i below `extent`, shared among threads."""

        def at(flat: Expression) -> Statement:
            batch: list[Expression] = []
            place, rest = tirx.floormod(flat, extent), tirx.floordiv(flat, extent)
            for size in reversed(self.shape.batch):
                batch.insert(0, tirx.floormod(rest, size))
                rest = tirx.floordiv(rest, size)
            return body(batch, place)

        make = loops.parallel if self.threaded else loops.loop
        return make(prod(self.shape.batch) * extent, at, "block")

    def _own_batch(self, tensor: Tensor, batch: Index) -> list[Expression]:
        """`batch` as an index into the batch axes of an operand, which may be fewer or of extent 1."""
        shape = [int(d) for d in tensor.shape[:-2]]
        used = batch[len(batch) - len(shape) :]
        return [loops.constant(0) if d == 1 else i for d, i in zip(shape, used, strict=True)]

    def _read(self, operand: int, batch: Index, *matrix: Expression) -> tuple[list[Statement], Expression]:
        """An element of an operand in the accumulator's type, after the statements that it needs."""
        tensor = self.operands[operand]
        index = [*batch, *matrix][len(batch) + 2 - len(tensor.shape) :]
        elements = Elements(self.buffers)
        at = [loops.constant(0) if int(d) == 1 else i for d, i in zip(tensor.shape, index, strict=True)]
        value = elements.element(tensor, at)
        return elements.statements, value.astype(self.shape.dtype)

    def _pack_keys(self) -> Statement:
        """`[*batch, length, depth] -> [*batch, key tile, depth, key]`."""
        whole = self.shape.depth % self.lanes == 0 and self.keys.size % self.lanes == 0
        keys = self.operands[1]
        in_memory = keys in self.buffers and str(keys.dtype) == self.shape.dtype
        return self._over_batch(
            self.keys.count, self._panel_by_squares if whole and in_memory else self._panel_by_elements
        )

    def _panel_by_elements(self, batch: Index, p: Expression) -> Statement:
        def element(k: Expression, c: Expression) -> Statement:
            needed, value = self._read(1, batch, self.keys.base(p) + c, k)
            return loops.sequence([*needed, tirx.BufferStore(self.panels, value, [*batch, p, k, c])])

        return loops.loop(
            self.shape.depth,
            lambda k: loops.unrolled(self.keys.size, lambda c: element(k, c), "key"),
            "k",
        )

    def _panel_by_squares(self, batch: Index, p: Expression) -> Statement:
        lanes, keys = self.lanes, self.operands[1]
        own = self._own_batch(keys, batch)

        def square(c: Expression, k: Expression) -> Statement:
            def load(i: int) -> Expression:
                at = [*own, self.keys.base(p) + c + i, tirx.Ramp(k, 1, lanes)]
                return tirx.BufferLoad(self.buffers[keys], at)

            def store(i: int, vector: Expression) -> Statement:
                at = [*batch, p, k + i, tirx.Ramp(c, 1, lanes)]
                return tirx.BufferStore(self.panels, vector, at)

            return transpose_square(load, store, lanes, self.shape.dtype)

        return loops.loop(
            self.keys.size // lanes,
            lambda c: loops.loop(self.shape.depth // lanes, lambda k: square(c * lanes, k * lanes), "k"),
            "c",
        )

    def _over_blocks(self) -> Statement:
        def block(batch: Index, t: Expression) -> Statement:
            row = self.rows.base(t)
            size = self.rows.size
            allocate, scores = loops.local((size, self.padded), self.shape.dtype, "scores")
            allocate_sums, totals = loops.local((size,), self.shape.dtype, "totals")
            return loops.sequence(
                [
                    allocate,
                    allocate_sums,
                    *self._pad(scores),
                    loops.loop(self.keys.count, lambda p: self._scores(scores, batch, row, p), "p"),
                    loops.loop(size, lambda r: self._softmax(scores, totals, r), "r"),
                    loops.loop(
                        self.values.count, lambda p: self._weighted(scores, totals, batch, row, p), "p"
                    ),
                ]
            )

        return self._over_batch(self.rows.count, block)

    def _pad(self, scores: Buffer) -> list[Statement]:
        """Scores of no key, so that rows are whole vectors."""
        missing = self.padded - self.shape.length
        if not missing:
            return []
        low = tirx.const(-inf, self.shape.dtype)
        return [
            loops.loop(
                self.rows.size,
                lambda r: loops.unrolled(
                    missing, lambda i: tirx.BufferStore(scores, low, [r, i + self.shape.length])
                ),
            )
        ]

    def _product(
        self,
        columns: Tiles,
        depth: int,
        left: Callable[[Expression, Expression], tuple[list[Statement], Expression]],
        right: Callable[[Expression, Expression], tuple[list[Statement], Expression]],
        store: Callable[[Buffer, Expression, Expression], Statement],
    ) -> Statement:
        """A tile of `left(r, k) right(k, c)` with its sums in registers, then `store(sums, r, c)`."""
        dtype, size = self.shape.dtype, self.rows.size
        allocate, sums = loops.local((size, columns.size), dtype, "sums")

        def tile(body: Callable[[Expression, Expression], Statement]) -> Statement:
            lanes = self.lanes if columns.size % self.lanes == 0 else columns.size
            return loops.unrolled(
                size,
                lambda r: loops.unrolled(
                    columns.size // lanes,
                    lambda v: loops.vectorized(lanes, lambda lane: body(r, v * lanes + lane)),
                    "v",
                ),
                "r",
            )

        def step(k: Expression) -> Statement:
            def add(r: Expression, c: Expression) -> Statement:
                (needed, a), (more, b) = left(r, k), right(k, c)
                total = tirx.BufferLoad(sums, [r, c]) + a * b
                return loops.sequence([*needed, *more, tirx.BufferStore(sums, total, [r, c])])

            return tile(add)

        zero = tirx.const(0.0, dtype)
        return loops.sequence(
            [
                allocate,
                tile(lambda r, c: tirx.BufferStore(sums, zero, [r, c])),
                loops.loop(depth, step, "k"),
                tile(lambda r, c: store(sums, r, c)),
            ]
        )

    def _scores(self, scores: Buffer, batch: Index, row: Expression, p: Expression) -> Statement:
        """Scaled and masked scores of one panel of keys."""
        base = self.keys.base(p)

        def store(sums: Buffer, r: Expression, c: Expression) -> Statement:
            value = tirx.BufferLoad(sums, [r, c]) * tirx.const(self.shape.scale, self.shape.dtype)
            needed: list[Statement] = []
            if len(self.operands) == 4:
                needed, mask = self._read(3, batch, row + r, base + c)
                value = value + mask
            return loops.sequence([*needed, tirx.BufferStore(scores, value, [r, base + c])])

        return self._product(
            self.keys,
            self.shape.depth,
            lambda r, k: self._read(0, batch, row + r, k),
            lambda k, c: ([], tirx.BufferLoad(self.panels, [*batch, p, k, c])),
            store,
        )

    def _softmax(self, scores: Buffer, totals: Buffer, r: Expression) -> Statement:
        """Turn a row of scores into exponentials below their highest, and keep their total."""
        dtype, lanes = self.shape.dtype, self.lanes
        vectors = self.padded // lanes
        allocate, partial = loops.local((lanes,), dtype, "partial")
        allocate_top, top = loops.local((1,), dtype, "top")

        def over(body: Callable[[Expression, Expression], Statement]) -> Statement:
            return loops.loop(
                vectors,
                lambda v: loops.vectorized(lanes, lambda lane: body(v * lanes + lane, lane)),
                "v",
            )

        def fill(value: Expression) -> Statement:
            return loops.vectorized(lanes, lambda lane: tirx.BufferStore(partial, value, [lane]))

        def reduce(buffer: Buffer, at: Index, combine: Callable[[Any, Any], Any]) -> list[Statement]:
            """Fold the lanes of `partial` by halves; the result goes to `buffer[at]`."""
            halves: list[Statement] = []
            width = lanes
            while width > 1:
                width //= 2

                def fold(lane: Expression, width: int = width) -> Statement:
                    pair = [tirx.BufferLoad(partial, [lane + o]) for o in (0, width)]
                    return tirx.BufferStore(partial, combine(*pair), [lane])

                halves.append(loops.vectorized(width, fold))
            return [*halves, tirx.BufferStore(buffer, tirx.BufferLoad(partial, [0]), list(at))]

        def highest(i: Expression, lane: Expression) -> Statement:
            value = tirx.max(tirx.BufferLoad(partial, [lane]), tirx.BufferLoad(scores, [r, i]))
            return tirx.BufferStore(partial, value, [lane])

        def exponential(i: Expression, lane: Expression) -> Statement:
            value = tirx.exp(tirx.BufferLoad(scores, [r, i]) - tirx.BufferLoad(top, [0]))
            weight = tirx.Var("weight", dtype)
            total = tirx.BufferLoad(partial, [lane]) + weight
            return loops.sequence(
                [
                    tirx.Bind(weight, value),
                    tirx.BufferStore(scores, weight, [r, i]),
                    tirx.BufferStore(partial, total, [lane]),
                ]
            )

        return loops.sequence(
            [
                allocate,
                allocate_top,
                fill(tirx.const(-inf, dtype)),
                over(highest),
                *reduce(top, [0], tirx.max),
                fill(tirx.const(0.0, dtype)),
                over(exponential),
                *reduce(totals, [r], lambda a, b: a + b),
            ]
        )

    def _weighted(
        self, scores: Buffer, totals: Buffer, batch: Index, row: Expression, p: Expression
    ) -> Statement:
        """One panel of values, weighted, divided by the total, with the epilogue."""
        base = self.values.base(p)

        def store(sums: Buffer, r: Expression, c: Expression) -> Statement:
            elements = Elements(self.buffers)
            value = tirx.BufferLoad(sums, [r, c]) / tirx.BufferLoad(totals, [r])
            elements.bind(self.attended, value.astype(str(self.attended.dtype)))
            return elements.store(self.output_buffer, self.output, [*batch, row + r, base + c])

        return self._product(
            self.values,
            self.shape.length,
            lambda r, k: ([], tirx.BufferLoad(scores, [r, k])),
            lambda k, c: self._read(2, batch, k, base + c),
            store,
        )


TEMPLATES.register(AttentionCpu.name, AttentionCpu())
