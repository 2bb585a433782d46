"""Operands of a matrix product in groups of the depth, as kernels for products of few bits read them.

The left one lies as it is where the groups of a row are whole, and is packed otherwise; the right one lies in
panels of the columns of a tile, packed at compile time where it is constant. Batch axes are one axis here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd, prod
from typing import Any

import numpy as np

from tcomp.relay.types import Array, TensorType
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.cpu.primitives import Tiles, transpose_square
from tcomp.tensor.cpu.register_tile import Point
from tcomp.tensor.groups import GroupSums, ReadElement
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.loops import (
    Body,
    Buffer,
    Expression,
    Statement,
    loop,
    parallel,
    sequence,
    vector_loop,
)
from tcomp.tensor.product import Product, constant_right
from tcomp.tensor.template import Packing
from tcomp.tvm_api import Tensor, tirx

ReadGroup = Callable[[Point, Expression], Expression]


class GroupedOperands:
    """The operands of one kernel, cut into `rows` and `columns`; packing goes by vectors of `lanes` words."""

    def __init__(
        self, kernel: Kernel, sums: GroupSums, rows: Tiles, columns: Tiles, lanes: int, threaded: bool
    ) -> None:
        assert kernel.anchor is not None
        self.product = product = Product.of(kernel.anchor)
        self.sums, self.rows, self.columns = sums, rows, columns
        self.lanes, self.threaded = lanes, threaded
        self.steps = -(-product.depth // sums.size)
        constant = constant_right(kernel)
        packing = {} if constant is None else {constant: self._packing()}
        self.anchored = Anchored(kernel, packing)
        self.left, self.right = self.anchored.operands
        self.panels = self.anchored.buffer_of(self.right) if packing else None

    def batch_index(self, flat: Expression) -> list[Expression]:
        index: list[Expression] = []
        for extent in reversed(self.product.batch):
            index.insert(0, flat % extent if extent > 1 else 0)
            flat = flat // extent if extent > 1 else flat
        return index

    def own_matrix(self, flat: Expression) -> Expression:
        """The right operand's matrix number for the output's matrix `flat`."""
        shape = self.product.right.static_shape[:-2] if self.product.batch else ()
        batch = self.batch_index(flat)
        number: Expression = 0
        for extent, i in zip(shape, batch[len(batch) - len(shape) :], strict=True):
            number = number * extent + (i if extent > 1 else 0)
        return number

    def _matrices(self) -> int:
        return prod(self.product.right.static_shape[:-2]) if self.product.batch else 1

    @property
    def panels_shape(self) -> tuple[int, int, int, int]:
        return (self._matrices(), self.columns.count, self.steps, self.columns.size * self.sums.side)

    def _packing(self) -> Packing:
        """`[*batch, depth, columns] -> [matrix, column tile, group, column]`, the last in words."""
        product, columns, side = self.product, self.columns, self.sums.side
        first = np.array([int(columns.base(t)) * side for t in range(columns.count)])
        at = first[:, None] + np.arange(columns.size * side)

        def pack(original: Array) -> Array:
            matrix = original.reshape(-1, 1) if product.right.rank == 1 else original
            matrix = np.swapaxes(matrix, -1, -2) if product.transpose_right else matrix
            groups = self.sums.pack(matrix.reshape(-1, product.depth, product.columns))
            return np.ascontiguousarray(np.moveaxis(groups[..., at], -3, -2))

        return Packing(TensorType(self.panels_shape, self.sums.dtype), pack)

    def left_groups(self) -> tuple[list[Statement], ReadGroup]:
        """Statements, and the left operand's groups as a function of a sum and a step."""
        product = self.product
        own = self.anchored.buffer_of(self.left)
        if self.sums.side > 1:
            return self._left_squares()
        if own is not None and product.depth % self.sums.size == 0 and not product.transpose_left:
            declaration, groups = self.sums.view(own, "left_groups")

            def read(point: Point, k: Expression) -> Expression:
                flat, row, _ = point.index
                *outer, _ = product.left_index(self.batch_index(flat), row, 0)
                return tirx.BufferLoad(groups, [*outer, k])

            return [declaration], read
        shape = (prod(product.batch), product.rows, self.steps)
        packed = self.anchored.add_scratch(shape, self.sums.dtype, "left_groups")

        def store(flat: Expression, row: Expression, k: Expression) -> Statement:
            def element(depth: Expression) -> tuple[list[Statement], Expression]:
                return self._element(self.left, product.left_index(self.batch_index(flat), row, depth))

            return self._store_word(packed, [flat, row, k], k, element)

        nest = self.shared(
            prod(product.batch) * product.rows,
            lambda i: sequence(
                vector_loop(
                    self.steps, self.lanes, 1, lambda k: store(i // product.rows, i % product.rows, k)
                )
            ),
        )

        def read_packed(point: Point, k: Expression) -> Expression:
            return tirx.BufferLoad(packed, [*point.index[:2], k])

        return [nest], read_packed

    def _left_squares(self) -> tuple[list[Statement], ReadGroup]:
        """As `left_groups`, `side` rows' groups behind each other: `[batch, row tile, rows, step, word]`."""
        product, rows, side = self.product, self.rows, self.sums.side
        shape = (prod(product.batch), rows.count, rows.size // side, self.steps, side * side)
        packed = self.anchored.add_scratch(shape, self.sums.dtype, "left_groups")
        own = self.anchored.buffer_of(self.left)
        in_words = own is not None and product.depth % self.sums.size == 0 and not product.transpose_left
        declaration, words = self.sums.view(own, "left_words") if in_words else (None, None)

        def store(index: Sequence[Expression], row: Expression, k: Expression, place: int) -> Statement:
            """The group of a row at step `k`, the `place`-th of its square."""
            if in_words:
                *outer, _ = product.left_index(self.batch_index(index[0]), row, 0)
                group = tirx.BufferLoad(words, [*outer, tirx.Ramp(k * side, 1, side)])
                return tirx.BufferStore(packed, group, [*index, k, tirx.Ramp(place * side, 1, side)])

            def element(depth: Expression) -> tuple[list[Statement], Expression]:
                return self._element(self.left, product.left_index(self.batch_index(index[0]), row, depth))

            at = [*index, k]
            return sequence(
                [
                    self._store_word(packed, [*at, place * side + word], k * side + word, element)
                    for word in range(side)
                ]
            )

        def square(number: Expression) -> Statement:
            pairs = rows.size // side
            flat, tile, pair = number // (rows.count * pairs), number // pairs % rows.count, number % pairs
            first = rows.base(tile) + pair * side
            return loop(
                self.steps,
                lambda k: sequence([store([flat, tile, pair], first + n, k, n) for n in range(side)]),
            )

        def read(point: Point, k: Expression) -> Expression:
            at = [point.index[0], point.tiles[1], point.places[1] // side, k, point.places[2] % side**2]
            return tirx.BufferLoad(packed, at)

        nest = self.shared(prod(shape[:3]), square)
        return [nest] if declaration is None else [declaration, nest], read

    def right_panels(self) -> tuple[list[Statement], Buffer]:
        """Statements, and the right operand in panels of groups."""
        if self.panels is not None:
            return [], self.panels
        product, columns = self.product, self.columns
        panels = self.anchored.add_scratch(self.panels_shape, self.sums.dtype, "right_groups")
        source = self.anchored.buffer_of(self.right)
        side = gcd(gcd(columns.size, self.lanes), self.steps)
        in_squares = source is not None and product.transpose_right and side >= 4
        in_squares = in_squares and product.depth % self.sums.size == 0
        declarations: list[Statement] = []
        groups = None
        if in_squares:
            declaration, groups = self.sums.view(source, "right_source")
            declarations.append(declaration)

        def matrix(number: Expression) -> list[Expression]:
            index: list[Expression] = []
            for extent in reversed(product.right.static_shape[:-2]):
                index.insert(0, number % extent if extent > 1 else 0)
                number = number // extent if extent > 1 else number
            return index

        def square(number: Expression, p: Expression, c: Expression, k: Expression) -> Statement:
            def load(i: int) -> Expression:
                return tirx.BufferLoad(
                    groups, [*matrix(number), columns.base(p) + c + i, tirx.Ramp(k, 1, side)]
                )

            def store(i: int, vector: Expression) -> Statement:
                return tirx.BufferStore(panels, vector, [number, p, k + i, tirx.Ramp(c, 1, side)])

            return transpose_square(load, store, side, self.sums.dtype)

        def element(number: Expression, p: Expression, k: Expression, c: Expression) -> Statement:
            def read(depth: Expression) -> tuple[list[Statement], Expression]:
                column = columns.base(p) + c
                if product.right.rank == 1:
                    return self._element(self.right, [depth])
                place = (column, depth) if product.transpose_right else (depth, column)
                return self._element(self.right, [*matrix(number), *place])

            return self._store_word(panels, [number, p, k, c], k, read)

        def panel(i: Expression) -> Statement:
            number, p = i // columns.count, i % columns.count
            if in_squares:
                return loop(
                    self.steps // side,
                    lambda k: loop(columns.size // side, lambda c: square(number, p, c * side, k * side)),
                )
            return loop(
                self.steps,
                lambda k: sequence(
                    vector_loop(columns.size, self.lanes, 4, lambda c: element(number, p, k, c))
                ),
            )

        return [*declarations, self.shared(self._matrices() * columns.count, panel)], panels

    def shared(self, extent: int, body: Body) -> Statement:
        return (parallel if self.threaded else loop)(extent, body)

    def _element(self, tensor: Tensor, index: Sequence[Any]) -> tuple[list[Statement], Expression]:
        elements = self.anchored.elements()
        at = [tirx.const(i, "int32") if isinstance(i, int) else i for i in index]
        return elements.statements, elements.element(tensor, at)

    def _store_word(
        self, target: Buffer, index: Sequence[Expression], k: Expression, element: ReadElement
    ) -> Statement:
        """Store the elements of word `k` of groups; beyond the depth lie zeros."""
        needed, group = self.sums.word(k, self.product.depth, element)
        return sequence([*needed, tirx.BufferStore(target, group, list(index))])
