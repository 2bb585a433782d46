"""Matrix products as a family of register-tiled kernels: geometry, packed operands, schedule.

A product of `[batch, rows, depth]` by `[batch, depth, columns]` is computed in tiles of `tile_rows` rows
by `tile_vectors` vectors of columns whose sums stay in registers over the whole depth. The right operand
lies in panels `[column tile, depth, column]`: constants are packed at compile time, others in a stage of
their own. The left operand is read where it lies or packed as `[row tile, depth, row]`.
The blocking is that of Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from tcomp.relay.attributes import flag
from tcomp.relay.graph import Node
from tcomp.relay.op import OPS, FusionKind
from tcomp.relay.types import Array, TensorType
from tcomp.target.target import Target
from tcomp.tensor.convolution import accumulator_dtype
from tcomp.tensor.epilogue import epilogue_fits, inline_between, placeholder_index
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tensor.lower import lower_body, placeholders
from tcomp.tensor.primitives import Tiles, store_by_tile, vectorize_loop, vectorize_rows
from tcomp.tensor.template import Packing, Scheduled
from tcomp.tvm_api import PrimFunc, Schedule, Tensor, s_tir, te

Expression = Any
Index = Sequence[Any]
Read = Callable[[Index, Any, Any, Any], Any]

HEAVY_EPILOGUE_FLOPS = 12
"""From this many operations an element, the epilogue runs in a loop over the tile's rows, not unrolled."""


@dataclass(frozen=True)
class Product:
    """One matrix product as `[*batch, rows, depth] x [*batch, depth, columns]`.

    When the right operand has no batch, the left one's batch axes are merged into `rows`.
    """

    left: TensorType
    right: TensorType
    output: TensorType
    transpose_left: bool
    transpose_right: bool
    batch: tuple[int, ...]
    rows: int
    columns: int
    depth: int

    @staticmethod
    def of(node: Node) -> Product:
        left, right = (v.type for v in node.inputs)
        transpose_left, transpose_right = (flag(node.attrs, f"transpose_{x}") for x in "ab")
        a, b = left.static_shape, right.static_shape
        depth = a[-2] if transpose_left else a[-1]
        rows = 1 if len(a) == 1 else a[-1] if transpose_left else a[-2]
        columns = 1 if len(b) == 1 else b[-2] if transpose_right else b[-1]
        batch = np.broadcast_shapes(a[:-2], b[:-2])
        if prod(b[:-2]) == 1:
            rows, batch = rows * prod(batch), ()
        output = node.output.type
        return Product(left, right, output, transpose_left, transpose_right, batch, rows, columns, depth)

    @property
    def merged(self) -> bool:
        """Whether the output's batch axes are part of `rows`."""
        return not self.batch

    @property
    def accumulator(self) -> str:
        return accumulator_dtype(self.output.dtype)

    @property
    def outer(self) -> tuple[int, ...]:
        """The output's axes before the columns, without the batch axes that are not merged."""
        shape = self.output.static_shape[: -1 if self.right.rank > 1 else None]
        return shape[len(self.batch) :]

    def read_left(self, tensor: Tensor, batch: Index, row: Expression, k: Expression) -> Expression:
        """Element (row, k) of the left operand, in the accumulator's type."""
        if self.left.rank == 1:
            return tensor(k).astype(self.accumulator)
        if self.merged:
            *batch, row = _unravel(row, self.outer) if self.outer else (row,)
        matrix = (k, row) if self.transpose_left else (row, k)
        return tensor(*_broadcast(self.left, batch), *matrix).astype(self.accumulator)

    def read_right(self, tensor: Tensor, batch: Index, k: Expression, column: Expression) -> Expression:
        """Element (k, column) of the right operand, in the accumulator's type."""
        if self.right.rank == 1:
            return tensor(k).astype(self.accumulator)
        matrix = (column, k) if self.transpose_right else (k, column)
        return tensor(*_broadcast(self.right, batch), *matrix).astype(self.accumulator)

    def position(self, index: Index) -> tuple[list[Any], Expression, Expression]:
        """(batch, row, column) of an output index."""
        outer = list(index[: len(index) - (self.right.rank > 1)])
        column = index[-1] if self.right.rank > 1 else 0
        return outer[: len(self.batch)], _ravel(outer[len(self.batch) :], self.outer), column

    def index(self, batch: Index, row: Expression, column: Expression) -> list[Any]:
        """The output index of (batch, row, column)."""
        return [*batch, *_unravel(row, self.outer), *([column] if self.right.rank > 1 else [])]


