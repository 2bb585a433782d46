"""Products of few bits: neighbours of a reduction as one element, a group, that one instruction multiplies.

A matrix [M, K] of bfloat16 elements is a matrix [M, K / 2] of groups, each one `uint32` with the earlier
element in its low half. A kernel over groups looks as one over float32: a scalar of the left operand is
broadcast, a vector of the right one loaded, and one instruction multiplies and adds. `GroupSums` says which:

| operands | group | instruction | sums |
|---|---|---|---|
| bfloat16 | 2 | `vdpbf16ps` (AVX512-BF16), `bfdot` (ARM) | float32; see `tcomp.tensor.bfloat16` |
| float16 | 2 | `vfmadd231ph` (AVX512-FP16) | pairs of float16, then float32 |
| float16 | 1 | `fmla v.8h` (ARM) | float16, then float32 |
| int8 | 4 | `sdot` (ARM) | int32 |
| bfloat16 | 2 | `tdpbf16ps` (AMX), tiles at a time | float32; see `tcomp.tensor.amx` |
| bfloat16 | 4 | `bfmmla` (ARM) | float32, in squares |
| int8 | 8 | `smmla` (ARM) | int32, in squares |

The last two multiply two rows by two columns: a register is a square of four sums (`RegisterTile.squares`),
and a register of either operand two groups, each of two `uint32`. They do twice the products of `bfdot` and
`sdot`, and start as often.

ARM multiplies a vector by one element of another, whatever its width, so that float16 needs no pairs there.
Float16 carries 11 bits, so such short sums take up few products and are then added to float32 sums. With
`MOST_STEPS` products each, their rounding adds an error of the size of bfloat16's rounding of the operands,
measured on random matrices.

Without the instruction, groups of bfloat16 are multiplied by plain code, and int8 stays in single elements.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np

from tcomp.relay.types import Array, numpy_dtype
from tcomp.target.target import Target
from tcomp.tensor import bfloat16
from tcomp.tensor.amx import LANES, ROWS, has_tiles
from tcomp.tensor.intrinsics import (
    Expression,
    Instruction,
    Operands,
    by_element,
    call,
    dtype_of,
    lanes_of,
    llvm_vector,
    register,
    spread,
    vector,
)
from tcomp.tensor.loops import Statement
from tcomp.tvm_api import tirx

ReadElement = Callable[[Expression], tuple[list[Statement], Expression]]
"""What is needed for the element at a place of the reduction, and that element."""
WORD = "uint32"
"""The element type of a group of several elements."""
MOST_STEPS = 96
"""Products that one float16 sum takes up before it is added to the float32 sum."""
SIDE = 2
"""Rows and columns of a square of sums; see `RegisterTile.squares`."""


@dataclass(frozen=True)
class ShortSums:
    """Sums in a type of fewer bits, which `widened` into the reduction's own after at most `most_steps`."""

    dtype: str
    initial: Expression
    widened: Callable[[Expression], Expression]
    most_steps: int


