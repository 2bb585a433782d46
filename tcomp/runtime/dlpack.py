"""What a DLPack capsule says of an array in a GPU's memory.

Source: DLPack's `dlpack.h`, version 1.1, and the Python array API standard, `array.__dlpack__`.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

from tcomp.runtime.library import numpy_dtype

_ON_CUDA = (2, 13)
"""`kDLCUDA`, and `kDLCUDAManaged`."""
_CODES = {
    (0, 8): "int8", (0, 16): "int16", (0, 32): "int32", (0, 64): "int64",
    (1, 8): "uint8", (1, 16): "uint16", (1, 32): "uint32", (1, 64): "uint64",
    (2, 16): "float16", (2, 32): "float32", (2, 64): "float64",
    (4, 16): "bfloat16", (6, 8): "bool", (10, 8): "float8_e4m3fn", (12, 8): "float8_e5m2",
}  # fmt: skip
_UNSYNCHRONIZED = -1
_NAME = b"dltensor"


class _Tensor(ctypes.Structure):
    """`DLTensor`."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


@dataclass(frozen=True)
class OnCuda:
    """An array in the memory of a CUDA device. `capsule` keeps it there; strides, if any, are in elements."""

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    dtype: np.dtype[Any]
    capsule: Any


def is_on_cuda(value: Any) -> bool:
    """Whether `value` offers DLPack of a CUDA device's memory."""
    if not (hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__")):
        return False
    return int(value.__dlpack_device__()[0]) in _ON_CUDA


def read_capsule(value: Any) -> OnCuda:
    """What `value`, which `is_on_cuda`, holds; nothing waits for work on it.

    Raises TypeError for an element type that tcomp has none of, and what its library raises.
    """
    capsule = value.__dlpack__(stream=_UNSYNCHRONIZED)
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    tensor = _Tensor.from_address(get_pointer(capsule, _NAME))
    name = _CODES.get((tensor.code, tensor.bits))
    if name is None or tensor.lanes != 1:
        raise TypeError(
            f"elements of DLPack's type {tensor.code} with {tensor.bits} bits, {tensor.lanes} lanes"
        )
    return OnCuda(
        (tensor.data or 0) + tensor.byte_offset,
        tuple(tensor.shape[: tensor.ndim]),
        tuple(tensor.strides[: tensor.ndim]) if tensor.strides else None,
        numpy_dtype(name),
        capsule,
    )
