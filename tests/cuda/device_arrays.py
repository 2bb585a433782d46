"""Arrays in the memory of the emulated GPU, and in page-locked memory; what else it holds, and refuses."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import byref, c_int64, c_size_t, c_void_p
from dataclasses import astuple, dataclass
from typing import ClassVar

import numpy as np

from tcomp.relay.types import Array
from tcomp.target.cuda_driver import LIBRARY, driver


class OnGpu:
    """An array in the memory of the emulated GPU, as other libraries show theirs."""

    def __init__(self, array: Array, stream: int | None = None, **changes: object) -> None:
        self.pointer = driver().allocate(array.nbytes)
        self.shape, self.dtype = array.shape, array.dtype
        driver().to_device(self.pointer, array.ctypes.data_as(c_void_p), array.nbytes)
        facts = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (self.pointer, False),
            "version": 3,
        }
        self.__cuda_array_interface__ = {**facts, "strides": None, "stream": stream, **changes}

    def __del__(self) -> None:
        driver().free(self.pointer)

    def read(self) -> Array:
        array = np.empty(self.shape, self.dtype)
        driver().to_host(array.ctypes.data_as(c_void_p), self.pointer, array.nbytes)
        return array


class WithDlpack(OnGpu):
    """The same, shown by DLPack alone."""

    CODES: ClassVar[dict[str, tuple[int, int]]] = {
        "float32": (2, 32), "int32": (0, 32), "bfloat16": (4, 16), "complex64": (5, 64)
    }  # fmt: skip
    freed: ClassVar[int] = 0
    """Capsules that nobody holds any more."""

    def __init__(self, array: Array, strides: Sequence[int] | None = None, offset: int = 0) -> None:
        super().__init__(array)
        del self.__cuda_array_interface__
        self.strides, self.offset = strides, offset

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, stream: int | None = None) -> object:
        assert stream == -1
        shape, strides = ((c_int64 * 8)(*x) for x in (self.shape, self.strides or ()))
        code, bits = self.CODES[self.dtype.name]
        managed = _Managed(
            self.pointer - self.offset, 2, 0, len(self.shape), code, bits, 1,
            ctypes.addressof(shape), ctypes.addressof(strides) if self.strides else 0, self.offset, 0, 0,
        )  # fmt: skip

        def destroy(capsule: object) -> None:
            WithDlpack.freed += 1

        destructor = ctypes.PYFUNCTYPE(None, c_void_p)(destroy)
        _HELD.append((self, managed, shape, strides, destructor))
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, (c_void_p, ctypes.c_char_p, c_void_p)
        return new(ctypes.addressof(managed), b"dltensor", ctypes.cast(destructor, c_void_p))


_HELD: list[tuple[object, ...]] = []
"""What capsules point to, which stays."""


class _Managed(ctypes.Structure):
    """`DLManagedTensor`."""

    _fields_ = (
        ("data", c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", c_void_p),
        ("strides", c_void_p),
        ("byte_offset", ctypes.c_uint64),
        ("manager_ctx", c_void_p),
        ("deleter", c_void_p),
    )


class Stream:
    """A stream of the caller's; work in it is done when it is waited for."""

    def __init__(self) -> None:
        self.handle = c_void_p()
        driver().call("cuStreamCreate", byref(self.handle), 1)

    def __int__(self) -> int:
        return int(self.handle.value or 0)

    def __del__(self) -> None:
        driver().call("cuStreamDestroy_v2", self.handle)

    def wait(self) -> None:
        driver().call("cuStreamSynchronize", self.handle)


def page_locked(array: Array) -> Array:
    """A copy in page-locked memory, which stays there."""
    place = c_void_p()
    driver().call("cuMemHostAlloc", byref(place), c_size_t(array.nbytes), 0)
    memory = (ctypes.c_char * array.nbytes).from_address(int(place.value or 0))
    copy = np.frombuffer(memory, array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@dataclass(frozen=True)
class Held:
    """What the emulated driver holds for programs: how many of each, and bytes of the device's memory."""

    buffers: int
    locked: int
    streams: int
    events: int
    modules: int
    graphs: int
    executables: int
    contexts: int
    nbytes: int

    def __sub__(self, other: Held) -> Held:
        return Held(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))


def held() -> Held:
    counts = (ctypes.c_long * 9)()
    ctypes.CDLL(LIBRARY).emulated_held(counts)
    return Held(*counts)


@contextmanager
def refusing(after: int) -> Iterator[Callable[[], bool]]:
    """The driver refuses one call that asks it for something, the first after so many others.

    What is answered says, afterwards, whether it did.
    """
    refuse = ctypes.CDLL(LIBRARY).emulated_refuse
    refuse.argtypes, refuse.restype = (ctypes.c_long,), ctypes.c_long
    refused: list[bool] = []
    refuse(after)
    try:
        yield lambda: refused[0]
    finally:
        refused.append(refuse(-1) < 0)
