"""Tiles of factors in a GPU's shared memory: how they get there, and how products of them are summed up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tcomp.tensor.gpu.block_tile import PAD
from tcomp.tensor.gpu.matrices import Index
from tcomp.tensor.gpu.operand import Operand
from tcomp.tensor.gpu.threads import digits
from tcomp.tensor.loops import (
    Buffer,
    Expression,
    Statement,
    constant,
    local,
    rolled,
    sequence,
    unrolled,
    vectorized,
)
from tcomp.tvm_api import tirx

GROUP = 4
"""Most neighbouring rows or columns of a thread."""
_SECTOR = 8
"""Elements of one row that neighbouring threads load: 32 bytes of float32, a sector of memory."""
_UNROLLED_DEPTH = 8


def tile_elements(size: int, depth: int) -> int:
    """What a tile takes of shared memory."""
    return depth * (size + PAD)


@dataclass(frozen=True)
class SharedTile:
    """A tile `[depth, size]` that begins at an element of a flat buffer."""

    buffer: Buffer
    begin: Expression
    size: int

    def at(self, k: Expression, x: Expression) -> list[Expression]:
        return [self.begin + k * (self.size + PAD) + x]


class TileLoader:
    """How the threads of a block move one operand's tiles from memory to shared memory, by way of registers.

    They do so in `passes`: in each, every thread takes `lanes` elements. Where those are neighbours in the
    depth, threads are numbered so that a warp takes 8 of each row: that is whole sectors of memory, and the
    stores, which transpose, meet no bank of shared memory twice: element `(k, x)` is in bank `4 k + x`.
    """

    def __init__(
        self, operand: Operand, size: int, depth: int, threads: int, guarded: bool, name: str
    ) -> None:
        """Tiles of `depth` by `size`; `guarded` ones may reach beyond the end of the depth, and get zeros."""
        self.operand, self.size, self.depth, self.guarded = operand, size, depth, guarded
        self.lanes, self.dtype, self._threads = operand.lanes, operand.accumulator, threads
        self.slots = size * depth // self.lanes
        self.passes = -(-self.slots // threads)
        self.allocate, self.staging = local((self.passes * self.lanes,), self.dtype, f"{name}_staging")

    def place(self, slot: Expression) -> tuple[Expression, Expression]:
        """The first (k, x) in the tile of what a thread takes."""
        if self.operand.along_depth:
            near, x, far = digits(slot, (self.depth // _SECTOR, self.size, _SECTOR // self.lanes))[::-1]
            return (far * (_SECTOR // self.lanes) + near) * self.lanes, x
        k, x = digits(slot, (self.depth, self.size // self.lanes))
        return k, x * self.lanes

    def _each(
        self, thread: Expression, body: Callable[[Expression, Expression, Expression], Statement]
    ) -> Statement:
        """`body(pass, k, x)` for what a thread takes."""

        def one(number: Expression) -> Statement:
            slot = number * self._threads + thread
            inside = body(number, *self.place(slot))
            whole = self.slots % self._threads == 0
            return inside if whole else tirx.IfThenElse(slot < self.slots, inside, None)

        return unrolled(self.passes, one, "pass")

    def load(self, thread: Expression, batch: Index, begin: Expression, step: Expression) -> Statement:
        """Load the tile of rows from `begin` on, the `step`-th of the depth, into registers."""
        operand, first = self.operand, step * self.depth
        steps, over = (1, 0) if operand.along_depth else (0, 1)

        def one(number: Expression, k: Expression, x: Expression) -> Statement:
            row = begin + x
            if operand.extent % self.size:
                row = tirx.min(row, constant(operand.extent - (self.lanes if over else 1)))

            def element(lane: Expression) -> Statement:
                at = number * self.lanes + lane
                return operand.read(batch, row + lane * over, first + k + lane * steps, self.staging, [at])

            def zero(lane: Expression) -> Statement:
                return tirx.BufferStore(self.staging, tirx.const(0, self.dtype), [number * self.lanes + lane])

            load = vectorized(self.lanes, element)
            if not self.guarded:
                return load
            return tirx.IfThenElse(first + k < operand.depth, load, vectorized(self.lanes, zero))

        return self._each(thread, one)

    def store(self, thread: Expression, tile: SharedTile) -> Statement:
        """Store what was loaded into `tile`."""
        along_depth = self.operand.along_depth

        def one(number: Expression, k: Expression, x: Expression) -> Statement:
            def element(lane: Expression) -> Statement:
                at = tile.at(k + lane, x) if along_depth else tile.at(k, x + lane)
                return tirx.BufferStore(tile.buffer, self.staging[number * self.lanes + lane], at)

            return (unrolled if along_depth else vectorized)(self.lanes, element)

        return self._each(thread, one)


@dataclass(frozen=True)
class Factors:
    """What one thread reads of a tile: `count` rows (or columns), in groups; see `block_tile`."""

    tile: SharedTile
    place: Expression
    """Of the thread, among `along` of them on this axis."""
    along: int
    count: int

    @property
    def width(self) -> int:
        """Neighbours in a group."""
        return min(self.count, GROUP)

    def at(self, number: Expression) -> Expression:
        """Where the thread's row (or column) of this number is in the tile."""
        group, inner = tirx.floordiv(number, self.width), tirx.floormod(number, self.width)
        return group * (self.along * self.width) + self.place * self.width + inner

    def load(self, k: Expression, target: Buffer, which: Expression) -> Statement:
        """Load those of depth `k` into set `which` of `target`."""
        vectors = str(target.dtype) == "float32"

        def group(number: Expression) -> Statement:
            def element(lane: Expression) -> Statement:
                c = number * self.width + lane
                begin = number * (self.along * self.width) + self.place * self.width
                factor = tirx.BufferLoad(self.tile.buffer, self.tile.at(k, begin + lane))
                return tirx.BufferStore(target, factor, [which, c])

            return (vectorized if vectors else unrolled)(self.width, element)

        return unrolled(self.count // self.width, group, "group")


def each_sum(sums: Buffer, body: Callable[[Expression, Expression], Statement]) -> Statement:
    """`body(row, column)` for each of a thread's `[rows, columns]` sums, written out."""
    rows, columns = (int(extent) for extent in sums.shape)
    return unrolled(rows, lambda r: unrolled(columns, lambda c: body(r, c), "c"), "r")


class Products:
    """A thread's `[rows, columns]` sums of products of factors in shared memory.

    There are two sets of factors in registers: those of the next depth are loaded before those at hand are
    multiplied, across the ends of loops and barriers too, so that a warp has the time of a multiplication.
    """

    def __init__(self, sums: Buffer) -> None:
        rows, columns = (int(extent) for extent in sums.shape)
        self._sums = sums
        allocate_left, self._left = local((2, rows), str(sums.dtype), "left_factors")
        allocate_right, self._right = local((2, columns), str(sums.dtype), "right_factors")
        self.allocate = sequence([allocate_left, allocate_right])

    def begin(self, left: Factors, right: Factors, k: Expression | None = None) -> Statement:
        """Load the factors of the first depth, or of `k`, a multiple of 2."""
        return self._load(constant(0), constant(0) if k is None else k, left, right)

    def add(self, left: Factors, right: Factors, depth: int, following: Statement | None = None) -> Statement:
        """`sums[r, c] += left[k, r] * right[k, c]` for every k below `depth`, a multiple of 8.

        Those of the first k have been loaded. `following` loads what comes next before the last ones are
        multiplied.
        """
        count = depth // _UNROLLED_DEPTH

        def then_next(some: Expression) -> Statement:
            # Behind the last ones, those at hand are the next to be loaded.
            number = some + 1 if following is not None else tirx.floormod(some + 1, count)
            return self._some(some, left, right, self.begin(left, right, number * _UNROLLED_DEPTH))

        if following is None:
            return rolled(count, then_next, "some")
        last = self._some(constant(count - 1), left, right, following)
        return sequence([rolled(count - 1, then_next, "some"), last]) if count > 1 else last

    def _some(self, some: Expression, left: Factors, right: Factors, following: Statement) -> Statement:
        def one(k: Expression) -> Statement:
            load = self._load(tirx.floormod(k + 1, 2), some * _UNROLLED_DEPTH + k + 1, left, right)
            return sequence([load, self._multiply(tirx.floormod(k, 2))])

        last = _UNROLLED_DEPTH - 1
        return sequence([unrolled(last, one, "k"), following, self._multiply(constant(last % 2))])

    def _load(self, which: Expression, k: Expression, left: Factors, right: Factors) -> Statement:
        return sequence([left.load(k, self._left, which), right.load(k, self._right, which)])

    def _multiply(self, which: Expression) -> Statement:
        def add(r: Expression, c: Expression) -> Statement:
            value = self._sums[r, c] + self._left[which, r] * self._right[which, c]
            return tirx.BufferStore(self._sums, value, [r, c])

        return each_sum(self._sums, add)
