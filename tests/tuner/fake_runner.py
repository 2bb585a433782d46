"""A runner whose device is lost at chosen moments: `losses` names the measurements, counted in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tcomp.errors import DeviceError
from tcomp.target.target import Target
from tcomp.tensor.knobs import Config
from tcomp.tuner.records import Check, Times
from tcomp.tuner.runner import Device, Measure, Measured, Prepared, Raced, Rounds, Runner, Station

CONDITIONS: Mapping[str, str] = {"governor": "performance"}


@dataclass(frozen=True)
class FlakyRunner(Runner):
    """Every run takes as many seconds as the config's `work`; nothing is built."""

    counter: Path
    losses: tuple[int, ...] = ()
    places: int | None = None

    def connect(self, targets: Sequence[Target]) -> Device:
        return Device("a flaky board")

    def open(self, folder: Path, threads: int) -> Station[Any]:
        return _Flaky(self)


class _Flaky(Station[Config]):
    def __init__(self, runner: FlakyRunner) -> None:
        self._runner = runner

    def build(self, prepared: Prepared, config: Config) -> Config:
        return config

    def measure(self, candidate: Config, request: Measure) -> Measured:
        self._use()
        return _measured(candidate)

    def race(self, candidates: Sequence[Config], request: Rounds) -> Raced:
        self._use()
        return Raced(tuple(map(_measured, candidates)))

    def _use(self) -> None:
        with self._runner.counter.open("a") as file:
            file.write("x")
            number = file.tell()
        if number in self._runner.losses:
            raise DeviceError("a flaky board does not answer")


def _measured(config: Config) -> Measured:
    seconds = float(config["work"])
    return Measured(Times(seconds, seconds, 0.0, 1), Check(0.0, 1e-4), CONDITIONS)
