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

Where the output has fewer tiles than there are threads, `parts` of the depth are summed up apart, each over
its own chunks, and their sums added in order: bits do not depend on who computed them. Where a tile has too
few sums to hide the latency of an addition, each is kept as several `partial_sums`.

The right operand lies packed in the very order in which this walk reads it, so that the memory behind it
is one stream, which every tile prefetches its share of. Constants are packed at compile time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import gcd, prod

import numpy as np

from tcomp.relay.op import OPS
from tcomp.target.target import Target
from tcomp.tensor import loops
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.cpu.gemm_operands import GemmOperands, Index, strip
from tcomp.tensor.cpu.gemm_plan import Plan, pack_right
from tcomp.tensor.cpu.lane_factors import MatrixFactors, packed_rows, rows_apart, streamed_rows
from tcomp.tensor.cpu.streams import LANES, has_streams, steps_together
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.loops import Buffer, Expression, Statement
from tcomp.tensor.math import convert
from tcomp.tensor.product import Product, constant_right, unravel
from tcomp.tensor.template import Scheduled
from tcomp.tvm_api import tirx

HEAVY_EPILOGUE_FLOPS = 12
"""From this many operations an element, the epilogue runs in a loop over the tile's rows, not unrolled."""
FEW_ROWS_AHEAD = 8 * 1024
"""Bytes by which a prefetch runs ahead where each panel is read once only."""


def epilogue_flops(kernel: Kernel) -> int:
    """Operations an output element after the product."""
    return sum(OPS[n.op].flops_per_element for n in kernel.body.nodes if n is not kernel.anchor)


@dataclass(frozen=True)
class _Piece:
    """Work that one thread does as a whole: a block of row tiles by a group of panels, over a part of the
    depth. `slot` is where its sums are kept between chunks."""

    batch: Index
    block: Expression
    group: Expression
    part: Expression
    slot: Expression


@dataclass(frozen=True)
class _Place:
    """Where the walk of a piece stands: chunk of the depth, panel of the group, row tile of the block."""

    piece: _Piece
    chunk: Expression
    panel: Expression
    tile: Expression


