"""Ctrl-C once, Ctrl-C twice and kill -9 at any moment: no finished trial is lost, no process is left."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tcomp.tuner.records import read_log

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

TUNE = """
import sys
from fake_template import fake_kernel
from tcomp.errors import Interrupted
from tcomp.target.host import host_target
from tcomp.tuner.loop import TuneOptions, tune
from tcomp.tuner.measure import MeasureOptions
from tcomp.tuner.task import Task
def print_event(event):
    print(event, flush=True)
measure = MeasureOptions(workers=2, plugins=("fake_template",), trial_seconds=60)
options = TuneOptions(trials=None, measure=measure, resume_command="tcomp tune m.onnx")
try:
    tune([Task.of(fake_kernel(name=sys.argv[2]), host_target())], sys.argv[1], options, print_event)
except Interrupted as error:
    print(error)
    sys.exit(error.exit_status)
"""


@contextmanager
def tuning(log: Path, kernel: str) -> Iterator[subprocess.Popen[str]]:
    """A process that tunes without end."""
    command = [sys.executable, "-c", TUNE, str(log), kernel]
    with subprocess.Popen(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(process: subprocess.Popen[str], event: str, times: int = 1) -> int:
    """Read what tuning prints until `event` came `times` times. Returns the number of trials seen."""
    assert process.stdout is not None
    trials = 0
    for line in process.stdout:
        trials += "TrialDone" in line
        times -= event in line
        if times == 0:
            return trials
    raise AssertionError(f"no {event}")


def children(process: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def still_run(processes: list[int], within: float = 60.0) -> list[int]:
    """Those that have not ended after `within` seconds."""
    deadline = time.monotonic() + within
    while (left := [p for p in processes if _runs(p)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _runs(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_the_first_ctrl_c_finishes_the_batch(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    with tuning(log, "tame") as process:
        seen = wait_for(process, "TrialDone", 3)
        workers = children(process.pid)
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Stopping()" in rest
    trials = seen + rest.count("TrialDone")
    assert f"interrupted after {trials} trials, all of them are in {log}; to go on: tcomp tune m.onnx" in rest
    assert len(read_log(log).records) == trials
    assert trials % 8 == 1  # The default, then whole batches.
    assert workers
    assert not still_run(workers)


@pytest.mark.slow
def test_the_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    with tuning(log, "drowsy") as process:
        wait_for(process, "TrialDone", 1)
        time.sleep(2.0)  # Both workers are in kernels that sleep by now.
        workers = children(process.pid)
        process.send_signal(signal.SIGINT)
        trials = 1 + wait_for(process, "Stopping")
        asked = time.monotonic()
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
    assert time.monotonic() - asked < 30  # The kernels sleep for longer.
    assert process.returncode == 130
    assert len(read_log(log).records) == trials + rest.count("TrialDone")
    assert workers
    assert not still_run(workers)


@pytest.mark.slow
def test_kill_at_any_moment_loses_no_finished_trial(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    total, rng = 0, random.Random(0)
    for _ in range(3):
        with tuning(log, "tame") as process:
            seen = wait_for(process, "TrialDone", 2)
            time.sleep(rng.random())
            workers = children(process.pid)
            os.kill(process.pid, signal.SIGKILL)
            rest, _ = process.communicate(timeout=60)
        assert workers
        assert not still_run(workers)
        total += seen + rest.count("TrialDone")
        contents = read_log(log)
        assert not contents.problems
        # A trial is in the log before it is reported; the last one may not have been reported.
        assert total <= len(contents.records) <= total + 1
        total = len(contents.records)
