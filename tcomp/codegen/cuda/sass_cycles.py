"""Cycles of a loop of machine code on a multiprocessor, as far as they follow from the code.

A multiprocessor has four schedulers, each of which issues an instruction a cycle from one of its warps. A
warp goes on when the stall of its last instruction is over, the counters that it waits for are down, and the
unit is free. Units take an instruction of 32 threads every so many cycles, by the CUDA C++ Programming
Guide's "Throughput of Native Arithmetic Instructions"; shared memory and the nearest cache give and take 128
bytes a cycle of all four schedulers (but see `Units.paired`). Stalls say how long results of fixed latency
take. Others are measured ones: shared memory and special functions by Jia et al. ("Dissecting the NVIDIA
Volta GPU Architecture via Microbenchmarking", 2018), tensor cores and memory by Abdelkhalik et al.
("Demystifying the Nvidia Ampere Architecture through Microbenchmarking and Instruction-level Analysis",
2022) and Luo et al. ("Benchmarking and Dissecting the Nvidia Hopper GPU Architecture", 2024).

What is left out: misses of caches and how much memory and the second-level cache give, conflicts of banks of
shared memory, barriers of copies (`SYNCS`), and what a jump takes beside its stall. All warps are in the same
loop, those of blocks whose warps have different roles too, and take every branch that goes on in it.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from tcomp.codegen.cuda.sass import Instruction, bank_conflicts
from tcomp.target.target import Gpu
from tcomp.tensor.gpu.rates import clock, multiply_adds
from tcomp.tensor.tensor_cores.mma_plan import instruction_cycles

SCHEDULERS = 4
WARM_UP, ITERATIONS = 4, 12
"""Simulated of each warp: those before the steady state, and those that count."""
_UNITS = {
    "float": ("FFMA", "FMUL", "FADD", "HFMA2", "HADD2", "HMUL2", "HMNMX2"),
    "multiply": ("IMAD", "IDP", "DFMA", "DMUL", "DADD"),
    "special": ("MUFU", "I2F", "F2I", "F2F", "FRND", "POPC", "FLO", "BREV", "I2FP"),
    "tensor": ("HMMA", "IMMA", "QMMA", "HGMMA", "IGMMA", "QGMMA"),
    "shared": ("LDS", "LDSM", "STS", "STSM", "SHFL", "ATOMS"),
    "memory": ("LDG", "STG", "LD", "ST", "LDGSTS", "ATOMG", "RED", "LDC", "LDL", "STL"),
    "control": (
        "BRA", "BAR", "CALL", "EXIT", "BSSY", "BSYNC", "WARPSYNC", "DEPBAR", "LDGDEPBAR", "NOP", "SYNCS",
        "WARPGROUP", "ELECT", "UTMALDG", "UTMASTG", "UTMACMDFLUSH", "FENCE", "MEMBAR", "VOTE", "VOTEU",
    ),
}  # fmt: skip
"""Names by unit; `integer` and, by their first letter, `uniform` are what is left."""
_OF_NAME = {name: unit for unit, names in _UNITS.items() for name in names}
LATENCY = {
    "LDS": 24, "LDSM": 30, "SHFL": 24, "MUFU": 22, "LDG": 260, "LDGSTS": 320, "HMMA": 34, "IMMA": 34,
    "LDC": 30, "S2R": 25, "R2UR": 12,
}  # fmt: skip
"""Cycles until a result is there, memory's from the second-level cache."""
_OTHER_LATENCY = 24
QUEUED_CYCLES = 64
"""Of work that shared memory and memory take on before a warp must wait to give them more: four vectors of
128 bits a thread, a guess."""
_READ_CYCLES = 12
"""Until an instruction of shared memory or memory has read its operands."""
_DTYPES = {
    "BF16": "bfloat16", "TF32": "tf32", "S8": "int8", "U8": "int8", "E4M3": "float8_e4m3fn",
    "E5M2": "float8_e5m2",
}  # fmt: skip


def unit_of(instruction: Instruction) -> str:
    """The unit that executes it."""
    name = instruction.name
    if name in ("IMAD", "HFMA2") and "MOV" in instruction.modifiers:
        return "multiply"
    if name in _OF_NAME:
        return _OF_NAME[name]
    return "uniform" if name.startswith("U") or name in ("R2UR", "S2UR") else "integer"


