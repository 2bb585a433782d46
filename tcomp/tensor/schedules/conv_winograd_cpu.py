"""Winograd convolution on CPUs: 3x3 kernels without strides, blocked input and output.

The output is cut into square tiles of `outputs` x `outputs` pixels. A group of tiles at a time, small enough
for the second-level cache: the input patch of every tile is transformed to `positions` values a channel, at
each position a matrix product over the channels follows, and the products are transformed to pixels on
which the epilogue works. Weights are transformed when they are packed. See `tcomp.tensor.winograd`.

Operands of bfloat16 are widened where they are read: on a CPU that multiplies their pairs faster, this is an
alternative to products in bfloat16 with fewer, float32 products.

Patches that reach into the padding read zeros there, and tiles at the end of a row or column store only
pixels that exist.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, replace
from math import gcd, inf, prod

import numpy as np

from tcomp.relay.types import Array, TensorType
from tcomp.target.target import Target
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.convolution import Convolution, WeightPanels
from tcomp.tensor.direct_convolution import PixelTile, together, weight_steps
from tcomp.tensor.epilogue import epilogue_fits, placeholder_index
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Choice, Config, Ordered, Space
from tcomp.tensor.lane_factors import LaneFactors, PackedWeights
from tcomp.tensor.loops import (
    Buffer,
    Expression,
    Statement,
    local,
    loop,
    parallel,
    prefetch_share,
    sequence,
    unrolled,
    vectorized,
)
from tcomp.tensor.math import convert
from tcomp.tensor.primitives import Tiles
from tcomp.tensor.register_tile import (
    Index,
    Point,
    Reduction,
    RegisterTile,
    tile_nest,
)
from tcomp.tensor.template import TEMPLATES, Packed, PackedBy, Packing, Scheduled, Template
from tcomp.tensor.winograd import PAIRS, Keep, Winograd, winograd
from tcomp.tensor.winograd_choice import (
    PARTS,
    WinogradChoice,
    best_choice,
    default_choices,
    group_sizes,
    register_tiles,
    tile_counts,
    winograd_cycles,
)
from tcomp.tvm_api import tirx


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
            and conv.strides == conv.dilation == (1, 1)
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
            key, estimated = _packed_by(conv, choice), winograd_cycles(conv, choice, target)
            if estimated < cycles.get(key, inf):
                best[key], cycles[key] = choice, estimated

        def holds(key: Hashable) -> Callable[[Config], bool]:
            return lambda config: _packed_by(conv, WinogradChoice.of(config)) == key

        return {key: Packed(asdict(best[key]), cycles[key], holds(key)) for key in best}

    def space(self, kernel: Kernel, target: Target) -> Space:
        conv = _convolution(kernel)
        best, tiles = best_choice(conv, target), set(register_tiles(conv, target))
        groups = {outputs: group_sizes(conv, outputs) for outputs in PAIRS}

        def reason(config: Config) -> str | None:
            chosen = WinogradChoice.of(config)
            if chosen.group not in groups[chosen.outputs]:
                return f"there are only {groups[chosen.outputs][-1]} tiles, not a group of {chosen.group}"
            if (chosen.rows, chosen.oc_blocks) not in tiles or chosen.rows > chosen.group:
                return (
                    f"register tile {chosen.rows}x{chosen.oc_blocks} needs more than "
                    f"{target.vector_registers} vector registers or {chosen.group} tiles"
                )
            return None

        return Space(
            (
                Ordered("outputs", tuple(PAIRS), best.outputs),
                Ordered("group", tuple(sorted({g for sizes in groups.values() for g in sizes})), best.group),
                Ordered("rows", tuple(sorted({rows for rows, _ in tiles})), best.rows),
                Ordered("oc_blocks", tuple(sorted({blocks for _, blocks in tiles})), best.oc_blocks),
                Ordered("parts", PARTS, best.parts),
                Choice("prefetch", (False, True), best.prefetch),
            ),
            reason,
        )

    def estimate(self, kernel: Kernel, target: Target) -> float:
        conv = _convolution(kernel)
        return winograd_cycles(conv, best_choice(conv, target), target)

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        return _Nest(kernel, target, WinogradChoice.of(config)).scheduled()


def _convolution(kernel: Kernel) -> Convolution:
    """The kernel's convolution, in the element type that it is computed in."""
    assert kernel.anchor is not None
    conv = Convolution.of(kernel.anchor)
    return replace(conv, dtype=conv.accumulator)


