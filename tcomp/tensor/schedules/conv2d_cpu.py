"""Direct 2-d convolution into blocked output, for constant or computed weights, on CPUs.

The register tile is `tile_height x tile_width` output pixels by `oc_blocks` channel blocks. One step of
the reduction loads the weights of the channel blocks and multiplies them with one broadcast input
scalar a pixel. A 1x1 convolution without strides runs over the flattened pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tcomp.relay.graph import Node
from tcomp.relay.types import TensorType
from tcomp.target.target import Target
from tcomp.tensor.convolution import (
    Convolution,
    input_position,
    pack_dense_weights,
    pack_dense_weights_in_kernel,
    pad_input,
)
from tcomp.tensor.epilogue import epilogue_fits, inline_between, placeholder_index
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Choice, Config, Ordered, Space
from tcomp.tensor.lower import lower_body, placeholders
from tcomp.tensor.template import TEMPLATES, Packing, Scheduled, Template
from tcomp.tvm_api import Schedule, Tensor, s_tir, te

MAX_TILE_PIXELS = 28
MAX_OC_BLOCKS = 8


@dataclass(frozen=True)
class Tile:
    """The register tile."""

    height: int
    width: int
    oc_blocks: int

    @property
    def pixels(self) -> int:
        return self.height * self.width


class Conv2dDirect(Template):
    """Direct convolution, register tiled; see the module's text."""

    name = "conv2d_direct_cpu"

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        anchor = kernel.anchor
        if anchor is None or anchor.op != "conv2d" or not epilogue_fits(kernel):
            return False
        conv = Convolution.of(anchor)
        return conv.groups == 1 and conv.out_block > 1

    def space(self, kernel: Kernel, target: Target) -> Space:
        conv, row = _geometry(kernel), _row(kernel)
        tiles = tuple(_tiles(conv, row, target))
        best = min(tiles, key=lambda tile: _cycles_per_output(conv, tile, target))
        heights = sorted({t.height for t in tiles})
        widths = sorted({t.width for t in tiles})
        blocks = sorted({t.oc_blocks for t in tiles})
        legal = {(t.height, t.width, t.oc_blocks) for t in tiles}
        chunk = conv.reduction_chunk
        unrolls = tuple(u for u in (1, 2, 4, 8) if chunk % u == 0)

        def reason(config: Config) -> str | None:
            tile = _tile_of(config)
            if (tile.height, tile.width, tile.oc_blocks) not in legal:
                return (
                    f"register tile {tile.height}x{tile.width}x{tile.oc_blocks} does not divide the output's rows "
                    f"or needs more than {target.vector_registers} vector registers"
                )
            return None

        return Space(
            (
                Ordered("tile_height", tuple(heights), best.height),
                Ordered("tile_width", tuple(widths), best.width),
                Ordered("oc_blocks", tuple(blocks), best.oc_blocks),
                Choice("order", ("weights", "pixels"), _order(conv, best, target)),
                Ordered("unroll", unrolls, 1),
                Choice("unroll_kernel", (False, True), conv.reduction_chunk == 1 and conv.kernel[1] > 1),
            ),
            reason,
        )

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        tile = _tile_of(config)
        stages = _Stages(kernel, tile)
        schedule = s_tir.Schedule(
            te.create_prim_func(stages.parameters).with_attr("tirx.noalias", True), enable_check=False
        )
        _schedule_tile(schedule, stages, tile, config, target)
        for stage in stages.copies:
            _schedule_copy(schedule, stage)
        return Scheduled(schedule.mod["main"], stages.packing, stages.scratch)


def _geometry(kernel: Kernel) -> Convolution:
    """The kernel's convolution; pointwise ones as one row of all pixels."""
    assert kernel.anchor is not None
    conv = Convolution.of(kernel.anchor)
    if not conv.is_pointwise:
        return conv
    pixels = conv.out_size[0] * conv.out_size[1]
    return replace(conv, in_size=(1, pixels), out_size=(1, pixels))


def _row(kernel: Kernel) -> int:
    """Pixels in one row of the output."""
    assert kernel.anchor is not None
    return Convolution.of(kernel.anchor).out_size[1]


def _tile_of(config: Config) -> Tile:
    return Tile(int(config["tile_height"]), int(config["tile_width"]), int(config["oc_blocks"]))


