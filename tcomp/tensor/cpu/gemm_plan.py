"""How a matrix product is cut into tiles, blocks, chunks and parts, and its right operand packed for that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tcomp.relay.types import Array, TensorType
from tcomp.target.target import Target
from tcomp.tensor.cpu.primitives import Tiles
from tcomp.tensor.knobs import Config
from tcomp.tensor.product import Product
from tcomp.tensor.template import Packing
from tcomp.tvm_api import te

Expression = Any


@dataclass(frozen=True)
class Plan:
    """What a config means for one product: tiles, blocking and packed operands."""

    rows: Tiles
    columns: Tiles
    lanes: int
    row_block: int
    """Row tiles that are visited with each panel."""
    group: int
    """Panels that are visited with each chunk of the depth."""
    depth: int
    chunk: int
    unroll: int
    """Divides the depth and the chunk."""
    pack_left: bool
    pack_right: bool
    prefetch: bool
    parallel: bool
    partial_sums: int
    """Sums of an element that a tile keeps side by side, of every so many steps each; divides `unroll`."""
    parts: int
    """Pieces of the depth that are summed up apart from one another, and then in order."""
    apart: bool
    """Whether the steps that are written out are of as many contiguous parts of a chunk, not side by side."""

    @staticmethod
    def of(product: Product, target: Target, config: Config) -> Plan:
        lanes = min(target.lanes(product.accumulator), product.columns)
        rows = Tiles.of(product.rows, int(config["tile_rows"]))
        columns = Tiles.of(product.columns, int(config["tile_vectors"]) * lanes)
        unroll, parts = int(config["unroll"]), int(config["parts"])
        chunk = _even(product.depth // unroll, (int(config["chunk"]) or product.depth) // unroll)
        chunk = min(chunk, -(-product.depth // unroll // parts)) * unroll
        return Plan(
            rows,
            columns,
            lanes,
            _even(rows.count, int(config["row_block"])),
            _even(columns.count, int(config["group"])),
            product.depth,
            chunk,
            unroll,
            bool(config["pack_left"]),
            bool(config["pack_right"]),
            bool(config["prefetch"]),
            bool(config["parallel"]),
            int(config["partial_sums"]),
            _parts(-(-product.depth // chunk), parts),
            bool(config["apart"]),
        )

    @property
    def row_blocks(self) -> int:
        return -(-self.rows.count // self.row_block)

    @property
    def groups(self) -> int:
        return -(-self.columns.count // self.group)

    @property
    def chunks(self) -> int:
        return -(-self.depth // self.chunk)

    @property
    def chunks_of_part(self) -> int:
        """Chunks of one part of the depth; the last part may have fewer."""
        return -(-self.chunks // self.parts)

    @property
    def panel_size(self) -> int:
        """Elements of the right operand that one panel has, over the whole depth."""
        return self.columns.size * self.depth

    def panels_of(self, group: Expression) -> Expression:
        """How many panels a group has: the last one may have fewer."""
        return _rest(self.columns.count, self.group, group)

    def tiles_of(self, block: Expression) -> Expression:
        """How many row tiles a block has."""
        return _rest(self.rows.count, self.row_block, block)

    def depth_of(self, chunk: Expression) -> Expression:
        """How long a chunk is."""
        return _rest(self.depth, self.chunk, chunk)

    def step_at(self, chunk: Expression, iteration: Expression, place: Expression) -> Expression:
        """Of the steps of a chunk, the one that is written out at `place` of an iteration over them."""
        if self.apart:
            return place * (self.depth_of(chunk) // self.unroll) + iteration
        return iteration * self.unroll + place

    def chunks_in(self, part: Expression) -> Expression:
        """How many chunks a part has."""
        return _rest(self.chunks, self.chunks_of_part, part)

    def panel_offset(self, group: Expression, chunk: Expression, panel: Expression) -> Expression:
        """Where a chunk of the `panel`-th panel of a group begins in the packed right operand."""
        before = group * (self.group * self.panel_size)
        inside = chunk * (self.chunk * self.columns.size) * self.panels_of(group)
        return before + inside + panel * self.columns.size * self.depth_of(chunk)


def _even(count: int, most: int) -> int:
    """The size of the fewest parts of nearly equal size, at most `most` each (0: one part)."""
    parts = -(-count // min(count, most or count))
    return -(-count // parts)


def _rest(extent: int, part: int, number: Expression) -> Expression:
    if extent % part == 0:
        return part
    left = extent - number * part
    return min(part, left) if isinstance(left, int) else te.min(left, part)


def _parts(chunks: int, most: int) -> int:
    """Parts of equally many chunks but for the last, at most `most`."""
    return -(-chunks // -(-chunks // min(most, chunks)))


def pack_right(product: Product, plan: Plan) -> Packing:
    """`[*batch, depth, columns] -> [*batch, group, chunk, panel, k, column]`, the last five flat."""
    columns = plan.columns
    batch = product.right.static_shape[:-2] if product.batch else ()

    def pack(original: Array) -> Array:
        matrix = original.reshape(-1, 1) if product.right.rank == 1 else original
        matrix = np.swapaxes(matrix, -1, -2) if product.transpose_right else matrix
        matrix = matrix.reshape(-1, product.depth, product.columns)
        packed = np.empty((len(matrix), columns.count * plan.panel_size), matrix.dtype)
        for group in range(plan.groups):
            first = group * plan.group
            bases = [columns.base(p) for p in range(first, first + plan.panels_of(group))]
            at = np.array(bases)[:, None] + np.arange(columns.size)
            for chunk in range(plan.chunks):
                start, extent = chunk * plan.chunk, plan.depth_of(chunk)
                panels = np.moveaxis(matrix[:, start : start + extent][..., at], -3, -2)
                begin = plan.panel_offset(group, chunk, 0)
                packed[:, begin : begin + panels[0].size] = panels.reshape(len(matrix), -1)
        return packed.reshape(*batch, -1)

    shape = (*batch, columns.count * plan.panel_size)
    return Packing(TensorType(shape, product.right.dtype), pack)