class GemmNest:
    """The loops of one kernel."""

    def __init__(self, kernel: Kernel, product: Product, plan: Plan, target: Target) -> None:
        self.product, self.plan = product, plan
        self.target, self.lanes = target, target.lanes(product.accumulator)
        self.heavy = epilogue_flops(kernel) >= HEAVY_EPILOGUE_FLOPS
        constant = constant_right(kernel)
        packing = {} if constant is None else {constant: pack_right(product, plan)}
        self.anchored = Anchored(kernel, packing)
        self.operands = GemmOperands(self.anchored, product, plan, self.lanes, bool(packing))
        self.kept: Buffer | None = None

    def scheduled(self) -> Scheduled:
        """1. Pack what is not packed yet. 2. Blocks, groups, chunks, panels, tiles."""
        statements = self.operands.packed()
        plan, product = self.plan, self.product
        outputs = (*product.batch, plan.row_blocks, plan.groups)
        pieces = prod(outputs) * plan.parts
        if plan.chunks > 1:
            slots = pieces if plan.parallel or plan.parts > 1 else 1
            shape = (slots, plan.group * plan.row_block, plan.rows.size, plan.columns.size)
            self.kept = self.anchored.add_scratch(shape, product.accumulator, "partial_sums")

        def piece(number: Expression) -> Statement:
            *batch, block, group, part = unravel(number, (*outputs, plan.parts))
            slot = number if plan.parallel or plan.parts > 1 else 0
            return self._chunks(_Piece(batch, block, group, part, slot))

        make = loops.parallel if plan.parallel else loops.loop
        statements.append(make(pieces, piece, "piece"))
        if plan.parts > 1:
            statements.append(loops.loop(prod(outputs), lambda i: self._add_parts(i, outputs), "output"))
        return self.anchored.scheduled(statements, self.plan.rows.exact and self.plan.columns.exact)

    def _columns(self, body: Callable[[Expression], Statement]) -> Statement:
        """`body` at every column of a tile, in vectors."""
        return strip(self.plan.columns.size, self.plan.lanes, body)

    def _chunks(self, piece: _Piece) -> Statement:
        plan = self.plan
        first = piece.part * plan.chunks_of_part

        def tile(chunk: Expression, panel: Expression, t: Expression) -> Statement:
            return self._tile(_Place(piece, first + chunk, panel, t), chunk)

        return loops.loop(
            plan.chunks_in(piece.part),
            lambda chunk: self._tiles(piece, lambda panel, t: tile(chunk, panel, t)),
            "chunk",
        )

    def _tiles(self, piece: _Piece, body: Callable[[Expression, Expression], Statement]) -> Statement:
        """`body(panel, row tile)` for all tiles of a piece."""
        plan = self.plan
        return loops.loop(
            plan.panels_of(piece.group),
            lambda panel: loops.loop(plan.tiles_of(piece.block), lambda t: body(panel, t), "t"),
            "panel",
        )

    def _tile(self, place: _Place, since: Expression) -> Statement:
        """One tile over one chunk: sums from zero or from the chunks before, to the output or to the next.

        `since` are the chunks that the piece has walked before.
        """
        plan, accumulator = self.plan, self.product.accumulator
        rows = plan.rows.size
        allocate, sums = loops.local((plan.partial_sums * rows, plan.columns.size), accumulator, "sums")
        zero = tirx.const(0, accumulator)

        def clear(r: Expression, c: Expression) -> Statement:
            return tirx.BufferStore(sums, zero, [r, c])

        def restore(r: Expression, c: Expression) -> Statement:
            return tirx.BufferStore(sums, self._kept(place, r, c), [r, c])

        def keep(r: Expression, c: Expression) -> Statement:
            at = [place.piece.slot, self._number(place), r, c]
            return tirx.BufferStore(self.kept, tirx.BufferLoad(sums, [r, c]), at)

        begin, end = self._elements(clear), self._finish(place, sums)
        others = [
            self._elements(lambda r, c, s=s: clear(r + s * rows, c)) for s in range(1, plan.partial_sums)
        ]
        if plan.chunks_of_part > 1:
            begin = tirx.IfThenElse(since == 0, begin, self._elements(restore))
        if plan.parts > 1:
            end = self._elements(keep)
        elif plan.chunks > 1:
            end = tirx.IfThenElse(place.chunk == plan.chunks - 1, end, self._elements(keep))
        return loops.sequence(
            [allocate, begin, *others, self._multiply(place, sums), *self._gather(sums), end]
        )

    def _gather(self, sums: Buffer) -> list[Statement]:
        """Add the partial sums of each element by halves, into the first."""
        rows, count = self.plan.rows.size, self.plan.partial_sums
        statements: list[Statement] = []
        while count > 1:
            count //= 2

            def add(r: Expression, c: Expression, half: int = count) -> Statement:
                first, second = (tirx.BufferLoad(sums, [r + s * rows, c]) for s in (0, half))
                return tirx.BufferStore(sums, first + second, [r, c])

            statements.append(
                loops.unrolled(count * rows, lambda r, add=add: self._columns(lambda c: add(r, c)))
            )
        return statements

    def _number(self, place: _Place) -> Expression:
        return place.panel * self.plan.row_block + place.tile

    def _kept(self, place: _Place, r: Expression, c: Expression) -> Expression:
        return tirx.BufferLoad(self.kept, [place.piece.slot, self._number(place), r, c])

    def _add_parts(self, output: Expression, outputs: Sequence[int]) -> Statement:
        """The sums of all parts, in order, of the tiles of one block of rows and group of panels."""
        plan = self.plan
        *batch, block, group = unravel(output, outputs)

        def tile(panel: Expression, t: Expression) -> Statement:
            shape = (plan.rows.size, plan.columns.size)
            allocate, sums = loops.local(shape, self.product.accumulator, "sums")
            places = [
                _Place(_Piece(batch, block, group, p, output * plan.parts + p), 0, panel, t)
                for p in range(plan.parts)
            ]

            def total(r: Expression, c: Expression) -> Statement:
                first, *others = (self._kept(place, r, c) for place in places)
                return tirx.BufferStore(sums, sum(others, first), [r, c])

            return loops.sequence([allocate, self._elements(total), self._finish(places[0], sums)])

        return self._tiles(_Piece(batch, block, group, 0, 0), tile)

    def _elements(self, body: Callable[[Expression, Expression], Statement]) -> Statement:
        """`body(row, column)` over a tile, written out in vectors."""
        return loops.unrolled(self.plan.rows.size, lambda r: self._columns(lambda c: body(r, c)), "r")

    def _finish(self, place: _Place, sums: Buffer) -> Statement:
        plan, piece = self.plan, place.piece
        column = plan.columns.base(piece.group * plan.group + place.panel)
        row = plan.rows.base(piece.block * plan.row_block + place.tile)

        def store(r: Expression, c: Expression, source: Buffer) -> Statement:
            index = self.product.index(piece.batch, row + r, column + c)
            return self.anchored.finish(index, tirx.BufferLoad(source, [r, c]))

        if not self.heavy:
            return self._elements(lambda r, c: store(r, c, sums))
        # The sums move to memory once, so that the rows of the epilogue need not be written out. A row more
        # than they have: TVM gives buffers of one size one place, and all sums would be stored at every step.
        shape = (plan.rows.size + 1, plan.columns.size)
        allocate, kept = loops.local(shape, self.product.accumulator, "kept_sums")
        copy = self._elements(lambda r, c: tirx.BufferStore(kept, tirx.BufferLoad(sums, [r, c]), [r, c]))
        write = loops.loop(plan.rows.size, lambda r: self._columns(lambda c: store(r, c, kept)), "r")
        return loops.sequence([allocate, copy, write])

    def _multiply(self, place: _Place, sums: Buffer) -> Statement:
        plan, product, wide = self.plan, self.product, self.product.accumulator
        piece = place.piece
        panel, tile = piece.group * plan.group + place.panel, piece.block * plan.row_block + place.tile
        start, offset = place.chunk * plan.chunk, plan.panel_offset(piece.group, place.chunk, place.panel)

        def left(r: Expression, k: Expression) -> tuple[list[Statement], Expression]:
            if self.operands.row_tiles is not None:
                at = [*piece.batch, tile, start + k, r]
                return [], convert(tirx.BufferLoad(self.operands.row_tiles, at), wide)
            return self.operands.element(
                self.operands.left, product.left_index(piece.batch, plan.rows.base(tile) + r, start + k), wide
            )

        panels = self._streamed_panels(place, offset, sums)
        factors = self._factors(piece.batch, tile, start, sums, 0 if panels is None else panels.steps)

        def right(k: Expression, c: Expression, place: int) -> tuple[list[Statement], Expression]:
            if panels is not None:
                return [], panels.at(c, place % panels.steps)
            if self.operands.panels is not None:
                at = [*product.packed_batch(piece.batch), offset + k * plan.columns.size + c]
                return [], convert(tirx.BufferLoad(self.operands.panels, at), wide)
            return self.operands.element(
                self.operands.right,
                product.right_index(piece.batch, start + k, plan.columns.base(panel) + c),
                wide,
            )

        def step(k: Expression, first: Expression, place: int) -> Statement:
            def add(r: Expression, c: Expression) -> Statement:
                (needed, a), (more, b) = (
                    left(r, k) if factors is None else ([], factors.at(r, place % factors.steps)),
                    right(k, c, place),
                )
                total = tirx.BufferLoad(sums, [first + r, c]) + a * b
                return loops.sequence([*needed, *more, tirx.BufferStore(sums, total, [first + r, c])])

            return self._elements(add)

        loaded = [operand for operand in (factors, panels) if operand is not None]
        together = max((operand.steps for operand in loaded), default=1)

        def steps(i: Expression) -> Statement:
            def some(group: Expression) -> Statement:
                k = plan.step_at(place.chunk, i, group * together)
                parts: list[Statement] = []
                for u in range(together):
                    for operand in loaded:
                        parts += operand.load(start + k + u) if u % operand.steps == 0 else []
                    first = (group * together + u) % plan.partial_sums * plan.rows.size
                    parts.append(step(k + u, first, u))
                return loops.sequence(parts)

            body = loops.unrolled(plan.unroll // together, some, "k")
            return loops.sequence([*self._prefetch(place, offset, i), body])

        nest = loops.loop(plan.depth_of(place.chunk) // plan.unroll, steps, "k")
        for operand in loaded:
            nest = operand.reading(nest)
        return nest

    def _streamed_panels(self, place: _Place, offset: Expression, sums: Buffer) -> MatrixFactors | None:
        """How rows of a panel are loaded where they are a stream; None where each vector is by itself."""
        plan, product = self.plan, self.product
        width = plan.columns.size
        streamed = has_streams(self.target, product.accumulator) and product.right.dtype == "float32"
        if self.operands.panels is None or not streamed or width % LANES:
            return None
        free = self.target.vector_registers - (plan.rows.size * plan.partial_sums * width + width) // LANES
        steps = steps_together(width // LANES, plan.unroll, free)
        first = [*product.packed_batch(place.piece.batch), offset]
        return streamed_rows(self.operands.panels, first, width, steps, sums)

    def _factors(
        self, batch: Index, tile: Expression, start: Expression, sums: Buffer, panel_steps: int
    ) -> MatrixFactors | None:
        """How factors are loaded where products take lanes of registers; None where each is broadcast.

        Where panels are a stream, `panel_steps` of theirs are loaded together.
        """
        product, plan = self.product, self.plan
        rows, dtype = plan.rows.size, product.accumulator
        if not self.target.by_lane or product.left.dtype != dtype:
            return None
        vectors = plan.columns.size // plan.lanes
        held = rows * plan.partial_sums * vectors + max(1, panel_steps) * vectors
        if self.operands.row_tiles is not None:
            if panel_steps and rows % LANES == 0:
                free = self.target.vector_registers - held
                steps = steps_together(rows // LANES, plan.unroll, free)
                return streamed_rows(self.operands.row_tiles, [*batch, tile, start, 0], rows, steps, sums)
            return packed_rows(
                self.operands.row_tiles, [*batch, tile], rows, self.target.factor_lanes(dtype), dtype
            )
        steps, first = gcd(plan.unroll, self.target.factor_lanes(dtype)), plan.rows.base(tile)

        def vector(r: Expression, k: Expression) -> Expression | None:
            return self.operands.vector(self.operands.left, product.left_index(batch, first + r, k), steps)

        zero = loops.constant(0)
        crowded = rows * vectors + vectors + rows > self.target.vector_registers
        unfit = steps == 1 or crowded or rows > self.target.factor_registers or product.transpose_left
        if unfit or vector(zero, zero) is None:
            return None
        return rows_apart(vector, rows, steps, dtype)

    def _prefetch(self, place: _Place, offset: Expression, i: Expression) -> list[Statement]:
        """This iteration's share of the panel that comes next in memory."""
        plan = self.plan
        if self.operands.panels is None or not plan.prefetch:
            return []
        line = loops.CACHE_LINE // np.dtype(self.operands.panels.dtype).itemsize
        size, iterations = plan.chunk * plan.columns.size, plan.chunk // plan.unroll
        share = -(-size // (line * iterations * plan.row_block))
        near = plan.row_block == 1
        ahead = min(size, FEW_ROWS_AHEAD // loops.CACHE_LINE * line) if near else size
        first = offset + ahead + (place.tile * iterations + i) * (share * line)
        batch = self.product.packed_batch(place.piece.batch)
        return [loops.prefetch(self.operands.panels, [*batch, first + n * line], near) for n in range(share)]


def schedule_product(kernel: Kernel, product: Product, plan: Plan, target: Target) -> Scheduled:
    """The scheduled function of a product with its epilogue."""
    return GemmNest(kernel, product, plan, target).scheduled()
