"""Which task gets the next batch of trials: the one where it should save most time of the whole model.

After the task scheduler of Ansor (Zheng et al., OSDI 2020), a gradient per task: half what its last batches
gained, half what the next one may gain at best - less with every batch that was spent, and never more than
what separates the task from the rate of arithmetic that the fastest task reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

from tcomp.tensor.knobs import Config
from tcomp.tuner.records import Record, config_key
from tcomp.tuner.runner import Device
from tcomp.tuner.search.strategy import Strategy
from tcomp.tuner.task import Task

RECENT_BATCHES = 3
"""Batches over which a task's gain is averaged."""
IMPROVED = 0.99
"""A best time below this part of the previous one counts as progress."""


@dataclass
class TaskState:
    """One task while it is tuned. `priors` are configs to try first, known to be good on other devices."""

    index: int
    task: Task
    device: Device
    strategy: Strategy
    records: list[Record] = field(default_factory=list[Record])
    priors: list[Config] = field(default_factory=list[Config])
    best: float = inf
    default: float | None = None
    history: list[float] = field(default_factory=list[float])
    """The best time after each batch."""
    trials_since_gain: int = 0
    pending: int = 0
    """Trials of the batch in flight that have no outcome yet."""
    _batch: tuple[int, float] = (0, inf)
    """Trials of the batch in flight, and the best time before it."""
    exhausted: bool = False
    skipped: str = ""

    @property
    def default_key(self) -> str:
        return config_key(self.task.space.default)

    @property
    def trials(self) -> int:
        return sum(r.phase == "trial" for r in self.records)

    @property
    def has_default(self) -> bool:
        return any(r.config_key == self.default_key for r in self.records)

    def begin_batch(self, trials: int) -> None:
        """Note that a batch of `trials` is on its way."""
        self.pending = trials
        self._batch = trials, self.best

    def end_trial(self) -> None:
        """Note that one trial of the batch has its outcome, and with the last one what the batch brought."""
        self.pending -= 1
        if self.pending == 0:
            trials, before = self._batch
            self.history.append(self.best)
            self.trials_since_gain = 0 if self.best < IMPROVED * before else self.trials_since_gain + trials

    def skip(self, reason: str) -> None:
        """Give the task up."""
        self.skipped, self.pending = reason, 0

    def is_active(self, patience: int | None) -> bool:
        """Whether more trials may still pay; not after `patience` of them without progress."""
        if self.exhausted or self.skipped:
            return False
        return patience is None or self.trials_since_gain < patience

    def gain(self, top_rate: float) -> float:
        """Seconds of the model that another batch may save; `top_rate` is the best FLOP/s of all tasks."""
        if not self.has_default or self.best == inf:
            return inf
        known = [t for t in self.history if t < inf][-RECENT_BATCHES - 1 :]
        recent = (known[0] - known[-1]) / max(1, len(known) - 1) if known else 0.0
        floor = self.task.flops / top_rate if top_rate > 0 else 0.0
        hoped = min(self.best - floor, self.best / (1 + len(self.history)))
        return self.task.weight * (recent + hoped) / 2


def choose(states: Sequence[TaskState]) -> TaskState:
    """The state whose next batch promises most; tasks without their default first, heaviest first."""
    top_rate = max((s.task.flops / s.best for s in states if 0 < s.best < inf), default=0.0)
    return max(states, key=lambda s: (s.gain(top_rate), -s.index))
