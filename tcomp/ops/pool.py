"""Max and average pooling over one, two and three spatial axes, in plain or blocked layout."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from tcomp.errors import TypeRuleError
from tcomp.ops.reducers import any_largest, lowest
from tcomp.ops.shapes import accumulator, cast_tensor, element_type, static_shape, widened
from tcomp.ops.spatial import FIRST, Window, window_attrs
from tcomp.relay.attributes import flag, integers, text
from tcomp.relay.graph import Attr, Attrs
from tcomp.relay.layouts import PLAIN, channel_block
from tcomp.relay.op import REQUIRED, Cost, FusionKind, LayoutRule, Op, Sample, declare
from tcomp.relay.types import FLOATS, Array, TensorType, type_of
from tcomp.tvm_api import Tensor, te, tirx


def _infer(types: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    (x,) = types
    window, rank = _window(attrs), len(integers(attrs, "kernel"))
    expected = rank + (2 if channel_block(text(attrs, "data_layout")) is None else 3)
    if x.rank != expected:
        raise TypeRuleError(f"pooling over {rank} axes takes an input of rank {expected}, not {x.rank}")
    spatial = window.outputs(x.shape[FIRST : FIRST + rank], flag(attrs, "ceil_mode"))
    return [x.with_shape((*x.shape[:FIRST], *spatial, *x.shape[FIRST + rank :]))]


def _infer_average(types: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    if types[0].dtype not in FLOATS:
        raise TypeRuleError(f"average pooling takes floating-point elements, not {types[0].dtype}")
    return _infer(types, attrs)


def _window(attrs: Attrs) -> Window:
    return Window.of(integers(attrs, "kernel"), attrs)


def _positions(shape: Sequence[int], window: Window, attrs: Attrs) -> tuple[int, ...]:
    extents = shape[FIRST : FIRST + len(window.kernel)]
    return TensorType(window.outputs(extents, flag(attrs, "ceil_mode"))).static_shape


def _evaluate_max(arrays: Sequence[Array], attrs: Attrs) -> list[Array]:
    x, window = arrays[0], _window(attrs)
    positions = _positions(x.shape, window, attrs)
    padded = window.pad_array(x, positions, lowest(type_of(x).dtype))
    views = [view for _, view in window.taps(padded, positions)]
    result = np.array(views[0])
    for view in views[1:]:
        np.maximum(result, view, out=result)
    return [result]


def _evaluate_average(arrays: Sequence[Array], attrs: Attrs) -> list[Array]:
    x, window = arrays[0], _window(attrs)
    wide = widened(x)
    positions = _positions(x.shape, window, attrs)
    extents = x.shape[FIRST : FIRST + len(positions)]
    padded = window.pad_array(wide, positions, 0)
    counted = window.pad_array(np.ones((1, 1, *extents), wide.dtype), positions, 0)
    if flag(attrs, "count_include_pad"):
        inside = tuple(slice(0, e + b + f) for e, b, f in zip(extents, window.begin, window.end, strict=True))
        counted[(slice(None), slice(None), *inside)] = 1
    total = sum((view for _, view in window.taps(padded, positions)), start=np.zeros((), wide.dtype))
    taps = sum((view for _, view in window.taps(counted, positions)), start=np.zeros((), wide.dtype))
    count = taps.reshape(positions + (1,) * (x.ndim - FIRST - len(positions)))
    return [np.asarray(total / np.maximum(count, 1)).astype(x.dtype)]


def _compute_max(inputs: Sequence[Tensor], attrs: Attrs, outputs: Sequence[TensorType]) -> list[Tensor]:
    (x,) = inputs
    window = _window(attrs)
    rank = len(window.kernel)
    shape = outputs[0].static_shape
    padded = window.pad_tensor(x, shape[FIRST : FIRST + rank], tirx.const(lowest(element_type(x)), x.dtype))
    taps = window.axes()

    def element(*index: Any) -> Any:
        at = window.read(index[FIRST : FIRST + rank], taps)
        return any_largest(padded(*index[:FIRST], *at, *index[FIRST + rank :]), axis=taps)

    return [te.compute(shape, element, name=f"max_pool{rank}d")]


def _compute_average(inputs: Sequence[Tensor], attrs: Attrs, outputs: Sequence[TensorType]) -> list[Tensor]:
    (x,) = inputs
    window, wide = _window(attrs), accumulator(element_type(x))
    rank = len(window.kernel)
    shape, extents = outputs[0].static_shape, static_shape(x)[FIRST:]
    padded = window.pad_tensor(x, shape[FIRST : FIRST + rank], tirx.const(0, x.dtype))
    taps = window.axes()
    include_pad = flag(attrs, "count_include_pad")

    def total(*index: Any) -> Any:
        at = window.read(index[FIRST : FIRST + rank], taps)
        return te.sum(padded(*index[:FIRST], *at, *index[FIRST + rank :]).astype(wide), axis=taps)

    summed = te.compute(shape, total, name=f"sum_pool{rank}d")

    def mean(*index: Any) -> Any:
        counts = [
            _count(window, axis, index[FIRST + axis], extents[axis], shape[FIRST + axis], include_pad)
            for axis in range(rank)
        ]
        count: Any = prod(counts, start=tirx.const(1, "int32"))
        return summed(*index) / count.astype(wide)

    return [cast_tensor(te.compute(shape, mean, name=f"avg_pool{rank}d"), outputs[0].dtype)]


def _count(window: Window, axis: int, position: Any, extent: int, positions: int, include_pad: bool) -> Any:
    """How many taps of `position` on `axis` count: an integer when all positions have the same number."""
    kernel, step = window.kernel[axis], window.dilation[axis]
    begin, end = window.begin[axis], window.end[axis]
    offset, limit = (0, begin + extent + end) if include_pad else (begin, extent)
    last = (positions - 1) * window.strides[axis] - offset + window.reach[axis]
    if offset == 0 and last <= limit:
        return kernel
    start = position * window.strides[axis] - offset
    before = (tirx.max(-start, 0) + (step - 1)) // step
    until = tirx.min(kernel, (limit - start + (step - 1)) // step)
    return tirx.max(until - before, 1)


def _cost(inputs: Sequence[TensorType], attrs: Attrs, outputs: Sequence[TensorType]) -> Cost:
    taps = prod(integers(attrs, "kernel"))
    return Cost(taps * prod(outputs[0].static_shape), inputs[0].nbytes + outputs[0].nbytes)


def _sample(shape: tuple[int, ...], dtype: str = "float32", tol: float = 1e-5, **attrs: Attr) -> Sample:
    return Sample((TensorType(shape, dtype),), attrs, rtol=tol, atol=tol)


_SAMPLES = {
    1: (
        _sample((2, 3, 9), kernel=(3,), strides=(2,), padding=(1, 1)),
        _sample((1, 3, 10), kernel=(2,), strides=(3,), dilation=(2,), ceil_mode=True),
    ),
    2: (
        _sample((1, 3, 8, 9), kernel=(3, 3), strides=(2, 2), padding=(1, 1, 1, 1)),
        _sample((1, 2, 7, 8), kernel=(2, 3), padding=(0, 2, 1, 1), dilation=(2, 1)),
        _sample((1, 2, 8, 8), kernel=(3, 3), strides=(2, 2), ceil_mode=True),
        _sample((1, 2, 5, 5), kernel=(1, 1), strides=(3, 3), padding=(0, 0, 1, 1), ceil_mode=True),
        _sample((1, 2, 7, 6, 16), kernel=(3, 2), strides=(2, 2), padding=(1, 0, 1, 0), data_layout="NCHW16c"),
        _sample((1, 2, 6, 6), "float64", kernel=(2, 2)),
        _sample((1, 2, 6, 6), "float16", 5e-3, kernel=(3, 3), padding=(1, 1, 1, 1)),
        _sample((1, 2, 6, 6), "bfloat16", 2e-2, kernel=(2, 2), strides=(2, 2)),
    ),
    3: (_sample((1, 2, 5, 4, 6), kernel=(2, 2, 3), strides=(2, 1, 2), padding=(0, 1, 1, 1, 0, 1)),),
}
_INTEGER_SAMPLES = (
    _sample((1, 2, 6, 6), "int8", kernel=(3, 3), padding=(1, 1, 1, 1)),
    _sample((1, 2, 6, 6), "uint8", kernel=(2, 2), strides=(2, 2)),
)


def _counting(samples: tuple[Sample, ...]) -> tuple[Sample, ...]:
    """The same cases with padding counted."""
    return tuple(
        Sample(s.types, {**s.attrs, "count_include_pad": True}, rtol=s.rtol, atol=s.atol) for s in samples
    )


for _rank in (1, 2, 3):
    _attrs: dict[str, Attr] = {
        "kernel": REQUIRED,
        **window_attrs(_rank),
        "ceil_mode": False,
        "data_layout": PLAIN,
    }
    declare(
        Op(
            name=f"max_pool{_rank}d",
            infer=_infer,
            evaluate=_evaluate_max,
            compute=_compute_max,
            kind=FusionKind.CONTRACTION,
            attrs=_attrs,
            layout=LayoutRule.POOL,
            cost=_cost,
            samples=_SAMPLES[_rank] + (_INTEGER_SAMPLES if _rank == 2 else ()),
        )
    )
    declare(
        Op(
            name=f"avg_pool{_rank}d",
            infer=_infer_average,
            evaluate=_evaluate_average,
            compute=_compute_average,
            kind=FusionKind.CONTRACTION,
            attrs={**_attrs, "count_include_pad": False},
            layout=LayoutRule.POOL,
            cost=_cost,
            samples=_SAMPLES[_rank] + _counting(_SAMPLES[_rank]),
        )
    )
