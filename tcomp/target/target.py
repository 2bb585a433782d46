"""What a target is: the hardware facts that schedules read, and what LLVM needs to emit code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import inf
from typing import Any

from tcomp.registry import Registry
from tcomp.relay.types import FLOAT8, numpy_dtype

SEGMENT_BITS = 128
"""Bits of NEON's vectors, and of SVE's segments, in each of which a product takes one lane as factor."""
FAST_DTYPES = ("float16", "bfloat16")
"""The types that `Target.fast_dtype` may name."""
PRODUCT_FEATURES: Mapping[tuple[str, str], str] = {
    ("x86_64", "float16"): "avx512fp16",
    ("x86_64", "bfloat16"): "avx512bf16",
    ("aarch64", "float16"): "fullfp16",
    ("aarch64", "bfloat16"): "bf16",
    ("aarch64", "int8"): "dotprod",
}
"""By machine and narrow type, the CPU feature that multiplies it, by LLVM's name; others have none."""
_GPU_PRODUCTS = {"float16": 70, "bfloat16": 80, "tf32": 80, "int8": 80} | dict.fromkeys(FLOAT8, 89)
"""Narrow types that kernels for GPUs multiply fast, and from which capability on."""


@dataclass(frozen=True)
class Gpu:
    """Facts about one kind of GPU. Shared memory and registers (of 32 bits) limit what runs at once.

    `flops` are the rates of dense products a second by the operands' type, summed in float32: those of tensor
    cores where they take the type, those of plain instructions otherwise. Sources: NVIDIA's data sheets; CUDA
    C++ Programming Guide, table "Technical Specifications per Compute Capability".
    """

    arch: str
    """The compute capability as compilers name it: `sm_80`, `sm_90a`."""
    processors: int
    """Streaming multiprocessors."""
    block_shared_bytes: int
    """Most shared memory of one block, beyond 48 KiB on request."""
    shared_bytes: int
    """Shared memory of one multiprocessor."""
    threads: int
    """Most threads at once on one multiprocessor."""
    l2_bytes: int
    bytes_per_second: float
    """Of device memory."""
    flops: Mapping[str, float] = field(hash=False)
    registers: int = 65536
    """Of one multiprocessor."""

    warp = 32
    """Threads that execute together."""
    block_threads = 1024
    """Most threads of a block."""
    thread_registers = 255
    """Most registers of a thread."""

    @property
    def capability(self) -> int:
        """The compute capability as a number: 80 for 8.0."""
        return int(self.arch.removeprefix("sm_").rstrip("a"))

    def runs_on(self, capability: int) -> bool:
        """Whether machine code for this architecture runs on GPUs of `capability`."""
        if self.arch.endswith("a"):
            return capability == self.capability
        return capability // 10 == self.capability // 10 and capability >= self.capability


