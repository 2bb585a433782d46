"""ARM cores as they name themselves, and which code suits each best.

The register MIDR_EL1 holds who made a core and which part it is. Cores without a tag of their own take the
code of the tagged core that is nearest in its pipeline. The numbers are those of the cores' technical
reference manuals and of Linux, arch/arm64/include/asm/cputype.h.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tcomp.target.arm import CORES, core_of_target
from tcomp.target.target import Target

_ARM, _QUALCOMM = 0x41, 0x51

_PARTS: Mapping[str, Sequence[tuple[int, int]]] = {
    # A35, A53, Kryo 2xx silver
    "cortex-a53": ((_ARM, 0xD04), (_ARM, 0xD03), (_QUALCOMM, 0x801)),
    # Kryo 3xx and 4xx silver, A55, A510, A520
    "cortex-a55": ((_QUALCOMM, 0x803), (_QUALCOMM, 0x805), (_ARM, 0xD05), (_ARM, 0xD46), (_ARM, 0xD80)),
    # A57, A72, A73, Kryo 2xx gold
    "cortex-a72": ((_ARM, 0xD07), (_ARM, 0xD08), (_ARM, 0xD09), (_QUALCOMM, 0x800)),
    # Kryo 3xx gold, A75, Kryo 4xx gold, A76, A77
    "cortex-a76": ((_QUALCOMM, 0x802), (_ARM, 0xD0A), (_QUALCOMM, 0x804), (_ARM, 0xD0B), (_ARM, 0xD0D)),
    # N1
    "neoverse-n1": ((_ARM, 0xD0C),),
    # A78, A78AE, A78C, A710, A715, A720
    "cortex-a78": ((_ARM, 0xD41), (_ARM, 0xD42), (_ARM, 0xD4B), (_ARM, 0xD47), (_ARM, 0xD4D), (_ARM, 0xD81)),
    # N2, V2, whose vectors of SVE have 128 bits
    "neoverse-v1-neon": ((_ARM, 0xD49), (_ARM, 0xD4F)),
    # V1
    "neoverse-v1": ((_ARM, 0xD40),),
    # X1, X1C, X2, X3, X4
    "cortex-x2": ((_ARM, 0xD44), (_ARM, 0xD4C), (_ARM, 0xD48), (_ARM, 0xD4E), (_ARM, 0xD82)),
}
"""Tagged core -> cores that run its code best, as implementer and part number. Slowest first: of the cores of
one chip the last is the fastest."""


def core_of(part: int, maker: int = _ARM) -> str | None:
    """The tagged core whose code runs best on a core of these numbers; None when nothing is known of it."""
    return next((core for core, parts in _PARTS.items() if (maker, part) in parts), None)


def fastest(cores: Sequence[str]) -> str | None:
    """The fastest of tagged cores; None of none."""
    return max(cores, key=list(_PARTS).index, default=None)


def speed(target: Target) -> int:
    """Rank of the target's core among all tagged ones, higher is faster; -1 for no core in particular."""
    return list(_PARTS).index(core) if (core := _core(target)) is not None else -1


def preferences(targets: Sequence[Target]) -> list[tuple[int, int]]:
    """Every known core, slowest first, as `implementer << 12 | part`, and the index of the target for it.

    That is the target of the same kind, in order or not, that is the fastest of those no faster than the
    core; or, if there are only faster ones, the slowest. Empty when no target is for a core in particular.
    """
    return [
        (maker << 12 | part, best)
        for core, parts in _PARTS.items()
        if (best := _best(core, targets)) is not None
        for maker, part in parts
    ]


def _best(core: str, targets: Sequence[Target]) -> int | None:
    rank = list(_PARTS).index(core)
    tagged = [i for i, t in enumerate(targets) if _core(t) is not None]
    alike = [i for i in tagged if CORES[str(_core(targets[i]))].in_order == CORES[core].in_order] or tagged
    slower = [i for i in alike if speed(targets[i]) <= rank]
    if slower:
        return max(slower, key=lambda i: speed(targets[i]))
    return min(alike, key=lambda i: speed(targets[i]), default=None)


def _core(target: Target) -> str | None:
    """The tag of the target's core."""
    core = core_of_target(target)
    return core if core in _PARTS else None
