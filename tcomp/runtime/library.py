"""The C interface of an artifact (tcomp.h) through ctypes."""

from __future__ import annotations

import ctypes
import math
import platform
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ml_dtypes
import numpy as np

from tcomp.errors import ArtifactError
from tcomp.runtime.stamp import check_stamp

DTYPES = (
    "float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64",
    "uint8", "uint16", "uint32", "uint64", "bool", "float8_e4m3fn", "float8_e5m2",
)  # fmt: skip
"""Element types by their number in `tcomp_dtype`."""


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """The numpy dtype called `dtype`; those that numpy lacks are of ml_dtypes."""
    return np.dtype(getattr(ml_dtypes, dtype, dtype))


class CTensor(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("dtype", ctypes.c_int),
        ("rank", ctypes.c_int32),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("bytes", ctypes.c_size_t),
    )


class CBuffer(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("bytes", ctypes.c_size_t))


class COptions(ctypes.Structure):
    _fields_ = (
        ("struct_bytes", ctypes.c_size_t),
        ("threads", ctypes.c_int32),
        ("weights_path", ctypes.c_char_p),
        ("weights", ctypes.c_void_p),
        ("weights_bytes", ctypes.c_size_t),
        ("allocate", ctypes.c_void_p),
        ("release", ctypes.c_void_p),
        ("allocator_user", ctypes.c_void_p),
        ("parallel", ctypes.c_void_p),
        ("parallel_user", ctypes.c_void_p),
        ("cpus", ctypes.c_int32),
        ("trust_weights", ctypes.c_int32),
        ("cpu_mask", ctypes.c_uint64),
        ("cancelled", ctypes.c_void_p),
        ("cancelled_user", ctypes.c_void_p),
        ("variant", ctypes.c_char_p),
        *((("reserved", ctypes.c_int32),) if ctypes.sizeof(ctypes.c_void_p) == 4 else ()),
        ("share_with", ctypes.c_void_p),
    )


_CONTEXT = ctypes.c_void_p
_BUFFERS = (_CONTEXT, ctypes.POINTER(CBuffer), ctypes.c_int32, ctypes.POINTER(CBuffer), ctypes.c_int32)
_FUNCTIONS: dict[str, tuple[object, tuple[object, ...]]] = {
    "tcomp_model_name": (ctypes.c_char_p, ()),
    "tcomp_target": (ctypes.c_char_p, ()),
    "tcomp_features": (ctypes.c_char_p, ()),
    "tcomp_arena_bytes": (ctypes.c_size_t, ()),
    "tcomp_weights_bytes": (ctypes.c_size_t, ()),
    "tcomp_weights_embedded": (ctypes.c_int32, ()),
    "tcomp_input_count": (ctypes.c_int32, ()),
    "tcomp_output_count": (ctypes.c_int32, ()),
    "tcomp_input": (ctypes.POINTER(CTensor), (ctypes.c_int32,)),
    "tcomp_output": (ctypes.POINTER(CTensor), (ctypes.c_int32,)),
    "tcomp_step_count": (ctypes.c_int32, ()),
    "tcomp_step_label": (ctypes.c_char_p, (ctypes.c_int32,)),
    "tcomp_create": (ctypes.c_int, (ctypes.POINTER(COptions), ctypes.POINTER(_CONTEXT))),
    "tcomp_variant": (ctypes.c_char_p, (_CONTEXT,)),
    "tcomp_run": (ctypes.c_int, _BUFFERS),
    "tcomp_enqueue": (ctypes.c_int, (*_BUFFERS, ctypes.c_void_p)),
    "tcomp_profile": (ctypes.c_int, (*_BUFFERS, ctypes.POINTER(ctypes.c_uint64), ctypes.c_int32)),
    "tcomp_set_threads": (ctypes.c_int, (_CONTEXT, ctypes.c_int32)),
    "tcomp_threads": (ctypes.c_int32, (_CONTEXT,)),
    "tcomp_error": (ctypes.c_char_p, (_CONTEXT,)),
    "tcomp_destroy": (None, (_CONTEXT,)),
}


@dataclass(frozen=True)
class TensorInfo:
    """A model input or output: dense, row-major."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * numpy_dtype(self.dtype).itemsize

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


def open_library(path: Path) -> ctypes.CDLL:
    """Load the artifact at `path`, after checking that it is whole and for this machine.

    Raises ArtifactError.
    """
    check_stamp(path, platform.machine())
    try:
        library = ctypes.CDLL(_loader_path(path.resolve()))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(library, name)
            function.restype = result
            function.argtypes = arguments
    except (OSError, AttributeError) as error:
        raise ArtifactError(f"cannot load {path}: {error}") from None
    return library


def tensor_info(tensor: CTensor) -> TensorInfo:
    shape = tuple(int(tensor.shape[i]) for i in range(tensor.rank))
    return TensorInfo(tensor.name.decode(), shape, DTYPES[int(cast(int, tensor.dtype))])


_seen: dict[Path, list[tuple[int, int]]] = {}
_seen_lock = threading.Lock()


def _loader_path(path: Path) -> str:
    """A spelling of `path` that the loader has not seen with another file.

    The loader answers a known name with the library it has in memory, even when a newer file has replaced
    it since. A file's identity is its device and inode, which stay taken while the library is loaded.
    """
    status = path.stat()
    with _seen_lock:
        versions = _seen.setdefault(path, [])
        identity = (status.st_dev, status.st_ino)
        if identity not in versions:
            versions.append(identity)
        return f"{path.parent}{'/.' * versions.index(identity)}/{path.name}"
