"""Pointwise, depthwise and pointwise convolution in one kernel on CPUs, in blocked layout.

    for each piece of neighbouring rows of an image:      shared among threads
      for each row of outputs:
        the rows of hidden pixels that it reads first     -> a ring of rows, all hidden channels
        one row of the depthwise convolution of these     -> a row, all hidden channels
        one row of outputs

Both buffers stay in the second-level cache. A piece computes the hidden rows above its first row for itself,
so that results do not depend on how rows are cut or shared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise, product
from math import gcd

from tcomp.target.target import Target
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.convolution import Convolution
from tcomp.tensor.cpu.conv_chain import ConvChain
from tcomp.tensor.cpu.depthwise_rows import DepthwiseRows, pack_depthwise, tile_widths
from tcomp.tensor.cpu.direct_convolution import (
    DirectProduct,
    PixelTile,
    direct_cycles,
    pixel_tiles,
    register_tile,
    starts_from_addend,
    together,
    walk_order,
    weight_steps,
)
from tcomp.tensor.cpu.primitives import Tiles
from tcomp.tensor.cpu.register_tile import Index, Point, RegisterTile
from tcomp.tensor.cpu.tile_sums import tile_nest
from tcomp.tensor.cpu.weight_panels import WeightPanels
from tcomp.tensor.epilogue import epilogue_fits, placeholder_index
from tcomp.tensor.kernel import Kernel, only_elementwise_between
from tcomp.tensor.knobs import Choice, Config, Ordered, Space
from tcomp.tensor.loops import (
    Buffer,
    Expression,
    Statement,
    local,
    loop,
    sequence,
)
from tcomp.tensor.template import (
    TEMPLATES,
    Packed,
    PackedBy,
    Packing,
    Scheduled,
    Template,
)
from tcomp.tvm_api import tirx


class ConvChainCpu(Template):
    """Three convolutions by rows; see the module's text."""

    name = "conv_chain_cpu"
    takes_chains = True

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        anchors = kernel.anchors
        if ConvChain.of(anchors) is None or not epilogue_fits(kernel):
            return False
        weights = [placeholder_index(kernel, n.inputs[1]) for n in anchors]
        return (
            all(index in kernel.constant_inputs for index in weights)
            and len(set(weights)) == len(weights)
            and placeholder_index(kernel, anchors[0].inputs[0]) is not None
            and all(only_elementwise_between(kernel, *pair) for pair in pairwise(anchors))
        )

    def space(self, kernel: Kernel, target: Target) -> Space:
        chain = _chain(kernel)
        expand, project = (_tiles(chain.row_of(c), target) for c in (chain.expand, chain.project))
        return self._space(chain, target, expand, project)

    def packings(self, kernel: Kernel, target: Target) -> PackedBy:
        """Panels of as many channel blocks as the register tiles of both pointwise convolutions have."""
        chain = _chain(kernel)
        rows = [chain.row_of(c) for c in (chain.expand, chain.project)]
        by_blocks = [_by_blocks(_tiles(row, target)) for row in rows]

        def packed(blocks: tuple[int, ...]) -> Packed:
            expand, project = tiles = [own[count] for own, count in zip(by_blocks, blocks, strict=True)]
            best = [direct_cycles(row, own[0], target) for row, own in zip(rows, tiles, strict=True)]
            cycles = sum(
                cost * stage.batch * stage.out_size[0]
                for cost, stage in zip(best, (chain.expand, chain.project), strict=True)
            )
            default = self._space(chain, target, expand, project).default
            return Packed(
                default, cycles, lambda config: (config["expand_blocks"], config["project_blocks"]) == blocks
            )

        return {blocks: packed(blocks) for blocks in product(*by_blocks)}

    def _space(
        self,
        chain: ConvChain,
        target: Target,
        expand: Sequence[PixelTile],
        project: Sequence[PixelTile],
    ) -> Space:
        widths, width = tile_widths(chain.depthwise, target)
        # Where pixels are loaded a vector at a time, the first panel of weights alone finds a row outside the
        # nearest cache, and runs longer than the row takes to come.
        ahead = together(chain.expand, target) == 1

        def reason(config: Config) -> str | None:
            for name, tiles in (("expand", expand), ("project", project)):
                tile = _tile_of(config, name)
                if tile not in tiles:
                    return (
                        f"register tile {tile.width}x{tile.oc_blocks} of `{name}` needs more than "
                        f"{target.vector_registers} vector registers"
                    )
            return None

        return Space(
            (
                *_tile_knobs("expand", expand),
                Ordered("depthwise_width", widths, width),
                *_tile_knobs("project", project),
                chain.row_pieces.knob(target.cores),
                Choice("prefetch", (False, True), ahead),
            ),
            reason,
        )

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        return _Nest(kernel, target, config).scheduled()


