"""What a worker keeps of the tasks that it prepared."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tcomp.relay.builder import GraphBuilder
from tcomp.target.target import TARGETS
from tcomp.tensor.kernel import Kernel
from tcomp.tuner.runner import Prepared
from tcomp.tuner.task import Task
from tcomp.tuner.trial_data import trial_data
from tcomp.tuner.worker import Build, Built, Prepare, Ready, Worker


class _Station:
    """Builds nothing, and lists for which targets it was asked to."""

    def __init__(self) -> None:
        self.targets: list[str] = []

    def data(self, kernel: Kernel, seed: int) -> Any:
        return trial_data(kernel, seed)

    def build(self, prepared: Prepared, config: object) -> Any:
        self.targets.append(prepared.target.name)
        return SimpleNamespace()


def test_a_kernel_for_two_targets_is_two_tasks(tmp_path: Path) -> None:
    g = GraphBuilder("relu")
    kernel = Kernel(g.build(g.op("relu", g.input("x", (8,)))))
    worker, station = Worker(), _Station()
    worker._station = station  # pyright: ignore
    for name in ("x86-64-v3", "cortex-a76", "x86-64-v3"):
        task = Task.of(kernel, TARGETS[name])
        assert worker.answer(Prepare(task.identity, kernel, task.target, 0)) == Ready()
        assert worker.answer(Build(task.identity, task.space.default)) == Built()
    assert station.targets == ["x86-64-v3", "cortex-a76", "x86-64-v3"]
