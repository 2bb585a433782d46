"""A library with one kernel for a GPU that a server of TVM's RPC can load: see c/cuda_trial.c."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tcomp.codegen.cuda.cubin import Cubin
from tcomp.codegen.cuda.device_code import DeviceCode
from tcomp.codegen.cuda.jit import flush_bytes
from tcomp.codegen.cuda.model_code import LAUNCHING, DeviceKernel, image_source, launch_tables
from tcomp.codegen.link import SOURCES, compile_c, link_plugin
from tcomp.codegen.toolchain import Toolchain
from tcomp.relay.types import TensorType
from tcomp.target.target import Gpu

_SYMBOL = "kernel"
_RUNTIME = ("cuda_trial.c", *LAUNCHING)


@dataclass(frozen=True)
class TrialLibraries:
    """Makes libraries with `toolchain` in `folder`, whose files are its own."""

    toolchain: Toolchain
    folder: Path
    gpu: Gpu

    def of(self, code: DeviceCode, cubin: Cubin, parameters: Sequence[TensorType]) -> bytes:
        """The library of a kernel with these parameters: inputs, scratch, outputs.

        Raises BuildError when the C compiler or the linker fails.
        """
        (self.folder / f"{_SYMBOL}.cubin").write_bytes(cubin.image)
        kernel = DeviceKernel(_SYMBOL, self.gpu.arch, len(parameters), code.launches, cubin)
        return self._linked([kernel], parameters)

    def without_kernel(self) -> bytes:
        """A library that only tells what the GPU is. Raises as `of`."""
        return self._linked([], [])

    def _linked(self, kernels: Sequence[DeviceKernel], parameters: Sequence[TensorType]) -> bytes:
        tables, images, library = (self.folder / name for name in ("tables.c", "images.S", "kernel.so"))
        sizes = ", ".join(f"{t.nbytes}u" for t in parameters)
        lines = [
            '#include "cuda_trial.h"',
            *launch_tables(kernels),
            f"const int32_t tcomp_trial_parameters = {len(parameters)};",
            f"const uint64_t tcomp_trial_bytes[] = {{{sizes or 0}}};",
            f"const uint64_t tcomp_trial_flush_bytes = {flush_bytes(self.gpu)}u;",
        ]
        tables.write_text("\n".join([*lines, ""]))
        images.write_text(image_source(kernels))
        own = compile_c(self.toolchain, [tables, images], self.folder)
        link_plugin(self.toolchain, [*own, *self._runtime()], library, self.folder)
        return library.read_bytes()

    def _runtime(self) -> list[Path]:
        """Objects of what all libraries have in common, compiled once."""
        objects = [(self.folder / name).with_suffix(".o") for name in _RUNTIME]
        if not all(path.exists() for path in objects):
            compile_c(self.toolchain, [SOURCES / name for name in _RUNTIME], self.folder)
        return objects
