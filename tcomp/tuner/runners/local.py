"""`--runner local`: candidates run in the worker process that built them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from tcomp.codegen.jit import build_scheduled
from tcomp.codegen.kernel_runner import KernelRunner
from tcomp.errors import UsageError
from tcomp.target.host import require_runnable
from tcomp.target.target import Target
from tcomp.tensor.knobs import Config
from tcomp.tensor.selection import schedule
from tcomp.tuner.provenance import device_name
from tcomp.tuner.records import Check
from tcomp.tuner.runner import (
    RUNNERS,
    Device,
    Failed,
    Measure,
    Measured,
    Prepared,
    Runner,
    Station,
)
from tcomp.tuner.timing import TimedCandidate, TimingStation
from tcomp.tuner.trial_data import TrialData, compare


@dataclass(frozen=True)
class LocalRunner(Runner):
    """This machine."""

    is_here: ClassVar[bool] = True

    def connect(self, targets: Sequence[Target]) -> Device:
        for target in targets:
            require_runnable(target)
        return Device(device_name(targets[0]))

    def open(self, folder: Path, threads: int) -> Station[Any]:
        return _LocalStation()


class _LocalStation(TimingStation["LocalCandidate"]):
    def build(self, prepared: Prepared, config: Config) -> LocalCandidate:
        scheduled = schedule(prepared.kernel, prepared.target, config)
        runner = build_scheduled(prepared.kernel, scheduled, prepared.target)
        runner.require_no_spills()
        candidate = LocalCandidate(prepared.data, runner)
        if prepared.target.gpu is None:  # A GPU would have to stop what others measure there.
            candidate.prepare()
        return candidate

    def measure(self, candidate: LocalCandidate, request: Measure) -> Measured | Failed:
        measured = super().measure(candidate, request)
        if isinstance(measured, Failed):
            return measured
        return replace(measured, conditions={**measured.conditions, **candidate.conditions()})


class LocalCandidate(TimedCandidate):
    """A built config with its machine code and its arguments."""

    def __init__(self, data: TrialData, runner: KernelRunner) -> None:
        self._data = data
        self._runner = runner
        self.rest_seconds = runner.rest_seconds

    def prepare(self) -> None:
        """Load the machine code and make the arguments; without this the first run does."""
        _ = self._arguments

    @cached_property
    def _arguments(self) -> Any:
        self._runner.load()
        return self._runner.prepare(self._data.inputs)

    def conditions(self) -> Mapping[str, str]:
        return self._runner.conditions()

    def run(self) -> None:
        self._runner.run_prepared(self._arguments)

    def time(self, number: int, repeat: int) -> list[float]:
        return self._runner.time_prepared(self._arguments, number=number, repeat=repeat)

    def clock(self, repeat: int) -> list[float]:
        """Seconds measured from Python."""
        return self._runner.clock_prepared(self._arguments, repeat)

    def check(self) -> Check:
        return compare(self._data, self._runner.outputs(self._arguments))


def _parse(text: str) -> Runner:
    if text:
        raise UsageError(f"runner `local:{text}` names a place; `local` is this machine")
    return LocalRunner()


RUNNERS.register("local", _parse)
