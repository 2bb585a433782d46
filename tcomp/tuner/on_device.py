"""Measuring on a device that has a shell: send a static program and its data, run it, fetch its outputs.

Data is sent once for all trials that need it, the program once a trial. The numbers are checked here.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tcomp.codegen import c_abi
from tcomp.codegen.benchmark import KERNEL, Argument, Linker, Options, arguments_of, outputs_of
from tcomp.codegen.toolchain import static_target
from tcomp.errors import DeviceError
from tcomp.target.target import Target
from tcomp.tensor.knobs import Config
from tcomp.tensor.selection import schedule
from tcomp.tuner.device import IDENTITY, STATE, Identity, State, conditions
from tcomp.tuner.records import Check, times_of
from tcomp.tuner.runner import Failed, Measure, Measured, Prepared, Raced, Rounds, Station, ended_by, wrong
from tcomp.tuner.shell import Answer, Shell
from tcomp.tuner.timing import race_times
from tcomp.tuner.trial_data import compare, is_wrong

KEPT_BYTES = 256 << 20
"""Data that stays on the device for the next trial that needs it."""
_RUN, _AFTER = "tcomp-run", "tcomp-after"
_SAMPLE = re.compile(r"^([0-9.e+-]+) (\d+)$", re.MULTILINE)
_CANNOT_EXECUTE = (126, 127)


@dataclass(frozen=True)
class Program:
    """A candidate: the program's file here, and what it must be given."""

    prepared: Prepared
    file: Path
    arguments: tuple[Argument, ...]


@dataclass(frozen=True)
class _Sent:
    """A program with its data on the device: its name there, and how its arguments are written."""

    program: Program
    arguments: tuple[str, ...]

    @property
    def outputs(self) -> str:
        return f"{self.program.file.name}.out"

    def command(self, options: Options) -> str:
        return shlex.join(options.command(f"./{self.program.file.name}", self.arguments))


