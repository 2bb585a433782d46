"""Arrays in the memory of the emulated GPU, and in page-locked memory."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_size_t, c_void_p

import numpy as np

from tcomp.relay.types import Array
from tcomp.target.cuda_driver import driver


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
