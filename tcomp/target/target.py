"""What a target is: the hardware facts that schedules read, and what LLVM needs to emit code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tcomp.registry import Registry
from tcomp.relay.types import numpy_dtype


@dataclass(frozen=True)
class Target:
    """Facts about one kind of device.

    `isa` names the instruction set that schedules and records are keyed by (`x86-64-v4`): a record made
    on one CPU of an `isa` builds and is correct on every other. `cache_bytes` is L1 data, L2, and this
    core's share of L3, in bytes.
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
    cores: int = 1
    fma_ports: int = 2
    features: frozenset[str] = frozenset()
    description: str = ""

    def has(self, feature: str) -> bool:
        """Whether code for this target may use a CPU feature, by LLVM's name."""
        return feature in self.features and f"-{feature}" not in self.llvm.get("mattr", ())

    @property
    def fast_dtype(self) -> str | None:
        """The 16-bit type whose products run faster than float32 ones; None when there is none."""
        return "float16" if self.has("avx512fp16") else None

    def lanes(self, dtype: str = "float32") -> int:
        """Elements of `dtype` in one vector register."""
        return self.vector_bits // (8 * numpy_dtype(dtype).itemsize)


TARGETS: Registry[Target] = Registry("target", "tcomp.target")
