"""One built kernel, run on numpy arrays and timed, whatever device it is for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tcomp.errors import InputError
from tcomp.relay.types import Array, TensorType, numpy_dtype
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.template import Scheduled


@dataclass(frozen=True)
class KernelRunner(ABC):
    """A built kernel. Call it with the kernel's inputs (constants not packed) to get its outputs."""

    kernel: Kernel
    target: Target
    scheduled: Scheduled

    def __call__(self, arrays: Sequence[Array]) -> list[Array]:
        """The kernel's outputs.

        Raises InputError when `arrays` differ from the kernel's inputs in count, shape or dtype;
        TargetError when this machine cannot execute code for the target.
        """
        arguments = self.prepare(arrays)
        self.run_prepared(arguments)
        return self.outputs(arguments)

    def time(self, arrays: Sequence[Array], number: int = 1, repeat: int = 3) -> list[float]:
        """Seconds of one run, averaged over `number` runs, `repeat` times; the first run is not counted."""
        return self.time_prepared(self.prepare(arrays), number, repeat)

    @cached_property
    def output_types(self) -> tuple[TensorType, ...]:
        return tuple(v.type for v in self.kernel.body.outputs)

    def packed(self, arrays: Sequence[Array]) -> list[Array]:
        """`arrays` as the function takes them.

        Raises InputError when they differ from the kernel's inputs in count, shape or dtype.
        """
        return packed_inputs(self.kernel, self.scheduled, arrays)

    def require_no_spills(self) -> None:  # noqa: B027 (compilers for CPUs do not tell)
        """Raise BuildError where the compiler says that threads keep values in memory, not registers."""

    def conditions(self) -> Mapping[str, str]:
        """What the code takes of the device, and what the device is like now, for records."""
        return {}

    @property
    def rest_seconds(self) -> float:
        """What a timed run takes besides, which its time does not count."""
        return 0.0

    @abstractmethod
    def load(self) -> None:
        """Make the machine code ready now; without this the first run does."""

    @abstractmethod
    def prepare(self, arrays: Sequence[Array]) -> Any:
        """The function's arguments, in the device's memory: inputs packed, scratch and outputs allocated."""

    @abstractmethod
    def run_prepared(self, arguments: Any) -> None:
        """One run with arguments that `prepare` made."""

    @abstractmethod
    def time_prepared(self, arguments: Any, number: int = 1, repeat: int = 3) -> list[float]:
        """As `time`, with arguments that `prepare` made."""

    @abstractmethod
    def clock_prepared(self, arguments: Any, repeat: int) -> list[float]:
        """Seconds of each of `repeat` runs in a row, none before them: for kernels that take milliseconds."""

    @abstractmethod
    def outputs(self, arguments: Any) -> list[Array]:
        """What the last run with `arguments` computed."""

    @abstractmethod
    def source(self, kind: str = "asm") -> str:
        """The generated code, in a language that the target has."""


def packed_inputs(kernel: Kernel, scheduled: Scheduled, arrays: Sequence[Array]) -> list[Array]:
    """`arrays` as the scheduled function of `kernel` takes them.

    Raises InputError when they differ from the kernel's inputs in count, shape or dtype.
    """
    inputs = kernel.body.inputs
    if len(arrays) != len(inputs):
        raise InputError(f"kernel {kernel.label} takes {len(inputs)} arrays, not {len(arrays)}")
    packed: list[Array] = []
    for index, (value, array) in enumerate(zip(inputs, arrays, strict=True)):
        _check(kernel, index, value.type, array)
        packing = scheduled.packing.get(index)
        packed.append(array if packing is None else packing.pack(array))
    return packed


def _check(kernel: Kernel, index: int, expected: TensorType, array: Array) -> None:
    if (tuple(array.shape), array.dtype) != (expected.static_shape, numpy_dtype(expected.dtype)):
        found = f"{array.dtype}{list(array.shape)}"
        raise InputError(f"input {index} of kernel {kernel.label} is {found}; it must be {expected}")
