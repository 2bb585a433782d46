"""NVIDIA's driver, by its C interface: devices, memory, modules, launches, events.

Source: CUDA Driver API reference. The library is loaded on first use, so that all else works without it.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Any

from tcomp.errors import DeviceError, KernelError
from tcomp.target.tile_map import DRIVER_SWIZZLES, DRIVER_TYPES, TileMap

LIBRARY = "libcuda.so.1"
_LARGE_SHARED = 8
"""CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES."""
_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING."""
_MAP_BYTES, _MAP_ALIGNMENT = 128, 128
"""Of a CUtensorMap."""
_FROM_256_BYTES = 3
"""CU_TENSOR_MAP_L2_PROMOTION_L2_256B: how much the second-level cache asks memory for at once."""


class Attribute(IntEnum):
    """CUdevice_attribute."""

    L2_BYTES = 38
    MEMORY_CLOCK_KHZ = 36
    BUS_BITS = 37
    PROCESSORS = 16
    THREADS = 39
    MAJOR = 75
    MINOR = 76
    SHARED_BYTES = 81
    REGISTERS = 82
    BLOCK_SHARED_BYTES = 97


@dataclass(frozen=True)
class Event:
    """A moment on the device."""

    driver: Driver
    handle: c_void_p

    def record(self, stream: c_void_p | None = None) -> None:
        self.driver.call("cuEventRecord", self.handle, stream)

    def destroy(self) -> None:
        """Give it back; it must not be used again."""
        self.driver.call("cuEventDestroy_v2", self.handle)

    def seconds_since(self, earlier: Event) -> float:
        """Seconds from `earlier` to this event, for which this waits."""
        milliseconds = c_float()
        self.driver.call("cuEventSynchronize", self.handle)
        self.driver.call("cuEventElapsedTime", byref(milliseconds), earlier.handle, self.handle)
        return milliseconds.value * 1e-3


@dataclass(frozen=True)
class LaunchCall:
    """A call of `cuLaunchKernel`, and the memory that its arguments are in."""

    driver: Driver
    function: c_void_p
    sizes: tuple[c_uint, ...]
    arguments: ctypes.Array[c_void_p]
    memory: object

    def start(self, stream: c_void_p | None = None) -> None:
        """Let the kernel run after what was started before in `stream`."""
        self.driver.call("cuLaunchKernel", self.function, *self.sizes, stream, self.arguments, None)


