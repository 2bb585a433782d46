"""Operators that only move elements: each output element is one input element, or a constant."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np

from tcomp.errors import TypeRuleError
from tcomp.ops.shapes import (
    broadcast_index,
    broadcast_shapes,
    check_axis,
    element_type,
    same_dtype,
    static_shape,
)
from tcomp.relay.attributes import dims, flag, integer, integers, number, one_of
from tcomp.relay.dims import Dim, DimExpr, FloorDiv
from tcomp.relay.graph import Attr, Attrs
from tcomp.relay.op import REQUIRED, Alias, FusionKind, LayoutRule, Op, Sample, declare
from tcomp.relay.types import REALS, Array, TensorType
from tcomp.tvm_api import Tensor, te, tirx

PAD_MODES = ("constant", "reflect", "edge", "wrap")


# reshape -----------------------------------------------------------------------------------------------


def _infer_reshape(types: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    result = types[0].with_shape(dims(attrs, "shape"))
    if any(isinstance(d, int) and d < 0 for d in result.shape):
        raise TypeRuleError(f"`reshape` to {result}: every dimension must be given, -1 resolved before")
    before, after = types[0].size, result.size
    if before != after and not (_divides(before) or _divides(after)):
        raise TypeRuleError(f"`reshape` from {types[0]} to {result} changes the number of elements")
    return [result]


def _divides(dim: Dim) -> bool:
    """Whether `dim` holds a floor division, so that equal sizes may be written in different ways."""
    return isinstance(dim, DimExpr) and any(isinstance(a, FloorDiv) for atoms, _ in dim.terms for a in atoms)


def _evaluate_reshape(arrays: Sequence[Array], attrs: Attrs) -> list[Array]:
    return [arrays[0].reshape(integers(attrs, "shape"))]


def _compute_reshape(inputs: Sequence[Tensor], attrs: Attrs, outputs: Sequence[TensorType]) -> list[Tensor]:
    (x,) = inputs
    shape, source = outputs[0].static_shape, static_shape(x)

    def element(*index: Any) -> Any:
        flat: Any = 0
        for extent, at in zip(shape, index, strict=True):
            flat = flat * extent + at
        return x(*_unravel(flat, source))

    return [te.compute(shape, element, name="reshape")]


def _unravel(flat: Any, shape: Sequence[int]) -> list[Any]:
    strides = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return [
        flat // stride if axis == 0 else flat // stride % extent
        for axis, (stride, extent) in enumerate(zip(strides, shape, strict=True))
    ]


# transpose ---------------------------------------------------------------------------------------------


def _infer_transpose(types: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    axes = integers(attrs, "axes")
    if sorted(axes) != list(range(types[0].rank)):
        raise TypeRuleError(
            f"`transpose` axes are {axes}; they must be a permutation of 0..{types[0].rank - 1}"
        )
    return [types[0].with_shape(tuple(types[0].shape[a] for a in axes))]


def _evaluate_transpose(arrays: Sequence[Array], attrs: Attrs) -> list[Array]:
    return [np.ascontiguousarray(np.transpose(arrays[0], integers(attrs, "axes")))]


def _compute_transpose(inputs: Sequence[Tensor], attrs: Attrs, outputs: Sequence[TensorType]) -> list[Tensor]:
    (x,), axes = inputs, integers(attrs, "axes")

    def element(*index: Any) -> Any:
        return x(*(index[axes.index(axis)] for axis in range(len(axes))))

    return [te.compute(outputs[0].static_shape, element, name="transpose")]


# concat ------------------------------------------------------------------------------------------------


def _infer_concat(types: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    same_dtype("concat", types)
    first = types[0]
    axis = check_axis("concat", integer(attrs, "axis"), first.rank)
    total: Dim = 0
    for operand in types:
        others = [d for a, d in enumerate(operand.shape) if a != axis]
        if operand.rank != first.rank or others != [d for a, d in enumerate(first.shape) if a != axis]:
            raise TypeRuleError(f"`concat` on axis {axis} of {first} and {operand}: other dimensions differ")
        total = total + operand.shape[axis]
    return [first.with_shape((*first.shape[:axis], total, *first.shape[axis + 1 :]))]


def _evaluate_concat(arrays: Sequence[Array], attrs: Attrs) -> list[Array]:
    return [np.concatenate(arrays, axis=integer(attrs, "axis"))]


def _compute_concat(inputs: Sequence[Tensor], attrs: Attrs, outputs: Sequence[TensorType]) -> list[Tensor]:
    axis = integer(attrs, "axis")
    present = [x for x in inputs if static_shape(x)[axis]]
    extents = [static_shape(x)[axis] for x in present]
    starts = [sum(extents[:i]) for i in range(len(extents))]

    def element(*index: Any) -> Any:
        parts = [
            x(*index[:axis], index[axis] - start, *index[axis + 1 :])
            for x, start in zip(present, starts, strict=True)
        ]
        chosen = parts[-1]
        for part, end in zip(reversed(parts[:-1]), reversed(starts[1:]), strict=True):
            chosen = tirx.if_then_else(index[axis] < end, part, chosen)
        return chosen

    return [te.compute(outputs[0].static_shape, element, name="concat")]


# slice -------------------------------------------------------------------------------------------------


def _slice_attrs(attrs: Attrs, rank: int) -> list[tuple[Dim, Dim, int]]:
    begin, end = dims(attrs, "begin", rank), dims(attrs, "end", rank)
    return list(zip(begin, end, integers(attrs, "strides", rank), strict=True))


def _infer_slice(types: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    (x,) = types
    shape: list[Dim] = []
    for dim, (begin, end, stride) in zip(x.shape, _slice_attrs(attrs, x.rank), strict=True):
        if stride == 0:
            raise TypeRuleError("`slice` stride is 0; it must be positive or negative")
        lowest = 0 if stride > 0 else -1
        if isinstance(dim, int) and isinstance(begin, int) and isinstance(end, int):
            highest = dim if stride > 0 else max(dim - 1, 0)
            if not (0 <= begin <= highest and lowest <= end <= dim):
                raise TypeRuleError(f"`slice` from {begin} to {end} leaves an axis of {dim}; clamp it before")
        span = end - begin if stride > 0 else begin - end
        length = (span + (abs(stride) - 1)) // abs(stride)
        shape.append(max(length, 0) if isinstance(length, int) else length)
    return [x.with_shape(tuple(shape))]


def _evaluate_slice(arrays: Sequence[Array], attrs: Attrs) -> list[Array]:
    (x,) = arrays
    cut = tuple(
        slice(begin, None if end == -1 and stride < 0 else end, stride)
        for begin, end, stride in _slice_attrs(attrs, x.ndim)
    )
    return [np.ascontiguousarray(x[cut]).reshape(x[cut].shape)]


def _compute_slice(inputs: Sequence[Tensor], attrs: Attrs, outputs: Sequence[TensorType]) -> list[Tensor]:
    (x,) = inputs
    steps = _slice_attrs(attrs, len(outputs[0].shape))

    def element(*index: Any) -> Any:
        return x(*(i * stride + begin for i, (begin, _, stride) in zip(index, steps, strict=True)))

    return [te.compute(outputs[0].static_shape, element, name="slice")]


# pad ---------------------------------------------------------------------------------------------------


def _infer_pad(types: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    (x,) = types
    padding, mode = dims(attrs, "padding", 2 * x.rank), one_of(attrs, "mode", PAD_MODES)
    number(attrs, "value")
    pairs = list(zip(padding[: x.rank], padding[x.rank :], strict=True))
    shape = tuple(d + b + e for d, (b, e) in zip(x.shape, pairs, strict=True))
    if any(isinstance(d, int) and d < 0 for d in shape):
        raise TypeRuleError(f"`pad` by {padding} cuts more than there is of {x}")
    empty = [a for a, d in enumerate(x.shape) if d == 0 and shape[a] != 0]
    if empty and mode != "constant":
        raise TypeRuleError(f"`pad` with mode {mode} has nothing to repeat on axis {empty[0]} of {x}")
    return [x.with_shape(shape)]


def _evaluate_pad(arrays: Sequence[Array], attrs: Attrs) -> list[Array]:
    (x,) = arrays
    padding, mode = integers(attrs, "padding", 2 * x.ndim), one_of(attrs, "mode", PAD_MODES)
    pairs = list(zip(padding[: x.ndim], padding[x.ndim :], strict=True))
    grown = [(max(b, 0), max(e, 0)) for b, e in pairs]
    if mode == "constant":
        value = np.asarray(number(attrs, "value")).astype(x.dtype)
        padded = np.pad(x, grown, constant_values=value[()])
    elif mode == "reflect":
        padded = np.pad(x, grown, mode="reflect")
    else:
        padded = np.pad(x, grown, mode="edge" if mode == "edge" else "wrap")
    cut = tuple(slice(max(-b, 0), d + min(e, 0)) for d, (b, e) in zip(padded.shape, pairs, strict=True))
    return [np.ascontiguousarray(padded[cut]).reshape(padded[cut].shape)]


def _compute_pad(inputs: Sequence[Tensor], attrs: Attrs, outputs: Sequence[TensorType]) -> list[Tensor]:
    (x,) = inputs
    source, shape = static_shape(x), outputs[0].static_shape
    begin, mode = integers(attrs, "padding")[: len(source)], one_of(attrs, "mode", PAD_MODES)
    value = number(attrs, "value")
    dtype = element_type(x)
    fill = tirx.const(value if dtype in REALS else bool(value) if dtype == "bool" else int(value), dtype)

    def element(*index: Any) -> Any:
        at = [i - b if b else i for i, b in zip(index, begin, strict=True)]
        axes = [a for a, b in enumerate(begin) if b > 0 or shape[a] - b > source[a]]
        if mode == "constant":
            if not axes:
                return x(*at)
            inside = [c for a in axes for c in (at[a] >= 0, at[a] < source[a])]
            return tirx.if_then_else(tirx.all(*inside), x(*at), fill)
        for a in axes:
            at[a] = _outside(at[a], source[a], mode)
        return x(*at)

    return [te.compute(shape, element, name="pad")]


def _outside(at: Any, extent: int, mode: str) -> Any:
    """The element that stands at `at`, which may lie before or after an axis of `extent`."""
    if mode == "edge" or extent == 1:
        return tirx.max(tirx.min(at, extent - 1), 0)
    if mode == "wrap":
        return tirx.floormod(at, extent)
    period = 2 * (extent - 1)
    folded = tirx.floormod(at, period)
    return tirx.min(folded, period - folded)


# broadcast_to, tile, trilu -----------------------------------------------------------------------------


def _infer_broadcast(types: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    shape = dims(attrs, "shape")
    if broadcast_shapes(types[0].shape, shape) != shape:
        raise TypeRuleError(f"`broadcast_to` cannot give {types[0]} the shape {shape}")
    return [types[0].with_shape(shape)]


def _evaluate_broadcast(arrays: Sequence[Array], attrs: Attrs) -> list[Array]:
    return [np.broadcast_to(arrays[0], integers(attrs, "shape")).copy()]


def _compute_broadcast(inputs: Sequence[Tensor], attrs: Attrs, outputs: Sequence[TensorType]) -> list[Tensor]:
    (x,) = inputs
    source = static_shape(x)

    def element(*index: Any) -> Any:
        return x(*broadcast_index(source, index))

    return [te.compute(outputs[0].static_shape, element, name="broadcast_to")]


def _infer_tile(types: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    repeats = dims(attrs, "repeats", types[0].rank)
    return [types[0].with_shape(tuple(d * r for d, r in zip(types[0].shape, repeats, strict=True)))]


def _evaluate_tile(arrays: Sequence[Array], attrs: Attrs) -> list[Array]:
    return [np.tile(arrays[0], integers(attrs, "repeats"))]


def _compute_tile(inputs: Sequence[Tensor], attrs: Attrs, outputs: Sequence[TensorType]) -> list[Tensor]:
    (x,) = inputs
    pairs = list(zip(static_shape(x), integers(attrs, "repeats"), strict=True))

    def element(*index: Any) -> Any:
        return x(*(i if r == 1 else i % d for i, (d, r) in zip(index, pairs, strict=True)))

    return [te.compute(outputs[0].static_shape, element, name="tile")]


def _infer_trilu(types: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    side, k = "upper" if flag(attrs, "upper") else "lower", integer(attrs, "k")
    if types[0].rank < 2:
        raise TypeRuleError(f"`trilu` takes matrices, not {types[0]} (the {side} part from diagonal {k})")
    return [types[0]]


def _evaluate_trilu(arrays: Sequence[Array], attrs: Attrs) -> list[Array]:
    part = np.triu if flag(attrs, "upper") else np.tril
    return [part(arrays[0], integer(attrs, "k"))]


def _compute_trilu(inputs: Sequence[Tensor], attrs: Attrs, outputs: Sequence[TensorType]) -> list[Tensor]:
    (x,), upper, k = inputs, flag(attrs, "upper"), integer(attrs, "k")

    def element(*index: Any) -> Any:
        above = index[-1] - index[-2]
        return tirx.Select(above >= k if upper else above <= k, x(*index), tirx.const(0, x.dtype))

    return [te.compute(outputs[0].static_shape, element, name="trilu")]


# memory ------------------------------------------------------------------------------------------------


def _reshape_aliases(
    types: Sequence[TensorType], attrs: Attrs, outputs: Sequence[TensorType]
) -> Sequence[Alias]:
    return (Alias(0, 0, 0),)


def _concat_aliases(
    types: Sequence[TensorType], attrs: Attrs, outputs: Sequence[TensorType]
) -> Sequence[Alias]:
    """Operands one behind the other: no axis of more than one element lies outside the joined one."""
    if prod(outputs[0].static_shape[: integer(attrs, "axis")]) != 1:
        return ()
    starts = accumulate((t.nbytes for t in types), initial=0)
    return [Alias(i, 0, start) for i, start in zip(range(len(types)), starts, strict=False)]


def _slice_aliases(
    types: Sequence[TensorType], attrs: Attrs, outputs: Sequence[TensorType]
) -> Sequence[Alias]:
    """A run of elements: whole axes inside the outermost one that is cut, single elements outside it."""
    (x,), (result,) = types, outputs
    cut = next((a for a, d in enumerate(result.static_shape) if d != 1), x.rank - 1)
    begins, strides = integers(attrs, "begin", x.rank), integers(attrs, "strides", x.rank)
    if result.static_shape[cut + 1 :] != x.static_shape[cut + 1 :]:
        return ()
    if any(stride != 1 and d > 1 for stride, d in zip(strides, result.static_shape, strict=True)):
        return ()
    offset = 0
    for begin, extent in zip(begins, x.static_shape, strict=True):
        offset = offset * extent + begin
    return (Alias(0, 0, offset * x.with_shape((1,)).nbytes),)


# declarations ------------------------------------------------------------------------------------------


def _sample(*shapes: tuple[int, ...], dtype: str = "float32", **attrs: Attr) -> Sample:
    return Sample(tuple(TensorType(s, dtype) for s in shapes), attrs)


declare(
    Op(
        name="reshape",
        infer=_infer_reshape,
        evaluate=_evaluate_reshape,
        compute=_compute_reshape,
        kind=FusionKind.VIEW,
        aliases=_reshape_aliases,
        attrs={"shape": REQUIRED},
        flops_per_element=0,
        samples=(
            _sample((2, 3, 4), shape=(6, 4)),
            _sample((2, 6), shape=(3, 1, 4), dtype="int64"),
            _sample((1, 1), shape=(), dtype="bool"),
            _sample((), shape=(1,), dtype="bfloat16"),
        ),
    )
)
declare(
    Op(
        name="transpose",
        infer=_infer_transpose,
        evaluate=_evaluate_transpose,
        compute=_compute_transpose,
        kind=FusionKind.MOVEMENT,
        attrs={"axes": REQUIRED},
        flops_per_element=0,
        samples=(
            _sample((2, 3, 4), axes=(2, 0, 1)),
            _sample((5, 6), axes=(1, 0), dtype="float16"),
            _sample((20, 36), axes=(1, 0), dtype="float8_e4m3fn"),
            _sample((2, 3, 4, 5), axes=(0, 2, 3, 1), dtype="int64"),
        ),
    )
)
declare(
    Op(
        name="concat",
        infer=_infer_concat,
        evaluate=_evaluate_concat,
        compute=_compute_concat,
        kind=FusionKind.MOVEMENT,
        attrs={"axis": REQUIRED},
        arity=(1, None),
        layout=LayoutRule.AXIS,
        aliases=_concat_aliases,
        flops_per_element=0,
        samples=(
            _sample((2, 3), (2, 1), (2, 4), axis=1),
            _sample((2, 3), (1, 3), axis=0, dtype="int64"),
            _sample((4,), axis=0, dtype="bfloat16"),
            _sample((3, 17), (3, 2), axis=1, dtype="float8_e5m2"),
            _sample((2, 0), (2, 3), axis=1),
        ),
    )
)
declare(
    Op(
        name="slice",
        infer=_infer_slice,
        evaluate=_evaluate_slice,
        compute=_compute_slice,
        kind=FusionKind.MOVEMENT,
        attrs={"begin": REQUIRED, "end": REQUIRED, "strides": REQUIRED},
        aliases=_slice_aliases,
        flops_per_element=0,
        samples=(
            _sample((5, 6), begin=(1, 2), end=(4, 6), strides=(1, 1)),
            _sample((7, 8), begin=(0, 7), end=(7, -1), strides=(3, -2)),
            _sample((7, 4), begin=(6, 3), end=(2, 0), strides=(-1, -1), dtype="int64"),
            _sample((9,), begin=(1,), end=(8,), strides=(3,), dtype="float16"),
        ),
    )
)
declare(
    Op(
        name="pad",
        infer=_infer_pad,
        evaluate=_evaluate_pad,
        compute=_compute_pad,
        kind=FusionKind.MOVEMENT,
        attrs={"padding": REQUIRED, "mode": "constant", "value": 0.0},
        flops_per_element=0,
        samples=(
            _sample((3, 4), padding=(1, 0, 2, 3), value=1.5),
            _sample((3, 4), padding=(-1, 2, 1, -2), value=-1.0),
            _sample((4, 5), padding=(1, 3, 2, 4), mode="reflect"),
            _sample((4, 5), padding=(6, 0, -1, 7), mode="reflect"),
            _sample((3, 4), padding=(2, 1, 0, 5), mode="edge"),
            _sample((3, 4), padding=(5, -1, 1, 9), mode="wrap"),
            _sample((3, 4), padding=(1, 1, 0, 0), value=7.0, dtype="int64"),
            _sample((3, 2), padding=(0, 1, 1, 0), value=0.5, dtype="bfloat16"),
            _sample((3, 21), padding=(0, 1, 1, 0), value=0.5, dtype="float8_e4m3fn"),
        ),
    )
)
declare(
    Op(
        name="broadcast_to",
        infer=_infer_broadcast,
        evaluate=_evaluate_broadcast,
        compute=_compute_broadcast,
        kind=FusionKind.MOVEMENT,
        attrs={"shape": REQUIRED},
        flops_per_element=0,
        samples=(
            _sample((3, 1), shape=(2, 3, 4)),
            _sample((), shape=(2, 2), dtype="int64"),
            _sample((4,), shape=(3, 4), dtype="float16"),
        ),
    )
)
declare(
    Op(
        name="tile",
        infer=_infer_tile,
        evaluate=_evaluate_tile,
        compute=_compute_tile,
        kind=FusionKind.MOVEMENT,
        attrs={"repeats": REQUIRED},
        flops_per_element=0,
        samples=(
            _sample((2, 3), repeats=(2, 1)),
            _sample((2, 3, 2), repeats=(1, 3, 2), dtype="int64"),
        ),
    )
)
declare(
    Op(
        name="trilu",
        infer=_infer_trilu,
        evaluate=_evaluate_trilu,
        compute=_compute_trilu,
        kind=FusionKind.MOVEMENT,
        attrs={"upper": True, "k": 0},
        flops_per_element=0,
        samples=(
            _sample((4, 5)),
            _sample((2, 5, 4), upper=False, k=-1),
            _sample((3, 3), upper=True, k=2, dtype="int64"),
            _sample((3, 3), upper=False, dtype="float16"),
        ),
    )
)
