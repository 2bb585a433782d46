"""Runners as the tuner sees them: how they are named, what becomes of trials when a device is lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fake_runner import CONDITIONS, FlakyRunner
from fake_template import fake_kernel

from tcomp.errors import DeviceError, UsageError
from tcomp.target.target import Target
from tcomp.tuner.loop import TuneOptions, tune
from tcomp.tuner.measure import MeasureOptions, WorkerPool
from tcomp.tuner.records import read_log
from tcomp.tuner.runner import parse_runner
from tcomp.tuner.runners.local import LocalRunner
from tcomp.tuner.task import Task


def test_names() -> None:
    assert parse_runner("local") == LocalRunner()
    with pytest.raises(UsageError, match=r"unknown runner `lokal`; one of .*local"):
        parse_runner("lokal")
    with pytest.raises(UsageError, match="`local` is this machine"):
        parse_runner("local:here")


def test_a_lost_device_costs_an_attempt(target: Target, options: MeasureOptions, tmp_path: Path) -> None:
    task = Task.of(fake_kernel(), target)
    runner = FlakyRunner(tmp_path / "counter", losses=(2, 4, 5))
    with WorkerPool(replace(options, runner=runner)) as pool:
        configs = [{"work": w, "behaviour": "ok"} for w in (1, 2, 4, 8)]
        outcomes = {int(o.config["work"]): o for o in pool.measure(task, configs)}
        raced = pool.race(task, configs[:2])
    assert {work: o.status for work, o in outcomes.items()} == {1: "ok", 2: "ok", 4: "lost", 8: "ok"}
    assert outcomes[4].reason == "a flaky board does not answer"
    assert outcomes[2].median == 2.0
    assert [(o.status, o.median) for o in raced] == [("ok", 1.0), ("ok", 2.0)]


def test_a_race_is_run_again(target: Target, options: MeasureOptions, tmp_path: Path) -> None:
    task = Task.of(fake_kernel(), target)
    runner = FlakyRunner(tmp_path / "counter", losses=(1, 3, 4))
    configs = [{"work": w, "behaviour": "ok"} for w in (1, 2)]
    with WorkerPool(replace(options, runner=runner)) as pool:
        assert [o.status for o in pool.race(task, configs)] == ["ok", "ok"]
        assert [o.status for o in pool.race(task, configs)] == ["lost", "lost"]


def test_tuning_ends_when_the_device_stays_away(
    target: Target, options: MeasureOptions, tmp_path: Path
) -> None:
    task, log = Task.of(fake_kernel(65536, "tame"), target), tmp_path / "log.jsonl"
    runner = FlakyRunner(tmp_path / "counter", losses=tuple(range(6, 100)))
    measure = replace(options, runner=runner)
    with pytest.raises(DeviceError, match=r"does not answer; lost 3 times in a row, .* is back"):
        tune([task], log, TuneOptions(trials=20, measure=measure))
    first = read_log(log).records
    assert [r.status for r in first] == ["ok"] * 5 + ["lost"]
    assert {(r.device, r.simulated) for r in first} == {("a flaky board", False)}
    assert dict(first[0].conditions) == CONDITIONS
    back = replace(measure, runner=replace(runner, losses=()))
    (result,) = tune([task], log, TuneOptions(trials=8, measure=back))
    assert result.trials == 8
    retried = [r for r in read_log(log).records if r.phase == "trial"]
    assert [r.status for r in retried] == ["ok"] * 5 + ["lost"] + ["ok"] * 3
