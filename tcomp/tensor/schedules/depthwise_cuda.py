"""Depthwise convolutions on GPUs: a thread computes some pixels of a channel, its weights in registers.

Memory bounds them, as each element of the input takes part in few products. Threads of a warp have
neighbouring columns, and all channels of a block where layouts have blocks, so that their loads are
neighbours; the pixels of a thread lie below each other by default, so that the rows they share are loaded
once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod

from tcomp.target.target import Target
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.convolution import Convolution
from tcomp.tensor.convolution_matrices import padded
from tcomp.tensor.gpu_rates import LAUNCH_CYCLES, memory_cycles
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Ordered, Space
from tcomp.tensor.loops import Buffer, Expression, Statement, constant, local, loops_around, sequence
from tcomp.tensor.math import convert
from tcomp.tensor.primitives import Tiles
from tcomp.tensor.schedules.conv_cuda import fits_in_blocks
from tcomp.tensor.template import TEMPLATES, Scheduled, Template
from tcomp.tensor.threads import digits, spread
from tcomp.tvm_api import Tensor, te, tirx

_SIZES = (1, 2, 4, 8)
_MOST_PRODUCTS = 1024
"""Of a thread, which are all written out."""


class DepthwiseCuda(Template):
    """Plain layout, or input and output in the same blocks of channels.

    Steps: number the tiles of pixels of all channels; give each thread one.
    """

    name = "depthwise_cuda"
    family = "cuda"

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        if not fits_in_blocks(kernel):
            return False
        conv = Convolution.of(kernel.anchors[0])
        return conv.is_depthwise and conv.in_block == conv.out_block

    def space(self, kernel: Kernel, target: Target) -> Space:
        conv, gpu = Convolution.of(kernel.anchors[0]), target.gpu
        assert gpu is not None

        def reason(config: Config) -> str | None:
            registers = _registers(conv, int(config["height"]), int(config["width"]))
            most = min(gpu.thread_registers, gpu.registers // int(config["threads"]))
            if registers > most:
                return f"a thread needs {registers} registers; it can have {most}"
            products = int(config["height"]) * int(config["width"]) * prod(conv.kernel)
            if products > _MOST_PRODUCTS:
                return f"a thread would have {products} products; at most {_MOST_PRODUCTS} are written out"
            return None

        height = 1 if len(conv.kernel) == 1 else _height(conv, gpu.processors * gpu.threads // 2)
        legal = [h for h in _SIZES if reason({"height": h, "width": 1, "threads": 128}) is None]
        return Space(
            (
                Ordered("height", _SIZES, max((h for h in legal if h <= height), default=1)),
                Ordered("width", _SIZES, 1),
                Ordered("threads", (64, 128, 256), 128),
            ),
            reason,
        )

    def estimate(self, kernel: Kernel, target: Target) -> float:
        assert target.gpu is not None
        return LAUNCH_CYCLES + memory_cycles(target.gpu, kernel.nbytes)

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        conv = Convolution.of(kernel.anchors[0])
        tiles = _tiles(conv, int(config["height"]), int(config["width"]))
        counts = (conv.batch, conv.out_blocks, *(t.count for t in tiles), conv.out_block)
        pixels = _Pixels(conv, tiles, Anchored(kernel))

        def one(number: Expression) -> Statement:
            image, block, *tile, lane = digits(number, counts)
            channel = block * conv.out_block + lane
            return pixels.statement(image, channel, [t.base(i) for t, i in zip(tiles, tile, strict=True)])

        return pixels.anchored.scheduled([spread(prod(counts), int(config["threads"]), one)])


def _tiles(conv: Convolution, height: int, width: int) -> list[Tiles]:
    """Tiles of the output's spatial axes."""
    sizes = (*(1 for _ in conv.kernel[2:]), height, width)[-len(conv.kernel) :]
    return [Tiles.of(extent, size) for extent, size in zip(conv.out_size, sizes, strict=True)]


