"""Products of quantized numbers.

With int8 weights w of scale v, symmetric around zero, and activations x of scale s and zero point z,

    sum((x - z) s * w v) = (sum(x * w) - z sum(w)) * (s v)

where sum(x * w) is a product of int8 summed in int32, z sum(w) a constant of each output channel, and the
scales a factor of each. Around an image lie zero points. What follows the product stays as it is: float
arithmetic, which is fused behind the sums, to the next rounding to integers.

Activations in uint8 are shifted by 128 to int8, where they are rounded, with their zero point.

Float8 has no zero points: sum(x s * w v) = sum(x * w) * (s v), summed in float32, of any two such matrices,
and of images and weights in one group.
"""

from __future__ import annotations

from math import prod

import numpy as np

from tcomp.ops.quantized import packed_weights
from tcomp.relay.attributes import flag, integer, integers, number, text
from tcomp.relay.graph import Constant, Node, Value
from tcomp.relay.layouts import PLAIN
from tcomp.relay.pattern import constant, either, op, operand
from tcomp.relay.rewrite import Match, Rule
from tcomp.relay.types import FLOAT8, Array
from tcomp.transform.rules.scales import per_channel

_OFFSET = 128
"""What uint8 numbers have above int8 ones."""
_LEAST_DEPTH = 3
"""Shorter sums, but for those of depthwise convolutions, gain nothing from int8."""
_BYTES = ("int8", "uint8")
_FOLDED_BYTES = 1 << 20
"""Weights of so many bytes in float32 are constants in float32."""
_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
_PRODUCTS = (*_CONVOLUTIONS, "matmul")


def _lowered(match: Match) -> Value:
    """(x - zero) * scale in small operators."""
    dtype = match["scale"].dtype
    levels = match.op("cast", match["x"], dtype=dtype)
    if not _is_zero(match["zero"]):
        levels = match.op("sub", levels, match.op("cast", match["zero"], dtype=dtype))
    return match.op("mul", levels, match["scale"])


def _is_zero(value: Value) -> bool:
    return isinstance(value, Constant) and not value.data.any()


def _signed_dequantize(match: Match) -> Value | None:
    """Numbers that are rounded to uint8 in this graph are rounded to int8, for all who read them."""
    x, zero = match["x"], match["zero"]
    if not isinstance(zero, Constant):
        return None
    made = _rounded_to_int8(match, x)
    if made is None:
        return None
    shifted = Constant.of((zero.data.astype(np.int16) - _OFFSET).astype(np.int8))
    return match.op("dequantize", made, match["scale"], shifted)


def _rounded_to_int8(match: Match, x: Value) -> Value | None:
    """The int8 form of uint8 numbers where `x` rounds floats to these."""
    cast = match.editor.producer(x)
    clip = None if cast is None else match.editor.producer(cast.inputs[0])
    if cast is None or clip is None or cast.op != "cast" or clip.op != "clip":
        return None
    if clip.output.dtype != "float32" or (number(clip.attrs, "min"), number(clip.attrs, "max")) != (0, 255):
        return None
    shifted = match.op("add", clip.inputs[0], match.constant(-_OFFSET, "float32"))
    return match.op("cast", match.op("clip", shifted, min=-128.0, max=127.0), dtype="int8")


def _signed(match: Match, x: Value) -> Value:
    """`x`, int8 or uint8, as int8."""
    if x.dtype == "int8":
        return x
    made = _rounded_to_int8(match, x)
    if made is not None:
        return made
    wide = match.op("sub", match.op("cast", x, dtype="int32"), match.constant(_OFFSET, "int32"))
    return match.op("cast", wide, dtype="int8")


def _of_dequantized(match: Match) -> Value | None:
    """A float32 product of dequantized operands."""
    w, scales, zeros = match.data("w"), match.data("w_scale"), match.data("w_zero")
    weights = _symmetric(w, zeros)
    if weights is None or match.type.dtype != "float32" or match["scale"].type.size != 1:
        return None
    factors = _by_output(match.root, scales)
    sums = None if factors is None else _integer_product(match, weights, match["zero"])
    if factors is None or sums is None:
        return None
    scale = match.op("mul", match["scale"], match.constant(factors))
    return match.op("mul", match.op("cast", sums, dtype="float32"), scale)


