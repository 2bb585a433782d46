"""Timing candidates that are called one by one: enough runs, again while they spread, races in turns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from math import ceil
from statistics import median
from typing import TypeVar

from tcomp.tuner.records import Check, Times, times_of
from tcomp.tuner.runner import Failed, Measure, Measured, Raced, Rounds, Station, wrong
from tcomp.tuner.trial_data import is_wrong


class TimedCandidate(ABC):
    """A candidate that runs when it is called."""

    rest_seconds: float = 0.0
    """What a timed run takes besides, which its time does not count: to empty a GPU's caches."""

    @abstractmethod
    def run(self) -> None:
        """One run, not timed."""

    @abstractmethod
    def check(self) -> Check:
        """The error of the outputs of the last run."""

    @abstractmethod
    def time(self, number: int, repeat: int) -> list[float]:
        """Seconds of one run, averaged over `number`, `repeat` times, after a run that is not counted."""

    @abstractmethod
    def clock(self, repeat: int) -> list[float]:
        """Seconds of each of `repeat` runs, none before them; for kernels that take milliseconds."""


Timed = TypeVar("Timed", bound=TimedCandidate)


class TimingStation(Station[Timed]):
    """A station of candidates that are called one by one."""

    def conditions(self) -> Mapping[str, str]:
        """What the device is like now, for the record."""
        return {}

    def measure(self, candidate: Timed, request: Measure) -> Measured | Failed:
        candidate.run()
        check = candidate.check()
        if is_wrong(check):
            return wrong(check)
        return Measured(adaptive_times(candidate, request), check, self.conditions())

    def race(self, candidates: Sequence[Timed], request: Rounds) -> Raced | Failed:
        for candidate in candidates:
            candidate.run()
        firsts = [c.time(number=1, repeat=1)[0] for c in candidates]
        checks = [c.check() for c in candidates]
        for check in checks:
            if is_wrong(check):
                return wrong(check)
        numbers = [
            max(1, round(request.round_seconds / max(f + c.rest_seconds, 1e-9)))
            for f, c in zip(firsts, candidates, strict=True)
        ]
        rounds = [
            [
                candidate.time(number, repeat=1)[0]
                for candidate, number in zip(candidates, numbers, strict=True)
            ]
            for _ in range(request.rounds)
        ]
        conditions = self.conditions()
        times = race_times(rounds, numbers)
        return Raced(tuple(Measured(t, c, conditions) for t, c in zip(times, checks, strict=True)))


def adaptive_times(candidate: TimedCandidate, request: Measure) -> Times:
    """Time adaptively: enough runs for `minimum_seconds`, again while the spread stays above 5%.

    A candidate that is slow in its first two runs gets no more of them. It ran once before, for its numbers.
    Times that spread are only measured again where the fastest says that the candidate may be the best.
    """
    firsts = candidate.clock(repeat=2)
    fastest = max(min(firsts), 1e-9)
    repeats, whole = request.repeats, fastest + candidate.rest_seconds
    number = max(1, ceil(request.minimum_seconds / (repeats * whole)))
    if fastest > request.abandon_above and number * repeats * whole > request.minimum_seconds / 4:
        return times_of([fastest], runs=2)
    # One run of a slow kernel is a sample; many runs of a fast one are timed from C.
    samples = firsts if number == 1 else []
    while True:
        missing = repeats - len(samples) % repeats
        samples += candidate.clock(missing) if number == 1 else candidate.time(number, missing)
        times = times_of(samples, runs=number * len(samples))
        steady = times.spread < 0.05 or times.min > request.best
        if steady or len(samples) >= 3 * repeats:
            return times


def race_times(rounds: Sequence[Sequence[float]], numbers: Sequence[int]) -> list[Times]:
    """Times of each candidate from rounds in which all ran one after the other, each `numbers` times.

    Their ratio to the first candidate in the same round decides: what slows the machine down for a while
    slows both. `median` is the first one's median times the median ratio, `spread` that of the ratio.
    """
    first = median(times[0] for times in rounds)
    results = [times_of([times[0] for times in rounds], numbers[0] * len(rounds))]
    for index, number in enumerate(numbers[1:], start=1):
        ratio = times_of([times[index] / times[0] for times in rounds], number * len(rounds))
        fastest = min(times[index] for times in rounds)
        results.append(Times(first * ratio.median, fastest, ratio.spread, ratio.runs))
    return results
