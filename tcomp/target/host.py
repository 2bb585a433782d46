"""The machine this runs on, as a target."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from tcomp.errors import DeviceError, TargetError
from tcomp.target.arm_host import CPUINFO_NAMES as ARM_CPUINFO_NAMES
from tcomp.target.arm_host import arm_host
from tcomp.target.cpuinfo import CPUINFO, read_processors
from tcomp.target.cuda_host import require_gpu
from tcomp.target.target import TARGETS, Target
from tcomp.target.tiles import TILE_FEATURES, tiles_allowed
from tcomp.target.x86 import INTEL_16_BIT, ROUNDING

CPUINFO_NAMES: Mapping[str, str] = {
    "abm": "lzcnt", "avx": "avx", "avx2": "avx2", "bmi1": "bmi", "bmi2": "bmi2", "f16c": "f16c", "fma": "fma",
    "movbe": "movbe", "popcnt": "popcnt", "sse4_1": "sse4.1", "sse4_2": "sse4.2", "ssse3": "ssse3",
    "avx512f": "avx512f", "avx512bw": "avx512bw", "avx512cd": "avx512cd", "avx512dq": "avx512dq",
    "avx512vl": "avx512vl", "avx512ifma": "avx512ifma", "avx512vbmi": "avx512vbmi",
    "avx512_vbmi2": "avx512vbmi2", "avx512_vnni": "avx512vnni", "avx512_bitalg": "avx512bitalg",
    "avx512_vpopcntdq": "avx512vpopcntdq", "avx512_bf16": "avx512bf16", "avx512_fp16": "avx512fp16",
    "avx_vnni": "avxvnni", "gfni": "gfni", "vaes": "vaes", "vpclmulqdq": "vpclmulqdq",
    "amx_tile": "amx-tile", "amx_int8": "amx-int8", "amx_bf16": "amx-bf16",
}  # fmt: skip
"""Features that generated code may use: Linux's name -> LLVM's name."""

CHECKED_FEATURES = frozenset({*CPUINFO_NAMES.values(), *ARM_CPUINFO_NAMES.values()})
"""Features, by LLVM's names, that the C runtime (cpu.c) looks for before any kernel runs."""

_X86 = ("x86_64", "AMD64")
_ARM_MACHINES = ("aarch64", "armv7", "armv8")
"""32-bit systems on 64-bit cores call themselves armv8l."""

