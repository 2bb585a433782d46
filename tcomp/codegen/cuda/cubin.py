"""From CUDA C to cubins, with what each kernel takes of a multiprocessor."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tcomp.codegen.cuda.nvcc import Nvcc, find_nvcc, named_nvcc
from tcomp.codegen.cuda.nvrtc import Nvrtc, find_nvrtc
from tcomp.errors import BuildError

_FUNCTION = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)
_SHARED = re.compile(r"(\d+) bytes smem")
_SLOW = re.compile(r"\(C75\d\d\) [^\n]*")
"""Of products of warp groups that wait for each other."""

_UNKNOWN = re.compile("gpu.architecture", re.IGNORECASE)
"""In what compilers say of an architecture that they do not know."""
_OTHER_RELEASE = (
    "; name another architecture, or take another CUDA: sm_70 needs release 12, others work with 13"
)


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


def compile_cubin(source: str, arch: str, portable: bool = False) -> Cubin:
    """Compile CUDA C for the architecture `arch`, such as `sm_80`, by the compiler of `find_compiler`.

    With `portable` the image also holds PTX, of which the driver makes code for newer architectures; there is
    none for those of an `a`, whose instructions no other has.
    Raises BuildError with the compiler's first complaint, or saying what to install when there is none.
    """
    portable = portable and not arch.endswith("a")
    compiler = find_compiler(portable)
    cubin = _compiled(compiler, source, arch, portable)
    spilling = [name for name, taken in cubin.resources.items() if taken.spilled_bytes]
    changed = _for_one_block(source, spilling)
    return cubin if changed == source else _compiled(compiler, changed, arch, portable)


def _compiled(compiler: Nvcc | Nvrtc, source: str, arch: str, portable: bool) -> Cubin:
    image, said = compiler.compile(source, arch, portable)
    if image is None:
        remedy = _OTHER_RELEASE if _UNKNOWN.search(said) else ""
        raise BuildError(f"{compiler.name} for {arch} failed: {_complaint(said)}{remedy}")
    return Cubin(image, _resources(said), tuple(_SLOW.findall(said)))


def _for_one_block(source: str, symbols: Iterable[str]) -> str:
    """`source`, in which these functions may take all registers that one block has.

    Without that word the assembler spills some where one more block would then fit a multiprocessor.
    """
    for symbol in symbols:
        source = re.sub(
            rf"__launch_bounds__\((\d+)\) {symbol}\(", rf"__launch_bounds__(\1, 1) {symbol}(", source
        )
    return source


def find_compiler(portable: bool = False) -> Nvcc | Nvrtc:
    """nvcc that CUDACXX names, else NVRTC, which takes a third of the time, else nvcc of the CUDA toolkit.

    Raises BuildError, saying what to install, when there is none.
    """
    found = named_nvcc() or find_nvrtc(portable) or find_nvcc()
    if found is None:
        raise BuildError(
            "no compiler of CUDA C found; `pip install 'tcomp[cuda]'`, which has NVRTC, or install the CUDA "
            "toolkit and put nvcc on PATH or set CUDA_HOME to its folder"
        )
    return found


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
