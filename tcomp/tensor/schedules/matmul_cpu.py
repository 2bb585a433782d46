"""Matrix products on CPUs; see `tcomp.tensor.cpu.gemm`."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from functools import partial
from math import log2, prod

from tcomp.target.target import Target
from tcomp.tensor.anchored import PARALLEL_FLOPS
from tcomp.tensor.cpu.gemm import schedule_product
from tcomp.tensor.cpu.gemm_plan import Plan
from tcomp.tensor.cpu.register_tile import FMA_LATENCY
from tcomp.tensor.epilogue import placeholder_index
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Choice, Config, Ordered, Space
from tcomp.tensor.product import Product, constant_right, fits
from tcomp.tensor.template import (
    TEMPLATES,
    Packed,
    PackedBy,
    Scheduled,
    Template,
)

MAX_TILE_ROWS = 30
TILE_VECTORS = (1, 2, 3, 4, 6, 8)
CHUNKS = (0, 64, 128, 192, 256, 384, 512, 768, 1024)
MOST_WHOLE_DEPTH = 768
"""Up to this depth the sums of a tile stay in registers from beginning to end."""
DEFAULT_CHUNK = 512
"""Long enough that moving sums between chunks is little work; a chunk of a panel stays near."""
MOST_ROWS_APART = 8
"""Up to so many rows wait for constants from memory, of which several streams bring more than one."""
BLOCKS = (0, 1, 2, 4, 8, 16, 32, 64)
PARTIAL_SUMS = (1, 2, 4, 8)
PARTS = (1, 2, 4, 8, 16, 32)
PACKED_FOR_LANES = 96
"""Columns from which rows are packed where products take lanes of registers."""
SHORTEST_PART = 256
"""Depth from which a part is worth the sums that it leaves to add."""
OTHER_GROUP = 0.01
"""Share of the time by which a group of half or twice the size is thought worse than the right one."""
PIECES_PER_CORE = 2
"""Pieces of work a thread, so that none waits long for a slower one."""


class MatmulCpu(Template):
    """One template for plain and batched products; knobs as in `tcomp.tensor.cpu.gemm_plan.Plan`."""

    name = "matmul_cpu"
    version = 2

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        return fits(kernel)

    def estimate(self, kernel: Kernel, target: Target) -> float:
        product = _product(kernel)
        tiles = _roomy(tuple(_tiles(product, target)), product, target)
        rows, vectors = min(tiles, key=lambda tile: _cycles(product, target, *tile))
        unrolls = tuple(u for u in _unrolls(target) if product.depth % u == 0)
        return _cycles(product, target, rows, vectors, _partial_sums(target, rows, vectors, unrolls))

    def space(self, kernel: Kernel, target: Target) -> Space:
        product = _product(kernel)
        tiles = tuple(_tiles(product, target))
        best = min(_roomy(tiles, product, target), key=lambda tile: _cycles(product, target, *tile))
        return self._space(kernel, target, tiles, best)

    def packings(self, kernel: Kernel, target: Target) -> PackedBy:
        """Panels as wide as the register tile, in groups of any size."""
        if constant_right(kernel) is None:
            return super().packings(kernel, target)
        product, tiles = _product(kernel), tuple(_tiles(_product(kernel), target))
        found: dict[Hashable, Packed] = {}

        def key_of(config: Config) -> Hashable:
            plan = Plan.of(product, target, config)
            return plan.columns, plan.chunk, plan.group if plan.chunks > 1 else 0

        def holds(key: Hashable, space: Space, config: Config) -> bool:
            return key_of(space.complete(config)) == key

        for vectors in sorted({v for _, v in _roomy(tiles, product, target)}):
            own = [tile for tile in _roomy(tiles, product, target) if tile[1] == vectors]
            best = min(own, key=lambda tile: _cycles(product, target, *tile))
            space = self._space(kernel, target, tiles, best)
            default = space.complete(space.default)
            wanted = Plan.of(product, target, default).group
            for group in BLOCKS:
                config = {**default, "group": group}
                key, steps = key_of(config), abs(log2(Plan.of(product, target, config).group / wanted))
                cycles = _cycles(product, target, *best) * (1 + OTHER_GROUP * steps)
                if key not in found or cycles < found[key].cycles:
                    found[key] = Packed(config, cycles, partial(holds, key, space))
        return found

    def _space(
        self, kernel: Kernel, target: Target, tiles: Sequence[tuple[int, int]], best: tuple[int, int]
    ) -> Space:
        product, most = _product(kernel), target.vector_registers
        rows, vectors = best
        unrolls = tuple(u for u in _unrolls(target) if product.depth % u == 0)
        partial_sums = _partial_sums(target, rows, vectors, unrolls)
        constant = constant_right(kernel) is not None
        shared = target.sharers > 1 and kernel.flops >= PARALLEL_FLOPS
        row_block, group = _blocking(product, target, rows, vectors, shared)
        few = product.rows <= min(rows, MOST_ROWS_APART)
        apart = constant and few and vectors > 1 and not target.by_lane
        unroll = unrolls[-1] if apart else max(_written_out(product, target, rows), partial_sums)

        def reason(config: Config) -> str | None:
            tile = int(config["tile_rows"]), int(config["tile_vectors"])
            sums = int(config["partial_sums"])
            if tile not in tiles or tile[1] * (sums * tile[0] + 1) >= most:
                return f"register tile {tile[0]}x{tile[1]} needs more than {most} vector registers"
            if int(config["unroll"]) % sums:
                return f"{sums} partial sums do not share {config['unroll']} steps evenly"
            return None

        return Space(
            (
                Ordered("tile_rows", tuple(sorted({r for r, _ in tiles})), rows),
                Ordered("tile_vectors", tuple(sorted({v for _, v in tiles})), vectors),
                Ordered("unroll", unrolls, unroll),
                Ordered("chunk", CHUNKS, _chunk(product)),
                Ordered("row_block", BLOCKS, row_block),
                Ordered("group", BLOCKS, group),
                Choice("pack_left", (False, True), _packs_left(kernel, product, rows, vectors, target)),
                Choice(
                    "pack_right", (False,) if constant else (False, True), _packs_right(kernel, product, rows)
                ),
                Choice("prefetch", (False, True), constant and not apart),
                Choice("parallel", (False, True), shared),
                Ordered("partial_sums", PARTIAL_SUMS, partial_sums),
                Ordered("parts", PARTS, _parts(product, target, rows, vectors) if shared else 1),
                Choice("apart", (False,) if target.by_lane else (False, True), apart),
            ),
            reason,
            {"partial_sums": 1, "parts": 1, "apart": False},
        )

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        product = _product(kernel)
        return schedule_product(kernel, product, Plan.of(product, target, config), target)


def _product(kernel: Kernel) -> Product:
    assert kernel.anchor is not None
    return Product.of(kernel.anchor)


def _lanes(product: Product, target: Target) -> int:
    return min(target.lanes(product.accumulator), product.columns)


def _tiles(product: Product, target: Target) -> Iterator[tuple[int, int]]:
    """Register tiles (rows, vectors) whose sums fit beside one row of the panel and a broadcast."""
    lanes = _lanes(product, target)
    for vectors in TILE_VECTORS:
        if vectors * lanes <= product.columns:
            for rows in range(1, min(product.rows, MAX_TILE_ROWS) + 1):
                if rows * vectors + vectors + 1 <= target.vector_registers:
                    yield rows, vectors


def _roomy(tiles: Sequence[tuple[int, int]], product: Product, target: Target) -> list[tuple[int, int]]:
    """Tiles that a default may have: it must not spill, whatever order the code generator chooses. Of 16
    registers each counts, and 4x3, which takes all of them, does not."""
    most = target.vector_registers
    spare = max(target.spare_registers, most // 16 if most > 16 else 0)
    return [t for t in tiles if t[0] * t[1] + t[1] + _factor_registers(product, target, t[0]) + spare <= most]


def _loads_lanes(product: Product, target: Target) -> bool:
    """Whether factors of several rows or steps are one load."""
    return target.by_lane and product.left.dtype == product.accumulator and product.rows > 1


def _packs_for_lanes(product: Product, target: Target, rows: int) -> bool:
    """Whether rows are packed so that the factors of one step lie side by side: that takes fewer registers
    than to load those of several steps of each row, but an instruction for every element."""
    whole = rows % target.factor_lanes(product.accumulator) == 0
    return whole and _loads_lanes(product, target) and product.columns >= PACKED_FOR_LANES


def _factor_registers(product: Product, target: Target, rows: int) -> int:
    """Registers of the left operand's elements beside a row of the panel."""
    if not _loads_lanes(product, target):
        return 1
    if _packs_for_lanes(product, target, rows):
        return rows // target.factor_lanes(product.accumulator)
    return rows if _unroll(product) > 1 and not product.transpose_left else 1