@dataclass(frozen=True)
class Target:
    """Facts about one kind of device.

    `isa` names the instruction set that schedules and records are keyed by (`x86-64-v4`): a record made
    on one CPU of an `isa` builds and is correct on every other. `cache_bytes` is L1 data, L2, and this
    core's share of L3, in bytes; `bytes_per_cycle` is what one core gets in a cycle, with prefetches, from
    L2, from L3 and from memory.
    """

    name: str
    isa: str
    family: str
    """Which schedule templates apply: `cpu` or `cuda`."""
    llvm: Mapping[str, Any] = field(hash=False)
    """The TVM target dict (kind, mcpu, mattr, mtriple)."""
    vector_bits: int
    vector_registers: int
    cache_bytes: tuple[int, int, int]
    bytes_per_cycle: tuple[float, float, float]
    cores: int = 1
    fma_ports: int = 2
    """Multiply-adds of whole vectors that start in a cycle."""
    load_ports: int = 2
    """Loads of whole vectors, and of a number into all lanes of one, that start in a cycle."""
    by_lane: bool = False
    """Whether a multiply-add takes one lane of a register as factor for all lanes.

    Factors are then loaded a vector at a time; elsewhere each is broadcast from memory.
    """
    register_lists: bool = False
    """Whether one load of up to four vector registers costs no more than as many loads of one."""
    load_cycles: float = 0.0
    """Cycles by which each load of a vector delays products on a core that executes in order.

    Vectors are loaded in two halves there, which start beside products where whole ones do not.
    """
    spare_registers: int = 0
    """Vector registers that default tiles leave: LLVM loads ahead for cores that execute in order."""
    fast_dtype: str | None = None
    """The 16-bit type whose products run faster than float32 ones; None when there is none.

    It is a fact of the core, not of its features: AMD's execute `vdpbf16ps` at twice the rate of float32
    products, Intel's at half, but multiply tiles (AMX) at sixteen times that rate. A target may name bfloat16
    without the feature: kernels then compute the same sums by float32 instructions.
    """
    fast_by: tuple[tuple[str, frozenset[str]], ...] = ()
    """Types that `fast_dtype` may be, each with the CPU features that its products take, the fastest first.

    Empty where the type does not depend on what a virtual machine hides.
    """
    features: frozenset[str] = frozenset()
    description: str = ""
    gpu: Gpu | None = None
    """Of the family `cuda`; `llvm` is then the machine that the GPU is in."""

    @property
    def variant(self) -> str:
        """What tells it from the other targets of one library: its name without the system."""
        return self.name.rpartition("+")[2]

    @property
    def half_loads(self) -> bool:
        """Whether vectors are loaded in two halves."""
        return self.load_cycles > 0

    @property
    def machine(self) -> str:
        """What ELF files and `platform.machine()` call the architecture: x86_64, aarch64, arm."""
        architecture = str(self.llvm["mtriple"]).split("-")[0]
        if architecture == "arm64":
            return "aarch64"
        return "arm" if architecture.startswith("arm") else architecture

    @property
    def system(self) -> str:
        """What the library is linked for: linux, android or apple."""
        triple = str(self.llvm["mtriple"])
        return next((name for name in ("android", "apple") if name in triple), "linux")

    def has(self, feature: str) -> bool:
        """Whether code for this target may use a CPU feature, by LLVM's name."""
        return feature in self.features and f"-{feature}" not in self.llvm.get("mattr", ())

    def available(self) -> Target:
        """This target without a `fast_dtype` whose instructions it lacks or has switched off, with the next
        of `fast_by` in its place."""
        if self.fast_by:
            there = (dtype for dtype, features in self.fast_by if all(map(self.has, features)))
            return replace(self, fast_dtype=next(there, None))
        lacks = self.fast_dtype is not None and not self.multiplies(self.fast_dtype)
        return replace(self, fast_dtype=None) if lacks else self

    def multiplies(self, dtype: str) -> bool:
        """Whether code for this target may use instructions that multiply a narrow type fast."""
        if self.gpu is not None:
            return dtype in self.gpu.flops and self.gpu.capability >= _GPU_PRODUCTS.get(dtype, inf)
        feature = PRODUCT_FEATURES.get((self.machine, dtype))
        return feature is not None and self.has(feature)

    @cached_property
    def sve_bits(self) -> int:
        """The length of SVE's vectors that code is for, and no other; 0 without SVE."""
        return self.vector_bits if self.has("sve") else 0

    def in_neon(self) -> Target:
        """The same core without SVE."""
        if not self.sve_bits:
            return self
        return replace(
            self,
            isa=self.isa.removesuffix(f"+sve{self.sve_bits}"),
            llvm={**self.llvm, "mattr": [*self.llvm.get("mattr", ()), "-sve"]},
            vector_bits=SEGMENT_BITS,
            fma_ports=self.fma_ports * self.vector_bits // SEGMENT_BITS,
            features=self.features - {"sve"},
        )

    def factor_lanes(self, dtype: str) -> int:
        """Elements of `dtype` that are loaded together as factors, each for all lanes of a product; 1 where
        factors are broadcast from memory."""
        return SEGMENT_BITS // (8 * numpy_dtype(dtype).itemsize) if self.by_lane else 1

    @cached_property
    def factor_registers(self) -> int:
        """Registers that products can take one lane of; 0 where they take none."""
        if not self.by_lane:
            return 0
        return 8 if self.sve_bits else self.vector_registers

    @cached_property
    def takes_any_lane(self) -> bool:
        """Whether products take a lane of any register, so that as many of these as fit may hold factors."""
        return self.factor_registers == self.vector_registers

    @property
    def sharers(self) -> int:
        """Threads that products are cut for: two, which four can share too, where there is no telling.

        A library for an instruction set or a core runs on devices with any number of cores. 32-bit ARM has
        too few registers for the addresses of shared pieces: loops of products would keep some on the stack.
        """
        return self.cores if self.cores > 1 or self.machine == "arm" else 2

    def lanes(self, dtype: str = "float32") -> int:
        """Elements of `dtype` in one vector register."""
        return self.vector_bits // (8 * numpy_dtype(dtype).itemsize)


TARGETS: Registry[Target] = Registry("target", "tcomp.target")
