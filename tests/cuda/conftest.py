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

import device_programs
import pytest
from shared_folders import SharedFolder

from tcomp.codegen.cuda import jit
from tcomp.codegen.cuda.cubin import Cubin, compile_cubin, find_compiler
from tcomp.errors import BuildError, DeviceError
from tcomp.target.cuda_driver import LIBRARY, driver
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
def gpu(request: pytest.FixtureRequest) -> Iterator[Target]:
    """The emulated GPU as a target, with `--real-gpu` that of this machine."""
    with pytest.MonkeyPatch.context() as patch:
        if request.config.option.real_gpu:
            card: Target = request.getfixturevalue("card")
            _compile_for(card, patch)
            yield card
        else:
            _emulate(request.getfixturevalue("emulated"), patch)
            yield parse_target("cuda")


def _emulate(emulated: Path, patch: pytest.MonkeyPatch) -> None:
    """The compiler that CUDACXX names makes code for the emulated GPU."""
    own_python = str(Path(sys.executable).parent)  # Another's may be a slow script in front.
    patch.setenv("PATH", own_python, prepend=os.pathsep)
    patch.setenv("CUDACXX", str(EMULATOR / "nvcc"))
    patch.setenv("LD_LIBRARY_PATH", str(emulated))
    patch.setenv("EMULATED_HEADER", str(emulated))


def _compile_for(card: Target, patch: pytest.MonkeyPatch) -> None:
    """Kernels of older architectures as code for `card`, which the driver would not make of a cubin."""

    def compile_for_card(source: str, arch: str) -> Cubin:
        if arch.endswith("a") and arch != card.isa:
            pytest.skip(f"{card.description} has no instructions of {arch}")
        return compile_cubin(source, card.isa)

    for module in (jit, device_programs):
        patch.setattr(module, "compile_cubin", compile_for_card)


@pytest.fixture(scope="module")
def card() -> Target:
    """The GPU of this machine."""
    try:
        name = driver().name
    except DeviceError as error:
        pytest.skip(str(error))
    if name == "Emulated GPU":
        pytest.skip("this process runs on the emulated GPU; run these tests alone: pytest -m gpu")
    return parse_target("cuda")


@pytest.fixture
def real_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVIDIA's compiler, which says what real GPUs need, instead of the emulated GPU's."""
    monkeypatch.delenv("CUDACXX", raising=False)
    try:
        find_compiler()
    except BuildError as error:
        pytest.skip(str(error))
