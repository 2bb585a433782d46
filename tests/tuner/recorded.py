"""A table of times that plays the device, so that search is tested without measuring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import log2

from tcomp.target.target import Target
from tcomp.tensor.knobs import Choice, Config, Ordered, Space
from tcomp.tuner.features import NAMES
from tcomp.tuner.measure import Job, Outcome, Source
from tcomp.tuner.records import Check, Times
from tcomp.tuner.runner import Device
from tcomp.tuner.task import Task

SPACE = Space(
    (
        Ordered("tile_m", tuple(range(1, 17)), default=1),
        Ordered("tile_n", tuple(16 * i for i in range(1, 9)), default=16),
        Ordered("chunk", tuple(2**i for i in range(4, 12)), default=64),
        Choice("order", ("mnk", "nmk", "kmn"), default="mnk"),
        Ordered("unroll", (1, 2, 4, 8), default=1),
    ),
)


def seconds(config: Config) -> float:
    """A landscape like a matmul's: a best tile, spills beyond the registers, a cache's worth of chunk."""
    m, vectors, chunk = int(config["tile_m"]), int(config["tile_n"]) // 16, int(config["chunk"])
    registers = m * vectors + vectors + 1
    time = 1.0 + 1.0 / m + 1.0 / vectors + (0.3 * (registers - 32) if registers > 32 else 0.0)
    time *= 1.0 + 0.1 * abs(log2(chunk) - 8)
    time *= {"mnk": 1.2, "nmk": 1.0, "kmn": 2.0}[str(config["order"])]
    return time * (1.0 + 0.04 * abs(log2(int(config["unroll"])) - 1)) * 1e-3


class RecordedDevice:
    """Answers every config at once from the table, as `device`."""

    def __init__(self, stop_after: int | None = None, device: Device | None = None) -> None:
        self.measured: list[Config] = []
        self._device = device or Device("a table")
        self._stop_after = stop_after

    def connect(self, targets: Sequence[Target]) -> Device:
        return self._device

    def run(self, source: Source) -> Iterator[tuple[Job, Outcome]]:
        while (job := source()) is not None:
            if len(self.measured) == self._stop_after:
                raise KeyboardInterrupt
            self.measured.append(job.config)
            yield job, self._outcome(job.config)

    def race(self, task: Task, configs: Sequence[Config]) -> list[Outcome]:
        return [self._outcome(c) for c in configs]

    def _outcome(self, config: Config) -> Outcome:
        time = seconds(config)
        return Outcome(config, "ok", "", Times(time, time, 0.0, 10), Check(0.0, 1e-4))


def features(task: Task, config: Config) -> tuple[float, ...]:
    """The knobs in place of features of TIR, which made-up configs do not have."""
    knobs = task.space.encode(config)
    return (*knobs, *(0.0 for _ in NAMES[len(knobs) :]))
