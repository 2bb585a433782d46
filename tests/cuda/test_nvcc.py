"""Finding the compilers of CUDA C, and what is said when they complain."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcomp.codegen.cuda import nvrtc
from tcomp.codegen.cuda.cubin import compile_cubin, find_compiler
from tcomp.codegen.cuda.nvcc import Nvcc
from tcomp.errors import BuildError
from tcomp.target.target import Target

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
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(nvrtc, "_PACKAGE", "no_such_package")


@pytest.mark.usefixtures("no_compiler")
def test_without_compilers() -> None:
    with pytest.raises(BuildError, match=r"no nvcc found.*install the CUDA toolkit.*tcomp\[cuda\]"):
        compile_cubin(SCALE, "sm_80")


def test_cuda_home_names_the_toolkit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert find_compiler() == Nvcc(str(nvcc))


def test_complaints_are_one_line(gpu: Target) -> None:
    with pytest.raises(BuildError, match=r"nvcc for sm_80 failed: .*error"):
        compile_cubin('extern "C" __global__ void k() { undeclared(); }', "sm_80")
    with pytest.raises(BuildError, match="Unsupported gpu architecture 'sm_70'"):
        compile_cubin("", "sm_70")


def test_nvrtc_without_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "no_such_package" / "cu13" / "lib" / "libnvrtc.so.13"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"")
    monkeypatch.setattr(nvrtc, "_PACKAGE", "no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BuildError, match=r"libnvrtc.so.13 has no headers.*pip install nvidia-cuda-runtime"):
        nvrtc.find_nvrtc()


def test_newest_nvrtc_is_taken(tmp_path: Path) -> None:
    names = ("cu13/lib/libnvrtc.so.13", "cuda_nvrtc/lib/libnvrtc.so.12", "cu9/lib/libnvrtc.so.9")
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.touch()
    found = nvrtc._files([str(tmp_path)], "lib/libnvrtc.so.*")  # pyright: ignore[reportPrivateUsage]
    assert [str(path.relative_to(tmp_path)) for path in found] == [names[2], names[1], names[0]]


def test_nvrtc_compiles(real_nvrtc: nvrtc.Nvrtc) -> None:
    assert find_compiler() is real_nvrtc
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
    with pytest.raises(BuildError, match=r"NVRTC for sm_20 failed: .*error"):
        compile_cubin(SCALE, "sm_20")
