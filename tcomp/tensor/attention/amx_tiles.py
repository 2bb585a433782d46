"""The loops of attention by tile registers (`amx`): softmax(q k^T scale + mask) v of bfloat16.

    for each batch (head):
      pack keys as [panel of keys, pair of the depth, key] and values as [pair of keys, column]
      for each block of rows:
        copy the queries
        for each panel of keys:          scores = q k^T
        for each row:                    weights = exp(scores scale + mask - the highest), and their total
        for each panel of columns:       (weights v) / total, the epilogue, the output

Scores and totals are float32; weights are rounded to bfloat16 for the second product. What a head needs lies
in the nearest caches. Extents that do not fill tiles are filled up with zeros. A block of causal attention
walks no further than to the last panel that one of its rows sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import e, gcd, inf, log2, prod
from typing import Any

from tcomp.tensor import bfloat16, loops
from tcomp.tensor.amx import LANES, WORD_BYTES, TileBlock
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.attention.shape import Shape
from tcomp.tensor.cpu.primitives import Tiles, transpose_square
from tcomp.tensor.cpu.tile_nest import in_pieces
from tcomp.tensor.groups import WORD, GroupSums
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.loops import Buffer, Expression, Statement
from tcomp.tensor.math import exp2, larger
from tcomp.tensor.product import unravel
from tcomp.tensor.template import Scheduled
from tcomp.tvm_api import Tensor, tirx

Index = Sequence[Any]
PAIR = 2
PANEL = 2 * LANES
"""Keys, or columns of values, that are multiplied together."""
TOGETHER = 4
"""Vectors of a row of scores that are written out."""
_BITS = "uint16"


@dataclass(frozen=True)
class Sizes:
    """Extents of a head's operands, filled up to whole panels and pairs."""

    depth: int
    keys: int
    columns: int

    @staticmethod
    def of(shape: Shape) -> Sizes:
        return Sizes(*(-(-extent // PANEL) * PANEL for extent in (shape.depth, shape.length, shape.width)))


class AttentionTiles:
    """The loops of one kernel, `block` being the tiles of both products, in so many `pieces`."""

    def __init__(self, kernel: Kernel, block: TileBlock, lanes: int, sums: GroupSums, pieces: int) -> None:
        assert kernel.anchor is not None
        self.shape = shape = Shape.of(kernel.anchor)
        self.sizes = sizes = Sizes.of(shape)
        self.block, self.lanes, self.sums, self.pieces = block, lanes, sums, pieces
        self.rows = Tiles.of(shape.rows, block.height)
        self.anchored = Anchored(kernel)
        self.query, self.key, self.value, *mask = self.anchored.operands
        self.mask: Tensor | None = mask[0] if mask else None
        own = self.anchored.add_scratch
        self.queries = own((pieces, block.height, sizes.depth), "bfloat16", "queries")
        self.key_rows = own((pieces, sizes.keys, sizes.depth), "bfloat16", "key_rows")
        self.keys = own((pieces, sizes.keys // PANEL, sizes.depth // PAIR, PANEL), WORD, "packed_keys")
        self.values = own((pieces, sizes.keys // PAIR, sizes.columns), WORD, "packed_values")
        # A vector more, so that rows do not fall onto each other in the caches.
        self.scores = own((pieces, block.height, sizes.keys + LANES), "float32", "scores")
        self.weights = own((pieces, block.height, sizes.keys + PANEL), _BITS, "weights")
        self.scales = own((pieces, block.height), "float32", "scales")
        declare_queries, self.query_words = sums.view(self.queries, "query_words")
        declare_keys, self.key_words = sums.view(self.key_rows, "key_words")
        declare_weights, self.weight_words = sums.view(self.weights, "weight_words")
        self.declarations = [declare_queries, declare_keys, declare_weights]

    def scheduled(self) -> Scheduled:
        def some(first: Expression, own: int | Expression, number: Expression) -> Statement:
            return loops.loop(own, lambda i: self._head(first + i, number), "head")

        nest = in_pieces(self.block, prod(self.shape.batch), self.pieces, some)
        return self.anchored.scheduled([*self.declarations, nest], self.rows.exact)

    def _head(self, number: Expression, slot: Expression) -> Statement:
        index = unravel(number, self.shape.batch)
        batch = [loops.constant(0) if d == 1 else i for d, i in zip(self.shape.batch, index, strict=True)]
        walk = loops.loop(self.rows.count, lambda t: self._rows(batch, slot, self.rows.base(t)), "t")
        return loops.sequence([*self._pack_keys(batch, slot), *self._pack_values(batch, slot), walk])

    def _element(
        self, tensor: Tensor, batch: Index, row: Expression, column: Expression
    ) -> tuple[list[Statement], Expression]:
        """The element at (batch, row, column) of an operand that may have fewer axes, or axes of extent 1."""
        shape = [int(d) for d in tensor.shape]
        index = [*batch, row, column][len(batch) + 2 - len(shape) :]
        own = [loops.constant(0) if d == 1 else i for d, i in zip(shape, index, strict=True)]
        elements = self.anchored.elements()
        return elements.statements, elements.element(tensor, own)

    # Packing

    def _copy_rows(
        self, tensor: Tensor, batch: Index, first: Expression, count: int, target: Buffer, slot: Expression
    ) -> Statement:
        """`count` rows of an operand of `depth` columns from `first` on, with zeros beyond the columns."""
        depth = self.shape.depth

        def copy(r: Expression, k: Expression) -> Statement:
            needed, value = self._element(tensor, batch, first + r, k)
            return loops.sequence([*needed, tirx.BufferStore(target, value, [slot, r, k])])

        def zero(r: Expression, k: Expression) -> Statement:
            return tirx.BufferStore(target, tirx.const(0, "bfloat16"), [slot, r, k + depth])

        def row(r: Expression) -> Statement:
            beyond = loops.loop(self.sizes.depth - depth, lambda k: zero(r, k), "k")
            filled = loops.vector_loop(depth, 2 * self.lanes, 4, lambda k: copy(r, k))
            return loops.sequence([*filled, *([beyond] if self.sizes.depth > depth else [])])

        return loops.loop(count, row, "r")

    def _pack_keys(self, batch: Index, slot: Expression) -> list[Statement]:
        """The rows of keys, zeros below them, and their words transposed panel by panel."""
        sizes, lanes = self.sizes, gcd(self.lanes, LANES)
        length = self.shape.length
        words = sizes.depth // PAIR

        def blank(r: Expression) -> Statement:
            zero = tirx.const(0, WORD)
            return loops.sequence(
                loops.vector_loop(
                    words, lanes, 1, lambda k: tirx.BufferStore(self.key_words, zero, [slot, r + length, k])
                )
            )

        def square(panel: Expression, c: Expression, k: Expression) -> Statement:
            def load(i: int) -> Expression:
                row = panel * PANEL + c * lanes + i
                return tirx.BufferLoad(self.key_words, [slot, row, tirx.Ramp(k * lanes, 1, lanes)])

            def store(i: int, vector: Expression) -> Statement:
                at = [slot, panel, k * lanes + i, tirx.Ramp(c * lanes, 1, lanes)]
                return tirx.BufferStore(self.keys, vector, at)

            return transpose_square(load, store, lanes, WORD)

        ranges = [range(sizes.keys // PANEL), range(PANEL // lanes), range(words // lanes)]
        rows = self._copy_rows(self.key, batch, loops.constant(0), length, self.key_rows, slot)
        blanks = [loops.loop(sizes.keys - length, blank, "r")] if sizes.keys > length else []
        return [rows, *blanks, loops.loop_nest(ranges, lambda at: square(*at))]

    def _pack_values(self, batch: Index, slot: Expression) -> list[Statement]:
        """Pairs of rows of values as words, zeros to their right and below."""
        shape, sizes, lanes = self.shape, self.sizes, gcd(self.lanes, LANES)
        whole, odd = divmod(shape.length, PAIR)
        zero = tirx.const(0, WORD)

        def word(t: Expression, column: Expression, count: int) -> Statement:
            needed: list[Statement] = []
            elements: list[Expression] = []
            for row in range(count):
                more, value = self._element(self.value, batch, t * PAIR + row, column)
                needed += more
                elements.append(tirx.reinterpret(_BITS, value).astype(WORD))
            first, *second = elements
            both = (
                tirx.bitwise_or(first, tirx.shift_left(second[0], tirx.const(16, WORD))) if second else first
            )
            return loops.sequence([*needed, tirx.BufferStore(self.values, both, [slot, t, column])])

        def blank(t: Expression, begin: int) -> list[Statement]:
            return loops.vector_loop(
                sizes.columns - begin,
                lanes,
                1,
                lambda c: tirx.BufferStore(self.values, zero, [slot, t, c + begin]),
            )

        def pair(t: Expression, count: int) -> Statement:
            filled = loops.vector_loop(shape.width, lanes, 4, lambda c: word(t, c, count))
            beyond = blank(t, shape.width) if shape.width < sizes.columns else []
            return loops.sequence([*filled, *beyond])

        statements = [loops.loop(whole, lambda t: pair(t, PAIR), "t")] if whole else []
        if odd:
            statements.append(pair(loops.constant(whole), 1))
        rest = sizes.keys // PAIR - whole - odd
        if rest:
            statements.append(loops.loop(rest, lambda t: loops.sequence(blank(t + whole + odd, 0)), "t"))
        return statements

    # A block of rows

    def _rows(self, batch: Index, slot: Expression, row: Expression) -> Statement:
        height, sizes = self.block.height, self.sizes
        panels: int | Expression = sizes.keys // PANEL
        known: list[Statement] = []
        if self.shape.limit.causal:
            panels = tirx.Var("panels", "int32")
            known.append(tirx.Bind(panels, self.shape.limit.steps_of(row, height, PANEL)))
        softmax = loops.loop(height, lambda r: self._softmax(batch, slot, row, r, panels), "r")
        return loops.sequence(
            [
                *known,
                self._copy_rows(self.query, batch, row, height, self.queries, slot),
                loops.loop(panels, lambda panel: self._scores(slot, panel), "panel"),
                softmax,
                loops.loop(
                    sizes.columns // PANEL,
                    lambda panel: self._weighted(batch, slot, row, panel, panels),
                    "panel",
                ),
            ]
        )

    def _product(
        self, left: Buffer, slot: Expression, steps: int | Expression, right: Any, width: int
    ) -> Statement:
        """Sums over `steps` of the words of all rows of `left`; `right(k, j)` loads word j at pair k."""
        block = self.block

        def at(r: int, k: Expression) -> Expression:
            return tirx.address_of(tirx.BufferLoad(left, [slot, r, k]))

        def step(k: Expression) -> Statement:
            return loops.sequence(
                block.step(
                    lambda i: at(i * block.rows, k * LANES),
                    WORD_BYTES * int(left.shape[-1]),
                    lambda j: tirx.address_of(right(k * LANES, j * LANES)),
                    WORD_BYTES * width,
                )
            )

        return loops.sequence([*block.clear(), loops.loop(steps, step, "k")])

    def _scores(self, slot: Expression, panel: Expression) -> Statement:
        block, scores = self.block, self.scores

        def right(k: Expression, j: int) -> Expression:
            return tirx.BufferLoad(self.keys, [slot, panel, k, j])

        def place(i: int, j: int) -> Expression:
            at = [slot, i * block.rows, panel * PANEL + j * LANES]
            return tirx.address_of(tirx.BufferLoad(scores, at))

        steps = self.sizes.depth // PANEL
        product = self._product(self.query_words, slot, steps, right, PANEL)
        return loops.sequence([product, *block.store(place, WORD_BYTES * int(scores.shape[-1]))])

    def _softmax(
        self, batch: Index, slot: Expression, row: Expression, r: Expression, panels: int | Expression
    ) -> Statement:
        """Weights of a row in bfloat16, and one over the total of what they were before rounding."""
        lanes, length, scores, causal = self.lanes, self.shape.length, self.scores, self.shape.limit.causal
        scale, low = tirx.const(self.shape.scale, "float32"), tirx.const(-inf, "float32")
        allocate_top, top = loops.local((lanes,), "float32", "top")
        allocate_total, total = loops.local((lanes,), "float32", "total")

        def begin(lane: Expression) -> Statement:
            zero = tirx.const(0.0, "float32")
            return loops.sequence([tirx.BufferStore(top, low, [lane]), tirx.BufferStore(total, zero, [lane])])

        def score(key: Expression, lane: Expression) -> Statement:
            value = tirx.BufferLoad(scores, [slot, r, key]) * scale
            needed: list[Statement] = []
            if self.mask is not None:
                needed, mask = self._element(self.mask, batch, row + r, key)
                value = self.shape.masked(value, mask)
            if causal:
                value = tirx.Select(key < row + r + causal, value, low)
            place = tirx.Var("score", "float32")
            highest = larger(tirx.BufferLoad(top, [lane]), place)
            return loops.sequence(
                [
                    *needed,
                    tirx.Bind(place, value),
                    tirx.BufferStore(scores, place, [slot, r, key]),
                    tirx.BufferStore(top, highest, [lane]),
                ]
            )

        def weight(key: Expression, lane: Expression) -> Statement:
            below = tirx.BufferLoad(scores, [slot, r, key]) - tirx.BufferLoad(top, [0])
            place = tirx.Var("weight", "float32")
            return loops.sequence(
                [
                    tirx.Bind(place, exp2(below * tirx.const(log2(e), "float32"))),
                    tirx.BufferStore(self.weights, bfloat16.rounded(place), [slot, r, key]),
                    tirx.BufferStore(total, tirx.BufferLoad(total, [lane]) + place, [lane]),
                ]
            )

        def over_keys(body: Any) -> list[Statement]:
            """`body(key, lane)` for all keys of the panels, in vectors."""
            vectors, rest = divmod(length, lanes)
            groups, single = divmod(vectors, TOGETHER)

            def strip(v: Expression, width: int = lanes) -> Statement:
                return loops.vectorized(width, lambda lane: body(v * lanes + lane, lane))

            def last(v: int, width: int = lanes) -> Statement:
                vector = strip(loops.constant(v), width)
                return tirx.IfThenElse(panels * PANEL > v * lanes, vector, None) if causal else vector

            statements: list[Statement] = []
            if groups:
                step = TOGETHER * lanes
                seen = [tirx.floordiv(panels * PANEL + (step - 1), step)] if causal else []
                statements.append(
                    loops.loop(
                        tirx.min(*seen, groups) if causal else groups,
                        lambda g: loops.unrolled(TOGETHER, lambda u: strip(g * TOGETHER + u)),
                        "group",
                    )
                )
            statements += [last(groups * TOGETHER + u) for u in range(single)]
            return [*statements, *([last(vectors, rest)] if rest else [])]

        def blank(key: Expression) -> Statement:
            return tirx.BufferStore(self.weights, tirx.const(0, _BITS), [slot, r, key + length])

        beyond = self.sizes.keys - length
        inverse = tirx.const(1.0, "float32") / tirx.BufferLoad(total, [0])
        return loops.sequence(
            [
                allocate_top,
                allocate_total,
                loops.vectorized(lanes, begin),
                *over_keys(score),
                *loops.fold_lanes(top, lanes, tirx.max),
                *over_keys(weight),
                *(loops.vector_loop(beyond, PANEL, 1, blank) if beyond else []),
                *loops.fold_lanes(total, lanes, lambda a, b: a + b),
                tirx.BufferStore(self.scales, inverse, [slot, r]),
            ]
        )

    def _weighted(
        self, batch: Index, slot: Expression, row: Expression, panel: Expression, panels: int | Expression
    ) -> Statement:
        """A panel of columns of the output: weighted values times one over the total, with the epilogue."""
        block, sizes, width = self.block, self.sizes, self.shape.width
        allocate, sums = loops.aligned_local((block.height, PANEL), LANES, "float32", "sums")

        def right(k: Expression, j: int) -> Expression:
            return tirx.BufferLoad(self.values, [slot, k, panel * PANEL + j])

        def place(i: int, j: int) -> Expression:
            return tirx.address_of(tirx.BufferLoad(sums, [i * block.rows, j * LANES]))

        def finish(r: Expression, c: Expression) -> Statement:
            scale = tirx.BufferLoad(self.scales, [slot, r])
            value = self.shape.settled(tirx.BufferLoad(sums, [r, c]) * scale, scale < 2)
            return self.anchored.finish([*batch, row + r, panel * PANEL + c], value)

        def rows(count: int) -> Statement:
            return loops.loop(
                block.height,
                lambda r: loops.sequence(loops.vector_loop(count, PANEL, 1, lambda c: finish(r, c))),
                "r",
            )

        product = self._product(self.weight_words, slot, panels, right, sizes.columns)
        rest = width % PANEL
        finished = rows(PANEL) if width >= PANEL else rows(rest)
        if rest and width > PANEL:
            finished = tirx.IfThenElse(panel < width // PANEL, rows(PANEL), rows(rest))
        stores = block.store(place, WORD_BYTES * PANEL)
        return loops.sequence([*allocate, product, *stores, finished])
