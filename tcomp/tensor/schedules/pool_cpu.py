"""Max and average pooling on CPUs, any rank, plain or blocked layout.

Lanes are the channels of a block, or neighbouring pixels of a plain layout. A tile of output pixels keeps
its results in registers over all taps. Nothing is padded: taps outside the input are left out, so that
only pixels at the left and right border need a loop of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from tcomp.relay.attributes import text
from tcomp.relay.graph import Node
from tcomp.relay.layouts import channel_block
from tcomp.target.target import Target
from tcomp.tensor.convolution import accumulator_dtype
from tcomp.tensor.cpu.pool_windows import pool_window
from tcomp.tensor.epilogue import epilogue_fits
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Ordered, Space
from tcomp.tensor.loops import (
    Buffer,
    Elements,
    Expression,
    Statement,
    TensorMap,
    buffers_of,
    constant,
    function,
    local,
    loop,
    parallel,
    sequence,
    unrolled,
    vectorized,
)
from tcomp.tensor.lower import lower_body, placeholders
from tcomp.tensor.math import convert, larger
from tcomp.tensor.template import TEMPLATES, Scheduled, Template
from tcomp.tvm_api import Tensor, te, tirx

_PARALLEL_BYTES = 1 << 16
"""Kernels that touch fewer bytes run on the calling thread: waking others costs more."""
_UNROLLED_TAPS = 7
_POOLS = tuple(f"{kind}_pool{rank}d" for kind in ("max", "avg") for rank in (1, 2, 3))


class PoolCpu(Template):
    """Steps: share rows of output pixels among threads; cut each row into tiles; reduce a tile's windows
    in registers; apply the epilogue and store.
    """

    name = "pool_cpu"
    version = 2

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        return kernel.anchor is not None and kernel.anchor.op in _POOLS and epilogue_fits(kernel)

    def space(self, kernel: Kernel, target: Target) -> Space:
        return Space((Ordered("tile", (1, 2, 4, 8, 16), 4),))

    def estimate(self, kernel: Kernel, target: Target) -> float:
        """A tap of a vector of channels is a load and an operation; vectors of pixels also cost what begins
        and ends a row, and gather their elements where there are strides."""
        node = kernel.anchor
        assert node is not None
        taps = prod(axis.kernel for axis in pool_window(node))
        lanes, shape = target.lanes(accumulator_dtype(node.output.dtype)), node.output.type.static_shape
        if channel_block(text(node.attrs, "data_layout")) is not None:
            return prod(shape[:-1]) * -(-shape[-1] // lanes) * (0.6 * taps + 1)
        vector = 1.0 if pool_window(node)[-1].stride == 1 else 2.2
        return prod(shape[:-1]) * taps * (1.5 + vector * shape[-1] / lanes)

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        return _PoolNest(kernel, target, int(config["tile"])).scheduled()


class _PoolNest:
    def __init__(self, kernel: Kernel, target: Target, tile: int) -> None:
        node = kernel.anchor
        assert node is not None
        self.node = node
        self.kernel = kernel
        self.axes = pool_window(node)
        self.count_axes = pool_window(node, counted=True)
        self.dtype = accumulator_dtype(node.output.dtype)
        self.shape = node.output.type.static_shape
        self.block = channel_block(text(node.attrs, "data_layout"))
        self.lanes = self.block or target.lanes(self.dtype)
        self.tile = tile
        self.is_max = node.op.startswith("max")
        self.inputs = placeholders(kernel)
        self.pooled = te.placeholder(self.shape, node.output.dtype, name="pooled")
        self.data: Tensor = None
        self.outputs = lower_body(kernel, self.inputs, self._anchor)
        self.input_buffers = buffers_of(self.inputs, "input")
        self.output_buffers = buffers_of(self.outputs, "output")
        self.buffers = TensorMap(zip(self.inputs, self.input_buffers, strict=True))

    def _anchor(self, node: Node, operands: Sequence[Tensor]) -> list[Tensor]:
        (self.data,) = operands
        return [self.pooled]

    def scheduled(self) -> Scheduled:
        rows = self.shape[: 1 + len(self.axes)]
        share = parallel if self.kernel.nbytes >= _PARALLEL_BYTES else loop

        def row(flat: Expression) -> Statement:
            index: list[Expression] = []
            for extent in reversed(rows[1:]):
                index.insert(0, tirx.floormod(flat, constant(extent)))
                flat = tirx.floordiv(flat, constant(extent))
            return self._row([flat, *index])

        nest = share(prod(rows), row, "row")
        return Scheduled(function([*self.input_buffers, *self.output_buffers], nest))

    def _row(self, row: Sequence[Expression]) -> Statement:
        """One row of output pixels: the left border, whole tiles of the interior, the right border."""
        width = self.axes[-1]
        first, end = width.interior
        pixels_in_vector = 1 if self.block else self.lanes
        tile, inner = self.tile * pixels_in_vector, end - first
        while tile > max(inner, 1):
            tile //= 2
        lanes = self.lanes if self.block else min(self.lanes, tile)
        vectors = tile if self.block else tile // lanes

        def interior(start: Expression) -> Statement:
            return self._pixels(row, start, vectors, lanes, is_interior=True)

        def border(start: Expression) -> Statement:
            return self._pixels(row, start, 1, self.block or 1, is_interior=False)

        statements = [loop(first, border)] if first else []
        if inner:
            statements.append(loop(inner // tile, lambda b: interior(b * tile + first), "tile"))
        if inner % tile:
            statements.append(interior(constant(end - tile)))
        if end < width.positions:
            statements.append(loop(width.positions - end, lambda b: border(b + end)))
        return sequence(statements)

    def _place(self, vector: Expression, lane: Expression, lanes: int) -> tuple[Expression, list[Expression]]:
        """Pixel and trailing index of a lane of a tile."""
        return (vector, [lane]) if self.block else (vector * lanes + lane, [])

    def _pixels(
        self, row: Sequence[Expression], start: Expression, vectors: int, lanes: int, is_interior: bool
    ) -> Statement:
        """The outputs of `vectors * lanes` elements from pixel `start` of a row."""
        allocate, results = local((vectors * lanes,), self.dtype, "results")
        identity = tirx.min_value(self.dtype) if self.is_max else tirx.const(0, self.dtype)
        if self.is_max and self.dtype.startswith("float"):
            identity = tirx.const(float("-inf"), self.dtype)

        def every(body: Callable[[Expression, Expression], Statement]) -> Statement:
            return unrolled(vectors, lambda v: vectorized(lanes, lambda lane: body(v, lane)), "vector")

        read = self._strided_source(lanes) if is_interior else None

        def reduce(taps: Sequence[Expression]) -> Statement:
            def step(vector: Expression, lane: Expression) -> Statement:
                pixel, rest = self._place(vector, lane, lanes)
                at = self._read_at([*row[2:], start + pixel], taps)
                elements = Elements(self.buffers)
                value = convert(elements.element(self.data, [*row[:2], *at, *rest]), self.dtype)
                slot = vector * lanes + lane
                combined = self._combine(results[slot], value)
                return sequence([*elements.statements, tirx.BufferStore(results, combined, [slot])])

            def strided_step(vector: Expression) -> Statement:
                at = self._read_at([*row[2:], start + vector * lanes], taps)
                slots = tirx.Ramp(vector * lanes, 1, lanes)
                value = _every_other(read, [*row[:2], *at], lanes)
                combined = self._combine(tirx.BufferLoad(results, [slots]), value)
                return tirx.BufferStore(results, combined, [slots])

            return every(step) if read is None else unrolled(vectors, strided_step, "vector")

        def write(vector: Expression, lane: Expression) -> Statement:
            pixel, rest = self._place(vector, lane, lanes)
            at = [*row, start + pixel, *rest]
            value = results[vector * lanes + lane]
            if not self.is_max:
                value = value / self._count([*row[2:], start if not is_interior else None])
            stores: list[Statement] = []
            for tensor, buffer in zip(self.outputs, self.output_buffers, strict=True):
                elements = Elements(self.buffers)
                elements.bind(self.pooled, convert(value, self.node.output.dtype))
                stores.append(elements.store(buffer, tensor, at))
            return sequence(stores)

        clear = every(lambda v, lane: tirx.BufferStore(results, identity, [v * lanes + lane]))
        taps = self._over_taps(row, start, is_interior, reduce)
        return sequence([allocate, clear, taps, every(write)])

    def _read_at(self, positions: Sequence[Expression], taps: Sequence[Expression]) -> list[Expression]:
        """The input position that the output at `positions` reads at `taps`."""
        return [
            p * a.stride + t * a.dilation - a.begin
            for p, t, a in zip(positions, taps, self.axes, strict=True)
        ]

    def _combine(self, result: Expression, value: Expression) -> Expression:
        return larger(result, value) if self.is_max else result + value

    def _strided_source(self, lanes: int) -> Buffer | None:
        """The input in memory where vectors take every other of its elements; None where they do not."""
        if self.block or self.axes[-1].stride != 2 or lanes < 4 or self.data not in self.buffers:
            return None
        return self.buffers[self.data] if self.dtype == self.node.inputs[0].dtype else None

    def _over_taps(
        self,
        row: Sequence[Expression],
        start: Expression,
        is_interior: bool,
        body: Callable[[Sequence[Expression]], Statement],
    ) -> Statement:
        def nest(taps: tuple[Expression, ...]) -> Statement:
            if len(taps) == len(self.axes):
                return body(taps)
            axis = self.axes[len(taps)]
            is_width = len(taps) == len(self.axes) - 1
            if is_width and is_interior:
                make = unrolled if axis.kernel <= _UNROLLED_TAPS else loop
                return make(axis.kernel, lambda t: nest((*taps, t)), "tap")
            first, end = axis.inside(start if is_width else row[2 + len(taps)])
            tap = tirx.Var("tap", "int32")
            return tirx.For(tap, constant(0), end - first, 0, nest((*taps, tap + first)))

        return nest(())

    def _count(self, positions: Sequence[Expression | None]) -> Expression:
        """How many taps an average is over; a position of None has all of them."""
        count: Expression = tirx.const(1, "int32")
        for position, axis in zip(positions, self.count_axes, strict=True):
            first, end = (0, axis.kernel) if position is None else axis.inside(position)
            count = count * (end - first)
        return tirx.max(count, 1).astype(self.dtype)


def _every_other(buffer: Buffer, index: Sequence[Expression], lanes: int) -> Expression:
    """The elements 0, 2, 4... from `index` of a row, out of two vectors that overlap in one element, so that
    none behind the last is read."""
    *outer, start = index
    halves = [
        tirx.BufferLoad(buffer, [*outer, tirx.Ramp(start + shift, 1, lanes)]) for shift in (0, lanes - 1)
    ]
    return tirx.Shuffle(halves, [*range(0, lanes, 2), *range(lanes + 1, 2 * lanes, 2)])


TEMPLATES.register(PoolCpu.name, PoolCpu())
