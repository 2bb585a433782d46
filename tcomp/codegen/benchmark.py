"""A static program that runs one kernel on a device: C main (`c/benchmark.c`), kernel and arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from tcomp.codegen.link import RUNTIME, SOURCES, compile_c, link_static
from tcomp.codegen.toolchain import find_static_toolchain
from tcomp.relay.types import Array, numpy_dtype
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.template import Scheduled

KERNEL = "tcomp_kernel"
"""The symbol under which the program calls the kernel."""
_MODELS_OWN = ("context.c", "shared.c", "variant.c")
"""The part of the C runtime that needs a model; `benchmark.c` is in its place."""


@dataclass(frozen=True)
class Argument:
    """A buffer that the kernel takes. `data` is what an input holds; None for scratch and outputs."""

    nbytes: int
    data: bytes | None = None
    is_output: bool = False

    def text(self, path: str = "") -> str:
        """How the program is told; `path` is where `data` lies on the device."""
        return f"{self.nbytes}" + (f":{path}" if self.data is not None else "!" if self.is_output else "")


def arguments_of(kernel: Kernel, scheduled: Scheduled, inputs: Sequence[Array]) -> list[Argument]:
    """The buffers of a scheduled kernel in order: inputs, packed where it wants that; scratch; outputs."""
    found: list[Argument] = []
    for index, array in enumerate(inputs):
        packing = scheduled.packing.get(index)
        data = np.ascontiguousarray(array if packing is None else packing.pack(array)).tobytes()
        found.append(Argument(len(data), data))
    found += [Argument(t.nbytes) for t in scheduled.scratch]
    return found + [Argument(v.type.nbytes, is_output=True) for v in kernel.body.outputs]


def outputs_of(kernel: Kernel, data: bytes) -> list[Array]:
    """The kernel's outputs from the file that the program wrote.

    Raises ValueError when it has another size.
    """
    found: list[Array] = []
    types = [v.type for v in kernel.body.outputs]
    expected = sum(t.nbytes for t in types)
    if len(data) != expected:
        raise ValueError(f"the program wrote {len(data)} bytes of outputs, the kernel has {expected}")
    offset = 0
    for type_ in types:
        dtype, count = numpy_dtype(type_.dtype), prod(type_.static_shape)
        found.append(np.frombuffer(data, dtype, count, offset).reshape(type_.static_shape))
        offset += type_.nbytes
    return found


@dataclass(frozen=True)
class Options:
    """What one start of the program does, as `c/benchmark.c` describes it."""

    cpus: int = 0
    threads: int = 1
    seconds: float = 10.0
    outputs: str = "-"
    number: int = 0
    minimum: float = 0.012
    repeats: int = 5
    abandon: float = float("inf")

    def command(self, program: str, arguments: Sequence[str]) -> list[str]:
        """The program's command line."""
        limits = f"{self.seconds:g}", self.outputs, f"{self.number}", f"{self.minimum:g}", f"{self.repeats}"
        return [program, f"{self.cpus:x}", f"{self.threads}", *limits, f"{self.abandon:g}", *arguments]


def prepare_toolchain(target: Target) -> None:
    """Link a program that does nothing: with the first one for a machine ziglang builds that machine's C
    library, which takes a minute, longer than a trial may take.

    Raises BuildError when there is no toolchain for static programs, or it fails.
    """
    toolchain = find_static_toolchain(target)
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "nothing.c").write_text("int main(void) { return 0; }\n")
        objects = compile_c(toolchain, [folder / "nothing.c"], folder)
        link_static(toolchain, objects, folder / "program", folder)


class Linker:
    """Makes programs for a target in `folder`. All but the kernel is compiled once."""

    def __init__(self, target: Target, folder: Path) -> None:
        self._toolchain = find_static_toolchain(target)
        self._folder = folder
        self._common: list[Path] = []
        self._calls: dict[int, Path] = {}

    def link(self, kernel: bytes, arguments: int, output: Path) -> None:
        """Link the object `kernel`, whose function takes so many `arguments`, into the program `output`.

        Raises BuildError when the toolchain fails.
        """
        if not self._common:
            names = ["benchmark.c", *(name for name in RUNTIME if name not in _MODELS_OWN)]
            sources = [SOURCES / name for name in names]
            self._common = compile_c(self._toolchain, sources, self._folder)
        if arguments not in self._calls:
            self._calls[arguments] = self._compile_call(arguments)
        path = self._folder / "kernel.o"
        path.write_bytes(kernel)
        link_static(self._toolchain, [path, self._calls[arguments], *self._common], output, self._folder)

    def _compile_call(self, arguments: int) -> Path:
        """What calls a kernel of so many arguments with an array of them."""
        types, values = ", ".join(["void *"] * arguments), ", ".join(f"a[{i}]" for i in range(arguments))
        source = self._folder / f"call{arguments}.c"
        source.write_text(
            f"#include <stdint.h>\nint32_t {KERNEL}({types});\n"
            f"int32_t tcomp_call(void *const *a) {{ return {KERNEL}({values}); }}\n"
        )
        return compile_c(self._toolchain, [source], self._folder)[0]
