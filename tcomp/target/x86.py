"""x86-64 CPUs by micro-architecture level, and the tags of common cores."""

from __future__ import annotations

from dataclasses import replace

from tcomp.target.target import TARGETS, Target
from tcomp.target.tiles import BFLOAT16_TILES

KIB, MIB = 1024, 1024 * 1024

_V3 = Target(
    name="x86-64-v3",
    isa="x86-64-v3",
    family="cpu",
    llvm={"kind": "llvm", "mcpu": "x86-64-v3", "mtriple": "x86_64-unknown-linux-gnu"},
    vector_bits=256,
    vector_registers=16,
    cache_bytes=(32 * KIB, 512 * KIB, 2 * MIB),
    bytes_per_cycle=(32.0, 7.0, 7.0),
    features=frozenset({"avx2", "fma", "f16c"}),
    description="AVX2 and FMA: Haswell, Zen 1 and newer",
)
_V4 = Target(
    name="x86-64-v4",
    isa="x86-64-v4",
    family="cpu",
    llvm={
        "kind": "llvm",
        "mcpu": "x86-64-v4",
        "mtriple": "x86_64-unknown-linux-gnu",
        "mattr": ["-prefer-256-bit"],
    },
    vector_bits=512,
    vector_registers=32,
    cache_bytes=(32 * KIB, 1 * MIB, 2 * MIB),
    bytes_per_cycle=(32.0, 7.0, 4.0),
    features=frozenset({"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl"}),
    description="AVX-512: Skylake-SP, Ice Lake, Zen 4 and newer",
)

for _target in (_V3, _V4):
    TARGETS.register(_target.name, _target)

INTEL_16_BIT = (
    ("bfloat16", BFLOAT16_TILES),
    ("float16", frozenset({"avx512fp16"})),
)
"""Of Intel's cores, which multiply bfloat16 fast in tiles only."""
_AMD_16_BIT = (("bfloat16", frozenset({"avx512bf16"})),)
_16_BIT = {
    "sapphirerapids": INTEL_16_BIT,
    "emeraldrapids": INTEL_16_BIT,
    "znver4": _AMD_16_BIT,
    "znver5": _AMD_16_BIT,
}
"""The 16-bit types that are multiplied faster than float32, with the features that multiply them."""
ROUNDING = "avx512bf16"
"""The feature that rounds to bfloat16, which all of these cores have."""

_LOAD_PORTS = {"icelake-server": 1}
"""Where not 2: Ice Lake loads one 512-bit vector for two multiply-adds (`scripts/bench_instructions.py`)."""

# Zen 4 takes vectors of 512 bits in halves: it starts half as many multiply-adds and loads a cycle as the
# others, which leaves the ratio of both, and so the best tiles, as it is.
_CORES = {
    "haswell": (_V3, (32 * KIB, 256 * KIB, 2 * MIB), "Intel Core 4th generation"),
    "znver2": (_V3, (32 * KIB, 512 * KIB, 4 * MIB), "AMD Zen 2"),
    "znver3": (_V3, (32 * KIB, 512 * KIB, 4 * MIB), "AMD Zen 3"),
    "skylake-avx512": (_V4, (32 * KIB, 1 * MIB, 1408 * KIB), "Intel Xeon Scalable 1st and 2nd generation"),
    "icelake-server": (_V4, (48 * KIB, 1280 * KIB, 1536 * KIB), "Intel Xeon Scalable 3rd generation"),
    "sapphirerapids": (_V4, (48 * KIB, 2 * MIB, 1920 * KIB), "Intel Xeon Scalable 4th generation"),
    "emeraldrapids": (_V4, (48 * KIB, 2 * MIB, 4 * MIB), "Intel Xeon Scalable 5th generation"),
    "znver4": (_V4, (32 * KIB, 1 * MIB, 4 * MIB), "AMD Zen 4"),
    "znver5": (_V4, (48 * KIB, 1 * MIB, 4 * MIB), "AMD Zen 5"),
}
for _name, (_level, _caches, _description) in _CORES.items():
    _fast = _16_BIT.get(_name, ())
    _features = frozenset({ROUNDING} if _fast else ()).union(*(features for _, features in _fast))
    TARGETS.register(
        _name,
        replace(
            _level,
            name=_name,
            llvm={**_level.llvm, "mcpu": _name},
            cache_bytes=_caches,
            load_ports=_LOAD_PORTS.get(_name, _level.load_ports),
            fast_by=_fast,
            features=_level.features | _features,
            description=_description,
        ).available(),
    )
