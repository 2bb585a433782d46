"""The tuning loop: choose a task, ask its strategy, measure, record, learn; race the winners at the end."""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

from tcomp.errors import Interrupted, RecordError
from tcomp.tensor.knobs import Config
from tcomp.tuner.cost_model import CostModel, shipped_model
from tcomp.tuner.interrupts import Interrupts
from tcomp.tuner.lookup import UNVERIFIED, best_record, counts, fastest_configs, uncertainty
from tcomp.tuner.measure import Job, MeasureOptions, Measurer, Outcome, TaskError, WorkerPool
from tcomp.tuner.progress import (
    BudgetTooSmall,
    DoubtfulTimes,
    Event,
    Progress,
    Stopping,
    TaskDone,
    TaskSkipped,
    TrialDone,
    TuningStarted,
)
from tcomp.tuner.provenance import now, tool_versions
from tcomp.tuner.records import LogContents, LogWriter, Phase, Record, config_key, read_log
from tcomp.tuner.runner import Device
from tcomp.tuner.scheduler import TaskState, choose
from tcomp.tuner.search.strategy import STRATEGIES
from tcomp.tuner.task import Task

RACE_SECONDS = 1.0
"""Time to keep for the race of one task when the time is limited."""
MAX_RACES = 3
"""Races of a task when the first ones only show that trials were lucky."""
PRIORS = 4
"""Configs of a task taken over from other machines."""


@dataclass(frozen=True)
class TuneOptions:
    """How much to try and how.

    `trials` counts all trials of these tasks in the log, those of earlier runs included. `time_budget`
    is in seconds. A task is left after `patience` trials without progress. `priors` are logs of other
    machines, whose best configs are tried first. `finalists` configs a task are raced against the
    default. `resume_command` is what the user can type after an interruption.
    """

    trials: int | None = 1000
    time_budget: float | None = None
    patience: int | None = None
    priors: Sequence[Path | str] = ()
    seed: int = 0
    strategy: str = "evolutionary"
    batch: int = 8
    finalists: int = 3
    measure: MeasureOptions = field(default_factory=MeasureOptions)
    resume_command: str = ""


@dataclass(frozen=True)
class TaskResult:
    """The published outcome of one task; `record` is None when no trial of it succeeded."""

    task: Task
    record: Record | None
    trials: int
    skipped: str = ""


def tune(
    tasks: Sequence[Task],
    log: Path | str,
    options: TuneOptions | None = None,
    progress: Progress | None = None,
    measurer: Measurer | None = None,
    model: CostModel | None = None,
) -> list[TaskResult]:
    """Tune `tasks`, appending every trial to `log` and continuing from what it holds already.

    `measurer` and `model` stand in for worker processes and for a cost model of the features of TIR.
    Raises Interrupted on Ctrl-C, with every finished trial kept; RecordError when the log cannot be used;
    DeviceError when the device does not answer.
    """
    options = options or TuneOptions()
    log = Path(log)
    known = _read_known(log)
    priors = [r for path in options.priors for r in read_log(path).require_log().records]
    report = progress or _say_nothing
    done = 0

    def count(event: Event) -> None:
        nonlocal done
        done += isinstance(event, TrialDone)
        report(event)

    with LogWriter(log) as writer, Interrupts(lambda: report(Stopping())) as interrupts:
        pool = WorkerPool(options.measure, interrupts.check)  # Starts no process before it is used.
        gc.freeze()  # As in workers: the collector need not look at what is imported again and again.
        try:
            costs = model or CostModel(options.seed, pretrained=shipped_model(), breathe=pool.breathe)
            session = _Session(tasks, options, writer, measurer or pool, costs, count, interrupts)
            session.resume(known, priors)
            return session.run()
        except KeyboardInterrupt:
            resume = options.resume_command or "tune again with the same log"
            message = f"interrupted after {done} trials, all of them are in {log}; to go on: {resume}"
            raise Interrupted(message) from None
        finally:
            gc.unfreeze()
            pool.close()


def _read_known(log: Path) -> LogContents:
    """What the log holds. A file of something else is refused before anything is appended to it."""
    if not log.exists():
        return LogContents(log, (), ())
    contents = read_log(log)
    if not contents.records and any(not p.newer for p in contents.problems):
        with log.open("rb") as file:
            if not file.read(16).lstrip().startswith(b"{"):
                raise RecordError(f"{log} is not a tuning log; name another file for the trials")
    return contents


def _say_nothing(event: Event) -> None:
    """The progress callback of a session that nobody watches."""


