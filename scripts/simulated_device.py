"""A device that no estimate knows: times are what templates estimate, each wrong by a factor of its own.

It stands in for GPUs in comparisons of searches. The factor is `e ** (error * z)`, where `z` is of a normal
distribution and made of what the values of single knobs, pairs of them, and a config as a whole contribute:
as where a rate of the device, the latency of some instruction, or the compiler's mood is not as assumed. Of
a million configs some are lucky in all of that, so the best of a space is much faster than the default.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import exp, sqrt
from random import Random

from tcomp.target.target import Target
from tcomp.tensor.knobs import ALGORITHM, Config
from tcomp.tuner.measure import Job, Outcome, Source
from tcomp.tuner.records import Check, Times, config_key
from tcomp.tuner.runner import Device
from tcomp.tuner.task import Task

_OF_KNOBS, _OF_PAIRS, _OF_CONFIGS = 0.36, 0.48, 0.16
"""Parts of the variance."""
_CLOCK = 1e9


@dataclass
class SimulatedDevice:
    """Measures at once; `measured` lists the seconds of each trial. Tasks are looked up among `tasks`, whose
    templates must estimate."""

    tasks: Sequence[Task]
    error: float
    """Standard deviation of the logarithms of times from estimates."""
    seed: int
    measured: list[float] = field(default_factory=list[float])

    def connect(self, targets: Sequence[Target]) -> Device:
        """See `Measurer.connect`."""
        return Device(f"simulated ({self.error}, {self.seed})")

    def run(self, source: Source) -> Iterator[tuple[Job, Outcome]]:
        """See `Measurer.run`."""
        while (job := source()) is not None:
            seconds = self.seconds(job.task, job.config)
            self.measured.append(seconds)
            yield job, _outcome(job.config, seconds)

    def race(self, task: Task, configs: Sequence[Config]) -> list[Outcome]:
        """See `Measurer.race`."""
        return [_outcome(config, self.seconds(task, config)) for config in configs]

    def seconds(self, task: Task, config: Config) -> float:
        """The time of a config, always the same."""
        estimated = next(t for t in self.tasks if t.identity == task.identity).estimated([config])
        assert estimated is not None
        return estimated[0] / _CLOCK * exp(self.error * self._luck(task, config))

    def _luck(self, task: Task, config: Config) -> float:
        full = task.space.complete(config)
        knobs = sorted((name, str(value)) for name, value in full.items())
        pairs = list(combinations(knobs, 2))
        algorithm = str(full.get(ALGORITHM))
        of_knobs = sum(self._normal(algorithm, knob) for knob in knobs) / sqrt(len(knobs))
        of_pairs = sum(self._normal(algorithm, pair) for pair in pairs) / sqrt(max(1, len(pairs)))
        of_config = self._normal(task.key, config_key(config))
        return sqrt(_OF_KNOBS) * of_knobs + sqrt(_OF_PAIRS) * of_pairs + sqrt(_OF_CONFIGS) * of_config

    def _normal(self, *what: object) -> float:
        return Random(repr((self.seed, what))).gauss()


def _outcome(config: Config, seconds: float) -> Outcome:
    return Outcome(config, "ok", "", Times(seconds, seconds, 0.0, 10), Check(0.0, 1e-4))
