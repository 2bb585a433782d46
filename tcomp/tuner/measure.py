"""Measuring configs of a task: the interface, and the pool of worker processes that implements it.

How a worker measures, here or on a device, is its runner's matter (`runner.py`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Protocol

from tcomp.errors import BuildError, DeviceError, TcompError, UsageError
from tcomp.target.target import Target
from tcomp.tensor.knobs import Config
from tcomp.tuner.process import Died, WorkerProcess, available_cores, messages_within, next_messages
from tcomp.tuner.records import Check, Status, Times
from tcomp.tuner.runner import Device, Failed, Measure, Measured, Raced, Rounds, Runner
from tcomp.tuner.runners.local import LocalRunner
from tcomp.tuner.task import Identity, Task
from tcomp.tuner.worker import Build, Built, Lost, Prepare, Race, Ready, Setup

GIB = 1024**3
MOST_LOSSES = 3
"""Times in a row that a device may be lost before tuning gives up."""
MOST_ATTEMPTS = 2
"""Times that a config is tried on a device that is lost meanwhile."""

JOBS_AHEAD = 2
"""Jobs that wait, for each worker: thinking of the next ones takes as long as two or three trials."""


@dataclass(frozen=True)
class Outcome:
    """What came of one config. `seconds` is there when, and only when, `status` is ok."""

    config: Config
    status: Status
    reason: str = ""
    seconds: Times | None = None
    check: Check | None = None
    conditions: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def median(self) -> float:
        return self.seconds.median if self.seconds is not None else float("inf")


class TaskError(TcompError):
    """A task of which no config can be measured, because its reference outputs cannot be computed."""


@dataclass(frozen=True)
class Job:
    """A config of a task to measure. `best` seconds are known to be reached by another one.

    It was tried on a lost device in `attempts`.
    """

    task: Task
    config: Config
    best: float = float("inf")
    attempts: int = 0


Source = Callable[[], Job | None]


class Measurer(Protocol):
    """Something that measures configs: worker processes here, a recorded log in tests."""

    def connect(self, targets: Sequence[Target]) -> Device:
        """What measures code for `targets`. Raises an error when it cannot."""
        ...

    def run(self, source: Source) -> Iterator[tuple[Job, Outcome | TaskError]]:
        """Measure the jobs that `source` gives; what came of each, in any order.

        `source` is asked whenever there is room for another job, and again after each outcome. The end is
        when it gives None and every job has its outcome, a TaskError when its task cannot be measured.
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

    runner: Runner = field(default_factory=LocalRunner)
    workers: int = 1
    threads: int = 1
    trial_seconds: float = 10.0
    start_seconds: float = 120.0
    memory_limit: int = 4 * GIB
    abandon_factor: float = 1.2
    seed: int = 0
    plugins: tuple[str, ...] = ()


