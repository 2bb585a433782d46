"""ARM cores and the systems they run: `arm64-linux`, `cortex-a76`, `arm64-android+cortex-a55`.

A system says how code is called and linked, a core what it may hold and how fast that runs. The facts of
the cores are those of Arm's software optimization guides and technical reference manuals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tcomp.errors import TargetError
from tcomp.target.target import TARGETS, Target

KIB, MIB = 1024, 1024 * 1024
_SECOND_LEVEL, _SECOND_LEVEL_IN_ORDER, _LAST_LEVEL = 32.0, 16.0, 8.0
"""Bytes that a core gets in a cycle from L2, in order or not, and from L3, where memory gives no more."""

_8_2 = frozenset({"neon", "dotprod", "fullfp16"})
_8_6 = _8_2 | {"bf16", "i8mm"}
UNUSED = ("-sve", "-sve2")
"""Not for code in vectors of 128 bits, which are NEON's: so libraries load where a phone's system or a
virtual machine has SVE switched off. Code in SVE's vectors is for one length of them, and takes no SVE2."""

_ARM64 = Target(
    name="arm64-linux",
    isa="armv8-a",
    family="cpu",
    llvm={"kind": "llvm", "mcpu": "generic", "mtriple": "aarch64-unknown-linux-gnu"},
    vector_bits=128,
    vector_registers=32,
    cache_bytes=(32 * KIB, 256 * KIB, 512 * KIB),
    bytes_per_cycle=(_SECOND_LEVEL, _LAST_LEVEL, 2.9),
    by_lane=True,
    features=frozenset({"neon"}),
    description="every 64-bit ARM CPU, on Linux with glibc 2.28 or newer",
)
_ARMV7 = replace(
    _ARM64,
    name="armv7-linux",
    isa="armv7-a",
    llvm={
        "kind": "llvm",
        "mcpu": "generic",
        "mtriple": "armv7a-unknown-linux-gnueabihf",
        # Without this scheduler LLVM hoists loads until it runs out of the 16 registers.
        "mattr": ["+neon", "+vfp4", "+use-misched"],
    },
    vector_registers=16,
    fma_ports=1,
    by_lane=False,
    features=frozenset({"neon", "vfp4"}),
    description="32-bit ARM with NEON and VFPv4 (Cortex-A7 and newer), on Linux with hard floats",
)

SYSTEMS: Mapping[str, Target] = {
    t.name: t
    for t in (
        _ARM64,
        replace(
            _ARM64,
            name="arm64-android",
            llvm={**_ARM64.llvm, "mtriple": "aarch64-unknown-linux-android24"},
            description="every 64-bit ARM phone from Android 7 (API 24)",
        ),
        _ARMV7,
        replace(
            _ARMV7,
            name="armv7-android",
            llvm={**_ARMV7.llvm, "mtriple": "armv7a-unknown-linux-androideabi24"},
            description="32-bit ARM phones with VFPv4 from Android 7 (API 24)",
        ),
        replace(
            _ARM64,
            name="arm64-apple",
            llvm={**_ARM64.llvm, "mtriple": "arm64-apple-macosx11.0.0"},
            cache_bytes=(64 * KIB, 1 * MIB, 1 * MIB),
            bytes_per_cycle=(_SECOND_LEVEL, 16.0, 16.0),
            fma_ports=4,
            description="every Mac with a CPU of Apple's; for iOS give the mtriple arm64-apple-ios13.0.0",
        ),
    )
}


@dataclass(frozen=True)
class Core:
    """One kind of core. `cache_bytes` is L1 data, L2 and a core's share of what lies behind it.

    `memory_per_cycle` are the bytes that one core reads and writes in a cycle in tinymembench's memcpy of
    32 MiB, on a slow one of the boards of its kind in the results of sbc-bench
    (https://github.com/ThomasKaiser/sbc-bench, Sorted-Results.md): Raspberry Pi 3 B+, 4 B and 5 B; ODROID-C4;
    Jetson AGX Orin; Snapdragon 8cx Gen 3; Ampere Altra, also for Neoverse V1, which is not among them. Others
    copy up to twice as fast (Cortex-A76: 4.4 to 10). What waits for memory gains nothing from more products.
    """

    isa: str
    features: frozenset[str]
    cache_bytes: tuple[int, int, int]
    memory_per_cycle: float
    fma_ports: int
    """128-bit multiply-adds that start in a cycle."""
    description: str
    load_cycles: float = 0.0
    """See `Target`: of loops of convolutions, by `codegen.in_order`. Cores that have it execute in order."""
    sve_bits: int = 0
    """The length of SVE's vectors that code is for; 0 where it is for NEON's."""
    same_as: str = ""
    """The core by LLVM's name, where this is another way to write code for it."""
    runs_32_bits: bool = True
    """Whether it executes programs of 32 bits."""

    @property
    def in_order(self) -> bool:
        return self.load_cycles > 0

    @property
    def fast_dtype(self) -> str | None:
        """`bfdot` and `fmla` of float16 start as often as `fmla` of float32, for twice the products.

        `bfdot` needs no short sums: it adds to float32.
        """
        return "bfloat16" if "bf16" in self.features else "float16" if "fullfp16" in self.features else None


