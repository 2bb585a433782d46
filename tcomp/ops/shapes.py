"""Shape arithmetic and element-type rules that operator declarations share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tcomp.errors import TypeRuleError
from tcomp.relay.attributes import text
from tcomp.relay.dims import Dim
from tcomp.relay.graph import Attrs
from tcomp.relay.types import FACTORS, SUMMED_AS, Array, TensorType, numpy_dtype, rounded_to_tf32, type_of
from tcomp.tvm_api import Tensor, te


def broadcast_shapes(*shapes: Sequence[Dim]) -> tuple[Dim, ...]:
    """The shape that numpy broadcasting gives.

    Raises TypeRuleError when two dimensions differ and neither is 1; symbols equal only themselves.
    """
    rank = max((len(s) for s in shapes), default=0)
    result: list[Dim] = [1] * rank
    for shape in shapes:
        for axis, dim in enumerate(shape, start=rank - len(shape)):
            if result[axis] == 1:
                result[axis] = dim
            elif dim not in (1, result[axis]):
                text = " and ".join(f"[{','.join(map(str, s))}]" for s in shapes)
                raise TypeRuleError(f"shapes {text} do not broadcast")
    return tuple(result)


def broadcast_index(shape: Sequence[int], index: Sequence[Any]) -> tuple[Any, ...]:
    """Where element `index` of a broadcast result lies in an operand of static `shape`."""
    own = index[len(index) - len(shape) :]
    return tuple(0 if extent == 1 else at for extent, at in zip(shape, own, strict=True))


def same_dtype(op: str, types: Sequence[TensorType]) -> str:
    """The one element type of all operands."""
    for other in types[1:]:
        if other.dtype != types[0].dtype:
            raise TypeRuleError(f"`{op}` takes operands of one element type; insert a cast")
    return types[0].dtype


def check_axis(op: str, axis: int, rank: int) -> int:
    """`axis` when it is in [0, rank)."""
    if not 0 <= axis < rank:
        raise TypeRuleError(f"`{op}`: axis is {axis}; it must be at least 0 and below the rank, {rank}")
    return axis


def accumulator(dtype: str) -> str:
    """The element type in which sums of `dtype` products are kept."""
    return SUMMED_AS.get(dtype, dtype)


def product_dtype(dtype: str) -> str:
    """The element type in which products of two `dtype` matrices or images are summed."""
    return "int32" if dtype == "int8" else accumulator(dtype)


def out_dtype(op: str, dtype: str, attrs: Attrs) -> str:
    """The result's element type: attribute `out_dtype`, or that of the operands.

    Raises TypeRuleError unless it is theirs or the one in which their products are summed.
    """
    chosen = text(attrs, "out_dtype") or dtype
    if chosen not in (dtype, product_dtype(dtype)):
        raise TypeRuleError(
            f"`{op}`: out_dtype is {chosen}; products of {dtype} give {dtype} or {product_dtype(dtype)}"
        )
    return chosen


def check_factors(op: str, dtype: str, attrs: Attrs) -> None:
    """Raise TypeRuleError unless attribute `multiply_as` names what operands of `dtype` can be rounded to."""
    chosen = text(attrs, "multiply_as")
    if chosen and FACTORS.get(chosen) != dtype:
        known = " or ".join(f"{name} for {stored}" for name, stored in FACTORS.items())
        raise TypeRuleError(f"`{op}`: multiply_as is {chosen}, operands are {dtype}; it can be {known}")


def factors(arrays: Sequence[Array], attrs: Attrs) -> list[Array]:
    """Operands of a product as it multiplies them, in the element type of `exact`."""
    return [exact(_rounded(a, text(attrs, "multiply_as"))) for a in arrays]


def _rounded(array: Array, dtype: str) -> Array:
    """`array` with the numbers of `dtype`, one of `FACTORS`, that are nearest; itself where that is empty."""
    if not dtype:
        return array
    return rounded_to_tf32(array) if dtype == "tf32" else array.astype(numpy_dtype(dtype))


def widened(array: Array) -> Array:
    """`array` in the element type in which sums of its products are kept."""
    return array.astype(numpy_dtype(accumulator(type_of(array).dtype)), copy=False)


def exact(array: Array) -> Array:
    """`array` in the element type in which the reference sums products: float64 for floats and int8.

    Sums of int8 products need no rounding there, and numpy's linear algebra is fast.

    A reference that rounds like what it judges cannot tell which of the two is off. And models that amplify
    rounding, such as those whose weights are all equal, would depend on numpy's linear algebra library.
    """
    wide = widened(array)
    return wide.astype(np.float64) if wide.dtype.kind == "f" or wide.dtype == np.int8 else wide


def summed(total: Array, dtype: str) -> Array:
    """Sums of `exact` products as `dtype`; integers wrap around."""
    wide = total.astype(np.int64) if numpy_dtype(dtype).kind in "iu" else total
    return wide.astype(numpy_dtype(dtype))


def static_shape(tensor: Tensor) -> tuple[int, ...]:
    """A tensor expression's shape as integers."""
    return tuple(int(extent) for extent in tensor.shape)


def element_type(tensor: Tensor) -> str:
    """A tensor expression's element type."""
    return str(tensor.dtype)


def cast_tensor(tensor: Tensor, dtype: str, name: str = "cast") -> Tensor:
    """`tensor` with elements converted to `dtype`; itself when they are of it already."""
    if tensor.dtype == dtype:
        return tensor

    def element(*index: Any) -> Any:
        return tensor(*index).astype(dtype)

    return te.compute(tensor.shape, element, name=name)