def _height(conv: Convolution, threads: int) -> int:
    """Rows of a thread: as many as leave enough threads, and do not compute many rows twice."""
    rows = conv.out_size[-2]
    others = conv.batch * conv.out_channels * prod(conv.out_size) // rows
    fitting = [h for h in _SIZES if others * -(-rows // h) >= threads and -(-rows // h) * h <= rows * 1.15]
    return max(fitting, default=1)


def _registers(conv: Convolution, height: int, width: int) -> int:
    """Estimated registers of a thread: weights, sums, a row of the input, addresses."""
    reach = (width - 1) * conv.strides[-1] + (conv.kernel[-1] - 1) * conv.dilation[-1] + 1
    return prod(conv.kernel) + height * width + 2 * reach + 32


@dataclass(frozen=True)
class _Pixels:
    """What one thread does."""

    conv: Convolution
    tiles: Sequence[Tiles]
    anchored: Anchored

    def statement(self, image: Expression, channel: Expression, base: Sequence[Expression]) -> Statement:
        """The pixels from `base` on."""
        conv, dtype = self.conv, self.conv.accumulator
        sizes = [t.size for t in self.tiles]
        allocate_weights, weights = local((prod(conv.kernel),), dtype, "weights")
        allocate_sums, sums = local((prod(sizes),), dtype, "sums")
        allocate_row, row = local((self._reach[-1],), dtype, "row")
        statements = [allocate_weights, allocate_sums, allocate_row]
        for number, tap in enumerate(product(*map(range, conv.kernel))):
            place = [channel, constant(0), *map(constant, tap)]
            statements.append(self._read(self._weights, place, weights, number))
        statements += [
            tirx.BufferStore(sums, tirx.const(0, dtype), [number]) for number in range(prod(sizes))
        ]
        data = padded(conv, self.anchored.operands[0])
        first = [b * s for b, s in zip(base, conv.strides, strict=True)]
        for outer in product(*map(range, self._reach[:-1])):
            updates = list(self._updates(outer))
            if not updates:
                continue
            for inner in sorted({source for _, _, source in updates}):
                at = [f + o for f, o in zip(first, (*outer, inner), strict=True)]
                statements.append(self._read(data, conv.place(image, channel, at), row, inner))
            for pixel, tap, source in updates:
                statements.append(tirx.BufferStore(sums, sums[pixel] + row[source] * weights[tap], [pixel]))
        for number, offset in enumerate(product(*map(range, sizes))):
            at = [b + o for b, o in zip(base, offset, strict=True)]
            statements.append(self.anchored.finish(conv.place(image, channel, at), sums[number]))
        return sequence(statements)

    @cached_property
    def _weights(self) -> Tensor:
        """Zero for what fills the last block."""
        conv, plain = self.conv, self.anchored.operands[1]
        last = conv.out_channels - 1
        if last % conv.out_block == conv.out_block - 1:
            return plain
        zero = tirx.const(0, str(plain.dtype))

        def element(channel: Expression, *at: Expression) -> Expression:
            return tirx.if_then_else(channel <= last, plain(tirx.min(channel, last), *at), zero)

        shape = (conv.out_blocks * conv.out_block, *map(int, plain.shape[1:]))
        return te.compute(shape, element, name="weights")

    @property
    def _reach(self) -> list[int]:
        """Extents of the input that the pixels read."""
        conv = self.conv
        return [
            (t.size - 1) * s + (k - 1) * d + 1
            for t, s, k, d in zip(self.tiles, conv.strides, conv.kernel, conv.dilation, strict=True)
        ]

    def _updates(self, row: Sequence[int]) -> Iterator[tuple[int, int, int]]:
        """(pixel, tap, column) of the products with elements of one row of the input."""
        conv, sizes = self.conv, [t.size for t in self.tiles]
        for number, pixel in enumerate(product(*map(range, sizes))):
            for place, tap in enumerate(product(*map(range, conv.kernel))):
                *outer, inner = (
                    p * s + k * d for p, s, k, d in zip(pixel, conv.strides, tap, conv.dilation, strict=True)
                )
                if tuple(outer) == tuple(row):
                    yield number, place, inner

    def _read(self, tensor: Expression, index: Sequence[Expression], target: Buffer, at: int) -> Statement:
        elements = self.anchored.elements(loops_around())
        value = convert(elements.element(tensor, index), self.conv.accumulator)
        return sequence([*elements.statements, tirx.BufferStore(target, value, [at])])


TEMPLATES.register(DepthwiseCuda.name, DepthwiseCuda())
