"""The C compiler and linker: from objects and C sources to a shared library that needs only libc."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from tcomp.codegen.android import stand_ins
from tcomp.codegen.check import check_library
from tcomp.codegen.toolchain import Toolchain
from tcomp.errors import BuildError
from tcomp.target.target import Target

SOURCES = Path(__file__).parent / "c"
RUNTIME = ("context.c", "shared.c", "variant.c", "pool.c", "workspace.c", "affinity.c", "cpu.c", "blake2b.c")
_TELLING = (" error: ", ": undefined reference", "No space left")
_EXPORTS = "{ global: tcomp_*; local: *; };\n"
Runtime = Literal["threads", "serial", "freestanding"]
"""What is around the kernels: threads of the system, none, or no system at all."""
SERIAL_FLAGS = ("-D_Thread_local=", "-DMAX_THREADS=1")
"""And the folder `serial` of SOURCES before the system's headers."""
_OPTIMIZED = "-O2"
"""To linkers too: zig links what processors lack, such as 64-bit divisions, in the same mode, and by default
compiles 200 KB that check themselves."""
COMPILER_FLAGS = ("-std=gnu11", _OPTIMIZED, "-fPIC", "-fvisibility=hidden")
LINKER_OPTIONS = (
    "--version-script=exports.map", "-z", "defs", "-z", "relro", "-z", "now", "-z", "noexecstack",
    "-Bsymbolic", "--as-needed", "--build-id=none", "--strip-debug", "--gc-sections",
)  # fmt: skip


def compile_c(
    toolchain: Toolchain, sources: Sequence[Path], folder: Path, more_flags: Sequence[str] = ()
) -> list[Path]:
    """Compile C and assembly `sources` to objects in `folder`.

    Those of SOURCES, which no model changes, are compiled once in a process for a toolchain and flags.
    Raises BuildError with the compiler's first error line.
    """
    flags = (*COMPILER_FLAGS, f"-I{SOURCES}", *more_flags, "-c")
    objects = [folder / source.with_suffix(".o").name for source in sources]
    for source, result in zip(sources, objects, strict=True):
        if source.is_relative_to(SOURCES):
            result.write_bytes(_object_of_ours(toolchain, flags, source))
        else:
            _execute(toolchain, [*toolchain.command, *flags, str(source), "-o", str(result)], folder)
    return objects


@cache
def _object_of_ours(toolchain: Toolchain, flags: tuple[str, ...], source: Path) -> bytes:
    with TemporaryDirectory() as folder:
        result = Path(folder, "object.o")
        _execute(toolchain, [*toolchain.command, *flags, str(source), "-o", str(result)], Path(folder))
        return result.read_bytes()


def write_exports(folder: Path) -> None:
    """Write exports.map, which LINKER_OPTIONS name, into `folder`."""
    (folder / "exports.map").write_text(_EXPORTS)


def link(
    toolchain: Toolchain, target: Target, objects: Sequence[Path], output: Path, folder: Path, name: str = ""
) -> None:
    """Link `objects` into the shared library `output`, which exports the public interface alone.

    `name` is what the file will be called, if not as `output`. `folder` takes what is made on the way.
    Raises BuildError when a symbol is undefined or the library is not as the system of `target` wants it.
    """
    if target.system == "apple":
        names = ["-install_name", f"@rpath/{name or output.name}", "-o", str(output)]
        command = [*toolchain.command, _OPTIMIZED, "-dynamiclib", *names, *map(str, objects)]
        _execute(toolchain, command, folder)
        return check_library(output, target)
    write_exports(folder)
    options = [*LINKER_OPTIONS, *toolchain.linker_options]
    if target.system == "android":  # Its build tools read the name that a library holds.
        options += ["-soname", name or output.name]
    inputs = [str(path) for path in objects]
    if toolchain.linker:
        command = [*toolchain.linker, "-shared", *options]
        inputs += stand_ins(toolchain, folder, partial(_execute, toolchain, folder=folder))
    else:
        command = [*toolchain.command, _OPTIMIZED, "-shared", "-static-libgcc"]
        command += [word for option in options for word in ("-Xlinker", option)]
        inputs += toolchain.libraries
    _execute(toolchain, [*command, "-o", str(output), *inputs], folder)
    check_library(output, target)


def link_object(toolchain: Toolchain, objects: Sequence[Path], output: Path, folder: Path) -> None:
    """Make one object `output` of `objects`, which another linker makes part of a program."""
    command = [*toolchain.linker, "-r"] if toolchain.linker else [*toolchain.command, "-r", "-nostdlib"]
    _execute(toolchain, [*command, "-o", str(output), *map(str, objects)], folder)


def link_static(toolchain: Toolchain, objects: Sequence[Path], output: Path, folder: Path) -> None:
    """Link `objects`, one with a `main`, into the executable `output`, which needs no file beside it.

    `toolchain` is one of `find_static_toolchain`. Raises BuildError when a symbol is undefined.
    """
    command = [*toolchain.command, _OPTIMIZED, "-s", "-Wl,--gc-sections", "-o", str(output)]
    _execute(toolchain, [*command, *map(str, objects), "-lm", "-lpthread"], folder)


def link_plugin(toolchain: Toolchain, objects: Sequence[Path], output: Path, folder: Path) -> None:
    """Link `objects` into the library `output`; the program that loads it has its undefined symbols."""
    command = [*toolchain.command, _OPTIMIZED, "-shared", "-o", str(output), *map(str, objects), "-lm"]
    _execute(toolchain, command, folder)


def _execute(toolchain: Toolchain, command: Sequence[str], folder: Path) -> None:
    try:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"cannot run {toolchain.name} ({command[0]}): {error.strerror}") from None
    if result.returncode != 0:
        lines = (result.stderr or result.stdout).strip().splitlines()
        telling = [line for line in lines if any(word in line for word in _TELLING)]
        reason = (telling or lines or [f"exit status {result.returncode}"])[0]
        raise BuildError(f"{toolchain.name} failed: {reason}")
