"""Convolutions over one, two and three spatial axes.

Weights are plain [O, I/groups, *kernel] whatever the layouts are; the number of input channels of a
blocked operand is known from them. There is no bias operand: it is an `add`. What lies around the input has
`pad_value`, the zero point of quantized numbers. `multiply_as` and `strassen` are as in `matmul`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from tcomp.errors import TypeRuleError
from tcomp.ops.shapes import (
    cast_tensor,
    check_factors,
    element_type,
    exact,
    factors,
    out_dtype,
    product_dtype,
    same_dtype,
    static_shape,
    summed,
)
from tcomp.ops.spatial import FIRST, Window, window_attrs
from tcomp.relay.attributes import integer, text
from tcomp.relay.dims import Dim
from tcomp.relay.graph import Attr, Attrs
from tcomp.relay.layouts import PLAIN, channel_block, from_layout, layout_shape, to_layout
from tcomp.relay.op import Cost, FusionKind, LayoutRule, Op, Sample, declare
from tcomp.relay.types import Array, TensorType, type_of
from tcomp.tvm_api import Tensor, te, tirx


def _infer(types: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    x, weight = types
    dtype = same_dtype("conv", types)
    rank, layout = weight.rank - 2, text(attrs, "data_layout")
    window = Window.of(_kernel(weight), attrs)
    channels = _check_channels(x, weight, integer(attrs, "groups"), layout)
    if x.shape != layout_shape(x.shape[0], channels, x.shape[FIRST : FIRST + rank], layout):
        raise TypeRuleError(f"input {x} does not hold the weight's {channels} channels as {layout}")
    spatial = window.outputs(x.shape[FIRST : FIRST + rank])
    shape = layout_shape(x.shape[0], weight.shape[0], spatial, text(attrs, "out_layout"))
    check_factors("conv", dtype, attrs)
    return [TensorType(shape, out_dtype("conv", dtype, attrs))]


def _check_channels(x: TensorType, weight: TensorType, groups: int, layout: str) -> int:
    """The true number of input channels."""
    spatial = weight.rank - 2
    expected = spatial + (2 if channel_block(layout) is None else 3)
    if x.rank != expected:
        raise TypeRuleError(f"a {layout} input with {spatial} spatial axes has rank {expected}, not {x.rank}")
    outputs, inputs = TensorType(weight.shape[:2]).static_shape
    if groups < 1 or outputs % groups:
        raise TypeRuleError(f"groups is {groups}; it must divide the {outputs} output channels")
    return inputs * groups


def _kernel(weight: TensorType) -> tuple[int, ...]:
    return TensorType(weight.shape[2:]).static_shape


def _evaluate(arrays: Sequence[Array], attrs: Attrs) -> list[Array]:
    x, weight = arrays
    groups = integer(attrs, "groups")
    data, taps_of_all = factors(arrays, attrs)
    plain = from_layout(data, text(attrs, "data_layout"), weight.shape[1] * groups)
    window = Window.of(weight.shape[2:], attrs)
    spatial = _static(window.outputs(plain.shape[2:]))
    padded = window.pad_array(plain, spatial, integer(attrs, "pad_value"))
    batch, outputs = x.shape[0], weight.shape[0]
    kernel = taps_of_all.reshape(groups, outputs // groups, *weight.shape[1:])
    total = np.zeros((batch, groups, outputs // groups, prod(spatial)), plain.dtype)
    for offset, view in window.taps(padded, spatial):
        columns = view.reshape(batch, groups, weight.shape[1], prod(spatial))
        taps = kernel[(..., *offset)]
        total += taps * columns if weight.shape[1] == 1 else np.matmul(taps, columns)
    dtype = out_dtype("conv", type_of(x).dtype, attrs)
    result = summed(total.reshape(batch, outputs, *spatial), dtype)
    return [to_layout(result, text(attrs, "out_layout"))]


def _static(dims: Sequence[Dim]) -> tuple[int, ...]:
    return TensorType(tuple(dims)).static_shape


def _compute(inputs: Sequence[Tensor], attrs: Attrs, outputs: Sequence[TensorType]) -> list[Tensor]:
    x, weight = inputs
    weight_shape, out_shape = static_shape(weight), outputs[0].static_shape
    out_channels, group_inputs = weight_shape[:2]
    group_outputs = out_channels // integer(attrs, "groups")
    data_block = channel_block(text(attrs, "data_layout"))
    out_block = channel_block(text(attrs, "out_layout"))
    window, wide = Window.of(weight_shape[2:], attrs), product_dtype(element_type(x))
    rank = len(window.kernel)
    around = tirx.const(integer(attrs, "pad_value"), x.dtype)
    padded = window.pad_tensor(x, out_shape[FIRST : FIRST + rank], around)
    channel, taps = te.reduce_axis((0, group_inputs), name="ci"), window.axes()

    def element(*index: Any) -> Any:
        out = index[1] if out_block is None else index[1] * out_block + index[-1]
        source = channel if group_outputs == out_channels else out // group_outputs * group_inputs + channel
        at = window.read(index[FIRST : FIRST + rank], taps)
        data = (
            padded(index[0], source, *at)
            if data_block is None
            else padded(index[0], source // data_block, *at, source % data_block)
        )
        product = data.astype(wide) * weight(out, channel, *taps).astype(wide)
        if out_block is not None and out_channels % out_block:
            product = tirx.if_then_else(out < out_channels, product, tirx.const(0, wide))
        return te.sum(product, axis=[channel, *taps])

    result = te.compute(out_shape, element, name=f"conv{rank}d")
    return [cast_tensor(result, outputs[0].dtype)]


def _cost(inputs: Sequence[TensorType], attrs: Attrs, outputs: Sequence[TensorType]) -> Cost:
    weight, out = inputs[1].static_shape, outputs[0].static_shape
    positions = out[0] * prod(out[FIRST : FIRST + len(weight) - 2])
    return Cost(2 * positions * prod(weight), sum(t.nbytes for t in (*inputs, *outputs)))


def _infer_transpose(types: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    x, weight = types
    dtype, rank = same_dtype("conv_transpose", types), weight.rank - 2
    window, extra = Window.of(_kernel(weight), attrs), _extra(attrs, rank)
    groups = integer(attrs, "groups")
    if x.rank != weight.rank or x.shape[1] != weight.shape[0]:
        raise TypeRuleError(f"input {x} does not hold the {weight.shape[0]} channels of the [I,O,...] weight")
    if groups < 1 or _static(weight.shape[:1])[0] % groups:
        raise TypeRuleError(f"groups is {groups}; it must divide the {weight.shape[0]} input channels")
    spatial = tuple(
        (e - 1) * s + (r + o - b - f)
        for e, s, r, o, b, f in zip(
            x.shape[2:], window.strides, window.reach, extra, window.begin, window.end, strict=True
        )
    )
    if any(isinstance(e, int) and e < 1 for e in spatial):
        raise TypeRuleError(f"padding {window.begin} and {window.end} leaves nothing of the output")
    return [TensorType((x.shape[0], weight.shape[1] * groups, *spatial), dtype)]


def _extra(attrs: Attrs, rank: int) -> tuple[int, ...]:
    from_attrs = attrs["output_padding"]
    if not isinstance(from_attrs, tuple) or len(from_attrs) != rank:
        raise TypeRuleError(f"attribute `output_padding` is {from_attrs}; it must be {rank} integers")
    return tuple(int(e) for e in from_attrs if isinstance(e, int))


def _evaluate_transpose(arrays: Sequence[Array], attrs: Attrs) -> list[Array]:
    x, weight = arrays
    rank, groups, wide = x.ndim - 2, integer(attrs, "groups"), exact(x)
    window = Window.of(weight.shape[2:], attrs)
    batch, inputs, group_outputs = x.shape[0], weight.shape[0] // groups, weight.shape[1]
    reached = window.needed(x.shape[2:])
    total = np.zeros(
        (batch, groups * group_outputs, *(r + e for r, e in zip(reached, _extra(attrs, rank), strict=True))),
        wide.dtype,
    )
    columns = wide.reshape(batch, groups, inputs, prod(wide.shape[2:]))
    kernel = exact(weight).reshape(groups, inputs, *weight.shape[1:])
    for offset, view in window.taps(total, x.shape[2:]):
        taps = np.swapaxes(kernel[(..., *offset)], 1, 2)
        view += np.matmul(taps, columns).reshape(view.shape)
    keep = tuple(slice(b, e - f) for b, e, f in zip(window.begin, total.shape[2:], window.end, strict=True))
    return [summed(np.ascontiguousarray(total[(..., *keep)]), type_of(x).dtype)]


def _compute_transpose(inputs: Sequence[Tensor], attrs: Attrs, outputs: Sequence[TensorType]) -> list[Tensor]:
    x, weight = inputs
    weight_shape, extents = static_shape(weight), static_shape(x)[2:]
    window, wide = Window.of(weight_shape[2:], attrs), product_dtype(element_type(x))
    group_inputs, group_outputs = weight_shape[0] // integer(attrs, "groups"), weight_shape[1]
    channel, taps = te.reduce_axis((0, group_inputs), name="ci"), window.axes()

    def element(*index: Any) -> Any:
        source = index[1] // group_outputs * group_inputs + channel
        scaled = [
            i + b - t * d for i, b, t, d in zip(index[2:], window.begin, taps, window.dilation, strict=True)
        ]
        at = [p // s for p, s in zip(scaled, window.strides, strict=True)]
        hit = [
            condition
            for p, a, s, e in zip(scaled, at, window.strides, extents, strict=True)
            for condition in (p >= 0, p % s == 0, a < e)
        ]
        data = tirx.if_then_else(tirx.all(*hit), x(index[0], source, *at), tirx.const(0, x.dtype))
        factor = weight(source, index[1] % group_outputs, *taps)
        return te.sum(data.astype(wide) * factor.astype(wide), axis=[channel, *taps])

    result = te.compute(outputs[0].static_shape, element, name=f"conv{len(taps)}d_transpose")
    return [cast_tensor(result, outputs[0].dtype)]


def _cost_transpose(inputs: Sequence[TensorType], attrs: Attrs, outputs: Sequence[TensorType]) -> Cost:
    x, weight = inputs[0].static_shape, inputs[1].static_shape
    positions = x[0] * prod(x[2:])
    return Cost(2 * positions * prod(weight), sum(t.nbytes for t in (*inputs, *outputs)))


def _sample(
    x: tuple[int, ...], weight: tuple[int, ...], dtype: str = "float32", tol: float = 1e-4, **attrs: Attr
) -> Sample:
    types = (TensorType(x, dtype), TensorType(weight, dtype))
    return Sample(types, attrs, constant=(1,), rtol=tol, atol=tol)


BLOCKED = "NCHW16c"
_SAMPLES = {
    1: (
        _sample((2, 4, 11), (6, 4, 3)),
        _sample((1, 4, 12), (6, 2, 3), strides=(2,), padding=(2, 1), dilation=(2,), groups=2),
        _sample((1, 1, 9, 16), (20, 5, 3), padding=(1, 1), data_layout=BLOCKED, out_layout=BLOCKED),
    ),
    2: (
        _sample((2, 3, 9, 8), (5, 3, 3, 3), strides=(2, 1), padding=(1, 0, 2, 1)),
        _sample((1, 6, 10, 9), (4, 3, 3, 2), dilation=(2, 3), groups=2, padding=(2, 2, 2, 2)),
        _sample((1, 6, 7, 7), (6, 1, 3, 3), groups=6, padding=(1, 1, 1, 1)),
        _sample((1, 4, 6, 6), (8, 1, 3, 3), groups=4, strides=(2, 2)),
        _sample((1, 2, 6, 5, 16), (16, 32, 1, 1), data_layout=BLOCKED, out_layout=BLOCKED),
        _sample((1, 2, 6, 5, 16), (19, 20, 3, 3), padding=(1,) * 4, data_layout=BLOCKED, out_layout=BLOCKED),
        _sample((1, 3, 9, 9), (18, 3, 3, 3), strides=(2, 2), padding=(1,) * 4, out_layout=BLOCKED),
        _sample((1, 2, 5, 5, 16), (7, 18, 3, 3), data_layout=BLOCKED),
        _sample(
            (1, 2, 7, 7, 16), (24, 1, 3, 3), groups=24, padding=(1,) * 4,
            data_layout=BLOCKED, out_layout=BLOCKED,
        ),
        _sample(
            (1, 4, 5, 5, 16), (32, 32, 3, 3), groups=2, padding=(1,) * 4,
            data_layout=BLOCKED, out_layout=BLOCKED,
        ),
        _sample((1, 3, 6, 6), (4, 3, 3, 3), "float64"),
        _sample((1, 3, 6, 6), (4, 3, 3, 3), "float16", 5e-3),
        _sample((1, 3, 6, 6), (4, 3, 3, 3), "bfloat16", 4e-2),
        _sample((1, 3, 6, 6), (4, 3, 3, 3), "int32"),
        _sample((1, 3, 6, 6), (4, 3, 3, 3), "int8", 0.0, padding=(1,) * 4, pad_value=-3, out_dtype="int32"),
        _sample(
            (1, 2, 7, 5, 4), (12, 8, 3, 3), "int8", 0.0, padding=(1,) * 4, pad_value=5,
            data_layout="NCHW4c", out_layout="NCHW4c", out_dtype="int32",
        ),
        _sample(
            (1, 2, 7, 5, 4), (10, 6, 1, 1), "int8", 0.0,
            data_layout="NCHW4c", out_layout="NCHW4c", out_dtype="int32",
        ),
        _sample(
            (1, 2, 6, 5, 16), (32, 32, 3, 3), "float16", 4e-3, padding=(1,) * 4,
            data_layout=BLOCKED, out_layout=BLOCKED, out_dtype="float32",
        ),
        _sample((1, 3, 6, 6), (4, 3, 3, 3), "bfloat16", 1e-4, out_dtype="float32"),
        _sample((1, 8, 6, 6), (4, 8, 3, 3), tol=2e-2, multiply_as="tf32"),
        _sample((1, 3, 9, 9), (18, 3, 3, 3), tol=8e-2, out_layout=BLOCKED, multiply_as="bfloat16"),
    ),
    3: (
        _sample((1, 3, 5, 6, 5), (4, 3, 3, 2, 3), padding=(1, 0, 1, 1, 1, 0)),
        _sample((1, 4, 5, 6, 5), (4, 2, 2, 2, 2), strides=(2, 2, 1), dilation=(1, 2, 1), groups=2),
    ),
}  # fmt: skip
_TRANSPOSE_SAMPLES = {
    1: (
        _sample((2, 4, 5), (4, 3, 3)),
        _sample((1, 4, 5), (4, 3, 4), strides=(3,), padding=(1, 2), output_padding=(1,), groups=2),
    ),
    2: (
        _sample((1, 3, 4, 5), (3, 2, 3, 3), strides=(2, 2), padding=(1, 1, 1, 1), output_padding=(1, 1)),
        _sample((1, 4, 4, 3), (4, 3, 3, 2), strides=(1, 2), dilation=(2, 2), groups=2, padding=(0, 1, 2, 0)),
        _sample((1, 4, 4, 4), (4, 1, 2, 2), strides=(2, 2), groups=4),
        _sample((1, 3, 4, 4), (3, 2, 2, 2), "float16", 5e-3, strides=(2, 2)),
    ),
    3: (_sample((1, 2, 3, 4, 3), (2, 3, 2, 3, 2), strides=(2, 1, 2), padding=(0, 1, 0, 1, 0, 0)),),
}

for _rank in (1, 2, 3):
    declare(
        Op(
            name=f"conv{_rank}d",
            infer=_infer,
            evaluate=_evaluate,
            compute=_compute,
            kind=FusionKind.CONTRACTION,
            attrs={
                **window_attrs(_rank),
                "groups": 1,
                "data_layout": PLAIN,
                "out_layout": PLAIN,
                "out_dtype": "",
                "multiply_as": "",
                "strassen": False,
                "pad_value": 0,
            },
            arity=(2, 2),
            layout=LayoutRule.CONVOLUTION,
            cost=_cost,
            samples=_SAMPLES[_rank],
        )
    )
    declare(
        Op(
            name=f"conv{_rank}d_transpose",
            infer=_infer_transpose,
            evaluate=_evaluate_transpose,
            compute=_compute_transpose,
            kind=FusionKind.CONTRACTION,
            attrs={**window_attrs(_rank), "groups": 1, "output_padding": (0,) * _rank},
            arity=(2, 2),
            cost=_cost_transpose,
            samples=_TRANSPOSE_SAMPLES[_rank],
        )
    )
