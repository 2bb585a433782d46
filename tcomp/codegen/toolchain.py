"""Which C compiler and linker makes a library for a target."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tcomp.errors import BuildError
from tcomp.target.target import Target

BIONIC = Path(__file__).parent / "c" / "bionic"
"""Declarations of Android's C library, where no NDK gives them."""
APPLE = BIONIC.with_name("apple")
"""What the runtime uses of Linux, for Apple's systems."""
_NATIVE = ("cc", "gcc", "clang")
_GNU = {"aarch64": "aarch64-linux-gnu", "arm": "arm-linux-gnueabihf", "x86_64": "x86_64-linux-gnu"}
_GLIBC = "2.28"
"""The oldest glibc that libraries linked by zig run with."""
_NDK = {"aarch64": "aarch64-linux-android24", "arm": "armv7a-linux-androideabi24"}
_ZIG_ANDROID = {"aarch64": "aarch64-linux-android.24", "arm": "arm-linux-androideabi.24"}
_EMULATIONS = {"aarch64": "aarch64linux", "arm": "armelf_linux_eabi"}
"""How linkers call the output formats."""
_MUSL = {"aarch64": "aarch64-linux-musl", "arm": "arm-linux-musleabihf", "x86_64": "x86_64-linux-musl"}
_HARD_FLOATS = "armv7a-unknown-linux-gnueabihf"
_FLOATS = {"arm": ("-march=armv7-a", "-mfpu=vfpv3-d16", "-mfloat-abi=hard")}
"""The least that has hard floats: the C runtime runs before it knows what the CPU has."""
_ZIG_FLOATS = {"arm": ("-mcpu=generic+v7a-neon-d32",)}
"""The same in zig's words."""
_ANDROID_PAGES = ("-z", "max-page-size=16384")
"""Phones have pages of 4 KiB or, from Android 15, of 16 KiB."""


@dataclass(frozen=True)
class Toolchain:
    """A compiler command that also links. `name` is for messages."""

    name: str
    command: tuple[str, ...]
    linker: tuple[str, ...] = ()
    """The linker to call where the compiler cannot link for the target, as it has no C library of it."""
    builtins: tuple[str, ...] = ()
    """The command that, with a linker of its own, makes the library of what instructions cannot do."""
    linker_options: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ("-lm", "-lpthread")


def native_toolchain() -> Toolchain:
    """The C compiler for this machine.

    Raises BuildError when there is none.
    """
    for name in _NATIVE:
        path = shutil.which(name)
        if path is not None:
            return Toolchain(name, (path,))
    raise BuildError(
        f"no C compiler found ({', '.join(_NATIVE)}); install one, such as `apt-get install gcc`"
    )


def find_toolchain(target: Target) -> Toolchain:
    """The toolchain for `target`: this machine's own, the Android NDK's, ziglang, or Debian's cross compiler.

    Raises BuildError, saying what to install, when there is none.
    """
    if target.system == "linux" and target.machine == platform.machine():
        return native_toolchain()
    searches: Sequence[Callable[[Target], Toolchain | None]] = (_ndk, _xcode, _zig, _system_gcc)
    for search in searches:
        found = search(target)
        if found is not None:
            return found
    raise BuildError(
        f"no linker for target `{target.name}` found; {_remedy(target)}, or write with --bundle what a "
        "machine with a linker makes the library of"
    )


def static_target(target: Target) -> Target:
    """`target` for code in a static program, which brings a C library of its own.

    Those libraries take floats in registers on 32-bit ARM; Android's does not.
    """
    if target.machine != "arm" or target.system != "android":
        return target
    return replace(target, llvm={**target.llvm, "mtriple": _HARD_FLOATS})