def _of_float8(match: Match) -> Value | None:
    """A float32 product of one float8 format, scaled behind the sums; of images and weights in one group."""
    root, x, w, w_scale = match.root, match["x"], match["w"], match["w_scale"]
    plain = x.dtype == w.dtype and min(x.type.rank, w.type.rank) > 1 and match.type.dtype == "float32"
    if root.op != "matmul" and integer(root.attrs, "groups") > 1:
        return None
    if (
        not plain
        or match["scale"].type.size != 1
        or not (_is_zero(match["zero"]) and _is_zero(match["w_zero"]))
    ):
        return None
    if isinstance(w_scale, Constant):
        factors = _by_output(root, w_scale.data)
        if factors is None:
            return None
        w_scale = match.constant(factors)
    elif w_scale.type.size != 1:
        return None
    sums = match.op(root.op, x, w, **{**root.attrs, "out_dtype": "float32"})
    return match.op("mul", sums, match.op("mul", match["scale"], w_scale))


def _of_integers(match: Match) -> Value | None:
    """An int32 product of integers less their zero points; those of the weights are subtracted already."""
    weights = match.data("w")
    if weights.min(initial=0) < -128 or weights.max(initial=0) > 127:
        return None
    zero = match["zero"] if "zero" in match else match.constant(0, match["x"].dtype)
    return _integer_product(match, weights.astype(np.int8), zero)


def _symmetric(w: Array, zero: Array) -> Array | None:
    """Weights as int8 numbers with a zero point of zero; None where that would need more bits."""
    centred = w.astype(np.int16) - zero.astype(np.int16)
    fits = centred.min(initial=0) >= -128 and centred.max(initial=0) <= 127
    return centred.astype(np.int8) if fits else None


def _by_output(root: Node, scales: Array) -> Array | None:
    """Scales that broadcast against weights, as they broadcast against the result; None for scales along
    another axis than that of outputs."""
    weight = root.inputs[1].type
    if scales.size == 1:
        return scales.reshape(())
    axis = 0 if root.op != "matmul" else weight.rank - (2 if flag(root.attrs, "transpose_b") else 1)
    vector = per_channel(scales, weight.rank, axis, weight.static_shape[axis])
    if vector is None:
        return None
    return vector if root.op == "matmul" else vector.reshape(1, -1, *(1,) * (weight.rank - 2))


def _integer_product(match: Match, weights: Array, zero: Value) -> Value | None:
    """sum((x - zero) * weights) in int32, of the root's shape; None where int8 is of no use."""
    root, x = match.root, match["x"]
    is_matmul = root.op == "matmul"
    if is_matmul:
        if weights.ndim < 2 or x.type.rank < 2:
            return None
        axis = -1 if flag(root.attrs, "transpose_b") else -2
        depth, totals = weights.shape[axis], weights.sum(axis, np.int32, keepdims=True)
        totals = np.swapaxes(totals, -1, -2) if axis == -1 else totals
    else:
        layouts = {text(root.attrs, name) for name in ("data_layout", "out_layout")}
        depth, totals = weights.shape[1], weights.sum(tuple(range(1, weights.ndim)), np.int32)
        totals = totals.reshape(1, -1, *(1,) * (weights.ndim - 2))
        if layouts != {PLAIN} or (zero.type.size != 1 or not isinstance(zero, Constant)):
            return None
    if prod(totals.shape) == 0 or (depth < _LEAST_DEPTH and not _is_depthwise(root)):
        return None
    offset = _OFFSET if x.dtype == "uint8" else 0
    attrs = {**root.attrs, "out_dtype": "int32"}
    if isinstance(zero, Constant):
        centre = zero.data.astype(np.int32) - offset
        attrs |= {} if is_matmul else {"pad_value": int(centre.reshape(()))}
        shift: Value = Constant.of(centre * totals)
    else:
        wide = match.op("sub", match.op("cast", zero, dtype="int32"), match.constant(offset, "int32"))
        shift = match.op("mul", wide, Constant.of(totals))
    sums = match.op(root.op, _signed(match, x), Constant.of(weights), **attrs)
    return sums if _is_zero(shift) else match.op("sub", sums, shift)


