"""`--runner simulate`: no device; kernels are emulated, and their time is estimated from what they execute.

    seconds = max(core cycles, memory cycles) / 2 GHz

Core cycles are exact counts of executed instructions under qemu, times what the code takes; memory
cycles are a roofline of the lines that caches of the target's sizes miss in that run (`codegen/cycles.py`).
Not looked at are the delay of a miss that nothing hides, prefetching too early or too late, translation of
addresses, jumps that are not foreseen, and loads of what was just stored. So estimates reject what spills
registers, waits for its own results or streams from far away; between good schedules they do not decide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

from tcomp.codegen import c_abi
from tcomp.codegen.arithmetic import without_arithmetic
from tcomp.codegen.benchmark import (
    KERNEL,
    Argument,
    Linker,
    Options,
    arguments_of,
    outputs_of,
    prepare_toolchain,
)
from tcomp.codegen.cycles import CycleCount, Listing, Rates, count_cycles, instructions_outside
from tcomp.codegen.emulation import EMULATORS, Emulated, InstructionCounter, emulator_version
from tcomp.codegen.machine_code import find_llvm_mca, table_of
from tcomp.codegen.toolchain import find_static_toolchain, native_toolchain, static_target
from tcomp.errors import TargetError, UsageError
from tcomp.relay.types import FLOATS
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tensor.selection import schedule
from tcomp.tuner.provenance import simulated_device
from tcomp.tuner.records import Check, Times
from tcomp.tuner.runner import (
    RUNNERS,
    Device,
    Failed,
    Measure,
    Measured,
    Prepared,
    Raced,
    Rounds,
    Runner,
    Station,
    ended_by,
    wrong,
)
from tcomp.tuner.trial_data import compare, is_wrong

CLOCK = 2e9
"""Cycles a second of every core: only ratios of estimates mean something."""
_EMULATION_SECONDS = 300.0
"""An emulator computes one float in the time in which a core computes ten vectors of them."""


@dataclass(frozen=True)
class SimulateRunner(Runner):
    """Estimates, by as many workers at once as there are."""

    places: int | None = None
    overhead_seconds: float = 4 * _EMULATION_SECONDS
    most_threads: int | None = 1

    def connect(self, targets: Sequence[Target]) -> Device:
        for target in targets:
            if target.machine not in EMULATORS:
                raise TargetError(
                    f"target `{target.name}` is not simulated, ARM is; measure here with --runner local"
                )
            emulator_version(target)
            table_of(target)
            find_static_toolchain(target)
        find_llvm_mca()
        native_toolchain()
        for target in targets:
            prepare_toolchain(target)
        return Device(" and ".join(sorted({simulated_device(t) for t in targets})), simulated=True)

    def open(self, folder: Path, threads: int) -> Station[Any]:
        return _Simulation(folder)


@dataclass(frozen=True)
class _Candidate:
    """A kernel to emulate: its object, also without arithmetic where that takes the same way, its assembly,
    and what it is given.
    """

    prepared: Prepared
    target: Target
    code: bytes
    bare: bytes | None
    arguments: tuple[Argument, ...]
    listing: Listing


@dataclass(frozen=True)
class _Tools:
    """What serves all candidates of a target."""

    linker: Linker
    counter: InstructionCounter
    rates: Rates
    versions: dict[str, str]


class _Simulation(Station[_Candidate]):
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tools: dict[str, _Tools] = {}

    def build(self, prepared: Prepared, config: Config) -> _Candidate:
        target = static_target(prepared.target)
        scheduled = schedule(prepared.kernel, prepared.target, config)
        arguments = arguments_of(prepared.kernel, scheduled, prepared.data.inputs)
        module = c_abi.build({KERNEL: scheduled.function}, target)
        assembly = c_abi.assembly_of(module, target)
        code = c_abi.object_of(module, target, assembly)
        listing = Listing.of(assembly, target.machine)
        bare = without_arithmetic(code, listing) if _computes_floats(prepared.kernel) else None
        return _Candidate(prepared, target, code, bare, tuple(arguments), listing)

    def measure(self, candidate: _Candidate, request: Measure) -> Measured | Failed:
        """Estimate a candidate, and check its numbers if it is better than the best that is known.

        To compute them takes most of the time that an emulation takes.
        """
        texts = self._write_data(candidate.arguments)
        versions = self._tools_for(candidate.target).versions
        if candidate.bare is not None and request.best < inf:
            estimate = self._count(candidate, candidate.bare, texts)
            if isinstance(estimate, Failed) or estimate.cycles / CLOCK >= request.best:
                return estimate if isinstance(estimate, Failed) else _measured(estimate, None, versions)
        count = self._count(candidate, candidate.code, texts)
        if isinstance(count, Failed):
            return count
        outputs = outputs_of(candidate.prepared.kernel, (self._folder / "outputs").read_bytes())
        check = compare(candidate.prepared.data, outputs)
        return wrong(check) if is_wrong(check) else _measured(count, check, versions)

    def _count(self, candidate: _Candidate, code: bytes, texts: Sequence[str]) -> CycleCount | Failed:
        """Link and run a kernel, whose outputs are in a file afterwards; the cycles that it takes."""
        tools, listing = self._tools_for(candidate.target), candidate.listing
        program = self._folder / "program"
        tools.linker.link(code, len(candidate.arguments), program)
        command = Options(outputs="outputs", number=-1, seconds=_EMULATION_SECONDS)
        done = self._run(tools.counter, command.command(f"./{program.name}", texts))
        if isinstance(done, Failed):
            return done
        base = int(done.output.split()[0], 16) - listing.symbols[KERNEL]
        elsewhere = 0
        if listing.has_calls:
            idle = self._run(tools.counter, replace(command, outputs="-").command(f"./{program.name}", texts))
            if isinstance(idle, Failed):
                return idle
            outside = (instructions_outside(listing, base, e.pieces) for e in (done, idle))
            elsewhere = max(0, next(outside) - next(outside))
        return count_cycles(listing, base, done.pieces, elsewhere, tools.rates)

    def race(self, candidates: Sequence[_Candidate], request: Rounds) -> Raced | Failed:
        """Estimates do not vary: a race would repeat them."""
        raise UsageError("estimates are not raced")

    def _tools_for(self, target: Target) -> _Tools:
        if target.name not in self._tools:
            folder = self._folder / f"tools{len(self._tools)}"
            folder.mkdir()
            counter, rates = InstructionCounter(target, self._folder), Rates(target)
            versions = {"emulator": emulator_version(target), "table": rates.source}
            self._tools[target.name] = _Tools(Linker(target, folder), counter, rates, versions)
        return self._tools[target.name]

    def _write_data(self, arguments: Sequence[Argument]) -> list[str]:
        """Write the inputs; how the program is told of all arguments."""
        texts: list[str] = []
        for index, argument in enumerate(arguments):
            name = f"data{index}"
            if argument.data is not None:
                (self._folder / name).write_bytes(argument.data)
            texts.append(argument.text(name))
        return texts

    def _run(self, counter: InstructionCounter, command: Sequence[str]) -> Emulated | Failed:
        done = counter.run(command, 2 * _EMULATION_SECONDS)  # The program ends itself, unless it cannot.
        if done.status == 0:
            return done
        if done.status < 0:
            return ended_by(-done.status)
        said = (done.errors.strip().splitlines() or [f"exit status {done.status}"])[-1]
        return Failed("run_error", said)


def _computes_floats(kernel: Kernel) -> bool:
    """Whether a kernel computes no integers, which might be places of something."""
    return all(v.dtype in FLOATS for node in kernel.body.nodes for v in node.outputs)


def _measured(count: CycleCount, check: Check | None, versions: Mapping[str, str]) -> Measured:
    seconds = count.cycles / CLOCK
    return Measured(Times(seconds, seconds, 0.0, 1), check, {**versions, **_conditions(count)})


def _conditions(count: CycleCount) -> dict[str, str]:
    return {
        "core_cycles": f"{count.core:.0f}",
        "memory_cycles": f"{count.memory:.0f}",
        "instructions": f"{count.instructions}",
        "stack_accesses": f"{count.spills}",
    }


def _parse(text: str) -> Runner:
    if text:
        raise UsageError(f"runner `simulate:{text}` names a device; the target of --target is simulated")
    return SimulateRunner()


RUNNERS.register("simulate", _parse)
