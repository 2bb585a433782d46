"""Transposed convolution on CPUs, over 1 to 3 spatial axes, in plain layout, without multiplying by zeros.

With stride s, the outputs at positions of equal remainder modulo s form a phase, and read the same
subset of the kernel: each phase is an ordinary convolution of the input, computed by one nest whose
outputs lie s apart. Register tiles are as in `conv_plain_cpu`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod

from tcomp.relay.attributes import integer, integers
from tcomp.relay.graph import Node
from tcomp.target.target import Target
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.convolution import Convolution
from tcomp.tensor.cpu.primitives import Tiles, vector_tile
from tcomp.tensor.cpu.register_tile import Index, Point, RegisterTile
from tcomp.tensor.cpu.tile_sums import Reduction, tile_nest
from tcomp.tensor.epilogue import epilogue_fits
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Ordered, Space
from tcomp.tensor.loops import Buffer, Expression, Statement
from tcomp.tensor.schedules.conv_plain_cpu import plain_tiles
from tcomp.tensor.template import TEMPLATES, Scheduled, Template
from tcomp.tvm_api import tirx

OPERATORS = ("conv1d_transpose", "conv2d_transpose", "conv3d_transpose")


@dataclass(frozen=True)
class _Taps:
    """The taps of one phase on one axis: kernel positions `first + i * step`, for i below `count`, which
    read input position `q + offset - i * stride` for the q-th output of the phase."""

    phase: int
    outputs: int
    first: int
    step: int
    count: int
    offset: int
    stride: int


class _Transposed(Convolution):
    """The numbers of one transposed convolution."""

    @staticmethod
    def of(node: Node) -> _Transposed:
        data, weight = node.inputs[0].type.static_shape, node.inputs[1].type.static_shape
        rank, groups = len(weight) - 2, integer(node.attrs, "groups")
        padding = integers(node.attrs, "padding")
        return _Transposed(
            dtype=node.inputs[0].dtype,
            batch=data[0],
            in_channels=data[1],
            out_channels=weight[1] * groups,
            groups=groups,
            in_size=data[2:],
            out_size=node.output.type.static_shape[2:],
            kernel=weight[2:],
            strides=integers(node.attrs, "strides"),
            dilation=integers(node.attrs, "dilation"),
            pad_begin=padding[:rank],
            pad_end=padding[rank:],
        )

    def taps(self, axis: int) -> Iterator[_Taps]:
        """The phases of one axis: output o reads input i at tap k where
        o + padding = i * stride + k * dilation."""
        stride, dilation, begin = self.strides[axis], self.dilation[axis], self.pad_begin[axis]
        for phase in range(min(stride, self.out_size[axis])):
            hits = [k for k in range(self.kernel[axis]) if (phase + begin - k * dilation) % stride == 0]
            outputs = -(-(self.out_size[axis] - phase) // stride)
            first = hits[0] if hits else 0
            step = hits[1] - hits[0] if len(hits) > 1 else 1
            offset = (phase + begin - first * dilation) // stride
            yield _Taps(phase, outputs, first, step, len(hits), offset, step * dilation // stride)

    def phases(self) -> Iterator[tuple[_Taps, ...]]:
        return product(*(self.taps(axis) for axis in range(len(self.kernel))))

    def padding(self, axis: int) -> tuple[int, int]:
        """Zeros needed before and after the input so that every phase reads inside it."""
        reads = [
            (t.offset - (t.count - 1) * t.stride, t.outputs - 1 + t.offset)
            for t in self.taps(axis)
            if t.count
        ]
        least, most = min(low for low, _ in reads), max(high for _, high in reads)
        return max(0, -least), max(0, most - self.in_size[axis] + 1)


class ConvTranspose(Template):
    """Transposed convolution by phases; see the module's text."""

    name = "conv_transpose_cpu"

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        anchor = kernel.anchor
        return anchor is not None and anchor.op in OPERATORS and epilogue_fits(kernel)

    def space(self, kernel: Kernel, target: Target) -> Space:
        conv = _transposed(kernel)
        width = -(-conv.out_size[-1] // conv.strides[-1])
        tiles = list(plain_tiles(conv.group_outputs, width, target, conv.accumulator))
        channels, vectors = max(tiles, key=lambda tile: (prod(tile) / (sum(tile) + 2), prod(tile)))

        def reason(config: Config) -> str | None:
            tile = int(config["channels"]), int(config["vectors"])
            if tile not in tiles:
                return (
                    f"register tile {tile[0]}x{tile[1]} needs more than {target.vector_registers} registers"
                )
            return None

        return Space(
            (
                Ordered("channels", tuple(sorted({c for c, _ in tiles})), channels),
                Ordered("vectors", tuple(sorted({v for _, v in tiles})), vectors),
            ),
            reason,
        )

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        """1. Pad the input where a phase reads outside. 2. One nest over register tiles a phase."""
        conv = _transposed(kernel)
        lanes = target.lanes(conv.accumulator)
        anchored = Anchored(kernel)
        rank = len(conv.kernel)
        margins = [conv.padding(axis) for axis in range(rank)]
        zero, no_padding = tirx.const(0, conv.accumulator), [0] * (2 + rank)
        copies, data = anchored.copy(
            anchored.operands[0],
            [0, 0, *(before for before, _ in margins)],
            [0, 0, *(after for _, after in margins)],
            zero,
            lanes,
        )
        more, weights = anchored.copy(anchored.operands[1], no_padding, no_padding, zero, lanes, "weights")
        before = [b for b, _ in margins]
        nests = [
            _phase(conv, phase, anchored, data, weights, before, config, lanes) for phase in conv.phases()
        ]
        return anchored.scheduled([*copies, *more, *nests])


def _transposed(kernel: Kernel) -> _Transposed:
    assert kernel.anchor is not None
    return _Transposed.of(kernel.anchor)


def _phase(
    conv: _Transposed,
    phase: tuple[_Taps, ...],
    anchored: Anchored,
    data: Buffer,
    weights: Buffer,
    before: list[int],
    config: Config,
    lanes: int,
) -> Statement:
    def update(total: Expression, point: Point, step: Index) -> Expression:
        n, out, *position = point.index
        channel, *taken = step
        source = (0 if conv.groups == 1 else out // conv.group_outputs) * conv.group_inputs + channel
        at = [
            q + (t.offset + b) - i * t.stride
            for q, t, i, b in zip(position, phase, taken, before, strict=True)
        ]
        taps = [t.first + i * t.step for t, i in zip(phase, taken, strict=True)]
        value = tirx.BufferLoad(data, [n, source, *at])
        weight = tirx.BufferLoad(weights, [source, out % conv.group_outputs, *taps])
        return total + value.astype(conv.accumulator) * weight.astype(conv.accumulator)

    def finish(index: Index, value: Expression) -> Statement:
        n, out, *position = index
        at = [q * s + t.phase for q, s, t in zip(position, conv.strides, phase, strict=True)]
        return anchored.finish([n, out, *at], value)

    *outer, last = phase
    axes = [
        Tiles.of(conv.batch, 1),
        Tiles.of(conv.out_channels, int(config["channels"])),
        *(Tiles.of(t.outputs, 1) for t in outer),
        vector_tile(last.outputs, lanes, int(config["vectors"])),
    ]
    steps = (conv.group_inputs, *(t.count for t in phase))
    zero = tirx.const(0, conv.accumulator)
    reduction = Reduction(steps, (1,) * len(steps), conv.accumulator, zero, update)
    tile = RegisterTile.of(axes, range(len(axes)), lanes)
    return tile_nest(tile, reduction, finish, anchored.threaded)


TEMPLATES.register(ConvTranspose.name, ConvTranspose())
