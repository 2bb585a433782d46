"""Finding the compilers of CUDA C, and what is said when they complain."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tcomp.codegen.cuda import nvrtc
from tcomp.codegen.cuda.cubin import compile_cubin, find_compiler
from tcomp.codegen.cuda.nvcc import Nvcc
from tcomp.errors import BuildError
from tcomp.target.target import Target

pytestmark = pytest.mark.emulated

SCALE = """
#include <cuda_fp16.h>
extern "C" __global__ void scale(half *x, const int *n) {
  __shared__ half one[64];
  one[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  if (threadIdx.x < *n) x[threadIdx.x] = one[63 - threadIdx.x] * __float2half(2.0f);
}
"""


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(nvrtc, "_PACKAGE", "no_such_package")
    for name in ("CUDA_HOME", "CUDACXX"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def real_nvrtc(monkeypatch: pytest.MonkeyPatch) -> nvrtc.Nvrtc:
    monkeypatch.delenv("CUDACXX", raising=False)
    found = nvrtc.find_nvrtc(portable=True)
    if found is None:
        pytest.skip("no NVRTC: pip install 'tcomp[cuda]'")
    return found


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.mark.usefixtures("no_compiler")
def test_without_compilers() -> None:
    with pytest.raises(BuildError, match=r"no compiler of CUDA C found.*tcomp\[cuda\].*CUDA toolkit"):
        compile_cubin(SCALE, "sm_80")


@pytest.mark.usefixtures("no_compiler")
def test_cuda_home_names_the_toolkit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nvcc = program(tmp_path / "toolkit" / "bin" / "nvcc")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    assert find_compiler() == Nvcc(str(nvcc))


def test_cudacxx_names_the_compiler(
    real_nvrtc: nvrtc.Nvrtc, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert find_compiler() is real_nvrtc
    monkeypatch.setenv("CUDACXX", str(program(tmp_path / "my-nvcc")))
    assert find_compiler() == Nvcc(str(tmp_path / "my-nvcc"))
    monkeypatch.setenv("CUDACXX", "no-such-nvcc")
    with pytest.raises(BuildError, match="CUDACXX is `no-such-nvcc`, which is no program here"):
        find_compiler()


def test_compilers_have_versions(gpu: Target, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert find_compiler().version == "nvcc 0.0"
    monkeypatch.setenv("CUDACXX", str(program(tmp_path / "odd-nvcc")))
    assert find_compiler().version == "nvcc of an unknown release"


def test_nvrtc_has_a_version(real_nvrtc: nvrtc.Nvrtc) -> None:
    assert re.fullmatch(r"NVRTC \d+\.\d+", real_nvrtc.version)


def test_complaints_are_one_line(gpu: Target) -> None:
    with pytest.raises(BuildError, match=r"nvcc for sm_80 failed: .*error"):
        compile_cubin('extern "C" __global__ void k() { undeclared(); }', "sm_80")
    with pytest.raises(
        BuildError, match=r"Unsupported gpu architecture 'sm_70'; name another .*: sm_70 needs release 12"
    ):
        compile_cubin("", "sm_70")


@pytest.mark.usefixtures("no_compiler")
def test_nvrtc_needs_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "no_such_package" / "cu13" / "lib" / "libnvrtc.so.13"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"")
    monkeypatch.syspath_prepend(tmp_path)
    assert nvrtc.find_nvrtc() is None


def test_newest_nvrtc_is_taken(tmp_path: Path) -> None:
    names = ("cu13/lib/libnvrtc.so.13", "cuda_nvrtc/lib/libnvrtc.so.12", "cu9/lib/libnvrtc.so.9")
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.touch()
    found = nvrtc._files([str(tmp_path)], "lib/libnvrtc.so.*")  # pyright: ignore[reportPrivateUsage]
    assert [str(path.relative_to(tmp_path)) for path in found] == [names[2], names[1], names[0]]


def test_parts_are_of_one_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest that has its own headers; others' do not count."""
    names = [
        "cu15/lib/libnvrtc.so.15",
        "cu14/lib/libnvrtc.so.14", "cu14/include/cuda_fp16.h",
        "cuda_nvrtc/lib/libnvrtc.so.12", "cuda_runtime/include/cuda_fp16.h", "nvfatbin/lib/libnvfatbin.so.12",
    ]  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(nvrtc.ctypes, "CDLL", lambda path: path)
    for whole in (
        nvrtc.Nvrtc(tmp_path / names[1], tmp_path / "cu14/include", None),
        nvrtc.Nvrtc(tmp_path / names[3], tmp_path / "cuda_runtime/include", tmp_path / names[5]),
    ):
        nvrtc._loaded.cache_clear()  # pyright: ignore[reportPrivateUsage]
        found = nvrtc._loaded((str(tmp_path),))  # pyright: ignore[reportPrivateUsage]
        assert found == replace(whole, library=str(whole.library))
        (tmp_path / names[2]).unlink(missing_ok=True)
    nvrtc._loaded.cache_clear()  # pyright: ignore[reportPrivateUsage]


def test_halves_of_nvrtc_find_each_other(tmp_path: Path) -> None:
    """That of CUDA 13.0 opens the other half by its name, and looks nowhere but where the system does."""
    folder = tmp_path / "cu13" / "lib"
    header = tmp_path / "cu13" / "include" / "cuda_fp16.h"
    for path in (folder, header.parent):
        path.mkdir(parents=True)
    header.touch()
    half = "libnvrtc-builtins.so.13.0"
    sources = {
        half: "int half;",
        "libnvrtc.so.13": f"""
            #include <dlfcn.h>
            int nvrtcVersion(int *major, int *minor) {{
              *major = 13, *minor = 0;
              return dlopen("{half}", RTLD_NOW) == 0 ? 7 : 0;
            }}
            const char *nvrtcGetErrorString(int code) {{ return "the other half is missing"; }}""",
    }
    for name, source in sources.items():
        flags = ["-xc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-", "-o", str(folder / name), "-ldl"]
        subprocess.run(["gcc", *flags], input=source, text=True, check=True)
    found = nvrtc._loaded((str(tmp_path),))  # pyright: ignore[reportPrivateUsage]
    assert found is not None
    assert found.version == "NVRTC 13.0"


def test_without_nvfatbin_nvcc_makes_libraries(
    real_nvrtc: nvrtc.Nvrtc, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    alone = replace(real_nvrtc, fatbin=None)
    monkeypatch.setattr(nvrtc, "_loaded", lambda folders: alone)
    monkeypatch.setenv("PATH", str(program(tmp_path / "nvcc").parent))
    assert find_compiler() is alone
    assert find_compiler(portable=True) == Nvcc(str(tmp_path / "nvcc"))


@pytest.mark.usefixtures("real_nvrtc")
def test_nvrtc_compiles() -> None:
    cubin = compile_cubin(SCALE, "sm_80")
    assert cubin.image.startswith(b"\x7fELF")
    taken = cubin.resources["scale"]
    assert (taken.shared_bytes, taken.spilled_bytes) == (128, 0)
    assert 4 < taken.registers < 40


@pytest.mark.usefixtures("real_nvrtc")
def test_nvrtc_puts_ptx_beside() -> None:
    image = compile_cubin(SCALE, "sm_80", portable=True).image
    assert b"\x7fELF" in image
    assert len(image) > len(compile_cubin(SCALE, "sm_80").image)
    assert compile_cubin(SCALE, "sm_90a", portable=True).image.startswith(b"\x7fELF")


@pytest.mark.usefixtures("real_nvrtc")
def test_complaints_of_nvrtc() -> None:
    with pytest.raises(BuildError, match=r"NVRTC for sm_80 failed: .*error.*undeclared"):
        compile_cubin('extern "C" __global__ void k() { undeclared(); }', "sm_80")
    with pytest.raises(BuildError, match=r"NVRTC for sm_20 failed: .*error.*; name another architecture"):
        compile_cubin(SCALE, "sm_20")
