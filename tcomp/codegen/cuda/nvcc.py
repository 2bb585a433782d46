"""nvcc, the compiler of the CUDA toolkit, as a process."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

from tcomp.codegen.cuda.device_code import HEADERS
from tcomp.errors import BuildError

_FLAGS = ("-O3", "-std=c++17", "--resource-usage")


@dataclass(frozen=True)
class Nvcc:
    """The compiler at `path`."""

    path: str
    name: ClassVar[str] = "nvcc"

    @property
    def version(self) -> str:
        """Name and release: `nvcc 13.0`."""
        return _version(self.path)

    def compile(self, source: str, arch: str, portable: bool) -> tuple[bytes | None, str]:
        """The image of a CUDA C `source`, with PTX in it if `portable`, and what the compiler says.

        None instead of the image when it refuses the source.
        """
        with tempfile.TemporaryDirectory(prefix="tcomp-nvcc-") as folder:
            code, output = Path(folder, "kernel.cu"), Path(folder, "kernel.cubin")
            code.write_text(source)
            command = [self.path, *_FLAGS, *_forms(arch, portable), f"-I{HEADERS}", "-o", output, code]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            worked = done.returncode == 0 and output.exists()
            return output.read_bytes() if worked else None, done.stderr + done.stdout


@cache
def _version(path: str) -> str:
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"release ([\d.]+)", said)
    return f"nvcc {found[1] if found else 'of an unknown release'}"


def named_nvcc() -> Nvcc | None:
    """nvcc that the environment variable CUDACXX names; None where it is not set.

    Raises BuildError when there is no such program.
    """
    name = os.environ.get("CUDACXX")
    if not name:
        return None
    path = shutil.which(name)
    if path is None:
        raise BuildError(f"CUDACXX is `{name}`, which is no program here; name an nvcc, or unset it")
    return Nvcc(path)


def find_nvcc() -> Nvcc | None:
    """nvcc of PATH, or of the CUDA toolkit that CUDA_HOME names; None where there is none."""
    home = os.environ.get("CUDA_HOME")
    path = shutil.which("nvcc") or (shutil.which("nvcc", path=str(Path(home, "bin"))) if home else None)
    return None if path is None else Nvcc(path)


def _forms(arch: str, portable: bool) -> tuple[str, ...]:
    """Options for what the image holds."""
    if not portable:
        return f"-arch={arch}", "--cubin"
    virtual = arch.replace("sm", "compute")
    return "-gencode", f"arch={virtual},code=[{arch},{virtual}]", "--fatbin"
