"""What a linked library must be like on its system, checked by reading the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Union

from tcomp.codegen.aarch64 import find_register
from tcomp.codegen.macho import MachO
from tcomp.errors import BuildError
from tcomp.runtime.elf import RELOCATABLE, SEGMENT_LOAD, SEGMENT_THREAD_LOCAL, SharedLibrary
from tcomp.target.target import Target

_Library = Union[SharedLibrary, MachO]
PLATFORM_REGISTER = 18
"""x18 belongs to the system on Android and Apple's: a shadow call stack or the kernel may change it."""


@dataclass(frozen=True)
class Demands:
    """What a system allows."""

    libraries: frozenset[str]
    """Names of libraries, before `.so`, that every machine with the system has."""
    thread_local: bool
    """Whether its loader knows thread-local storage."""
    reserves_register: bool
    """Whether x18 is the system's."""


DEMANDS: Mapping[str, Demands] = {
    "linux": Demands(
        frozenset({"libc", "libm", "libdl", "libpthread"})
        | {"ld-linux-x86-64", "ld-linux-aarch64", "ld-linux-armhf"},
        thread_local=True,
        reserves_register=False,
    ),
    "android": Demands(frozenset({"libc", "libm", "libdl"}), thread_local=False, reserves_register=True),
    "apple": Demands(frozenset({"/usr/lib/libSystem.B.dylib"}), thread_local=True, reserves_register=True),
}
_LINKERS_OWN = ("_mh_dylib_header", "__dso_handle")
"""What linkers for Apple's systems put into every library."""
_PAGES = {"aarch64": 16384}
"""The largest pages that systems on a machine have by default; 4 KiB elsewhere."""


def check_library(path: Path, target: Target) -> None:
    """Check the library at `path` against what the system of `target` demands.

    Raises BuildError naming what is wrong and what to do.
    """
    library = _read(path, target)
    for check in _CHECKS:
        for problem in check(library, target):
            raise BuildError(f"{path.name} {problem}")


def _read(path: Path, target: Target) -> _Library:
    data = path.read_bytes()
    return MachO(str(path), data) if target.system == "apple" else SharedLibrary(str(path), memoryview(data))


def check_object(path: Path, target: Target) -> None:
    """Raise BuildError when the object at `path` wants functions of a library that a bare machine lacks.

    Compilers' own libraries are there on every machine; their names begin with two underscores.
    """
    data = path.read_bytes()
    made = (
        MachO(str(path), data)
        if target.system == "apple"
        else SharedLibrary(str(path), memoryview(data), RELOCATABLE)
    )
    wanted = [s.name for s in made.symbols if not s.defined]
    missing = [name for name in wanted if not name.startswith(("__", "_GLOBAL_OFFSET_TABLE_"))]
    if missing:
        raise BuildError(
            f"the model needs {', '.join(missing)}, which no C library gives in a freestanding program; use "
            "float32 in place of float64 there, or --runtime serial"
        )


def _needed(library: _Library, target: Target) -> Iterator[str]:
    allowed = DEMANDS[target.system].libraries
    foreign = [name for name in library.needed if name.split(".so")[0] not in allowed]
    if foreign:
        known = ", ".join(sorted(allowed))
        yield (
            f"needs {', '.join(foreign)}; on {target.system} only {known} may be needed: use a compiler that "
            "links its own libraries statically"
        )


def _undefined(library: _Library, target: Target) -> Iterator[str]:
    missing = [s.name for s in library.symbols if not s.defined and s.name.lstrip("_").lower()[:3] == "tvm"]
    if missing:
        yield f"needs {', '.join(missing)} of TVM's runtime; tcomp's C runtime must define it: report this"


def _exported(library: _Library, target: Target) -> Iterator[str]:
    known = ("tcomp_", *_LINKERS_OWN)
    leaked = [s.name for s in library.symbols if s.defined and not s.name.startswith(known)]
    if leaked:
        yield (
            f"exports {', '.join(leaked[:3])}; only tcomp_* may be exported: use a linker that reads version "
            "scripts"
        )


def _thread_local(library: _Library, target: Target) -> Iterator[str]:
    kinds = [kind for kind, _ in library.segments]
    if SEGMENT_THREAD_LOCAL in kinds and not DEMANDS[target.system].thread_local:
        yield (
            f"has thread-local storage, which loaders of {target.system} may not know; use a compiler with "
            "-femulated-tls"
        )


def _alignment(library: _Library, target: Target) -> Iterator[str]:
    page = _PAGES.get(target.machine, 4096)
    for kind, alignment in library.segments:
        if kind == SEGMENT_LOAD and alignment % page:
            yield (
                f"has a segment aligned to {alignment} bytes, and systems may have pages of {page}; "
                f"use a linker that knows -z max-page-size={page}"
            )


def _platform_register(library: _Library, target: Target) -> Iterator[str]:
    if target.machine != "aarch64" or not DEMANDS[target.system].reserves_register:
        return
    for section, code in library.code:
        if find_register(code, PLATFORM_REGISTER) is not None:
            yield (
                f"uses register x18 in section {section}, which is the system's on {target.system}; use a "
                "compiler with -ffixed-x18"
            )


_CHECKS: tuple[Callable[[_Library, Target], Iterator[str]], ...] = (
    _needed, _undefined, _exported, _thread_local, _alignment, _platform_register
)  # fmt: skip
