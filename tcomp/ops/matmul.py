"""Matrix multiplication with numpy's semantics.

`out_dtype` names another element type of the result: products of half-precision operands, summed in
float32, may stay float32, and those of int8, summed in int32, may stay int32. Without it the result has the
operands' type.

`multiply_as` lets kernels round the operands to a narrower type where they multiply them: tf32 or bfloat16
for float32.
The reference does.

`strassen` lets them multiply sums of elements by Strassen's algorithm, whose errors are relative to the
largest elements of other rows and columns too. The reference does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tcomp.errors import TypeRuleError
from tcomp.ops.shapes import (
    broadcast_index,
    broadcast_shapes,
    cast_tensor,
    check_factors,
    factors,
    out_dtype,
    product_dtype,
    same_dtype,
    static_shape,
    summed,
)
from tcomp.relay.attributes import flag
from tcomp.relay.dims import Dim
from tcomp.relay.graph import Attr, Attrs
from tcomp.relay.op import Cost, FusionKind, Op, Sample, declare
from tcomp.relay.types import Array, TensorType, type_of
from tcomp.tvm_api import Tensor, te


def _infer(types: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    dtype = same_dtype("matmul", types)
    if dtype == "bool" or min(t.rank for t in types) == 0:
        raise TypeRuleError("`matmul` takes numeric operands of rank 1 or more")
    a, b = (_swapped(t.shape, flag(attrs, name)) for t, name in zip(types, _TRANSPOSES, strict=True))
    a_columns, b_rows = a[-1], b[-2:][0]
    if a_columns != b_rows:
        raise TypeRuleError(f"`matmul` contracts {a_columns} columns with {b_rows} rows; they must be equal")
    batch = broadcast_shapes(a[:-2], b[:-2])
    result = out_dtype("matmul", dtype, attrs)
    check_factors("matmul", dtype, attrs)
    return [TensorType((*batch, *a[-2:-1], *(b[-1:] if len(b) > 1 else ())), result)]


_TRANSPOSES = ("transpose_a", "transpose_b")


def _swapped(shape: tuple[Dim, ...], transpose: bool) -> tuple[Dim, ...]:
    if transpose and len(shape) < 2:
        raise TypeRuleError("`matmul` cannot transpose an operand of rank 1")
    return (*shape[:-2], shape[-1], shape[-2]) if transpose else shape


def _evaluate(arrays: Sequence[Array], attrs: Attrs) -> list[Array]:
    a, b = (
        np.swapaxes(x, -1, -2) if flag(attrs, name) else x
        for x, name in zip(factors(arrays, attrs), _TRANSPOSES, strict=True)
    )
    result = out_dtype("matmul", type_of(arrays[0]).dtype, attrs)
    return [summed(np.asarray(np.matmul(a, b)), result)]


def _compute(inputs: Sequence[Tensor], attrs: Attrs, outputs: Sequence[TensorType]) -> list[Tensor]:
    a, b = inputs
    transpose_a, transpose_b = (flag(attrs, name) for name in _TRANSPOSES)
    a_shape, b_shape = static_shape(a), static_shape(b)
    a_rank, b_rank = len(a_shape), len(b_shape)
    wide = product_dtype(str(a.dtype))
    depth = te.reduce_axis((0, a_shape[-2 if transpose_a else -1]), name="k")

    def product(*index: Any) -> Any:
        left = list(index)
        column = (left.pop(),) if b_rank > 1 else ()
        row = (left.pop(),) if a_rank > 1 else ()
        a_matrix = (depth, *row) if transpose_a else (*row, depth)
        b_matrix = (*column, depth) if transpose_b else (depth, *column)
        a_element = a(*broadcast_index(a_shape[:-2], left), *a_matrix)
        b_element = b(*broadcast_index(b_shape[:-2], left), *b_matrix)
        return te.sum(a_element.astype(wide) * b_element.astype(wide), axis=depth)

    result = te.compute(outputs[0].static_shape, product, name="matmul")
    return [cast_tensor(result, outputs[0].dtype)]


def _cost(inputs: Sequence[TensorType], attrs: Attrs, outputs: Sequence[TensorType]) -> Cost:
    depth = inputs[0].static_shape[-2 if flag(attrs, "transpose_a") else -1]
    elements = int(np.prod(outputs[0].static_shape, dtype=np.int64))
    return Cost(2 * depth * elements, sum(t.nbytes for t in (*inputs, *outputs)))


def _sample(
    a: tuple[int, ...], b: tuple[int, ...], dtype: str = "float32", tolerance: float = 1e-5, **attrs: Attr
) -> Sample:
    return Sample((TensorType(a, dtype), TensorType(b, dtype)), attrs, rtol=tolerance, atol=tolerance)


declare(
    Op(
        name="matmul",
        infer=_infer,
        evaluate=_evaluate,
        compute=_compute,
        kind=FusionKind.CONTRACTION,
        takes_movement=True,
        attrs={
            "transpose_a": False,
            "transpose_b": False,
            "out_dtype": "",
            "multiply_as": "",
            "strassen": False,
        },
        arity=(2, 2),
        cost=_cost,
        samples=(
            _sample((5, 7), (7, 9)),
            _sample((7, 5), (9, 7), transpose_a=True, transpose_b=True),
            _sample((2, 1, 4, 6), (3, 6, 8)),
            _sample((2, 3, 4, 6), (3, 8, 6), transpose_b=True),
            _sample((6,), (6,)),
            _sample((6,), (2, 6, 3)),
            _sample((2, 5, 6), (6,)),
            _sample((4, 8), (8, 4), "float64"),
            _sample((4, 8), (8, 4), "int64"),
            _sample((4, 32), (32, 6), "float16", 2e-3),
            _sample((4, 32), (32, 6), "bfloat16", 2e-2),
            _sample((20, 48), (48, 40), "float16", 4e-3, out_dtype="float32"),
            _sample((20, 48), (48, 40), "bfloat16", 1e-5, out_dtype="float32"),
            _sample((20, 50), (50, 40), "int8", 0.0, out_dtype="int32"),
            _sample((20, 50), (50, 40), "float8_e4m3fn", 1e-5, out_dtype="float32"),
            _sample((20, 48), (48, 40), "float8_e5m2", 1e-5, out_dtype="float32"),
            _sample((20, 48), (48, 40), tolerance=2e-2, multiply_as="tf32"),
        ),
    )
)
