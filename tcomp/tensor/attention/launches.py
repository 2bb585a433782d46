"""Launches of attention on tensor cores, and the part of it that each of their blocks has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tcomp.target.target import Gpu
from tcomp.tensor.attention.mma_operands import MmaAttentionOperands
from tcomp.tensor.attention.online_softmax import Exponential, OnlineSoftmax
from tcomp.tensor.attention.parts import Pieces
from tcomp.tensor.attention.plan import AttentionPlan
from tcomp.tensor.attention.shape import Blocks
from tcomp.tensor.gpu.threads import digits, launch
from tcomp.tensor.loops import Expression, Statement, left_to_compiler
from tcomp.tensor.template import Scheduled
from tcomp.tvm_api import tirx


class BlockShare:
    """Rows from `rows` on of the matrices of `batch`, and of the steps along keys `steps` from `begin` on."""

    def __init__(
        self,
        operands: MmaAttentionOperands,
        plan: AttentionPlan,
        part: Expression,
        batch: Expression,
        rows: Expression,
    ) -> None:
        self.part, self.batch, self.rows = part, batch, rows
        self.limit = operands.of_anchor.limit
        self.lowest, highest = operands.heads.bounds(rows, plan.block_rows)
        """The lowest query of a head among the rows."""
        self.begin, self.steps = plan.parts.of_block(part, self.limit.steps_of(highest, 1, plan.tile_n))
        self.known: list[Statement] = []
        """What binds the number of steps."""
        if not isinstance(self.steps, int):
            count = tirx.Var("steps", "int32")
            self.known.append(tirx.Bind(count, self.steps))
            self.steps = count


@dataclass(frozen=True)
class BlockShares:
    """What a block does, one after the other: `count` of `at(number)`."""

    count: int | Expression
    at: Callable[[Expression], BlockShare]


class AttentionLaunches:
    """Those of one kernel, but for what brings operands into another form before."""

    def __init__(self, operands: MmaAttentionOperands, plan: AttentionPlan, gpu: Gpu) -> None:
        self.operands, self._plan, shape = operands, plan, plan.shape
        self._blocks = Blocks.of(operands.anchor, shape.batch, plan.row_blocks, gpu)
        extents = shape.batch, shape.rows, operands.of_anchor.width
        self._pieces = Pieces(operands.anchored, plan.parts, *extents) if plan.parts.count > 1 else None
        self._grid = plan.grid(gpu)

    def scheduled(
        self,
        before: list[Statement],
        block: Callable[[BlockShares, Expression], Statement],
        around: Callable[[Statement], Statement] = lambda own: own,
    ) -> Scheduled:
        """`before`, the blocks of which one thread does `block(shares, thread)`, and what puts their parts
        together."""
        plan, operands = self._plan, self.operands
        parts, blocks = plan.parts.count, self._blocks.count

        def share(number: Expression) -> BlockShare:
            part, of_part = digits(number, (parts, blocks))
            batch, rows = self._blocks.place(of_part)
            return BlockShare(operands, plan, part, batch, rows * plan.block_rows)

        def body(index: Sequence[Expression], thread: Sequence[Expression]) -> Statement:
            is_one = self._grid == parts * blocks
            count = 1 if is_one else tirx.floordiv(parts * blocks - 1 - index[0], self._grid) + 1
            shares = BlockShares(count, lambda turn: share(index[0] + turn * self._grid))
            return left_to_compiler(block(shares, thread[0]))

        launches = [around(launch((self._grid,), (plan.threads,), body))]
        if self._pieces is not None:
            exponential = Exponential(operands)
            launches.append(self._pieces.combined(operands.of_anchor, exponential, operands.finish))
        return operands.anchored.scheduled([*before, *launches])

    def left(self, softmax: OnlineSoftmax, part: Expression) -> list[Statement]:
        """What becomes of the sums of a part: the output, if there is but one."""
        rows = self._plan.block_rows
        return softmax.finish(rows) if self._pieces is None else softmax.keep(rows, self._pieces, part)
