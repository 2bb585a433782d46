"""The script that checks a real GPU, on the emulated one and with small kernels."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from fragile_template import FRAGILE, TAME

import gpu_check
from gpu_check import Case, Table
from gpu_trials import CheckRunner
from tcomp.errors import BuildError
from tcomp.target.target import Target
from tcomp.tensor.knobs import Alternatives, Config
from tcomp.tuner.measure import MeasureOptions, Outcome, WorkerPool
from tcomp.tuner.records import Times
from tcomp.tuner.task import Task

pytestmark = pytest.mark.emulated

PRODUCT = gpu_check.matmul(16, 24, 8, "float32")


def options(trial_seconds: float = 60.0, plugins: tuple[str, ...] = ()) -> MeasureOptions:
    return MeasureOptions(CheckRunner(with_torch=False), trial_seconds=trial_seconds, plugins=plugins)


def sigmoid(size: int) -> Case:
    return Case("rows", f"sigmoid {size}", "sigmoid", ((size,),), "float32", {}, ())


@pytest.mark.slow
def test_measures_and_checks(gpu: Target, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = (
        gpu_check.matmul(16, 24, 8, "tf32"),
        gpu_check.rows("softmax", (4, 40), "float32"),
        gpu_check.attention(2, 16, 16, "float16"),
    )
    file = tmp_path / "table.json"
    entries = [gpu_check.entry_of(case, gpu) for case in cases]
    gpu_check.check(Table(entries, gpu, file), options(), time.monotonic() + 600, trials=1)
    for case, row in zip(cases, (entry.row for entry in entries), strict=True):
        assert row.problems == ()
        assert row.default is not None
        assert row.best is not None
        assert 0 < row.best <= row.default
        assert row.configs >= 1
        assert case.name in gpu_check.line(row)
        assert row.algorithms[0] in gpu_check.line(row)
        assert row.conditions["registers"]
    assert [row["name"] for row in json.loads(file.read_text())] == [case.name for case in cases]
    said = capsys.readouterr().out
    assert said.index(cases[-1].name) < said.index("random configs"), "defaults come first"


def bad(behaviour: str) -> Config:
    return {"steps": 1, "behaviour": behaviour}


@pytest.mark.slow
def test_one_kernel_costs_no_other(gpu: Target) -> None:
    """Not those after one that breaks off, hangs, or is wrong: each is named, with its config."""
    expected = {
        "break": ("run_error", "an illegal memory access was encountered (CUDA error 700)"),
        "hang": ("timeout", "no answer in 20 s while measuring"),
        "wrong": ("wrong", "max error 1 of the output's scale"),
    }
    failing = [replace(gpu_check.entry_of(sigmoid(FRAGILE), gpu), default=bad(name)) for name in expected]
    good = gpu_check.entry_of(sigmoid(TAME), gpu)
    entries = [*failing, good]
    trials = options(20.0, plugins=("fragile_template",))
    gpu_check.check(Table(entries, gpu), trials, time.monotonic() + 600, trials=0)
    for entry, (behaviour, (status, said)) in zip(failing, expected.items(), strict=True):
        (problem,) = entry.row.problems
        assert (problem.config, problem.status) == (bad(behaviour), status)
        assert said in problem.reason
        assert (entry.row.default, entry.row.configs) == (None, 0)
        assert f"--config '{json.dumps(bad(behaviour))}'" in gpu_check.line(entry.row)
    assert good.row.problems == ()
    assert good.row.default is not None


@pytest.mark.slow
def test_ends_in_time(gpu: Target) -> None:
    """Whatever runs then is ended."""
    entry = gpu_check.entry_of(sigmoid(FRAGILE), gpu, bad("hang"))
    trials, end = options(1000.0, plugins=("fragile_template",)), time.monotonic() + 12
    with pytest.raises(gpu_check.OutOfTime):
        gpu_check.check(Table([entry], gpu), trials, end, trials=0)
    assert 0 <= time.monotonic() - end < 5
    assert entry.row.default is None


PROGRAM = f"""
import sys
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(gpu_check.ROOT / "scripts")!r}]
import fragile_template, gpu_check
sizes = fragile_template.TAME, fragile_template.FRAGILE
case = lambda n: gpu_check.Case("rows", f"sigmoid {{n}}", "sigmoid", ((n,),), "float32", {{}}, ())
gpu_check.CASES = [case(n) for n in sizes]
gpu_check.torch_has_gpu, gpu_check.PLUGINS = lambda: False, ("fragile_template",)
gpu_check.TRIAL_SECONDS = 100.0
sys.exit(gpu_check.main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.usefixtures("gpu")
def test_a_signal_keeps_what_was_found(number: signal.Signals, tmp_path: Path) -> None:
    """While another kernel hangs."""
    file = tmp_path / "table.json"
    arguments = ["--no-tests", "--seconds", "200", "--json", str(file), "--config", json.dumps(bad("ok"))]
    arguments += ["--trials", "64"]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 100
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        os.kill(process.pid, number)
        said, _ = process.communicate(timeout=20)
    finally:
        process.kill()
    assert any(row["default"] is not None for row in json.loads(file.read_text()))
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
        return
    assert process.returncode == 130
    assert "interrupted" in said
    assert said.rindex("sigmoid 1019") > said.index("interrupted"), "the whole table comes last"


def test_tests_are_ended_with_all_that_they_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    program = tmp_path / "sleeps"
    program.write_text("#!/bin/sh\nsleep 1000 & echo $! > $0.pid; wait\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    assert not gpu_check.tests_pass(0.5)
    assert "more than 0 s" in capsys.readouterr().out
    started = int(Path(f"{program}.pid").read_text())
    for _ in range(100):
        if not Path(f"/proc/{started}").exists() or " Z " in Path(f"/proc/{started}/stat").read_text():
            return
        time.sleep(0.05)
    raise AssertionError("what the tests started still runs")


def test_processes_that_do_not_start_cost_nothing_found(
    gpu: Target, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The passes go on where they were, at last without PyTorch."""
    table = Table([gpu_check.entry_of(PRODUCT, gpu), gpu_check.entry_of(sigmoid(TAME), gpu)], gpu)
    asked: list[tuple[bool, int]] = []

    def check(table: Table, options: MeasureOptions, *rest: object) -> None:
        assert isinstance(options.runner, CheckRunner)
        asked.append((options.runner.with_torch, len(table.left("default"))))
        if options.runner.with_torch:
            table.changed(table.left("default")[0], "default")
            raise BuildError("a measuring process does not start")

    monkeypatch.setattr(gpu_check, "check", check)
    monkeypatch.setattr(gpu_check, "torch_has_gpu", lambda: True)
    gpu_check.check_in_spite(table, 0.0, 0, False)
    assert asked == [(True, 2), (True, 1), (False, 0)]
    assert "does not start; what was found is kept" in capsys.readouterr().out


def test_why_pytorch_is_left_out_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not gpu_check.torch_has_gpu()
    assert "PyTorch does not run on this GPU" in capsys.readouterr().out


def test_config_stands_for_the_default(gpu: Target) -> None:
    assert gpu_check.entry_of(PRODUCT, gpu, {"tile_m": 64}).default == {"tile_m": 64}


def test_a_race_decides_which_is_best(gpu: Target) -> None:
    entry = gpu_check.entry_of(PRODUCT, gpu)
    other = {**entry.default, "tile_k": 16}
    for config, seconds in ((entry.default, 2e-6), (other, 1e-6)):
        entry.outcomes.append(Outcome(config, "ok", "", Times(seconds, seconds, 0.0, 1)))
    assert (entry.row.default, entry.row.best, entry.row.best_config) == (2e-6, 1e-6, other)
    entry.raced = {"default": 2e-6, "torch": 5e-6, "best": 3e-6}
    row = entry.row
    assert (row.default, row.best, row.torch, row.best_config) == (2e-6, 2e-6, 5e-6, entry.default)
    entry.raced["best"] = 1e-6
    assert (entry.row.best, entry.row.best_config) == (1e-6, other)
    assert " 5.00 " in gpu_check.line(entry.row)


def test_rows_say_in_what_precision_pytorch_ran(gpu: Target) -> None:
    class Pool:
        def race(self, task: Task, configs: Sequence[Config]) -> list[Outcome]:
            times, said = Times(2e-6, 2e-6, 0.0, 1), {"torch": "PyTorch 2.9 in float32 rounded to tf32"}
            return [Outcome(config, "ok", "", times, None, said) for config in configs]

    entry = gpu_check.entry_of(PRODUCT, gpu)
    gpu_check.race(entry, cast(WorkerPool, Pool()), with_torch=True)
    assert (entry.row.torch, entry.row.torch_as) == (2e-6, "PyTorch 2.9 in float32 rounded to tf32")
    assert gpu_check.line(entry.row).endswith("; PyTorch 2.9 in float32 rounded to tf32")


def test_algorithms_are_those_of_the_default_and_the_best(gpu: Target) -> None:
    case = gpu_check.conv(16, 16, 8, 3, 1, "float32")
    entry = gpu_check.entry_of(case, gpu)
    space = entry.task.space
    assert isinstance(space, Alternatives)
    configs = {name: space.join(name, own.default) for name, own in space.spaces.items()}
    entry.default = configs["conv_cuda"]
    for seconds, config in enumerate(configs.values(), start=-len(configs)):
        entry.outcomes.append(Outcome(config, "ok", "", Times(-seconds * 1e-6, -seconds * 1e-6, 0.0, 1)))
    assert entry.row.algorithms == ("conv_cuda@1", "conv_winograd_cuda@1")
    assert "conv_cuda@1, conv_winograd_cuda@1" in gpu_check.line(entry.row)


def test_kernels_that_spill_are_problems_of_defaults_alone(gpu: Target) -> None:
    entry = gpu_check.entry_of(PRODUCT, gpu)
    spills = Outcome(entry.default, "build_error", "spills 8 bytes")
    gpu_check.note(entry, spills, is_default=False)
    assert entry.row.problems == ()
    gpu_check.note(entry, spills, is_default=True)
    assert [problem.reason for problem in entry.row.problems] == ["spills 8 bytes"]


def test_means_are_beside_their_goals() -> None:
    def row(kind: str, best: float | None, torch: float | None) -> gpu_check.Row:
        return gpu_check.Row(kind, "k", best, best, torch, None, 1.0, 0.5, 1, ("a",))

    found = [row("attention", 1e-6, 4e-6), row("attention", 1e-6, 1e-6), row("rows", None, 1e-6)]
    (mean,) = gpu_check.means(found).splitlines()
    assert mean.startswith("attention")
    assert "2.00 of PyTorch's speed (should be 1.00; least 1.00)" in mean