def find_static_toolchain(target: Target) -> Toolchain:
    """The toolchain for static programs that need no C library of the device: ziglang with musl, or gcc.

    Such a program runs on Linux and Android alike. Raises BuildError, saying what to install, when there is
    none, and for Apple's systems, which have no static programs.
    """
    if target.system == "apple":
        raise BuildError(
            f"programs for target `{target.name}` cannot be static; name a target of Linux or Android"
        )
    zig = _ziglang()
    if zig is not None:
        command = (zig, "cc", "-target", _MUSL[target.machine])
        return Toolchain("zig cc", (*command, *_ZIG_FLOATS.get(target.machine, ()), "-static"))
    native = target.machine == platform.machine()
    found = native_toolchain() if native else _cross_gcc(target.machine)
    if found is None:
        raise BuildError(
            f"no linker for static programs of target `{target.name}` found; {_cross_remedy(target)}"
        )
    return Toolchain(found.name, (*found.command, "-static"))


def _ndk(target: Target) -> Toolchain | None:
    """clang of the Android NDK that ANDROID_NDK_HOME names, as Google's tools find it."""
    home = os.environ.get("ANDROID_NDK_HOME")
    if target.system != "android" or not home:
        return None
    folders = sorted(Path(home, "toolchains", "llvm", "prebuilt").glob("*/bin/clang"))
    if not folders:
        raise BuildError(
            f"ANDROID_NDK_HOME is {home}, which holds no toolchains/llvm/prebuilt/*/bin/clang; "
            "set it to the folder of an installed NDK"
        )
    command = (str(folders[0]), f"--target={_NDK[target.machine]}")
    return Toolchain("the NDK's clang", command, linker_options=_ANDROID_PAGES, libraries=("-lm",))


def _xcode(target: Target) -> Toolchain | None:
    """Apple's clang, on a Mac."""
    xcrun, triple = shutil.which("xcrun"), str(target.llvm["mtriple"])
    if target.system != "apple" or xcrun is None:
        return None
    sdk = "iphoneos" if "ios" in triple else "macosx"
    return Toolchain("Apple's clang", (xcrun, "--sdk", sdk, "clang", "-target", triple, f"-I{APPLE}"))


def _ziglang() -> str | None:
    """The program in the package `ziglang`: through Python it takes half as long again for a small file."""
    spec = importlib.util.find_spec("ziglang")
    return None if spec is None or spec.origin is None else str(Path(spec.origin).with_name("zig"))


def _zig(target: Target) -> Toolchain | None:
    is_ios, zig = target.system == "apple" and "macosx" not in str(target.llvm["mtriple"]), _ziglang()
    if zig is None or is_ios:
        return None
    if target.system == "apple":
        return Toolchain("zig cc", (zig, "cc", "-target", "aarch64-macos.11.0", f"-I{APPLE}"))
    if target.system == "linux":
        floats = _ZIG_FLOATS.get(target.machine, ())
        return Toolchain("zig cc", (zig, "cc", "-target", f"{_GNU[target.machine]}.{_GLIBC}", *floats))
    machine = _ZIG_ANDROID[target.machine]
    atomics = ("-mno-outline-atomics",) if target.machine == "aarch64" else ()
    return Toolchain(
        "zig cc",
        (zig, "cc", "-target", machine, "-isystem", str(BIONIC), *atomics),
        linker=(zig, "ld.lld", "-m", _EMULATIONS[target.machine]),
        builtins=(
            zig, "build-lib", "-static", "-target", machine, "-fcompiler-rt", "-fPIC", "-OReleaseFast"
        ),
        linker_options=_ANDROID_PAGES,
    )  # fmt: skip


def _system_gcc(target: Target) -> Toolchain | None:
    return _cross_gcc(target.machine) if target.system == "linux" else None


def _cross_gcc(machine: str) -> Toolchain | None:
    path = shutil.which(f"{_GNU[machine]}-gcc")
    return None if path is None else Toolchain(Path(path).name, (path, *_FLOATS.get(machine, ())))


def _remedy(target: Target) -> str:
    if target.system == "android":
        return "set ANDROID_NDK_HOME to an installed Android NDK, or `pip install 'tcomp[cross]'`"
    if target.system == "apple":
        return "install Xcode on a Mac or, for macOS alone, `pip install 'tcomp[cross]'`"
    return _cross_remedy(target)


def _cross_remedy(target: Target) -> str:
    package = f"gcc-{_GNU[target.machine]}"
    return f"install one, `pip install 'tcomp[cross]'` or `apt-get install {package}`"
