"""What is written here of NVIDIA's driver by hand is what its own header, cuda.h, says."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import tcomp.codegen
from sticky_errors import STICKY
from tcomp.codegen.cuda.nvcc import find_nvcc
from tcomp.codegen.cuda.nvrtc import find_nvrtc
from tcomp.target import cuda_driver
from tcomp.target.cuda_driver import Attribute
from tcomp.target.tile_map import DRIVER_SWIZZLES, DRIVER_TYPES

C = Path(tcomp.codegen.__file__).parent / "c"
SCRIPTS = Path(__file__).parents[2] / "scripts"
FILES = sorted(C.glob("cuda*.[ch]"))
CALLERS = [Path(cuda_driver.__file__), *sorted(SCRIPTS.glob("gpu_*.py"))]
"""Python that calls the driver."""

COMPARED = r"""
#define __CUDA_API_VERSION_INTERNAL  // Declares former versions of functions, too.
#include <cuda.h>
#include <type_traits>
#define _Alignas alignas
#include "cuda_driver.h"

template <class Own, class Real> constexpr bool passes_as() {
  return sizeof(Own) == sizeof(Real) && std::is_floating_point_v<Own> == std::is_floating_point_v<Real>;
}
// What a pointer points to must be as large where both sides know it.
template <class Own, class Real> constexpr bool points_as() {
  using A = std::remove_pointer_t<Own>;
  using B = std::remove_pointer_t<Real>;
  if constexpr (!std::is_pointer_v<Own> || !std::is_pointer_v<Real> || std::is_void_v<A> || std::is_void_v<B>)
    return true;
  else if constexpr (std::is_class_v<B> && !std::is_class_v<A>)
    return false;
  else
    return sizeof(A) == sizeof(B) && std::is_floating_point_v<A> == std::is_floating_point_v<B>;
}
template <class Answer, class... Own, class Result, class... Real>
constexpr bool same(Answer (*)(Own...), Result (*)(Real...)) {
  if constexpr (sizeof...(Own) != sizeof...(Real))
    return false;
  else
    return passes_as<Answer, Result>() && (passes_as<Own, Real>() && ...) && (points_as<Own, Real>() && ...);
}
static_assert(sizeof(tensor_map) == sizeof(CUtensorMap) && alignof(tensor_map) >= alignof(CUtensorMap));
static_assert(sizeof(address) == sizeof(CUdeviceptr) && sizeof(handle) == sizeof(CUcontext));
"""


@pytest.fixture(scope="module")
def include() -> Path:
    """The folder of cuda.h: the CUDA toolkit's, or that of the package with NVRTC's headers."""
    nvcc, nvrtc = find_nvcc(), find_nvrtc()
    folders = [Path(nvcc.path).resolve().parents[1] / "include"] if nvcc is not None else []
    folders += [nvrtc.includes] if nvrtc is not None else []
    found = next((folder for folder in folders if (folder / "cuda.h").exists()), None)
    if found is None or shutil.which("g++") is None:
        pytest.skip("needs cuda.h and g++: pip install 'tcomp[cuda]', or the CUDA toolkit")
    return found


def complaints(include: Path, lines: Sequence[str]) -> str:
    """What g++ says of assertions behind `COMPARED`."""
    command = ["g++", "-std=c++17", "-fsyntax-only", f"-I{include}", f"-I{C}", "-xc++", "-"]
    source = "\n".join([COMPARED, *lines, ""])
    return subprocess.run(command, input=source, text=True, capture_output=True, check=False).stderr


def functions() -> list[tuple[str, str]]:
    """Fields of `tcomp_cuda_functions`, and the symbols that they are loaded from."""
    return re.findall(r'F\((\w+), "(\w+)"', (C / "cuda_driver.h").read_text())


def test_functions_have_the_parameters_of_the_driver(include: Path) -> None:
    assert len(functions()) > 40
    lines = [
        f"static_assert(same(decltype(tcomp_cuda_functions::{field}){{}}, decltype(&{symbol}){{}}));"
        for field, symbol in functions()
    ]
    assert complaints(include, lines) == ""


@pytest.mark.parametrize(
    "wrong",
    ["(int, unsigned *)", "(unsigned, unsigned long long *)", "(unsigned)", "(unsigned, float *)"],
)
def test_other_parameters_are_seen(include: Path, wrong: str) -> None:
    """`cuDeviceGetCount` with one too many; `cuMemAlloc` of a size of 32 bits, and the like."""
    line = f"static_assert(same((int (*){wrong})nullptr, (CUresult (*)(size_t, int *))nullptr));"
    assert "static assertion failed" in complaints(include, [line])


def test_constants_are_those_of_the_driver(include: Path) -> None:
    """Those of C say their name in a comment; those of Python have it here."""
    named = [
        (name, value)
        for file in FILES
        for value, name in re.findall(r"#define \w+ (\d+) +/\* (CU\w+)", file.read_text())
    ]
    assert len(named) >= 12
    named += [(f"CU_DEVICE_ATTRIBUTE_{ATTRIBUTES[one]}", str(int(one))) for one in Attribute]
    types = {"float8_e4m3fn": "uint8", "float8_e5m2": "uint8", "int8": "uint8", "tf32": "tfloat32"}
    named += [
        (f"CU_TENSOR_MAP_DATA_TYPE_{types.get(name, name).upper()}", str(value))
        for name, value in DRIVER_TYPES.items()
    ]
    named += [
        (f"CU_TENSOR_MAP_SWIZZLE_{f'{line}B' if line else 'NONE'}", str(value))
        for line, value in DRIVER_SWIZZLES.items()
    ]
    text = Path(cuda_driver.__file__).read_text()
    named += [(name, value) for value, name in re.findall(r'^_\w+ = (\d+)\n"""(CU\w+)', text, re.MULTILINE)]
    named += [
        (f"CUDA_ERROR_{name}", re.findall(r"\d+", text)[0]) for name, text in zip(ERRORS, STICKY, strict=True)
    ]
    lines = [f'static_assert({name} == {value}, "{name}");' for name, value in named]
    assert complaints(include, lines) == ""
    assert "static assertion failed" in complaints(include, ["static_assert(CU_CTX_MAP_HOST == 9);"])


