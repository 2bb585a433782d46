# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false
"""Reductions over axes, softmax, and the sequential scans: arg-reductions, cumsum, topk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tcomp.errors import TypeRuleError
from tcomp.ops.reducers import any_largest, highest, largest, lowest, product, smallest
from tcomp.ops.shapes import accumulator, cast_tensor, check_axis, static_shape
from tcomp.relay.attributes import flag, integer, integers
from tcomp.relay.dims import Dim
from tcomp.relay.graph import Attr, Attrs
from tcomp.relay.op import REQUIRED, FusionKind, Op, Sample, declare
from tcomp.relay.types import FLOATS, INTEGERS, Array, TensorType
from tcomp.tensor import math
from tcomp.tvm_api import Tensor, te, tirx

_NUMBERS = FLOATS + INTEGERS
_WITH_NAN: Array = np.linspace(-3, 3, 5 * 37, dtype=np.float32).reshape(5, 37)
_WITH_NAN[[0, 1, 1, 2, 3], [0, 20, 33, 36, 5]] = np.nan
_INFINITE = np.array([[np.inf] * 37, [-np.inf] * 37], np.float32)
_TURNED: Array = np.ascontiguousarray(_WITH_NAN.T)
_NAN_SAMPLES = tuple(Sample((TensorType(x.shape),), {"axis": 1}, inputs={0: x}) for x in (_WITH_NAN, _TURNED))
"""Rows with NaN at either end, and between numbers; more and less than a vector of them."""
Reducer = Callable[..., Any]


def reduce_axes(op: str, attrs: Attrs, rank: int) -> tuple[int, ...]:
    """The `axes` attribute, ascending and checked."""
    axes = tuple(sorted(check_axis(op, axis, rank) for axis in integers(attrs, "axes")))
    if len(set(axes)) != len(axes):
        raise TypeRuleError(f"`{op}`: axes {axes} name one axis twice")
    return axes


def reduced_shape(shape: Sequence[Dim], axes: Sequence[int], keepdims: bool) -> tuple[Dim, ...]:
    """`shape` with `axes` gone, or of extent 1."""
    kept = [(1 if i in axes else d) for i, d in enumerate(shape) if keepdims or i not in axes]
    return tuple(kept)


def reduce_tensor(
    x: Tensor, axes: Sequence[int], reducer: Reducer, element: Callable[[Any], Any], name: str
) -> Tensor:
    """`reducer` of `element(x[...])` over `axes`; the result has the other axes only."""
    shape = static_shape(x)
    reduced = {axis: te.reduce_axis((0, shape[axis]), name=f"r{axis}") for axis in axes}
    kept = tuple(d for i, d in enumerate(shape) if i not in reduced)

    def at(*index: Any) -> Any:
        rest = iter(index)
        full = [reduced[i] if i in reduced else next(rest) for i in range(len(shape))]
        return reducer(element(x(*full)), axis=list(reduced.values()))

    return te.compute(kept, at, name=name)


def over_rows(
    rows: Sequence[Tensor],
    x: Tensor,
    axes: Sequence[int],
    result: TensorType,
    element: Callable[..., Any],
    name: str,
) -> Tensor:
    """A tensor of x's shape: `element(x[...], row...)`, each of `rows` read without `axes`."""

    def at(*index: Any) -> Any:
        kept = [v for i, v in enumerate(index) if i not in axes]
        return element(x(*index), *(row(*kept) for row in rows)).astype(result.dtype)

    return te.compute(result.static_shape, at, name=name)


def expand_reduced(reduced: Tensor, axes: Sequence[int], result: TensorType, keepdims: bool) -> Tensor:
    """`reduced` in the shape and element type of `result`."""

    def at(*index: Any) -> Any:
        kept = [v for i, v in enumerate(index) if not keepdims or i not in axes]
        return reduced(*kept).astype(result.dtype)

    return te.compute(result.static_shape, at, name="reduced")


def _largest(x: Array, **options: Any) -> Any:
    return np.max(x, initial=lowest(x.dtype.name), **options)


def _smallest(x: Array, **options: Any) -> Any:
    return np.min(x, initial=highest(x.dtype.name), **options)