def _broadcast(operand: TensorType, batch: Index) -> list[Any]:
    """`batch` as an index into the operand's own batch axes, which may be fewer or of extent 1."""
    shape = operand.static_shape[:-2]
    own = batch[len(batch) - len(shape) :]
    return (
        [0 if extent == 1 else i for extent, i in zip(shape, own, strict=True)] if own else [0] * len(shape)
    )


def _ravel(index: Index, shape: Sequence[int]) -> Expression:
    flat: Any = 0
    for i, extent in zip(index, shape, strict=True):
        flat = i if extent == prod(shape) else flat * extent + i
    return flat


def _unravel(flat: Expression, shape: Sequence[int]) -> list[Any]:
    index: list[Any] = []
    for axis, extent in enumerate(shape):
        inner = prod(shape[axis + 1 :])
        quotient = flat if inner == 1 else flat // inner
        index.append(0 if extent == 1 else quotient if prod(shape[:axis]) == 1 else quotient % extent)
    return index


@dataclass(frozen=True)
class Plan:
    """What a config means for one product: its tiles, loop order and packed operands."""

    rows: Tiles
    columns: Tiles
    lanes: int
    block: int
    """Tiles of the inner axis that are visited before the outer axis moves on."""
    rows_inside: bool
    unroll: int
    pack_left: bool
    pack_right: bool
    parallel: bool

    @staticmethod
    def of(product: Product, target: Target, config: Config) -> Plan:
        lanes = min(target.lanes(product.accumulator), product.columns)
        rows_inside = config["inner"] == "rows"
        row_size, column_size = int(config["tile_rows"]), int(config["tile_vectors"]) * lanes
        inner = Tiles.of(
            product.rows if rows_inside else product.columns, row_size if rows_inside else column_size
        )
        block = min(int(config["block"]) or inner.count, inner.count)
        blocks = -(-inner.count // block)
        block = -(-inner.count // blocks)
        return Plan(
            Tiles.of(product.rows, row_size, block if rows_inside else 1),
            Tiles.of(product.columns, column_size, 1 if rows_inside else block),
            lanes,
            block,
            rows_inside,
            int(config["unroll"]),
            bool(config["pack_left"]),
            bool(config["pack_right"]),
            bool(config["parallel"]),
        )


def fits(kernel: Kernel) -> bool:
    """Whether `kernel` is a product of non-empty matrices with elementwise operators after it."""
    anchor = kernel.anchor
    if anchor is None or anchor.op != "matmul" or not epilogue_fits(kernel):
        return False
    shapes = [v.type.static_shape for v in (*anchor.inputs, *anchor.outputs)]
    if min(prod(s) for s in shapes) == 0:
        return False
    after = set(anchor.outputs)
    for node in kernel.body.nodes:
        if after & set(node.inputs):
            if OPS[node.op].kind is not FusionKind.ELEMENTWISE:
                return False
            after |= set(node.outputs)
    return all(v in after for v in kernel.body.outputs)


def constant_right(kernel: Kernel) -> int | None:
    """The kernel input that is the anchor's constant right operand, if it is one used by nothing else."""
    assert kernel.anchor is not None
    value = kernel.anchor.inputs[1]
    index = placeholder_index(kernel, value)
    used_once = kernel.body.use_count(value) == 1
    return index if index in kernel.constant_inputs and used_once else None


def epilogue_flops(kernel: Kernel) -> int:
    """Operations an output element after the product."""
    return sum(OPS[n.op].flops_per_element for n in kernel.body.nodes if n is not kernel.anchor)


def pack_right(product: Product, columns: Tiles) -> Packing:
    """`[*batch, depth, columns] -> [*batch, column tile, depth, column]`."""
    at = np.array([columns.base(t) for t in range(columns.count)])[:, None] + np.arange(columns.size)
    batch = product.right.static_shape[:-2] if product.batch else ()

    def pack(original: Array) -> Array:
        matrix = original.reshape(-1, 1) if product.right.rank == 1 else original
        matrix = np.swapaxes(matrix, -1, -2) if product.transpose_right else matrix
        matrix = matrix.reshape(*batch, product.depth, product.columns)
        return np.ascontiguousarray(np.moveaxis(matrix[..., at], -3, -2))

    shape = (*batch, columns.count, product.depth, columns.size)
    return Packing(TensorType(shape, product.right.dtype), pack)


class Stages:
    """The tensor expressions of a kernel around one product, in parameter order."""

    def __init__(self, kernel: Kernel, product: Product, plan: Plan) -> None:
        self.kernel, self.product, self.plan = kernel, product, plan
        self.copies: list[str] = []
        self._scratch: list[Tensor] = []
        index = constant_right(kernel)
        self.packing = {} if index is None else {index: pack_right(product, plan.columns)}
        inputs = placeholders(kernel, {i: p.type for i, p in self.packing.items()})
        outputs = lower_body(kernel, inputs, self._anchor)
        if len(outputs) > 1:
            # An output that another one reads could not be inlined: each becomes a copy of its own.
            outputs = [te.compute(t.shape, t, name=f"output{i}") for i, t in enumerate(outputs)]
        self.function: PrimFunc = te.create_prim_func([*inputs, *self._scratch, *outputs])
        self.scratch = tuple(TensorType(tuple(int(d) for d in t.shape), str(t.dtype)) for t in self._scratch)

    def _anchor(self, node: Node, operands: Sequence[Tensor]) -> list[Tensor]:
        product, rows, columns = self.product, self.plan.rows, self.plan.columns
        k = te.reduce_axis((0, product.depth), name="k")
        left, right = self._left(operands[0]), self._right(operands[1])

        def multiply(*index: Any) -> Any:
            *batch, t, r, p, c = index
            return te.sum(left(batch, t, r, k) * right(batch, p, k, c), axis=k)

        shape = (*product.batch, rows.count, rows.size, columns.count, columns.size)
        sums = te.compute(shape, multiply, name="sums")

        def element(*index: Any) -> Any:
            batch, row, column = product.position(index)
            place = (*rows.locate(row), *columns.locate(column))
            return sums(*batch, *place).astype(product.output.dtype)

        return [te.compute(product.output.static_shape, element, name="product")]

    def _left(self, operand: Tensor) -> Read:
        """The left operand as a function of (batch, row tile, row, k)."""
        product, rows = self.product, self.plan.rows

        def read(batch: Index, t: Any, r: Any, k: Any) -> Any:
            return product.read_left(operand, batch, rows.base(t) + r, k)

        if not self.plan.pack_left:
            return read
        shape = (*product.batch, rows.count, product.depth, rows.size)

        def packed(*index: Any) -> Any:
            *batch, t, k, r = index
            return read(batch, t, r, k)

        panels = self._copy("packed_left", te.compute(shape, packed, name="packed_left"))
        return lambda batch, t, r, k: panels(*batch, t, k, r)

    def _right(self, operand: Tensor) -> Read:
        """The right operand as a function of (batch, column tile, k, column)."""
        product, columns = self.product, self.plan.columns
        if self.packing:
            own = product.right if product.batch else TensorType((1, 1))
            return lambda batch, p, k, c: operand(*_broadcast(own, batch), p, k, c).astype(
                product.accumulator
            )

        def read(batch: Index, p: Any, k: Any, c: Any) -> Any:
            return product.read_right(operand, batch, k, columns.base(p) + c)

        if not self.plan.pack_right:
            return read
        shape = (*product.batch, columns.count, product.depth, columns.size)

        def packed(*index: Any) -> Any:
            *batch, p, k, c = index
            return read(batch, p, k, c)

        panels = self._copy("packed_right", te.compute(shape, packed, name="packed_right"))
        return lambda batch, p, k, c: panels(*batch, p, k, c)

    def _copy(self, name: str, stage: Tensor) -> Tensor:
        self.copies.append(name)
        self._scratch.append(stage)
        return stage


def schedule_product(kernel: Kernel, product: Product, plan: Plan, target: Target) -> Scheduled:
    """The scheduled function.

    1. Inline the epilogue into the stages that write outputs, and the prologue into the product.
    2. Let the outputs run by tiles. 3. Order the tiles; sums in registers. 4. Outputs and copies.
    """
    stages = Stages(kernel, product, plan)
    schedule = s_tir.Schedule(stages.function, enable_check=False)
    kept = {"sums", *stages.copies}
    outputs = [schedule.get(b).name_hint for b in inline_between(schedule, kept)]
    function = schedule.mod["main"]

    def point(*index: Any) -> list[Any]:
        *batch, t, r, p, c = index
        return product.index(batch, plan.rows.base(t) + r, plan.columns.base(p) + c)

    for name in outputs:
        function = store_by_tile(function, name, "sums", point)
    schedule = s_tir.Schedule(function, enable_check=False)
    schedule_tiles(schedule, outputs, plan, epilogue_flops(kernel) >= HEAVY_EPILOGUE_FLOPS)
    for name in stages.copies:
        _schedule_copy(schedule, name, plan, target)
    return Scheduled(schedule.mod["main"], stages.packing, stages.scratch)


def schedule_tiles(schedule: Schedule, outputs: Sequence[str], plan: Plan, heavy: bool) -> None:
    """Loops of `sums` [*batch, t, r, p, c] and k, and of the `outputs` that read them."""
    sums = schedule.get_sblock("sums")
    *batch, t, r, p, c, k = schedule.get_loops(sums)
    outer, inner = (p, t) if plan.rows_inside else (t, p)
    block, inner = schedule.split(inner, [None, plan.block])
    vectors, lanes = schedule.split(c, [None, plan.lanes])
    k_outer, k_inner = schedule.split(k, [None, plan.unroll])
    schedule.reorder(*batch, block, outer, inner, k_outer, k_inner, r, vectors, lanes)
    schedule.set_scope(sums, 0, "local")
    blocks = [schedule.get_sblock(name) for name in outputs]
    if heavy:
        # The sums move to memory once, so that the rows of the epilogue need not be unrolled.
        copy = schedule.cache_read(blocks[0], _read_of(schedule, blocks[0], sums), "local")
        schedule.reverse_compute_at(copy, inner)
        vectorize_rows(schedule, copy, plan.lanes)
    for output in blocks:
        schedule.reverse_compute_at(output, inner)
        vectorize_rows(schedule, output, plan.lanes, unroll_rows=not heavy)
    for loop in (k_inner, r, vectors):
        schedule.unroll(loop)
    schedule.vectorize(lanes)
    initial = schedule.decompose_reduction(sums, k_outer)
    *_, r, vectors, lanes = schedule.get_loops(initial)
    schedule.unroll(r)
    schedule.unroll(vectors)
    schedule.vectorize(lanes)
    if plan.parallel:
        tiles = [*batch, block, outer]
        schedule.parallel(schedule.fuse(*tiles))


def _read_of(schedule: Schedule, consumer: Any, producer: Any) -> int:
    """Which of the consumer's reads is what the producer writes."""
    written = schedule.get(producer).writes[0].source
    return next(i for i, read in enumerate(schedule.get(consumer).reads) if read.source.same_as(written))


def _schedule_copy(schedule: Schedule, name: str, plan: Plan, target: Target) -> None:
    """`[*batch, tile, k, element]`: whole vectors where the elements are neighbours in memory."""
    *outer, _, element = schedule.get_loops(schedule.get_sblock(name))
    if name == "packed_right":
        vectorize_loop(schedule, element, plan.lanes)
    else:
        schedule.unroll(element)
    if plan.parallel:
        schedule.parallel(schedule.fuse(*outer))
