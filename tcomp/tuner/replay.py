"""Replay records without measuring: does every kernel of a graph have a record that still builds?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tcomp.codegen.jit import build_kernel
from tcomp.errors import TcompError
from tcomp.relay.graph import Graph
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tuner.lookup import Lookup, Records
from tcomp.tuner.task import kernels

ReplayState = Literal["hit", "default", "missing", "stale", "broken"]


@dataclass(frozen=True)
class ReplayedTask:
    """One kernel of the graph. `broken`: there is a record, but its config no longer builds.

    `default` leaves nothing to choose. `note` gives the reason, or the device of a record from elsewhere.
    `simulated`: the record is an estimate.
    """

    label: str
    key: str
    weight: int
    state: ReplayState
    template: str = ""
    note: str = ""
    simulated: bool = False

    @property
    def is_good(self) -> bool:
        return self.state in ("hit", "default")


@dataclass(frozen=True)
class ReplayReport:
    """All kernels of a graph. Strict replay passes when `failures` is empty."""

    tasks: tuple[ReplayedTask, ...]

    @property
    def failures(self) -> tuple[ReplayedTask, ...]:
        return tuple(t for t in self.tasks if not t.is_good)

    def count(self, state: ReplayState) -> int:
        return sum(t.state == state for t in self.tasks)

    @property
    def summary(self) -> str:
        """`53 kernels: 20 hit (8 simulated), 33 default` with the states that occur."""
        states: tuple[ReplayState, ...] = ("hit", "default", "missing", "stale", "broken")
        estimates = sum(t.simulated for t in self.tasks if t.state == "hit")
        notes = {"hit": f" ({estimates} simulated)"} if estimates else {}
        counts = ", ".join(f"{self.count(s)} {s}{notes.get(s, '')}" for s in states if self.count(s))
        return f"{len(self.tasks)} kernels: {counts or 'none'}"


def replay(
    graph: Graph,
    target: Target,
    records: Records,
    threads: int = 1,
    device: str | None = None,
    progress: Callable[[ReplayedTask], None] | None = None,
) -> ReplayReport:
    """Look up and build, for `target`, every kernel of an optimised graph. Nothing is run.

    Raises UnsupportedError for a kernel that no template accepts.
    """
    replayed: list[ReplayedTask] = []
    for kernel, weight in kernels(graph):
        found = records.lookup(kernel, target, threads, device)
        replayed.append(_replay(kernel, weight, target, found))
        if progress is not None:
            progress(replayed[-1])
    return ReplayReport(tuple(replayed))


def _replay(kernel: Kernel, weight: int, target: Target, found: Lookup) -> ReplayedTask:
    record = found.record
    if record is None:
        return ReplayedTask(kernel.label, kernel.key, weight, found.state, "", found.note)
    try:
        build_kernel(kernel, target, record.config)
    except TcompError as error:
        return ReplayedTask(kernel.label, kernel.key, weight, "broken", record.template, str(error))
    return ReplayedTask(
        kernel.label, kernel.key, weight, found.state, record.template, found.note, record.simulated
    )