class DeviceStation(Station[Program]):
    """Measures on the device behind `shell`, in `place` there."""

    def __init__(self, shell: Shell, place: str, folder: Path, threads: int) -> None:
        self._shell = shell
        self._place = f"{place}/{os.getpid()}"
        self._folder = folder
        self._threads = threads
        self._linkers: dict[str, Linker] = {}
        self._programs = 0
        self._identity: Identity | None = None
        self._there: dict[str, int] = {}
        """Bytes of the data that is on the device, by name."""

    def build(self, prepared: Prepared, config: Config) -> Program:
        target = static_target(prepared.target)
        scheduled = schedule(prepared.kernel, prepared.target, config)
        arguments = arguments_of(prepared.kernel, scheduled, prepared.data.inputs)
        if target.name not in self._linkers:
            folder = self._folder / f"linker{len(self._linkers)}"
            folder.mkdir()
            self._linkers[target.name] = Linker(target, folder)
        self._programs += 1
        file = self._folder / f"kernel{self._programs}"
        kernel = c_abi.object_code({KERNEL: scheduled.function}, target)
        self._linkers[target.name].link(kernel, len(arguments), file)
        return Program(prepared, file, tuple(arguments))

    def measure(self, candidate: Program, request: Measure) -> Measured | Failed:
        (sent,) = self._send([candidate])
        options = replace(
            self._options(candidate, request.seconds_limit),
            outputs=sent.outputs,
            minimum=request.minimum_seconds,
            repeats=request.repeats,
            abandon=request.abandon_above,
        )
        answer = self._run(sent.command(options), request.seconds_limit)
        if answer.status != 0:
            return self._failure(answer)
        samples, state = self._read(answer, candidate.prepared.target)
        check = self._check(sent)
        self._remove([sent])
        if is_wrong(check):
            return wrong(check)
        times = times_of([seconds for seconds, _ in samples], sum(runs for _, runs in samples))
        return Measured(times, check, state)

    def race(self, candidates: Sequence[Program], request: Rounds) -> Raced | Failed:
        sent = self._send(candidates)
        limit = request.seconds_limit
        base = self._options(candidates[0], limit)
        first = " && ".join(s.command(replace(base, outputs=s.outputs, number=1)) for s in sent)
        answer = self._run(first, limit * len(sent))
        if answer.status != 0:
            return self._failure(answer)
        samples, _ = self._read(answer, candidates[0].prepared.target)
        checks = [self._check(s) for s in sent]
        for check in checks:
            if is_wrong(check):
                return wrong(check)
        numbers = [max(1, round(request.round_seconds / max(seconds, 1e-9))) for seconds, _ in samples]
        turn = " && ".join(s.command(replace(base, number=n)) for s, n in zip(sent, numbers, strict=True))
        loop = f"i=0; while [ $i -lt {request.rounds} ]; do {turn} || exit $?; i=$((i+1)); done"
        answer = self._run(loop, limit * (1 + len(sent)))
        if answer.status != 0:
            return self._failure(answer)
        samples, state = self._read(answer, candidates[0].prepared.target)
        self._remove(sent)
        seconds, width = [s for s, _ in samples], len(sent)
        rounds = [seconds[i : i + width] for i in range(0, len(seconds), width)]
        times = race_times(rounds, numbers)
        return Raced(tuple(Measured(t, c, state) for t, c in zip(times, checks, strict=True)))

    def _options(self, candidate: Program, seconds: float) -> Options:
        mask = sum(1 << cpu for cpu in self._cpus(candidate.prepared.target))
        return Options(mask, self._threads, seconds)

    def _cpus(self, target: Target) -> tuple[int, ...]:
        return self._identity.cpus(target) if self._identity is not None else ()

    def _send(self, programs: Sequence[Program]) -> list[_Sent]:
        """Bring programs and those of their data that are not there yet to the device."""
        try:
            if sum(self._there.values()) > KEPT_BYTES:
                self._shell.run(f"rm -rf {self._place}")
                self._identity = None
            if self._identity is None:
                self._there.clear()
                answer = self._shell.run(f"mkdir -p {self._place} && {IDENTITY}")
                if answer.status != 0:
                    raise DeviceError(
                        f"{self._shell.name} cannot make {self._place}: {answer.errors.strip()}"
                    )
                self._identity = Identity.of(answer.output)
            files, sent = {p.file.name: p.file for p in programs}, list[_Sent]()
            for program in programs:
                texts: list[str] = []
                for argument in program.arguments:
                    if argument.data is None:
                        texts.append(argument.text())
                        continue
                    name = hashlib.blake2b(argument.data, digest_size=12).hexdigest()
                    texts.append(argument.text(name))
                    if name not in self._there and name not in files:
                        files[name] = self._folder / name
                        files[name].write_bytes(argument.data)
                sent.append(_Sent(program, tuple(texts)))
            self._shell.push(list(files.values()), self._place)
        except DeviceError:
            self._identity = None  # Whatever was there may be gone when the device is back.
            raise
        for name, file in files.items():
            if file not in [p.file for p in programs]:
                self._there[name] = file.stat().st_size
            file.unlink()
        return sent

    def _run(self, command: str, seconds: float) -> Answer:
        """Run a command in the folder on the device, which looks at its state before and after."""
        script = (
            f"cd {self._place} || exit 126; chmod 755 kernel*; {STATE}; echo {_RUN}; ( {command}\n); s=$?; "
            f"echo {_AFTER}; {STATE}; exit $s"
        )
        try:
            answer = self._shell.run(script, seconds)
            if answer.status in _CANNOT_EXECUTE:
                reason = (answer.errors.strip().splitlines() or [answer.output])[-1]
                raise DeviceError(f"{self._shell.name} cannot run programs in {self._place}: {reason}")
        except DeviceError:
            self._identity = None
            raise
        return answer

    def _read(self, answer: Answer, target: Target) -> tuple[list[tuple[float, int]], dict[str, str]]:
        """Samples, each with the number of its runs, and the state of the device around them."""
        before, _, rest = answer.output.partition(f"{_RUN}\n")
        said, _, after = rest.partition(f"{_AFTER}\n")
        samples = [(float(seconds), int(runs)) for seconds, runs in _SAMPLE.findall(said)]
        cpus = self._cpus(target)
        return samples, conditions(State.of(before, cpus), State.of(after, cpus), cpus)

    def _check(self, sent: _Sent) -> Check:
        kernel, file = sent.program.prepared.kernel, self._folder / "outputs"
        nbytes = sum(v.type.nbytes for v in kernel.body.outputs)
        data = self._shell.pull(f"{self._place}/{sent.outputs}", file, nbytes)
        return compare(sent.program.prepared.data, outputs_of(kernel, data))

    def _remove(self, sent: Sequence[_Sent]) -> None:
        names = " ".join(f"{s.program.file.name} {s.outputs}" for s in sent)
        self._shell.run(f"cd {self._place} && rm -f {names}")

    def _failure(self, answer: Answer) -> Failed:
        """What became of a program that did not end well."""
        said = (answer.errors.strip().splitlines() or [""])[-1]
        if answer.status <= 128:
            out_of_memory = "memory" in said
            return Failed("memory" if out_of_memory else "run_error", said or f"exit status {answer.status}")
        return ended_by(answer.status - 128)