class Driver:
    """The driver. Threads without a current context get the primary one of the device.

    All methods raise KernelError with the driver's own words when it refuses, and most for what a kernel did
    that was started before. Pointers are integers.
    """

    def __init__(self, library: Any, number: int = 0) -> None:
        self._library = library
        self._context: c_void_p | None = None
        self._thread = threading.local()
        self.call("cuInit", 0)
        self.device = c_int()
        self.call("cuDeviceGet", byref(self.device), number)
        context = c_void_p()
        self.call("cuDevicePrimaryCtxRetain", byref(context), self.device)
        self._context = context

    def call(self, function: str, *arguments: object) -> None:
        """Call a function that answers a CUresult."""
        if self._context is not None and not hasattr(self._thread, "has_context"):
            current = c_void_p()
            self._checked("cuCtxGetCurrent", byref(current))
            if not current.value:
                self._checked("cuCtxSetCurrent", self._context)
            self._thread.has_context = True
        self._checked(function, *arguments)

    def _checked(self, function: str, *arguments: object) -> None:
        result = getattr(self._library, function)(*arguments)
        if result != 0:
            text = c_char_p()
            self._library.cuGetErrorString(result, byref(text))
            words = text.value.decode() if text.value else "unknown error"
            raise KernelError(f"{function}: {words} (CUDA error {result})")

    @property
    def name(self) -> str:
        """What the device calls itself: `NVIDIA H100 80GB HBM3`."""
        buffer = ctypes.create_string_buffer(256)
        self.call("cuDeviceGetName", buffer, len(buffer), self.device)
        return buffer.value.decode()

    def attribute(self, which: Attribute) -> int:
        value = c_int()
        self.call("cuDeviceGetAttribute", byref(value), int(which), self.device)
        return value.value

    def allocate(self, nbytes: int) -> int:
        pointer = c_void_p()
        self.call("cuMemAlloc_v2", byref(pointer), c_size_t(max(nbytes, 1)))
        return int(pointer.value or 0)

    def free(self, pointer: int) -> None:
        self.call("cuMemFree_v2", c_void_p(pointer))

    def to_device(self, pointer: int, data: bytes | memoryview | Any, nbytes: int) -> None:
        """Copy `nbytes` of `data`, bytes or a ctypes pointer."""
        self.call("cuMemcpyHtoD_v2", c_void_p(pointer), data, c_size_t(nbytes))

    def to_host(self, data: Any, pointer: int, nbytes: int) -> None:
        self.call("cuMemcpyDtoH_v2", data, c_void_p(pointer), c_size_t(nbytes))

    def fill(self, pointer: int, value: int, nbytes: int) -> None:
        """Set every byte; without waiting."""
        self.call("cuMemsetD8Async", c_void_p(pointer), value, c_size_t(nbytes), None)

    def load(self, image: bytes) -> c_void_p:
        """The module of a cubin."""
        module = c_void_p()
        self.call("cuModuleLoadData", byref(module), image)
        return module

    def unload(self, module: c_void_p) -> None:
        self.call("cuModuleUnload", module)

    def function(self, module: c_void_p, symbol: str, dynamic_shared_bytes: int = 0) -> c_void_p:
        """A kernel of a module, allowed to use so much dynamic shared memory."""
        function = c_void_p()
        self.call("cuModuleGetFunction", byref(function), module, symbol.encode())
        if dynamic_shared_bytes:
            self.call("cuFuncSetAttribute", function, _LARGE_SHARED, dynamic_shared_bytes)
        return function

    def tile_map(self, tiles: TileMap, pointer: int) -> ctypes.Array[ctypes.c_char]:
        """What a kernel needs to copy tiles of the tensor at `pointer`: 128 bytes, somewhere in the result.

        `address_of_map` says where.
        """
        room = ctypes.create_string_buffer(_MAP_BYTES + _MAP_ALIGNMENT)
        rank, walk = len(tiles.extents), tiles.walk
        tensor = (
            c_void_p(address_of_map(room)),
            DRIVER_TYPES[tiles.dtype],
            rank,
            c_void_p(pointer + tiles.begin),
            (c_uint64 * rank)(*tiles.extents),
            (c_uint64 * (rank - 1))(*tiles.strides),
        )
        options = (0, DRIVER_SWIZZLES[tiles.swizzle], _FROM_256_BYTES, 0)
        if walk is None:
            box, every = (c_uint32 * rank)(*tiles.box), (c_uint32 * rank)(*[1] * rank)
            self.call("cuTensorMapEncodeTiled", *tensor, box, every, *options)
        else:
            lower, upper = ((c_int * (rank - 2))(*corner) for corner in (walk.lower, walk.upper))
            steps = (c_uint32 * rank)(1, *walk.steps, 1)
            self.call("cuTensorMapEncodeIm2col", *tensor, lower, upper, *tiles.box, steps, *options)
        return room

    def launch(
        self,
        function: c_void_p,
        grid: Sequence[int],
        block: Sequence[int],
        dynamic_shared_bytes: int,
        pointers: Sequence[int],
        maps: Sequence[tuple[int, TileMap]] = (),
    ) -> LaunchCall:
        """The launch of a kernel whose arguments are pointers, then maps of tensors at some, by number.

        What takes time is done here, so that `start` is one call.
        """
        values = [c_void_p(p) for p in pointers]
        rooms = [self.tile_map(tiles, pointers[number]) for number, tiles in maps]
        places = [*map(ctypes.addressof, values), *map(address_of_map, rooms)]
        sizes = tuple(map(c_uint, (*grid, *block, dynamic_shared_bytes)))
        return LaunchCall(self, function, sizes, (c_void_p * len(places))(*places), (values, rooms))

    def stream(self) -> c_void_p:
        """A new stream, which waits for no other."""
        handle = c_void_p()
        self.call("cuStreamCreate", byref(handle), _NON_BLOCKING)
        return handle

    def event(self) -> Event:
        handle = c_void_p()
        self.call("cuEventCreate", byref(handle), 0)
        return Event(self, handle)

    def synchronize(self) -> None:
        """Wait for everything that was started."""
        self.call("cuCtxSynchronize")


def address_of_map(room: ctypes.Array[ctypes.c_char]) -> int:
    """The first multiple of what maps are aligned to."""
    return -(-ctypes.addressof(room) // _MAP_ALIGNMENT) * _MAP_ALIGNMENT


@cache
def driver() -> Driver:
    """The driver of this machine, on its first GPU.

    Raises DeviceError when there is none.
    """
    remedy = (
        "name an architecture to compile for another machine, as in `cuda:sm_80`; tune there, or on a "
        "server by `--runner rpc://...`"
    )
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        raise DeviceError(f"no NVIDIA driver here: {LIBRARY} is not to be loaded; {remedy}") from None
    library.cuGetErrorString.argtypes = (c_int, POINTER(c_char_p))
    try:
        return Driver(library)
    except KernelError as error:
        raise DeviceError(f"no GPU here: {error}; {remedy}") from error
