"""From CUDA C to cubins, by nvcc, with what each kernel takes of a multiprocessor."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tcomp.codegen.cuda.device_code import HEADERS
from tcomp.errors import BuildError

_FLAGS = ("-O3", "-std=c++17", "--resource-usage")
_FUNCTION = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)
_SHARED = re.compile(r"(\d+) bytes smem")
_SLOW = re.compile(r"\(C75\d\d\) [^\n]*")
"""Of products of warp groups that wait for each other."""


@dataclass(frozen=True)
class Resources:
    """What a thread takes (registers of 32 bits, spilled bytes), and a block (static shared memory)."""

    registers: int
    spilled_bytes: int
    shared_bytes: int


@dataclass(frozen=True)
class Cubin:
    """Machine code for an architecture as the driver loads it, and the resources of its functions by name.

    `losses` is what the assembler says makes it slow.
    """

    image: bytes
    resources: Mapping[str, Resources]
    losses: tuple[str, ...] = ()


def find_nvcc() -> str:
    """The path of nvcc: of PATH, or of the CUDA toolkit that CUDA_HOME names.

    Raises BuildError, saying what to install, when there is none.
    """
    found = shutil.which("nvcc")
    if found is None and os.environ.get("CUDA_HOME"):
        found = shutil.which("nvcc", path=str(Path(os.environ["CUDA_HOME"], "bin")))
    if found is None:
        raise BuildError(
            "no nvcc found, which makes code for NVIDIA's GPUs; install the CUDA toolkit and put nvcc on "
            "PATH, or set CUDA_HOME to its folder"
        )
    return found


def compile_cubin(source: str, arch: str, portable: bool = False) -> Cubin:
    """Compile CUDA C for the architecture `arch`, such as `sm_80`.

    With `portable` the image also holds PTX, of which the driver makes code for newer architectures; there is
    none for those of an `a`, whose instructions no other has.
    Raises BuildError with nvcc's first complaint.
    """
    with tempfile.TemporaryDirectory(prefix="tcomp-nvcc-") as folder:
        code, output = Path(folder, "kernel.cu"), Path(folder, "kernel.cubin")
        code.write_text(source)
        form = _forms(arch, portable)
        command = [find_nvcc(), *_FLAGS, *form, f"-I{HEADERS}", "-o", output, code]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not output.exists():
            raise BuildError(f"nvcc for {arch} failed: {_complaint(done.stderr + done.stdout)}")
        said = done.stderr + done.stdout
        return Cubin(output.read_bytes(), _resources(said), tuple(_SLOW.findall(said)))


def _forms(arch: str, portable: bool) -> tuple[str, ...]:
    """Options for what the image holds."""
    if not portable or arch.endswith("a"):
        return f"-arch={arch}", "--cubin"
    virtual = arch.replace("sm", "compute")
    return "-gencode", f"arch={virtual},code=[{arch},{virtual}]", "--fatbin"


def _complaint(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next(
        (line for line in lines if "error" in line or "fatal" in line), lines[-1] if lines else "no output"
    )


def _resources(text: str) -> dict[str, Resources]:
    found: dict[str, Resources] = {}
    for match in _FUNCTION.finditer(text):
        shared = _SHARED.search(match["rest"])
        spilled = int(match["stores"]) + int(match["loads"])
        found[match["name"]] = Resources(
            int(match["registers"]), spilled, int(shared[1]) if shared is not None else 0
        )
    return found
