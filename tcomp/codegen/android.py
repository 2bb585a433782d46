"""Linking for Android without an NDK: a linker needs to know what the libraries of a phone export, no more.

Stubs are shared libraries with the phone's names and empty functions. A library that is linked with them
asks the loader of the phone for the real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tcomp.codegen.toolchain import BIONIC, Toolchain

_LIBC = """
    __errno __sched_cpucount abort calloc clock_gettime close free fstat getauxval getpid madvise malloc
    memcmp memcpy memmove memset mmap munmap open posix_memalign pthread_cond_broadcast pthread_cond_destroy
    pthread_cond_init pthread_cond_signal pthread_cond_wait pthread_create pthread_getspecific pthread_join
    pthread_key_create pthread_key_delete pthread_mutex_destroy pthread_mutex_init pthread_mutex_lock
    pthread_mutex_unlock pthread_setspecific pthread_sigmask read sched_getaffinity sched_getcpu
    sched_setaffinity sched_yield sigfillset snprintf strchr strcmp strcspn strerror strlen strncmp strtoull
    sysconf vsnprintf
"""
_LIBM = """
    acos acosh asin asinh atan atan2 atanh ceil cos cosh erf exp exp2 expm1 floor fma fmod log log10 log1p
    log2 nearbyint pow rint round sin sinh sqrt tan tanh trunc
"""
STUBS: Mapping[str, Sequence[str]] = {
    "libc.so": tuple(_LIBC.split()),
    "libm.so": tuple(name + kind for name in _LIBM.split() for kind in ("", "f")),
}
"""What the C runtime, compilers' builtins and kernels use, all of it there from API 24 on."""


def stand_ins(toolchain: Toolchain, folder: Path, execute: Callable[[Sequence[str]], None]) -> list[str]:
    """Make in `folder` what libraries link with in place of an NDK: stubs, thread-local variables, builtins.

    `execute` runs a command in `folder`. Answers the arguments for the linker.
    """
    compile_c = [*toolchain.command, "-fPIC", "-O2", "-c"]
    for name, symbols in STUBS.items():
        source = folder / f"{name}.c"
        source.write_text("".join(f"void {symbol}(void) {{}}\n" for symbol in symbols))
        execute([*compile_c, "-fno-builtin", "-w", str(source), "-o", f"{name}.o"])
        execute([*toolchain.linker, "-shared", "-soname", name, "-o", name, f"{name}.o"])
    execute([*compile_c, "-std=gnu11", str(BIONIC / "emutls.c"), "-o", "emutls.o"])
    (folder / "builtins.zig").touch()
    execute([*toolchain.builtins, "builtins.zig", "-femit-bin=builtins.a"])
    return ["--start-lib", "emutls.o", "--end-lib", *STUBS, "builtins.a"]
