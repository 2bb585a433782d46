"""Finding nvcc, and what is said when it complains."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcomp.codegen.cuda.nvcc import compile_cubin, find_nvcc
from tcomp.errors import BuildError
from tcomp.target.target import Target


def test_without_nvcc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    with pytest.raises(BuildError, match=r"no nvcc found.*install the CUDA toolkit"):
        find_nvcc()


def test_cuda_home_names_the_toolkit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert find_nvcc() == str(nvcc)


def test_complaints_are_one_line(gpu: Target) -> None:
    with pytest.raises(BuildError, match=r"nvcc for sm_80 failed: .*error"):
        compile_cubin('extern "C" __global__ void k() { undeclared(); }', "sm_80")
    with pytest.raises(BuildError, match="Unsupported gpu architecture 'sm_70'"):
        compile_cubin("", "sm_70")
