"""What attention computes: its extents, which keys its queries see, how blocks of a GPU share that."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from tcomp.relay.attributes import flag, integer, number
from tcomp.relay.graph import Node
from tcomp.target.target import Gpu
from tcomp.tensor import loops
from tcomp.tensor.convolution import accumulator_dtype
from tcomp.tensor.gpu.threads import digits
from tcomp.tensor.loops import Expression
from tcomp.tensor.math import convert, dtype_of
from tcomp.tvm_api import tirx


@dataclass(frozen=True)
class Limit:
    """Which of `length` keys each of `rows` queries sees: all if `causal` is 0, else query r the first
    r + `causal`."""

    rows: int
    length: int
    causal: int

    def seen_by(self, row: Expression) -> Expression:
        """How many keys a query sees."""
        return tirx.min(row + self.causal, self.length) if self.causal else loops.constant(self.length)

    def steps_of(self, first: Expression, rows: int, keys: int) -> int | Expression:
        """Steps of `keys` keys that one of `rows` queries from `first` on sees."""
        if not self.causal:
            return -(-self.length // keys)
        return tirx.floordiv(self.seen_by(first + (rows - 1)) + (keys - 1), keys)


@dataclass(frozen=True)
class Walk:
    """Steps that blocks of queries take along the keys that they see."""

    mean: float
    """Of all blocks."""
    most: int

    @staticmethod
    @lru_cache(maxsize=1024)
    def of(limit: Limit, rows: int, keys: int) -> Walk:
        """Blocks of `rows` queries, steps of `keys` keys."""
        lasts = range(rows - 1, limit.rows + rows - 1, rows) if limit.causal else [limit.length]
        seen = (min(last + limit.causal, limit.length) for last in lasts)
        steps = [-(-keys_of_block // keys) for keys_of_block in seen]
        return Walk(sum(steps) / len(steps), max(steps))


@dataclass(frozen=True)
class Shape:
    """queries [*batch, rows, depth], keys [*batch, length, depth], values [*batch, length, width].

    Keys that no query sees are not counted.
    """

    batch: tuple[int, ...]
    rows: int
    length: int
    depth: int
    width: int
    dtype: str
    scale: float
    limit: Limit
    hidden: float
    """The score of keys that a mask of truth values hides."""
    zero_nan: bool
    """Whether weights that are no numbers are zeros."""

    @staticmethod
    def of(node: Node) -> Shape:
        query, key, value = (v.type.static_shape for v in node.inputs[:3])
        batch = node.output.type.static_shape[:-2]
        dtype = accumulator_dtype(node.output.dtype)
        scale, causal = number(node.attrs, "scale"), integer(node.attrs, "causal")
        rows, length = query[-2], key[-2]
        if causal:
            length = min(length, rows - 1 + causal)
        limit = Limit(rows, length, causal if causal < length else 0)
        extents = (batch, rows, length, query[-1], value[-1])
        hidden, zero_nan = number(node.attrs, "hidden"), flag(node.attrs, "zero_nan")
        return Shape(*extents, dtype, scale, limit, hidden, zero_nan)

    def masked(self, score: Expression, mask: Expression) -> Expression:
        """A score, and an element of the mask for it."""
        if dtype_of(mask) == "bool":
            return tirx.Select(mask, score, tirx.const(self.hidden, self.dtype))
        return score + convert(mask, self.dtype)

    def settled(self, value: Expression, are_numbers: Expression) -> Expression:
        """An element of the output, whose weights may be no numbers."""
        return tirx.Select(are_numbers, value, tirx.const(0, self.dtype)) if self.zero_nan else value

    def key_vectors(self, lanes: int) -> int:
        """Vectors of one row of scores."""
        return -(-self.length // lanes)

    def value_vectors(self, lanes: int) -> int:
        """Vectors of one row of the output."""
        return -(-self.width // lanes)


@dataclass(frozen=True)
class Blocks:
    """Blocks of a GPU: `along` of them for each of `heads`.

    Where queries do not see all keys, blocks that walk furthest come first, of `together` heads in turns, so
    that short ones fill the multiprocessors at the end. What these heads have of keys and values stays in the
    second-level cache.
    """

    heads: int
    along: int
    together: int

    @staticmethod
    def of(node: Node, heads: int, along: int, gpu: Gpu) -> Blocks:
        """Those of an attention, whose heads may be matrices of several that share keys and values."""
        if not Shape.of(node).limit.causal:
            return Blocks(heads, along, 0)
        near = gpu.l2_bytes // 2 * heads // sum(v.type.nbytes for v in node.inputs[1:3])
        divisors = (n for n in range(max(1, min(heads, near)), 0, -1) if heads % n == 0)
        return Blocks(heads, along, next(divisors))

    @property
    def count(self) -> int:
        return self.heads * self.along

    def place(self, number: Expression) -> tuple[Expression, Expression]:
        """The head of a block, and which of its blocks it is."""
        if not self.together:
            head, block = digits(number, (self.heads, self.along))
            return head, block
        group, back, one = digits(number, (self.heads // self.together, self.along, self.together))
        return group * self.together + one, self.along - 1 - back
