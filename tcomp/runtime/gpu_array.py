"""Arrays in the memory of a GPU, as PyTorch, CuPy, Numba and others show them to each other.

By DLPack, which has names for all element types; where a library has none, by the CUDA array interface.
Source of that: Numba's documentation, "CUDA Array Interface (Version 3)".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from tcomp.errors import InputError
from tcomp.runtime.dlpack import is_on_cuda, read_capsule
from tcomp.target.cuda_driver import driver

INTERFACE = "__cuda_array_interface__"


@dataclass(frozen=True)
class GpuArray:
    """Where an array is and what it holds. `owner` keeps it there."""

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    contiguous: bool
    writeable: bool
    stream: int | None
    """What still writes to it; None where nobody says."""
    owner: Any

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def gpu_array(where: str, value: Any) -> GpuArray | None:
    """`value` if it is in a GPU's memory. `where` names it in messages.

    Raises InputError when it cannot be shown, such as one of an element type that has no name.
    """
    try:
        return _by_dlpack(value) if is_on_cuda(value) else _by_interface(value)
    except (AttributeError, BufferError, RuntimeError, TypeError) as error:
        raise InputError(f"{where} cannot be read in the GPU's memory: {error}") from None


def _by_dlpack(value: Any) -> GpuArray:
    found = read_capsule(value)
    itemsize = found.dtype.itemsize
    strides = None if found.strides is None else tuple(s * itemsize for s in found.strides)
    contiguous = _is_contiguous(found.shape, strides, itemsize)
    return GpuArray(found.pointer, found.shape, found.dtype, contiguous, True, None, found.capsule)


def _by_interface(value: Any) -> GpuArray | None:
    facts: Mapping[str, Any] | None = getattr(value, INTERFACE, None)
    if facts is None:
        return None
    shape, dtype = tuple(int(d) for d in facts["shape"]), np.dtype(facts["typestr"])
    pointer, read_only = facts["data"]
    return GpuArray(
        int(pointer or 0),
        shape,
        dtype,
        _is_contiguous(shape, facts.get("strides"), dtype.itemsize),
        not read_only,
        facts.get("stream"),
        value,
    )


def wait_for(arrays: Iterable[GpuArray]) -> None:
    """Wait until what others do with `arrays` is done: in their streams, or everywhere where nobody says."""
    streams = {array.stream for array in arrays}
    if None in streams:
        driver().synchronize()
        return
    for stream in streams:
        driver().call("cuStreamSynchronize", stream)


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...] | None, itemsize: int) -> bool:
    if strides is None:
        return True
    expected = itemsize
    for extent, stride in zip(reversed(shape), reversed(strides), strict=True):
        if extent > 1 and stride != expected:
            return False
        expected *= extent
    return True
