"""Leave to use Intel's tile registers (AMX), which Linux gives a process that asks for it.

A first use without it ends the process. Linux, Documentation/arch/x86/xstate.rst.
"""

from __future__ import annotations

import ctypes
from functools import cache

TILE_FEATURES = frozenset({"amx-tile", "amx-bf16", "amx-int8"})
"""By LLVM's names."""

BFLOAT16_TILES = frozenset({"amx-tile", "amx-bf16"})
"""Those that multiply bfloat16."""

_SYS_ARCH_PRCTL = 158
_ARCH_REQ_XCOMP_PERM = 0x1023
_XFEATURE_XTILE_DATA = 18


@cache
def tiles_allowed() -> bool:
    """Ask for this process, all its threads and those that it forks; whether the answer is yes.

    For x86-64 Linux on CPUs with tiles.
    """
    libc = ctypes.CDLL(None)
    return libc.syscall(_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILE_DATA) == 0
