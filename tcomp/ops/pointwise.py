"""The declaration of an elementwise operator as one row: numpy function, tensor expression, type rule.

Half-precision operands are computed in float32 and rounded once per operator, in numpy as in kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tcomp.errors import TypeRuleError
from tcomp.ops.shapes import accumulator, broadcast_index, broadcast_shapes, static_shape
from tcomp.relay.attributes import text
from tcomp.relay.graph import Attr, Attrs
from tcomp.relay.op import FusionKind, LayoutRule, Op, Sample, declare
from tcomp.relay.types import FLOATS, INTEGERS, SIGNED_INTEGERS, Array, TensorType, numpy_dtype, type_of
from tcomp.tensor.math import Expression, dtype_of
from tcomp.tvm_api import Tensor, te

NUMBERS = FLOATS + INTEGERS
SIGNED = FLOATS + SIGNED_INTEGERS
BOOL = ("bool",)
ANY = NUMBERS + BOOL

SAME = "same"
"""Result rule: the element type of the operands."""


@dataclass(frozen=True)
class Pointwise:
    """One elementwise operator.

    - `reference` and `expression` take the operands (arrays, or one element each) and the attributes;
      half-precision operands reach both as float32.
    - `dtypes`: element types of the operands; `mixed` leaves each operand its own among them.
    - `result`: `SAME`, an element type, or the name of the attribute that holds one, as `@dtype`.
    - `low`, `high`: range of random values that the samples use; `special` are samples beside these.
    """

    name: str
    reference: Callable[..., Any]
    expression: Callable[..., Expression]
    dtypes: tuple[str, ...] = FLOATS
    operands: int = 1
    result: str = SAME
    attrs: Mapping[str, Attr] = field(default_factory=dict[str, Attr])
    zero_is_finite: bool = True
    flops: int = 1
    commutative: bool = False
    low: float = -2.0
    high: float = 2.0
    samples: tuple[Sample, ...] = ()
    special: tuple[Sample, ...] = ()
    rtol: float = 1e-5
    wide: bool = True
    """Whether half-precision operands are widened; False for what only looks at or moves bits."""


def declare_pointwise(row: Pointwise) -> None:
    """Register the operator that `row` describes."""

    def infer(types: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
        dtype = _operand_dtype(row, types)
        if row.result.startswith("@"):
            dtype = text(attrs, row.result[1:])
        elif row.result != SAME:
            dtype = row.result
        return [TensorType(broadcast_shapes(*(t.shape for t in types)), dtype)]

    def evaluate(arrays: Sequence[Array], attrs: Attrs) -> list[Array]:
        dtype = type_of(arrays[0]).dtype
        if row.result != SAME:
            dtype = text(attrs, row.result[1:]) if row.result.startswith("@") else row.result
        operands = (
            [a.astype(accumulator(type_of(a).dtype), copy=False) for a in arrays] if row.wide else arrays
        )
        return [np.asarray(row.reference(*operands, **attrs)).astype(numpy_dtype(dtype), copy=False)]

    def compute(inputs: Sequence[Tensor], attrs: Attrs, outputs: Sequence[TensorType]) -> list[Tensor]:
        def element(*operands: Expression) -> Expression:
            wide = [x.astype(accumulator(dtype_of(x))) for x in operands] if row.wide else operands
            return row.expression(*wide, **attrs)

        return [pointwise(row.name, inputs, outputs[0], element)]

    declare(
        Op(
            name=row.name,
            infer=infer,
            evaluate=evaluate,
            compute=compute,
            kind=FusionKind.ELEMENTWISE,
            attrs=row.attrs,
            arity=(row.operands, row.operands),
            layout=LayoutRule.ELEMENTWISE,
            zero_is_finite=row.zero_is_finite,
            commutative=row.commutative,
            flops_per_element=row.flops,
            samples=(row.samples or _default_samples(row)) + row.special,
        )
    )


def pointwise(
    name: str, inputs: Sequence[Tensor], result: TensorType, element: Callable[..., Expression]
) -> Tensor:
    """The tensor of `result` type whose elements are `element(one element of each input)`, broadcast."""
    shapes = [static_shape(x) for x in inputs]

    def at(*index: Any) -> Expression:
        operands = [x(*broadcast_index(s, index)) for x, s in zip(inputs, shapes, strict=True)]
        return element(*operands).astype(result.dtype)

    return te.compute(result.static_shape, at, name=name)


def _operand_dtype(row: Pointwise, types: Sequence[TensorType]) -> str:
    for operand in types:
        if operand.dtype not in row.dtypes:
            raise TypeRuleError(
                f"`{row.name}` does not take {operand.dtype} operands; it takes {', '.join(row.dtypes)}"
            )
        if operand.dtype != types[0].dtype:
            raise TypeRuleError(f"`{row.name}` takes operands of one element type; insert a cast")
    return types[0].dtype


_SHAPES = {1: ((3, 37),), 2: ((2, 3, 20), (3, 1)), 3: ((2, 3, 20), (20,), (3, 1))}
_SCALAR_SHAPES = {1: ((2, 64),), 2: ((5, 16), ()), 3: ((5, 16), (), (5, 1))}


def _default_samples(row: Pointwise) -> tuple[Sample, ...]:
    """float32 with broadcasting and odd sizes, half precision with a scalar, an integer, booleans."""
    samples: list[Sample] = []
    for dtype, shapes, tolerance in (
        ("float32", _SHAPES, row.rtol),
        ("float16", _SCALAR_SHAPES, 2e-3),
        ("bfloat16", _SCALAR_SHAPES, 1e-2),
        ("int32", _SCALAR_SHAPES, 0.0),
        ("bool", _SHAPES, 0.0),
    ):
        if dtype not in row.dtypes or (dtype == "bfloat16" and "int32" in row.dtypes):
            continue
        types = tuple(TensorType(s, dtype) for s in shapes[row.operands])
        samples.append(Sample(types, _sample_attrs(row), row.low, row.high, rtol=tolerance, atol=tolerance))
    return tuple(samples)


def _sample_attrs(row: Pointwise) -> dict[str, Attr]:
    return dict(row.attrs)