def _factor_loads(product: Product, target: Target, rows: int) -> float:
    """Loads of the left operand's elements for a step."""
    if not _loads_lanes(product, target):
        return rows
    if _packs_for_lanes(product, target, rows):
        return rows / target.factor_lanes(product.accumulator)
    return rows / min(_unroll(product), target.factor_lanes(product.accumulator))


def _cycles(product: Product, target: Target, rows: int, vectors: int, partial_sums: int = 1) -> float:
    """Estimated cycles of the whole product by the tightest of FMA ports, FMA latency and loads."""
    tiles = -(-product.rows // rows) * -(-product.columns // (vectors * _lanes(product, target)))
    multiply = max(rows * vectors / target.fma_ports, FMA_LATENCY / partial_sums)
    # A panel comes from the second-level cache; broadcasts from the first.
    load = max(
        (_factor_loads(product, target, rows) + vectors) / target.load_ports,
        vectors * target.vector_bits / 8 / target.bytes_per_cycle[0],
    )
    # Loads that fit beside the multiplications still cost: what shares the core wants their ports too.
    step = max(multiply, load) + 0.5 * load
    return tiles * (product.depth * step + 2 * rows * vectors + 20)


def _unroll(product: Product) -> int:
    return next(u for u in (4, 2, 1) if product.depth % u == 0)


def _unrolls(target: Target) -> tuple[int, ...]:
    return (1, 2, 4, 8, 16) if target.by_lane else (1, 2, 4, 8)


def _written_out(product: Product, target: Target, rows: int) -> int:
    """Steps of the default's inner loop: what counts it and fetches ahead is an instruction in few then."""
    if target.sve_bits or not _packs_for_lanes(product, target, rows):
        return _unroll(product)
    return next(u for u in reversed(_unrolls(target)) if product.depth % u == 0)


def _partial_sums(target: Target, rows: int, vectors: int, unrolls: Sequence[int]) -> int:
    """How many sums of each element hide the latency of an addition, where a tile has half or less of those
    that it takes: what more there are, the less registers are left."""
    wanted = FMA_LATENCY * target.fma_ports
    if 2 * rows * vectors > wanted:
        return 1
    fitting = [n for n in PARTIAL_SUMS if n in unrolls and vectors * (n * rows + 1) < target.vector_registers]
    return next((n for n in fitting if n * rows * vectors >= wanted), max(fitting))


def _parts(product: Product, target: Target, rows: int, vectors: int) -> int:
    """Parts of the depth that give every thread work where the output has too few tiles."""
    tiles = prod(product.batch) * -(-product.rows // rows)
    tiles *= -(-product.columns // (vectors * _lanes(product, target)))
    wanted = min(-(-PIECES_PER_CORE * target.sharers // tiles), product.depth // SHORTEST_PART)
    return max(n for n in PARTS if n <= max(1, wanted))


def _chunk(product: Product) -> int:
    return 0 if product.depth <= MOST_WHOLE_DEPTH else DEFAULT_CHUNK


def _blocking(product: Product, target: Target, rows: int, vectors: int, shared: bool) -> tuple[int, int]:
    """Row tiles of a block and panels of a group.

    A block's chunk of the left operand, and the sums that wait for the next chunk, take a quarter of the
    second-level cache each. Threads share panels before rows: each then reads its own part of the weights.
    """
    itemsize = target.vector_bits // 8 // target.lanes(product.accumulator)
    tiles = -(-product.rows // rows)
    panels = -(-product.columns // (vectors * _lanes(product, target)))
    room = target.cache_bytes[1] // 4 // itemsize
    row_block = min(tiles, max(1, room // (rows * (_chunk(product) or product.depth))))
    group = min(panels, max(1, room // (row_block * rows * vectors * _lanes(product, target))))
    if shared:
        pieces = -(-PIECES_PER_CORE * target.sharers // prod(product.batch))
        group = min(group, -(-panels // pieces))
        row_block = min(row_block, -(-tiles // -(-pieces // -(-panels // group))))
    return _at_most(row_block, tiles), _at_most(group, panels)


def _at_most(size: int, count: int) -> int:
    """The largest choice of blocks up to `size`; 0, all in one, where there are no more."""
    return 0 if size >= count else max(b for b in BLOCKS if 0 < b <= size or b == 1)


def _packs_left(kernel: Kernel, product: Product, rows: int, vectors: int, target: Target) -> bool:
    """Pack rows that would otherwise be computed, or gathered from distant addresses, in every panel."""
    assert kernel.anchor is not None
    computed = placeholder_index(kernel, kernel.anchor.inputs[0]) is None
    panels = -(-product.columns // (vectors * _lanes(product, target)))
    return panels > 1 and (computed or product.transpose_left or _packs_for_lanes(product, target, rows))


def _packs_right(kernel: Kernel, product: Product, rows: int) -> bool:
    """Pack columns that are computed or lie apart in memory, when more than one row of tiles uses them."""
    assert kernel.anchor is not None
    if constant_right(kernel) is not None or -(-product.rows // rows) == 1:
        return False
    computed = placeholder_index(kernel, kernel.anchor.inputs[1]) is None
    return computed or product.transpose_right


TEMPLATES.register(MatmulCpu.name, MatmulCpu())
