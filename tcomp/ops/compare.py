"""Comparisons, logic, tests for special values, and selection, elementwise with numpy broadcasting."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tcomp.errors import TypeRuleError
from tcomp.ops.pointwise import ANY, BOOL, NUMBERS, Expression, Pointwise, declare_pointwise, pointwise
from tcomp.ops.shapes import broadcast_shapes
from tcomp.relay.graph import Attrs
from tcomp.relay.op import FusionKind, LayoutRule, Op, Sample, declare
from tcomp.relay.types import FLOATS, Array, TensorType
from tcomp.tensor.math import dtype_of, is_nan
from tcomp.tvm_api import Tensor, tirx


def _comparable(x: Expression) -> Expression:
    # LLVM compares booleans as numbers only; bfloat16 compares as float32
    return x.astype({"bool": "int8", "bfloat16": "float32"}.get(dtype_of(x), dtype_of(x)))


def _equal(a: Expression, b: Expression) -> Expression:
    return tirx.EQ(_comparable(a), _comparable(b))


def _not_equal(a: Expression, b: Expression) -> Expression:
    return tirx.NE(_comparable(a), _comparable(b))


def _is_infinite_reference(x: Array, detect_negative: bool, detect_positive: bool) -> npt.ArrayLike:
    return (np.isposinf(x) & detect_positive) | (np.isneginf(x) & detect_negative)


def _is_infinite(x: Expression, detect_negative: bool, detect_positive: bool) -> Expression:
    dtype = dtype_of(x)
    infinity = tirx.infinity(dtype)
    if detect_negative and detect_positive:
        return tirx.EQ(tirx.abs(x), infinity)
    if detect_positive:
        return tirx.EQ(x, infinity)
    return tirx.EQ(x, -infinity) if detect_negative else tirx.const(False, "bool")


_SPECIAL = {0: np.array([[1.0, np.inf, -np.inf, np.nan, 0.0, -2.5]], "float32")}
_SPECIAL_TYPE = (TensorType((1, 6)),)

for _row in (
    Pointwise("equal", np.equal, _equal, ANY, 2, "bool", commutative=True, wide=False),
    Pointwise("not_equal", np.not_equal, _not_equal, ANY, 2, "bool", commutative=True, wide=False),
    Pointwise("less", np.less, tirx.LT, NUMBERS, 2, "bool"),
    Pointwise("less_equal", np.less_equal, tirx.LE, NUMBERS, 2, "bool"),
    Pointwise("greater", np.greater, tirx.GT, NUMBERS, 2, "bool"),
    Pointwise("greater_equal", np.greater_equal, tirx.GE, NUMBERS, 2, "bool"),
    Pointwise("logical_and", np.logical_and, tirx.all, BOOL, 2, commutative=True),
    Pointwise("logical_or", np.logical_or, tirx.any, BOOL, 2, commutative=True),
    Pointwise("logical_xor", np.logical_xor, _not_equal, BOOL, 2, commutative=True),
    Pointwise("logical_not", np.logical_not, tirx.Not, BOOL),
    Pointwise(
        "is_nan",
        np.isnan,
        is_nan,
        FLOATS,
        result="bool",
        samples=(Sample(_SPECIAL_TYPE, inputs=_SPECIAL),),
    ),
    Pointwise(
        "is_inf",
        _is_infinite_reference,
        _is_infinite,
        FLOATS,
        result="bool",
        attrs={"detect_negative": True, "detect_positive": True},
        samples=(
            Sample(_SPECIAL_TYPE, inputs=_SPECIAL),
            Sample(_SPECIAL_TYPE, {"detect_negative": False}, inputs=_SPECIAL),
            Sample(_SPECIAL_TYPE, {"detect_positive": False}, inputs=_SPECIAL),
        ),
    ),
):
    declare_pointwise(_row)


def _infer_where(types: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    condition, a, b = types
    if condition.dtype != "bool":
        raise TypeRuleError(f"`where` takes a bool condition, not {condition.dtype}; insert a cast")
    if a.dtype != b.dtype:
        raise TypeRuleError(f"`where` chooses between {a.dtype} and {b.dtype}; insert a cast")
    return [TensorType(broadcast_shapes(condition.shape, a.shape, b.shape), a.dtype)]


def _evaluate_where(arrays: Sequence[Array], attrs: Attrs) -> list[Array]:
    return [np.where(*arrays)]


def _compute_where(inputs: Sequence[Tensor], attrs: Attrs, outputs: Sequence[TensorType]) -> list[Tensor]:
    return [pointwise("where", inputs, outputs[0], tirx.Select)]


def _where_sample(dtype: str, *shapes: tuple[int, ...]) -> Sample:
    condition, a, b = shapes
    return Sample((TensorType(condition, "bool"), TensorType(a, dtype), TensorType(b, dtype)), rtol=0, atol=0)


declare(
    Op(
        name="where",
        infer=_infer_where,
        evaluate=_evaluate_where,
        compute=_compute_where,
        kind=FusionKind.ELEMENTWISE,
        arity=(3, 3),
        layout=LayoutRule.ELEMENTWISE,
        zero_is_finite=True,
        samples=(
            _where_sample("float32", (2, 3, 20), (20,), (3, 1)),
            _where_sample("float32", (4, 1, 16), (4, 8, 16), ()),
            _where_sample("int64", (33,), (33,), (1,)),
            _where_sample("bfloat16", (33,), (33,), (33,)),
            _where_sample("float8_e4m3fn", (33,), (33,), ()),
        ),
    )
)
