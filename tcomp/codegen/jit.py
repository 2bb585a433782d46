"""Build one kernel in this process, run it on numpy arrays and time it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from time import perf_counter
from typing import Any

import numpy as np

from tcomp.codegen import c_abi
from tcomp.errors import InputError
from tcomp.relay.types import Array, TensorType, numpy_dtype
from tcomp.target.host import require_runnable
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tensor.template import Scheduled, schedule
from tcomp.tvm_api import tvm

ENTRY = "main"
"""The name that TVM finds a kernel under."""


@dataclass(frozen=True)
class KernelRunner:
    """A built kernel. Call it with the kernel's inputs (constants not packed) to get its outputs."""

    kernel: Kernel
    target: Target
    scheduled: Scheduled
    library: Any

    def __call__(self, arrays: Sequence[Array]) -> list[Array]:
        """The kernel's outputs.

        Raises InputError when `arrays` differ from the kernel's inputs in count, shape or dtype;
        TargetError when this CPU cannot execute code for the target.
        """
        arguments = self.prepare(arrays)
        self.run_prepared(arguments)
        return [_to_numpy(tensor) for tensor in arguments[len(arguments) - len(self.kernel.body.outputs) :]]

    def load(self) -> None:
        """Make the machine code now; without this the first run does."""
        self.library[ENTRY]

    def run_prepared(self, arguments: Sequence[Any]) -> None:
        """One run with arguments that `prepare` made."""
        self.library[ENTRY](*arguments)

    def time(self, arrays: Sequence[Array], number: int = 1, repeat: int = 3) -> list[float]:
        """Seconds of one run, averaged over `number` runs, `repeat` times; the first run is not counted."""
        return self.time_prepared(self.prepare(arrays), number, repeat)

    def time_prepared(self, arguments: Sequence[Any], number: int = 1, repeat: int = 3) -> list[float]:
        """As `time`, with arguments that `prepare` made."""
        evaluator = self.library.time_evaluator(ENTRY, tvm.cpu(), number=number, repeat=repeat)
        return [float(seconds) for seconds in evaluator(*arguments).results]

    def clock_prepared(self, arguments: Sequence[Any], repeat: int) -> list[float]:
        """Seconds of each of `repeat` runs in a row, none before them: for kernels that take milliseconds.

        What calling from Python adds, a few microseconds, is in these times.
        """
        entry, times = self.library[ENTRY], list[float]()
        for _ in range(repeat):
            begin = perf_counter()
            entry(*arguments)
            times.append(perf_counter() - begin)
        return times

    def prepare(self, arrays: Sequence[Array]) -> list[Any]:
        """Device tensors for the function's parameters: inputs packed, scratch and outputs allocated."""
        require_runnable(self.target)
        return kernel_arguments(self.kernel, self.scheduled, arrays, tvm.cpu())

    def source(self, kind: str = "asm") -> str:
        """The generated code: `asm` or `ll` (LLVM IR)."""
        return str(self.library.inspect_source(kind))

    @cached_property
    def output_types(self) -> tuple[TensorType, ...]:
        return tuple(v.type for v in self.kernel.body.outputs)


def build_kernel(kernel: Kernel, target: Target, config: Config | None = None) -> KernelRunner:
    """Schedule `kernel` with `config` (its template's default without one) and compile it in memory.

    Raises ScheduleError for an illegal config, BuildError when code generation fails.
    """
    return build_scheduled(kernel, schedule(kernel, target, config), target)


def build_scheduled(kernel: Kernel, scheduled: Scheduled, target: Target) -> KernelRunner:
    """Compile an already scheduled kernel in memory."""
    library = c_abi.build({"kernel": scheduled.function}, target, packed=ENTRY)
    return KernelRunner(kernel, target, scheduled, library)


def kernel_arguments(kernel: Kernel, scheduled: Scheduled, arrays: Sequence[Array], device: Any) -> list[Any]:
    """Tensors on `device` for the function's parameters: inputs packed, scratch and outputs allocated.

    Raises InputError when `arrays` differ from the kernel's inputs in count, shape or dtype.
    """
    inputs = kernel.body.inputs
    if len(arrays) != len(inputs):
        raise InputError(f"kernel {kernel.label} takes {len(inputs)} arrays, not {len(arrays)}")
    arguments: list[Any] = []
    for index, (value, array) in enumerate(zip(inputs, arrays, strict=True)):
        _check(kernel, index, value.type, array)
        packing = scheduled.packing.get(index)
        arguments.append(_to_tensor(array if packing is None else packing.pack(array), device))
    outputs = [v.type for v in kernel.body.outputs]
    return arguments + [_empty(t, device) for t in (*scheduled.scratch, *outputs)]


def _check(kernel: Kernel, index: int, expected: TensorType, array: Array) -> None:
    if (tuple(array.shape), array.dtype) != (expected.static_shape, numpy_dtype(expected.dtype)):
        found = f"{array.dtype}{list(array.shape)}"
        raise InputError(f"input {index} of kernel {kernel.label} is {found}; it must be {expected}")


def _empty(type_: TensorType, device: Any) -> Any:
    return tvm.runtime.empty(type_.static_shape, type_.dtype, device)


def _to_tensor(array: Array, device: Any) -> Any:
    tensor = tvm.runtime.empty(array.shape, array.dtype.name, device)
    if array.size:
        tensor.copyfrom(np.ascontiguousarray(array).reshape(array.shape))
    return tensor


def _to_numpy(tensor: Any) -> Array:
    return np.asarray(tensor.numpy())