def _vectors(conv: Convolution, target: Target) -> int:
    """Vector registers of one channel block."""
    return max(1, -(-conv.out_block // target.lanes(conv.accumulator)))


def _tiles(conv: Convolution, row: int, target: Target) -> Iterator[Tile]:
    """Register tiles that divide the output and whose sums fit the registers.

    A tile of flattened pixels is part of one output row or whole rows: one that wrapped into the next row
    would have no constant extents.
    """
    height, width = conv.out_size
    vectors = _vectors(conv, target)
    for oc_blocks in _divisors(conv.out_blocks, MAX_OC_BLOCKS):
        for tile_width in _divisors(width, MAX_TILE_PIXELS):
            if row % tile_width and tile_width % row:
                continue
            heights = _divisors(height, MAX_TILE_PIXELS) if tile_width == width else (1,)
            for tile_height in heights:
                tile = Tile(tile_height, tile_width, oc_blocks)
                one_pixel = tile.pixels == oc_blocks == 1
                if _registers(tile, vectors) <= target.vector_registers or one_pixel:
                    yield tile


def _registers(tile: Tile, vectors: int) -> int:
    """Vector registers in use: the sums, the weights of one reduction step, and one broadcast input."""
    return (tile.pixels + 1) * tile.oc_blocks * vectors + 1


def _divisors(number: int, most: int) -> tuple[int, ...]:
    return tuple(d for d in range(1, min(number, most) + 1) if number % d == 0)


def _cycles_per_output(conv: Convolution, tile: Tile, target: Target) -> float:
    """Estimated cycles of one reduction step for one output vector, by the tighter of FMA and load ports.

    A chain of FMAs has a latency of four cycles, so that fewer sums than `4 * ports` leave ports idle.
    """
    vectors = _vectors(conv, target) * tile.oc_blocks
    sums = vectors * tile.pixels
    multiply = max(sums / target.fma_ports, 4.0)
    load = (vectors + tile.pixels) / 2
    weights_from_l2 = vectors * target.vector_bits / 8 / 32
    return (max(multiply, load, weights_from_l2) + 0.05 * load + 0.5) / sums


def _order(conv: Convolution, tile: Tile, target: Target) -> str:
    """Which operand stays in the cache: the panel of weights, or the input pixels."""
    return "weights"


class _Stages:
    """The tensor expressions of the kernel: copies, sums (`sums`), epilogue, in parameter order."""

    def __init__(self, kernel: Kernel, tile: Tile) -> None:
        self.kernel = kernel
        self.tile = tile
        self.copies: list[str] = []
        self.packing: dict[int, Packing] = {}
        self.scratch: tuple[TensorType, ...] = ()
        self._scratch_tensors: list[Tensor] = []
        assert kernel.anchor is not None
        self.conv = _geometry(kernel)
        weights = placeholder_index(kernel, kernel.anchor.inputs[1])
        if weights is not None and weights in kernel.constant_inputs:
            self.packing[weights] = pack_dense_weights(self.conv, tile.oc_blocks)
        inputs = placeholders(kernel, {i: p.type for i, p in self.packing.items()})
        outputs = lower_body(kernel, inputs, self._anchor)
        self.parameters = [*inputs, *self._scratch_tensors, *outputs]

    def _anchor(self, node: Node, operands: Sequence[Tensor]) -> list[Tensor]:
        data, weights = operands
        conv = Convolution.of(node)
        if conv.is_padded or placeholder_index(self.kernel, node.inputs[0]) is None:
            data = self._copy("padded_input", pad_input(conv, data))
        if not self.packing:
            weights = self._copy(
                "packed_weights", pack_dense_weights_in_kernel(conv, weights, self.tile.oc_blocks)
            )
        return [_convolve(self.conv, node, data, weights, self.tile)]

    def _copy(self, name: str, stage: Tensor) -> Tensor:
        self.copies.append(name)
        self._scratch_tensors.append(stage)
        self.scratch += (TensorType(tuple(int(d) for d in stage.shape), str(stage.dtype)),)
        return stage


def _convolve(conv: Convolution, node: Node, data: Tensor, weights: Tensor, tile: Tile) -> Tensor:
    """Sums in `[N, O/c, H, W, c]` of `conv`'s (maybe flattened) pixels, then the node's own output."""
    chunk = conv.reduction_chunk
    outer = te.reduce_axis((0, conv.reduction_chunks), "channel_chunk")
    taps = [te.reduce_axis((0, k), f"tap{i}") for i, k in enumerate(conv.kernel)]
    inner = te.reduce_axis((0, chunk), "channel")
    flat, in_width = conv.is_pointwise, node.inputs[0].type.static_shape[3]

    def read(n: Any, h: Any, w: Any) -> Any:
        position = [w // in_width, w % in_width] if flat else input_position(conv, (h, w), taps)
        channel = outer * chunk + inner
        if conv.in_block == 1:
            return data(n, channel, *position)
        return data(n, channel // conv.in_block, *position, channel % conv.in_block)

    def multiply(n: Any, o: Any, h: Any, w: Any, v: Any) -> Any:
        lane = o % tile.oc_blocks * conv.out_block + v
        weight = weights(o // tile.oc_blocks, outer, *taps, inner, lane)
        product = read(n, h, w).astype(conv.accumulator) * weight.astype(conv.accumulator)
        return te.sum(product, axis=[outer, *taps, inner])

    shape = (conv.batch, conv.out_blocks, *conv.out_size, conv.out_block)
    sums = te.compute(shape, multiply, name="sums")
    _, _, _, width, _ = node.output.type.static_shape

    def convolved(n: Any, o: Any, h: Any, w: Any, v: Any) -> Any:
        value = sums(n, o, 0, h * width + w, v) if flat else sums(n, o, h, w, v)
        return value.astype(node.output.dtype)

    return te.compute(node.output.type.static_shape, convolved, name="convolved")


def _schedule_tile(schedule: Schedule, stages: _Stages, tile: Tile, config: Config, target: Target) -> None:
    """1. Inline the epilogue. 2. Tile the output. 3. Compute the sums of a tile in registers."""
    sums = schedule.get_sblock("sums")
    final, *others = inline_between(schedule, {"sums", *stages.copies})
    n, o, h, w, v = schedule.get_loops(final)
    if stages.conv.is_pointwise:
        w = schedule.fuse(h, w)
        h = schedule.add_unit_loop(w)
    o_tile, o_in = schedule.split(o, [None, tile.oc_blocks])
    h_tile, h_in = schedule.split(h, [None, tile.height])
    w_tile, w_in = schedule.split(w, [None, tile.width])
    by_weights = config["order"] == "weights"
    outer = [n, o_tile, h_tile, w_tile] if by_weights else [n, h_tile, w_tile, o_tile]
    schedule.reorder(*outer, h_in, w_in, o_in, v)
    schedule.set_scope(sums, 0, "local")
    schedule.compute_at(sums, outer[-1], preserve_unit_loops=True)
    for other in others:
        schedule.reverse_compute_at(other, outer[-1], preserve_unit_loops=True)
    chunk, tap, channel = _register_loops(schedule, sums)
    for block in (final, *others):
        _unroll_and_vectorize(schedule, block)
    if config["unroll_kernel"]:
        schedule.unroll(tap)
    if int(config["unroll"]) > 1:
        _, step = schedule.split(channel, [None, int(config["unroll"])])
        schedule.unroll(step)
    initial = schedule.decompose_reduction(sums, chunk)
    _unroll_and_vectorize(schedule, initial)
    schedule.parallel(schedule.fuse(*outer[:-1]))


def _register_loops(schedule: Schedule, sums: Any) -> list[Any]:
    """Order the tile's loops as reduction outside, pixels by channel blocks by lanes inside."""
    *tile, chunk, tap_h, tap_w, channel = schedule.get_loops(sums)[-9:]
    _, o, h, w, v = tile
    schedule.reorder(chunk, tap_h, tap_w, channel, h, w, o, v)
    for loop in (h, w, o):
        schedule.unroll(loop)
    schedule.vectorize(v)
    return [chunk, tap_w, channel]


def _unroll_and_vectorize(schedule: Schedule, block: Any) -> None:
    *_, first, second, third, lanes = schedule.get_loops(block)
    for loop in (first, second, third):
        schedule.unroll(loop)
    schedule.vectorize(lanes)


def _schedule_copy(schedule: Schedule, stage: str) -> None:
    """A vectorised copy, parallel over its outer axes."""
    loops = schedule.get_loops(schedule.get_sblock(stage))
    schedule.vectorize(loops[-1])
    schedule.parallel(schedule.fuse(*loops[:2]))


TEMPLATES.register(Conv2dDirect.name, Conv2dDirect())
