"""Matrix products of bfloat16 by tile registers; see `tcomp.tensor.amx`.

The output is walked in blocks of `down` by `across` tiles of `tile_rows` rows and 16 columns, all rows of a
panel of columns before the next panel (order `panels`), or all panels before the next rows (`rows`). Each
goes through the whole depth, 32 elements a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from tcomp.target.target import Target
from tcomp.tensor.amx import (
    DTYPE,
    LANES,
    ROWS,
    WORD_BYTES,
    TileBlock,
    blocks,
    has_tiles,
)
from tcomp.tensor.cpu.grouped_operands import GroupedOperands
from tcomp.tensor.cpu.primitives import Tiles, vector_tile
from tcomp.tensor.cpu.register_tile import Index, Point, RegisterTile
from tcomp.tensor.cpu.tile_nest import (
    BlockWalk,
    Steps,
    blocks_cycles,
    panel_ahead,
    threads_for,
    tile_blocks_nest,
)
from tcomp.tensor.groups import ways_to_sum
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Choice, Config, Ordered, Space
from tcomp.tensor.loops import Expression, Statement
from tcomp.tensor.product import Product, constant_right, fits
from tcomp.tensor.schedules.matmul_pairs_cpu import MatmulPairsCpu
from tcomp.tensor.template import TEMPLATES, Scheduled, Template
from tcomp.tvm_api import tirx

PAIR = 2


class MatmulAmxCpu(Template):
    """Products by tile registers; see the module's text."""

    name = "matmul_amx_cpu"
    alternative_to = MatmulPairsCpu.name

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        if not has_tiles(target) or not fits(kernel) or kernel.anchor is None:
            return False
        product = Product.of(kernel.anchor)
        return product.left.dtype == product.right.dtype == DTYPE

    def estimate(self, kernel: Kernel, target: Target) -> float:
        product = _product(kernel)
        return min(_cycles(product, block) for block in _blocks(product))

    def space(self, kernel: Kernel, target: Target) -> Space:
        product = _product(kernel)
        found = _blocks(product)
        best = min(found, key=lambda block: _cycles(product, block))
        legal = {(b.down, b.across, b.rows) for b in found}
        l1, l2, _ = target.cache_bytes
        rows, right = (PAIR * n * product.depth for n in (best.height, product.columns))
        far = constant_right(kernel) is not None and right > l2 // 2

        # Rows that stay in the first-level cache let panels stream by; of panels, rows are further apart.
        order = "rows" if 2 * rows <= l1 and 4 * right <= 3 * l2 else "panels"

        def reason(config: Config) -> str | None:
            down, across, rows = (int(config[name]) for name in ("down", "across", "tile_rows"))
            if (down, across, rows) not in legal:
                return f"{down} by {across} tiles of {rows} rows need more registers or a larger output"
            return None

        return Space(
            (
                Ordered("down", tuple(sorted({b.down for b in found})), best.down),
                Ordered("across", tuple(sorted({b.across for b in found})), best.across),
                Ordered("tile_rows", tuple(sorted({b.rows for b in found})), best.rows),
                Choice("order", ("panels", "rows"), order),
                Choice("prefetch", (False, True), far),
                Choice("parallel", (False, True), threads_for(kernel, target) > 1),
            ),
            reason,
        )

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        """1. Pack operands whose pairs are not adjacent. 2. One nest over blocks of tiles."""
        product = _product(kernel)
        down, across, tile_rows = (int(config[name]) for name in ("down", "across", "tile_rows"))
        (block,) = (b for b in _blocks(product) if (b.down, b.across, b.rows) == (down, across, tile_rows))
        rows = Tiles.of(product.rows, block.height)
        columns = vector_tile(product.columns, LANES, across)
        threaded = bool(config["parallel"])
        sums = ways_to_sum(target, DTYPE)[-1]
        operands = GroupedOperands(kernel, sums, rows, columns, target.lanes(sums.dtype), threaded)
        prepare, left = operands.left_groups()
        more, panels = operands.right_panels()
        batch = Tiles.of(prod(product.batch), 1)
        tile = RegisterTile.of(
            (batch, rows, columns), (0, 2, 1) if config["order"] == "panels" else (0, 1, 2), block.lanes
        )

        def right_at(point: Point, step: Index, column: int) -> Expression:
            at = [operands.own_matrix(point.index[0]), point.tiles[2], step[0] * block.pairs, column]
            return tirx.BufferLoad(panels, at)

        def ahead(point: Point, step: Index) -> Sequence[Statement]:
            if not config["prefetch"]:
                return []
            matrix, following = operands.own_matrix(point.index[0]), point.tiles[2] + 1
            begin, words = [matrix, following, step[0] * block.pairs, 0], block.pairs * columns.size
            return panel_ahead(panels, begin, point.tiles[1], words, rows.count)

        def finish(index: Index, value: Expression) -> Statement:
            flat, row, column = index
            return operands.anchored.finish(product.index(operands.batch_index(flat), row, column), value)

        extents = (operands.steps // block.pairs,)
        steps = Steps(
            extents,
            lambda point, step: left(point, step[0] * block.pairs),
            WORD_BYTES * operands.steps,
            right_at,
            columns.size,
            ahead,
        )
        threads = target.sharers if threaded else 1
        walk = BlockWalk(tile, block, (2,), steps, finish)
        nest = tile_blocks_nest(walk, threads, _cycles(product, block))
        return operands.anchored.scheduled([*prepare, *more, nest], tile.disjoint)


def _product(kernel: Kernel) -> Product:
    assert kernel.anchor is not None
    return Product.of(kernel.anchor)


def _blocks(product: Product) -> list[TileBlock]:
    """Blocks that lie in the output. A step takes as many pairs as share the depth evenly."""
    steps = -(-product.depth // PAIR)
    pairs = max(n for n in range(1, LANES + 1) if steps % n == 0)
    lanes = vector_tile(product.columns, LANES, 1).size
    found = blocks(range(1, min(ROWS, product.rows) + 1), lanes, pairs)
    return [b for b in found if b.height <= product.rows and b.width <= product.columns]


def _cycles(product: Product, block: TileBlock) -> float:
    """Estimated cycles of the whole product."""
    tiles = -(-product.rows // block.height) * -(-product.columns // block.width)
    return product.batch_size * tiles * blocks_cycles(block, -(-product.depth // (PAIR * block.pairs)))


TEMPLATES.register(MatmulAmxCpu.name, MatmulAmxCpu())
