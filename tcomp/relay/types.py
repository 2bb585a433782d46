"""Tensor types: an element type and a shape of `Dim`s."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import ml_dtypes
import numpy as np
import numpy.typing as npt

from tcomp.errors import GraphError
from tcomp.relay.dims import Dim, is_static, product, substitute

Array = npt.NDArray[Any]

_NUMPY: dict[str, np.dtype[Any]] = {
    name: np.dtype(name)
    for name in (
        "float16", "float32", "float64", "int8", "int16", "int32", "int64",
        "uint8", "uint16", "uint32", "uint64", "bool",
    )
}  # fmt: skip
FLOAT8 = ("float8_e4m3fn", "float8_e5m2")
"""Floats of 8 bits, by their bits of exponent and mantissa: Micikevicius et al., "FP8 Formats for Deep
Learning", 2022. e4m3fn has no infinity. They are stored, moved, converted and multiplied; no other arithmetic
takes them."""
_NUMPY.update((name, np.dtype(getattr(ml_dtypes, name))) for name in ("bfloat16", *FLOAT8))
BITS: Mapping[str, str] = {"bfloat16": "uint16"} | dict.fromkeys(FLOAT8, "uint8")
"""Element types that neither numpy nor TVM knows well, and those of their bits."""
DTYPES = tuple(_NUMPY)
FLOATS = ("float16", "bfloat16", "float32", "float64")
"""Floats that all arithmetic takes."""
REALS = FLOATS + FLOAT8
SUMMED_AS: Mapping[str, str] = dict.fromkeys(("float16", "bfloat16", *FLOAT8), "float32")
"""Floats of which sums are kept in another type."""
SIGNED_INTEGERS = ("int8", "int16", "int32", "int64")
UNSIGNED_INTEGERS = ("uint8", "uint16", "uint32", "uint64")
INTEGERS = SIGNED_INTEGERS + UNSIGNED_INTEGERS
SHORT_NAMES = {
    "float16": "f16", "bfloat16": "bf16", "float32": "f32", "float64": "f64", "bool": "bool",
    "int8": "i8", "int16": "i16", "int32": "i32", "int64": "i64",
    "uint8": "u8", "uint16": "u16", "uint32": "u32", "uint64": "u64",
    "float8_e4m3fn": "f8e4m3fn", "float8_e5m2": "f8e5m2",
}  # fmt: skip


ROUNDED = {"tf32": "float32"}
"""Types of no tensor that products may round their operands to, and the element types that hold these.

tf32 is float32 with 10 bits of mantissa, what tensor cores multiply.
"""
FACTORS = {**ROUNDED, "bfloat16": "float32"}
"""All types that products may round their operands to, and the element types of those operands."""


def stored_as(dtype: str) -> str:
    """The element type that holds numbers of `dtype`, which may be one of `ROUNDED`."""
    return ROUNDED.get(dtype, dtype)


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """The numpy dtype called `dtype`; those that numpy lacks are of ml_dtypes."""
    try:
        return _NUMPY[dtype]
    except KeyError:
        raise GraphError(f"unsupported element type `{dtype}`; one of {', '.join(DTYPES)}") from None


@dataclass(frozen=True)
class TensorType:
    """`dtype[shape]`; `f32[batch,3,224,224]` in text."""

    shape: tuple[Dim, ...]
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in _NUMPY:
            numpy_dtype(self.dtype)

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def is_static(self) -> bool:
        return is_static(self.shape)

    @property
    def static_shape(self) -> tuple[int, ...]:
        """The shape as integers.

        Raises GraphError when a dimension is symbolic.
        """
        shape = tuple(d for d in self.shape if isinstance(d, int))
        if len(shape) != len(self.shape):
            raise GraphError(f"{self} has a symbolic dimension where numbers are needed; give --input-shape")
        return shape

    @property
    def size(self) -> Dim:
        """Number of elements."""
        return product(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of a dense tensor of this static type."""
        return int(np.prod(self.static_shape, dtype=np.int64)) * numpy_dtype(self.dtype).itemsize

    def with_shape(self, shape: tuple[Dim, ...]) -> TensorType:
        return TensorType(shape, self.dtype)

    def with_dtype(self, dtype: str) -> TensorType:
        return TensorType(self.shape, dtype)

    def substitute(self, values: Mapping[str, Dim]) -> TensorType:
        return TensorType(tuple(substitute(d, values) for d in self.shape), self.dtype)

    def __str__(self) -> str:
        return f"{SHORT_NAMES[self.dtype]}[{','.join(str(d) for d in self.shape)}]"


def rounded_to_tf32(array: Array) -> Array:
    """float32 numbers as the nearest of tf32, of two that are equally near the larger one."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    near = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(array), near, bits).view(np.float32)


def dtype_of(array: Array) -> str:
    """The element type's name, which numpy and ml_dtypes give as `dtype.name`."""
    return str(cast(Any, array.dtype).name)


def type_of(array: Array) -> TensorType:
    """The type of a numpy array."""
    return TensorType(tuple(int(d) for d in array.shape), dtype_of(array))
