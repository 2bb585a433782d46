"""Operands of products by warp groups: how tiles are copied, and what instructions are told of them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

from tcomp.target.tile_map import TileMap
from tcomp.tensor.loops import Expression, Statement, call, constant
from tcomp.tensor.tensor_cores.copy_engine import address_of_map
from tcomp.tensor.tensor_cores.mma_operand import ChunkCopies, MmaOperand
from tcomp.tensor.tensor_cores.wgmma_plan import DEPTH_BYTES, INSTRUCTION_BYTES, INSTRUCTION_ROWS, WgmmaPlan
from tcomp.tensor.tensor_cores.wgmma_stages import matrix, matrix_step

_PIECE_BYTES = INSTRUCTION_ROWS * DEPTH_BYTES
"""Of 64 rows in a stage, whichever way they lie."""


@dataclass(frozen=True)
class Side:
    """One operand: `rows` of it in all, `block_rows` of a tile, which begins at byte `begin` of a stage."""

    operand: MmaOperand
    map: Any
    plan: WgmmaPlan
    rows: int
    block_rows: int
    begin: int
    blocks: int
    """That have the same tile and copy equal parts of it."""

    @property
    def _part_rows(self) -> int:
        return self.block_rows // self.blocks

    @property
    def _rows_of_copy(self) -> int:
        return self._part_rows if self.operand.by_depth else DEPTH_BYTES // self.plan.itemsize

    @property
    def tiles(self) -> TileMap:
        """The operand's matrices, or its windows, as copies see them."""
        plan, itemsize = self.plan, self.plan.itemsize
        if self.operand.windows is not None:
            return self.operand.windows.map(plan.dtype, self.block_rows)
        matrices = prod(int(d) for d in self.operand.buffer.shape) // (self.rows * plan.depth)
        box = (plan.block_depth, self._rows_of_copy)
        extents = (plan.depth, self.rows)
        if not self.operand.by_depth:
            box, extents = box[::-1], extents[::-1]
        strides = (extents[0] * itemsize, extents[0] * extents[1] * itemsize)
        return TileMap(plan.dtype, (*extents, matrices), strides, (*box, 1))

    def copies(
        self,
        stage: Expression,
        full: Expression,
        place: tuple[Expression, Expression, Expression],
        rank: Expression,
    ) -> list[Statement]:
        """Ask for what block `rank` of a cluster copies of the tile from `place` (batch, row, k) on."""
        batch, row, k = place
        zero, windows = constant(0), self.operand.windows
        if windows is not None:
            end = self.plan.steps * self.plan.splits * self.plan.block_depth
            what = (stage + self.begin, address_of_map(self.map), full)
            return [call("tcomp_copy_pixels", *what, *windows.place(row, k, end))]
        outer = self.operand.index(batch, zero, zero)[:-2]
        number: Expression = zero
        for extent, index in zip(self.operand.buffer.shape[:-2], outer, strict=True):
            number = number * int(extent) + index
        statements: list[Statement] = []
        for copy in range(self._part_rows // self._rows_of_copy):
            first: Expression = constant(copy * self._rows_of_copy)
            if self.blocks > 1:
                first = first + rank * self._part_rows
            at = (k, row + first) if self.operand.by_depth else (row + first, k)
            # Rows take as many bytes whichever way they lie.
            to = stage + (self.begin + first * DEPTH_BYTES)
            what = (to, address_of_map(self.map), full, *at, number)
            every = constant((1 << self.blocks) - 1)
            statements.append(
                call("tcomp_copy_tile_to", every, *what)
                if self.blocks > 1
                else call("tcomp_copy_tile", *what)
            )
        return statements

    def matrix(self, stage: Expression, first: Expression) -> Expression:
        """What instructions are told of a stage's rows from piece `first` of 64 rows on."""
        leading = INSTRUCTION_BYTES // 2 if self.operand.by_depth else _PIECE_BYTES
        return matrix(stage + (self.begin + first * _PIECE_BYTES), leading)

    def offset(self, piece: int, k: int) -> Expression:
        """From a matrix to its piece of 64 rows and the `k`-th 32 bytes of depth there."""
        lines = INSTRUCTION_BYTES // self.plan.itemsize
        along = INSTRUCTION_BYTES if self.operand.by_depth else lines * DEPTH_BYTES
        return matrix_step(piece * _PIECE_BYTES + k * along)


@dataclass(frozen=True)
class GatheredRows(ChunkCopies):
    """Chunks in the order of the 128-byte swizzle, at places that are addresses in shared memory."""

    copy: ClassVar[str] = "tcomp_gather_chunk"
