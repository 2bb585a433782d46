"""Convolution and max pooling in one kernel on CPUs, in blocked layout.

    for each piece of neighbouring rows of an image:      shared among threads
      for each row of outputs:
        the rows of the convolution that it reads first   -> a ring of rows, all channels
        the maxima of their windows

The ring stays in the second-level cache. A piece computes the rows above its first one for itself. Rows and
columns outside are read as the nearest ones inside; see `tcomp.tensor.cpu.conv_pool`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from itertools import product
from math import gcd

from tcomp.target.target import Target
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.cpu.channel_panels import packed_by_blocks
from tcomp.tensor.cpu.conv_pool import ConvPool
from tcomp.tensor.cpu.direct_convolution import (
    DirectProduct,
    PixelTile,
    direct_cycles,
    input_phases,
    pixel_tiles,
    place_in_phases,
    register_tile,
    starts_from_addend,
)
from tcomp.tensor.cpu.register_tile import Index
from tcomp.tensor.cpu.tile_sums import tile_nest
from tcomp.tensor.cpu.weight_panels import WeightPanels
from tcomp.tensor.epilogue import epilogue_fits, placeholder_index
from tcomp.tensor.kernel import Kernel, only_elementwise_between
from tcomp.tensor.knobs import Config, Space
from tcomp.tensor.loops import (
    Buffer,
    Expression,
    Statement,
    local,
    loop,
    sequence,
    vectorized,
)
from tcomp.tensor.math import larger
from tcomp.tensor.schedules.conv2d_cpu import direct_reduction, direct_space, tile_of
from tcomp.tensor.template import TEMPLATES, PackedBy, Scheduled, Template
from tcomp.tvm_api import tirx


class ConvPoolCpu(Template):
    """A convolution by rows and its maxima; see the module's text."""

    name = "conv_pool_cpu"
    takes_chains = True

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        anchors = kernel.anchors
        if ConvPool.of(anchors) is None or not epilogue_fits(kernel):
            return False
        weights = placeholder_index(kernel, anchors[0].inputs[1])
        return weights in kernel.constant_inputs and only_elementwise_between(kernel, *anchors)

    def space(self, kernel: Kernel, target: Target) -> Space:
        pooled = _pooled(kernel)
        return _space(pooled, target, _tiles(pooled, target))

    def packings(self, kernel: Kernel, target: Target) -> PackedBy:
        """Panels of as many channel blocks as the register tile has."""
        pooled = _pooled(kernel)
        tiles, rows = _tiles(pooled, target), pooled.conv.batch * pooled.conv.out_size[0]

        def cycles(tiles: list[PixelTile]) -> float:
            return rows * min(direct_cycles(pooled.row, tile, target) for tile in tiles)

        return packed_by_blocks(tiles, lambda own: _space(pooled, target, own).default, cycles)

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        return _Nest(kernel, target, config).scheduled()


def _pooled(kernel: Kernel) -> ConvPool:
    pooled = ConvPool.of(kernel.anchors)
    assert pooled is not None
    return pooled


def _tiles(pooled: ConvPool, target: Target) -> list[PixelTile]:
    return [tile for tile in pixel_tiles(pooled.row, target) if tile.height == 1]


def _space(pooled: ConvPool, target: Target, tiles: list[PixelTile]) -> Space:
    """The knobs of a row of the convolution, whose weights are walked in one pass, and the pieces."""
    row = direct_space(pooled.row, target, tiles)
    knobs = (knob for knob in row.knobs if knob.name != "passes")
    return Space(
        (*knobs, pooled.row_pieces.knob(target.cores)),
        lambda config: row.legal({**config, "passes": 1}),
    )


