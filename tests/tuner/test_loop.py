"""The loop and its strategies against a recorded device, and against real workers with Ctrl-C."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest
from fake_template import fake_graph, fake_kernel
from recorded import SPACE, RecordedDevice, features, seconds

from tcomp.errors import Interrupted, RecordError
from tcomp.target.parse import parse_target
from tcomp.target.target import Target
from tcomp.tensor.knobs import ALGORITHM, Alternatives, Config, Ordered, Space
from tcomp.tuner.cost_model import CostModel, shipped_model
from tcomp.tuner.features import NAMES, names_of
from tcomp.tuner.loop import TuneOptions, tune
from tcomp.tuner.measure import MeasureOptions, Outcome
from tcomp.tuner.progress import BudgetTooSmall, Event, TaskDone, TrialDone, TuningStarted, to_json
from tcomp.tuner.records import config_key, read_log, write_log
from tcomp.tuner.runner import Device
from tcomp.tuner.search.strategy import STRATEGIES
from tcomp.tuner.task import Task, tasks


def recorded_task(target: Target) -> Task:
    return Task(fake_kernel(), target, "fake@1", SPACE)


def best_of(target: Target, tmp_path: Path, strategy: str, seed: int, trials: int = 64) -> float:
    log = tmp_path / f"{strategy}{seed}.jsonl"
    options = TuneOptions(trials=trials, seed=seed, strategy=strategy)
    (result,) = tune([recorded_task(target)], log, options, measurer=RecordedDevice())
    assert result.record is not None
    return result.record.median


def test_evolution_beats_random_at_equal_trials(target: Target, tmp_path: Path) -> None:
    seeds = range(5)
    evolved = mean(best_of(target, tmp_path, "evolutionary", s) for s in seeds)
    drawn = mean(best_of(target, tmp_path, "random", s) for s in seeds)
    optimum = min(map(seconds, SPACE))
    assert evolved < drawn
    assert evolved < 1.05 * optimum


def test_the_default_is_trial_zero_and_no_config_repeats(target: Target, tmp_path: Path) -> None:
    device = RecordedDevice()
    tune([recorded_task(target)], tmp_path / "log.jsonl", TuneOptions(trials=80), measurer=device)
    assert device.measured[0] == SPACE.default
    assert len({config_key(c) for c in device.measured}) == len(device.measured) == 80


def test_a_seed_decides_everything(target: Target, tmp_path: Path) -> None:
    runs: list[list[str]] = []
    for name in ("a", "b"):
        device = RecordedDevice()
        log = tmp_path / f"{name}.jsonl"
        tune([recorded_task(target)], log, TuneOptions(trials=60, seed=3), measurer=device)
        runs.append([config_key(c) for c in device.measured])
    assert runs[0] == runs[1]


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_small_spaces_are_exhausted(strategy: str, target: Target, tmp_path: Path) -> None:
    space = type(SPACE)(SPACE.knobs[-2:])
    chosen: list[str] = []
    search = STRATEGIES[strategy](space, 0, None)
    while batch := search.ask(5):
        for config in batch:
            chosen.append(config_key(config))
            search.tell(config, 1.0)
    assert sorted(chosen) == sorted(config_key(c) for c in space)


def test_an_interrupted_run_resumes_where_it_stopped(target: Target, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    options = TuneOptions(trials=60, resume_command="tcomp tune m.onnx")
    first = RecordedDevice(stop_after=21)
    with pytest.raises(Interrupted, match=r"21 trials.*tcomp tune m\.onnx"):
        tune([recorded_task(target)], log, options, measurer=first)
    assert len(read_log(log).records) == 21
    second = RecordedDevice()
    tune([recorded_task(target)], log, options, measurer=second)
    assert len(second.measured) == 39
    assert not {config_key(c) for c in first.measured} & {config_key(c) for c in second.measured}


def test_winners_are_raced_before_they_are_published(target: Target, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    events: list[Event] = []
    (result,) = tune([recorded_task(target)], log, TuneOptions(trials=40), events.append, RecordedDevice())
    assert result.record is not None
    assert result.record.phase == "final"
    assert result.record.baseline == seconds(SPACE.default)
    finals = [r for r in read_log(log).records if r.phase == "final"]
    assert any(r.config == SPACE.default for r in finals)
    (done,) = (e for e in events if isinstance(e, TaskDone))
    assert done.speedup == pytest.approx(seconds(SPACE.default) / result.record.median)


def test_a_winner_that_loses_its_race_is_not_published(target: Target, tmp_path: Path) -> None:
    class Lucky(RecordedDevice):
        def race(self, task: Task, configs: Sequence[Config]) -> list[Outcome]:
            default = self._outcome(SPACE.default)
            return [replace(default, config=c) for c in configs]

    options = TuneOptions(trials=20, finalists=20)
    (result,) = tune([recorded_task(target)], tmp_path / "l.jsonl", options, measurer=Lucky())
    assert result.record is not None
    assert result.record.relative == 1.0


def test_events_are_plain_data(target: Target, tmp_path: Path) -> None:
    events: list[Event] = []
    tune([recorded_task(target)], tmp_path / "log", TuneOptions(trials=9), events.append, RecordedDevice())
    kinds = [json.loads(json.dumps(to_json(e)))["event"] for e in events]
    assert kinds == ["tuning-started", *["trial-done"] * 9, "task-done"]
    last = [e for e in events if isinstance(e, TrialDone)][-1]
    assert (last.trial, last.seconds_left) == (9, 0.0)


def test_a_file_of_something_else_is_not_appended_to(target: Target, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"\x08\x07\x12\x07pytorch")
    with pytest.raises(RecordError, match="not a tuning log"):
        tune([recorded_task(target)], model, measurer=RecordedDevice())
    assert model.read_bytes() == b"\x08\x07\x12\x07pytorch"


def test_tasks_of_a_graph_have_weights(target: Target) -> None:
    found = tasks(fake_graph(64, 128, 64), target)
    assert [(t.kernel.body.inputs[0].shape, t.weight) for t in found] == [((64,), 2), ((128,), 1)]


def test_real_workers_tune_a_fake_kernel(target: Target, options: MeasureOptions, tmp_path: Path) -> None:
    task = Task.of(fake_kernel(65536, "tame"), target)
    (result,) = tune([task], tmp_path / "log.jsonl", TuneOptions(trials=10, measure=options))
    assert result.record is not None
    assert result.trials == 10


def test_a_budget_too_small_for_every_task_says_so(target: Target, tmp_path: Path) -> None:
    events: list[Event] = []
    both = [Task(fake_kernel(size), target, "fake@1", SPACE) for size in (64, 128)]
    results = tune(both, tmp_path / "log", TuneOptions(trials=1), events.append, RecordedDevice())
    assert [e for e in events if isinstance(e, BudgetTooSmall)] == [BudgetTooSmall(untried=1, tasks=2)]
    assert [r.trials for r in results] == [1, 0]


def test_patience_ends_a_task_without_progress(target: Target, tmp_path: Path) -> None:
    device = RecordedDevice()
    options = TuneOptions(trials=None, patience=40)
    (result,) = tune([recorded_task(target)], tmp_path / "log", options, measurer=device)
    assert result.record is not None
    assert 40 < len(device.measured) < 0.1 * SPACE.cardinality


def test_trials_go_where_they_save_most(target: Target, tmp_path: Path) -> None:
    often, once = (
        Task(fake_kernel(size), target, "fake@1", SPACE, weight) for size, weight in ((64, 50), (128, 1))
    )
    options, model = (
        TuneOptions(trials=100),
        CostModel(features=features),
    )
    results = tune([once, often], tmp_path / "log", options, measurer=RecordedDevice(), model=model)
    assert results[1].trials > 2 * results[0].trials > 0


def test_configs_of_another_machine_are_tried_first(target: Target, tmp_path: Path) -> None:
    other, log = tmp_path / "other.jsonl", tmp_path / "log.jsonl"
    options = TuneOptions(trials=200)
    (elsewhere,) = tune([recorded_task(target)], other, options, measurer=RecordedDevice())
    assert elsewhere.record is not None
    write_log(log, [replace(r, device="another CPU") for r in read_log(other).records])
    events: list[Event] = []
    device = RecordedDevice()
    (result,) = tune([recorded_task(target)], log, TuneOptions(trials=5), events.append, device)
    (started,) = (e for e in events if isinstance(e, TuningStarted))
    assert (started.known, started.priors) == (0, 4)
    assert device.measured[1] == elsewhere.record.config
    assert result.record is not None
    assert result.record.device != "another CPU"


def test_a_wide_spread_keeps_the_default_and_says_so(target: Target, tmp_path: Path) -> None:
    class Busy(RecordedDevice):
        def race(self, task: Task, configs: Sequence[Config]) -> list[Outcome]:
            default = self._outcome(SPACE.default)
            assert default.seconds is not None
            lucky = replace(default.seconds, median=0.9 * default.seconds.median, spread=0.3)
            return [default, *(replace(default, config=c, seconds=lucky) for c in configs[1:])]

    events: list[Event] = []
    (result,) = tune([recorded_task(target)], tmp_path / "l", TuneOptions(trials=20), events.append, Busy())
    assert result.record is not None
    assert result.record.config == SPACE.default
    (done,) = (e for e in events if isinstance(e, TaskDone))
    assert (done.speedup, done.spread) == (1.0, 0.3)


def test_algorithms_with_knobs_of_their_own_are_searched_together(target: Target) -> None:
    few = Space((Ordered("rows", tuple(range(1, 30)), default=1),))
    both = Alternatives.of({"first": SPACE, "other": few}, "first")
    guide = CostModel(features=features).guide(Task(fake_kernel(), target, "fake@1", both))
    search = STRATEGIES["evolutionary"](both, 0, guide)
    asked: list[Config] = []
    for _ in range(6):
        for config in search.ask(8):
            asked.append(config)
            search.tell(config, 2e-3 if ALGORITHM in config else seconds(config))
    assert len({config_key(c) for c in asked}) == 48
    assert {"rows" in c for c in asked} == {True, False}


def test_kernels_for_cpus_and_for_gpus_are_tuned_together(tmp_path: Path) -> None:
    """A kernel is a task on each; features of the two have different lengths, and their times are no measure
    of each other. What was measured is each one's own device's, also for a session that goes on."""

    class Both(RecordedDevice):
        def connect(self, targets: Sequence[Target]) -> Device:
            (one,) = targets
            return Device(f"device of {one.isa}")

    def seen(task: Task, config: Config) -> tuple[float, ...]:
        return (*features(task, config), *(0.0 for _ in names_of(task.target)[len(NAMES) :]))

    targets = parse_target("x86-64-v3"), parse_target("cuda:sm_80")
    tasks = [Task(fake_kernel(size), t, "fake@1", SPACE) for size in (64, 128, 256) for t in targets]
    log = tmp_path / "log"
    for trials, device in ((240, Both()), (300, Both())):
        model = CostModel(features=seen, pretrained=shipped_model())
        results = tune(tasks, log, TuneOptions(trials=trials, batch=4), measurer=device, model=model)
    assert len(device.measured) == 60
    for result in results:
        assert result.record is not None
        assert result.record.isa == result.task.target.isa
        assert result.record.device == f"device of {result.record.isa}"


def test_why_no_trial_succeeded_is_told(target: Target, tmp_path: Path) -> None:
    class Broken(RecordedDevice):
        def _outcome(self, config: Config) -> Outcome:
            return Outcome(config, "memory", "out of memory")

    events: list[Event] = []
    tune([recorded_task(target)], tmp_path / "log", TuneOptions(trials=3), events.append, Broken())
    (done,) = (e for e in events if isinstance(e, TaskDone))
    assert (done.seconds, done.reason) == (None, "out of memory")
