"""Attention on CPUs: softmax(q k^T scale + mask) v, a tile of query rows at a time; see `attention.nest`."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import ClassVar

import numpy as np

from tcomp.target.target import Target
from tcomp.tensor.anchored import PARALLEL_FLOPS
from tcomp.tensor.attention.nest import AttentionNest, Plan
from tcomp.tensor.attention.operands import UNROLL, AttentionOperands
from tcomp.tensor.attention.shape import Shape, Walk
from tcomp.tensor.cpu.lane_factors import rows_fit
from tcomp.tensor.cpu.primitives import Tiles
from tcomp.tensor.cpu.register_tile import FMA_LATENCY
from tcomp.tensor.epilogue import output_axes
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Choice, Config, Ordered, Space
from tcomp.tensor.template import TEMPLATES, Scheduled, Template

ROW_BUFFER_BYTES = 16 * 1024
"""Largest tile of scores, that it stays on the stack; a single longer row gets memory of its own."""
MAX_TILE_ROWS = 16


class AttentionCpu(Template):
    """Steps: pack a head's keys and values; for each tile of rows: scores, softmax without its division,
    the second product. Operands may be slices and transposes of what lies in memory.
    """

    name = "attention_cpu"
    version = 2
    operands: ClassVar[type[AttentionOperands]] = AttentionOperands

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        anchor = kernel.anchor
        if anchor is None or anchor.op != "attention" or output_axes(kernel) is None:
            return False
        return len(kernel.body.outputs) == 1 and all(prod(v.type.static_shape) > 0 for v in anchor.inputs)

    def space(self, kernel: Kernel, target: Target) -> Space:
        shape = _shape(kernel)
        group = self.operands.group
        tiles = tuple(_tiles(shape, target, group))
        best = min(tiles, key=lambda tile: _cycles(shape, target, group, *tile))

        def reason(config: Config) -> str | None:
            tile = tuple(int(config[n]) for n in ("tile_rows", "score_vectors", "value_vectors"))
            if tile in tiles:
                return None
            return f"tile {tile} needs more than {target.vector_registers} registers or too many scores"

        names = ("tile_rows", "score_vectors", "value_vectors")
        ordered = [Ordered(n, tuple(sorted({t[i] for t in tiles})), best[i]) for i, n in enumerate(names)]
        return Space(
            (*ordered, Choice("parallel", ("no", "batch", "tiles"), _shared(kernel, shape, target))), reason
        )

    def _least_cycles(self, kernel: Kernel, target: Target) -> float:
        shape, group = _shape(kernel), self.operands.group
        tiles = _tiles(shape, target, group)
        return prod(shape.batch) * min(_cycles(shape, target, group, *tile) for tile in tiles)

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        plan = Plan(
            Tiles.of(_shape(kernel).rows, int(config["tile_rows"])),
            int(config["score_vectors"]),
            int(config["value_vectors"]),
            str(config["parallel"]),
        )
        return AttentionNest(kernel, plan, target, self.operands).scheduled()


def _shape(kernel: Kernel) -> Shape:
    assert kernel.anchor is not None
    return Shape.of(kernel.anchor)


def _row_bytes(shape: Shape, target: Target, group: int) -> int:
    """Those of a row of scores, and of its weights where these are in groups."""
    lanes = target.lanes(shape.dtype)
    scores = shape.key_vectors(lanes) * lanes * np.dtype(shape.dtype).itemsize
    return scores if group == 1 else scores + scores // group


def _shared(kernel: Kernel, shape: Shape, target: Target) -> str:
    """What threads share: whole heads where there are enough for all, so that each packs its own."""
    if target.sharers == 1 or kernel.flops < PARALLEL_FLOPS:
        return "no"
    heads = prod(shape.batch)
    return "batch" if heads % target.sharers == 0 or heads >= 8 * target.sharers else "tiles"


def _tiles(shape: Shape, target: Target, group: int) -> Iterator[tuple[int, int, int]]:
    """(rows, vectors of scores, vectors of values) that fit the registers and the row buffer."""
    lanes, row_bytes = target.lanes(shape.dtype), _row_bytes(shape, target, group)
    for rows in range(1, min(shape.rows, MAX_TILE_ROWS) + 1):
        for s in range(1, min(shape.key_vectors(lanes), 4) + 1):
            for v in range(1, min(shape.value_vectors(lanes), 4) + 1):
                in_registers = rows * max(s, v) + max(s, v) + 1 <= target.vector_registers
                if in_registers and (rows == 1 or rows * row_bytes <= ROW_BUFFER_BYTES):
                    yield rows, s, v


def _cycles(shape: Shape, target: Target, group: int, rows: int, scores: int, values: int) -> float:
    """Estimated cycles of a head: both products by the tightest of FMA ports, FMA latency and loads."""
    lanes = target.lanes(shape.dtype)

    def part(vectors: int, depth: int) -> float:
        by_lane = group == 1 and rows_fit(target, rows, vectors)
        factors = rows / UNROLL if by_lane else rows
        load = max((factors + vectors) / target.load_ports, vectors)
        return (
            depth * (max(rows * vectors / target.fma_ports, FMA_LATENCY, load) + 0.05 * load)
            + 2 * rows * vectors
        )

    def product(count: int, vectors: int, depth: int) -> float:
        rest = part(count % vectors, depth) if count % vectors else 0
        return count // vectors * part(vectors, depth) + rest

    vectors = shape.key_vectors(lanes)
    walked = Walk.of(shape.limit, rows, lanes).mean / vectors
    first = product(vectors, scores, -(-shape.depth // group))
    second = product(shape.value_vectors(lanes), values, -(-shape.length // group))
    return -(-shape.rows // rows) * walked * (first + second)


TEMPLATES.register(AttentionCpu.name, AttentionCpu())
