"""Strassen's algorithm in numbers: its sums, how a product is cut for it, and which cut is fastest.

One level of it, in Winograd's form. With both operands and the result cut in halves of each axis,

    S1 = A21 + A22   S2 = S1 - A11   S3 = A11 - A21   S4 = A12 - S2
    T1 = B12 - B11   T2 = B22 - T1   T3 = B22 - B12   T4 = B21 - T2

    U1 = A11 B11       C11 = U1 + A12 B21
    U2 = U1 + S2 T2    U3 = U2 + S3 T3      C21 = U3 + A22 T4
    V = S1 T1          C22 = U3 + V         C12 = U2 + V + S4 B22

(T4 has the other sign than in the literature, so that products are only added.) Each product is added in
registers to what comes before it. In the order of the text, three intermediate sums wait at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from math import gcd
from typing import Any

import numpy as np

from tcomp.relay.types import Array, TensorType
from tcomp.target.target import Target
from tcomp.tensor.cpu.direct_convolution import step_cycles
from tcomp.tensor.cpu.primitives import Tiles
from tcomp.tensor.knobs import Choice, Config, Ordered, Space
from tcomp.tensor.template import Packing
from tcomp.tvm_api import tirx

Expression = Any

DTYPE = "float32"
MAX_TILE_ROWS = 28
MAX_TILE_VECTORS = 4
BLOCKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
HIDDEN = 0.1
"""Share of the shorter of computing and loading that the longer one does not hide."""
LEAST_HALF = 32
"""Steps, and columns, of a half that may be worth the sums."""
WORTH = 1.04
"""How much faster it must be, by estimate, to be worth constants of 7/4 the size."""


class Kept(IntEnum):
    """Where a sum waits for the products after it."""

    U1 = 0
    """Later U2 + V."""
    U2 = 1
    U3 = 2
    QUARTER = 3
    """A quarter of the result, for its epilogue."""


@dataclass(frozen=True)
class Step:
    """One of the products: the sum that it is added to, if any, where that then waits, and the quarter of the
    result that it completes, if it does: of 11, 12, 21, 22, from 0."""

    start: Kept | None
    to: Kept
    completes: int | None = None


STEPS = (
    Step(None, Kept.U1),
    Step(Kept.U1, Kept.QUARTER, completes=0),
    Step(Kept.U1, Kept.U2),
    Step(Kept.U2, Kept.U3),
    Step(Kept.U3, Kept.QUARTER, completes=2),
    Step(None, Kept.QUARTER, completes=3),
    Step(Kept.U1, Kept.QUARTER, completes=1),
)
"""The products in the order of the text."""
PRODUCTS = len(STEPS)
SHARED = 5
"""The product V: plus U3 it is a quarter of the result, plus U2 what the last product is added to."""


def left_operands(a11: Any, a12: Any, a21: Any, a22: Any) -> list[Any]:
    """The left operands of the seven products in order, of quarters of the left matrix."""
    s1 = a21 + a22
    s2 = s1 - a11
    return [a11, a12, s2, a11 - a21, a22, s1, a12 - s2]


def right_operands(b11: Any, b12: Any, b21: Any, b22: Any) -> list[Any]:
    """The right operands of the seven products in order, of quarters of the right matrix."""
    t1 = b12 - b11
    t2 = b22 - t1
    return [b11, b21, t2, b22 - b12, b21 - t2, t1, b22]


@dataclass(frozen=True)
class Shape:
    """A product of `rows x depth` by `depth x columns`."""

    rows: int
    depth: int
    columns: int

    def fits(self, target: Target) -> bool:
        """Whether halves are whole vectors of steps, columns whole vectors, and enough for two panels.

        And whether 32 bits count the elements of all products' operands, which are more than the matrices'.
        """
        half, lanes = self.depth // 2, target.lanes(DTYPE)
        even = self.depth % 2 == half % 4 == self.columns % lanes == 0
        deep = self.rows > 1 and half >= LEAST_HALF and self.columns >= max(2 * LEAST_HALF, 2 * lanes)
        most = max(self.rows // 2 + MAX_TILE_ROWS, self.columns // 2 + MAX_TILE_VECTORS * lanes)
        return even and deep and PRODUCTS * half * most < 2**31


@dataclass(frozen=True)
class StrassenPlan:
    """What a config means for a product."""

    shape: Shape
    blocks: Tiles
    """Of rows: each has two halves."""
    tile_rows: int
    row_tiles: int
    """Register tiles of one half of a block."""
    panels: int
    """Of one half of the columns."""
    width: int
    """Columns of a panel."""
    lanes: int
    rows_beside: bool
    """Whether the factors of a tile's rows lie side by side, step by step, not those of a row's steps."""
    prefetch: bool
    parallel: bool

    @staticmethod
    def of(shape: Shape, target: Target, config: Config) -> StrassenPlan:
        lanes, tile_rows = target.lanes(DTYPE), int(config["tile_rows"])
        width, block = int(config["tile_vectors"]) * lanes, -(-shape.rows // int(config["blocks"]))
        row_tiles = -(-block // (2 * tile_rows))
        return StrassenPlan(
            shape,
            Tiles.of(shape.rows, 2 * tile_rows * row_tiles),
            tile_rows,
            row_tiles,
            -(-shape.columns // (2 * width)),
            width,
            lanes,
            _rows_beside(target, tile_rows),
            bool(config["prefetch"]),
            bool(config["parallel"]),
        )

    @property
    def depth(self) -> int:
        """Steps of a half."""
        return self.shape.depth // 2

    @property
    def inner(self) -> int:
        """Steps whose factors of one row lie side by side: a cache line's, where the depth is so even."""
        return gcd(self.depth, 16)

    @property
    def left_shape(self) -> tuple[int, ...]:
        """Of the left operands of a block: `[product, tile, step, row]`, or `[product, step // inner, row,
        step % inner]`."""
        if self.rows_beside:
            return (PRODUCTS, self.row_tiles, self.depth, self.tile_rows)
        return (PRODUCTS, self.depth // self.inner, self.half_rows, self.inner)

    @property
    def half_rows(self) -> int:
        """Rows of one half of a block."""
        return self.tile_rows * self.row_tiles

    @property
    def rows_fit(self) -> bool:
        """Whether no row is computed twice."""
        return self.blocks.exact and self.blocks.size == 2 * self.half_rows

    @property
    def columns_fit(self) -> bool:
        """Whether no column is computed twice."""
        return self.shape.columns == 2 * self.panels * self.width

    def row(self, block: Expression, half: Expression) -> Expression:
        """The first row of a half of a block. Halves overlap where a block is smaller than both, and blocks
        where they are more than all rows."""
        return self.blocks.base(block) + half * (self.blocks.size - self.half_rows)

    def first_own_row(self, block: Expression, half: Expression) -> Expression:
        """The first of these rows that no half and no block before them has."""
        own = block * self.blocks.size
        inside = self.blocks.base(block) + half * self.half_rows
        return inside if self.blocks.exact else tirx.max(own, inside)

    def column(self, panel: Expression, half: Expression) -> Expression:
        """The first column of a panel of a half. Halves overlap where they are not whole panels."""
        return panel * self.width + half * (self.shape.columns - self.panels * self.width)

    def packing(self, matrix_of: Callable[[Array], Array]) -> Packing:
        """The right operand, which is `[depth, columns]` by `matrix_of`, as
        `[panel, product, step // inner, step % inner, column]`."""
        shape = (self.panels, PRODUCTS, self.depth // self.inner, self.inner, self.width)

        def pack(original: Array) -> Array:
            matrix = matrix_of(original)
            packed: Array = np.empty(shape, DTYPE)
            for panel, products in enumerate(packed):
                firsts = self.column(panel, 0), self.column(panel, 1)
                quarters = (
                    matrix[k : k + self.depth, c : c + self.width] for k in (0, self.depth) for c in firsts
                )
                for product, operand in zip(products, right_operands(*quarters), strict=True):
                    product[...] = operand.reshape(product.shape)
            return packed

        return Packing(TensorType(shape, DTYPE), pack)


def strassen_space(shape: Shape, target: Target, threaded: bool) -> Space:
    """The knobs of a product."""
    tiles, best = set(_tiles(shape, target)), best_choices(shape, target, threaded)[0]
    rows, vectors, blocks = (int(best[name]) for name in ("tile_rows", "tile_vectors", "blocks"))

    def reason(config: Config) -> str | None:
        tile = int(config["tile_rows"]), int(config["tile_vectors"])
        if tile not in tiles:
            return (
                f"register tile {tile[0]}x{tile[1]} needs more than {target.vector_registers} vector "
                f"registers or than half of {shape.columns} columns"
            )
        return None

    return Space(
        (
            Ordered("tile_rows", tuple(sorted({r for r, _ in tiles})), rows),
            Ordered("tile_vectors", tuple(sorted({v for _, v in tiles})), vectors),
            Ordered("blocks", _block_counts(shape), blocks),
            Choice("prefetch", (False, True), best["prefetch"]),
            Choice("parallel", (False, True), best["parallel"]),
        ),
        reason,
    )


@lru_cache(maxsize=256)
def best_choices(shape: Shape, target: Target, threaded: bool) -> tuple[Config, ...]:
    """The best config for each width of panels, the best of all first. Kept, as each config asks again."""
    best: dict[int, tuple[float, Config]] = {}
    for rows, vectors in _tiles(shape, target):
        for blocks in (n for n in _block_counts(shape) if n * rows <= shape.rows):
            knobs = {"tile_rows": rows, "tile_vectors": vectors, "blocks": blocks}
            config: Config = {**knobs, "prefetch": True, "parallel": threaded}
            cycles = strassen_cycles(StrassenPlan.of(shape, target, config), target)
            if vectors not in best or cycles < best[vectors][0]:
                best[vectors] = cycles, config
    return tuple(config for _, config in sorted(best.values(), key=lambda found: found[0]))


def _block_counts(shape: Shape) -> tuple[int, ...]:
    """Into how many blocks rows may be cut: each has a row in both of its halves."""
    return tuple(n for n in BLOCKS if n == 1 or 2 * n <= shape.rows)


def _tiles(shape: Shape, target: Target) -> Iterator[tuple[int, int]]:
    """Rows and vectors of register tiles whose sums fit beside a row of the panel and factors."""
    lanes, room = target.lanes(DTYPE), target.vector_registers - target.spare_registers
    for vectors in range(1, MAX_TILE_VECTORS + 1):
        for rows in range(1, min(shape.rows // 2, MAX_TILE_ROWS) + 1):
            fits = rows * vectors + vectors + _factor_registers(target, rows) <= room
            if fits and 2 * vectors * lanes <= shape.columns:
                yield rows, vectors


def _rows_beside(target: Target, rows: int) -> bool:
    """Where factors are lanes of registers, this takes the fewest of them."""
    return target.by_lane and rows % target.factor_lanes(DTYPE) == 0


def _factor_registers(target: Target, rows: int) -> int:
    """Registers of the factors of a tile's rows."""
    if _rows_beside(target, rows):
        return rows // target.factor_lanes(DTYPE)
    return rows if steps_of_factors(target) > 1 else 1


def steps_of_factors(target: Target) -> int:
    """Steps whose factors of a row are one load: 1 where each is broadcast from memory."""
    return target.lanes(DTYPE) if target.takes_any_lane else 1


def _products(shape: Shape, target: Target, rows: int, vectors: int) -> float:
    """Cycles of the register tiles of a product."""
    tiles = -(-shape.rows // rows) * -(-shape.columns // (vectors * target.lanes(DTYPE)))
    inputs = rows / steps_of_factors(target)
    step = step_cycles(target, rows, vectors, inputs, vectors, far=True)
    return tiles * (shape.depth * step + 2 * rows * vectors + 20)


def plain_cycles(shape: Shape, target: Target) -> float:
    """Estimated cycles of a plain product, without its epilogue."""
    memory = 4 * shape.depth * shape.columns / target.bytes_per_cycle[2]
    products = min(_products(shape, target, *tile) for tile in _tiles(shape, target))
    return max(products, memory) + HIDDEN * min(products, memory)


def strassen_cycles(plan: StrassenPlan, target: Target) -> float:
    """Estimated cycles: products of half the size, the left operand's sums, intermediate sums, far loads."""
    blocks, half = plan.blocks.count, Shape(plan.half_rows, plan.depth, plan.panels * plan.width)
    _, last_level, memory = target.bytes_per_cycle
    near, lanes = target.cache_bytes[1], plan.lanes
    products = PRODUCTS * _products(half, target, plan.tile_rows, plan.width // lanes)
    sums = 20 * half.rows * half.depth / lanes
    moved = 20 * half.rows * half.columns / lanes
    if plan.parallel:
        by_panels = -(-plan.panels // target.sharers) * target.sharers / plan.panels
        by_blocks = -(-blocks // target.sharers) * target.sharers / blocks
        idle = by_blocks if shares_blocks(plan, target) else by_panels
        products, moved = products * idle, moved * idle
    weights = 4 * PRODUCTS * half.depth * half.columns
    left = 4 * PRODUCTS * half.rows * half.depth
    again = (blocks - 1) * weights if weights > near / 2 else 0
    far = blocks * (plan.panels - 1) * left if left > 0.6 * near else 0
    load = weights / memory + (again + far / 2) / last_level  # Rows are one stream.
    compute = blocks * (products + sums + moved)
    return max(compute, load) + HIDDEN * min(compute, load)


def shares_blocks(plan: StrassenPlan, target: Target) -> bool:
    """Whether threads share the blocks of rows, not the panels of each block."""
    return plan.parallel and plan.blocks.count >= 2 * target.sharers


def choose(numbers: Sequence[int], place: Expression) -> Expression:
    """The number, none of them negative, at a place that is known at run time alone: bits of a constant that
    holds all of them."""
    bits = max(1, *(number.bit_length() for number in numbers))
    packed = sum(number << (bits * i) for i, number in enumerate(numbers))
    return (packed >> (place * bits)) & ((1 << bits) - 1)
