"""Matrix products as a family of register-tiled kernels: blocking, packed operands, the nest.

A product of `[batch, rows, depth]` by `[batch, depth, columns]` is computed in tiles of `tile_rows` rows
by `tile_vectors` vectors of columns. The depth is cut into chunks; a tile's sums stay in registers over a
chunk, and in memory between chunks. The blocking is that of Goto and van de Geijn, "Anatomy of
high-performance matrix multiplication", 2008:

    for each block of row tiles and group of panels (shared among threads):
      for each chunk of the depth:
        for each panel of the group:      chunk x tile_vectors of the right operand, in the first-level cache
          for each row tile of the block: the left operand's chunk, in the second-level cache
            the sums of one tile

The right operand lies packed in the very order in which this walk reads it, so that the memory behind it
is one stream, which every tile prefetches its share of. Constants are packed at compile time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import gcd, prod
from typing import Any

import numpy as np

from tcomp.relay.op import OPS
from tcomp.relay.types import Array, TensorType
from tcomp.target.target import Target
from tcomp.tensor import loops
from tcomp.tensor.access import vector_load
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.epilogue import output_axes, placeholder_index
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tensor.loops import Buffer, Expression, Statement
from tcomp.tensor.math import convert
from tcomp.tensor.primitives import Tiles, transpose_square
from tcomp.tensor.product import Product, unravel
from tcomp.tensor.template import Packing, Scheduled
from tcomp.tvm_api import Tensor, te, tirx

Index = Sequence[Any]

HEAVY_EPILOGUE_FLOPS = 12
"""From this many operations an element, the epilogue runs in a loop over the tile's rows, not unrolled."""
FEW_ROWS_AHEAD = 8 * 1024
"""Bytes by which a prefetch runs ahead where each panel is read once only."""


