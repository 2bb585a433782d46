"""What tuning reports while it runs. The command line renders these events; `to_json` serves `--json`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Union

from tcomp.tensor.knobs import Config


@dataclass(frozen=True)
class TuningStarted:
    """`known` trials of these tasks were in the log already; `problems` of its lines were skipped.

    `priors` configs that were fast on other machines are tried first.
    """

    tasks: int
    trials: int
    known: int
    problems: int
    log: str
    priors: int = 0


@dataclass(frozen=True)
class BudgetTooSmall:
    """Trials or time ended before the first trial of `untried` of the `tasks`; those keep their defaults."""

    untried: int
    tasks: int


@dataclass(frozen=True)
class TrialDone:
    """One trial. Seconds are per run of the kernel; `best` and `default` are None until one worked.

    `task` counts from 0; `trial` is the number of this trial among all of `trials`; `rate` is trials a
    second; `seconds_left` is None when neither the trials nor the time are limited.
    """

    task: int
    tasks: int
    label: str
    trial: int
    trials: int
    status: str
    reason: str
    seconds: float | None
    best: float | None
    default: float | None
    rate: float
    seconds_left: float | None


@dataclass(frozen=True)
class DoubtfulTimes:
    """The device is in a state in which its times are not to be trusted; said once for each reason."""

    reason: str


@dataclass(frozen=True)
class Stopping:
    """The user asked to stop; the batch in flight is finished first. A second request stops at once."""


@dataclass(frozen=True)
class TaskSkipped:
    """A task that cannot be measured at all."""

    task: int
    label: str
    reason: str


@dataclass(frozen=True)
class TaskDone:
    """The outcome of a task after its best configs were raced against the default.

    `speedup` is the default's time over the best's in the race, 1.0 when the default stays. `spread` is
    there when it stays because measurements spread too wide to tell a faster config from luck. `reason` is
    why the last trial failed, where none succeeded.
    """

    task: int
    label: str
    key: str
    weight: int
    config: Config
    seconds: float | None
    default: float | None
    speedup: float
    spread: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class ModelDone:
    """The model timed as a whole, with the default configs and with those of `tuned` kernels that won alone.

    `default` and `seconds` are per run. Kernels in `lost` were no faster there; their defaults come back.
    """

    default: float
    seconds: float
    tuned: int
    lost: tuple[str, ...]


Event = Union[
    TuningStarted, TrialDone, BudgetTooSmall, DoubtfulTimes, Stopping, TaskSkipped, TaskDone, ModelDone
]
Progress = Callable[[Event], None]


def to_json(event: Event) -> dict[str, Any]:
    """The event as plain data; `event` names its kind: `trial-done`."""
    kind = re.sub(r"(?<!^)(?=[A-Z])", "-", type(event).__name__).lower()
    return {"event": kind, **asdict(event)}
