"""The operands of matrix products in tiles: where they lie, and how kernels pack those that are not constant.

The right one lies in panels, in the order in which the walk of `tensor.cpu.gemm` reads it; constants are
packed so at compile time. The left one is read where it is, or from tiles of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import gcd, prod
from typing import Any

from tcomp.tensor import loops
from tcomp.tensor.access import vector_load
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.cpu.gemm_plan import Plan
from tcomp.tensor.cpu.primitives import transpose_square
from tcomp.tensor.loops import Buffer, Expression, Statement
from tcomp.tensor.math import convert
from tcomp.tensor.product import Product, unravel
from tcomp.tvm_api import Tensor, tirx

Index = Sequence[Any]


def strip(size: int, width: int, body: Callable[[Expression], Statement]) -> Statement:
    """`body` at every index below `size`, in vectors of `width`."""
    return loops.unrolled(
        size // width, lambda v: loops.vectorized(width, lambda lane: body(v * width + lane))
    )


class GemmOperands:
    """The operands of one kernel, of which the right one may be packed in panels already."""

    def __init__(self, anchored: Anchored, product: Product, plan: Plan, lanes: int, is_packed: bool) -> None:
        self.anchored, self.product, self.plan, self.lanes = anchored, product, plan, lanes
        self.left, self.right = anchored.operands
        self.panels: Buffer | None = anchored.buffer_of(self.right) if is_packed else None
        """The right operand in panels."""
        self.row_tiles: Buffer | None = None
        """The left operand in tiles of rows."""

    def packed(self) -> list[Statement]:
        """What packs the operands that the plan wants packed, and are not."""
        statements: list[Statement] = []
        if self.plan.pack_left:
            statements.append(self._pack_left())
        if self.plan.pack_right and self.panels is None:
            statements.append(self._pack_right())
        return statements

    def _pack_left(self) -> Statement:
        """`[*batch, rows, depth] -> [*batch, row tile, depth, row]`."""
        product, rows = self.product, self.plan.rows
        shape = (*product.batch, rows.count, product.depth, rows.size)
        tiles = self.row_tiles = self.anchored.add_scratch(shape, self.product.left.dtype, "packed_left")
        width = gcd(rows.size, self.lanes)
        side = gcd(width, product.depth)

        def row(batch: Index, r: Expression, k: Expression) -> Expression | None:
            return self.vector(self.left, product.left_index(batch, r, k), side)

        zero = loops.constant(0)
        along_depth = side >= 4 and not product.transpose_left
        in_squares = along_depth and row([zero] * len(product.batch), zero, zero) is not None

        def one(batch: Index, t: Expression) -> Statement:
            def element(k: Expression, r: Expression) -> Statement:
                needed, value = self.element(self.left, product.left_index(batch, rows.base(t) + r, k), None)
                return loops.sequence([*needed, tirx.BufferStore(tiles, value, [*batch, t, k, r])])

            def square(r: Expression, k: Expression) -> Statement:
                def load(i: int) -> Expression:
                    return row(batch, rows.base(t) + r + i, k)

                def store(i: int, vector: Expression) -> Statement:
                    return tirx.BufferStore(tiles, vector, [*batch, t, k + i, tirx.Ramp(r, 1, side)])

                return transpose_square(load, store, side, self.product.left.dtype)

            if in_squares:
                return loops.loop(
                    product.depth // side,
                    lambda k: loops.loop(rows.size // side, lambda r: square(r * side, k * side), "r"),
                    "k",
                )
            return loops.loop(product.depth, lambda k: strip(rows.size, width, lambda r: element(k, r)), "k")

        return self._over(rows.count, one, "tile")

    def _pack_right(self) -> Statement:
        """`[*batch, depth, columns]` into panels, as `pack_right` does."""
        product, plan, columns = self.product, self.plan, self.plan.columns
        own = tuple(product.right.static_shape[:-2]) if product.batch else ()
        shape = (*own, columns.count * plan.panel_size)
        panels = self.panels = self.anchored.add_scratch(shape, self.product.right.dtype, "packed_right")
        side = gcd(gcd(columns.size, self.lanes), gcd(product.depth, plan.chunk))
        row = partial(strip, columns.size, plan.lanes)

        def column(batch: Index, k: Expression, c: Expression) -> Expression | None:
            return self.vector(self.right, product.right_index(batch, k, c), side)

        zero = loops.constant(0)
        in_squares = (
            product.transpose_right and side >= 4 and column([zero] * len(own), zero, zero) is not None
        )

        def one(batch: Index, p: Expression) -> Statement:
            group, panel = unravel(p, (plan.groups, plan.group))

            def rows(chunk: Expression) -> Statement:
                begin = plan.panel_offset(group, chunk, panel)

                def at(k: Expression, c: Expression) -> list[Any]:
                    place = begin + k * columns.size + c
                    return [*batch, place]

                def element(k: Expression, c: Expression) -> Statement:
                    index = product.right_index(batch, chunk * plan.chunk + k, columns.base(p) + c)
                    needed, value = self.element(self.right, index, None)
                    return loops.sequence([*needed, tirx.BufferStore(panels, value, at(k, c))])

                def square(c: Expression, k: Expression) -> Statement:
                    def load(i: int) -> Expression:
                        return column(batch, chunk * plan.chunk + k, columns.base(p) + c + i)

                    def store(i: int, vector: Expression) -> Statement:
                        *outer, place = at(k + i, c)
                        return tirx.BufferStore(panels, vector, [*outer, tirx.Ramp(place, 1, side)])

                    return transpose_square(load, store, side, self.product.right.dtype)

                extent = plan.depth_of(chunk)
                if in_squares:
                    return loops.loop(
                        extent // side,
                        lambda k: loops.loop(columns.size // side, lambda c: square(c * side, k * side), "c"),
                        "k",
                    )
                return loops.loop(extent, lambda k: row(lambda c: element(k, c)), "k")

            return loops.loop(plan.chunks, rows, "chunk")

        return self._over(columns.count, one, "panel", own)

    def _over(
        self,
        extent: int,
        body: Callable[[Index, Expression], Statement],
        name: str,
        batch: tuple[int, ...] | None = None,
    ) -> Statement:
        """`body(batch, i)` for every batch and i below `extent`, shared among threads."""
        outer = self.product.batch if batch is None else batch

        def at(number: Expression) -> Statement:
            *index, i = unravel(number, (*outer, extent))
            return body(index, i)

        return (loops.parallel if self.plan.parallel else loops.loop)(prod(outer) * extent, at, name)

    def element(self, tensor: Tensor, index: Index, dtype: str | None) -> tuple[list[Statement], Expression]:
        """An element of an operand, as `dtype` if given, after the statements that it needs."""
        elements = self.anchored.elements()
        value = elements.element(tensor, [loops.constant(i) if isinstance(i, int) else i for i in index])
        return elements.statements, value if dtype is None else convert(value, dtype)

    def vector(self, tensor: Tensor, index: Index, lanes: int) -> Expression | None:
        """Elements of an operand along its last axis, where one load gets them."""
        at = [loops.constant(i) if isinstance(i, int) else i for i in index]
        return vector_load(self.anchored.elements(), tensor, at, lanes)
