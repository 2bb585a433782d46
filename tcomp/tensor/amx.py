"""Intel's tiles (AMX): eight registers of 16 rows of 64 bytes, and an instruction that multiplies two.

`tdpbf16ps` adds to a tile of float32 sums the products of a tile of pairs of bfloat16 and another one: 16
rows by 16 columns by 16 pairs of the depth, sixteen times the products of AVX-512 in a cycle. The left tile
has a row of pairs for each row of sums; the right one has for each pair a row of columns. Denormals are taken
for zero. Tiles may have fewer rows and columns, which `ldtilecfg` says once for all; it takes 200 cycles.

Each function here is one instruction. LLVM takes the numbers of tiles as constants, which names end with.
Intel 64 and IA-32 Architectures Optimization Reference Manual, chapter "Intel AMX".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tcomp.target.target import Target
from tcomp.target.tiles import BFLOAT16_TILES
from tcomp.tensor.intrinsics import register_functions
from tcomp.tensor.loops import Expression, Statement, call
from tcomp.tvm_api import PrimFunc, structural_walk, tirx, tvm

DTYPE = "bfloat16"
TILES = 8
ROWS = 16
"""Most rows of a tile."""
LANES = 16
"""Most sums, or pairs, of a row: 64 bytes of them."""
WORD_BYTES = 4

LATENCY = 52
"""Cycles until a tile of sums can be added to again."""
SHORTEST = 10
"""Cycles from one product to the next where tiles have few rows; it is one a row otherwise."""
LOAD = 8
"""Cycles that a load of 16 rows takes."""
LINE = 1.0
"""Cycles that the load of a row adds to a step: one operand comes from the second-level cache, and a busy
neighbour makes all loads slow."""
STORE = 16
"""Cycles that a store of 16 rows takes."""

_CONFIGURE, _RELEASE = "tcomp_tiles_configure", "tcomp_tiles_release"
_ZERO, _LOAD, _STORE, _MULTIPLY = (f"tcomp_tile_{name}" for name in ("zero", "load", "store", "multiply"))


def has_tiles(target: Target) -> bool:
    """Whether products of `target` that take fewer bits are those of tiles."""
    return target.fast_dtype == DTYPE and all(map(target.has, BFLOAT16_TILES))


def uses_tiles(function: PrimFunc) -> bool:
    """Whether a kernel has instructions for tiles, before `with_instructions` or after."""
    found: list[Any] = []
    structural_walk(function.body, (tvm.ir.Call, found.append))
    names = (str(call.args[0].value) for call in found if call.op.name == "tirx.call_extern")
    return any(name.startswith(_CONFIGURE) for name in names)


@dataclass(frozen=True)
class TileBlock:
    """`down` by `across` tiles of sums, each of `rows` by `lanes`; a step takes `pairs` pairs of the depth.

    The operand of fewer tiles stays in registers over a step, and those of the other one pass by.
    """

    down: int
    across: int
    rows: int
    lanes: int
    pairs: int

    @property
    def fits(self) -> bool:
        """Whether there are registers for it."""
        return self._passing > 0

    @property
    def height(self) -> int:
        """Rows of the block."""
        return self.down * self.rows

    @property
    def width(self) -> int:
        """Columns of the block."""
        return self.across * self.lanes

    @property
    def step_cycles(self) -> float:
        """Estimated cycles of a step, by the latency of sums, the products and the loads."""
        products = self.down * self.across * max(self.rows, SHORTEST)
        loads = LOAD * (self.down * max(self.rows / ROWS, 0.5) + self.across)
        lines = self.down * self.rows + self.across * self.pairs
        return max(LATENCY, products, loads) + LINE * lines

    @property
    def _sums(self) -> int:
        return self.down * self.across

    @property
    def _held(self) -> int:
        return min(self.down, self.across)

    @property
    def _passing(self) -> int:
        """Registers that the passing operand takes turns in."""
        return min(max(self.down, self.across), TILES - self._sums - self._held)

    def configure(self) -> Statement:
        """What comes before all other statements here; sums are zero then."""
        sizes = (self.down, self.across, self.rows, self.lanes, self.pairs)
        return call("_".join([_CONFIGURE, *map(str, sizes)]))

    @property
    def operands(self) -> tuple[int, int]:
        """How many registers the left and the right operand have, behind those of the sums."""
        held, passing = self._held, self._passing
        return (passing, held) if self.across <= self.down else (held, passing)

    def release(self) -> Statement:
        """What comes after all other statements here: the tiles need not be saved from then on."""
        return call(_RELEASE)

    def clear(self) -> list[Statement]:
        return [call(f"{_ZERO}_{n}") for n in range(self._sums)]

    def store(self, address: Callable[[int, int], Expression], row_bytes: int) -> list[Statement]:
        """Store the sums: `address(i, j)` of those of tile i of rows and j of columns."""
        places = [(i, j) for i in range(self.down) for j in range(self.across)]
        return [_move(f"{_STORE}_{n}", address(*place), row_bytes) for n, place in enumerate(places)]

    def step(
        self,
        left: Callable[[int], Expression],
        left_bytes: int,
        right: Callable[[int], Expression],
        right_bytes: int,
    ) -> list[Statement]:
        """Multiply: `left(i)` is the address of the pairs of tile i of rows, which lie `left_bytes` apart,
        and `right(j)` that of the columns of tile j, the next pair's being `right_bytes` further."""
        lefts, rights = self.operands
        first_left, first_right = self._sums, self._sums + lefts

        def load_left(i: int) -> Statement:
            return _move(f"{_LOAD}_{first_left + i % lefts}", left(i), left_bytes)

        def load_right(j: int) -> Statement:
            return _move(f"{_LOAD}_{first_right + j % rights}", right(j), right_bytes)

        def multiply(i: int, j: int) -> Statement:
            tiles = i * self.across + j, first_left + i % lefts, first_right + j % rights
            return call("_".join([_MULTIPLY, *map(str, tiles)]))

        # Where every tile has a register, all loads come first: some moments of a busy machine let loads wait
        # for the products before them, and products for the loads.
        if (lefts, rights) == (self.down, self.across):
            places = [(i, j) for i in range(self.down) for j in range(self.across)]
            loads = [load_right(j) for j in range(rights)] + [load_left(i) for i in range(lefts)]
            return [*loads, *(multiply(*place) for place in places)]
        statements: list[Statement] = []
        if self.across <= self.down:
            statements += [load_right(j) for j in range(self.across)]
            for i in range(self.down):
                statements += [load_left(i), *(multiply(i, j) for j in range(self.across))]
        else:
            statements += [load_left(i) for i in range(self.down)]
            for j in range(self.across):
                statements += [load_right(j), *(multiply(i, j) for i in range(self.down))]
        return statements