class WorkerPool:
    """Measures in disposable processes; as many of them as the runner has places measure, others build.

    `tick` is called often while answers are waited for; what it raises ends the waiting. Close it, or use
    it as a context manager: no process is left behind.
    """

    def __init__(
        self, options: MeasureOptions | None = None, tick: Callable[[], None] = lambda: None
    ) -> None:
        self.options = options or MeasureOptions()
        self._tick = tick
        self._processes: list[WorkerProcess] = []
        self._waiting = deque[Job]()
        self._running: dict[WorkerProcess, Job] = {}
        self._ended = deque[tuple[Job, Outcome | TaskError]]()
        self._best: dict[Identity, float] = {}
        self._losses = 0
        is_here, several = self.options.runner.is_here, self.options.threads > 1
        # With several threads a kernel needs all the cores, so workers are not bound to one.
        self._cores = available_cores() if is_here and not several else [None]
        self._needs_all_cores = is_here and several

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill all workers."""
        self._discard(*self._processes)
        self.options.runner.close()

    def connect(self, targets: Sequence[Target]) -> Device:
        """See `Measurer.connect`. Raises UsageError for more threads than the runner knows to measure."""
        most = self.options.runner.most_threads
        if most is not None and self.options.threads > most:
            raise UsageError(f"this runner measures kernels of {most} thread, not of {self.options.threads}")
        return self.options.runner.connect(targets)

    def run(self, source: Source) -> Iterator[tuple[Job, Outcome | TaskError]]:
        """See `Measurer.run`. Leaving the iteration early ends the workers that are busy.

        Raises DeviceError when the device is lost and does not come back.
        """
        try:
            while True:
                self._go_on()
                # What comes next is thought of while workers are busy, so that they never wait for it.
                ahead = JOBS_AHEAD * self.options.workers
                while len(self._waiting) < ahead and (job := source()) is not None:
                    self._waiting.append(job)
                self._go_on()
                if not self._ended:
                    if not self._running and not self._waiting:
                        return
                    self._receive(next_messages(self._busy(), self._tick))
                while self._ended:
                    yield self._ended.popleft()
        except DeviceError:
            while self._ended:
                yield self._ended.popleft()
            raise
        finally:
            self._discard(*self._busy())
            for process in self._processes:  # What was built and not yet measured is forgotten.
                process.stage = "idle"
            for left in (self._waiting, self._running, self._ended, self._best):
                left.clear()

    def breathe(self) -> None:
        """Let workers go on with what there is to do, for the caller thinks about a job for long.

        What comes of jobs meanwhile is told when the job is there. Raises as `run` does.
        """
        self._receive(messages_within(self._busy(), 0.0))
        self._go_on()

    def _go_on(self) -> None:
        self._start_measuring()
        self._assign()

    def _receive(self, messages: Sequence[tuple[WorkerProcess, object]]) -> None:
        """Note what `messages` say, and which jobs they end."""
        for process, message in messages:
            if isinstance(message, Lost):
                message = self._lost(process, message)
            if message is None or (ended := self._handle(process, message, self._running)) is None:
                continue
            self._ended.append(ended)
            job, outcome = ended
            if isinstance(outcome, TaskError):
                hopeless = [j for j in self._waiting if j.task.identity == job.task.identity]
                self._waiting = deque(j for j in self._waiting if j not in hopeless)
                self._ended += [(j, outcome) for j in hopeless]
            else:
                task = job.task.identity
                self._best[task] = min(self._best.get(task, job.best), outcome.median)

    def measure(self, task: Task, configs: Sequence[Config]) -> Iterator[Outcome]:
        """An outcome for each config, in any order.

        Raises TaskError when the task cannot be measured at all.
        """
        jobs = (Job(task, config) for config in configs)
        for _, outcome in self.run(lambda: next(jobs, None)):
            if isinstance(outcome, TaskError):
                raise outcome
            yield outcome

    def race(self, task: Task, configs: Sequence[Config]) -> list[Outcome]:
        """See `Measurer.race`. A race on a device that is lost meanwhile is run again."""
        for _ in range(MOST_ATTEMPTS - 1):
            outcomes = self._race(task, configs)
            if any(o.status != "lost" for o in outcomes):
                return outcomes
        return self._race(task, configs)

    def _race(self, task: Task, configs: Sequence[Config]) -> list[Outcome]:
        process = self._prepared(task)
        limit = self.options.trial_seconds
        try:
            seconds = limit * (1 + len(configs)) + self.options.runner.overhead_seconds
            process.send(Race(task.identity, tuple(configs), Rounds(limit)), "racing", seconds)
            ((_, message),) = next_messages([process], self._tick)
            if isinstance(message, Raced):
                process.stage, self._losses = "idle", 0
                return [_outcome(c, m) for c, m in zip(configs, message.results, strict=True)]
            if isinstance(message, Lost):
                self._count_loss(message)
                process.stage = "idle"
                return [Outcome(c, "lost", message.reason) for c in configs]
            failure = self._failure(process, message)
            return [Outcome(c, failure.status, failure.reason, None, failure.check) for c in configs]
        finally:
            if process.stage == "racing" and process in self._processes:
                self._discard(process)

    def _busy(self) -> list[WorkerProcess]:
        return [p for p in self._processes if p.stage not in ("idle", "built")]

    def _assign(self) -> None:
        """Give idle processes something to do, starting more of them up to the limit."""
        if self._needs_all_cores and any(p.stage in ("built", "measuring") for p in self._running):
            return  # A kernel of several threads is measured on an otherwise idle machine.
        jobs = len(self._running) + len(self._waiting)
        while len(self._processes) < min(self.options.workers, jobs):
            self._start()
        for process in self._processes:
            if process.stage == "idle" and process not in self._running and self._waiting:
                self._running[process] = self._waiting.popleft()
            if process.stage == "idle" and process in self._running:
                self._build(process, self._running[process])

    def _build(self, process: WorkerProcess, job: Job) -> None:
        """The next step towards a built `job`."""
        if process.prepared != job.task.identity:
            self._prepare(process, job.task)
        else:
            process.send(Build(job.task.identity, job.config), "building", self.options.trial_seconds)

    def _start(self) -> WorkerProcess:
        core = self._cores[len(self._processes) % len(self._cores)]
        process = WorkerProcess(core, self.options.threads, self.options.memory_limit)
        self._processes.append(process)
        setup = Setup(
            self.options.memory_limit,
            core,
            self.options.plugins,
            self.options.runner,
            process.folder,
            self.options.threads,
        )
        process.send(setup, "starting", self.options.start_seconds)
        return process

    def _prepare(self, process: WorkerProcess, task: Task) -> None:
        request = Prepare(task.identity, task.kernel, task.target, self.options.seed)
        process.send(request, "preparing", self.options.start_seconds)
        process.prepared = task.identity

    def _prepared(self, task: Task) -> WorkerProcess:
        """A process that holds the data of `task`, waiting for it."""
        process = self._processes[0] if self._processes else self._start()
        while process.stage != "idle" or process.prepared != task.identity:
            if process.stage == "idle":
                self._prepare(process, task)
            ((_, message),) = next_messages([process], self._tick)
            ended = self._handle(process, message, {process: Job(task, task.space.default)})
            if ended is not None and isinstance(ended[1], TaskError):
                raise ended[1]
        return process

    def _start_measuring(self) -> None:
        if self._needs_all_cores and any(p.stage == "building" for p in self._running):
            return
        limit, places = self.options.trial_seconds, self.options.runner.places
        free = inf if places is None else places - sum(p.stage == "measuring" for p in self._running)
        for process in [p for p in self._running if p.stage == "built"]:
            if free <= 0:
                return
            free -= 1
            job = self._running[process]
            known = self._best.get(job.task.identity, job.best)
            seconds = limit + self.options.runner.overhead_seconds
            request = Measure(limit, self.options.abandon_factor * known, best=known)
            process.send(request, "measuring", seconds)

    def _lost(self, process: WorkerProcess, lost: Lost) -> Failed | None:
        """The job goes back to be tried again, unless that was done before: then it fails."""
        self._count_loss(lost)
        job = self._running[process]
        if job.attempts + 1 >= MOST_ATTEMPTS:
            return Failed("lost", lost.reason)
        del self._running[process]
        process.stage = "idle"
        self._waiting.appendleft(replace(job, attempts=job.attempts + 1))
        return None

    def _count_loss(self, lost: Lost) -> None:
        self._losses += 1
        if self._losses >= MOST_LOSSES:
            raise DeviceError(
                f"{lost.reason}; lost {self._losses} times in a row, tune again when it is back"
            )

    def _handle(
        self, process: WorkerProcess, message: object, running: dict[WorkerProcess, Job]
    ) -> tuple[Job, Outcome | TaskError] | None:
        """What a message says of the job that the process works on, when it is the end of it."""
        if isinstance(message, Ready):
            process.stage = "idle"
            return None
        if isinstance(message, Built):
            process.stage = "built"
            return None
        stage = process.stage
        if isinstance(message, Measured):
            process.stage, self._losses = "idle", 0
            job = running.pop(process)
            return job, _outcome(job.config, message)
        failure = self._failure(process, message)
        if stage == "starting":
            raise BuildError(f"a measuring process does not start: {failure.reason}")
        job = running.pop(process)
        if stage == "preparing":
            return job, TaskError(f"no reference outputs for kernel {job.task.key}: {failure.reason}")
        return job, Outcome(job.config, failure.status, failure.reason, None, failure.check)

    def _failure(self, process: WorkerProcess, message: object) -> Failed:
        """How a trial ended; the process is kept only when nothing ran in it that may have damaged it."""
        if isinstance(message, Failed):
            if message.status not in ("build_error", "lost"):
                self._losses = 0
            if message.status == "build_error" or not self.options.runner.is_here:
                process.stage = "idle"
            else:
                self._discard(process)
            return message
        if isinstance(message, Died):
            self._discard(process)
            return Failed(message.status, message.reason)
        raise TypeError(f"unexpected answer of a measuring process: {message!r}")

    def _discard(self, *processes: WorkerProcess) -> None:
        for process in processes:  # All at once: a GPU takes long to let go of one.
            process.kill()
        for process in processes:
            process.stop()
            self._processes.remove(process)


def _outcome(config: Config, measured: Measured) -> Outcome:
    return Outcome(config, "ok", "", measured.seconds, measured.check, measured.conditions)