def _is_depthwise(root: Node) -> bool:
    """Whether neighbouring taps of each channel's own are multiplied; see `depthwise_taps_cpu`."""
    if root.op != "conv2d":
        return False
    outputs, depth, *_ = root.inputs[1].type.static_shape
    channels = depth * integer(root.attrs, "groups")
    return depth == 1 < channels == outputs and integers(root.attrs, "dilation")[-1] == 1


def _weights_in_blocks(match: Match) -> Value | None:
    """A matrix product with weights of a scale for each output, which it is to read as they are.

    Small ones are float32 constants sooner, which cost nothing at run time.
    """
    root, w, scales, zeros = match.root, match.data("w"), match.data("w_scale"), match.data("w_zero")
    if w.ndim != 2 or w.size * np.dtype(np.float32).itemsize <= _FOLDED_BYTES:
        return None
    transposed = flag(root.attrs, "transpose_b")
    axis = 0 if transposed else 1
    vectors = [per_channel(a, 2, axis, w.shape[axis]) for a in (scales, zeros)]
    if _has_float8(w) and zeros.any():
        return None
    if any(v is None for v in vectors):
        return None
    scale, zero = (np.array(v).reshape(-1, 1) for v in vectors if v is not None)
    levels = w if transposed else np.swapaxes(w, 0, 1)
    data, shifts, bits = packed_weights(levels, zero)
    columns = levels.shape[1]
    operands = (Constant.of(a) for a in (data, scale, shifts))
    wide = match.op("dequantize_blocks", *operands, bits=bits, block=columns, columns=columns)
    return match.op("matmul", match["x"], wide, **{**root.attrs, "transpose_b": True})


def _is_byte(value: Value) -> bool:
    return value.dtype in _BYTES


def _is_float8(value: Value) -> bool:
    return value.dtype in FLOAT8


def _has_bytes(data: Array) -> bool:
    return data.dtype.name in _BYTES


def _has_float8(data: Array) -> bool:
    return data.dtype.name in FLOAT8


_X, _SCALE, _ZERO = operand("x", _is_byte), operand("scale"), operand("zero")
_WEIGHTS = op("dequantize", constant("w", where=_has_bytes), constant("w_scale"), constant("w_zero"))
_OF_FLOAT8 = op("dequantize", constant("w", where=_has_float8), constant("w_scale"), constant("w_zero"))
_WIDE = op("cast", _X, dtype="int32")
_CENTRED = either(
    op("sub", _WIDE, op("cast", _ZERO, dtype="int32")), op("sub", _WIDE, constant("zero")), _WIDE
)

_FLOAT8, _OTHER_FLOAT8 = operand("x", _is_float8), operand("w", _is_float8)

WEIGHTS = (Rule("weights-in-blocks", op("matmul", operand("x"), _WEIGHTS), _weights_in_blocks),)
FLOAT8_WEIGHTS = (Rule("float8-in-blocks", op("matmul", operand("x"), _OF_FLOAT8), _weights_in_blocks),)
DEQUANTIZE = (Rule("dequantize", op("dequantize", operand("x"), _SCALE, _ZERO), _lowered),)
INTEGER_PRODUCTS = (
    Rule(
        "int8-instead-of-uint8",
        op("dequantize", operand("x", lambda v: v.dtype == "uint8"), _SCALE, _ZERO),
        _signed_dequantize,
    ),
    Rule(
        "int8-product-of-dequantized",
        op(_PRODUCTS, op("dequantize", _X, _SCALE, _ZERO), _WEIGHTS),
        _of_dequantized,
    ),
    Rule(
        "int8-product-of-integers",
        op(_PRODUCTS, _CENTRED, constant("w", where=lambda w: w.dtype == np.int32)),
        _of_integers,
    ),
)
FLOAT8_PRODUCTS = (
    Rule(
        "float8-product-of-dequantized",
        op(
            _PRODUCTS,
            op("dequantize", _FLOAT8, _SCALE, _ZERO),
            op("dequantize", _OTHER_FLOAT8, operand("w_scale"), operand("w_zero")),
        ),
        _of_float8,
    ),
)