def _packed_by(conv: Convolution, choice: WinogradChoice) -> Hashable:
    """What decides how weights are packed."""
    return choice.outputs, Tiles.of(conv.out_blocks, choice.oc_blocks, choice.parts)


class _Nest:
    """The loops of one kernel."""

    def __init__(self, kernel: Kernel, target: Target, choice: WinogradChoice) -> None:
        assert kernel.anchor is not None
        self.conv = _convolution(kernel)
        self.scheme: Winograd = winograd(choice.outputs)
        self.positions = self.scheme.size**2
        self.tile_counts = tile_counts(self.conv, choice.outputs)
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
            keep, patches = local((self.positions, in_blocks, size, conv.in_block), conv.dtype, "patches")
            keep_products, products = local(
                (self.positions, self.panels.size, size, conv.out_block), conv.dtype, "products"
            )

            def panel(p: Expression) -> Statement:
                own = part * (self.panels.count // self.choice.parts) + p
                return sequence(
                    [self._multiply(own, patches, products), self._store_outputs(first, own, products)]
                )

            inputs = loop(in_blocks, lambda b: self._load_inputs(first, b, patches), "block")
            return sequence(
                [keep, keep_products, inputs, loop(self.panels.count // self.choice.parts, panel, "panel")]
            )

        make = parallel if self.anchored.threaded else loop
        nest = make(self.groups.count * self.choice.parts, work, "group")
        return self.anchored.scheduled([*self.copies, nest])

    def _place(self, tile: Expression) -> tuple[Expression, Expression, Expression]:
        """The image of a tile, and its first output row and column."""
        rows, columns = self.tile_counts
        outputs = self.scheme.outputs
        return tile // (rows * columns), tile // columns % rows * outputs, tile % columns * outputs

    def _load_inputs(self, first: Expression, block: Expression, patches: Buffer) -> Statement:
        """`B^T d B` of the patch of each tile of a group, for one channel block."""
        conv, size = self.conv, self.scheme.size

        def one_tile(t: Expression) -> Statement:
            n, row, column = self._place(first + t)
            top, left = row - conv.pad_begin[0], column - conv.pad_begin[1]

            def inside(at: Expression, extent: int, reach: int) -> list[Expression]:
                return [at >= 0, at + reach <= extent]

            def plain(i: Expression, j: Expression, lane: Expression) -> Expression:
                load = tirx.BufferLoad(self.data, [n, block, top + i, left + j, lane])
                return convert(load, conv.dtype)

            def guarded(i: Expression, j: Expression, lane: Expression) -> Expression:
                known = inside(top + i, conv.in_size[0], 1) + inside(left + j, conv.in_size[1], 1)
                return tirx.if_then_else(tirx.all(*known), plain(i, j, lane), tirx.const(0, conv.dtype))

            def store(i: Expression, j: Expression, lane: Expression, value: Expression) -> Statement:
                return tirx.BufferStore(patches, value, [i * size + j, block, t, lane])

            def transform(load: Callable[..., Expression]) -> Statement:
                return loop(
                    conv.in_block // self.in_lanes,
                    lambda v: self._transform(
                        self.scheme.transform_input, size, self.in_lanes, v, load, store
                    ),
                    "vector",
                )

            whole = inside(top, conv.in_size[0], size) + inside(left, conv.in_size[1], size)
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
                patches, [position, channel // conv.in_block, row, channel % conv.in_block]
            )

        tile = RegisterTile.of(axes, range(len(axes)), self.out_lanes)
        weight_steps = self._weight_steps()
        inputs = LaneFactors.of(tile, (1,), self.together, conv.dtype, read, weight_steps > 0)
        width = self.panels.size * conv.out_block
        weights = PackedWeights.of(
            weight_steps, width, self.weights, lambda point, step: [panel, point.tiles[0], *step]
        )

        def update(total: Expression, point: Point, step: Index) -> Expression:
            *_, block, lane = point.index
            return total + inputs.at(point, step) * weights.at(point, step, block * conv.out_block + lane)

        def finish(index: Index, value: Expression) -> Statement:
            position, row, block, lane = index
            return tirx.BufferStore(products, value, [position, block, row, lane])

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
        conv, size, outputs = self.conv, self.scheme.size, self.scheme.outputs
        height, width = conv.out_size

        def one_tile(block: Expression, t: Expression) -> Statement:
            n, top, left = self._place(first + t)

            def vector(v: Expression) -> Statement:
                lanes = self.out_lanes
                keep, results = local((outputs, outputs, lanes), conv.dtype, "results")

                def load(i: Expression, j: Expression, lane: Expression) -> Expression:
                    return tirx.BufferLoad(products, [i * size + j, block, t, lane])

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

                    return unrolled(outputs, lambda i: unrolled(outputs, lambda j: guarded(i, j)))

                transform = self._transform(self.scheme.transform_output, outputs, lanes, v, load, store)
                if height % outputs == 0 and width % outputs == 0:
                    return sequence([keep, transform, pixels(False)])
                whole = tirx.all(top + outputs <= height, left + outputs <= width)
                return sequence([keep, transform, tirx.IfThenElse(whole, pixels(False), pixels(True))])

            return loop(conv.out_block // self.out_lanes, vector, "vector")

        return loop(
            self.panels.size,
            lambda b: loop(self.groups.size, lambda t: one_tile(b, t), "tile"),
            "block",
        )

    def _transform(
        self,
        transform: Callable[[Sequence[Expression], Keep], list[Expression]],
        results: int,
        lanes: int,
        vector: Expression,
        load: Callable[[Expression, Expression, Expression], Expression],
        store: Callable[[Expression, Expression, Expression, Expression], Statement],
    ) -> Statement:
        """`transform` along the columns of `load(row, column, lane)`, then along the rows of the result."""
        size, dtype = self.scheme.size, self.conv.dtype
        allocate, half = local((results, size, lanes), dtype, "half")

        def along(
            values: Callable[[int, Expression], Expression],
            keep_result: Callable[[int, Expression, Expression], Statement],
        ) -> Statement:
            allocate_kept, kept = local((2 * size, lanes), dtype, "kept")

            def body(lane: Expression) -> Statement:
                statements: list[Statement] = []

                def keep(value: Expression) -> Expression:
                    place = [len(statements), lane]
                    statements.append(tirx.BufferStore(kept, value, place))
                    return tirx.BufferLoad(kept, place)

                loaded = [keep(values(k, lane)) for k in range(size)]
                for k, value in enumerate(transform(loaded, keep)):
                    statements.append(keep_result(k, lane, value))
                return sequence(statements)

            return sequence([allocate_kept, vectorized(lanes, body)])

        def columns(j: Expression) -> Statement:
            return along(
                lambda k, lane: load(k, j, vector * lanes + lane),
                lambda k, lane, value: tirx.BufferStore(half, value, [k, j, lane]),
            )

        def rows(i: Expression) -> Statement:
            return along(
                lambda k, lane: tirx.BufferLoad(half, [i, k, lane]),
                lambda k, lane, value: store(i, k, vector * lanes + lane, value),
            )

        return sequence([allocate, unrolled(size, columns), unrolled(results, rows)])


def _packing(conv: Convolution, scheme: Winograd, channels: Tiles) -> Packing:
    """Transformed weights as `[panels, positions, chunks, chunk, panel]`: see `WeightPanels`."""
    panels = WeightPanels(replace(conv, kernel=(scheme.size, scheme.size)), channels)
    count, chunks, size, _, chunk, width = panels.shape
    shape = (count, size * size, chunks, chunk, width)

    def pack(weights: Array) -> Array:
        packed = panels.packing.pack(scheme.transform_weights(weights.astype(conv.dtype)))
        return np.ascontiguousarray(np.moveaxis(packed, 1, 3).reshape(shape))

    return Packing(TensorType(shape, conv.dtype), pack)


TEMPLATES.register(ConvWinograd.name, ConvWinograd())
