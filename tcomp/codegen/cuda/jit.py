"""Build one kernel for a GPU in this process, run it there on numpy arrays and time it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ctypes import c_void_p
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tcomp.codegen.cuda.cubin import Cubin, compile_cubin
from tcomp.codegen.cuda.device_code import DeviceCode, Launch, device_code
from tcomp.codegen.kernel_runner import KernelRunner
from tcomp.errors import BuildError
from tcomp.relay.types import Array, TensorType, numpy_dtype
from tcomp.target.cuda_driver import Driver, driver
from tcomp.target.cuda_state import gpu_state
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.template import Scheduled

_SYMBOL = "kernel"


class Memory:
    """A piece of the device's memory, freed with this object."""

    def __init__(self, device: Driver, type_: TensorType) -> None:
        self.type = type_
        self._device = device
        self.pointer = device.allocate(type_.nbytes)

    def __del__(self) -> None:
        if hasattr(self, "pointer"):
            self._device.free(self.pointer)

    def write(self, array: Array) -> None:
        data = np.ascontiguousarray(array)
        self._device.to_device(self.pointer, data.ctypes.data_as(c_void_p), data.nbytes)

    def fill(self) -> None:
        """Set all bytes to zero, without waiting for it."""
        self._device.fill(self.pointer, 0, self.type.nbytes)

    def read(self) -> Array:
        array = np.empty(self.type.static_shape, numpy_dtype(self.type.dtype))
        self._device.to_host(array.ctypes.data_as(c_void_p), self.pointer, array.nbytes)
        return array


class Loaded:
    """The functions of `launches` on the device, and two events to time them; unloaded with this object."""

    def __init__(self, device: Driver, cubin: Cubin, launches: Sequence[Launch]) -> None:
        self._device = device
        self._module = device.load(cubin.image)
        self.functions = [
            device.function(self._module, one.symbol, one.dynamic_shared_bytes) for one in launches
        ]
        self.events = device.event(), device.event()

    def __del__(self) -> None:
        for event in getattr(self, "events", ()):
            event.destroy()
        if hasattr(self, "_module"):
            self._device.unload(self._module)


@dataclass(frozen=True)
class CudaKernelRunner(KernelRunner):
    """A kernel that the driver launches."""

    code: DeviceCode
    cubin: Cubin

    @cached_property
    def loaded(self) -> Loaded:
        """The code on the device."""
        return Loaded(driver(), self.cubin, self.code.launches)

    def load(self) -> None:
        _ = self.loaded

    def require_no_spills(self) -> None:
        for name, taken in self.cubin.resources.items():
            if taken.spilled_bytes:
                raise BuildError(
                    f"{name} spills {taken.spilled_bytes} bytes, with {taken.registers} registers a thread"
                )
        if self.cubin.losses:
            raise BuildError(self.cubin.losses[0])

    @property
    def taken(self) -> Mapping[str, str]:
        """Registers of a thread and shared memory of a block, of each launch."""
        taken = [(self.cubin.resources[one.symbol], one.dynamic_shared_bytes) for one in self.code.launches]
        registers = ", ".join(str(one.registers) for one, _ in taken)
        shared = ", ".join(str(one.shared_bytes + dynamic) for one, dynamic in taken)
        return {"registers": registers, "shared memory": f"{shared} B"}

    def conditions(self) -> Mapping[str, str]:
        return {**self.taken, **gpu_state()}

    def prepare(self, arrays: Sequence[Array]) -> list[Memory]:
        device, arguments = driver(), list[Memory]()
        for array in self.packed(arrays):
            arguments.append(Memory(device, TensorType(array.shape, str(array.dtype))))
            arguments[-1].write(array)
        return arguments + [Memory(device, t) for t in (*self.scheduled.scratch, *self.output_types)]

    def run_prepared(self, arguments: Sequence[Memory]) -> None:
        self._start(arguments)
        driver().synchronize()

    def time_prepared(self, arguments: Sequence[Memory], number: int = 1, repeat: int = 3) -> list[float]:
        self.run_prepared(arguments)
        return [self._timed(arguments, number) / number for _ in range(repeat)]

    def clock_prepared(self, arguments: Sequence[Memory], repeat: int) -> list[float]:
        return [self._timed(arguments, 1) for _ in range(repeat)]

    def outputs(self, arguments: Sequence[Memory]) -> list[Array]:
        return [memory.read() for memory in arguments[len(arguments) - len(self.output_types) :]]

    def source(self, kind: str = "cuda") -> str:
        """The generated CUDA C."""
        return self.code.source

    def _start(self, arguments: Sequence[Memory]) -> None:
        pointers = [memory.pointer for memory in arguments]
        for function, one in zip(self.loaded.functions, self.code.launches, strict=True):
            driver().launch(function, one.grid, one.block, one.dynamic_shared_bytes, pointers, one.maps)

    def _timed(self, arguments: Sequence[Memory], number: int) -> float:
        """Seconds of `number` runs, by the device's own clock, the L2 cache being cold in each."""
        seconds = 0.0
        begin, end = self.loaded.events
        for _ in range(number):
            self._flush.fill()
            begin.record()
            self._start(arguments)
            end.record()
            seconds += end.seconds_since(begin)
        return seconds

    @cached_property
    def _flush(self) -> Memory:
        """Memory of twice the size of the L2 cache: writing it drives everything else out."""
        assert self.target.gpu is not None
        return Memory(driver(), TensorType((2 * self.target.gpu.l2_bytes,), "uint8"))


def build_cuda(kernel: Kernel, scheduled: Scheduled, target: Target) -> CudaKernelRunner:
    """Compile an already scheduled kernel. Needs no GPU, as running it does.

    Raises BuildError when code generation or nvcc fails.
    """
    assert target.gpu is not None
    code = device_code(scheduled.function, _SYMBOL, target)
    return CudaKernelRunner(kernel, target, scheduled, code, compile_cubin(code.source, target.gpu.arch))
