# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false
"""Normalisations: batch, layer, group (instance), root mean square, and local response."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tcomp.errors import TypeRuleError
from tcomp.ops.reduction import over_rows, reduce_tensor
from tcomp.ops.shapes import accumulator, cast_tensor, check_axis, same_dtype, static_shape
from tcomp.relay.attributes import integer, number
from tcomp.relay.dims import Dim
from tcomp.relay.graph import Attr, Attrs
from tcomp.relay.op import REQUIRED, FusionKind, Op, Sample, declare
from tcomp.relay.types import FLOATS, Array, TensorType
from tcomp.tvm_api import Tensor, te, tirx

_CHANNEL = 1


def _floats(name: str, types: Sequence[TensorType]) -> str:
    dtype = same_dtype(name, types)
    if dtype not in FLOATS:
        raise TypeRuleError(f"`{name}` takes floats, not {dtype}; insert a cast")
    return dtype


def _check_channels(name: str, types: Sequence[TensorType]) -> None:
    if types[0].rank < 2:
        raise TypeRuleError(f"`{name}` takes an input of rank 2 or more, not {types[0]}")
    for operand in types[1:]:
        if operand.shape != (types[0].shape[_CHANNEL],):
            raise TypeRuleError(f"`{name}` takes one parameter a channel of {types[0]}, not {operand}")


def _wide(arrays: Sequence[Array]) -> list[Array]:
    return [a.astype(accumulator(a.dtype.name), copy=False) for a in arrays]


def _per_channel(parameter: Array, rank: int) -> Array:
    return parameter.reshape(-1, *[1] * (rank - 2))


def _infer_batch_norm(types: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    _floats("batch_norm", types)
    _check_channels("batch_norm", types)
    return [types[0]]


def _evaluate_batch_norm(arrays: Sequence[Array], attrs: Attrs) -> list[Array]:
    x, *parameters = _wide(arrays)
    scale, bias, mean, variance = (_per_channel(p, x.ndim) for p in parameters)
    result = (x - mean) / np.sqrt(variance + number(attrs, "epsilon")) * scale + bias
    return [result.astype(arrays[0].dtype)]


def _compute_batch_norm(
    inputs: Sequence[Tensor], attrs: Attrs, outputs: Sequence[TensorType]
) -> list[Tensor]:
    dtype, epsilon = outputs[0].dtype, number(attrs, "epsilon")
    x, scale, bias, mean, variance = (cast_tensor(t, accumulator(dtype)) for t in inputs)

    def at(*index: Any) -> Any:
        channel = index[_CHANNEL]
        factor = scale(channel) / tirx.sqrt(variance(channel) + epsilon)
        return ((x(*index) - mean(channel)) * factor + bias(channel)).astype(dtype)

    return [te.compute(outputs[0].static_shape, at, name="batch_norm")]


def _channel_types(shape: tuple[int, ...], parameters: int, dtype: str = "float32") -> tuple[TensorType, ...]:
    return (TensorType(shape, dtype), *[TensorType((shape[1],), dtype)] * parameters)


_VARIANCE = np.linspace(0.5, 2.0, 5).astype("float32")
declare(
    Op(
        name="batch_norm",
        infer=_infer_batch_norm,
        evaluate=_evaluate_batch_norm,
        compute=_compute_batch_norm,
        kind=FusionKind.ELEMENTWISE,
        attrs={"epsilon": 1e-5},
        arity=(5, 5),
        flops_per_element=4,
        samples=(
            Sample(_channel_types((2, 5, 4, 9), 4), inputs={4: _VARIANCE}),
            Sample(_channel_types((3, 5), 4), {"epsilon": 0.1}, inputs={4: _VARIANCE}),
        ),
    )
)


def normalised(
    x: Tensor, axes: Sequence[int], epsilon: float, centre: bool = True
) -> tuple[list[Tensor], Callable[..., Any]]:
    """Row statistics of x over `axes`, and the function (element, statistics...) -> normalised element."""
    dtype = str(x.dtype)
    shape = static_shape(x)
    inverse = 1.0 / int(np.prod([shape[a] for a in axes]))
    deviation, statistics = x, list[Tensor]()
    if centre:
        total = reduce_tensor(x, axes, te.sum, lambda e: e, "total")
        mean = te.compute(total.shape, lambda *i: total(*i) * inverse, name="mean")
        statistics.append(mean)
        deviation = over_rows([mean], x, axes, TensorType(shape, dtype), lambda e, m: e - m, "deviation")
    squares = reduce_tensor(deviation, axes, te.sum, lambda e: e * e, "squares")
    root = te.compute(
        squares.shape, lambda *i: 1 / tirx.sqrt(squares(*i) * inverse + epsilon), name="inverse_deviation"
    )
    statistics.append(root)

    def normalise(element: Any, *statistic: Any) -> Any:
        *mean, inverse_deviation = statistic
        return (element - mean[0] if mean else element) * inverse_deviation

    return statistics, normalise


def _declare_row_norm(
    name: str, centre: bool, operands: tuple[int, int], samples: tuple[Sample, ...]
) -> None:
    """layer_norm and rms_norm: rows are axes `axis`..last."""

    def infer(types: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
        _floats(name, types)
        axis = check_axis(name, integer(attrs, "axis"), types[0].rank)
        for operand in types[1:]:
            if not _suffix_fits(operand.shape, types[0].shape[axis:]):
                raise TypeRuleError(
                    f"`{name}` normalises axes from {axis} of {types[0]}; {operand} does not fit"
                )
        return [types[0]]

    def evaluate(arrays: Sequence[Array], attrs: Attrs) -> list[Array]:
        x, scale, *bias = _wide(arrays)
        axes = tuple(range(integer(attrs, "axis"), x.ndim))
        if centre:
            x = x - x.mean(axis=axes, keepdims=True)
        result = x / np.sqrt((x * x).mean(axis=axes, keepdims=True) + number(attrs, "epsilon")) * scale
        return [(result + bias[0] if bias else result).astype(arrays[0].dtype)]

    def compute(inputs: Sequence[Tensor], attrs: Attrs, outputs: Sequence[TensorType]) -> list[Tensor]:
        dtype, axis = outputs[0].dtype, integer(attrs, "axis")
        x, scale, *bias = (cast_tensor(t, accumulator(dtype)) for t in inputs)
        axes = tuple(range(axis, len(x.shape)))
        statistics, normalise = normalised(x, axes, number(attrs, "epsilon"), centre)

        def at(*index: Any) -> Any:
            value = normalise(x(*index), *(s(*index[:axis]) for s in statistics)) * _at_suffix(scale, index)
            return (value + _at_suffix(bias[0], index) if bias else value).astype(dtype)

        return [te.compute(outputs[0].static_shape, at, name=name)]

    declare(
        Op(
            name=name,
            infer=infer,
            evaluate=evaluate,
            compute=compute,
            kind=FusionKind.REDUCTION,
            attrs={"axis": REQUIRED, "epsilon": 1e-5},
            arity=operands,
            flops_per_element=8,
            samples=samples,
        )
    )


def _suffix_fits(shape: tuple[Dim, ...], row: tuple[Dim, ...]) -> bool:
    offset = len(row) - len(shape)
    return offset >= 0 and all(d in (1, row[offset + i]) for i, d in enumerate(shape))


def _at_suffix(parameter: Tensor, index: Sequence[Any]) -> Any:
    shape = static_shape(parameter)
    own = index[len(index) - len(shape) :]
    return parameter(*(0 if d == 1 else i for d, i in zip(shape, own, strict=True)))


def _row_types(
    shape: tuple[int, ...], row: tuple[int, ...], count: int, dtype: str = "float32"
) -> tuple[TensorType, ...]:
    return (TensorType(shape, dtype), *[TensorType(row, dtype)] * count)


def _row_sample(types: tuple[TensorType, ...], **attrs: Attr) -> Sample:
    return Sample(types, attrs, rtol=1e-4, atol=1e-4)


_declare_row_norm(
    "layer_norm",
    True,
    (2, 3),
    (
        _row_sample(_row_types((3, 5, 40), (40,), 2), axis=2),
        _row_sample(_row_types((2, 3, 37), (3, 37), 2), axis=1),
        _row_sample(_row_types((4, 18), (18,), 1), axis=1, epsilon=1e-3),
        Sample(_row_types((3, 64), (64,), 2, "bfloat16"), {"axis": 1}, rtol=3e-2, atol=3e-2),
    ),
)
_declare_row_norm(
    "rms_norm",
    False,
    (2, 2),
    (
        _row_sample(_row_types((3, 5, 40), (40,), 1), axis=2),
        _row_sample(_row_types((2, 3, 37), (3, 37), 1), axis=1),
        Sample(_row_types((3, 64), (64,), 1, "float16"), {"axis": 1}, rtol=4e-3, atol=4e-3),
    ),
)


def _infer_group_norm(types: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    _floats("group_norm", types)
    _check_channels("group_norm", types)
    channels, groups = types[0].shape[_CHANNEL], integer(attrs, "groups")
    if groups < 1 or (isinstance(channels, int) and channels % groups):
        raise TypeRuleError(f"`group_norm`: groups is {groups}; it must divide the channels, {channels}")
    return [types[0]]


def _evaluate_group_norm(arrays: Sequence[Array], attrs: Attrs) -> list[Array]:
    x, scale, bias = _wide(arrays)
    rows = x.reshape(x.shape[0], integer(attrs, "groups"), -1)
    rows = rows - rows.mean(axis=2, keepdims=True)
    rows = rows / np.sqrt((rows * rows).mean(axis=2, keepdims=True) + number(attrs, "epsilon"))
    result = rows.reshape(x.shape) * _per_channel(scale, x.ndim) + _per_channel(bias, x.ndim)
    return [result.astype(arrays[0].dtype)]


def _compute_group_norm(
    inputs: Sequence[Tensor], attrs: Attrs, outputs: Sequence[TensorType]
) -> list[Tensor]:
    dtype, groups = outputs[0].dtype, integer(attrs, "groups")
    x, scale, bias = (cast_tensor(t, accumulator(dtype)) for t in inputs)
    batch, channels, *spatial = static_shape(x)
    size = channels // groups
    shape = (batch, groups, size, *spatial)

    def grouped_at(n: Any, g: Any, c: Any, *rest: Any) -> Any:
        return x(n, g * size + c, *rest)

    grouped = te.compute(shape, grouped_at, name="grouped")
    statistics, normalise = normalised(grouped, range(2, len(shape)), number(attrs, "epsilon"))

    def at(n: Any, c: Any, *rest: Any) -> Any:
        group = (n, te.floordiv(c, size))
        value = normalise(x(n, c, *rest), *(s(*group) for s in statistics))
        return (value * scale(c) + bias(c)).astype(dtype)

    return [te.compute(outputs[0].static_shape, at, name="group_norm")]


declare(
    Op(
        name="group_norm",
        infer=_infer_group_norm,
        evaluate=_evaluate_group_norm,
        compute=_compute_group_norm,
        kind=FusionKind.REDUCTION,
        attrs={"groups": REQUIRED, "epsilon": 1e-5},
        arity=(3, 3),
        flops_per_element=8,
        samples=(
            _row_sample(_channel_types((2, 6, 5, 7), 2), groups=3),
            _row_sample(_channel_types((2, 4, 9), 2), groups=4),
            _row_sample(_channel_types((2, 8), 2), groups=2),
        ),
    )
)


def _infer_lrn(types: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    _floats("lrn", types)
    _check_channels("lrn", types)
    return [types[0]]


def _window(channels: int, size: int) -> list[slice]:
    """The channels that count for each channel: (size - 1) // 2 before it, the rest after it."""
    before = (size - 1) // 2
    return [slice(max(0, c - before), min(channels, c - before + size)) for c in range(channels)]


