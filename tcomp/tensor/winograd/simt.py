"""Winograd convolution on a GPU, in three launches that pass tensors through the second-level cache.

    for each channel and tile of pixels (a thread):
      patches[position, channel, tile] = B^T d B of the tile's inputs
    for each position (a batch of products; see `simt_product`):
      products[position, output, tile] = sum over channels of weights[position, channel, output] * patches
    for each output channel and tile of pixels (a thread):
      A^T m A of the tile's products, through the epilogue

Threads of a warp have neighbouring tiles, so that both tensors are read and written in whole lines. The tiles
of a position are filled up to whole vectors with the last one again. See `tcomp.tensor.winograd.filtering`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from tcomp.relay.builder import GraphBuilder
from tcomp.tensor.alignment import anywhere, vector_lanes
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.convolution import Convolution
from tcomp.tensor.gpu.block_tile import BlockTile
from tcomp.tensor.gpu.convolution_matrices import padded
from tcomp.tensor.gpu.matrices import Index, expressions
from tcomp.tensor.gpu.shares import Shares
from tcomp.tensor.gpu.simt_product import SimtProduct
from tcomp.tensor.gpu.threads import digits, spread
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.loops import (
    Buffer,
    Elements,
    Expression,
    Statement,
    constant,
    local,
    loops_around,
    sequence,
    vectorized,
    written_out,
)
from tcomp.tensor.product import constant_right, unravel
from tcomp.tensor.template import Packing, Scheduled
from tcomp.tensor.winograd.choice import scheme_of, tile_counts
from tcomp.tensor.winograd.filtering import KERNEL, Scheme
from tcomp.tensor.winograd.transform import transform_inputs, transform_outputs
from tcomp.tvm_api import tirx

VECTOR = 4
"""Tiles of a position are a multiple of it."""


@dataclass(frozen=True)
class PixelTiles:
    """The output of a convolution in tiles of `pixels` rows and columns."""

    conv: Convolution
    pixels: tuple[int, int]

    @property
    def scheme(self) -> Scheme:
        return scheme_of(self.conv, self.pixels)

    @property
    def counts(self) -> tuple[int, int, int]:
        """Images, rows of tiles, tiles of a row."""
        return (self.conv.batch, *tile_counts(self.conv, self.pixels))

    @property
    def count(self) -> int:
        return prod(self.counts)

    @property
    def columns(self) -> int:
        """Tiles that are transformed and multiplied: `count`, filled up to whole vectors."""
        return -(-self.count // VECTOR) * VECTOR

    def place(self, tile: Expression) -> tuple[Expression, Expression, Expression]:
        """The image of a tile, and its row and column among tiles."""
        image, row, column = expressions(unravel(tile, self.counts))
        return image, row, column


@dataclass(frozen=True)
class TileProducts:
    """The products of all positions: rows are output channels, columns tiles, the depth is channels."""

    anchored: Anchored
    tiles: PixelTiles
    patches: Buffer
    products: Buffer

    @property
    def batch(self) -> tuple[int, ...]:
        return (self.tiles.scheme.positions,)

    @property
    def rows(self) -> int:
        return self.tiles.conv.out_channels

    @property
    def columns(self) -> int:
        return self.tiles.columns

    @property
    def depth(self) -> int:
        return self.tiles.conv.in_channels

    @property
    def accumulator(self) -> str:
        return self.tiles.conv.accumulator

    def left(self, elements: Elements, batch: Index, row: Expression, k: Expression) -> Expression:
        return elements.element(self.anchored.operands[1], [*batch, k, row])

    def right(self, elements: Elements, batch: Index, k: Expression, column: Expression) -> Expression:
        return tirx.BufferLoad(self.patches, [*batch, k, column])

    def store(self, batch: Index, row: Expression, column: Expression, value: Expression) -> Statement:
        return tirx.BufferStore(self.products, value, [*batch, row, column])


class SimtWinograd:
    """The launches of one kernel, whose weights are constant; `threads` of a block that transforms."""

    def __init__(
        self, kernel: Kernel, tiles: PixelTiles, tile: BlockTile, shares: Shares, threads: int
    ) -> None:
        self.tiles, self.conv, self.threads = tiles, tiles.conv, threads
        self.scheme, weights = tiles.scheme, constant_right(kernel)
        assert weights is not None
        self.anchored = Anchored(kernel, {weights: _packing(self.conv, self.scheme)})
        self.patches = self._scratch(self.conv.in_channels, "patches")
        self.products = self._scratch(self.conv.out_channels, "products")
        products = TileProducts(self.anchored, tiles, self.patches, self.products)
        self.product = SimtProduct(products, tile, shares)

    def scheduled(self) -> Scheduled:
        """1. Transform inputs. 2. Multiply. 3. Transform products; what follows the convolution."""
        return self.anchored.scheduled([self._patches(), *self.product.launches(), self._outputs()])

    def _scratch(self, channels: int, name: str) -> Buffer:
        shape = (self.scheme.positions, channels, self.tiles.columns)
        return self.anchored.add_scratch(shape, self.conv.accumulator, name)

    def _patches(self) -> Statement:
        tiles, conv, dtype = self.tiles, self.conv, self.conv.accumulator
        sizes = self.scheme.down.size, self.scheme.across.size
        steps = [pixels * stride for pixels, stride in zip(tiles.pixels, conv.strides, strict=True)]
        ends = [
            (count - 1) * step + size - begin - extent
            for count, step, size, begin, extent in zip(
                tiles.counts[1:], steps, sizes, conv.pad_begin, conv.in_size, strict=True
            )
        ]
        data = padded(replace(conv, pad_end=tuple(ends)), self.anchored.operands[0])

        def one(number: Expression) -> Statement:
            channel, column = digits(number, (conv.in_channels, tiles.columns))
            filled = tiles.columns > tiles.count
            tile = tirx.min(column, constant(tiles.count - 1)) if filled else column
            image, *at = tiles.place(tile)
            allocate, inputs = local(sizes, dtype, "inputs")

            def load(within: Sequence[Expression]) -> Statement:
                elements = self.anchored.elements(loops_around())
                place = [a * step + i for a, step, i in zip(at, steps, within, strict=True)]
                value = elements.element(data, [image, channel, *place])
                return sequence([*elements.statements, tirx.BufferStore(inputs, value, list(within))])

            def store(i: Expression, j: Expression, lane: Expression, value: Expression) -> Statement:
                return tirx.BufferStore(self.patches, value, [i * sizes[1] + j, channel, column])

            transform = transform_inputs(
                self.scheme, dtype, lambda i, j, lane: tirx.BufferLoad(inputs, [i, j]), store
            )
            return sequence([allocate, written_out(sizes, load), transform])

        return spread(conv.in_channels * tiles.columns, self.threads, one)

    def _outputs(self) -> Statement:
        tiles, conv, dtype = self.tiles, self.conv, self.conv.accumulator
        lanes = self._lanes()

        def one(number: Expression) -> Statement:
            channel, tile = digits(number, (conv.out_channels, tiles.count))
            image, *at = tiles.place(tile)
            top, left = (a * extent for a, extent in zip(at, tiles.pixels, strict=True))
            allocate, pixels = local(tiles.pixels, dtype, "pixels")

            def load(i: Expression, j: Expression, lane: Expression) -> Expression:
                return tirx.BufferLoad(self.products, [i * self.scheme.across.size + j, channel, tile])

            def keep(i: Expression, j: Expression, lane: Expression, value: Expression) -> Statement:
                return tirx.BufferStore(pixels, value, [i, j])

            def vector(index: Sequence[Expression]) -> Statement:
                i, j = index[0], index[1] * lanes
                inside = [
                    begin + within < extent
                    for begin, within, extent, size in zip(
                        (top, left), (i, j), conv.out_size, tiles.pixels, strict=True
                    )
                    if extent % size
                ]
                store = vectorized(
                    lanes,
                    lambda lane: self.anchored.finish(
                        [image, channel, top + i, left + j + lane], tirx.BufferLoad(pixels, [i, j + lane])
                    ),
                )
                return tirx.IfThenElse(tirx.all(*inside), store, None) if inside else store

            rows, columns = tiles.pixels
            return sequence(
                [
                    allocate,
                    transform_outputs(self.scheme, dtype, load, keep),
                    written_out((rows, columns // lanes), vector),
                ]
            )

        return spread(conv.out_channels * tiles.count, self.threads, one)

    def _lanes(self) -> int:
        """Pixels of a tile's row that are stored at once."""
        conv = self.conv
        height, width = conv.out_size
        value = tirx.const(0, conv.accumulator)

        def lanes(index: Sequence[Expression]) -> int:
            return vector_lanes(
                lambda column: self.anchored.finish([*index, column], value), width, self.tiles.pixels[1]
            )

        return anywhere((conv.batch, conv.out_channels, height), lanes)


def _packing(conv: Convolution, scheme: Scheme) -> Packing:
    """Weights `[output, channel, 3, 3]`, transformed in float64, as `[position, channel, output]`."""
    outputs, inputs, taps = conv.out_channels, conv.in_channels, KERNEL**2
    g = GraphBuilder("winograd_weights")
    weights = g.input("weights", (outputs, inputs, KERNEL, KERNEL), conv.dtype)
    split = g.op("reshape", weights, shape=(outputs, inputs, taps))
    wide = g.op("cast", g.op("transpose", split, axes=(1, 0, 2)), dtype="float64")
    rows = g.op("reshape", wide, shape=(inputs * outputs, taps))
    transformed = g.op("matmul", g.constant(scheme.weight_transform), rows, transpose_b=True)
    narrow = g.op("cast", transformed, dtype=conv.dtype)
    return Packing.by(g.build(g.op("reshape", narrow, shape=(scheme.positions, inputs, outputs))))
