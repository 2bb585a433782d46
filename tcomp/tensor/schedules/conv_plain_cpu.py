"""Convolutions into plain layout on CPUs, over 1 to 3 spatial axes, grouped or not.

Lanes are neighbouring pixels of a row; the register tile is output channels by vectors of pixels, and one
step of the reduction multiplies vectors of the input with one broadcast weight a channel. The input is
copied where it must be padded, and where the pixels that a vector reads do not lie side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

from tcomp.relay.graph import Node
from tcomp.target.target import Target
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.convolution import Convolution, accumulator_dtype
from tcomp.tensor.cpu.direct_convolution import copy_cycles
from tcomp.tensor.cpu.primitives import Tiles
from tcomp.tensor.cpu.register_tile import FMA_LATENCY, Index, Point, RegisterTile
from tcomp.tensor.cpu.tile_sums import Reduction, tile_nest
from tcomp.tensor.epilogue import epilogue_fits
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Ordered, Space
from tcomp.tensor.loops import (
    Buffer,
    Expression,
    Statement,
    loop,
    parallel,
    sequence,
    vector_loop,
)
from tcomp.tensor.template import TEMPLATES, Scheduled, Template
from tcomp.tvm_api import tirx

CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
_CHANNELS = (1, 2, 3, 4, 6, 7, 8, 10, 12, 14, 16)
_VECTORS = (1, 2, 3, 4)
_OVERLAPPED_STEPS = 16
"""Sums of so few steps are short enough for the CPU to begin the next tile before they are done."""
_Body = Callable[[Sequence[Expression]], Statement]


@dataclass(frozen=True)
class _Sums:
    """What the register tiles compute: `sums[n, o, i...] = sum over c, t of
    data[n, group * in_channels + c, i * strides + t * dilation] * weights[o, c, t...]`.

    Channel counts are those of one group. Spatial tuples have one entry an axis.
    """

    dtype: str
    batch: int
    groups: int
    in_channels: int
    out_channels: int
    size: tuple[int, ...]
    taps: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def steps(self) -> int:
        """Products that are added up."""
        return self.in_channels * prod(self.taps)


class ConvPlain(Template):
    """Steps: copy what must be padded or gathered; sum up register tiles; finish each with the epilogue."""

    name = "conv_plain_cpu"
    version = 2

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        anchor = kernel.anchor
        if anchor is None or not epilogue_fits(kernel):
            return False
        return anchor.op in CONVOLUTIONS and Convolution.of(anchor).out_block == 1

    def space(self, kernel: Kernel, target: Target) -> Space:
        sums = _sums_of(kernel)
        wide = accumulator_dtype(sums.dtype)
        tiles = list(plain_tiles(sums.out_channels, sums.size[-1], target, wide))
        best = _best_tile(sums, target)

        def reason(config: Config) -> str | None:
            channels, vectors = int(config["channels"]), int(config["vectors"])
            if (channels, vectors) in tiles:
                return None
            most = target.vector_registers
            return f"register tile {channels}x{vectors} needs more than {most} vector registers"

        return Space(
            (
                Ordered("channels", tuple(sorted({c for c, _ in tiles})), best[0]),
                Ordered("vectors", tuple(sorted({v for _, v in tiles})), best[1]),
            ),
            reason,
        )

    def estimate(self, kernel: Kernel, target: Target) -> float:
        """Of the copy of the input and of all rows, whose sums overlap when they are short."""
        assert kernel.anchor is not None
        sums, conv = _sums_of(kernel), Convolution.of(kernel.anchor)
        latency = FMA_LATENCY if sums.steps > _OVERLAPPED_STEPS else 0
        row = _cycles(sums, *_best_tile(sums, target), target, latency)
        return sums.batch * sums.groups * prod(sums.size[:-1]) * row + _copy_cycles(conv, target)

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        assert kernel.anchor is not None
        tile = _tile(_sums_of(kernel), int(config["channels"]), int(config["vectors"]), target)
        return _plain(kernel, kernel.anchor, tile, target)


def plain_tiles(channels: int, width: int, target: Target, dtype: str) -> Iterator[tuple[int, int]]:
    """Register tiles, output channels by vectors of pixels, of at most `channels` and `width` pixels.

    The sums fit the registers beside the vectors of one step and a broadcast weight.
    """
    most = max(1, -(-width // target.lanes(dtype)))
    for rows, vectors in product(_CHANNELS, _VECTORS):
        if rows > channels or vectors > most:
            continue
        if rows * vectors + vectors + 1 <= target.vector_registers or rows == vectors == 1:
            yield rows, vectors


def _sums_of(kernel: Kernel) -> _Sums:
    node = kernel.anchor
    assert node is not None
    conv = Convolution.of(node)
    channels = conv.dtype, conv.batch, conv.groups, conv.group_inputs, conv.group_outputs
    if _is_flat(conv):
        return _Sums(*channels, (prod(conv.out_size),), (1,), (1,), (1,))
    return _Sums(*channels, conv.out_size, conv.kernel, conv.strides, conv.dilation)


def _is_flat(conv: Convolution) -> bool:
    """Whether vectors may run over the ends of rows: no output reads a neighbour."""
    return conv.is_pointwise and conv.in_block == 1


def _row_tile(sums: _Sums, vectors: int, target: Target) -> int:
    """Pixels of a tile: whole vectors, or one vector of a power of two that a short row has room for."""
    lanes = target.lanes(accumulator_dtype(sums.dtype))
    while lanes > sums.size[-1]:
        lanes //= 2
    return lanes * max(1, min(vectors, sums.size[-1] // lanes))


def _best_tile(sums: _Sums, target: Target) -> tuple[int, int]:
    """The default register tile: output channels by vectors."""
    tiles = plain_tiles(sums.out_channels, sums.size[-1], target, accumulator_dtype(sums.dtype))
    return min(tiles, key=lambda tile: (_cycles(sums, *tile, target), tile))


def _cycles(sums: _Sums, channels: int, vectors: int, target: Target, latency: float = FMA_LATENCY) -> float:
    """Estimated cycles of a whole row of one group: FMA ports, latency, loads, and a little for every
    instruction."""
    lanes = target.lanes(accumulator_dtype(sums.dtype))
    width = _row_tile(sums, vectors, target)
    used = max(1, width // lanes)

    def one_tile(rows: int) -> float:
        step = max(rows * used / target.fma_ports, latency, (rows + used) / target.load_ports)
        step += 0.1 * (rows * used + rows + used) + target.load_cycles * (rows / 2 + used)
        return sums.steps * step + 2 * rows * used + 20 if rows else 0.0

    tiles, rest = divmod(sums.out_channels, min(channels, sums.out_channels))
    return (tiles * one_tile(channels) + one_tile(rest)) * -(-sums.size[-1] // width)


def _copy_cycles(conv: Convolution, target: Target) -> float:
    """Estimated cycles of the copy of the input that precedes the sums; see `_plain`."""
    if _gathers(conv):
        return 2.0 * conv.batch * conv.in_channels * prod(conv.needed)
    return conv.batch * copy_cycles(conv, target)


def _gathers(conv: Convolution) -> bool:
    """Whether pixels that a vector reads do not lie side by side, so that the input is rearranged."""
    return conv.strides[-1] > 1 or conv.in_block > 1


def _tile(sums: _Sums, channels: int, vectors: int, target: Target) -> RegisterTile:
    axes = [
        Tiles.of(sums.batch, 1),
        Tiles.of(sums.groups, 1),
        Tiles.with_rest(sums.out_channels, channels),
        *(Tiles.of(extent, 1) for extent in sums.size[:-1]),
        Tiles.of(sums.size[-1], _row_tile(sums, vectors, target)),
    ]
    return RegisterTile.of(axes, range(len(axes)), target.lanes(accumulator_dtype(sums.dtype)))


def _reduction(conv: Convolution, sums: _Sums, data: Buffer, weights: Buffer, split_rows: bool) -> Reduction:
    """One step is one kernel position of one input channel. `split_rows` says that rows of `data` are
    stored as `[stride, pixels / stride]`."""
    wide, rank = accumulator_dtype(sums.dtype), len(sums.size)

    def update(total: Expression, point: Point, step: Index) -> Expression:
        n, group, out, *pixel = point.index
        at = [p * s + t * d for p, t, s, d in zip(pixel, step[1:], sums.strides, sums.dilation, strict=True)]
        if split_rows:
            reach, stride = step[-1] * sums.dilation[-1], sums.strides[-1]
            at[-1:] = [reach % stride, pixel[-1] + reach // stride]
        taps = step[1:]
        if _is_flat(conv):
            at, taps = conv.unflatten(at[0]), [0] * len(conv.kernel)
        value = tirx.BufferLoad(data, [n, group * sums.in_channels + step[0], *at])
        weight = tirx.BufferLoad(weights, [group * sums.out_channels + out, step[0], *taps])
        return total + value.astype(wide) * weight.astype(wide)

    unroll = (*(1,) * rank, sums.taps[-1] if sums.taps[-1] <= 4 else 1)
    return Reduction((sums.in_channels, *sums.taps), unroll, wide, tirx.const(0, wide), update)


def _plain(kernel: Kernel, node: Node, tile: RegisterTile, target: Target) -> Scheduled:
    conv, sums, anchored = Convolution.of(node), _sums_of(kernel), Anchored(kernel)
    lanes, split_rows = target.lanes(conv.accumulator), _gathers(conv)
    if split_rows:
        copies, data = _gather(anchored, conv, lanes)
    else:
        copies, data = _pad(anchored, conv, lanes)
    weight_copies, weights = _in_memory(anchored, lanes)

    def finish(index: Index, value: Expression) -> Statement:
        n, group, out, *pixel = index
        at = conv.unflatten(pixel[0]) if _is_flat(conv) else pixel
        return anchored.finish([n, group * sums.out_channels + out, *at], value)

    reduction = _reduction(conv, sums, data, weights, split_rows)
    nest = tile_nest(tile, reduction, finish, anchored.threaded)
    return anchored.scheduled([*copies, *weight_copies, nest], tile.disjoint)


def _pad(anchored: Anchored, conv: Convolution, lanes: int) -> tuple[list[Statement], Buffer]:
    """The input with its padding around it, cut to what the sums read."""
    end = [n - b - s for n, b, s in zip(conv.needed, conv.pad_begin, conv.in_size, strict=True)]
    around = tirx.const(conv.pad_value, conv.dtype)
    return anchored.copy(anchored.operands[0], [0, 0, *conv.pad_begin], [0, 0, *end], around, lanes)


def _in_memory(anchored: Anchored, lanes: int) -> tuple[list[Statement], Buffer]:
    weights = anchored.operands[1]
    none = [0] * len(weights.shape)
    return anchored.copy(weights, none, none, tirx.const(0, str(weights.dtype)), lanes, "weights")


def _gather(anchored: Anchored, conv: Convolution, lanes: int) -> tuple[list[Statement], Buffer]:
    """The padded input in plain layout, its rows as `[stride, pixels / stride]`."""
    stride = conv.strides[-1]
    shape = (
        conv.batch,
        conv.in_channels,
        *conv.needed[:-1],
        stride,
        conv.out_size[-1] + (conv.kernel[-1] - 1) * conv.dilation[-1] // stride,
    )
    none = [0] * len(anchored.operands[0].shape)
    around = tirx.const(conv.pad_value, conv.dtype)
    copies, source = anchored.copy(anchored.operands[0], none, none, around, lanes, "data")
    target = anchored.add_scratch(shape, conv.dtype, "gathered")

    def store(index: Sequence[Expression]) -> Statement:
        n, channel, *at, phase, column = index
        at = [p - b for p, b in zip([*at, column * stride + phase], conv.pad_begin, strict=True)]
        inside = [c for p, e in zip(at, conv.in_size, strict=True) for c in (p >= 0, p < e)]
        value = tirx.if_then_else(tirx.all(*inside), conv.read(source, n, channel, at), around)
        return tirx.BufferStore(target, value, list(index))

    return [*copies, _everywhere(shape, 1, anchored.threaded, store)], target


def _everywhere(shape: Sequence[int], lanes: int, threaded: bool, body: _Body) -> Statement:
    """`body` at every index of `shape`, the leading two axes shared among threads."""

    def nest(index: tuple[Expression, ...]) -> Statement:
        if len(index) == len(shape) - 1:
            return sequence(vector_loop(shape[-1], lanes, 1, lambda i: body([*index, i])))
        return loop(shape[len(index)], lambda i: nest((*index, i)))

    share = parallel if threaded else loop
    return share(shape[0] * shape[1], lambda i: nest((i // shape[1], i % shape[1])))


TEMPLATES.register(ConvPlain.name, ConvPlain())
