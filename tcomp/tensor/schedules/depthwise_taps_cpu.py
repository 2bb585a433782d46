"""Depthwise convolution of int8 in blocked layout, by instructions that add up four products.

The four are those of neighbouring taps of a row. Four pixels of a block of channels lie side by side; with
their bytes transposed, each lane has the four pixels of one channel, a window. A tile of output pixels keeps
its sums in registers; a window is loaded once for all rows of the tile that read it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np

from tcomp.relay.types import Array, TensorType
from tcomp.target.target import Target
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.convolution import Convolution
from tcomp.tensor.cpu.primitives import Tiles
from tcomp.tensor.epilogue import epilogue_fits, placeholder_index
from tcomp.tensor.groups import WORD, int8_lanes_multiply_add
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Ordered, Space
from tcomp.tensor.loops import (
    Buffer,
    Expression,
    Statement,
    constant,
    local,
    loop,
    parallel,
    sequence,
    unrolled,
    vectorized,
)
from tcomp.tensor.template import TEMPLATES, Packing, Scheduled, Template
from tcomp.tvm_api import tirx

TAPS = 4
"""Taps that one instruction multiplies."""
_SIZES = (1, 2, 3, 4, 5, 6, 7, 8)
_FINISH = 12
"""Instructions with which a vector of sums is rounded and stored."""


class DepthwiseTapsCpu(Template):
    """Steps: copy the input with its padding; one nest over tiles of output pixels."""

    name = "depthwise_taps_cpu"
    priority = 2

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        anchor = kernel.anchor
        if anchor is None or anchor.op != "conv2d" or not epilogue_fits(kernel):
            return False
        conv = Convolution.of(anchor)
        weights = placeholder_index(kernel, anchor.inputs[1])
        blocked = conv.in_block == conv.out_block and conv.in_block % target.lanes(WORD) == 0
        suits = conv.dtype == "int8" and target.multiplies("int8") and weights in kernel.constant_inputs
        return suits and conv.is_depthwise and blocked and conv.dilation[-1] == 1

    def space(self, kernel: Kernel, target: Target) -> Space:
        taps = _Taps.of(kernel, target)
        tiles = list(taps.tiles(target))
        height, width = min(tiles, key=lambda tile: taps.instructions(*tile))

        def reason(config: Config) -> str | None:
            tile = int(config["tile_height"]), int(config["tile_width"])
            if tile in tiles:
                return None
            return f"register tile {tile[0]}x{tile[1]} needs more than {target.vector_registers} registers"

        return Space(
            (
                Ordered("tile_height", tuple(sorted({h for h, _ in tiles})), height),
                Ordered("tile_width", tuple(sorted({w for _, w in tiles})), width),
            ),
            reason,
        )

    def estimate(self, kernel: Kernel, target: Target) -> float:
        taps = _Taps.of(kernel, target)
        return min(taps.instructions(*tile) for tile in taps.tiles(target)) / target.fma_ports

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        taps = _Taps.of(kernel, target)
        assert kernel.anchor is not None
        weights = placeholder_index(kernel, kernel.anchor.inputs[1])
        assert weights is not None
        anchored = Anchored(kernel, {weights: taps.packing})
        copies, rows = taps.padded(anchored)
        tiles = taps.nest(anchored, rows, int(config["tile_height"]), int(config["tile_width"]))
        return anchored.scheduled([*copies, tiles])


@dataclass(frozen=True)
class _Taps:
    """One convolution in windows of `TAPS` taps. Extents of two axes are `(rows, columns)`."""

    conv: Convolution
    lanes: int

    @staticmethod
    def of(kernel: Kernel, target: Target) -> _Taps:
        assert kernel.anchor is not None
        return _Taps(Convolution.of(kernel.anchor), target.lanes(WORD))

    @property
    def windows(self) -> int:
        """Windows of a row of taps."""
        return -(-self.conv.kernel[-1] // TAPS)

    @property
    def vectors(self) -> int:
        """Vectors of a block of channels."""
        return self.conv.out_block // self.lanes

    @property
    def size(self) -> tuple[int, int]:
        """Extents of the input with all that windows read."""
        needed, columns = self.conv.needed[0], self.conv.out_size[-1]
        return needed, (columns - 1) * self.conv.strides[-1] + self.windows * TAPS

    def tiles(self, target: Target) -> Iterator[tuple[int, int]]:
        """Heights and widths of tiles whose sums fit beside the weights of two rows of taps and windows."""
        held = self.windows * self.vectors * min(2, self.conv.kernel[0])
        rows, columns = self.conv.out_size
        for height, width in product(_SIZES, _SIZES):
            inside = height <= rows and width <= columns
            registers = height * width * self.vectors + held + self.vectors + 2
            if (inside and registers <= target.vector_registers) or height == width == 1:
                yield height, width

    def instructions(self, height: int, width: int) -> float:
        """Estimated instructions of the whole output."""
        conv = self.conv
        rows, columns = (Tiles.of(*axis) for axis in zip(conv.out_size, (height, width), strict=True))
        reads = self._reach(height) * width * self.windows
        products = height * width * conv.kernel[0] * self.windows
        one = self.vectors * (2 * reads + products + _FINISH * height * width) + 8
        return conv.batch * conv.out_blocks * rows.count * columns.count * one

    def _reach(self, height: int) -> int:
        """Rows of the input that so many rows of outputs read."""
        return (height - 1) * self.conv.strides[0] + (self.conv.kernel[0] - 1) * self.conv.dilation[0] + 1

    @property
    def packing(self) -> Packing:
        """`[C, 1, rows, columns] -> [C/c, rows, windows, c]`, words of `TAPS` taps, zero beyond the last."""
        conv, (rows, columns) = self.conv, self.conv.kernel
        block = conv.out_block

        def pack(weights: Array) -> Array:
            dense: Array = np.zeros((conv.out_blocks * block, rows, self.windows * TAPS), np.int8)
            dense[: conv.out_channels, :, :columns] = weights[:, 0]
            split = dense.reshape(conv.out_blocks, block, rows, self.windows, TAPS)
            words = np.ascontiguousarray(np.transpose(split, (0, 2, 3, 1, 4))).view(np.uint32)
            return words[..., 0]

        return Packing(TensorType((conv.out_blocks, rows, self.windows, block), WORD), pack)

    def padded(self, anchored: Anchored) -> tuple[list[Statement], Buffer]:
        """The input with all that windows read around it, rows of pixels being one axis."""
        conv = self.conv
        begin = conv.pad_begin
        end = [n - b - s for n, b, s in zip(self.size, begin, conv.in_size, strict=True)]
        around = tirx.const(conv.pad_value, "int8")
        copies, data = anchored.copy(
            anchored.operands[0], [0, 0, *begin, 0], [0, 0, *end, 0], around, conv.in_block
        )
        *outer, columns, block = (int(d) for d in data.shape)
        rows = tirx.decl_buffer([*outer, columns * block], "int8", name="rows", data=data.data)
        return [*copies, tirx.DeclBuffer(rows, data=data.data)], rows

    def nest(self, anchored: Anchored, rows: Buffer, height: int, width: int) -> Statement:
        """All tiles of `height` by `width` pixels."""
        conv = self.conv
        down, across = (Tiles.of(*axis) for axis in zip(conv.out_size, (height, width), strict=True))
        extents = (conv.batch, conv.out_blocks, down.count, across.count)

        def tile(number: Expression) -> Statement:
            index: list[Expression] = []
            for extent in reversed(extents):
                index.insert(0, number % extent if extent > 1 else 0)
                number = number // extent if extent > 1 else number
            n, channels, y, x = index
            first = [n, channels, down.base(y), across.base(x)]
            return self._tile(anchored, rows, first, down.size, across.size)

        return (parallel if anchored.threaded else loop)(prod(extents), tile, "tile")

    def _tile(
        self, anchored: Anchored, rows: Buffer, first: Sequence[Expression], height: int, width: int
    ) -> Statement:
        """The outputs from `first`, `[n, channel block, row, column]`."""
        conv, lanes, block = self.conv, self.lanes, self.conv.out_block
        weights = anchored.buffer_of(anchored.operands[1])
        n, channels, top, left = first
        allocation, sums = local([height * width * block], "int32", "sums")
        statements: list[Statement] = [allocation]
        zero = tirx.Broadcast(tirx.const(0, "int32"), lanes)
        for at in range(0, height * width * block, lanes):
            statements.append(tirx.BufferStore(sums, zero, [tirx.Ramp(at, 1, lanes)]))
        for row, column, window in product(range(self._reach(height)), range(width), range(self.windows)):
            read = [(y, *divmod(row - y * conv.strides[0], conv.dilation[0])) for y in range(height)]
            taps = [(y, tap) for y, tap, rest in read if rest == 0 and 0 <= tap < conv.kernel[0]]
            pixel = (left + column) * conv.strides[-1] + window * TAPS
            at = [n, channels, top * conv.strides[0] + row, tirx.Ramp(pixel * block, 1, TAPS * block)]
            pixels = tirx.Var("pixels", f"int8x{TAPS * block}")
            statements += [tirx.Bind(pixels, tirx.BufferLoad(rows, at))] if taps else []
            for vector in range(self.vectors) if taps else ():
                values = tirx.Var("window", f"{WORD}x{lanes}")
                statements.append(tirx.Bind(values, self._window(pixels, vector)))
                for y, tap in taps:
                    place = tirx.Ramp((y * width + column) * block + vector * lanes, 1, lanes)
                    factor = [channels, tap, window, tirx.Ramp(vector * lanes, 1, lanes)]
                    total = int8_lanes_multiply_add(
                        tirx.BufferLoad(sums, [place]), values, tirx.BufferLoad(weights, factor)
                    )
                    statements.append(tirx.BufferStore(sums, total, [place]))

        def finish(y: Expression, x: Expression, lane: Expression) -> Statement:
            value = tirx.BufferLoad(sums, [(y * width + x) * block + lane])
            return anchored.finish([n, channels, top + y, left + x, lane], value)

        def pixel_vectors(y: Expression, x: Expression) -> Statement:
            return unrolled(
                self.vectors, lambda v: vectorized(lanes, lambda lane: finish(y, x, v * lanes + lane))
            )

        statements.append(unrolled(height, lambda y: unrolled(width, lambda x: pixel_vectors(y, x))))
        return sequence(statements)

    def _window(self, pixels: Expression, vector: int) -> Expression:
        """The pixels `[pixel, channel]` as words of one channel each, those of a vector of channels."""
        first = vector * self.lanes
        bytes_ = [t * self.conv.out_block + c for c in range(first, first + self.lanes) for t in range(TAPS)]
        return tirx.reinterpret(f"{WORD}x{self.lanes}", tirx.Shuffle([pixels], [constant(b) for b in bytes_]))


TEMPLATES.register(DepthwiseTapsCpu.name, DepthwiseTapsCpu())
