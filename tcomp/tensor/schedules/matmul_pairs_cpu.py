"""Matrix products of few bits on CPUs that multiply them in groups; see `tcomp.tensor.groups`.

The register tile is `tile_rows` rows by `tile_vectors` vectors of columns. Order `panels`: for each panel of
the right operand and each chunk of the depth, all rows are walked with float32 sums in memory, so that the
chunk of the panel stays in the first-level cache. Order `rows`: each tile goes through the whole depth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod

from tcomp.relay.types import numpy_dtype
from tcomp.target.target import Target
from tcomp.tensor.anchored import PARALLEL_FLOPS
from tcomp.tensor.cpu.grouped_operands import GroupedOperands
from tcomp.tensor.cpu.primitives import Tiles, cut, vector_tile
from tcomp.tensor.cpu.register_tile import FMA_LATENCY, Index, Point, RegisterTile
from tcomp.tensor.cpu.tile_sums import Reduction, passes_nest, tile_nest
from tcomp.tensor.groups import GroupSums, ways_to_sum
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Choice, Config, Ordered, Space
from tcomp.tensor.loops import Buffer, Expression, Statement, prefetch
from tcomp.tensor.product import Product, constant_right, fits
from tcomp.tensor.template import TEMPLATES, Scheduled, Template
from tcomp.tvm_api import tirx

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
                Choice("parallel", (False, True), target.sharers > 1 and kernel.flops >= PARALLEL_FLOPS),
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
        columns = vector_tile(product.columns, self.lanes, int(config["tile_vectors"]))
        self.operands = GroupedOperands(kernel, sums, self.rows, columns, self.lanes, self.threaded)
        steps, vectors = self.operands.steps, int(config["tile_vectors"])
        in_panels = config["order"] == "panels"
        self.stretch = _stretch(product, sums, target, vectors) if in_panels else steps

    def scheduled(self) -> Scheduled:
        product, config = self.product, self.config
        operands = self.operands
        prepare, left = operands.left_groups()
        more, panels = operands.right_panels()
        batch, own = Tiles.of(prod(product.batch), 1), operands.own_matrix
        order = (0, 2, 1) if config["order"] == "panels" or self.rows.count > 1 else (0, 1, 2)
        squares = 1 if self.sums.side > 1 else None
        tile = RegisterTile.of((batch, self.rows, operands.columns), order, self.lanes, squares=squares)

        def update(total: Expression, point: Point, step: Index) -> Expression:
            (k,) = step
            vector = tirx.BufferLoad(panels, [own(point.index[0]), point.tiles[2], k, point.places[2]])
            return self.sums.multiply_add(total, left(point, k), vector)

        wide = product.accumulator
        zero = tirx.const(0, wide)
        unroll = (int(config["unroll"]),)
        ahead = self._prefetch(panels, own) if config["prefetch"] else None
        reduction = Reduction((operands.steps,), unroll, wide, zero, update, self.sums.short, ahead)

        def finish(index: Sequence[Expression], value: Expression) -> Statement:
            flat, row, column = index
            at = product.index(operands.batch_index(flat), row, column)
            return operands.anchored.finish(at, value)

        if config["order"] == "panels":
            nest = passes_nest(tile, reduction, finish, self.threaded, kept=2, steps=self.stretch)
        else:
            nest = tile_nest(tile, reduction, finish, self.threaded)
        return operands.anchored.scheduled([*prepare, *more, nest], tile.disjoint)

    def _prefetch(
        self, panels: Buffer, own: Callable[[Expression], Expression]
    ) -> Callable[[RegisterTile, Point, Index], Sequence[Statement]]:
        """Fetch what follows the present stretch of the panel in memory, a part with each tile of rows."""
        line = CACHE_LINE // numpy_dtype(self.sums.dtype).itemsize
        width = self.operands.panels_shape[-1]
        share = -(-width // (line * self.rows.count))

        def ahead(tile: RegisterTile, first: Point, step: Index) -> Sequence[Statement]:
            (k,) = step
            within = k % self.stretch
            visited = (first.tiles[1] * self.stretch + within) * share
            begin = (k - within + self.stretch) * width
            at = [own(first.index[0]), first.tiles[2], 0]
            return [prefetch(panels, [*at, begin + (visited + i) * line]) for i in range(share)]

        return ahead


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
