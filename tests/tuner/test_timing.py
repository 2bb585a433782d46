"""How often a candidate runs: as often as its times need to be exact."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle

import pytest

from tcomp.tuner.records import Check
from tcomp.tuner.runner import Measure
from tcomp.tuner.timing import TimedCandidate, adaptive_times

SPREADING = (0.010, 0.013, 0.011, 0.016, 0.014)


class Clockwork(TimedCandidate):
    """Takes the seconds that it is told, again and again."""

    def __init__(self, seconds: tuple[float, ...]) -> None:
        self._seconds: Iterator[float] = cycle(seconds)

    def run(self) -> None:
        next(self._seconds)

    def check(self) -> Check:
        return Check(0.0, 1.0)

    def time(self, number: int, repeat: int) -> list[float]:
        return self.clock(repeat)

    def clock(self, repeat: int) -> list[float]:
        return [next(self._seconds) for _ in range(repeat)]


@pytest.mark.parametrize(
    ("seconds", "best", "runs"),
    [
        (SPREADING, float("inf"), 15),
        (SPREADING, 0.0105, 15),
        (SPREADING, 0.0095, 5),
        ((0.010,), 0.012, 5),
        ((0.010,), 0.008, 2),
    ],
    ids=["the first", "perhaps the best", "certainly not the best", "steady", "slow"],
)
def test_runs(seconds: tuple[float, ...], best: float, runs: int) -> None:
    assert adaptive_times(Clockwork(seconds), Measure(10.0, 1.2 * best, best)).runs == runs


def test_rests_count_as_time_of_a_trial() -> None:
    numbers: list[int] = []

    class Counted(Clockwork):
        def time(self, number: int, repeat: int) -> list[float]:
            numbers.append(number)
            return super().time(number, repeat)

    quick, resting = Counted((1e-5,)), Counted((1e-5,))
    resting.rest_seconds = 9e-5
    request = Measure(10.0, float("inf"), float("inf"))
    for candidate in (quick, resting):
        adaptive_times(candidate, request)
    assert numbers == [240, 24]
