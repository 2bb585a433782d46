"""Features of launches: blocks, and what a block takes of a multiprocessor.

Registers are those that the schedule's own arrays need until the compiler has said how many there are: it
says so of every config that was built, and how many more they were than the arrays need tells of others
(`Registers`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan, log2, prod
from statistics import median
from typing import Any

from tcomp.relay.types import numpy_dtype
from tcomp.target.target import Gpu
from tcomp.tensor.gpu.rates import resident_blocks
from tcomp.tensor.gpu.threads import DYNAMIC_SHARED, grid_and_block, launches_of
from tcomp.tuner.task import Identity
from tcomp.tvm_api import PrimFunc, structural_walk, tirx

GPU_NAMES = ("blocks", "block_threads", "shared_bytes", "registers", "warps_at_once", "waves")
"""Logarithms: of the launch whose threads hold most; `registers` of a thread, `warps_at_once` of a
multiprocessor, `waves` rounds in which all blocks get their turn."""
REGISTERS = "registers"
"""The condition of a record that has the compiler's number of each launch, commas between."""
_EXCESS = 24.0
"""Registers beyond those of arrays where nothing is known: addresses, counters, what is loaded."""
_BLOCKS, _THREADS, _SHARED, _REGISTERS = range(4)
Key = tuple[Identity, str]
"""A task, and the key of a config."""


def gpu_features(function: PrimFunc, gpu: Gpu) -> tuple[float, ...]:
    """The features of a scheduled function, named by `GPU_NAMES`, with the registers that its arrays need."""
    facts = [_facts(part) for part in launches_of(function)]
    blocks, threads, shared, registers = max(facts, key=lambda fact: fact[_REGISTERS])
    return _features(blocks, threads, shared, registers, gpu)


def with_registers(features: Sequence[float], registers: float, gpu: Gpu) -> tuple[float, ...]:
    """`features`, which end with those of `gpu_features`, of threads that take so many registers."""
    own = len(features) - len(GPU_NAMES)
    blocks, threads, shared = (2.0**f for f in features[own : own + _REGISTERS])
    return (*features[:own], *_features(round(blocks), round(threads), round(shared), registers, gpu))


def declared_registers(features: Sequence[float]) -> float:
    """Of `features`, which end with those of `gpu_features`."""
    return 2.0 ** features[len(features) - len(GPU_NAMES) + _REGISTERS]


@dataclass
class Registers:
    """What the compiler said of configs that were built, by task and config, and what to expect of others."""

    _built: dict[Key, int] = field(default_factory=dict[Key, int])
    _excess: dict[Identity, list[float]] = field(default_factory=dict[Identity, "list[float]"])

    def tell(self, key: Key, conditions: Mapping[str, str]) -> None:
        """`conditions` are those of the trial of the config `key`."""
        if REGISTERS in conditions:
            self._built[key] = max(map(int, conditions[REGISTERS].split(",")))

    def learn(self, key: Key, features: Sequence[float]) -> None:
        """`features` of the config `key` are known now, and may not be a number where it has no schedule."""
        if key in self._built and not isnan(features[-1]):
            excess = self._built[key] - declared_registers(features)
            self._excess.setdefault(key[0], []).append(excess)

    def complete(self, key: Key, features: Sequence[float], gpu: Gpu) -> tuple[float, ...]:
        """`features` of the config `key` with the compiler's number of registers, or that to expect."""
        found = self._built.get(key)
        expected = declared_registers(features) + self._expected_excess(key[0])
        return with_registers(features, expected if found is None else found, gpu)

    def _expected_excess(self, task: Identity) -> float:
        of_task = self._excess.get(task) or [e for found in self._excess.values() for e in found]
        return median(of_task) if of_task else _EXCESS


def _facts(part: Any) -> tuple[int, int, int, float]:
    """Blocks, threads of one, its bytes of shared memory, registers of a thread's arrays."""
    grid, block = grid_and_block(part)
    nbytes: dict[str, int] = {"shared": 0, DYNAMIC_SHARED: 0, "local": 0}

    def on_allocation(allocation: Any) -> None:
        buffer = allocation.buffer
        if str(buffer.scope()) in nbytes:
            itemsize = numpy_dtype(str(buffer.dtype)).itemsize
            nbytes[str(buffer.scope())] += prod(int(d) for d in buffer.shape) * itemsize

    structural_walk(part, [(tirx.AllocBuffer, on_allocation)])
    return prod(grid), prod(block), nbytes["shared"] + nbytes[DYNAMIC_SHARED], nbytes["local"] / 4


def _features(blocks: int, threads: int, shared: int, registers: float, gpu: Gpu) -> tuple[float, ...]:
    taken = min(max(registers, 1.0), gpu.thread_registers)
    resident = resident_blocks(gpu, threads, round(taken), shared)
    warps, waves = resident * threads / gpu.warp, blocks / (resident * gpu.processors)
    return tuple(log2(v + 2.0**-20) for v in (blocks, threads, shared, registers, warps, waves))
