"""Attention on GPUs by plain instructions; see `tcomp.tensor.attention.simt`."""

from __future__ import annotations

from math import ceil, prod

from tcomp.target.target import Gpu, Target
from tcomp.tensor.attention.parts import DTYPE, SPLITS
from tcomp.tensor.attention.plan import together
from tcomp.tensor.attention.shape import Shape, Walk
from tcomp.tensor.attention.simt import AttentionTile, SimtAttention
from tcomp.tensor.epilogue import output_axes
from tcomp.tensor.gpu.rates import LAUNCH_CYCLES, memory_cycles, multiply_adds, resident_blocks
from tcomp.tensor.gpu.simt_space import ARRIVAL_CYCLES, SECOND_LEVEL_BYTES
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Ordered, Space
from tcomp.tensor.template import TEMPLATES, Cycles, Scheduled, Template

ROWS = (32, 64, 128)
KEYS = (32, 64)
THREAD_ROWS = (2, 4, 8)
_WEIGHT_INSTRUCTIONS = 12
"""Of a score that becomes a weight."""


class AttentionCuda(Template):
    """Sums in float32 of operands of any type; heads up to as wide as shared memory holds. Operands may be
    slices and transposes of what lies in memory.
    """

    name = "attention_cuda"
    family = "cuda"

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        anchor = kernel.anchor
        if anchor is None or anchor.op != "attention" or output_axes(kernel) is None:
            return False
        if any(prod(v.type.static_shape) == 0 for v in (*anchor.inputs, *anchor.outputs)):
            return False
        return Shape.of(anchor).dtype == DTYPE and bool(_legal(kernel, target))

    def space(self, kernel: Kernel, target: Target) -> Space:
        shape, gpu = _shape(kernel), _gpu(target)

        def reason(config: Config) -> str | None:
            return AttentionTile.of(config, shape).reason(gpu)

        best = _default(_legal(kernel, target), shape, gpu)
        return Space(
            (
                Ordered("tile_m", ROWS, int(best["tile_m"])),
                Ordered("tile_n", KEYS, int(best["tile_n"])),
                Ordered("thread_m", THREAD_ROWS, int(best["thread_m"])),
                Ordered("split", SPLITS, int(best["split"])),
            ),
            reason,
            {"split": 1},
        )

    def cycles(self, kernel: Kernel, target: Target) -> Cycles:
        shape, gpu = _shape(kernel), _gpu(target)
        memory = memory_cycles(gpu, kernel.nbytes)
        return lambda config: together(_cycles(config, shape, gpu), memory)

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        return SimtAttention(kernel, AttentionTile.of(config, _shape(kernel)), _gpu(target)).scheduled()


def _shape(kernel: Kernel) -> Shape:
    assert kernel.anchor is not None
    return Shape.of(kernel.anchor)


def _gpu(target: Target) -> Gpu:
    assert target.gpu is not None
    return target.gpu


def _legal(kernel: Kernel, target: Target) -> list[Config]:
    """Every config that fits the target."""
    configs: list[Config] = [
        {"tile_m": rows, "tile_n": keys, "thread_m": thread_rows, "split": split}
        for rows in ROWS
        for keys in KEYS
        for thread_rows in THREAD_ROWS
        for split in SPLITS
    ]
    shape, gpu = _shape(kernel), _gpu(target)
    return [config for config in configs if AttentionTile.of(config, shape).reason(gpu) is None]


def _default(legal: list[Config], shape: Shape, gpu: Gpu) -> Config:
    """That of least estimated cycles; keys are in parts only where blocks are too few, and if that pays."""

    def priced(config: Config) -> float:
        return AttentionTile.of(config, shape).parts.price * _cycles(config, shape, gpu)

    few = [c for c in legal if c["split"] == 1 or _blocks(AttentionTile.of(c, shape), shape) < gpu.processors]
    return min(few, key=priced)


def _blocks(tile: AttentionTile, shape: Shape) -> int:
    """That there are for each part of the keys."""
    return prod(shape.batch) * ceil(shape.rows / tile.rows)


def _cycles(config: Config, shape: Shape, gpu: Gpu) -> float:
    """Estimated cycles; see `simt_space`."""
    tile = AttentionTile.of(config, shape)
    parts = tile.parts
    of_processor = ceil(parts.count * _blocks(tile, shape) / gpu.processors)
    resident = min(resident_blocks(gpu, tile.threads, tile.registers, tile.shared_bytes), of_processor)
    rows, keys, columns = tile.thread_rows, tile.thread_keys, tile.thread_columns
    scores = tile.depth * (rows * keys + (rows + keys) / 4) + rows * keys * _WEIGHT_INSTRUCTIONS
    sums = tile.keys * (rows * columns + (rows + columns) / 4) + rows * columns
    issue = tile.threads * (scores + sums) / multiply_adds(gpu, 4)

    walk = Walk.of(shape.limit, tile.rows, tile.keys)

    def together(blocks: int, steps: float = walk.mean / parts.count) -> float:
        return steps * max(blocks * issue, issue + ARRIVAL_CYCLES) + 2 * ARRIVAL_CYCLES

    rest = of_processor % resident
    rounds = of_processor // resident * together(resident) + (together(rest) if rest else 0)
    combining = parts.cycles(prod(shape.batch) * shape.rows, shape.width, gpu, SECOND_LEVEL_BYTES)
    return max(rounds, together(1, parts.share)) + LAUNCH_CYCLES + combining


TEMPLATES.register(AttentionCuda.name, AttentionCuda())