ATTRIBUTES = {
    Attribute.L2_BYTES: "L2_CACHE_SIZE",
    Attribute.MEMORY_CLOCK_KHZ: "MEMORY_CLOCK_RATE",
    Attribute.BUS_BITS: "GLOBAL_MEMORY_BUS_WIDTH",
    Attribute.PROCESSORS: "MULTIPROCESSOR_COUNT",
    Attribute.THREADS: "MAX_THREADS_PER_MULTIPROCESSOR",
    Attribute.MAJOR: "COMPUTE_CAPABILITY_MAJOR",
    Attribute.MINOR: "COMPUTE_CAPABILITY_MINOR",
    Attribute.SHARED_BYTES: "MAX_SHARED_MEMORY_PER_MULTIPROCESSOR",
    Attribute.REGISTERS: "MAX_REGISTERS_PER_MULTIPROCESSOR",
    Attribute.BLOCK_SHARED_BYTES: "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN",
}
ERRORS = (
    "ILLEGAL_ADDRESS", "LAUNCH_TIMEOUT", "HARDWARE_STACK_ERROR", "ILLEGAL_INSTRUCTION", "MISALIGNED_ADDRESS",
    "INVALID_ADDRESS_SPACE", "INVALID_PC", "LAUNCH_FAILED",
)  # fmt: skip
"""After which nothing runs in a context."""


def calls(file: Path) -> Iterator[tuple[str, int | None]]:
    """Functions of the driver that a file calls, with how many arguments, if it says each of them."""
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant):
            continue
        name, given = node.args[0].value, node.args[1:]
        if isinstance(name, str) and re.fullmatch(r"cu[A-Z]\w+", name):
            yield name, None if any(isinstance(one, ast.Starred) for one in given) else len(given)


def test_python_calls_what_the_driver_has(include: Path) -> None:
    """Nothing says types there; each name is declared, with as many parameters as are given."""
    found = {call for file in CALLERS for call in calls(file)}
    assert {("cuMemAlloc_v2", 2), ("cuStreamBeginCapture_v2", 2), ("cuTensorMapEncodeTiled", None)} <= found
    counted = [
        "template <class R, class... A> constexpr int parameters(R (*)(A...)) { return sizeof...(A); }",
        *(
            f"static_assert(parameters(&{name}) {f'== {count}' if count is not None else '> 0'});"
            for name, count in sorted(found, key=str)
        ),
    ]
    assert complaints(include, counted) == ""