def _evaluate_lrn(arrays: Sequence[Array], attrs: Attrs) -> list[Array]:
    (x,) = _wide(arrays)
    size = integer(attrs, "size")
    windows = [np.sum(x[:, w] ** 2, axis=1) for w in _window(x.shape[1], size)]
    scale = number(attrs, "bias") + number(attrs, "alpha") / size * np.stack(windows, axis=1)
    return [(x * scale ** -number(attrs, "beta")).astype(arrays[0].dtype)]


def _compute_lrn(inputs: Sequence[Tensor], attrs: Attrs, outputs: Sequence[TensorType]) -> list[Tensor]:
    dtype, size = outputs[0].dtype, integer(attrs, "size")
    x = cast_tensor(inputs[0], accumulator(dtype))
    channels = static_shape(x)[_CHANNEL]
    offset = te.reduce_axis((0, size), name="offset")
    last = tirx.const(channels - 1, "int32")
    zero, minus_beta = tirx.const(0, str(x.dtype)), tirx.const(-number(attrs, "beta"), str(x.dtype))

    def squares_at(n: Any, c: Any, *rest: Any) -> Any:
        at = c + offset - (size - 1) // 2
        inside = tirx.all(at >= 0, at < channels)
        value = x(n, tirx.max(tirx.min(at, last), tirx.const(0, "int32")), *rest)
        return te.sum(tirx.Select(inside, value * value, zero), axis=offset)

    squares = te.compute(x.shape, squares_at, name="squares")

    def at(*index: Any) -> Any:
        scale = squares(*index) * (number(attrs, "alpha") / size) + number(attrs, "bias")
        return (x(*index) * tirx.exp(minus_beta * tirx.log(scale))).astype(dtype)

    return [te.compute(outputs[0].static_shape, at, name="lrn")]


_LRN: dict[str, Attr] = {"size": REQUIRED, "alpha": 1e-4, "beta": 0.75, "bias": 1.0}
declare(
    Op(
        name="lrn",
        infer=_infer_lrn,
        evaluate=_evaluate_lrn,
        compute=_compute_lrn,
        kind=FusionKind.REDUCTION,
        attrs=_LRN,
        flops_per_element=40,
        samples=(
            Sample((TensorType((2, 7, 4, 5)),), {"size": 5, "alpha": 0.5}),
            Sample((TensorType((1, 6, 20)),), {"size": 2, "alpha": 0.5, "beta": 0.5, "bias": 2.0}),
        ),
    )
)