def _chain(kernel: Kernel) -> ConvChain:
    chain = ConvChain.of(kernel.anchors)
    assert chain is not None
    return chain


def _tiles(row: Convolution, target: Target) -> list[PixelTile]:
    """Register tiles of a row, the best one by estimate first."""
    return sorted(pixel_tiles(row, target), key=lambda tile: direct_cycles(row, tile, target))


def _by_blocks(tiles: Sequence[PixelTile]) -> dict[int, list[PixelTile]]:
    """Tiles by their channel blocks, in the order they had."""
    return {
        count: [t for t in tiles if t.oc_blocks == count] for count in sorted({t.oc_blocks for t in tiles})
    }


def _tile_knobs(stage: str, tiles: Sequence[PixelTile]) -> tuple[Ordered, Ordered]:
    return (
        Ordered(f"{stage}_width", tuple(sorted({t.width for t in tiles})), tiles[0].width),
        Ordered(f"{stage}_blocks", tuple(sorted({t.oc_blocks for t in tiles})), tiles[0].oc_blocks),
    )


def _tile_of(config: Config, stage: str) -> PixelTile:
    return PixelTile(1, int(config[f"{stage}_width"]), int(config[f"{stage}_blocks"]))


class _Nest:
    """The loops of one kernel."""

    def __init__(self, kernel: Kernel, target: Target, config: Config) -> None:
        self.target = target
        self.chain = chain = _chain(kernel)
        self.config, self.ahead = config, bool(config["prefetch"])
        self.expand_tile, self.project_tile = (_tile_of(config, name) for name in ("expand", "project"))
        self.pixels = Tiles.of(chain.depthwise.out_size[1], int(config["depthwise_width"]))
        self.lanes = gcd(chain.expand.out_block, target.lanes())
        packings = (
            self._panels(chain.expand, self.expand_tile),
            pack_depthwise(chain.depthwise),
            self._panels(chain.project, self.project_tile),
        )
        places = [placeholder_index(kernel, node.inputs[1]) for node in kernel.anchors]
        packed = {i: p for i, p in zip(places, packings, strict=True) if i is not None}
        self.with_addends = starts_from_addend(chain.expand, target)
        self.anchored = Anchored(kernel, packed, with_addends=self.with_addends)
        self.data: Buffer = self.anchored.buffer_of(self.anchored.stages[0].operands[0])
        self.weights: list[Buffer] = [self.anchored.buffer_of(s.operands[1]) for s in self.anchored.stages]

    @staticmethod
    def _panels(conv: Convolution, tile: PixelTile) -> Packing:
        return WeightPanels(conv, Tiles.of(conv.out_blocks, tile.oc_blocks)).packing

    def scheduled(self) -> Scheduled:
        chain, pieces = self.chain, self.chain.row_pieces
        blocks, block, dtype = chain.expand.out_blocks, chain.expand.out_block, chain.expand.dtype
        hidden_shape = (blocks, pieces.reach, chain.expand.out_size[1], block)
        keep_hidden, hidden = local(hidden_shape, dtype, "hidden")
        keep_row, filtered = local((blocks, chain.project.out_size[1], block), dtype, "filtered")

        def row(n: Expression, row: Expression, number: Expression) -> Statement:
            return sequence(
                [
                    pieces.new_rows(row, number, lambda at: self._expand(n, at, hidden), "hidden_row"),
                    self._depthwise(n, row, hidden, filtered),
                    self._project(n, row, filtered),
                ]
            )

        nest = pieces.nest(self.config, self.anchored.threaded, [keep_hidden, keep_row], row)
        return self.anchored.scheduled([nest])

    def _expand(self, n: Expression, row: Expression, hidden: Buffer) -> Statement:
        """Hidden row `row`, in its place of the ring."""
        conv = self.chain.row_of(self.chain.expand)

        def place(index: Index) -> Index:
            _, block, _, pixel, lane = index
            return [n, block, row, pixel, lane]

        def finish(index: Index, value: Expression) -> Statement:
            _, block, pixel, lane = index
            at = [block, self.chain.row_pieces.place(row), pixel, lane]
            return self.anchored.pass_on(0, [n, block, row, pixel, lane], value, hidden, at)

        def start(index: Index) -> Expression:
            _, block, pixel, lane = index
            return self.anchored.start([n, block, row, pixel, lane], 0)

        product = DirectProduct(conv, self.data, self.weights[0], place)
        return self._products(product, self.expand_tile, finish, start)

    def _depthwise(self, n: Expression, row: Expression, hidden: Buffer, filtered: Buffer) -> Statement:
        def load(index: Index) -> Expression:
            _, block, at, pixel, lane = index
            return tirx.BufferLoad(hidden, [block, self.chain.row_pieces.place(at), pixel, lane])

        def finish(index: Index, value: Expression) -> Statement:
            _, block, _, pixel, lane = index
            return self.anchored.pass_on(1, index, value, filtered, [block, pixel, lane])

        def start(index: Index) -> Expression:
            return self.anchored.start(index, 1)

        rows = DepthwiseRows(
            self.chain.depthwise,
            self.pixels,
            self.lanes,
            self.weights[1],
            load,
            finish,
            start if self.with_addends else None,
        )
        return loop(self.chain.depthwise.out_blocks, lambda block: rows.row([n, block, row]), "block")

    def _project(self, n: Expression, row: Expression, filtered: Buffer) -> Statement:
        conv = self.chain.row_of(self.chain.project)

        def place(index: Index) -> Index:
            _, block, _, pixel, lane = index
            return [block, pixel, lane]

        def finish(index: Index, value: Expression) -> Statement:
            _, block, pixel, lane = index
            return self.anchored.finish([n, block, row, pixel, lane], value)

        def start(index: Index) -> Expression:
            _, block, pixel, lane = index
            return self.anchored.start([n, block, row, pixel, lane])

        product = DirectProduct(conv, filtered, self.weights[2], place)
        return self._products(product, self.project_tile, finish, start)

    def _products(
        self,
        product: DirectProduct,
        tile: PixelTile,
        finish: Callable[[Index, Expression], Statement],
        start: Callable[[Index], Expression],
    ) -> Statement:
        """One row of a pointwise convolution."""

        def ahead(tile: RegisterTile, first: Point, step: Index) -> list[Statement]:
            return product.inputs_ahead(tile, first, step[0], within=steps == 1) if len(step) == 1 else []

        nest = register_tile(product.conv, tile, walk_order(product.conv, tile, self.target), self.lanes)
        steps = together(product.conv, self.target)
        reduction = product.reduction(
            nest,
            steps,
            unroll=steps,
            ahead=ahead if self.ahead else None,
            weight_steps=weight_steps(product.conv, tile, self.target),
            start=start if self.with_addends else None,
        )
        return tile_nest(nest, reduction, finish, threaded=False)


TEMPLATES.register(ConvChainCpu.name, ConvChainCpu())