def _declare_reduction(
    name: str, reference: Callable[..., Any], reducer: Reducer, mean: bool = False
) -> None:
    def infer(types: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
        _check_numbers(name, types[0].dtype)
        axes = reduce_axes(name, attrs, types[0].rank)
        return [TensorType(reduced_shape(types[0].shape, axes, flag(attrs, "keepdims")), types[0].dtype)]

    def evaluate(arrays: Sequence[Array], attrs: Attrs) -> list[Array]:
        x = arrays[0].astype(accumulator(arrays[0].dtype.name), copy=False)
        axes = reduce_axes(name, attrs, x.ndim)
        result = np.asarray(reference(x, axis=axes, keepdims=flag(attrs, "keepdims")))
        return [result.astype(arrays[0].dtype)]

    def compute(inputs: Sequence[Tensor], attrs: Attrs, outputs: Sequence[TensorType]) -> list[Tensor]:
        x = inputs[0]
        wide = accumulator(outputs[0].dtype)
        axes = reduce_axes(name, attrs, len(x.shape))
        if not axes:
            return [cast_tensor(x, outputs[0].dtype)]
        reduced = reduce_tensor(x, axes, reducer, lambda e: e.astype(wide), name)
        if mean:
            count = int(np.prod([static_shape(x)[a] for a in axes]))
            reduced = _mean_of(reduced, count, wide)
        return [expand_reduced(reduced, axes, outputs[0], flag(attrs, "keepdims"))]

    declare(
        Op(
            name=name,
            infer=infer,
            evaluate=evaluate,
            compute=compute,
            kind=FusionKind.REDUCTION,
            attrs={"axes": REQUIRED, "keepdims": True},
            samples=_reduction_samples(name),
        )
    )


def _mean_of(total: Tensor, count: int, dtype: str) -> Tensor:
    def at(*index: Any) -> Any:
        value = total(*index)
        return value * (1.0 / count) if "float" in dtype else tirx.truncdiv(value, tirx.const(count, dtype))

    return te.compute(total.shape, at, name="mean")


def _reduction_samples(name: str) -> tuple[Sample, ...]:
    def sample(
        shape: tuple[int, ...], axes: tuple[int, ...], dtype: str = "float32", **attrs: Attr
    ) -> Sample:
        tolerance = {"float16": 2e-3, "bfloat16": 2e-2}.get(dtype, 1e-5 if "float" in dtype else 0.0)
        low, high = (0.8, 1.2) if name == "reduce_prod" and "float" in dtype else (-2.0, 2.0)
        return Sample(
            (TensorType(shape, dtype),), {"axes": axes, **attrs}, low, high, rtol=tolerance, atol=tolerance
        )

    samples = [
        sample((3, 4, 37), (2,)),
        sample((3, 37, 20), (1,), keepdims=False),
        sample((2, 5, 7, 7), (2, 3)),
        sample((2, 2, 3, 3, 16), (2, 3)),
        sample((4, 5, 18), (0, 2), keepdims=False),
        sample((33,), (0,), keepdims=False),
        sample((4, 70), (1,), "bfloat16"),
        sample((4, 21), (0,), "float16"),
    ]
    if name != "reduce_mean":
        samples.append(sample((4, 21), (1,), "int32"))
    for x, axis in ((_WITH_NAN, 1), (_WITH_NAN, 0), (_INFINITE, 1)):
        samples.append(Sample((TensorType(x.shape),), {"axes": (axis,)}, inputs={0: x}))
    return tuple(samples)


def _check_numbers(name: str, dtype: str) -> None:
    if dtype not in _NUMBERS:
        raise TypeRuleError(f"`{name}` does not take {dtype} operands; insert a cast")


_declare_reduction("reduce_sum", np.sum, te.sum)
_declare_reduction("reduce_mean", np.mean, te.sum, mean=True)
_declare_reduction("reduce_max", _largest, largest)
_declare_reduction("reduce_min", _smallest, smallest)
_declare_reduction("reduce_prod", np.prod, product)


def _declare_arg_reduction(name: str, best: Callable[..., Any], reducer: Reducer) -> None:
    def infer(types: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
        _check_numbers(name, types[0].dtype)
        axis = check_axis(name, integer(attrs, "axis"), types[0].rank)
        if types[0].shape[axis] == 0:
            raise TypeRuleError(f"`{name}` chooses an element of axis {axis}, which has none")
        return [TensorType(reduced_shape(types[0].shape, (axis,), flag(attrs, "keepdims")), "int64")]

    def evaluate(arrays: Sequence[Array], attrs: Attrs) -> list[Array]:
        x, axis = arrays[0], integer(attrs, "axis")
        if flag(attrs, "select_last"):
            result = x.shape[axis] - 1 - best(np.flip(x, axis), axis=axis, keepdims=flag(attrs, "keepdims"))
        else:
            result = best(x, axis=axis, keepdims=flag(attrs, "keepdims"))
        return [np.asarray(result).astype(np.int64)]

    def compute(inputs: Sequence[Tensor], attrs: Attrs, outputs: Sequence[TensorType]) -> list[Tensor]:
        # Two plain reductions, which vectorise: the best value, then the first (last) position that has it.
        # That is NaN where a row has any, and equal to nothing.
        axis, last = integer(attrs, "axis"), flag(attrs, "select_last")
        x = cast_tensor(inputs[0], accumulator(str(inputs[0].dtype)))
        shape = static_shape(x)
        extent = shape[axis]
        extreme = reduce_tensor(x, (axis,), reducer, lambda e: e, "extreme")
        position = te.reduce_axis((0, extent), name="position")
        absent = tirx.const(-1 if last else extent, "int32")

        def at(*kept: Any) -> Any:
            value = x(*kept[:axis], position, *kept[axis:])
            is_best = value == extreme(*kept)
            if "float" in str(x.dtype):
                is_best = tirx.any(is_best, math.is_nan(value))
            found = tirx.Select(is_best, position.var, absent)
            return (te.max if last else te.min)(found, axis=position)

        found = te.compute(extreme.shape, at, name="found")

        return [expand_reduced(found, (axis,), outputs[0], flag(attrs, "keepdims"))]

    ties = np.array([[1, 3, 3, 0, 3], [2, 2, 1, 2, 2]], "int32")
    samples = [
        Sample((TensorType((3, 37)),), {"axis": 1}),
        Sample((TensorType((3, 9, 20)),), {"axis": 1, "keepdims": False}),
        Sample((TensorType((2, 5), "int32"),), {"axis": 1, "select_last": True}, inputs={0: ties}),
        Sample((TensorType((2, 5), "int32"),), {"axis": 1}, inputs={0: ties}),
        Sample((TensorType((19,), "float16"),), {"axis": 0}),
        Sample((TensorType((3, 37), "bfloat16"),), {"axis": 1}),
        *_NAN_SAMPLES,
    ]
    declare(
        Op(
            name=name,
            infer=infer,
            evaluate=evaluate,
            compute=compute,
            kind=FusionKind.REDUCTION,
            attrs={"axis": REQUIRED, "keepdims": True, "select_last": False},
            samples=tuple(samples),
        )
    )


_declare_arg_reduction("argmax", np.argmax, largest)
_declare_arg_reduction("argmin", np.argmin, smallest)


def _softmax_reference(x: Array, axis: int, logarithm: bool) -> Any:
    shifted = x - _largest(x, axis=axis, keepdims=True)
    total = np.exp(shifted).sum(axis=axis, keepdims=True)
    return shifted - np.log(total) if logarithm else np.exp(shifted) / total


def _declare_softmax(name: str, logarithm: bool) -> None:
    def infer(types: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
        if types[0].dtype not in FLOATS:
            raise TypeRuleError(f"`{name}` takes floats, not {types[0].dtype}; insert a cast")
        check_axis(name, integer(attrs, "axis"), types[0].rank)
        return [types[0]]

    def evaluate(arrays: Sequence[Array], attrs: Attrs) -> list[Array]:
        x = arrays[0].astype(accumulator(arrays[0].dtype.name), copy=False)
        return [np.asarray(_softmax_reference(x, integer(attrs, "axis"), logarithm)).astype(arrays[0].dtype)]

    def compute(inputs: Sequence[Tensor], attrs: Attrs, outputs: Sequence[TensorType]) -> list[Tensor]:
        axes = (integer(attrs, "axis"),)
        wide = TensorType(outputs[0].shape, accumulator(outputs[0].dtype))
        x = cast_tensor(inputs[0], wide.dtype)
        top = reduce_tensor(x, axes, any_largest, lambda e: e, "largest")
        powers = over_rows([top], x, axes, wide, lambda e, m: math.exp(e - m), "powers")
        total = reduce_tensor(powers, axes, te.sum, lambda e: e, "total")
        if logarithm:
            offset = te.compute(total.shape, lambda *i: top(*i) + math.log_(total(*i)), name="offset")
            return [over_rows([offset], x, axes, outputs[0], lambda e, o: e - o, name)]
        scale = te.compute(total.shape, lambda *i: 1 / total(*i), name="scale")
        return [over_rows([scale], powers, axes, outputs[0], lambda e, s: e * s, name)]

    samples = [
        Sample((TensorType((3, 4, 37)),), {"axis": 2}, -6, 6),
        Sample((TensorType((3, 9, 20)),), {"axis": 1}, -6, 6),
        Sample((TensorType((2, 130)),), {"axis": 1}, -60, 60, rtol=2e-5),
        Sample((TensorType((5, 7)),), {"axis": 0}, -6, 6),
        Sample((TensorType((3, 64), "float16"),), {"axis": 1}, rtol=4e-3, atol=2e-3),
        Sample((TensorType((3, 64), "bfloat16"),), {"axis": 1}, rtol=2e-2, atol=2e-2),
        *_NAN_SAMPLES,
    ]
    declare(
        Op(
            name=name,
            infer=infer,
            evaluate=evaluate,
            compute=compute,
            kind=FusionKind.REDUCTION,
            attrs={"axis": REQUIRED},
            flops_per_element=16,
            samples=tuple(samples),
        )
    )


_declare_softmax("softmax", logarithm=False)
_declare_softmax("log_softmax", logarithm=True)