class _Session:
    """One call of `tune`."""

    def __init__(
        self,
        tasks: Sequence[Task],
        options: TuneOptions,
        writer: LogWriter,
        measurer: Measurer,
        model: CostModel,
        report: Progress,
        interrupts: Interrupts,
    ) -> None:
        self.options = options
        self.writer = writer
        self.measurer = measurer
        targets = {task.target.isa: task.target for task in tasks}
        self._devices = {isa: measurer.connect([target]) for isa, target in targets.items()}
        self.report = report
        self.interrupts = interrupts
        self.started = time.monotonic()
        self.done = 0
        self.model = model
        self.states = [self._state(i, task) for i, task in enumerate(tasks)]
        self._by_task = {s.task.identity: s for s in self.states}
        self.known = 0
        self._warned = set[str]()
        self._queue = deque[Job]()

    def _state(self, index: int, task: Task) -> TaskState:
        make = STRATEGIES[self.options.strategy]
        strategy = make(task.space, self.options.seed + index, self.model.guide(task))
        return TaskState(index, task, self._devices[task.target.isa], strategy)

    def resume(self, known: LogContents, priors: Sequence[Record]) -> None:
        """Take over the trials that this session would make itself; others and `priors` are tried first."""
        elsewhere: dict[int, list[Record]] = {s.index: [] for s in self.states}
        candidates = [(r, False) for r in priors]
        candidates += [(r, True) for r in known.records]
        for record, is_known in candidates:
            state = self._state_of(record)
            if state is None or record.status == "lost":
                continue
            if not (is_known and self._is_own(record, state.device)):
                elsewhere[state.index].append(record)
                continue
            state.records.append(record)
            if record.phase == "trial":
                self._learn(state, record)
        self.known = sum(s.trials for s in self.states)
        for state in self.states:
            tried = {r.config_key for r in state.records} | {state.default_key}
            found = [r for r in elsewhere[state.index] if r.config_key not in tried]
            state.priors = fastest_configs(found, PRIORS)
        self.report(
            TuningStarted(
                len(self.states),
                self.options.trials or 0,
                self.known,
                len(known.problems),
                str(self.writer.path),
                sum(len(s.priors) for s in self.states),
            )
        )
        for device in self._devices.values():
            self._warn(device.conditions)

    def _warn(self, conditions: Mapping[str, str]) -> None:
        """Say why times are doubtful, each reason once."""
        reason = conditions.get("warning", "")
        if reason and reason not in self._warned:
            self._warned.add(reason)
            self.report(DoubtfulTimes(reason))

    def _is_own(self, record: Record, device: Device) -> bool:
        threads = self.options.measure.threads
        return (record.device, record.simulated, record.threads) == (device.name, device.simulated, threads)

    def _state_of(self, record: Record) -> TaskState | None:
        """The state whose task a record is of, if it counts there."""
        state = self._by_task.get((record.task, record.isa))
        if state is None or not counts(record, state.task.space, state.task.template_of):
            return None
        return state

    def run(self) -> list[TaskResult]:
        for job, outcome in self.measurer.run(self._next_job):
            state = self._by_task[job.task.identity]
            if isinstance(outcome, Outcome):
                self._record_trial(state, outcome)
                state.end_trial()
            elif not state.skipped:
                self._skip(state, outcome)
            if self._is_out_of_time():
                break
        self._stop_if_asked()
        self._report_untried()
        return [self._finish(s) for s in self.states]

    def _next_job(self) -> Job | None:
        """The next config of the batches in flight, or of a new one; None when there is nothing to do now."""
        if not self._queue and not self.interrupts.requested:
            self._propose()
        return self._queue.popleft() if self._queue else None

    def _propose(self) -> None:
        """Put a batch of the task where it promises most in the queue. A task has one batch at a time."""
        count = int(min(self.options.batch, self._trials_left() - sum(s.pending for s in self.states)))
        while count > 0:
            active = [s for s in self.states if not s.pending and s.is_active(self.options.patience)]
            if not active:
                return
            state = choose(active)
            configs = self._next_configs(state, count)
            if configs:
                state.begin_batch(len(configs))
                self._queue.extend(Job(state.task, config, state.best) for config in configs)
                return
            state.exhausted = True

    def _skip(self, state: TaskState, error: TaskError) -> None:
        state.skip(str(error))
        self._queue = deque(job for job in self._queue if job.task is not state.task)
        self.report(TaskSkipped(state.index, state.task.label, state.skipped))

    def _stop_if_asked(self) -> None:
        """Between two batches or races, the first Ctrl-C is enough."""
        if self.interrupts.requested:
            raise KeyboardInterrupt

    def _report_untried(self) -> None:
        untried = sum(not s.records and not s.skipped for s in self.states)
        if untried:
            self.report(BudgetTooSmall(untried, len(self.states)))

    def _is_out_of_time(self) -> bool:
        left = self._seconds_left_in_budget()
        return left is not None and left <= 0

    def _trials_left(self) -> float:
        return inf if self.options.trials is None else self.options.trials - self.known - self.done

    def _seconds_left_in_budget(self) -> float | None:
        """Seconds for trials, what the races need being kept back."""
        budget = self.options.time_budget
        if budget is None:
            return None
        races = min(RACE_SECONDS * len(self.states), 0.2 * budget)
        return budget - races - (time.monotonic() - self.started)

    def _next_configs(self, state: TaskState, count: int) -> list[Config]:
        """The default first, then what is good elsewhere, then what the strategy proposes."""
        if not state.has_default:
            return [state.task.space.default]
        priors, state.priors = state.priors[:count], state.priors[count:]
        return priors or list(state.strategy.ask(count))

    def _record_trial(self, state: TaskState, outcome: Outcome) -> None:
        if config_key(outcome.config) == state.default_key and outcome.seconds is not None:
            state.default = outcome.seconds.median
        self._write(state, outcome, "trial", state.default)
        self.done += 1
        self._learn(state, state.records[-1])
        self._report_trial(state, outcome)

    def _write(self, state: TaskState, outcome: Outcome, phase: Phase, baseline: float | None) -> None:
        task, options = state.task, self.options.measure
        record = Record(
            task=task.key,
            op=task.label,
            target=task.target.name,
            isa=task.target.isa,
            device=state.device.name,
            threads=options.threads,
            template=task.template_of(outcome.config),
            config=dict(outcome.config),
            status=outcome.status,
            reason=outcome.reason,
            phase=phase,
            seconds=outcome.seconds,
            baseline=baseline,
            baseline_template=task.template_of(task.space.default),
            check=outcome.check,
            seed=options.seed,
            versions=tool_versions(task.target),
            time=now(),
            simulated=state.device.simulated,
            conditions=dict(outcome.conditions),
        )
        self.writer.append(record)
        state.records.append(record)
        self._warn(outcome.conditions)

    def _learn(self, state: TaskState, record: Record) -> None:
        state.strategy.tell(record.config, record.median)
        self.model.tell(state.task, record.config, record.median, record.conditions)
        state.best = min(state.best, record.median)
        if record.config_key == state.default_key and record.seconds is not None:
            state.default = record.median

    def _report_trial(self, state: TaskState, outcome: Outcome) -> None:
        elapsed = time.monotonic() - self.started
        rate = self.done / max(elapsed, 1e-9)
        limits = [self._trials_left() / max(rate, 1e-9), self._seconds_left_in_budget()]
        left = min(s for s in limits if s is not None)
        self.report(
            TrialDone(
                task=state.index,
                tasks=len(self.states),
                label=state.task.label,
                trial=self.known + self.done,
                trials=self.options.trials or 0,
                status=outcome.status,
                reason=outcome.reason,
                seconds=None if outcome.seconds is None else outcome.median,
                best=None if state.best == inf else state.best,
                default=state.default,
                rate=rate,
                seconds_left=None if left == inf else max(0.0, left),
            )
        )

    def _finish(self, state: TaskState) -> TaskResult:
        """Race the best configs that were never raced against the default, then publish."""
        task = state.task
        for _ in range(MAX_RACES):
            configs = self._finalists(state)
            if not configs:
                break
            self._stop_if_asked()
            outcomes = self.measurer.race(task, [task.space.default, *configs])
            for outcome in outcomes:
                self._write(state, outcome, "final", outcomes[0].seconds and outcomes[0].median)
        record = best_record(state.records, task.space.default, state.device.name)
        speedup = record.relative if record is not None else None
        self.report(
            TaskDone(
                task=state.index,
                label=task.label,
                key=task.key,
                weight=task.weight,
                config=record.config if record is not None else task.space.default,
                seconds=record.median if record is not None else None,
                default=state.default,
                speedup=1.0 / speedup if speedup else 1.0,
                spread=uncertainty(state.records, task.space.default, state.device.name),
                reason="" if record is not None or not state.records else state.records[-1].reason,
            )
        )
        return TaskResult(task, record, state.trials, state.skipped)

    def _finalists(self, state: TaskState) -> list[Config]:
        """The fastest configs that were never raced and look faster than what would be published.

        None where times are estimates: a race would repeat them.
        """
        if state.device.simulated:
            return []
        best = best_record(state.records, state.task.space.default, state.device.name)
        if state.default is None or state.skipped or best is None:
            return []
        bar = (best.relative or 1.0) if best.phase != "trial" else 1.0
        raced = {r.config_key for r in state.records if r.phase == "final"} | {state.default_key}
        trials = {r.config_key: r for r in state.records if r.phase == "trial"}
        promising = [
            r for k, r in trials.items() if k not in raced and (r.relative or inf) * UNVERIFIED < bar
        ]
        fastest = sorted(promising, key=lambda r: r.relative or inf)
        return [r.config for r in fastest[: self.options.finalists]]
