"""Numbers that stand for others: `(x - zero) * scale`.

`dequantize` stays one operator until a pass has seen which products take quantized operands; the pass
`lower-quantized` writes what is left of it as a cast, a subtraction and a multiplication.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tcomp.errors import TypeRuleError
from tcomp.ops.shapes import broadcast_shapes, widened
from tcomp.relay.graph import Attrs
from tcomp.relay.op import FusionKind, Op, Sample, declare
from tcomp.relay.types import FLOATS, Array, TensorType


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
