"""CUDA C is written the same where NVIDIA's libraries are, and TVM's runtime for CUDA would find them."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

PROGRAM = """
import ctypes, sys
for library in sys.argv[1:]:
    ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
from cuda_kernels import KERNELS
from tcomp.codegen.cuda.device_code import device_code
from tcomp.target.target import TARGETS
from tcomp.tensor.selection import schedule
target = TARGETS["cuda:sm_80"]
print(device_code(schedule(KERNELS["relu"], target).function, "kernel", target).source)
"""


def file_of(package: str, pattern: str) -> Path:
    spec = find_spec(package)
    folders = spec.submodule_search_locations or () if spec is not None else ()
    found = next((path for folder in folders for path in Path(folder).glob(pattern)), None)
    if found is None:
        pytest.skip(f"no {pattern} in the package {package}: pip install 'tcomp[cuda]'")
    return found


def written(*libraries: Path) -> str:
    command = [sys.executable, "-c", PROGRAM, *map(str, libraries)]
    folder = Path(__file__).parent
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_tvm_does_not_compile_what_it_writes(tmp_path: Path) -> None:
    """With its runtime it would, by packages that need not be there, and without tcomp's headers."""
    runtime = file_of("tvm", "lib/libtvm_runtime_cuda.so")
    cuda_runtime = file_of("nvidia", "cu*/lib/libcudart.so.*")
    undefined = subprocess.run(["nm", "-D", "--undefined-only", runtime], capture_output=True, text=True)
    names = re.findall(r"U (cu[A-Z]\w+)", undefined.stdout)
    assert names
    driver = tmp_path / "libcuda.so.1"
    source = "".join(f"int {name}(void) {{ return 100; }}\n" for name in names)
    flags = ["-xc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-", "-o", str(driver)]
    subprocess.run(["gcc", *flags], input=source, text=True, check=True)
    text = written(driver, cuda_runtime)
    assert "__global__" in text
    assert text == written()