class _Nest:
    """The loops of one kernel."""

    def __init__(self, kernel: Kernel, target: Target, config: Config) -> None:
        self.target, self.config = target, {**config, "passes": 1}
        self.pooled = pooled = _pooled(kernel)
        conv = pooled.conv
        self.lanes = target.lanes(conv.accumulator)
        self.tile = register_tile(pooled.row, tile_of(config), str(config["order"]), self.lanes)
        weights = placeholder_index(kernel, kernel.anchors[0].inputs[1])
        assert weights is not None
        self.with_addends = starts_from_addend(conv, target)
        packing = {weights: WeightPanels(pooled.row, self.tile.axes[1]).packing}
        self.anchored = Anchored(kernel, packing, with_addends=self.with_addends)
        self.weights: Buffer = self.anchored.buffer_of(self.anchored.stages[0].operands[1])
        self.phases = input_phases(conv, target)
        self.copies, self.data = conv.padded_input(self.anchored, self.lanes, self.phases, stage=0)

    def scheduled(self) -> Scheduled:
        conv, pieces = self.pooled.conv, self.pooled.row_pieces
        keep, ring = local(
            (conv.out_blocks, pieces.reach, conv.out_size[1], conv.out_block), conv.dtype, "ring"
        )

        def row(n: Expression, row: Expression, number: Expression) -> Statement:
            fresh = pieces.new_rows(row, number, lambda at: self._convolve(n, at, ring), "new_row")
            return sequence([fresh, self._maxima(n, row, ring)])

        nest = pieces.nest(self.config, self.anchored.threaded, [keep], row)
        return self.anchored.scheduled([*self.copies, nest])

    def _convolve(self, n: Expression, row: Expression, ring: Buffer) -> Statement:
        """Row `row` of the convolution, in its place of the ring."""
        conv = self.pooled.conv
        in_phases = place_in_phases(self.phases)

        def place(index: Index) -> Index:
            _, channel, line, *rest = index
            return in_phases([n, channel, row * conv.strides[0] + line, *rest])

        def at(index: Index) -> list[Expression]:
            _, block, *_, pixel, lane = index
            return [n, block, row, pixel, lane]

        def finish(index: Index, value: Expression) -> Statement:
            _, block, _, pixel, lane = at(index)
            kept = [block, self.pooled.row_pieces.place(row), pixel, lane]
            return self.anchored.pass_on(0, at(index), value, ring, kept)

        def start(index: Index) -> Expression:
            return self.anchored.start(at(index), 0)

        direct = DirectProduct(self.pooled.row, self.data, self.weights, place, self.phases)
        reduction = direct_reduction(
            direct, self.tile, self.config, self.target, start if self.with_addends else None
        )
        return tile_nest(self.tile, reduction, finish, threaded=False)

    def _maxima(self, n: Expression, row: Expression, ring: Buffer) -> Statement:
        """One row of outputs: pixels whose windows reach out of the image, and those between them."""
        conv, (down, across) = self.pooled.conv, self.pooled.windows
        lanes = gcd(conv.out_block, self.lanes)
        first, end = across.interior
        lines = [
            self.pooled.row_pieces.place(_inside(row * down.stride - down.begin + tap, down.extent))
            for tap in range(down.kernel)
        ]

        def pixels(
            begin: int, count: int, columns: Callable[[Expression], list[Expression]]
        ) -> list[Statement]:
            def pixel(block: Expression, x: Expression, vector: Expression) -> Statement:
                def one(lane: Expression) -> Statement:
                    channel = vector * lanes + lane
                    taps = [
                        tirx.BufferLoad(ring, [block, line, column, channel])
                        for line, column in product(lines, columns(x))
                    ]
                    return self.anchored.finish([n, block, row, x, channel], reduce(larger, taps))

                return vectorized(lanes, one)

            def vectors(block: Expression, x: Expression) -> Statement:
                return loop(conv.out_block // lanes, lambda v: pixel(block, x, v), "vector")

            def of_block(block: Expression) -> Statement:
                return loop(count, lambda i: vectors(block, i + begin), "pixel")

            return [loop(conv.out_blocks, of_block, "block")] if count else []

        def clamped(x: Expression) -> list[Expression]:
            return [_inside(column, across.extent) for column in inside(x)]

        def inside(x: Expression) -> list[Expression]:
            return [x * across.stride - across.begin + tap for tap in range(across.kernel)]

        return sequence(
            [
                *pixels(0, first, clamped),
                *pixels(first, end - first, inside),
                *pixels(end, across.positions - end, clamped),
            ]
        )


def _inside(at: Expression, extent: int) -> Expression:
    """The place of an axis that is nearest to `at`."""
    return tirx.max(tirx.min(at, extent - 1), 0)


TEMPLATES.register(ConvPoolCpu.name, ConvPoolCpu())
