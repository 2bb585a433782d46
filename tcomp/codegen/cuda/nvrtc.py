"""NVRTC, NVIDIA's compiler as a library, which needs no CUDA toolkit: packages on PyPI have it.

Source: NVIDIA's documentation, "NVRTC" and "nvFatbin".
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
from collections.abc import Sequence
from ctypes import byref, c_char_p, c_int, c_size_t, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from tcomp.codegen.cuda.device_code import HEADERS
from tcomp.errors import BuildError

_PACKAGE = "nvidia"
"""What NVIDIA's packages share: they have `nvidia/cu13/lib`, before CUDA 13 `nvidia/cuda_nvrtc/lib`."""
_SHIMS = HEADERS / "nvrtc"
"""Standard headers, of which NVRTC has none."""
_FLAGS = ("--std=c++17", "--disable-warnings", "--ptxas-options=-v")


@dataclass(frozen=True)
class Nvrtc:
    """A loaded compiler, CUDA's headers, and nvFatbin, if there is one."""

    library: ctypes.CDLL
    includes: Path
    fatbin: Path | None
    name: ClassVar[str] = "NVRTC"

    @property
    def version(self) -> str:
        """Name and release: `NVRTC 13.5`."""
        major, minor = c_int(), c_int()
        self._call("nvrtcVersion", byref(major), byref(minor))
        return f"NVRTC {major.value}.{minor.value}"

    def compile(self, source: str, arch: str, portable: bool) -> tuple[bytes | None, str]:
        """The image of a CUDA C `source`, with PTX in it if `portable`, and what the compiler says.

        None instead of the image when it refuses the source.
        Raises BuildError when there is no nvFatbin for a `portable` one.
        """
        cubin, said = self._run(source, arch, "CUBIN")
        if cubin is None or not portable:
            return cubin, said
        if self.fatbin is None:
            raise BuildError(
                "no nvFatbin found, which puts PTX beside machine code; pip install nvidia-nvfatbin"
            )
        ptx, problem = self._run(source, arch.replace("sm", "compute"), "PTX")
        if ptx is None:
            return None, problem
        return _joined(self.fatbin, arch.removeprefix("sm_"), cubin, ptx), said

    def _run(self, source: str, arch: str, form: str) -> tuple[bytes | None, str]:
        program = c_void_p()
        self._call("nvrtcCreateProgram", byref(program), source.encode(), b"kernel.cu", 0, None, None)
        try:
            options = [*_FLAGS, f"--gpu-architecture={arch}"]
            options += [f"--include-path={path}" for path in (HEADERS, _SHIMS, self.includes)]
            texts = (c_char_p * len(options))(*(option.encode() for option in options))
            code = self.library.nvrtcCompileProgram(program, len(options), texts)
            said = self._text(program, "ProgramLog").rstrip(b"\0").decode()
            if code != 0:
                return None, said or self._error(code)
            return self._text(program, form), said
        finally:
            self.library.nvrtcDestroyProgram(byref(program))

    def _text(self, program: c_void_p, what: str) -> bytes:
        size = c_size_t()
        self._call(f"nvrtcGet{what}Size", program, byref(size))
        text = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{what}", program, text)
        return text.raw

    def _call(self, function: str, *arguments: Any) -> None:
        code = getattr(self.library, function)(*arguments)
        if code != 0:
            raise BuildError(f"{function} failed: {self._error(code)}")

    def _error(self, code: int) -> str:
        text = self.library.nvrtcGetErrorString
        text.restype = c_char_p
        found = text(c_int(code))
        return found.decode() if found else f"error {code}"


def find_nvrtc(portable: bool = False) -> Nvrtc | None:
    """The newest NVRTC among Python's packages, with CUDA's headers and, if `portable`, nvFatbin.

    None where one of them is missing.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    found = _loaded(tuple(spec.submodule_search_locations or ()) if spec is not None else ())
    return None if found is None or (portable and found.fatbin is None) else found


@cache
def _loaded(folders: Sequence[str]) -> Nvrtc | None:
    for library in reversed(_files(folders, "lib/libnvrtc.so.*")):
        headers, fatbins = (
            [path for path in _files(folders, pattern) if _release(path) == _release(library)]
            for pattern in ("include/cuda_fp16.h", f"lib/libnvfatbin.so{library.suffix}")
        )
        if headers:
            return Nvrtc(_opened(library), headers[-1].parent, fatbins[-1] if fatbins else None)
    return None


def _opened(library: Path) -> ctypes.CDLL:
    """NVRTC, which opens its other half by name when it compiles first.

    That of CUDA 13.0 does not look for it beside itself, so it is opened here before.
    """
    for half in library.parent.glob("libnvrtc-builtins.so.*"):
        ctypes.CDLL(str(half))
    return ctypes.CDLL(str(library))


def _release(path: Path) -> str:
    """The folder of a release of CUDA that a file is in; empty before CUDA 13: each part has its own."""
    package = path.parts[-3]
    return package if re.fullmatch(r"cu\d+", package) else ""


def _files(folders: Sequence[str], pattern: str) -> list[Path]:
    """Those of all packages that fit, the newest CUDA's last."""
    found = [path for folder in folders for path in Path(folder).glob(f"*/{pattern}")]
    return sorted(
        found, key=lambda path: [int(n) for n in re.findall(r"\d+", f"{path.parts[-3]} {path.name}")]
    )


def _joined(library: Path, arch: str, cubin: bytes, ptx: bytes) -> bytes:
    """One image of both."""
    fatbin = ctypes.CDLL(str(library))
    handle, size = c_void_p(), c_size_t()

    def call(function: str, *arguments: Any) -> None:
        code = getattr(fatbin, function)(*arguments)
        if code != 0:
            raise BuildError(f"{function} failed with code {code}")

    call("nvFatbinCreate", byref(handle), None, c_size_t(0))
    try:
        name = arch.encode()
        call("nvFatbinAddCubin", handle, cubin, c_size_t(len(cubin)), name, b"kernel")
        call("nvFatbinAddPTX", handle, ptx, c_size_t(len(ptx)), name, b"kernel", None)
        call("nvFatbinSize", handle, byref(size))
        image = ctypes.create_string_buffer(size.value)
        call("nvFatbinGet", handle, image)
        return image.raw
    finally:
        fatbin.nvFatbinDestroy(byref(handle))
