"""What estimates of kernels for GPUs have in common: clock, multiply-adds, launches, blocks at once."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

from tcomp.target.target import Gpu

LAUNCH_CYCLES = 3000
"""Of a launch, whatever its work."""
SHARED_BYTES = 128
"""That shared memory gives in a cycle."""
CACHE_BYTES = 48
"""That one multiprocessor gets from the second-level cache in a cycle, or gives to it."""
INSTRUCTIONS = 128
"""Of threads, that a multiprocessor starts in a cycle."""
_RESERVED_BYTES = 1024
"""Shared memory of each block that the system takes."""


def multiply_adds(gpu: Gpu, itemsize: int) -> float:
    """Multiply-adds of plain instructions that a multiprocessor does in a cycle; wide types take longer."""
    float32 = 128 if gpu.capability >= 86 else 64
    return float32 * (1 if itemsize <= 4 else 0.5 if gpu.capability in (70, 80, 90) else 1 / 32)


def clock(gpu: Gpu) -> float:
    """Cycles a second, by the rate of float32 products."""
    return gpu.flops["float32"] / (2 * gpu.processors * multiply_adds(gpu, 4))


def memory_cycles(gpu: Gpu, nbytes: float) -> float:
    """Cycles in which `nbytes` come from or go to the device's memory."""
    return nbytes * clock(gpu) / gpu.bytes_per_second


def resident_blocks(gpu: Gpu, threads: int, registers: int, shared_bytes: int) -> int:
    """Blocks that a multiprocessor has room for at once."""
    by_registers = gpu.registers // (ceil(registers / 8) * 8 * threads)
    by_shared = gpu.shared_bytes // (shared_bytes + _RESERVED_BYTES)
    return max(1, min(by_registers, by_shared, gpu.threads // threads))


def equal_registers(threads: int) -> int:
    """Of each of so many threads that have all registers of a multiprocessor."""
    return Gpu.registers // threads // 8 * 8


def in_rounds(blocks: int, fitting: int, gpu: Gpu, cycles: Callable[[int], float]) -> float:
    """Cycles of so many blocks, of which a multiprocessor has room for `fitting` at once; it takes
    `cycles(resident)` for so many."""
    total = 0.0
    while blocks > 0:
        resident = min(fitting, -(-blocks // gpu.processors))
        full = max(1, blocks // (resident * gpu.processors))
        total += full * cycles(resident)
        blocks -= full * resident * gpu.processors
    return total