@dataclass(frozen=True)
class Units:
    """Of a kind of GPU: for how many cycles a scheduler's instruction keeps its unit."""

    gpu: Gpu
    paired: bool = False
    """Whether pairs of threads read the same vectors of 64 or 128 bits of shared memory, as in `block_tile`:
    these then take half the cycles."""

    def cycles(self, instruction: Instruction) -> float:
        unit = unit_of(instruction)
        if unit in ("shared", "memory"):
            words = _words(instruction)
            halved = self.paired and instruction.name == "LDS" and words > 1
            return SCHEDULERS * words / (2 if halved else 1)
        if unit == "tensor":
            return self._tensor(instruction)
        return {
            "float": SCHEDULERS * 32 / multiply_adds(self.gpu, 4),
            "multiply": 2.0,
            "integer": 2.0,
            "uniform": 2.0,
            "special": 8.0,
            "control": 1.0,
        }[unit]

    def _tensor(self, instruction: Instruction) -> float:
        dtype = next((_DTYPES[m] for m in instruction.modifiers if m in _DTYPES), None)
        if group := re.fullmatch(r"64x(\d+)x(\d+)", instruction.modifiers[0]):
            dtype = dtype or ("int8" if instruction.name == "IGMMA" else "float16")
            rate = self.gpu.flops[dtype] / (2 * self.gpu.processors * clock(self.gpu))
            return 64 * int(group[1]) * int(group[2]) / rate
        return SCHEDULERS * instruction_cycles(
            dtype or ("int8" if instruction.name == "IMMA" else "float16"), self.gpu
        )

    def pipe(self, instruction: Instruction) -> str:
        """The unit by whose number of lanes it is bound: integer multiply-adds go where those of floats do
        as long as a multiprocessor has only one such unit a scheduler; shared memory and memory have one."""
        unit = unit_of(instruction)
        if unit == "multiply":
            return "float" if multiply_adds(self.gpu, 4) == 64 else "multiply"
        return "shared" if unit == "memory" else unit


def _words(instruction: Instruction) -> int:
    """Words of 32 bits that a thread loads or stores."""
    if instruction.name == "LDSM":
        return int(next((m for m in instruction.modifiers if m in ("2", "4")), 1))
    bits = next((int(m) for m in instruction.modifiers if m in ("64", "128")), 32)
    return bits // 32


@dataclass(frozen=True)
class Wait:
    """An instruction that waits for the result of another, issued `behind` cycles before by stalls alone."""

    producer: Instruction
    consumer: Instruction
    behind: int

    @property
    def exposed(self) -> int:
        """Cycles of the latency that the warp's own instructions do not cover."""
        return max(0, latency(self.producer) - self.behind)


@dataclass(frozen=True)
class LoopCost:
    """What one iteration of a loop takes. Cycles are of one scheduler, each of whose `warps` does one.

    So many of them as `together` says are of one block, and wait for each other at barriers.
    """

    loop: Sequence[Instruction]
    gpu: Gpu
    warps: int
    together: int = 1
    paired: bool = False

    @cached_property
    def units(self) -> Units:
        return Units(self.gpu, self.paired)

    @cached_property
    def counts(self) -> Counter[str]:
        """Instructions by unit."""
        return Counter(unit_of(one) for one in self.loop)

    @property
    def stalls(self) -> int:
        """Cycles of one warp that waits for nothing but its stalls."""
        return sum(max(1, one.issue.stall) for one in self.loop)

    @cached_property
    def conflicts(self) -> tuple[int, ...]:
        """Which instructions take a cycle more, as their operands are of one bank of registers."""
        return bank_conflicts(self.loop)

    @cached_property
    def busy(self) -> Mapping[str, float]:
        """Cycles that one warp keeps each unit, and the slots of its scheduler as `issue`."""
        found: defaultdict[str, float] = defaultdict(float)
        for one in self.loop:
            found[self.units.pipe(one)] += self.units.cycles(one)
        found["float"] += len(self.conflicts)
        return {**found, "issue": float(len(self.loop))}

    @property
    def bound(self) -> tuple[str, float]:
        """The busiest unit, and its cycles for one warp."""
        return max(self.busy.items(), key=lambda item: item[1])

    @cached_property
    def products(self) -> float:
        """Cycles in which one warp's multiply-adds, or products of tensor cores, keep their unit."""
        names = _UNITS["tensor"] if any(unit_of(one) == "tensor" for one in self.loop) else ("FFMA",)
        return sum(self.units.cycles(one) for one in self.loop if one.name in names)

    @property
    def of_peak(self) -> float:
        """The share of the peak rate of products at which the loop runs by simulation."""
        return self.products * self.warps / self.simulated

    @cached_property
    def waits(self) -> tuple[Wait, ...]:
        """Waits for results, for each counter that of the last producer, with the loop running round."""
        found: list[Wait] = []
        size = len(self.loop)
        for at, consumer in enumerate(self.loop):
            for counter in consumer.issue.waits:
                behind = 0
                for back in range(1, size + 1):
                    producer = self.loop[(at - back) % size]
                    behind += max(1, producer.issue.stall)
                    if counter in (producer.issue.writes, producer.issue.reads):
                        if producer.issue.writes == counter:
                            found.append(Wait(producer, consumer, behind))
                        break
        return tuple(found)

    @cached_property
    def simulated(self) -> float:
        """Cycles of an iteration of all warps of a scheduler in the steady state."""
        return _Simulation(self).cycles()


