"""Depthwise convolutions on GPUs: a thread computes some pixels of a channel, its weights in registers.

Memory bounds large ones, as each element of the input takes part in few products; the nearest cache those of
small images. Threads of a warp have neighbouring columns, and all channels of a block where layouts have
blocks, so that their loads are neighbours; the pixels of a thread lie below each other by default, so that
the rows they share, and weights, are loaded once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod

from tcomp.target.target import Gpu, Target
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.convolution import Convolution
from tcomp.tensor.cpu.primitives import Tiles
from tcomp.tensor.gpu.convolution_matrices import padded
from tcomp.tensor.gpu.rates import INSTRUCTIONS, LAUNCH_CYCLES, memory_cycles
from tcomp.tensor.gpu.simt_space import ARRIVAL_CYCLES
from tcomp.tensor.gpu.threads import digits, spread
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Ordered, Space
from tcomp.tensor.loops import (
    Buffer,
    Expression,
    Statement,
    constant,
    local,
    loops_around,
    sequence,
)
from tcomp.tensor.math import convert
from tcomp.tensor.schedules.conv_cuda import fits_in_blocks
from tcomp.tensor.template import TEMPLATES, Scheduled, Template
from tcomp.tvm_api import Tensor, te, tirx

_SIZES = (1, 2, 4, 8)
_THREADS = 128
"""Of a block of the default."""
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
            return _reason(conv, gpu, *(int(config[name]) for name in ("height", "width", "threads")))

        return Space(
            (
                Ordered("height", _SIZES, _height(conv, gpu, memory_cycles(gpu, kernel.nbytes))),
                Ordered("width", _SIZES, 1),
                Ordered("threads", (64, 128, 256), _THREADS),
            ),
            reason,
        )

    def estimate(self, kernel: Kernel, target: Target) -> float:
        conv, gpu = Convolution.of(kernel.anchors[0]), target.gpu
        assert gpu is not None
        memory = memory_cycles(gpu, kernel.nbytes)
        return LAUNCH_CYCLES + max(memory, _cycles(conv, _height(conv, gpu, memory), gpu))

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


def _reason(conv: Convolution, gpu: Gpu, height: int, width: int, threads: int) -> str | None:
    """Why no thread has such a tile, or None."""
    registers = _registers(conv, height, width)
    most = min(gpu.thread_registers, gpu.registers // threads)
    if registers > most:
        return f"a thread needs {registers} registers; it can have {most}"
    products = height * width * prod(conv.kernel)
    if products > _MOST_PRODUCTS:
        return f"a thread would have {products} products; at most {_MOST_PRODUCTS} are written out"
    return None


def _height(conv: Convolution, gpu: Gpu, memory: float) -> int:
    """Rows of a thread that take the least estimated cycles beside those of `memory`.

    Of those that memory bounds, as many rows as leave half of all threads that fit.
    """
    if len(conv.kernel) == 1:
        return 1
    legal = [h for h in _SIZES if _reason(conv, gpu, h, 1, _THREADS) is None]

    def rank(height: int) -> tuple[float, bool, int]:
        leaves_few = _threads(conv, height) < gpu.processors * gpu.threads // 2
        return max(memory, _cycles(conv, height, gpu)), leaves_few, height if leaves_few else -height

    return min(legal, key=rank, default=1)


def _threads(conv: Convolution, height: int) -> int:
    return conv.batch * conv.out_channels * prod(t.count for t in _tiles(conv, height, 1))


def _cycles(conv: Convolution, height: int, gpu: Gpu) -> float:
    """Estimated cycles of a multiprocessor: the nearest cache gives a warp 128 bytes a cycle, weights too."""
    tiles = _tiles(conv, height, 1)
    rows = zip(tiles, conv.strides, conv.kernel, conv.dilation, strict=True)
    pixels = prod((t.size - 1) * s + (k - 1) * d + 1 for t, s, k, d in rows)
    weights, products = prod(conv.kernel), height * prod(conv.kernel)
    warps = max(1.0, _threads(conv, height) / (gpu.processors * gpu.warp))
    # Neighbours of threads along rows are strides apart, those along channels are not.
    near = warps * (weights + pixels * (conv.strides[-1] if conv.out_block == 1 else 1))
    issue = warps * (products + 2 * (weights + pixels)) * gpu.warp / INSTRUCTIONS
    return max(near, issue) + ARRIVAL_CYCLES + 2 * (products + weights + pixels)


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