CORES: Mapping[str, Core] = {
    "cortex-a53": Core(
        "armv8-a", frozenset({"neon"}), (32 * KIB, 128 * KIB, 128 * KIB), 1.6, 1,
        "in order, 2014: small cores of older phones, Raspberry Pi 3", load_cycles=2.6,
    ),
    "cortex-a55": Core(
        "armv8.2-a", _8_2, (32 * KIB, 128 * KIB, 512 * KIB), 3.3, 1, "in order, 2018: small cores of phones",
        load_cycles=1.6,
    ),
    "cortex-a72": Core(
        "armv8-a", frozenset({"neon"}), (32 * KIB, 256 * KIB, 256 * KIB), 2.9, 1, "2016: Raspberry Pi 4"
    ),
    "cortex-a76": Core(
        "armv8.2-a", _8_2, (64 * KIB, 512 * KIB, 512 * KIB), 5.0, 2,
        "2019: large cores of phones, Raspberry Pi 5",
    ),
    "cortex-a78": Core(
        "armv8.2-a", _8_2, (32 * KIB, 512 * KIB, 1 * MIB), 9.0, 2, "2021: large cores of phones"
    ),
    "cortex-x2": Core(
        "armv9-a", _8_6, (64 * KIB, 1 * MIB, 2 * MIB), 12.0, 4, "2022: the largest core of phones",
        runs_32_bits=False,
    ),
    "neoverse-n1": Core(
        "armv8.2-a", _8_2, (64 * KIB, 1 * MIB, 1 * MIB), 7.0, 2, "2019: Graviton 2, Ampere Altra"
    ),
    "neoverse-v1-neon": Core(
        "armv8.4-a", _8_6, (64 * KIB, 1 * MIB, 1 * MIB), 7.0, 4, "2021: Graviton 3, without SVE",
        same_as="neoverse-v1",
    ),
    "neoverse-v1": Core(
        "armv8.4-a+sve256", _8_6 | {"sve"}, (64 * KIB, 1 * MIB, 1 * MIB), 7.0, 4,
        "2021: Graviton 3, SVE in vectors of 256 bits", sve_bits=256,
    ),
}  # fmt: skip

BOARDS: Mapping[str, tuple[str, str, int]] = {
    "raspberry-pi-3": ("arm64-linux", "cortex-a53", 4),
    "raspberry-pi-4": ("arm64-linux", "cortex-a72", 4),
    "raspberry-pi-5": ("arm64-linux", "cortex-a76", 4),
    "jetson-orin": ("arm64-linux", "cortex-a78", 8),
    "pixel-6": ("arm64-android", "cortex-a76", 2),
    "snapdragon-865": ("arm64-android", "cortex-a76", 4),
    "snapdragon-888": ("arm64-android", "cortex-a78", 3),
    "graviton2": ("arm64-linux", "neoverse-n1", 64),
    "graviton3": ("arm64-linux", "neoverse-v1", 64),
}
"""Boards, phones' chips and clouds: the system, the core that inference runs on, and how many of them."""


_SPARE = 4
"""Registers that LLVM fills with loads ahead on cores that execute in order."""


def on_core(system: Target, name: str) -> Target:
    """`system` with the facts of a core. Code for it may not run on older cores.

    A 32-bit system keeps its own instruction set, whatever else the core has. Raises TargetError for a core
    that runs no such system's programs.
    """
    core = CORES[name]
    if system.machine != "aarch64" and not core.runs_32_bits:
        raise TargetError(
            f"core `{name}` runs no 32-bit code, which `{system.name}` is; take "
            f"`{system.name.replace('armv7', 'arm64')}+{name}`"
        )
    second_level = _SECOND_LEVEL_IN_ORDER if core.in_order else _SECOND_LEVEL
    memory = core.memory_per_cycle
    found = replace(
        system,
        name=f"{system.name}+{name}",
        llvm={**system.llvm, "mcpu": core.same_as or name},
        cache_bytes=core.cache_bytes,
        bytes_per_cycle=(second_level, max(_LAST_LEVEL, memory), memory),
        fma_ports=core.fma_ports,
        spare_registers=_SPARE if core.in_order else 0,
        description=f"{core.description}, on {system.name}",
    )
    if system.machine != "aarch64":
        return found
    unused = [switch for switch in UNUSED if switch[1:] not in core.features]
    llvm = {**found.llvm, "mattr": unused} if core.features >= _8_6 else found.llvm
    bits = core.sve_bits or system.vector_bits
    return replace(
        found,
        isa=core.isa,
        llvm=llvm,
        vector_bits=bits,
        fma_ports=core.fma_ports * system.vector_bits // bits,
        load_cycles=core.load_cycles,
        register_lists=not core.in_order and not core.sve_bits,
        features=core.features,
        fast_dtype=core.fast_dtype,
    )


def without_sve(core: str) -> str:
    """The tag of the same core whose code is for NEON alone."""
    if not CORES[core].sve_bits:
        return core
    return next(tag for tag, other in CORES.items() if other.same_as == core and not other.sve_bits)


def core_of_target(target: Target) -> str | None:
    """The tag of the core that code for `target` is for; None for no core in particular."""
    found = (
        tag
        for tag, core in CORES.items()
        if (core.same_as or tag) == target.llvm.get("mcpu") and bool(core.sve_bits) == (target.sve_bits > 0)
    )
    return next(found, None)


def _register() -> None:
    for name, system in SYSTEMS.items():
        TARGETS.register(name, system)
    for name, core in CORES.items():
        TARGETS.register(name, replace(on_core(_ARM64, name), name=name, description=core.description))
    for name, (system, core, count) in BOARDS.items():
        described = f"{CORES[core].description.split(':')[0]} {core} on {system}"
        TARGETS.register(
            name, replace(on_core(SYSTEMS[system], core), name=name, cores=count, description=described)
        )


_register()
