"""A test that breaks the GPU's context, or hangs, fails alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sticky_errors
from tcomp.errors import ArtifactError, KernelError

TESTS = """
import time
from tcomp.errors import KernelError

broken = []

def test_first():
    assert not broken

def test_breaks():
    broken.append(True)
    raise KernelError("cuCtxSynchronize: an illegal memory access was encountered (CUDA error 700)")

def test_between():
    assert not broken

def test_hangs():
    time.sleep(1000)

def test_last():
    pass
"""


@pytest.mark.slow
def test_those_that_follow_have_a_new_process(tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    (tmp_path / "test_broken.py").write_text(TESTS)
    path = os.pathsep.join([str(Path(sticky_errors.__file__).parent), *sys.path])
    options = ["-v", "-n", "1", "-p", "sticky_errors", "--test-seconds", "5", "--rootdir", "."]
    command = [sys.executable, "-m", "pytest", *options]
    done = subprocess.run(
        [*command, "test_broken.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    said = done.stdout
    assert "PASSED test_broken.py::test_first" in said
    assert "PASSED test_broken.py::test_between" in said
    assert "FAILED test_broken.py::test_hangs" in said
    assert "PASSED test_broken.py::test_last" in said
    assert "an illegal memory access was encountered" in said
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("error", "is_sticky"),
    [
        (KernelError("cuCtxSynchronize: an illegal memory access was encountered (CUDA error 700)"), True),
        (ArtifactError("model `m`: GPU: the run: unspecified launch failure (CUDA error 719)"), True),
        (ArtifactError("model `m`: GPU: memory for weights: out of memory (CUDA error 2)"), False),
        (AssertionError("(CUDA error 700)"), False),
    ],
)
def test_errors_of_kernels_and_of_libraries_end_the_process(error: Exception, is_sticky: bool) -> None:
    assert sticky_errors.is_sticky(error) == is_sticky
