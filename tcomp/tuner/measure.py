"""Measuring configs of a task: the interface, and the pool of worker processes that implements it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tcomp.errors import BuildError, TcompError
from tcomp.tensor.knobs import Config
from tcomp.tuner.process import Died, WorkerProcess, available_cores, next_messages
from tcomp.tuner.records import Check, Status, Times
from tcomp.tuner.task import Task
from tcomp.tuner.worker import Build, Built, Failed, Measure, Measured, Prepare, Race, Raced, Ready, Setup

GIB = 1024**3


@dataclass(frozen=True)
class Outcome:
    """What came of one config. `seconds` is there when, and only when, `status` is ok."""

    config: Config
    status: Status
    reason: str = ""
    seconds: Times | None = None
    check: Check | None = None

    @property
    def median(self) -> float:
        return self.seconds.median if self.seconds is not None else float("inf")


class TaskError(TcompError):
    """A task of which no config can be measured, because its reference outputs cannot be computed."""


class Measurer(Protocol):
    """Something that measures configs: worker processes here, a recorded log in tests."""

    def measure(self, task: Task, configs: Sequence[Config], best: float) -> Iterator[Outcome]:
        """An outcome for each config, in any order. `best` seconds are known to be reached.

        Raises TaskError when the task cannot be measured at all.
        """
        ...

    def race(self, task: Task, configs: Sequence[Config]) -> list[Outcome]:
        """Outcomes of `configs`, in their order, measured in turns so that noise meets all of them alike."""
        ...


@dataclass(frozen=True)
class MeasureOptions:
    """How trials run.

    `trial_seconds` limits each of build and measurement, `memory_limit` (bytes) the physical memory of a
    worker. A config whose first runs take over `abandon_factor` times the best known time is not timed
    further. `plugins` are modules that workers import first.
    """

    workers: int = 1
    threads: int = 1
    trial_seconds: float = 10.0
    start_seconds: float = 120.0
    memory_limit: int = 4 * GIB
    abandon_factor: float = 1.3
    seed: int = 0
    plugins: tuple[str, ...] = ()


class WorkerPool:
    """Measures in disposable processes; one of them measures at a time, the others build meanwhile.

    `tick` is called often while answers are waited for; what it raises ends the waiting. Close it, or use
    it as a context manager: no process is left behind.
    """

    def __init__(
        self, options: MeasureOptions | None = None, tick: Callable[[], None] = lambda: None
    ) -> None:
        self.options = options or MeasureOptions()
        self._tick = tick
        self._processes: list[WorkerProcess] = []
        # With several threads a kernel needs all the cores, so workers are not bound to one.
        self._cores = available_cores() if self.options.threads == 1 else [None]

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill all workers."""
        for process in self._processes:
            process.stop()
        self._processes.clear()

    def measure(self, task: Task, configs: Sequence[Config], best: float) -> Iterator[Outcome]:
        """See `Measurer.measure`. Leaving the iteration early ends the workers that are busy."""
        todo = deque(configs)
        running: dict[WorkerProcess, Config] = {}
        try:
            while todo or running:
                self._assign(task, todo, running)
                self._start_measuring(running, best)
                for process, message in next_messages(self._busy(), self._tick):
                    outcome = self._handle(task, process, message, running)
                    if outcome is not None:
                        best = min(best, outcome.median)
                        yield outcome
        finally:
            for process in self._busy():
                self._discard(process)

    def race(self, task: Task, configs: Sequence[Config]) -> list[Outcome]:
        """See `Measurer.race`."""
        process = self._prepared(task)
        try:
            seconds = self.options.trial_seconds * (1 + len(configs))
            process.send(Race(task.key, tuple(configs)), "racing", seconds)
            ((_, message),) = next_messages([process], self._tick)
            if isinstance(message, Raced):
                process.stage = "idle"
                return [Outcome(c, "ok", "", *m) for c, m in zip(configs, message.results, strict=True)]
            failure = self._failure(process, message)
            return [Outcome(c, failure.status, failure.reason, None, failure.check) for c in configs]
        finally:
            if process.stage == "racing" and process in self._processes:
                self._discard(process)

    def _busy(self) -> list[WorkerProcess]:
        return [p for p in self._processes if p.stage not in ("idle", "built")]

    def _assign(self, task: Task, todo: deque[Config], running: dict[WorkerProcess, Config]) -> None:
        """Give idle processes something to do, starting more of them up to the limit."""
        free = sum(p not in running for p in self._processes)
        while len(self._processes) < self.options.workers and free < len(todo):
            self._start()
            free += 1
        for process in self._processes:
            if process.stage != "idle" or not todo:
                continue
            if process.prepared != task.key:
                self._prepare(process, task)
            else:
                running[process] = todo.popleft()
                process.send(Build(task.key, running[process]), "building", self.options.trial_seconds)

    def _start(self) -> WorkerProcess:
        core = self._cores[len(self._processes) % len(self._cores)]
        process = WorkerProcess(core, self.options.threads, self.options.memory_limit)
        self._processes.append(process)
        setup = Setup(self.options.memory_limit, core, self.options.plugins, process.parent)
        process.send(setup, "starting", self.options.start_seconds)
        return process

    def _prepare(self, process: WorkerProcess, task: Task) -> None:
        request = Prepare(task.key, task.kernel, task.target, self.options.seed)
        process.send(request, "preparing", self.options.start_seconds)
        process.prepared = task.key

    def _prepared(self, task: Task) -> WorkerProcess:
        """A process that holds the data of `task`, waiting for it."""
        process = self._processes[0] if self._processes else self._start()
        while process.stage != "idle" or process.prepared != task.key:
            if process.stage == "idle":
                self._prepare(process, task)
            ((_, message),) = next_messages([process], self._tick)
            self._handle(task, process, message, {})
        return process

    def _start_measuring(self, running: dict[WorkerProcess, Config], best: float) -> None:
        if any(p.stage == "measuring" for p in running):
            return
        if self.options.threads > 1 and any(p.stage == "building" for p in running):
            return
        built = next((p for p in running if p.stage == "built"), None)
        if built is not None:
            request = Measure(self.options.abandon_factor * best)
            built.send(request, "measuring", self.options.trial_seconds)

    def _handle(
        self, task: Task, process: WorkerProcess, message: object, running: dict[WorkerProcess, Config]
    ) -> Outcome | None:
        if isinstance(message, Ready):
            process.stage = "idle"
            return None
        if isinstance(message, Built):
            process.stage = "built"
            return None
        stage = process.stage
        config = running.pop(process, None)
        if isinstance(message, Measured):
            process.stage = "idle"
            return None if config is None else Outcome(config, "ok", "", message.seconds, message.check)
        failure = self._failure(process, message)
        if config is None and stage == "starting":
            raise BuildError(f"a measuring process does not start: {failure.reason}")
        if config is None:
            raise TaskError(f"no reference outputs for kernel {task.key}: {failure.reason}")
        return Outcome(config, failure.status, failure.reason, None, failure.check)

    def _failure(self, process: WorkerProcess, message: object) -> Failed:
        """How a trial ended; the process is kept only after a clean refusal to build."""
        if isinstance(message, Failed):
            if message.status == "build_error":
                process.stage = "idle"
            else:
                self._discard(process)
            return message
        if isinstance(message, Died):
            self._discard(process)
            return Failed(message.status, message.reason)
        raise TypeError(f"unexpected answer of a measuring process: {message!r}")

    def _discard(self, process: WorkerProcess) -> None:
        process.stop()
        self._processes.remove(process)
