"""Matrix products of few bits on CPUs that multiply them in groups; see `tcomp.tensor.groups`.

The register tile is `tile_rows` rows by `tile_vectors` vectors of columns. Order `panels`: for each panel of
the right operand and each chunk of the depth, all rows are walked with float32 sums in memory, so that the
chunk of the panel stays in the first-level cache. Order `rows`: each tile goes through the whole depth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import gcd, prod
from typing import Any

import numpy as np

from tcomp.relay.types import Array, TensorType, numpy_dtype
from tcomp.target.target import Target
from tcomp.tensor.anchored import PARALLEL_FLOPS, Anchored
from tcomp.tensor.gemm import constant_right, fits
from tcomp.tensor.groups import GroupSums, ways_to_sum
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Choice, Config, Ordered, Space
from tcomp.tensor.loops import (
    Body,
    Buffer,
    Expression,
    Statement,
    loop,
    parallel,
    prefetch,
    sequence,
    vector_loop,
)
from tcomp.tensor.primitives import Tiles, cut, transpose_square, vector_tile
from tcomp.tensor.product import Product
from tcomp.tensor.register_tile import (
    FMA_LATENCY,
    Index,
    Point,
    Reduction,
    RegisterTile,
    passes_nest,
    tile_nest,
)
from tcomp.tensor.template import TEMPLATES, Packing, Scheduled, Template
from tcomp.tvm_api import Tensor, tirx

ReadGroup = Callable[[Point, Expression], Expression]
ReadElement = Callable[[Expression], "tuple[list[Statement], Expression]"]

MAX_TILE_ROWS = 30
TILE_VECTORS = (1, 2, 3, 4, 6)
CACHE_LINE = 64
WIDENING_CYCLES = 4.0
"""Cycles by which one vector of short sums becomes float32 sums."""
PARTIAL_BYTES = 512 * 1024
"""Most bytes of partial sums of one panel: they lie in the second-level cache."""


class MatmulPairsCpu(Template):
    """Steps: pack operands whose groups are not adjacent; one nest over register tiles."""

    name = "matmul_pairs_cpu"
    priority = 1

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        if not fits(kernel) or kernel.anchor is None:
            return False
        return bool(ways_to_sum(target, _product(kernel).left.dtype))

    def space(self, kernel: Kernel, target: Target) -> Space:
        product, sums = _product(kernel), _sums(kernel, target)
        tiles = tuple(_tiles(product, sums, target))
        rows, vectors = min(tiles, key=lambda tile: _cycles(product, sums, target, *tile))
        steps = _steps(product, sums)
        unrolls = tuple(u for u in (1, 2) if steps % u == 0)

        def reason(config: Config) -> str | None:
            tile = int(config["tile_rows"]), int(config["tile_vectors"])
            if tile not in tiles:
                return (
                    f"register tile {tile[0]}x{tile[1]} needs more than {target.vector_registers} registers"
                )
            if (
                config["order"] == "panels"
                and _partial_bytes(product, *tile, target.lanes(sums.dtype)) > PARTIAL_BYTES
            ):
                return f"partial sums of a panel need more than {PARTIAL_BYTES} bytes"
            return None

        many = _stretch(product, sums, target, vectors) < steps
        fitting = _partial_bytes(product, rows, vectors, target.lanes(sums.dtype)) <= PARTIAL_BYTES
        return Space(
            (
                Ordered("tile_rows", tuple(sorted({r for r, _ in tiles})), rows),
                Ordered("tile_vectors", tuple(sorted({v for _, v in tiles})), vectors),
                Choice("order", ("panels", "rows"), "panels" if many and fitting else "rows"),
                Ordered("unroll", unrolls, unrolls[-1]),
                Choice("prefetch", (False, True), constant_right(kernel) is not None),
                Choice("parallel", (False, True), target.cores > 1 and kernel.flops >= PARALLEL_FLOPS),
            ),
            reason,
        )

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        return _Nest(kernel, target, config).scheduled()


class _Nest:
    """The loops of one kernel. Batch axes are one axis here."""

    def __init__(self, kernel: Kernel, target: Target, config: Config) -> None:
        self.product = product = _product(kernel)
        self.config = config
        self.sums = sums = _sums(kernel, target)
        self.lanes = target.lanes(sums.dtype)
        self.threaded = bool(config["parallel"])
        self.rows = Tiles.of(product.rows, int(config["tile_rows"]))
        self.columns = vector_tile(product.columns, self.lanes, int(config["tile_vectors"]))
        self.steps = _steps(product, sums)
        in_panels = config["order"] == "panels"
        vectors = int(config["tile_vectors"])
        self.stretch = _stretch(product, sums, target, vectors) if in_panels else self.steps
        constant = constant_right(kernel)
        packing = {} if constant is None else {constant: self._packing()}
        self.anchored = Anchored(kernel, packing)
        self.left, self.right = self.anchored.operands
        self.panels = self.anchored.buffer_of(self.right) if packing else None

    def scheduled(self) -> Scheduled:
        product, config = self.product, self.config
        prepare, left = self._left_groups()
        more, panels = self._right_panels()
        batch, own = Tiles.of(prod(product.batch), 1), self._own_batch
        order = (0, 2, 1) if config["order"] == "panels" or self.rows.count > 1 else (0, 1, 2)
        squares = 1 if self.sums.side > 1 else None
        tile = RegisterTile.of((batch, self.rows, self.columns), order, self.lanes, squares=squares)

        def update(total: Expression, point: Point, step: Index) -> Expression:
            (k,) = step
            vector = tirx.BufferLoad(panels, [own(point.index[0]), point.tiles[2], k, point.places[2]])
            return self.sums.multiply_add(total, left(point, k), vector)

        wide = product.accumulator
        zero = tirx.const(0, wide)
        unroll = (int(config["unroll"]),)
        ahead = self._prefetch(panels, own) if config["prefetch"] else None
        reduction = Reduction((self.steps,), unroll, wide, zero, update, self.sums.short, ahead)

        def finish(index: Sequence[Expression], value: Expression) -> Statement:
            flat, row, column = index
            return self.anchored.finish(product.index(self._batch(flat), row, column), value)

        if config["order"] == "panels":
            nest = passes_nest(tile, reduction, finish, self.threaded, kept=2, steps=self.stretch)
        else:
            nest = tile_nest(tile, reduction, finish, self.threaded)
        return self.anchored.scheduled([*prepare, *more, nest], tile.disjoint)

    def _prefetch(
        self, panels: Buffer, own: Callable[[Expression], Expression]
    ) -> Callable[[RegisterTile, Point, Index], Sequence[Statement]]:
        """Fetch what follows the present stretch of the panel in memory, a part with each tile of rows."""
        line = CACHE_LINE // numpy_dtype(self.sums.dtype).itemsize
        width = self._panels_shape[-1]
        share = -(-width // (line * self.rows.count))

        def ahead(tile: RegisterTile, first: Point, step: Index) -> Sequence[Statement]:
            (k,) = step
            within = k % self.stretch
            visited = (first.tiles[1] * self.stretch + within) * share
            begin = (k - within + self.stretch) * width
            at = [own(first.index[0]), first.tiles[2], 0]
            return [prefetch(panels, [*at, begin + (visited + i) * line]) for i in range(share)]

        return ahead

    def _batch(self, flat: Expression) -> list[Expression]:
        index: list[Expression] = []
        for extent in reversed(self.product.batch):
            index.insert(0, flat % extent if extent > 1 else 0)
            flat = flat // extent if extent > 1 else flat
        return index

    def _own_batch(self, flat: Expression) -> Expression:
        """The right operand's matrix number for the output's matrix `flat`."""
        shape = self.product.right.static_shape[:-2] if self.product.batch else ()
        batch = self._batch(flat)
        number: Expression = 0
        for extent, i in zip(shape, batch[len(batch) - len(shape) :], strict=True):
            number = number * extent + (i if extent > 1 else 0)
        return number

    def _matrices(self) -> int:
        return prod(self.product.right.static_shape[:-2]) if self.product.batch else 1

    @property
    def _panels_shape(self) -> tuple[int, int, int, int]:
        return (self._matrices(), self.columns.count, self.steps, self.columns.size * self.sums.side)

    def _packing(self) -> Packing:
        """`[*batch, depth, columns] -> [matrix, column tile, group, column]`, the last in words."""
        product, columns, side = self.product, self.columns, self.sums.side
        first = np.array([int(columns.base(t)) * side for t in range(columns.count)])
        at = first[:, None] + np.arange(columns.size * side)

        def pack(original: Array) -> Array:
            matrix = original.reshape(-1, 1) if product.right.rank == 1 else original
            matrix = np.swapaxes(matrix, -1, -2) if product.transpose_right else matrix
            groups = self.sums.pack(matrix.reshape(-1, product.depth, product.columns))
            return np.ascontiguousarray(np.moveaxis(groups[..., at], -3, -2))

        return Packing(TensorType(self._panels_shape, self.sums.dtype), pack)

    def _left_groups(self) -> tuple[list[Statement], ReadGroup]:
        """Statements, and the left operand's groups as a function of a sum and a step."""
        product = self.product
        own = self.anchored.buffer_of(self.left)
        if self.sums.side > 1:
            return self._left_squares()
        if own is not None and product.depth % self.sums.size == 0 and not product.transpose_left:
            declaration, groups = self.sums.view(own, "left_groups")

            def read(point: Point, k: Expression) -> Expression:
                flat, row, _ = point.index
                *outer, _ = product.left_index(self._batch(flat), row, 0)
                return tirx.BufferLoad(groups, [*outer, k])

            return [declaration], read
        shape = (prod(product.batch), product.rows, self.steps)
        packed = self.anchored.add_scratch(shape, self.sums.dtype, "left_groups")

        def store(flat: Expression, row: Expression, k: Expression) -> Statement:
            def element(depth: Expression) -> tuple[list[Statement], Expression]:
                return self._element(self.left, product.left_index(self._batch(flat), row, depth))

            return self._store_word(packed, [flat, row, k], k, element)

        nest = self._shared(
            prod(product.batch) * product.rows,
            lambda i: sequence(
                vector_loop(
                    self.steps, self.lanes, 1, lambda k: store(i // product.rows, i % product.rows, k)
                )
            ),
        )

        def read_packed(point: Point, k: Expression) -> Expression:
            return tirx.BufferLoad(packed, [*point.index[:2], k])

        return [nest], read_packed

    def _left_squares(self) -> tuple[list[Statement], ReadGroup]:
        """As `_left_groups`, `side` rows' groups behind each other: `[batch, row tile, rows, step, word]`."""
        product, rows, side = self.product, self.rows, self.sums.side
        shape = (prod(product.batch), rows.count, rows.size // side, self.steps, side * side)
        packed = self.anchored.add_scratch(shape, self.sums.dtype, "left_groups")
        own = self.anchored.buffer_of(self.left)
        in_words = own is not None and product.depth % self.sums.size == 0 and not product.transpose_left
        declaration, words = self.sums.view(own, "left_words") if in_words else (None, None)

        def store(index: Sequence[Expression], row: Expression, k: Expression, place: int) -> Statement:
            """The group of a row at step `k`, the `place`-th of its square."""
            if in_words:
                *outer, _ = product.left_index(self._batch(index[0]), row, 0)
                group = tirx.BufferLoad(words, [*outer, tirx.Ramp(k * side, 1, side)])
                return tirx.BufferStore(packed, group, [*index, k, tirx.Ramp(place * side, 1, side)])

            def element(depth: Expression) -> tuple[list[Statement], Expression]:
                return self._element(self.left, product.left_index(self._batch(index[0]), row, depth))

            at = [*index, k]
            return sequence(
                [
                    self._store_word(packed, [*at, place * side + word], k * side + word, element)
                    for word in range(side)
                ]
            )

        def square(number: Expression) -> Statement:
            pairs = rows.size // side
            flat, tile, pair = number // (rows.count * pairs), number // pairs % rows.count, number % pairs
            first = rows.base(tile) + pair * side
            return loop(
                self.steps,
                lambda k: sequence([store([flat, tile, pair], first + n, k, n) for n in range(side)]),
            )

        def read(point: Point, k: Expression) -> Expression:
            at = [point.index[0], point.tiles[1], point.places[1] // side, k, point.places[2] % side**2]
            return tirx.BufferLoad(packed, at)

        nest = self._shared(prod(shape[:3]), square)
        return [nest] if declaration is None else [declaration, nest], read

    def _right_panels(self) -> tuple[list[Statement], Buffer]:
        """Statements, and the right operand in panels of groups."""
        if self.panels is not None:
            return [], self.panels
        product, columns = self.product, self.columns
        panels = self.anchored.add_scratch(self._panels_shape, self.sums.dtype, "right_groups")
        source = self.anchored.buffer_of(self.right)
        side = gcd(gcd(columns.size, self.lanes), self.steps)
        in_squares = source is not None and product.transpose_right and side >= 4
        in_squares = in_squares and product.depth % self.sums.size == 0
        declarations: list[Statement] = []
        groups = None
        if in_squares:
            declaration, groups = self.sums.view(source, "right_source")
            declarations.append(declaration)

        def matrix(number: Expression) -> list[Expression]:
            index: list[Expression] = []
            for extent in reversed(product.right.static_shape[:-2]):
                index.insert(0, number % extent if extent > 1 else 0)
                number = number // extent if extent > 1 else number
            return index

        def square(number: Expression, p: Expression, c: Expression, k: Expression) -> Statement:
            def load(i: int) -> Expression:
                return tirx.BufferLoad(
                    groups, [*matrix(number), columns.base(p) + c + i, tirx.Ramp(k, 1, side)]
                )

            def store(i: int, vector: Expression) -> Statement:
                return tirx.BufferStore(panels, vector, [number, p, k + i, tirx.Ramp(c, 1, side)])

            return transpose_square(load, store, side, self.sums.dtype)

        def element(number: Expression, p: Expression, k: Expression, c: Expression) -> Statement:
            def read(depth: Expression) -> tuple[list[Statement], Expression]:
                column = columns.base(p) + c
                if product.right.rank == 1:
                    return self._element(self.right, [depth])
                place = (column, depth) if product.transpose_right else (depth, column)
                return self._element(self.right, [*matrix(number), *place])

            return self._store_word(panels, [number, p, k, c], k, read)

        def panel(i: Expression) -> Statement:
            number, p = i // columns.count, i % columns.count
            if in_squares:
                return loop(
                    self.steps // side,
                    lambda k: loop(columns.size // side, lambda c: square(number, p, c * side, k * side)),
                )
            return loop(
                self.steps,
                lambda k: sequence(
                    vector_loop(columns.size, self.lanes, 4, lambda c: element(number, p, k, c))
                ),
            )

        return [*declarations, self._shared(self._matrices() * columns.count, panel)], panels

    def _shared(self, extent: int, body: Body) -> Statement:
        return (parallel if self.threaded else loop)(extent, body)

    def _element(self, tensor: Tensor, index: Sequence[Any]) -> tuple[list[Statement], Expression]:
        elements = self.anchored.elements()
        at = [tirx.const(i, "int32") if isinstance(i, int) else i for i in index]
        return elements.statements, elements.element(tensor, at)

    def _store_word(
        self, target: Buffer, index: Sequence[Expression], k: Expression, element: ReadElement
    ) -> Statement:
        """Store the elements of word `k` of groups; beyond the depth lie zeros."""
        size, depth = self.sums.in_word, self.product.depth
        whole = depth % self.sums.size == 0
        needed: list[Statement] = []
        elements: list[Expression] = []
        for i in range(size):
            at = k * size + i
            statements, value = element(at if whole else tirx.min(at, depth - 1))
            needed += statements
            elements.append(value)
        group = self.sums.joined(elements)
        if not whole:
            group = self.sums.zero_beyond(group, depth - k * size)
        return sequence([*needed, tirx.BufferStore(target, group, list(index))])


def _product(kernel: Kernel) -> Product:
    assert kernel.anchor is not None
    return Product.of(kernel.anchor)


def _sums(kernel: Kernel, target: Target) -> GroupSums:
    """In squares where whole ones fit, and the right operand is packed at compile time."""
    product = _product(kernel)
    *squares, others = ways_to_sum(target, product.left.dtype)
    fitting = (s for s in squares if product.rows >= s.side and product.columns % s.side**2 == 0)
    return next(fitting, others) if constant_right(kernel) is not None else others


def _steps(product: Product, sums: GroupSums) -> int:
    return -(-product.depth // sums.size)


def _tiles(product: Product, sums: GroupSums, target: Target) -> Iterator[tuple[int, int]]:
    """Register tiles (rows, vectors) whose sums fit beside a step of the panel and of a row or square."""
    lanes = target.lanes(sums.dtype)
    for vectors in TILE_VECTORS:
        if vectors == 1 or vectors * lanes <= product.columns:
            for rows in range(sums.side, min(product.rows, MAX_TILE_ROWS) + 1, sums.side):
                if rows * vectors + vectors * sums.side + 1 <= target.vector_registers:
                    yield rows, vectors


def _cycles(product: Product, sums: GroupSums, target: Target, rows: int, vectors: int) -> float:
    """Estimated cycles of the whole product by the tightest of FMA ports, FMA latency and loads."""
    lanes, steps = target.lanes(sums.dtype), _steps(product, sums)
    tiles = -(-product.rows // rows) * -(-product.columns // (vectors * lanes))
    multiply = max(rows * vectors / target.fma_ports, FMA_LATENCY)
    panel = vectors * sums.side
    load = max((rows / sums.side + panel) / 2, 2 * panel / sums.side)
    step = max(multiply, load) + 0.05 * load
    widenings = 0 if sums.short is None else cut((steps,), sums.short.most_steps)[0][0]
    return tiles * (steps * step + rows * vectors * (widenings * WIDENING_CYCLES + 2) + 20)


def _stretch(product: Product, sums: GroupSums, target: Target, vectors: int) -> int:
    """Steps that a tile goes through at a time in order `panels`: what short sums take, or else so many that
    the panel's part fills half of the first-level cache."""
    width = vectors * sums.side * target.vector_bits // 8
    most = target.cache_bytes[0] // (2 * width) if sums.short is None else sums.short.most_steps
    return cut((_steps(product, sums),), most)[1][0]


def _partial_bytes(product: Product, rows: int, vectors: int, lanes: int) -> int:
    tiles = Tiles.of(product.rows, rows)
    return tiles.count * tiles.size * vectors * lanes * 4


TEMPLATES.register(MatmulPairsCpu.name, MatmulPairsCpu())
