"""Numbers that stand for others: `(x - zero) * scale`.

`dequantize_blocks` is that for weights of 4 or 8 bits `[rows, columns]`, whose scales and zero points belong
to blocks of columns: `x[row, column]` is a byte, half of one, or float8, `scale[row, column // block]` its
scale, and the zero point one number or as the scales are. Products compute it as they read their right
operand.

`dequantize` stays one operator until a pass has seen which products take quantized operands; the pass
`lower-quantized` writes what is left of it as a cast, a subtraction and a multiplication.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tcomp.errors import TypeRuleError
from tcomp.ops.shapes import accumulator, broadcast_shapes, element_type, widened
from tcomp.relay.attributes import integer
from tcomp.relay.graph import Attr, Attrs
from tcomp.relay.op import REQUIRED, FusionKind, Op, Sample, declare
from tcomp.relay.types import FLOAT8, FLOATS, Array, TensorType, numpy_dtype
from tcomp.tvm_api import Tensor, te, tirx


def _infer(types: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    x, scale, zero = types
    if scale.dtype not in FLOATS or zero.dtype != x.dtype:
        raise TypeRuleError("`dequantize` takes x, a scale of floats, and a zero point of x's element type")
    if broadcast_shapes(x.shape, scale.shape, zero.shape) != x.shape:
        raise TypeRuleError(f"`dequantize`: scale {scale} and zero point {zero} do not broadcast to {x}")
    return [TensorType(x.shape, scale.dtype)]


def _evaluate(arrays: Sequence[Array], attrs: Attrs) -> list[Array]:
    x, scale, zero = arrays
    wide = widened(scale)
    levels = x.astype(wide.dtype) - zero.astype(wide.dtype)
    return [np.asarray(levels * wide).astype(scale.dtype)]


def _sample(x: tuple[int, ...], scale: tuple[int, ...], dtype: str = "int8") -> Sample:
    return Sample((TensorType(x, dtype), TensorType(scale), TensorType(scale, dtype)))


declare(
    Op(
        name="dequantize",
        infer=_infer,
        evaluate=_evaluate,
        compute=None,
        kind=FusionKind.ELEMENTWISE,
        arity=(3, 3),
        flops_per_element=2,
        samples=(_sample((3, 37), ()), _sample((2, 5, 4), (5, 1)), _sample((2, 5), (5,), "int32")),
    )
)


def unpacked(packed: Array, bits: int) -> Array:
    """Unsigned numbers of `bits`: bytes along the last axis hold one or, the lower half first, two."""
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


def packed(levels: Array, bits: int) -> Array:
    """The inverse of `unpacked`; an even number of columns where two share a byte."""
    if bits == 8:
        return levels
    return levels[..., 0::2] | (levels[..., 1::2] << 4)


def packed_weights(levels: Array, zeros: Array) -> tuple[Array, Array, int]:
    """Weights `[rows, columns]` of 8 bits and their zero points as `dequantize_blocks` takes them.

    The third result is the number of bits: 4 where all are 16 integers at most, from -8 or from 0 on. Zero
    points that are all the same are one; those of float8 are zero.
    """
    if levels.dtype.name in FLOAT8:
        return levels, np.zeros((), levels.dtype), 8
    wide = levels.astype(np.int16)
    bits, offset = 8, 128 if levels.dtype == np.int8 else 0
    near = 8 if wide.min(initial=0) < 0 else 0
    if levels.shape[1] % 2 == 0 and _within(wide + near, 16) and _within(zeros.astype(np.int16) + near, 256):
        bits, offset = 4, near
    shifts = (zeros.astype(np.int16) + offset).astype(np.uint8)
    first = shifts.reshape(-1)[:1]
    uniform = shifts.size > 0 and bool((shifts == first).all())
    return packed((wide + offset).astype(np.uint8), bits), first.reshape(()) if uniform else shifts, bits


def _within(numbers: Array, count: int) -> bool:
    """Whether all are among the first `count` from zero on."""
    return bool(numbers.min(initial=0) >= 0 and numbers.max(initial=0) < count)


def _infer_blocks(types: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    x, scale, zero = types
    bits, block, columns = (integer(attrs, name) for name in ("bits", "block", "columns"))
    if bits not in (4, 8) or block < 1 or columns < 1:
        raise TypeRuleError(f"`dequantize_blocks`: {bits} bits, blocks of {block}; bits must be 4 or 8")
    takes = "uint8" if bits == 4 else x.dtype
    if scale.dtype not in FLOATS or x.dtype not in ("uint8", *FLOAT8) or not x.dtype == zero.dtype == takes:
        raise TypeRuleError(
            f"`dequantize_blocks`: {x.dtype} of {bits} bits, zero points {zero.dtype}, scales {scale.dtype}; "
            f"it takes uint8, or {' or '.join(FLOAT8)} of 8 bits, zero points of that type, scales of floats"
        )
    rows, nbytes = x.static_shape
    blocks = -(-columns // block)
    if nbytes * 8 < columns * bits or scale.shape != (rows, blocks) or zero.shape not in (scale.shape, ()):
        raise TypeRuleError(
            f"`dequantize_blocks`: {x}, scales {scale} and zero points {zero} are no {rows} rows of "
            f"{columns} columns with {bits} bits in blocks of {block}"
        )
    return [TensorType((rows, columns), scale.dtype)]


def _evaluate_blocks(arrays: Sequence[Array], attrs: Attrs) -> list[Array]:
    x, scale, zero = arrays
    bits, block, columns = (integer(attrs, name) for name in ("bits", "block", "columns"))
    wide = widened(scale)
    of_column = np.arange(columns) // block
    levels = unpacked(x, bits)[:, :columns].astype(wide.dtype)
    zeros = (zero[:, of_column] if zero.ndim else zero).astype(wide.dtype)
    return [((levels - zeros) * wide[:, of_column]).astype(scale.dtype)]


def _compute_blocks(inputs: Sequence[Tensor], attrs: Attrs, outputs: Sequence[TensorType]) -> list[Tensor]:
    x, scale, zero = inputs
    bits, block = integer(attrs, "bits"), integer(attrs, "block")
    wide = accumulator(element_type(scale))

    def element(row: Any, column: Any) -> Any:
        level = x(row, column) if bits == 8 else x(row, column // 2) >> (column % 2 * 4).astype("uint8")
        if bits == 4:
            level = level & tirx.const(15, "uint8")
        at = (row, column // block)
        shift = zero(*at) if zero.shape else zero()
        value = (level.astype(wide) - shift.astype(wide)) * scale(*at).astype(wide)
        return value.astype(element_type(scale))

    return [te.compute(outputs[0].static_shape, element, name="dequantize_blocks")]


def _block_sample(
    rows: int, columns: int, bits: int, block: int, each: bool, dtype: str = "float32", of: str = "uint8"
) -> Sample:
    blocks = -(-columns // block)
    types = (
        TensorType((rows, -(-columns * bits // 8)), of),
        TensorType((rows, blocks), dtype),
        TensorType((rows, blocks) if each else (), of),
    )
    random = np.random.default_rng(0).integers(0, 256, types[0].static_shape).astype(np.uint8)
    zeros = np.random.default_rng(1).integers(0, 2**bits, types[2].static_shape).astype(np.uint8)
    if of in FLOAT8:
        finite = np.where(random % 128 > 123, 1, random).astype(np.uint8)
        random, zeros = finite.view(numpy_dtype(of)), np.zeros((), numpy_dtype(of))
    attrs: dict[str, Attr] = {"bits": bits, "block": block, "columns": columns}
    tolerance = 1e-5 if dtype == "float32" else 2e-3
    return Sample(types, attrs, inputs={0: random, 2: np.asarray(zeros)}, rtol=tolerance, atol=tolerance)


declare(
    Op(
        name="dequantize_blocks",
        infer=_infer_blocks,
        evaluate=_evaluate_blocks,
        compute=_compute_blocks,
        kind=FusionKind.MOVEMENT,
        unpacks=True,
        attrs={"bits": REQUIRED, "block": REQUIRED, "columns": REQUIRED},
        arity=(3, 3),
        flops_per_element=2,
        samples=(
            _block_sample(6, 64, 4, 32, True),
            _block_sample(5, 41, 4, 16, False),
            _block_sample(6, 40, 8, 40, True),
            _block_sample(4, 48, 8, 16, False, "float16"),
            _block_sample(6, 40, 8, 16, False, of="float8_e4m3fn"),
            _block_sample(5, 24, 8, 24, False, of="float8_e5m2"),
        ),
    )
)
