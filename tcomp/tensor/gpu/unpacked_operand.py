"""The right operand of a product that has weights of 4 or 8 bits (`dequantize_blocks`), on GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tcomp.relay.attributes import flag, integer
from tcomp.relay.graph import Constant, Node, Value
from tcomp.relay.types import FLOAT8
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.epilogue import placeholder_index
from tcomp.tensor.gpu.few_rows import Column, RowsPlan
from tcomp.tensor.gpu.matrices import Index
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.loops import (
    Buffer,
    Expression,
    Statement,
    call,
    constant,
    local,
    sequence,
    unrolled,
)
from tcomp.tensor.math import convert
from tcomp.tvm_api import tirx

WORD_BITS = 32
CHUNK = 8
"""Elements of 16 bits that tensor cores' operands are moved by."""
REGISTERS = 3
"""Of a word: itself, its scale, its zero point."""


@dataclass(frozen=True)
class PackedWeights:
    """Weights `[columns, depth]` of a product, with a scale for each block of the depth."""

    node: Node

    @staticmethod
    def of(kernel: Kernel) -> PackedWeights | None:
        """Those of the product in `kernel` if words of them can be read, else None."""
        anchor = kernel.anchor
        if anchor is None or anchor.op != "matmul" or not flag(anchor.attrs, "transpose_b"):
            return None
        node = next((n for n in kernel.body.nodes if anchor.inputs[1] in n.outputs), None)
        if node is None or node.op != "dequantize_blocks":
            return None
        found = PackedWeights(node)
        data, scale, zero = node.inputs
        whole = found.depth % found.word == found.block % found.word == 0
        operands = (data, scale, *(() if isinstance(zero, Constant) else (zero,)))
        readable = all(placeholder_index(kernel, v) is not None for v in operands)
        aligned = data.type.static_shape[1] * 8 % WORD_BITS == 0
        return found if whole and readable and aligned else None

    @property
    def bits(self) -> int:
        return integer(self.node.attrs, "bits")

    @property
    def block(self) -> int:
        return integer(self.node.attrs, "block")

    @property
    def depth(self) -> int:
        return integer(self.node.attrs, "columns")

    @property
    def word(self) -> int:
        """Weights in 32 bits."""
        return WORD_BITS // self.bits

    def load(self, anchored: Anchored, column: Expression, k: Expression) -> Expression:
        """The word of weights from depth `k` on, a multiple of `word`."""
        buffer = self._buffer(anchored, self.node.inputs[0])
        place = tirx.address_of(tirx.BufferLoad(buffer, [column, k * self.bits // 8]))
        return tirx.call_extern("uint32", "tcomp_load_word", place)

    def scale(self, anchored: Anchored, column: Expression, k: Expression) -> Expression:
        """The scale at depth `k` in float32."""
        loaded = tirx.BufferLoad(self._buffer(anchored, self.node.inputs[1]), [column, k // self.block])
        return convert(loaded, "float32")

    def zero(self, anchored: Anchored, column: Expression, k: Expression) -> Expression:
        """The zero point at depth `k` in float32."""
        value = self.node.inputs[2]
        if isinstance(value, Constant):
            return tirx.const(float(value.data.reshape(())), "float32")
        return convert(tirx.BufferLoad(self._buffer(anchored, value), [column, k // self.block]), "float32")

    def unpack(self, numbers: Buffer, word: Expression, zero: Expression, at: int = 0) -> Statement:
        """Make the weights of a word, less their zero point, the `at`-th so many of `numbers`."""
        dtype = self.node.inputs[0].dtype
        kind = dtype if dtype in FLOAT8 else str(self.bits)
        name, first = f"tcomp_unpack_{kind}", tirx.address_of(numbers[at * self.word])
        return call(name, first, word, zero)

    def _buffer(self, anchored: Anchored, value: Value) -> Buffer:
        index = placeholder_index(anchored.kernel, value)
        assert index is not None
        return anchored.input_buffer(index)


class UnpackedOperand:
    """Words of weights in registers, which are unpacked as they are multiplied.

    The products of a word are added up before their sum is multiplied by the scale.
    """

    in_depth = True
    column_lanes = 1

    def __init__(self, anchored: Anchored, weights: PackedWeights, columns: int, plan: RowsPlan) -> None:
        self._anchored, self._weights, self._columns, self._plan = anchored, weights, columns, plan
        self.depth_lanes = weights.word
        shape = (plan.columns, plan.unroll)
        allocate_words, self._words = local(shape, "uint32", "words")
        allocate_scales, self._scales = local(shape, "float32", "scales")
        allocate_zeros, self._zeros = local(shape, "float32", "zeros")
        self.allocations: Sequence[Statement] = (allocate_words, allocate_scales, allocate_zeros)

    def read(
        self, batch: Index, group: Expression, k: Expression, step: Expression, column: Column
    ) -> Statement:
        x = tirx.min(column(group), constant(self._columns - 1))
        parts = (self._weights.load, self._weights.scale, self._weights.zero)
        buffers = (self._words, self._scales, self._zeros)
        return sequence(
            [
                tirx.BufferStore(buffer, part(self._anchored, x, k), [group, step])
                for buffer, part in zip(buffers, parts, strict=True)
            ]
        )

    def blank(self, group: Expression, step: Expression) -> Statement:
        buffers = (self._words, self._scales, self._zeros)
        return sequence([tirx.BufferStore(b, tirx.const(0, str(b.dtype)), [group, step]) for b in buffers])

    def add_products(self, sums: Buffer, left: Buffer) -> Statement:
        lanes = self.depth_lanes
        rows = int(sums.shape[0])
        allocate, numbers = local((lanes,), "float32", "numbers")

        def of_word(step: Expression, c: Expression) -> Statement:
            def of_row(r: Expression) -> Statement:
                total = left[r, step * lanes] * numbers[0]
                for i in range(1, lanes):
                    total = total + left[r, step * lanes + i] * numbers[i]
                return tirx.BufferStore(sums, sums[r, c] + total * self._scales[c, step], [r, c])

            unpack = self._weights.unpack(numbers, self._words[c, step], self._zeros[c, step])
            return sequence([unpack, unrolled(rows, of_row, "r")])

        def of_step(step: Expression) -> Statement:
            return unrolled(self._plan.columns, lambda c: of_word(step, c), "c")

        return sequence([allocate, unrolled(self._plan.unroll, of_step, "u")])


class UnpackedChunks:
    """Chunks of 8 weights in 16 bits for tensor cores, on their way from memory to a stage."""

    def __init__(
        self, anchored: Anchored, weights: PackedWeights, dtype: str, extent: int, count: int
    ) -> None:
        """For `count` chunks a thread of weights `[extent, depth]`."""
        self._anchored, self._weights, self._dtype, self._extent = anchored, weights, dtype, extent
        self._per_chunk = CHUNK // weights.word
        allocate_words, self._words = local((count, self._per_chunk), "uint32", "words")
        allocate_scales, self._scales = local((count,), "float32", "scales")
        allocate_zeros, self._zeros = local((count,), "float32", "zeros")
        allocate_numbers, self._numbers = local((CHUNK,), "float32", "numbers")
        self.allocations = (allocate_words, allocate_scales, allocate_zeros, allocate_numbers)

    @staticmethod
    def fit(weights: PackedWeights, dtype: str) -> bool:
        """Whether every chunk has one scale."""
        return dtype in ("float16", "bfloat16") and weights.depth % CHUNK == weights.block % CHUNK == 0

    def fetch(self, number: int, row: Expression, k: Expression, inside: Expression) -> Statement:
        weights, anchored = self._weights, self._anchored
        x, first = tirx.min(row, constant(self._extent - 1)), tirx.min(k, constant(weights.depth - CHUNK))
        scale = tirx.Select(inside, weights.scale(anchored, x, first), tirx.const(0, "float32"))
        loads = [
            tirx.BufferStore(self._words, weights.load(anchored, x, first + i * weights.word), [number, i])
            for i in range(self._per_chunk)
        ]
        return sequence(
            [
                *loads,
                tirx.BufferStore(self._scales, scale, [number]),
                tirx.BufferStore(self._zeros, weights.zero(anchored, x, first), [number]),
            ]
        )

    def put(self, number: int, target: Expression) -> Statement:
        unpack = [
            self._weights.unpack(self._numbers, self._words[number, i], self._zeros[number], i)
            for i in range(self._per_chunk)
        ]
        name, numbers = f"tcomp_store_{self._dtype}", tirx.address_of(self._numbers[0])
        return sequence([*unpack, call(name, target, numbers, self._scales[number])])
