"""A GPU that this CPU emulates, for tests of everything but speed: see emulator/."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from shared_folders import SharedFolder

from tcomp.codegen.cuda.cubin import find_compiler
from tcomp.errors import BuildError
from tcomp.target.cuda_driver import LIBRARY
from tcomp.target.parse import parse_target
from tcomp.target.target import Target

EMULATOR = Path(__file__).parent / "emulator"


@pytest.fixture(scope="session")
def emulated(shared_folder: SharedFolder) -> Path:
    """The folder of a stand-in for the driver, loaded here and found by processes that start from here."""
    if shutil.which("g++") is None or platform.machine() != "x86_64":
        pytest.skip("the emulated GPU needs g++ and an x86-64 CPU")

    def build(folder: Path) -> None:
        flags = ["-O1", "-std=c++17", "-fPIC", "-shared", f"-Wl,-soname,{LIBRARY}"]
        subprocess.run(["g++", *flags, EMULATOR / "libcuda.cpp", "-o", folder / LIBRARY, "-ldl"], check=True)
        subprocess.run([EMULATOR / "nvcc", "--emulated-header", folder], check=True)

    folder = shared_folder("driver", build)
    ctypes.CDLL(str(folder / LIBRARY), ctypes.RTLD_GLOBAL)  # `driver()` then finds it under its name
    return folder


@pytest.fixture(scope="module")
def gpu(emulated: Path) -> Iterator[Target]:
    """The emulated GPU as a target; the compiler that CUDACXX names makes code for it."""
    with pytest.MonkeyPatch.context() as patch:
        own_python = str(Path(sys.executable).parent)  # Another's may be a slow script in front.
        patch.setenv("PATH", own_python, prepend=os.pathsep)
        patch.setenv("CUDACXX", str(EMULATOR / "nvcc"))
        patch.setenv("LD_LIBRARY_PATH", str(emulated))
        patch.setenv("EMULATED_HEADER", str(emulated))
        yield parse_target("cuda")


@pytest.fixture
def real_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVIDIA's compiler, which says what real GPUs need, instead of the emulated GPU's."""
    monkeypatch.delenv("CUDACXX", raising=False)
    try:
        find_compiler()
    except BuildError as error:
        pytest.skip(str(error))
