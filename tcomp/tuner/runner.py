"""Where trials run: the interface of what `--runner` names. `tcomp/tuner/runners` holds them, one file each.

The tuner has a `Runner`, which it sends to its worker processes. There `open` makes a `Station` of it, which
builds candidates, runs and checks them. A runner may measure in the worker itself, on a device that is
reached through something, or not at all but estimate.
"""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from tcomp.errors import UsageError
from tcomp.registry import Registry
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tuner.records import Check, Status, Times
from tcomp.tuner.trial_data import TrialData, trial_data


@dataclass(frozen=True)
class Device:
    """What measures: its name in records, whether its times are estimates of a model of it, and what it is
    like: `warning` among these conditions makes its times doubtful.
    """

    name: str
    simulated: bool = False
    conditions: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Prepared:
    """A kernel to try configs of, with its inputs and what it must compute from them."""

    key: str
    kernel: Kernel
    target: Target
    data: TrialData


@dataclass(frozen=True)
class Measure:
    """How to time one candidate; above `abandon_above` seconds a run it need not be precise.

    Another one is known to take `best` seconds.
    """

    seconds_limit: float
    abandon_above: float
    best: float = float("inf")
    minimum_seconds: float = 0.012
    repeats: int = 5


@dataclass(frozen=True)
class Rounds:
    """How to time several candidates in turns. `seconds_limit` is that of each."""

    seconds_limit: float
    rounds: int = 9
    round_seconds: float = 0.01


@dataclass(frozen=True)
class Measured:
    """Times of a kernel whose numbers are right, and what the device was like meanwhile.

    `check` is None where the numbers were not looked at, which only estimates leave out that are not better
    than the best.
    """

    seconds: Times
    check: Check | None
    conditions: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Raced:
    """What was measured of each candidate of a race, in their order."""

    results: tuple[Measured, ...]


@dataclass(frozen=True)
class Failed:
    """A trial that ended with a reason, and left worker and device alive."""

    status: Status
    reason: str
    check: Check | None = None


_SIGNALS: Mapping[int, tuple[Status, str]] = {
    signal.SIGALRM: ("timeout", "ran longer than the limit of a trial"),
    signal.SIGKILL: ("memory", "killed by the device, out of memory probably"),
    signal.SIGILL: ("crash", "an instruction that the device lacks; the target is another CPU"),
}

Candidate = TypeVar("Candidate")


class Station(ABC, Generic[Candidate]):
    """What measures in a worker process. A `Candidate` is a built config.

    All methods raise DeviceError when the device is lost; the trial is then tried once more, by this station
    or another. Other exceptions are failures of the candidate.
    """

    def data(self, kernel: Kernel, seed: int) -> TrialData:
        """Random inputs of a kernel, and what it must compute from them."""
        return trial_data(kernel, seed)

    @abstractmethod
    def build(self, prepared: Prepared, config: Config) -> Candidate:
        """Make code of a config: everything that needs no device. Others may be measured meanwhile."""

    @abstractmethod
    def measure(self, candidate: Candidate, request: Measure) -> Measured | Failed:
        """Run, check and time a candidate."""

    @abstractmethod
    def race(self, candidates: Sequence[Candidate], request: Rounds) -> Raced | Failed:
        """Check candidates and time them in turns, the first being the one that others are compared with."""


class Runner(ABC):
    """A way to measure. Workers get a copy of it, so it is a dataclass that pickles, without connections."""

    is_here: ClassVar[bool] = False
    """Whether candidates run on this machine's cores, so that what else runs here disturbs them."""
    places: int | None = 1
    """Candidates that may be measured at the same time; None for as many as there are workers."""
    overhead_seconds: float = 0.0
    """Time that a measurement may take beyond the limit of a trial: moving data, waiting for a device."""

    most_threads: int | None = None
    """Threads of a kernel that can be measured; None for any number."""

    @abstractmethod
    def connect(self, targets: Sequence[Target]) -> Device:
        """What measures; called before the first trial, to fail early.

        Raises TargetError when it cannot run code for one of `targets`, DeviceError when it does not answer,
        BuildError when a tool is missing.
        """

    @abstractmethod
    def open(self, folder: Path, threads: int) -> Station[Any]:
        """What measures in this worker process, kernels running on so many threads.

        It may keep files in `folder`, which is empty, its own, and removed when the process has ended.
        """

    def close(self) -> None:  # noqa: B027 (most have nothing to do)
        """Leave nothing behind on the device; called once after the last measurement, if any."""


RUNNERS: Registry[Callable[[str], Runner]] = Registry("runner", "tcomp.tuner.runners")
"""By the word before the first colon of `--runner`: a function of the text behind that colon, if any, which
raises UsageError for text that says nothing."""


def parse_runner(text: str) -> Runner:
    """The runner that `text` means: `local`, `simulate`, `adb:SERIAL`, `ssh://HOST`, `rpc://HOST:PORT/KEY`.

    Raises UsageError for an unknown one.
    """
    name, _, rest = text.partition(":")
    if name not in RUNNERS:
        raise UsageError(f"unknown runner `{text}`; one of {', '.join(RUNNERS)}")
    return RUNNERS[name](rest)


def wrong(check: Check) -> Failed:
    """The failure of a candidate whose numbers differ from the reference."""
    reason = f"max error {check.max_error:.3g} of the output's scale, allowed {check.tolerance:.3g}"
    return Failed("wrong", reason, check)


def ended_by(number: int) -> Failed:
    """The failure of a candidate, a program of its own, that a signal ended."""
    if number in _SIGNALS:
        return Failed(*_SIGNALS[number])
    names = {int(s): s.name for s in signal.Signals}
    return Failed("crash", f"killed by {names.get(number, f'signal {number}')}")
