"""Attention of bfloat16 by tile registers, a block of query rows at a time; see `attention.amx_tiles`."""

from __future__ import annotations

from math import prod

from tcomp.target.target import Target
from tcomp.tensor.amx import (
    DTYPE,
    LANES,
    ROWS,
    TileBlock,
    has_tiles,
)
from tcomp.tensor.attention.amx_tiles import PANEL, AttentionTiles, Sizes
from tcomp.tensor.attention.shape import Shape, Walk
from tcomp.tensor.cpu.tile_nest import pieces_for, threads_for
from tcomp.tensor.groups import ways_to_sum
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Choice, Config, Ordered, Space
from tcomp.tensor.schedules.attention_cpu import AttentionCpu
from tcomp.tensor.template import TEMPLATES, Scheduled, Template

_EXPONENTIAL = 1.5
"""Cycles of an element of softmax, in vectors."""


class AttentionAmxCpu(Template):
    """Both products by tile registers; see the module's text."""

    name = "attention_amx_cpu"
    alternative_to = AttentionCpu.name

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        if not has_tiles(target) or kernel.anchor is None:
            return False
        operands = kernel.anchor.inputs[:3]
        return AttentionCpu().accepts(kernel, target) and all(v.dtype == DTYPE for v in operands)

    def estimate(self, kernel: Kernel, target: Target) -> float:
        shape = _shape(kernel)
        return min(_cycles(shape, rows) for rows in _tile_rows(shape))

    def space(self, kernel: Kernel, target: Target) -> Space:
        shape = _shape(kernel)
        rows = _tile_rows(shape)
        best = min(rows, key=lambda n: (_cycles(shape, n), n))
        return Space(
            (
                Ordered("tile_rows", rows, best),
                Choice("parallel", (False, True), threads_for(kernel, target) > 1),
            )
        )

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        block = _block(_shape(kernel), int(config["tile_rows"]))
        sums = ways_to_sum(target, DTYPE)[-1]
        threads = target.sharers if config["parallel"] else 1
        cycles = _cycles(_shape(kernel), int(config["tile_rows"]))
        pieces = pieces_for(prod(_shape(kernel).batch), threads, cycles)
        return AttentionTiles(kernel, block, target.lanes(), sums, pieces).scheduled()


def _shape(kernel: Kernel) -> Shape:
    assert kernel.anchor is not None
    return Shape.of(kernel.anchor)


def _block(shape: Shape, rows: int) -> TileBlock:
    return TileBlock(min(2, shape.rows), 2, rows, LANES, LANES)


def _tile_rows(shape: Shape) -> tuple[int, ...]:
    return tuple(range(1, min(ROWS, shape.rows // min(2, shape.rows)) + 1))


def _cycles(shape: Shape, rows: int) -> float:
    """Estimated cycles: the tiles of both products, and softmax."""
    block, sizes = _block(shape, rows), Sizes.of(shape)
    keys = Walk.of(shape.limit, block.height, PANEL).mean * PANEL
    steps = keys / block.width * sizes.depth / PANEL
    steps += sizes.columns // block.width * keys / PANEL
    softmax = block.height * (_EXPONENTIAL * keys + 30)
    return prod(shape.batch) * -(-shape.rows // block.height) * (steps * block.step_cycles + softmax)


TEMPLATES.register(AttentionAmxCpu.name, AttentionAmxCpu())
