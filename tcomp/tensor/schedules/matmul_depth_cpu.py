"""Products of few columns on CPUs: the lanes of a vector are neighbours in the depth.

Where a product has about as many columns as a vector has lanes, or fewer, a tile of rows by one vector of
columns broadcasts an element for every multiplication, and leaves lanes idle that have no column. Here a
tile is `tile_rows` rows by `tile_columns` columns, each sum is a vector, and a step of the depth has as many
elements as that: it loads one vector of each row and of each column, and multiplies all pairs. The lanes of
a sum are added at the end.

    for each block of row tiles (shared among threads):
      for each chunk of the depth:
        for each row tile of the block:   its rows of the left operand, in the first-level cache
          for each panel:                 all of them stay in the first-level cache
            the sums of one tile, in memory between chunks
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

import numpy as np

from tcomp.relay.types import Array, TensorType
from tcomp.target.target import Target
from tcomp.tensor.anchored import PARALLEL_FLOPS, Anchored
from tcomp.tensor.cpu.primitives import Tiles
from tcomp.tensor.cpu.register_tile import FMA_LATENCY
from tcomp.tensor.epilogue import placeholder_index
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Choice, Config, Ordered, Space
from tcomp.tensor.loops import (
    Buffer,
    Expression,
    Statement,
    local,
    loop,
    parallel,
    sequence,
    unrolled,
    vectorized,
)
from tcomp.tensor.product import Product, constant_right, fits
from tcomp.tensor.schedules.matmul_cpu import BLOCKS, MatmulCpu
from tcomp.tensor.template import (
    TEMPLATES,
    Packed,
    PackedBy,
    Packing,
    Scheduled,
    Template,
)
from tcomp.tvm_api import te, tirx

MOST_TILE_ROWS = 8
MOST_TILE_COLUMNS = 8
CHUNKS = (0, 128, 256, 512, 1024, 2048)
UNROLLS = (1, 2, 4)
WIDEST_VECTOR = 16
"""Lanes: a depth that they divide suits all targets that may share a library, and so packed constants."""
MOST_COLUMNS = 2 * WIDEST_VECTOR - 1
"""With more, tiles of several vectors of columns are as fast."""
SHORTEST_DEPTH = 256
"""From which the lanes of sums are worth adding."""
ADDING_LANES = 10
"""Cycles to add the lanes of one sum."""


@dataclass(frozen=True)
class DepthPlan:
    """What a config means for one product. Chunks and the depth are counted in `unit` elements."""

    rows: Tiles
    columns: Tiles
    lanes: int
    unroll: int
    units: int
    chunk: int
    row_block: int
    """Row tiles of a block."""
    parallel: bool

    @staticmethod
    def of(product: Product, target: Target, config: Config) -> DepthPlan:
        lanes, unroll = target.lanes(product.accumulator), int(config["unroll"])
        rows = Tiles.of(product.rows, int(config["tile_rows"]))
        units = product.depth // (lanes * unroll)
        chunk = max(1, int(config["chunk"]) // (lanes * unroll)) if config["chunk"] else units
        return DepthPlan(
            rows,
            Tiles.of(product.columns, int(config["tile_columns"])),
            lanes,
            unroll,
            units,
            min(chunk, units),
            min(int(config["row_block"]) or rows.count, rows.count),
            bool(config["parallel"]),
        )

    @property
    def unit(self) -> int:
        return self.lanes * self.unroll

    @property
    def chunks(self) -> int:
        return -(-self.units // self.chunk)

    @property
    def blocks(self) -> int:
        return -(-self.rows.count // self.row_block)

    def units_of(self, chunk: Expression) -> Expression:
        """How many units a chunk has: the last may have fewer."""
        return _rest(self.units, self.chunk, chunk)

    def tiles_of(self, block: Expression) -> Expression:
        """How many row tiles a block has."""
        return _rest(self.rows.count, self.row_block, block)

    def packing(self, product: Product) -> Packing:
        """`[depth, columns] -> [panel, step, column, lane]`."""
        steps, columns = self.units * self.unroll, self.columns
        at = np.array([columns.base(p) for p in range(columns.count)])[:, None] + np.arange(columns.size)

        def pack(original: Array) -> Array:
            matrix = original.reshape(-1, 1) if product.right.rank == 1 else original
            matrix = np.swapaxes(matrix, -1, -2) if product.transpose_right else matrix
            in_steps = matrix.reshape(steps, self.lanes, product.columns)
            return np.ascontiguousarray(np.transpose(in_steps[:, :, at], (2, 0, 3, 1)))

        return Packing(
            TensorType((columns.count, steps, columns.size, self.lanes), product.right.dtype), pack
        )


def _rest(extent: int, part: int, number: Expression) -> Expression:
    return part if extent % part == 0 else te.min(extent - number * part, part)


class MatmulDepthCpu(Template):
    """Products of float32 rows in memory by one constant matrix of few columns."""

    name = "matmul_depth_cpu"
    alternative_to = MatmulCpu.name

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        if not fits(kernel) or kernel.anchor is None or target.by_lane or target.sve_bits:
            return False
        product = Product.of(kernel.anchor)
        floats = {product.left.dtype, product.right.dtype, product.accumulator} == {"float32"}
        in_memory = placeholder_index(kernel, kernel.anchor.inputs[0]) is not None
        plain = floats and in_memory and not product.transpose_left and not product.batch
        deep = product.depth % WIDEST_VECTOR == 0 and product.depth >= SHORTEST_DEPTH
        narrow = product.columns <= MOST_COLUMNS and constant_right(kernel) is not None
        return plain and deep and narrow

    def estimate(self, kernel: Kernel, target: Target) -> float:
        product, shared = _product(kernel), _shared(kernel, target)
        rows, columns = _best(product, target)
        tiles = -(-product.rows // rows)
        # Threads share row tiles, and where these are few some threads wait.
        waiting = -(-tiles // target.sharers) * target.sharers / tiles if shared else 1.0
        return _cycles(product, target, rows, columns) * waiting

    def space(self, kernel: Kernel, target: Target) -> Space:
        product, most = _product(kernel), target.vector_registers
        tiles = tuple(_tiles(product, most))
        rows, columns = _best(product, target)
        steps = product.depth // target.lanes("float32")
        unrolls = tuple(u for u in UNROLLS if steps % u == 0)
        shared = _shared(kernel, target)
        # A chunk of all columns leaves a third of the first-level cache to rows.
        room = target.cache_bytes[0] * 2 // 3 // (4 * product.columns)
        chunk = 0 if product.depth <= room else max(c for c in CHUNKS if c <= max(room, CHUNKS[1]))
        count = -(-product.rows // rows)
        block = max(b for b in BLOCKS if b <= max(1, count // target.sharers)) if shared else min(32, count)

        def reason(config: Config) -> str | None:
            tile = int(config["tile_rows"]), int(config["tile_columns"])
            if tile not in tiles:
                return f"register tile {tile[0]}x{tile[1]} needs more than {most} vector registers"
            return None

        return Space(
            (
                Ordered("tile_rows", tuple(sorted({r for r, _ in tiles})), rows),
                Ordered("tile_columns", tuple(sorted({c for _, c in tiles})), columns),
                Ordered("unroll", unrolls, 2 if 2 in unrolls else 1),
                Ordered("chunk", CHUNKS, chunk),
                Ordered("row_block", BLOCKS, max(b for b in BLOCKS if b <= block)),
                Choice("parallel", (False, True), shared),
            ),
            reason,
        )

    def packings(self, kernel: Kernel, target: Target) -> PackedBy:
        """Panels as wide as the register tile, in steps as wide as a vector."""
        product, space = _product(kernel), self.space(kernel, target)
        found: dict[Hashable, Packed] = {}
        lanes = target.lanes("float32")
        for columns in sorted({c for _, c in _roomy(product, target)}):
            own = [tile for tile in _roomy(product, target) if tile[1] == columns]
            best = min(own, key=lambda tile: _cycles(product, target, *tile))
            config = {**space.default, "tile_rows": best[0], "tile_columns": columns}

            def holds(config: Config, columns: int = columns) -> bool:
                return int(space.complete(config)["tile_columns"]) == columns

            found[columns, lanes] = Packed(config, _cycles(product, target, *best), holds)
        return found

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        product = _product(kernel)
        return _Nest(kernel, product, DepthPlan.of(product, target, config)).scheduled()


class _Nest:
    """The loops of one kernel."""

    def __init__(self, kernel: Kernel, product: Product, plan: DepthPlan) -> None:
        self.product, self.plan = product, plan
        constant = constant_right(kernel)
        assert constant is not None
        self.anchored = Anchored(kernel, {constant: plan.packing(product)})
        left, right = self.anchored.operands
        self.left, self.panels = self.anchored.buffer_of(left), self.anchored.buffer_of(right)
        self.kept: Buffer | None = None

    def scheduled(self) -> Scheduled:
        plan = self.plan
        if plan.chunks > 1:
            slots = plan.blocks if plan.parallel else 1
            shape = (slots, plan.row_block, plan.columns.count, plan.rows.size, plan.columns.size, plan.lanes)
            self.kept = self.anchored.add_scratch(shape, "float32", "kept_sums")
        make = parallel if plan.parallel else loop
        nest = make(plan.blocks, self._block, "block")
        return self.anchored.scheduled([nest], plan.rows.exact and plan.columns.exact)

    def _block(self, block: Expression) -> Statement:
        plan = self.plan

        def tile(chunk: Expression, t: Expression, panel: Expression) -> Statement:
            kept = [block if plan.parallel else 0, t, panel]
            return self._tile(kept, chunk, plan.rows.base(block * plan.row_block + t), panel)

        def tiles(chunk: Expression) -> Statement:
            return loop(
                plan.tiles_of(block),
                lambda t: loop(plan.columns.count, lambda panel: tile(chunk, t, panel), "panel"),
                "t",
            )

        return loop(plan.chunks, tiles, "chunk")

    def _tile(
        self, kept: list[Expression], chunk: Expression, row: Expression, panel: Expression
    ) -> Statement:
        """One tile over one chunk: sums from zero or from the chunk before, to the output or to the next."""
        plan = self.plan
        allocate, sums = local((plan.rows.size, plan.columns.size, plan.lanes), "float32", "sums")

        def clear(at: list[Expression]) -> Statement:
            return tirx.BufferStore(sums, tirx.const(0, "float32"), at)

        begin, end = self._vectors(clear), self._finish(sums, row, panel)
        if self.kept is not None:
            between = self.kept

            def restore(at: list[Expression]) -> Statement:
                return tirx.BufferStore(sums, tirx.BufferLoad(between, [*kept, *at]), at)

            def keep(at: list[Expression]) -> Statement:
                return tirx.BufferStore(between, tirx.BufferLoad(sums, at), [*kept, *at])

            begin = tirx.IfThenElse(chunk == 0, begin, self._vectors(restore))
            end = tirx.IfThenElse(chunk == plan.chunks - 1, end, self._vectors(keep))

        def unit(i: Expression) -> Statement:
            first = (chunk * plan.chunk + i) * plan.unroll
            return unrolled(plan.unroll, lambda u: self._step(sums, row, panel, first + u), "step")

        return sequence([allocate, begin, loop(plan.units_of(chunk), unit, "unit"), end])

    def _step(self, sums: Buffer, row: Expression, panel: Expression, step: Expression) -> Statement:
        """A vector of each row times one of each column."""

        def add(at: list[Expression]) -> Statement:
            r, c, lane = at
            index = self.product.left_index((), row + r, step * self.plan.lanes + lane)
            pair = tirx.BufferLoad(self.left, index) * tirx.BufferLoad(self.panels, [panel, step, c, lane])
            return tirx.BufferStore(sums, tirx.BufferLoad(sums, at) + pair, at)

        return self._vectors(add)

    def _finish(self, sums: Buffer, row: Expression, panel: Expression) -> Statement:
        """Add the lanes of each sum by halves, and store what follows from that."""
        plan = self.plan
        statements: list[Statement] = []
        lanes = plan.lanes
        while lanes > 1:
            lanes //= 2

            def fold(at: list[Expression], half: int = lanes) -> Statement:
                first, second = (tirx.BufferLoad(sums, [*at[:2], at[2] + s]) for s in (0, half))
                return tirx.BufferStore(sums, first + second, at)

            statements.append(self._vectors(fold, lanes))
        column = plan.columns.base(panel)

        def store(r: Expression, c: Expression) -> Statement:
            index = self.product.index((), row + r, column + c)
            return self.anchored.finish(index, tirx.BufferLoad(totals, [r, c]))

        def total(r: Expression, c: Expression) -> Statement:
            return tirx.BufferStore(totals, tirx.BufferLoad(sums, [r, c, 0]), [r, c])

        size = plan.columns.size
        allocate, totals = local((plan.rows.size, size), "float32", "totals")
        gather = unrolled(plan.rows.size, lambda r: unrolled(size, lambda c: total(r, c), "c"), "r")
        write = loop(plan.rows.size, lambda r: vectorized(size, lambda c: store(r, c)), "r")
        return sequence([*statements, allocate, gather, write])

    def _vectors(self, body: Callable[[list[Expression]], Statement], lanes: int = 0) -> Statement:
        """`body([row, column, lane])` over a tile's sums, or their first lanes, written out in vectors."""
        plan = self.plan

        def vector(r: Expression, c: Expression) -> Statement:
            return vectorized(lanes or plan.lanes, lambda lane: body([r, c, lane]))

        return unrolled(
            plan.rows.size, lambda r: unrolled(plan.columns.size, lambda c: vector(r, c), "c"), "r"
        )


