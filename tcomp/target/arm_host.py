"""The ARM machine this runs on: which core of it inference should run on, and what that core can do."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tcomp.target.arm import CORES, SYSTEMS, on_core, without_sve
from tcomp.target.arm_parts import core_of, fastest
from tcomp.target.target import Target

CPUINFO_NAMES: Mapping[str, str] = {
    "asimd": "neon", "neon": "neon", "vfpv4": "vfp4", "asimdhp": "fullfp16", "asimddp": "dotprod",
    "asimdfhm": "fp16fml", "asimdrdm": "rdm", "fcma": "complxnum", "i8mm": "i8mm", "bf16": "bf16",
    "sve": "sve", "sve2": "sve2",
}  # fmt: skip
"""Features that generated code may use: Linux's name -> LLVM's name."""
_SCALABLE = frozenset({"sve", "sve2"})
"""With these LLVM vectorises for a length that it does not know: only where a core's tag has them."""


_SVE_LENGTH = Path("/proc/sys/abi/sve_default_vector_length")
"""Where Linux says how many bytes a vector of SVE has in a new process."""


def arm_host(processors: Sequence[Mapping[str, str]], machine: str, sve_length: Path = _SVE_LENGTH) -> Target:
    """The target for the fastest kind of core that this process may run on; its caches are the tag's.

    `machine` is `aarch64`, or what 32-bit systems call themselves. Features that a core should have and the
    system hides are switched off in code generation. Unknown cores get code for every core of the system.
    Where vectors of SVE have another length than the core's, code is for NEON.
    """
    usable = os.sched_getaffinity(0)
    mine = [p for i, p in enumerate(processors) if i in usable] or list(processors)
    cores = [_core(p) for p in mine]
    core = fastest([c for c in cores if c is not None])
    first, count = mine[cores.index(core)], cores.count(core)
    system = SYSTEMS["arm64-linux" if machine == "aarch64" else "armv7-linux"]
    features = frozenset(CPUINFO_NAMES[f] for f in first.get("Features", "").split() if f in CPUINFO_NAMES)
    if core is not None and ("sve" not in features or _sve_bits(sve_length) != CORES[core].sve_bits):
        core = without_sve(core)
    base = system if core is None else on_core(system, core)
    switches = [f"-{name}" for name in sorted(base.features - features)]
    switches += [f"+{name}" for name in sorted(features - base.features - _SCALABLE)]
    attributes = [*base.llvm.get("mattr", ()), *switches]
    found = replace(
        base,
        llvm={**base.llvm, **({"mattr": attributes} if attributes else {})},
        cores=count,
        features=features - (_SCALABLE - base.features),
        description=describe(first),
    )
    return found.available()


def _sve_bits(path: Path) -> int:
    """The length of SVE's vectors; 0 where Linux does not say."""
    try:
        return 8 * int(path.read_text())
    except (OSError, ValueError):
        return 0


def describe(processor: Mapping[str, str]) -> str:
    """A core by name where it is known, and by its numbers."""
    numbers = f"implementer {processor.get('CPU implementer')}, part {processor.get('CPU part')}"
    core = _core(processor)
    return f"ARM core ({numbers})" if core is None else f"{core} ({numbers})"


def _core(processor: Mapping[str, str]) -> str | None:
    try:
        maker, part = int(processor["CPU implementer"], 16), int(processor["CPU part"], 16)
    except (KeyError, ValueError):
        return None  # Kernels in 32-bit mode and emulators leave the fields out.
    return core_of(part, maker)
