"""Winograd convolution on CPUs: 3x3 kernels of strides 1 and 2, blocked input and output.

The output is cut into tiles of `outputs` rows by `columns` (0: as many) pixels. A group of tiles at a time,
small enough for the second-level cache: the input patch of every tile is transformed to `positions` values a
channel, at each position a matrix product over the channels follows, and the products are transformed to
pixels on which the epilogue works. Weights are transformed when they are packed. See `winograd.filtering`.

Operands of bfloat16 are widened where they are read: on a CPU that multiplies their pairs faster, this is an
alternative to products in bfloat16 with fewer, float32 products.

Patches that reach into the padding read zeros there, and tiles at the end of a row or column store only
pixels that exist.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import asdict, replace
from math import gcd, inf, prod

import numpy as np

from tcomp.relay.types import Array, TensorType
from tcomp.target.target import Target
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.convolution import Convolution
from tcomp.tensor.cpu.direct_convolution import PixelTile, together, weight_steps
from tcomp.tensor.cpu.lane_factors import LaneFactors, WeightRows
from tcomp.tensor.cpu.primitives import Tiles
from tcomp.tensor.cpu.register_tile import Index, Point, RegisterTile
from tcomp.tensor.cpu.tile_sums import Reduction, passes_nest, tile_nest
from tcomp.tensor.cpu.weight_panels import WeightPanels
from tcomp.tensor.epilogue import epilogue_fits, placeholder_index
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Choice, Config, Ordered, Space
from tcomp.tensor.loops import (
    Buffer,
    Expression,
    Statement,
    aligned_stack,
    local,
    loop,
    parallel,
    prefetch_share,
    sequence,
    unrolled,
    vectorized,
)
from tcomp.tensor.math import convert
from tcomp.tensor.template import (
    TEMPLATES,
    Packed,
    PackedBy,
    Packing,
    Scheduled,
    Template,
)
from tcomp.tensor.winograd.choice import (
    COLUMNS,
    PARTS,
    WinogradChoice,
    best_choice,
    default_choices,
    group_sizes,
    pass_counts,
    pixel_tiles,
    register_tiles,
    scheme_of,
    tile_counts,
    winograd_cycles,
)
from tcomp.tensor.winograd.filtering import KERNEL, OUTPUTS, Scheme
from tcomp.tensor.winograd.transform import transform_inputs, transform_outputs
from tcomp.tvm_api import tirx

WORTH = 1.05
"""How much faster it must be, by estimate, to be worth a larger library."""


class ConvWinograd(Template):
    """Winograd convolution; see the module's text."""

    name = "conv_winograd_cpu"
    alternative_to = "conv_direct_cpu"

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        anchor = kernel.anchor
        if anchor is None or anchor.op != "conv2d" or not epilogue_fits(kernel):
            return False
        conv = Convolution.of(anchor)
        fits = conv.dtype == "float32" or conv.dtype == target.fast_dtype == "bfloat16"
        return (
            fits
            and conv.kernel == (3, 3)
            and all(stride in OUTPUTS for stride in conv.strides)
            and conv.dilation == (1, 1)
            and conv.groups == 1
            and min(conv.in_block, conv.out_block) > 1
            and placeholder_index(kernel, anchor.inputs[1]) in kernel.constant_inputs
        )

    def packings(self, kernel: Kernel, target: Target) -> PackedBy:
        """Weights transformed for tiles of so many outputs, in panels of so many channel blocks."""
        conv = _convolution(kernel)
        best: dict[Hashable, WinogradChoice] = {}
        cycles: dict[Hashable, float] = {}
        for choice in default_choices(conv, target):
            key, estimated = _packed_by(conv, choice), WORTH * winograd_cycles(conv, choice, target)
            if estimated < cycles.get(key, inf):
                best[key], cycles[key] = choice, estimated

        def holds(key: Hashable) -> Callable[[Config], bool]:
            return lambda config: _packed_by(conv, WinogradChoice.of(config)) == key

        return {key: Packed(asdict(best[key]), cycles[key], holds(key)) for key in best}

    def space(self, kernel: Kernel, target: Target) -> Space:
        conv = _convolution(kernel)
        best, tiles = best_choice(conv, target), set(register_tiles(conv, target))
        groups = {tile: group_sizes(conv, tile) for tile in pixel_tiles(conv.strides)}

        def reason(config: Config) -> str | None:
            chosen = WinogradChoice.of(config)
            sizes = groups.get(chosen.pixels)
            if chosen.columns == chosen.outputs:
                return "as many columns as rows are `columns` 0"
            if sizes is None:
                return f"tiles of {chosen.pixels[0]}x{chosen.pixels[1]} pixels have no scheme for this stride"
            if chosen.group not in sizes:
                return f"there are only {sizes[-1]} tiles, not a group of {chosen.group}"
            if (chosen.rows, chosen.oc_blocks) not in tiles or chosen.rows > chosen.group:
                return (
                    f"register tile {chosen.rows}x{chosen.oc_blocks} needs more than "
                    f"{target.vector_registers} vector registers or {chosen.group} tiles"
                )
            return None

        return Space(
            (
                Ordered("outputs", tuple(sorted({rows for rows, _ in groups})), best.outputs),
                Ordered("columns", COLUMNS, best.columns),
                Ordered("group", tuple(sorted({g for sizes in groups.values() for g in sizes})), best.group),
                Ordered("rows", tuple(sorted({rows for rows, _ in tiles})), best.rows),
                Ordered("oc_blocks", tuple(sorted({blocks for _, blocks in tiles})), best.oc_blocks),
                Ordered("parts", PARTS, best.parts),
                Choice("prefetch", (False, True), best.prefetch),
                Ordered("passes", pass_counts(conv), best.passes),
            ),
            reason,
            {"columns": 0, "passes": 1},
        )

    def estimate(self, kernel: Kernel, target: Target) -> float:
        conv = _convolution(kernel)
        return WORTH * winograd_cycles(conv, best_choice(conv, target), target)

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        return _Nest(kernel, target, WinogradChoice.of(config)).scheduled()


