"""Build one kernel for a GPU in this process, run it there on numpy arrays and time it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ctypes import c_void_p
from dataclasses import dataclass
from functools import cached_property
from math import ceil

import numpy as np

from tcomp.codegen.cuda.cubin import Cubin, compile_cubin
from tcomp.codegen.cuda.device_code import DeviceCode, Launch, device_code
from tcomp.codegen.kernel_runner import KernelRunner
from tcomp.errors import BuildError
from tcomp.relay.types import Array, TensorType, numpy_dtype
from tcomp.target.cuda_driver import Driver, LaunchCall, driver
from tcomp.target.cuda_state import gpu_state
from tcomp.target.target import Gpu, Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.template import Scheduled

_SYMBOL = "kernel"
_START_SECONDS = 60e-6
"""In which Python starts an event, a few launches and another event."""


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


@dataclass(frozen=True)
class Arguments:
    """Memory of inputs, scratch and outputs, and the launches that read and write it."""

    memory: Sequence[Memory]
    launches: Sequence[LaunchCall]


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

    def prepare(self, arrays: Sequence[Array]) -> Arguments:
        device, memory = driver(), list[Memory]()
        for array in self.packed(arrays):
            memory.append(Memory(device, TensorType(array.shape, str(array.dtype))))
            memory[-1].write(array)
        memory += [Memory(device, t) for t in (*self.scheduled.scratch, *self.output_types)]
        pointers = [one.pointer for one in memory]
        launches = [
            device.launch(function, one.grid, one.block, one.dynamic_shared_bytes, pointers, one.maps)
            for function, one in zip(self.loaded.functions, self.code.launches, strict=True)
        ]
        return Arguments(memory, launches)

    def run_prepared(self, arguments: Arguments) -> None:
        for launch in arguments.launches:
            launch.start()
        driver().synchronize()

    def time_prepared(self, arguments: Arguments, number: int = 1, repeat: int = 3) -> list[float]:
        self.run_prepared(arguments)
        return [self._timed(arguments, number) / number for _ in range(repeat)]

    def clock_prepared(self, arguments: Arguments, repeat: int) -> list[float]:
        return [self._timed(arguments, 1) for _ in range(repeat)]

    def outputs(self, arguments: Arguments) -> list[Array]:
        memory = arguments.memory
        return [one.read() for one in memory[len(memory) - len(self.output_types) :]]

    def source(self, kind: str = "cuda") -> str:
        """The generated CUDA C."""
        return self.code.source

    def _timed(self, arguments: Arguments, number: int) -> float:
        """Seconds of `number` runs, by the device's own clock, the L2 cache being cold in each.

        The device is busy with filling memory while this thread starts all that comes between the events:
        were it not, the time until the launch would count.
        """
        seconds = 0.0
        begin, end = self.loaded.events
        for _ in range(number):
            for _ in range(self._fills):
                self._flush.fill()
            begin.record()
            for launch in arguments.launches:
                launch.start()
            end.record()
            seconds += end.seconds_since(begin)
        return seconds

    @property
    def rest_seconds(self) -> float:
        return self._fills * flush_seconds(self._gpu) + _START_SECONDS

    @property
    def _fills(self) -> int:
        """How often memory is written before a run that is timed."""
        return ceil(_START_SECONDS / flush_seconds(self._gpu))

    @cached_property
    def _flush(self) -> Memory:
        return Memory(driver(), TensorType((flush_bytes(self._gpu),), "uint8"))

    @property
    def _gpu(self) -> Gpu:
        assert self.target.gpu is not None
        return self.target.gpu


def flush_bytes(gpu: Gpu) -> int:
    """Memory of twice the size of the L2 cache: writing it drives everything else out."""
    return 2 * gpu.l2_bytes


def flush_seconds(gpu: Gpu) -> float:
    """In which so much is written, by the data sheet."""
    return flush_bytes(gpu) / gpu.bytes_per_second


def build_cuda(kernel: Kernel, scheduled: Scheduled, target: Target) -> CudaKernelRunner:
    """Compile an already scheduled kernel. Needs no GPU, as running it does.

    Raises BuildError when code generation or the compiler fails.
    """
    assert target.gpu is not None
    code = device_code(scheduled.function, _SYMBOL, target)
    return CudaKernelRunner(kernel, target, scheduled, code, compile_cubin(code.source, target.gpu.arch))
