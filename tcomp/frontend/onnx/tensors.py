"""ONNX tensors and attributes as numpy arrays and Python values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from tcomp.errors import ModelError, UnsupportedError
from tcomp.relay.types import Array, numpy_dtype

_DTYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16", onnx.TensorProto.DOUBLE: "float64",
    onnx.TensorProto.INT8: "int8", onnx.TensorProto.INT16: "int16",
    onnx.TensorProto.INT32: "int32", onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.UINT8: "uint8", onnx.TensorProto.UINT16: "uint16",
    onnx.TensorProto.UINT32: "uint32", onnx.TensorProto.UINT64: "uint64",
    onnx.TensorProto.BOOL: "bool",
    onnx.TensorProto.FLOAT8E4M3FN: "float8_e4m3fn", onnx.TensorProto.FLOAT8E5M2: "float8_e5m2",
}  # fmt: skip


def dtype_of(elem_type: int, what: str) -> str:
    """tcomp's name of an ONNX element type.

    Raises UnsupportedError naming `what` for types tcomp has no tensors of: strings, complex, 4 bits,
    float8 without a negative zero.
    """
    try:
        return _DTYPES[elem_type]
    except KeyError:
        known = onnx.TensorProto.DataType.values()
        name = onnx.TensorProto.DataType.Name(elem_type) if elem_type in known else str(elem_type)
        raise UnsupportedError(f"{what} has element type {name}, which tcomp has no tensors of") from None


_NARROW: dict[int, str] = {onnx.TensorProto.INT4: "int8", onnx.TensorProto.UINT4: "uint8"}
"""Types of two elements a byte, which data is read of: each becomes a byte."""


def read_tensor(tensor: onnx.TensorProto, folder: Path | None, what: str) -> Array:
    """The tensor's data, of int4 as int8; external data is read (memory-mapped) from inside `folder`.

    Raises ModelError for a missing or too short file, one outside the folder, or data of the wrong size.
    """
    narrow = _NARROW.get(tensor.data_type)
    dtype = numpy_dtype(narrow or dtype_of(tensor.data_type, what))
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        if narrow is not None:
            return _halves(_read_external(tensor, folder, what, dtype, halves=True), tensor, dtype)
        return _read_external(tensor, folder, what, dtype)
    try:
        array = numpy_helper.to_array(tensor)
    except Exception as error:  # onnx raises whatever its decoding meets
        raise ModelError(f"{what} cannot be decoded: {_first_line(error)}") from None
    return np.asarray(array, dtype)


def attribute_value(attribute: onnx.AttributeProto, folder: Path | None) -> Any:
    """int, float, str, tuple of these, numpy array, or GraphProto (left as it is)."""
    kind = attribute.type
    if kind == onnx.AttributeProto.INT:
        return int(attribute.i)
    if kind == onnx.AttributeProto.FLOAT:
        return float(attribute.f)
    if kind == onnx.AttributeProto.STRING:
        return attribute.s.decode("utf-8", "replace")
    if kind == onnx.AttributeProto.INTS:
        return tuple(int(i) for i in attribute.ints)
    if kind == onnx.AttributeProto.FLOATS:
        return tuple(float(f) for f in attribute.floats)
    if kind == onnx.AttributeProto.STRINGS:
        return tuple(s.decode("utf-8", "replace") for s in attribute.strings)
    if kind == onnx.AttributeProto.TENSOR:
        return read_tensor(attribute.t, folder, f"attribute `{attribute.name}`")
    if kind == onnx.AttributeProto.GRAPH:
        return attribute.g
    kinds = onnx.AttributeProto.AttributeType.Name(kind)
    raise UnsupportedError(f"attribute `{attribute.name}` is of kind {kinds}, which tcomp does not read")


def _halves(data: Array, tensor: onnx.TensorProto, dtype: np.dtype[Any]) -> Array:
    """The elements of a tensor from bytes with two of them, the first in the lower half."""
    shape = tuple(int(d) for d in tensor.dims)
    both = np.stack([data.view(np.uint8) & 15, data.view(np.uint8) >> 4], axis=-1).reshape(-1)
    levels = both[: int(np.prod(shape, dtype=np.int64))].reshape(shape)
    signed = np.where(levels > 7, levels.astype(np.int8) - 16, levels)
    return (signed if dtype == np.int8 else levels).astype(dtype)


def _read_external(
    tensor: onnx.TensorProto, folder: Path | None, what: str, dtype: np.dtype[Any], halves: bool = False
) -> Array:
    """The tensor's data; with `halves`, bytes that hold two elements each."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if folder is None:
        raise ModelError(f"{what} is external data `{location}`; import the model from its file, not a proto")
    path = _inside(folder, location, what)
    shape = tuple(int(d) for d in tensor.dims)
    count = int(np.prod(shape, dtype=np.int64))
    if halves:
        count = -(-count // 2)
        shape = (count,)
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", count * dtype.itemsize))
        size = path.stat().st_size
    except ValueError:
        raise ModelError(
            f"{what}: external data of `{location}` has an offset or length that is no number"
        ) from None
    except OSError as error:
        raise ModelError(
            f"{what}: external data file {path} cannot be read ({error.strerror}); put it beside the model"
        ) from None
    if length != count * dtype.itemsize or offset < 0 or offset + length > size:
        raise ModelError(
            f"{what} needs {count * dtype.itemsize} bytes at offset {offset} of {path}, which has {size}"
        )
    if count == 0:
        return np.zeros(shape, dtype)
    raw = np.memmap(path, mode="r", offset=offset, shape=(length,), dtype=np.uint8)
    return raw.view(dtype).reshape(shape)


def _inside(folder: Path, location: str, what: str) -> Path:
    """The file `location` under `folder`; refuses anything that leads outside, also through links."""
    root = folder.resolve()
    path = (root / location).resolve()
    if not location or root not in path.parents:
        raise ModelError(
            f"{what}: external data `{location}` lies outside the model's folder {root}; move it inside"
        )
    return path


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