def _product(kernel: Kernel) -> Product:
    assert kernel.anchor is not None
    return Product.of(kernel.anchor)


def _shared(kernel: Kernel, target: Target) -> bool:
    return target.sharers > 1 and kernel.flops >= PARALLEL_FLOPS


def _tiles(product: Product, registers: int) -> Iterator[tuple[int, int]]:
    """Register tiles (rows, columns) whose sums fit beside the vectors of a step."""
    for rows in range(1, min(product.rows, MOST_TILE_ROWS) + 1):
        for columns in range(1, min(product.columns, MOST_TILE_COLUMNS) + 1):
            if rows * columns + columns + 1 <= registers:
                yield rows, columns


def _roomy(product: Product, target: Target) -> list[tuple[int, int]]:
    """Those that a default may have, whatever order the code generator chooses."""
    most = target.vector_registers
    return list(_tiles(product, most - max(target.spare_registers, most // 16)))


def _best(product: Product, target: Target) -> tuple[int, int]:
    return min(_roomy(product, target), key=lambda tile: _cycles(product, target, *tile))


def _cycles(product: Product, target: Target, rows: int, columns: int) -> float:
    """Estimated cycles of the whole product, as `matmul_cpu` estimates it."""
    tiles = -(-product.rows // rows) * -(-product.columns // columns)
    multiply = max(rows * columns / target.fma_ports, FMA_LATENCY)
    load = (rows + columns) / target.load_ports
    steps = product.depth / target.lanes("float32")
    return tiles * (steps * (max(multiply, load) + 0.5 * load) + ADDING_LANES * rows * columns + 20)


TEMPLATES.register(MatmulDepthCpu.name, MatmulDepthCpu())