def shapes_of(block: TileBlock) -> bytes:
    """What `ldtilecfg` reads for a block's tiles: the palette in byte 0, the bytes of a row of each tile from
    byte 16, its rows from byte 48 (Software Developer's Manual, volume 2, LDTILECFG)."""
    lefts, rights = block.operands
    shapes = [(block.rows, block.lanes)] * (block.down * block.across)
    shapes += [(block.rows, block.pairs)] * lefts + [(block.pairs, block.lanes)] * rights
    content = bytearray(64)
    content[0] = 1
    for tile, (height, width) in enumerate(shapes):
        content[16 + 2 * tile] = WORD_BYTES * width
        content[48 + tile] = height
    return bytes(content)


def blocks(rows: Sequence[int], lanes: int, pairs: int) -> list[TileBlock]:
    """All blocks that registers allow, of tiles of so many rows."""
    shapes = [(d, a) for d in range(1, TILES) for a in range(1, TILES) if d * a < TILES]
    found = [TileBlock(d, a, r, lanes, pairs) for d, a in shapes for r in rows]
    return [block for block in found if block.fits]


def _move(name: str, address: Expression, row_bytes: int) -> Statement:
    return call(name, address, tirx.const(row_bytes, "int64"))


def _configure_text(name: str) -> str:
    down, across, rows, lanes, pairs = map(int, name.removeprefix(f"{_CONFIGURE}_").split("_"))
    content = shapes_of(TileBlock(down, across, rows, lanes, pairs))
    text = "".join(f"\\{byte:02x}" for byte in content)
    return f"""
@{name}_shapes = private unnamed_addr constant [64 x i8] c"{text}", align 64
declare void @llvm.x86.ldtilecfg(ptr)
define weak void @{name}() alwaysinline {{
  call void @llvm.x86.ldtilecfg(ptr @{name}_shapes)
  ret void
}}"""


def _release_text(name: str) -> str:
    return f"""
declare void @llvm.x86.tilerelease()
define weak void @{name}() alwaysinline {{
  call void @llvm.x86.tilerelease()
  ret void
}}"""


def _tile_text(name: str) -> str:
    operation, *tiles = name.removeprefix("tcomp_tile_").split("_")
    instruction, moves = {
        "zero": ("tilezero", False),
        "load": ("tileloadd64", True),
        "store": ("tilestored64", True),
        "multiply": ("tdpbf16ps", False),
    }[operation]
    numbers = [f"i8 {tile}" for tile in tiles]
    parameters, operands = ("ptr %first, i64 %next", ["ptr %first", "i64 %next"]) if moves else ("", [])
    types = ", ".join(["i8"] * len(tiles) + ["ptr", "i64"][: len(operands)])
    return f"""
declare void @llvm.x86.{instruction}({types})
define weak void @{name}({parameters}) alwaysinline {{
  call void @llvm.x86.{instruction}({", ".join([*numbers, *operands])})
  ret void
}}"""


TEXTS: Mapping[str, Callable[[str], str]] = {
    _CONFIGURE: _configure_text,
    _RELEASE: _release_text,
    "tcomp_tile_": _tile_text,
}
"""By how names begin, LLVM's language for functions of such names."""
for _beginning, _text in TEXTS.items():
    register_functions(_beginning, _text)
