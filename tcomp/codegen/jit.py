"""Build one kernel in this process, run it on numpy arrays and time it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from tcomp.codegen import c_abi
from tcomp.codegen.cuda.jit import build_cuda
from tcomp.codegen.kernel_runner import KernelRunner, packed_inputs
from tcomp.relay.types import Array, TensorType
from tcomp.target.host import require_runnable
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tensor.selection import schedule
from tcomp.tensor.template import Scheduled
from tcomp.tvm_api import tvm

ENTRY = "main"
"""The name that TVM finds a kernel under."""


@dataclass(frozen=True)
class CpuKernelRunner(KernelRunner):
    """A kernel that TVM's runtime calls on this CPU."""

    library: Any

    def load(self) -> None:
        self.library[ENTRY]

    def run_prepared(self, arguments: Sequence[Any]) -> None:
        self.library[ENTRY](*arguments)

    def time_prepared(self, arguments: Sequence[Any], number: int = 1, repeat: int = 3) -> list[float]:
        evaluator = self.library.time_evaluator(ENTRY, tvm.cpu(), number=number, repeat=repeat)
        return [float(seconds) for seconds in evaluator(*arguments).results]

    def clock_prepared(self, arguments: Sequence[Any], repeat: int) -> list[float]:
        """What calling from Python adds, a few microseconds, is in these times."""
        entry, times = self.library[ENTRY], list[float]()
        for _ in range(repeat):
            begin = perf_counter()
            entry(*arguments)
            times.append(perf_counter() - begin)
        return times

    def prepare(self, arrays: Sequence[Array]) -> list[Any]:
        """TVM's tensors."""
        require_runnable(self.target)
        return kernel_arguments(self.kernel, self.scheduled, arrays, tvm.cpu())

    def outputs(self, arguments: Sequence[Any]) -> list[Array]:
        return [np.asarray(tensor.numpy()) for tensor in arguments[len(arguments) - len(self.output_types) :]]

    def source(self, kind: str = "asm") -> str:
        """The generated code: `asm`, as objects have it, or `ll` (LLVM IR)."""
        if kind == "asm":
            return c_abi.assembly_of(self.library, self.target)
        return str(self.library.inspect_source(kind))


def build_kernel(kernel: Kernel, target: Target, config: Config | None = None) -> KernelRunner:
    """Schedule `kernel` with `config` (its template's default without one) and compile it in memory.

    Raises ScheduleError for an illegal config, BuildError when code generation fails.
    """
    return build_scheduled(kernel, schedule(kernel, target, config), target)


def build_scheduled(kernel: Kernel, scheduled: Scheduled, target: Target) -> KernelRunner:
    """Compile an already scheduled kernel in memory."""
    if target.family == "cuda":
        return build_cuda(kernel, scheduled, target)
    library = c_abi.build({"kernel": scheduled.function}, target, packed=ENTRY)
    return CpuKernelRunner(kernel, target, scheduled, library)


def kernel_arguments(kernel: Kernel, scheduled: Scheduled, arrays: Sequence[Array], device: Any) -> list[Any]:
    """Tensors on TVM's `device` for the function's parameters: inputs packed, scratch and outputs allocated.

    Raises InputError when `arrays` differ from the kernel's inputs in count, shape or dtype.
    """
    arguments = [to_tensor(array, device) for array in packed_inputs(kernel, scheduled, arrays)]
    outputs = [v.type for v in kernel.body.outputs]
    return arguments + [_empty(t, device) for t in (*scheduled.scratch, *outputs)]


def _empty(type_: TensorType, device: Any) -> Any:
    return tvm.runtime.empty(type_.static_shape, type_.dtype, device)


def to_tensor(array: Array, device: Any) -> Any:
    """A tensor on TVM's `device` with the elements of `array`."""
    tensor = tvm.runtime.empty(array.shape, array.dtype.name, device)
    if array.size:
        tensor.copyfrom(np.ascontiguousarray(array).reshape(array.shape))
    return tensor