def _convolution(kernel: Kernel) -> Convolution:
    """The kernel's convolution, in the element type that it is computed in."""
    assert kernel.anchor is not None
    conv = Convolution.of(kernel.anchor)
    return replace(conv, dtype=conv.accumulator)


def _packed_by(conv: Convolution, choice: WinogradChoice) -> Hashable:
    """What decides how weights are packed."""
    return choice.pixels, Tiles.of(conv.out_blocks, choice.oc_blocks, choice.parts)


class _Nest:
    """The loops of one kernel."""

    def __init__(self, kernel: Kernel, target: Target, choice: WinogradChoice) -> None:
        assert kernel.anchor is not None
        self.conv = _convolution(kernel)
        self.scheme = scheme_of(self.conv, choice.pixels)
        self.positions = self.scheme.positions
        self.tile_counts = tile_counts(self.conv, choice.pixels)
        self.groups = Tiles.of(self.conv.batch * prod(self.tile_counts), choice.group)
        self.panels = Tiles.of(self.conv.out_blocks, choice.oc_blocks, choice.parts)
        self.choice = choice
        self.target, lanes = target, target.lanes(self.conv.accumulator)
        self.together = together(self.conv, target)
        self.in_lanes, self.out_lanes = gcd(self.conv.in_block, lanes), gcd(self.conv.out_block, lanes)
        index = placeholder_index(kernel, kernel.anchor.inputs[1])
        assert index is not None
        self.anchored = Anchored(kernel, {index: _packing(self.conv, self.scheme, self.panels)})
        data, weights = self.anchored.operands
        self.weights: Buffer = self.anchored.buffer_of(weights)
        none = [0] * len(data.shape)
        self.copies, self.data = self.anchored.copy(
            data, none, none, tirx.const(0, self.conv.dtype), lanes, "data"
        )

    def scheduled(self) -> Scheduled:
        """Groups and parts of the output channels are shared among threads."""
        conv, size = self.conv, self.groups.size
        in_blocks = -(-conv.in_channels // conv.in_block)

        def work(number: Expression) -> Statement:
            part, group = number // self.groups.count, number % self.groups.count
            first = self.groups.base(group)
            keep, patches = local((in_blocks, self.positions, size, conv.in_block), conv.dtype, "patches")
            keep_products, products = local(
                (self.panels.size, self.positions, size, conv.out_block), conv.dtype, "products"
            )

            def panel(p: Expression) -> Statement:
                own = part * (self.panels.count // self.choice.parts) + p
                return sequence(
                    [self._multiply(own, patches, products), self._store_outputs(first, own, products)]
                )

            inputs = loop(in_blocks, lambda b: self._load_inputs(first, b, patches), "block")
            panels = loop(self.panels.count // self.choice.parts, panel, "panel")
            aligned = aligned_stack(self.target.lanes(conv.dtype), conv.dtype)
            return sequence([aligned, keep, keep_products, inputs, panels])

        make = parallel if self.anchored.threaded else loop
        nest = make(self.groups.count * self.choice.parts, work, "group")
        return self.anchored.scheduled([*self.copies, nest], self.groups.exact and self.panels.exact)

    def _place(self, tile: Expression) -> tuple[Expression, Expression, Expression]:
        """The image of a tile, and its first output row and column."""
        rows, columns = self.tile_counts
        height, width = self.choice.pixels
        return tile // (rows * columns), tile // columns % rows * height, tile % columns * width

    def _load_inputs(self, first: Expression, block: Expression, patches: Buffer) -> Statement:
        """`B^T d B` of the patch of each tile of a group, for one channel block."""
        conv, scheme = self.conv, self.scheme
        height, width = scheme.down.size, scheme.across.size

        def one_tile(t: Expression) -> Statement:
            n, row, column = self._place(first + t)
            top, left = (
                at * stride - pad
                for at, stride, pad in zip((row, column), conv.strides, conv.pad_begin, strict=True)
            )

            def inside(at: Expression, extent: int, reach: int) -> list[Expression]:
                return [at >= 0, at + reach <= extent]

            def plain(i: Expression, j: Expression, lane: Expression) -> Expression:
                load = tirx.BufferLoad(self.data, [n, block, top + i, left + j, lane])
                return convert(load, conv.dtype)

            def guarded(i: Expression, j: Expression, lane: Expression) -> Expression:
                known = inside(top + i, conv.in_size[0], 1) + inside(left + j, conv.in_size[1], 1)
                return tirx.if_then_else(tirx.all(*known), plain(i, j, lane), tirx.const(0, conv.dtype))

            def store(i: Expression, j: Expression, lane: Expression, value: Expression) -> Statement:
                return tirx.BufferStore(patches, value, [block, i * width + j, t, lane])

            def transform(load: Callable[..., Expression]) -> Statement:
                return loop(
                    conv.in_block // self.in_lanes,
                    lambda v: transform_inputs(
                        scheme, conv.dtype, load, store, self.in_lanes, v * self.in_lanes
                    ),
                    "vector",
                )

            whole = inside(top, conv.in_size[0], height) + inside(left, conv.in_size[1], width)
            return tirx.IfThenElse(tirx.all(*whole), transform(plain), transform(guarded))

        return loop(self.groups.size, one_tile, "tile")

    def _multiply(self, panel: Expression, patches: Buffer, products: Buffer) -> Statement:
        """`products[p] = patches[p] weights[p]` at every position p, for a panel of channels."""
        conv = self.conv
        axes = [
            Tiles.of(self.positions, 1),
            Tiles.with_rest(self.groups.size, self.choice.rows),
            Tiles.of(self.panels.size, self.panels.size),
            Tiles.of(conv.out_block, conv.out_block),
        ]

        def read(point: Point, step: Index) -> Expression:
            position, row, *_ = point.index
            channel = step[0] * conv.reduction_chunk + step[1]
            return tirx.BufferLoad(
                patches, [channel // conv.in_block, position, row, channel % conv.in_block]
            )

        tile = RegisterTile.of(axes, range(len(axes)), self.out_lanes)
        weight_steps = self._weight_steps()
        inputs = LaneFactors.of(tile, (1,), self.together, conv.dtype, read, weight_steps > 0)
        width = self.panels.size * conv.out_block
        weights = WeightRows.of(
            weight_steps, width, self.weights, lambda point, step: [panel, point.tiles[0], *step]
        )

        def update(total: Expression, point: Point, step: Index) -> Expression:
            *_, block, lane = point.index
            return total + inputs.at(point, step) * weights.at(point, step, block * conv.out_block + lane)

        def finish(index: Index, value: Expression) -> Statement:
            position, row, block, lane = index
            return tirx.BufferStore(products, value, [block, position, row, lane])

        steps = (conv.reduction_chunks, conv.reduction_chunk)

        def ahead(_: RegisterTile, first: Point, step: Index) -> list[Statement]:
            return self._prefetch(panel, first.tiles, step, axes[1].count) if len(step) == 2 else []

        zero = tirx.const(0, conv.dtype)
        fetch = ahead if self.choice.prefetch else None
        most = 4 if weight_steps else 2
        written = gcd(steps[0], most) if self.together > 1 else 1
        reduction = Reduction(
            steps,
            (written, self.together),
            conv.dtype,
            zero,
            update,
            ahead=fetch,
            factors=inputs.factors(steps),
            weights=weights.factors,
        )
        if self.choice.passes > 1:
            steps = conv.reduction_chunks // self.choice.passes
            return passes_nest(tile, reduction, finish, threaded=False, kept=1, steps=steps)
        return tile_nest(tile, reduction, finish, threaded=False)

    def _weight_steps(self) -> int:
        """Steps whose weights are one load; see `weight_steps`."""
        return weight_steps(self.conv, PixelTile(1, self.choice.rows, self.panels.size), self.target)

    def _prefetch(self, panel: Expression, tiles: Index, step: Index, rounds: int) -> list[Statement]:
        """The share that steps whose inputs are loaded together have in the weights of the next position,
        which `rounds` register tiles fetch."""
        conv, width = self.conv, self.panels.size * self.conv.out_block
        channel = (tiles[1] * conv.reduction_chunks + step[0]) * conv.reduction_chunk + step[1]
        behind = width * conv.reduction_chunks * conv.reduction_chunk
        number = channel // self.together
        return prefetch_share(
            self.weights, [panel, tiles[0], 0, 0, behind], number, width * self.together, rounds
        )

    def _store_outputs(self, first: Expression, panel: Expression, products: Buffer) -> Statement:
        """`A^T m A` of each tile of a group and each channel block of a panel, through the epilogue."""
        conv, scheme = self.conv, self.scheme
        (height, width), (rows, columns) = conv.out_size, self.choice.pixels

        def one_tile(block: Expression, t: Expression) -> Statement:
            n, top, left = self._place(first + t)

            def vector(v: Expression) -> Statement:
                lanes = self.out_lanes
                keep, results = local((rows, columns, lanes), conv.dtype, "results")

                def load(i: Expression, j: Expression, lane: Expression) -> Expression:
                    return tirx.BufferLoad(products, [block, i * scheme.across.size + j, t, lane])

                def store(i: Expression, j: Expression, lane: Expression, value: Expression) -> Statement:
                    return tirx.BufferStore(results, value, [i, j, lane - v * lanes])

                def pixel(i: Expression, j: Expression) -> Statement:
                    at = [n, self.panels.base(panel) + block, top + i, left + j]
                    return vectorized(
                        lanes,
                        lambda lane: self.anchored.finish(
                            [*at, v * lanes + lane], tirx.BufferLoad(results, [i, j, lane])
                        ),
                    )

                def pixels(guard: bool) -> Statement:
                    def guarded(i: Expression, j: Expression) -> Statement:
                        if not guard:
                            return pixel(i, j)
                        return tirx.IfThenElse(
                            tirx.all(top + i < height, left + j < width), pixel(i, j), None
                        )

                    return unrolled(rows, lambda i: unrolled(columns, lambda j: guarded(i, j)))

                transform = transform_outputs(scheme, conv.dtype, load, store, lanes, v * lanes)
                if height % rows == 0 and width % columns == 0:
                    return sequence([keep, transform, pixels(False)])
                whole = tirx.all(top + rows <= height, left + columns <= width)
                return sequence([keep, transform, tirx.IfThenElse(whole, pixels(False), pixels(True))])

            return loop(conv.out_block // self.out_lanes, vector, "vector")

        return loop(
            self.panels.size,
            lambda b: loop(self.groups.size, lambda t: one_tile(b, t), "tile"),
            "block",
        )


def _packing(conv: Convolution, scheme: Scheme, channels: Tiles) -> Packing:
    """Transformed weights as `[panels, positions, chunks, chunk, panel]`: see `WeightPanels`."""
    panels = WeightPanels(conv, channels)
    count, chunks, *_, chunk, width = panels.shape
    shape = (count, scheme.positions, chunks, chunk, width)

    def pack(weights: Array) -> Array:
        packed: Array = np.empty(shape, conv.dtype)
        # A panel at a time: numbers of 64 bits then stay near the caches.
        for plain, panel in zip(panels.packing.pack(weights.astype(conv.dtype)), packed, strict=True):
            taps = np.moveaxis(plain, 0, 2).reshape(KERNEL**2, -1)
            panel[...] = scheme.transform_weights(taps).reshape(panel.shape)
        return packed

    return Packing(TensorType(shape, conv.dtype), pack)


TEMPLATES.register(ConvWinograd.name, ConvWinograd())