@dataclass(frozen=True)
class Plan:
    """What a config means for one product: tiles, blocking and packed operands."""

    rows: Tiles
    columns: Tiles
    lanes: int
    row_block: int
    """Row tiles that are visited with each panel."""
    group: int
    """Panels that are visited with each chunk of the depth."""
    depth: int
    chunk: int
    unroll: int
    """Divides the depth and the chunk."""
    pack_left: bool
    pack_right: bool
    prefetch: bool
    parallel: bool

    @staticmethod
    def of(product: Product, target: Target, config: Config) -> Plan:
        lanes = min(target.lanes(product.accumulator), product.columns)
        rows = Tiles.of(product.rows, int(config["tile_rows"]))
        columns = Tiles.of(product.columns, int(config["tile_vectors"]) * lanes)
        unroll, chunk = int(config["unroll"]), int(config["chunk"]) or product.depth
        return Plan(
            rows,
            columns,
            lanes,
            _even(rows.count, int(config["row_block"])),
            _even(columns.count, int(config["group"])),
            product.depth,
            _even(product.depth // unroll, chunk // unroll) * unroll,
            unroll,
            bool(config["pack_left"]),
            bool(config["pack_right"]),
            bool(config["prefetch"]),
            bool(config["parallel"]),
        )

    @property
    def row_blocks(self) -> int:
        return -(-self.rows.count // self.row_block)

    @property
    def groups(self) -> int:
        return -(-self.columns.count // self.group)

    @property
    def chunks(self) -> int:
        return -(-self.depth // self.chunk)

    @property
    def panel_size(self) -> int:
        """Elements of the right operand that one panel has, over the whole depth."""
        return self.columns.size * self.depth

    def panels_of(self, group: Expression) -> Expression:
        """How many panels a group has: the last one may have fewer."""
        return _rest(self.columns.count, self.group, group)

    def tiles_of(self, block: Expression) -> Expression:
        """How many row tiles a block has."""
        return _rest(self.rows.count, self.row_block, block)

    def depth_of(self, chunk: Expression) -> Expression:
        """How long a chunk is."""
        return _rest(self.depth, self.chunk, chunk)

    def panel_offset(self, group: Expression, chunk: Expression, panel: Expression) -> Expression:
        """Where a chunk of the `panel`-th panel of a group begins in the packed right operand."""
        before = group * (self.group * self.panel_size)
        inside = chunk * (self.chunk * self.columns.size) * self.panels_of(group)
        return before + inside + panel * self.columns.size * self.depth_of(chunk)


def _even(count: int, most: int) -> int:
    """The size of the fewest parts of nearly equal size, at most `most` each (0: one part)."""
    parts = -(-count // min(count, most or count))
    return -(-count // parts)


def _rest(extent: int, part: int, number: Expression) -> Expression:
    if extent % part == 0:
        return part
    left = extent - number * part
    return min(part, left) if isinstance(left, int) else te.min(left, part)


def fits(kernel: Kernel) -> bool:
    """Whether `kernel` is a product of non-empty matrices with elementwise work and transposes after it."""
    anchor = kernel.anchor
    if anchor is None or anchor.op != "matmul" or output_axes(kernel) is None:
        return False
    return all(prod(v.type.static_shape) > 0 for v in (*anchor.inputs, *anchor.outputs))


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


def pack_right(product: Product, plan: Plan) -> Packing:
    """`[*batch, depth, columns] -> [*batch, group, chunk, panel, k, column]`, the last five flat."""
    columns = plan.columns
    batch = product.right.static_shape[:-2] if product.batch else ()

    def pack(original: Array) -> Array:
        matrix = original.reshape(-1, 1) if product.right.rank == 1 else original
        matrix = np.swapaxes(matrix, -1, -2) if product.transpose_right else matrix
        matrix = matrix.reshape(-1, product.depth, product.columns)
        packed = np.empty((len(matrix), columns.count * plan.panel_size), matrix.dtype)
        for group in range(plan.groups):
            first = group * plan.group
            bases = [columns.base(p) for p in range(first, first + plan.panels_of(group))]
            at = np.array(bases)[:, None] + np.arange(columns.size)
            for chunk in range(plan.chunks):
                start, extent = chunk * plan.chunk, plan.depth_of(chunk)
                panels = np.moveaxis(matrix[:, start : start + extent][..., at], -3, -2)
                begin = plan.panel_offset(group, chunk, 0)
                packed[:, begin : begin + panels[0].size] = panels.reshape(len(matrix), -1)
        return packed.reshape(*batch, -1)

    shape = (*batch, columns.count * plan.panel_size)
    return Packing(TensorType(shape, product.right.dtype), pack)


@dataclass(frozen=True)
class _Place:
    """Where the walk stands: group of panels, chunk of the depth, panel of the group."""

    batch: Index
    group: Expression
    chunk: Expression
    panel: Expression


class GemmNest:
    """The loops of one kernel."""

    def __init__(self, kernel: Kernel, product: Product, plan: Plan, target: Target) -> None:
        self.product, self.plan = product, plan
        self.lanes = target.lanes(product.accumulator)
        self.heavy = epilogue_flops(kernel) >= HEAVY_EPILOGUE_FLOPS
        constant = constant_right(kernel)
        packing = {} if constant is None else {constant: pack_right(product, plan)}
        self.anchored = Anchored(kernel, packing)
        self.left, self.right = self.anchored.operands
        self.panels = self.anchored.buffer_of(self.right) if packing else None
        self.row_tiles: Buffer | None = None

    def scheduled(self) -> Scheduled:
        """1. Pack what is not packed yet. 2. Blocks, groups, chunks, panels, tiles."""
        statements: list[Statement] = []
        if self.plan.pack_left:
            statements.append(self._pack_left())
        if self.plan.pack_right and self.panels is None:
            statements.append(self._pack_right())
        partial: Buffer | None = None
        pieces = prod(self.product.batch) * self.plan.row_blocks * self.plan.groups
        if self.plan.chunks > 1:
            tiles = self.plan.group * self.plan.row_block
            shape = (pieces if self.plan.parallel else 1, tiles, self.plan.rows.size, self.plan.columns.size)
            partial = self.anchored.add_scratch(shape, self.product.accumulator, "partial_sums")

        def piece(number: Expression) -> Statement:
            sums = partial, (number if self.plan.parallel else 0)
            *batch, block, group = unravel(
                number, (*self.product.batch, self.plan.row_blocks, self.plan.groups)
            )
            return self._chunks(batch, block, group, sums)

        make = loops.parallel if self.plan.parallel else loops.loop
        return self.anchored.scheduled([*statements, make(pieces, piece, "piece")])

    # Packing

    def _pack_left(self) -> Statement:
        """`[*batch, rows, depth] -> [*batch, row tile, depth, row]`."""
        product, rows = self.product, self.plan.rows
        shape = (*product.batch, rows.count, product.depth, rows.size)
        tiles = self.row_tiles = self.anchored.add_scratch(shape, self.product.left.dtype, "packed_left")
        width = gcd(rows.size, self.lanes)
        side = gcd(width, product.depth)

        def row(batch: Index, r: Expression, k: Expression) -> Expression | None:
            return self._vector(self.left, product.left_index(batch, r, k), side)

        zero = loops.constant(0)
        along_depth = side >= 4 and not product.transpose_left
        in_squares = along_depth and row([zero] * len(product.batch), zero, zero) is not None

        def one(batch: Index, t: Expression) -> Statement:
            def element(k: Expression, r: Expression) -> Statement:
                needed, value = self._element(self.left, product.left_index(batch, rows.base(t) + r, k), None)
                return loops.sequence([*needed, tirx.BufferStore(tiles, value, [*batch, t, k, r])])

            def square(r: Expression, k: Expression) -> Statement:
                def load(i: int) -> Expression:
                    return row(batch, rows.base(t) + r + i, k)

                def store(i: int, vector: Expression) -> Statement:
                    return tirx.BufferStore(tiles, vector, [*batch, t, k + i, tirx.Ramp(r, 1, side)])

                return transpose_square(load, store, side, self.product.left.dtype)

            if in_squares:
                return loops.loop(
                    product.depth // side,
                    lambda k: loops.loop(rows.size // side, lambda r: square(r * side, k * side), "r"),
                    "k",
                )
            return loops.loop(product.depth, lambda k: _strip(rows.size, width, lambda r: element(k, r)), "k")

        return self._over(rows.count, one, "tile")

    def _pack_right(self) -> Statement:
        """`[*batch, depth, columns]` into panels, as `pack_right` does."""
        product, plan, columns = self.product, self.plan, self.plan.columns
        own = tuple(product.right.static_shape[:-2]) if product.batch else ()
        shape = (*own, columns.count * plan.panel_size)
        panels = self.panels = self.anchored.add_scratch(shape, self.product.right.dtype, "packed_right")
        side = gcd(gcd(columns.size, self.lanes), gcd(product.depth, plan.chunk))

        def column(batch: Index, k: Expression, c: Expression) -> Expression | None:
            return self._vector(self.right, product.right_index(batch, k, c), side)

        zero = loops.constant(0)
        in_squares = (
            product.transpose_right and side >= 4 and column([zero] * len(own), zero, zero) is not None
        )

        def one(batch: Index, p: Expression) -> Statement:
            group, panel = unravel(p, (plan.groups, plan.group))

            def rows(chunk: Expression) -> Statement:
                begin = plan.panel_offset(group, chunk, panel)

                def at(k: Expression, c: Expression) -> list[Any]:
                    place = begin + k * columns.size + c
                    return [*batch, place]

                def element(k: Expression, c: Expression) -> Statement:
                    index = product.right_index(batch, chunk * plan.chunk + k, columns.base(p) + c)
                    needed, value = self._element(self.right, index, None)
                    return loops.sequence([*needed, tirx.BufferStore(panels, value, at(k, c))])

                def square(c: Expression, k: Expression) -> Statement:
                    def load(i: int) -> Expression:
                        return column(batch, chunk * plan.chunk + k, columns.base(p) + c + i)

                    def store(i: int, vector: Expression) -> Statement:
                        *outer, place = at(k + i, c)
                        return tirx.BufferStore(panels, vector, [*outer, tirx.Ramp(place, 1, side)])

                    return transpose_square(load, store, side, self.product.right.dtype)

                extent = plan.depth_of(chunk)
                if in_squares:
                    return loops.loop(
                        extent // side,
                        lambda k: loops.loop(columns.size // side, lambda c: square(c * side, k * side), "c"),
                        "k",
                    )
                return loops.loop(extent, lambda k: self._columns(lambda c: element(k, c)), "k")

            return loops.loop(plan.chunks, rows, "chunk")

        return self._over(columns.count, one, "panel", own)

    def _columns(self, body: Callable[[Expression], Statement]) -> Statement:
        """`body` at every column of a tile, in vectors."""
        return _strip(self.plan.columns.size, self.plan.lanes, body)

    def _over(
        self,
        extent: int,
        body: Callable[[Index, Expression], Statement],
        name: str,
        batch: tuple[int, ...] | None = None,
    ) -> Statement:
        """`body(batch, i)` for every batch and i below `extent`, shared among threads."""
        outer = self.product.batch if batch is None else batch

        def at(number: Expression) -> Statement:
            *index, i = unravel(number, (*outer, extent))
            return body(index, i)

        return (loops.parallel if self.plan.parallel else loops.loop)(prod(outer) * extent, at, name)

    def _element(self, tensor: Tensor, index: Index, dtype: str | None) -> tuple[list[Statement], Expression]:
        """An element of an operand, as `dtype` if given, after the statements that it needs."""
        elements = self.anchored.elements()
        value = elements.element(tensor, [loops.constant(i) if isinstance(i, int) else i for i in index])
        return elements.statements, value if dtype is None else convert(value, dtype)

    def _vector(self, tensor: Tensor, index: Index, lanes: int) -> Expression | None:
        """Elements of an operand along its last axis, where one load gets them."""
        at = [loops.constant(i) if isinstance(i, int) else i for i in index]
        return vector_load(self.anchored.elements(), tensor, at, lanes)

    # The walk

    def _chunks(
        self, batch: Index, block: Expression, group: Expression, partial: tuple[Buffer | None, Expression]
    ) -> Statement:
        plan = self.plan

        def tile(chunk: Expression, panel: Expression, t: Expression) -> Statement:
            return self._tile(_Place(batch, group, chunk, panel), block, t, partial)

        return loops.loop(
            plan.chunks,
            lambda chunk: loops.loop(
                plan.panels_of(group),
                lambda panel: loops.loop(plan.tiles_of(block), lambda t: tile(chunk, panel, t), "t"),
                "panel",
            ),
            "chunk",
        )

    def _tile(
        self, place: _Place, block: Expression, t: Expression, partial: tuple[Buffer | None, Expression]
    ) -> Statement:
        """One tile over one chunk: sums from zero or from the chunks before, to the output or to the next."""
        plan, accumulator = self.plan, self.product.accumulator
        allocate, sums = loops.local((plan.rows.size, plan.columns.size), accumulator, "sums")
        tile = block * plan.row_block + t
        memory, piece = partial
        zero = tirx.const(0, accumulator)
        begin = self._elements(lambda r, c: tirx.BufferStore(sums, zero, [r, c]))
        end = self._finish(place, tile, sums)
        if memory is not None:
            number = place.panel * plan.row_block + t

            def restore(r: Expression, c: Expression) -> Statement:
                return tirx.BufferStore(sums, tirx.BufferLoad(memory, [piece, number, r, c]), [r, c])

            def keep(r: Expression, c: Expression) -> Statement:
                return tirx.BufferStore(memory, tirx.BufferLoad(sums, [r, c]), [piece, number, r, c])

            begin = tirx.IfThenElse(place.chunk == 0, begin, self._elements(restore))
            end = tirx.IfThenElse(place.chunk == plan.chunks - 1, end, self._elements(keep))
        return loops.sequence([allocate, begin, self._multiply(place, tile, t, sums), end])

    def _elements(self, body: Callable[[Expression, Expression], Statement]) -> Statement:
        """`body(row, column)` over a tile, written out in vectors."""
        return loops.unrolled(self.plan.rows.size, lambda r: self._columns(lambda c: body(r, c)), "r")

    def _finish(self, place: _Place, tile: Expression, sums: Buffer) -> Statement:
        plan = self.plan
        column = plan.columns.base(place.group * plan.group + place.panel)

        def store(r: Expression, c: Expression, source: Buffer) -> Statement:
            index = self.product.index(place.batch, plan.rows.base(tile) + r, column + c)
            return self.anchored.finish(index, tirx.BufferLoad(source, [r, c]))

        if not self.heavy:
            return self._elements(lambda r, c: store(r, c, sums))
        # The sums move to memory once, so that the rows of the epilogue need not be written out.
        shape = (plan.rows.size, plan.columns.size)
        allocate, kept = loops.local(shape, self.product.accumulator, "kept_sums")
        copy = self._elements(lambda r, c: tirx.BufferStore(kept, tirx.BufferLoad(sums, [r, c]), [r, c]))
        write = loops.loop(plan.rows.size, lambda r: self._columns(lambda c: store(r, c, kept)), "r")
        return loops.sequence([allocate, copy, write])

    def _multiply(self, place: _Place, tile: Expression, t: Expression, sums: Buffer) -> Statement:
        plan, product, wide = self.plan, self.product, self.product.accumulator
        panel = place.group * plan.group + place.panel
        start, offset = place.chunk * plan.chunk, plan.panel_offset(place.group, place.chunk, place.panel)

        def left(r: Expression, k: Expression) -> tuple[list[Statement], Expression]:
            if self.row_tiles is not None:
                at = [*place.batch, tile, start + k, r]
                return [], convert(tirx.BufferLoad(self.row_tiles, at), wide)
            return self._element(
                self.left, product.left_index(place.batch, plan.rows.base(tile) + r, start + k), wide
            )

        def right(k: Expression, c: Expression) -> tuple[list[Statement], Expression]:
            if self.panels is not None:
                at = [*product.packed_batch(place.batch), offset + k * plan.columns.size + c]
                return [], convert(tirx.BufferLoad(self.panels, at), wide)
            return self._element(
                self.right, product.right_index(place.batch, start + k, plan.columns.base(panel) + c), wide
            )

        def step(k: Expression) -> Statement:
            def add(r: Expression, c: Expression) -> Statement:
                (needed, a), (more, b) = left(r, k), right(k, c)
                total = tirx.BufferLoad(sums, [r, c]) + a * b
                return loops.sequence([*needed, *more, tirx.BufferStore(sums, total, [r, c])])

            return self._elements(add)

        def steps(i: Expression) -> Statement:
            body = loops.unrolled(plan.unroll, lambda u: step(i * plan.unroll + u), "k")
            return loops.sequence([*self._prefetch(place, offset, t, i), body])

        return loops.loop(plan.depth_of(place.chunk) // plan.unroll, steps, "k")

    def _prefetch(self, place: _Place, offset: Expression, t: Expression, i: Expression) -> list[Statement]:
        """This iteration's share of the panel that comes next in memory."""
        plan = self.plan
        if self.panels is None or not plan.prefetch:
            return []
        line = loops.CACHE_LINE // np.dtype(self.panels.dtype).itemsize
        size, iterations = plan.chunk * plan.columns.size, plan.chunk // plan.unroll
        share = -(-size // (line * iterations * plan.row_block))
        near = plan.row_block == 1
        ahead = min(size, FEW_ROWS_AHEAD // loops.CACHE_LINE * line) if near else size
        first = offset + ahead + (t * iterations + i) * (share * line)
        batch = self.product.packed_batch(place.batch)
        return [loops.prefetch(self.panels, [*batch, first + n * line], near) for n in range(share)]


def _strip(size: int, width: int, body: Callable[[Expression], Statement]) -> Statement:
    """`body` at every index below `size`, in vectors of `width`."""
    return loops.unrolled(
        size // width, lambda v: loops.vectorized(width, lambda lane: body(v * width + lane))
    )


def schedule_product(kernel: Kernel, product: Product, plan: Plan, target: Target) -> Scheduled:
    """The scheduled function of a product with its epilogue."""
    return GemmNest(kernel, product, plan, target).scheduled()