@dataclass(frozen=True)
class GroupSums:
    """How products of groups are summed.

    A group has `size` elements of the reduction, in `side` words of type `dtype`. `multiply_add(total, left,
    right)` adds the products of a step; `short` says what it adds them to, where that is not the
    accumulator. Where `side` is not 1, sums are in squares of `side` rows and columns.
    """

    size: int
    dtype: str
    multiply_add: Callable[[Expression, Expression, Expression], Expression]
    short: ShortSums | None = None
    side: int = 1
    tiles: bool = False
    """Whether kernels by tile registers (`tcomp.tensor.amx`) multiply these groups too."""
    delay: int = 1
    """Times as long as a product of float32 vectors that one of groups takes."""

    def rate(self, target: Target) -> int:
        """Products that a core starts in the time of one of float32: instructions start as often, and tiles
        multiply as many in a cycle as there are rows."""
        return ROWS if self.tiles else self.size * target.lanes(self.dtype) // target.lanes("float32")

    @property
    def in_word(self) -> int:
        """Elements of the reduction in one element of `dtype`."""
        return self.size // self.side

    def block(self, target: Target) -> int:
        """Channels of a block for convolutions: those of a vector of sums, or of a row of pairs in tiles.

        Where sums are in squares, those of a group: groups of neighbouring pixels lie behind each other then.
        """
        if self.tiles:
            return LANES * self.size
        return self.size if self.side > 1 else target.in_neon().lanes(self.dtype)

    def view(self, buffer: Any, name: str) -> tuple[Any, Any]:
        """A declaration that `buffer` also is a buffer of words, and that buffer.

        The innermost extent is a multiple of a group's size.
        """
        shape = [*buffer.shape[:-1], int(buffer.shape[-1]) // self.in_word]
        groups = tirx.decl_buffer(shape, self.dtype, name=name, data=buffer.data)
        return tirx.DeclBuffer(groups, data=buffer.data), groups

    def joined(self, elements: list[Expression]) -> Expression:
        """The word of `in_word` elements."""
        if self.in_word == 1:
            return elements[0]
        bits = 32 // self.in_word
        words = [tirx.reinterpret(f"uint{bits}", x).astype(WORD) for x in elements]
        shifted = [tirx.shift_left(w, tirx.const(bits * i, WORD)) for i, w in enumerate(words)]
        return reduce(tirx.bitwise_or, shifted)

    def word(self, k: Expression, extent: int, read: ReadElement) -> tuple[list[Statement], Expression]:
        """Word `k` of an axis of `extent` elements, with zeros beyond it, after what is needed for it."""
        whole = extent % self.size == 0
        needed: list[Statement] = []
        elements: list[Expression] = []
        for i in range(self.in_word):
            at = k * self.in_word + i
            statements, value = read(at if whole else tirx.min(at, extent - 1))
            needed += statements
            elements.append(value)
        joined = self.joined(elements)
        return needed, joined if whole else self.zero_beyond(joined, extent - k * self.in_word)

    def zero_beyond(self, word: Expression, present: Expression) -> Expression:
        """`word` with zeros in all but its first `present` elements, at least one where a group is a word."""
        bits = 32 // self.in_word
        kept = tirx.const(0xFFFFFFFF, WORD)
        for count in range(self.in_word - 1, 0 if self.side == 1 else -1, -1):
            low = tirx.const((1 << (bits * count)) - 1, WORD)
            kept = tirx.Select(present <= count, low, kept)
        return tirx.bitwise_and(word, kept)

    def pack(self, array: Array) -> Array:
        """`[..., k, n]` of a narrow type -> `[..., k / size, n * side]`, missing last rows being zero."""
        rest = -array.shape[-2] % self.size
        if rest:
            zeros: Array = np.zeros((*array.shape[:-2], rest, array.shape[-1]), array.dtype)
            array = np.concatenate([array, zeros], axis=-2)
        *outer, depth, columns = array.shape
        split = array.reshape(*outer, depth // self.size, self.size, columns)
        together = np.ascontiguousarray(np.moveaxis(split, -2, -1))
        return together.view(numpy_dtype(self.dtype)).reshape(*outer, depth // self.size, columns * self.side)


def ways_to_sum(target: Target, dtype: str) -> tuple[GroupSums, ...]:
    """How `target` multiplies groups of `dtype` faster than single elements, the fastest first.

    The last one is for all products.
    """
    if not (dtype == target.fast_dtype or (dtype == "int8" and target.multiplies(dtype))):
        return ()
    on_arm = target.machine == "aarch64"
    if dtype == "int8":
        return (_INT8_SQUARES, _INT8) if target.has("i8mm") else (_INT8,)
    if dtype == "bfloat16":
        if has_tiles(target):
            return (_BFLOAT16_TILES,)
        return (_BFLOAT16_SQUARES, BFLOAT16_PAIRS) if on_arm and target.has("bf16") else (BFLOAT16_PAIRS,)
    return (_HALF,) if on_arm else (_HALF_PAIRS,)


def _half_pairs_multiply_add(total: Expression, left: Expression, right: Expression) -> Expression:
    """`total + left * right` in both halves of float16 pairs, rounded once."""
    return call("half_pairs_multiply_add", WORD, total, left, right)


def _half_pairs_widened_sum(pair: Expression) -> Expression:
    """The sum of both halves of a float16 pair as float32."""
    return call("half_pairs_widened_sum", "float32", pair)


def _half_multiply_add(total: Expression, left: Expression, right: Expression) -> Expression:
    """`total + left * right` in float16, rounded once."""
    return call("half_multiply_add", "float16", total, left, right)


def _halves(pair: Expression) -> Expression:
    return tirx.reinterpret(vector("float16", 2 * lanes_of(pair)), pair)


def _lower_pairs_multiply_add(operands: Operands) -> Expression:
    total, left, right = operands
    halves = [_halves(x) for x in (left, right, total)]
    result = tirx.call_llvm_pure_intrin(dtype_of(halves[0]), "llvm.fma", *halves)
    return tirx.reinterpret(dtype_of(total), result)


def _lower_pairs_widened_sum(operands: Operands) -> Expression:
    (pair,) = operands
    lanes = lanes_of(pair)
    shift = spread(tirx.const(16, WORD), lanes)
    total = tirx.reinterpret(dtype_of(pair), _halves(pair) + _halves(tirx.shift_right(pair, shift)))
    low = tirx.reinterpret(vector("float16", lanes), total.astype(vector("uint16", lanes)))
    return low.astype(vector("float32", lanes))


def _int8_multiply_add(total: Expression, left: Expression, right: Expression) -> Expression:
    """`total` in int32 plus the products of the four int8 of `left`, the same in all lanes, and `right`."""
    return call("int8_multiply_add", "int32", total, left, right)


def int8_lanes_multiply_add(total: Expression, left: Expression, right: Expression) -> Expression:
    """As `_int8_multiply_add`, with a `left` of its own in each lane."""
    return call("int8_lanes_multiply_add", dtype_of(total), total, left, right)


def _sdot_text(name: str, lanes: int) -> str:
    total, groups, elements = (
        llvm_vector(element, n) for element, n in (("i32", lanes), ("i32", lanes), ("i8", 4 * lanes))
    )
    intrinsic = f"@llvm.aarch64.neon.sdot.v{lanes}i32.v{4 * lanes}i8"
    return f"""
declare {total} {intrinsic}({total}, {elements}, {elements})
define weak {total} @{name}({total} %total, {groups} %left, {groups} %right) alwaysinline {{
  %a = bitcast {groups} %left to {elements}
  %b = bitcast {groups} %right to {elements}
  %sum = call {total} {intrinsic}({total} %total, {elements} %a, {elements} %b)
  ret {total} %sum
}}"""


def _lower_int8_multiply_add(operands: Operands) -> Expression:
    total, *groups = operands
    lanes = lanes_of(total)
    words = [tirx.reinterpret(dtype_of(total), group) for group in groups]
    top = spread(tirx.const(24, "int32"), lanes)
    for place in (24, 16, 8, 0):
        shift = spread(tirx.const(place, "int32"), lanes)
        left, right = (tirx.shift_right(tirx.shift_left(w, shift), top) for w in words)
        total = total + left * right
    return total


def _square_multiply_add(total: Expression, left: Expression, right: Expression) -> Expression:
    """`total` plus the products of two rows of `left` and two columns of `right`, in squares."""
    dtype = dtype_of(total)
    return call(f"{dtype}_square_multiply_add", dtype, total, left, right)


def _lower_square(multiply_add: Callable[[Operands], Expression]) -> Callable[[Operands], Expression]:
    """One word of each row and column after the other: lanes of `left` are `[row, word]`, those of `right`
    `[column, word]`, those of the sums `[row, column]`."""

    def lower(operands: Operands) -> Expression:
        total, left, right = operands
        for word in range(2):
            rows = [tirx.const(lane, "int32") for lane in (word, word, 2 + word, 2 + word)]
            columns = [tirx.const(lane, "int32") for lane in (word, 2 + word, word, 2 + word)]
            total = multiply_add([total, tirx.Shuffle([left], rows), tirx.Shuffle([right], columns)])
        return total

    return lower


def _matrix_text(mnemonic: str, wide: str, narrow: str) -> Callable[[str, int], str]:
    """The text of ARM's products of two rows and two columns: `mnemonic total.4s, left.16b, right.16b`."""

    def text(name: str, lanes: int) -> str:
        total, words = llvm_vector(wide, lanes), llvm_vector("i32", lanes)
        elements = llvm_vector(narrow, 16 if narrow == "i8" else 8)
        intrinsic = f"@llvm.aarch64.neon.{mnemonic}"
        return f"""
declare {total} {intrinsic}({total}, {elements}, {elements})
define weak {total} @{name}({total} %total, {words} %left, {words} %right) alwaysinline {{
  %a = bitcast {words} %left to {elements}
  %b = bitcast {words} %right to {elements}
  %sum = call {total} {intrinsic}({total} %total, {elements} %a, {elements} %b)
  ret {total} %sum
}}"""

    return text


def _lower_multiply_add(operands: Operands) -> Expression:
    total, left, right = operands
    return tirx.call_llvm_pure_intrin(dtype_of(total), "llvm.fma", left, right, total)


_INT8 = GroupSums(4, WORD, _int8_multiply_add)
_INT8_SQUARES = GroupSums(8, WORD, _square_multiply_add, side=SIDE)
_BFLOAT16_SQUARES = GroupSums(4, WORD, _square_multiply_add, side=SIDE)
BFLOAT16_PAIRS = GroupSums(2, WORD, bfloat16.multiply_add)
_BFLOAT16_TILES = replace(BFLOAT16_PAIRS, tiles=True, delay=4)
_HALF_PAIRS = GroupSums(
    2,
    WORD,
    _half_pairs_multiply_add,
    ShortSums(WORD, tirx.const(0, WORD), _half_pairs_widened_sum, MOST_STEPS),
)
_HALF = GroupSums(
    1,
    "float16",
    _half_multiply_add,
    ShortSums("float16", tirx.const(0, "float16"), lambda x: x.astype("float32"), MOST_STEPS),
)
register("half_pairs_multiply_add", _lower_pairs_multiply_add)
register("half_pairs_widened_sum", _lower_pairs_widened_sum)
register("half_multiply_add", _lower_multiply_add)
register(
    "int8_multiply_add",
    _lower_int8_multiply_add,
    (Instruction("dotprod", (2, 4), by_element("sdot", "i32", "b")),),
)
register("int8_lanes_multiply_add", _lower_int8_multiply_add, (Instruction("dotprod", (2, 4), _sdot_text),))
register(
    "int32_square_multiply_add",
    _lower_square(_lower_int8_multiply_add),
    (Instruction("i8mm", (4,), _matrix_text("smmla.v4i32.v16i8", "i32", "i8")),),
)
register(
    "float32_square_multiply_add",
    _lower_square(bfloat16.lower_multiply_add),
    (Instruction("bf16", (4,), _matrix_text("bfmmla", "float", "bfloat")),),
)