def latency(instruction: Instruction) -> int:
    """Cycles until the result of an instruction that a counter tells of is there."""
    return LATENCY.get(instruction.name, _OTHER_LATENCY)


class _Warp:
    def __init__(self) -> None:
        self.at, self.ready, self.issued, self.iteration = 0, 0.0, -1.0, 0
        self.counters: dict[int, list[float]] = {number: [] for number in range(6)}
        self.copies, self.groups = 0.0, list[float]()
        self.products = list[float]()
        self.arrived: float | None = None

    def done(self, counter: int, left: int = 0) -> float:
        """When no more than `left` of what the counter counts is under way."""
        times = sorted(self.counters[counter])
        return times[-1 - left] if len(times) > left else 0.0


class _Simulation:
    """Warps of one scheduler, the longest waiting of which goes on first."""

    def __init__(self, cost: LoopCost) -> None:
        self.cost, self.loop = cost, cost.loop
        self.pipes = [cost.units.pipe(one) for one in cost.loop]
        self.taken = [cost.units.cycles(one) for one in cost.loop]
        for number in cost.conflicts:
            self.taken[number] += 1
        self.warps = [_Warp() for _ in range(cost.warps)]
        self.free: defaultdict[str, float] = defaultdict(float)

    def cycles(self) -> float:
        now, begun = -1.0, 0.0
        of_all = len(self.warps) * len(self.loop)
        for number in range((WARM_UP + ITERATIONS) * of_all):
            earliest = [self._earliest(warp) for warp in self.warps]
            now = max(now + 1, min(earliest))
            able = [warp for warp, time in zip(self.warps, earliest, strict=True) if time <= now]
            self._issue(min(able, key=lambda warp: warp.issued), now)
            if number == WARM_UP * of_all:
                begun = now
        return (now - begun) / ITERATIONS

    def _earliest(self, warp: _Warp) -> float:
        instruction = self.loop[warp.at]
        pipe = self.pipes[warp.at]
        time = max(warp.ready, self.free[pipe] - (QUEUED_CYCLES if pipe == "shared" else 0.0))
        for counter in instruction.issue.waits:
            time = max(time, warp.done(counter))
        if instruction.name == "DEPBAR":
            counter, left = (int(text.strip("SBx"), 0) for text in instruction.operands[:2])
            time = max(time, warp.done(counter, left))
        if instruction.name == "WARPGROUP" and "DEPBAR" in instruction.modifiers:
            left = int(instruction.operands[-1], 0)
            if len(warp.products) > left:
                time = max(time, warp.products[-1 - left])
        if instruction.name == "BAR" and "SYNC" in instruction.modifiers:
            time = max(time, self._others_arrive(warp))
        return time

    def _others_arrive(self, warp: _Warp) -> float:
        """When the warps of the same block are there: those that are not yet make it wait for them."""
        number = self.warps.index(warp) // self.cost.together * self.cost.together
        times = [
            float("inf") if (one.iteration, one.at) < (warp.iteration, warp.at) else one.ready
            for one in self.warps[number : number + self.cost.together]
            if (one.iteration, one.at) <= (warp.iteration, warp.at)
        ]
        return max(times)

    def _issue(self, warp: _Warp, now: float) -> None:
        instruction = self.loop[warp.at]
        taken, pipe = self.taken[warp.at], self.pipes[warp.at]
        start = max(now, self.free[pipe])
        self.free[pipe] = start + taken
        there = start + latency(instruction)
        if instruction.name == "LDGSTS":
            warp.copies = there
        if instruction.name == "LDGDEPBAR":
            there = max(there, warp.copies)
        if instruction.name in _UNITS["tensor"] and "GMMA" in instruction.name:
            warp.products.append(start + taken + latency(instruction))
        for counter in instruction.issue.waits:
            warp.counters[counter] = [time for time in warp.counters[counter] if time > now]
        if instruction.issue.writes is not None:
            warp.counters[instruction.issue.writes].append(there)
        if instruction.issue.reads is not None:
            warp.counters[instruction.issue.reads].append(start + _READ_CYCLES)
        warp.ready = now + max(1, instruction.issue.stall)
        warp.issued, warp.at = now, warp.at + 1
        if warp.at == len(self.loop):
            warp.at, warp.iteration = 0, warp.iteration + 1