_V3 = frozenset({"avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "popcnt"})
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_16_BIT = frozenset({ROUNDING}).union(*(features for _, features in INTEL_16_BIT))
"""Features beyond its level that code for an unknown core uses where the CPU has them."""

_INTEL = {
    **dict.fromkeys((60, 61, 63, 69, 70, 71, 78, 79, 86, 94, 142, 158), "haswell"),
    85: "skylake-avx512",
    **dict.fromkeys((106, 108), "icelake-server"),
    143: "sapphirerapids",
    207: "emeraldrapids",
}
"""Models of family 6 -> tag."""


@dataclass(frozen=True)
class CpuInfo:
    """What Linux says about the first x86 CPU. `features` have LLVM's names."""

    vendor: str
    family: int
    model: int
    name: str
    features: frozenset[str]

    @staticmethod
    def of(processor: Mapping[str, str]) -> CpuInfo:
        flags = processor.get("flags", "").split()
        return CpuInfo(
            vendor=processor.get("vendor_id", ""),
            family=int(processor.get("cpu family", "0")),
            model=int(processor.get("model", "0")),
            name=processor.get("model name", ""),
            features=frozenset(CPUINFO_NAMES[f] for f in flags if f in CPUINFO_NAMES),
        )


def host_target(cpuinfo: Path = CPUINFO, caches: Path | None = None, machine: str | None = None) -> Target:
    """The target for this machine: its core's tag where it is known, else its instruction set's.

    Features that the CPU (or a virtual machine around it) hides are switched off in code generation.
    `machine` is what `platform.machine()` says.
    Raises TargetError on x86 machines below x86-64-v3 (AVX2 and FMA), on those that are neither x86 nor ARM,
    and where there is no /proc/cpuinfo.
    """
    machine = machine or platform.machine()
    if machine in _X86:
        cpu = CpuInfo.of(read_processors(cpuinfo)[0])
        if cpuinfo == CPUINFO and not (cpu.features.isdisjoint(TILE_FEATURES) or tiles_allowed()):
            cpu = replace(cpu, features=cpu.features - TILE_FEATURES)
        return _x86_host(cpu, caches)
    if machine.startswith(_ARM_MACHINES):
        return arm_host(read_processors(cpuinfo), machine)
    raise TargetError(
        f"this machine is {machine}; `llvm` detects x86-64 and ARM on Linux only, name a target tag"
    )


def cpu_name(cpuinfo: Path = CPUINFO, machine: str | None = None) -> str:
    """The CPU's model, exact enough to tell machines apart behind which a hypervisor hides the name."""
    machine = machine or platform.machine()
    try:
        first, *_ = processors = read_processors(cpuinfo)
    except TargetError:
        return f"{platform.processor() or 'unknown'} ({machine})"
    if machine.startswith(_ARM_MACHINES):
        return arm_host(processors, machine).description
    cpu = CpuInfo.of(first)
    return f"{cpu.name} (family {cpu.family} model {cpu.model})"


def _x86_host(cpu: CpuInfo, caches: Path | None) -> Target:
    level = TARGETS[_level(cpu)]
    core = _core(cpu)
    base = TARGETS[core] if core is not None and TARGETS[core].isa == level.isa else level
    hidden = sorted(set(CPUINFO_NAMES.values()) - cpu.features) if base is not level else []
    added = sorted(_16_BIT & cpu.features) if base is level else []
    switches = [*(f"-{name}" for name in hidden), *(f"+{name}" for name in added)]
    attributes = [*base.llvm.get("mattr", ()), *switches]
    found = replace(
        base,
        llvm={**base.llvm, **({"mattr": attributes} if attributes else {})},
        cache_bytes=_cache_bytes(caches or Path("/sys/devices/system/cpu/cpu0/cache"), base, level),
        cores=len(os.sched_getaffinity(0)),
        fast_by=INTEL_16_BIT if base is level else base.fast_by,
        features=cpu.features,
        description=cpu.name or base.description,
    )
    return found.available()


def missing_features(target: Target) -> list[str]:
    """Features that code for `target` may use and this CPU lacks, by LLVM's names."""
    return sorted(target.features - _features_here())


def require_runnable(target: Target) -> None:
    """Raise TargetError when code for `target` cannot run here, DeviceError where it needs a GPU and there is
    none.

    On a CPU it would end this process with an illegal instruction.
    """
    if target.gpu is not None:
        return require_gpu(target.gpu, target.name)
    missing = missing_features(target)
    if missing:
        raise TargetError(
            f"code for target `{target.name}` uses {', '.join(missing)}, which this CPU lacks; it can "
            "only be compiled here: run and tune on such a machine, and pass its log to `tcomp compile --log`"
        )


def runs_here(target: Target) -> bool:
    """Whether code for `target` can run on this machine."""
    try:
        require_runnable(target)
    except (TargetError, DeviceError):
        return False
    return True


@cache
def _features_here() -> frozenset[str]:
    return host_target().features


def _level(cpu: CpuInfo) -> str:
    if cpu.features >= _V4:
        return "x86-64-v4"
    missing = sorted(_V3 - cpu.features)
    if missing:
        raise TargetError(
            f"this CPU ({cpu.name or 'unknown'}) lacks {', '.join(missing)}; tcomp needs x86-64-v3"
        )
    return "x86-64-v3"


def _core(cpu: CpuInfo) -> str | None:
    """The tag of the CPU's core, if its family and model are known."""
    if cpu.vendor == "GenuineIntel" and cpu.family == 6:
        return _INTEL.get(cpu.model)
    if cpu.vendor == "AuthenticAMD":
        if cpu.family == 0x17:
            return "znver2" if cpu.model >= 0x30 else None
        if cpu.family == 0x19:
            return "znver4" if 0x10 <= cpu.model < 0x20 or cpu.model >= 0x60 else "znver3"
        if cpu.family == 0x1A:
            return "znver5"
    return None


def _cache_bytes(folder: Path, base: Target, level: Target) -> tuple[int, int, int]:
    """L1 data, L2 and a share of L3 as Linux reports them, with `base`'s values where it reports none.

    A virtual machine shows the host's whole L3 as if its own few cores shared it alone, so a known
    core's share of L3 is taken from its tag.
    """
    found = {1: base.cache_bytes[0], 2: base.cache_bytes[1], 3: base.cache_bytes[2]}
    for index in sorted(folder.glob("index*")):
        try:
            kind, number = (index / "type").read_text().strip(), int((index / "level").read_text())
            size = _size((index / "size").read_text().strip())
            sharing = _count((index / "shared_cpu_list").read_text().strip())
        except (OSError, ValueError):
            continue  # Containers hide some of these files; the tag's values stand.
        if kind == "Instruction" or number not in found or (number == 3 and base is not level):
            continue
        found[number] = size // sharing if number == 3 else size
    return found[1], found[2], found[3]


def _size(text: str) -> int:
    """`48K` -> 49152."""
    units = {"K": 1024, "M": 1024**2, "G": 1024**3}
    return int(text[:-1]) * units[text[-1]] if text[-1:] in units else int(text)


def _count(cpus: str) -> int:
    """Number of CPUs in a list such as `0-3,8`."""
    total = 0
    for part in cpus.split(","):
        first, _, last = part.partition("-")
        total += int(last or first) - int(first) + 1
    return total
