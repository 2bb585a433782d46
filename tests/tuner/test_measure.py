"""Kernels that crash, hang, eat memory or compute nonsense cost one trial each and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fake_template import fake_kernel

from tcomp.errors import BuildError
from tcomp.target.target import Target
from tcomp.tuner.measure import Job, MeasureOptions, Outcome, WorkerPool
from tcomp.tuner.task import Task


@pytest.mark.slow
def test_each_misbehaviour_has_its_status_and_measuring_goes_on(
    target: Target, options: MeasureOptions
) -> None:
    expected = {
        "ok": "ok",
        "wrong": "wrong",
        "crash": "crash",
        "hang": "timeout",
        "eat": "memory",
        "eat_while_building": "memory",
        "refuse": "build_error",
    }
    task = Task.of(fake_kernel(), target)
    configs = [{"work": 8, "behaviour": b} for b in (*expected, "ok")]
    with WorkerPool(options) as pool:
        outcomes = list(pool.measure(task, configs))
    assert [o.status for o in outcomes] == [*expected.values(), "ok"]
    by_status = {o.status: o for o in reversed(outcomes)}
    assert "MemoryError" in outcomes[5].reason
    assert by_status["wrong"].check is not None
    assert by_status["wrong"].check.max_error > 0.1
    assert "4 s while measuring" in by_status["timeout"].reason
    assert "SIGSEGV" in by_status["crash"].reason
    assert "memory limit of 640 MiB while measuring" in by_status["memory"].reason
    assert "refused on purpose" in by_status["build_error"].reason
    assert all((o.seconds is not None) == (o.status == "ok") for o in outcomes)


@pytest.mark.slow
def test_times_rank_kernels_by_their_work(target: Target, options: MeasureOptions) -> None:
    task = Task.of(fake_kernel(65536), target)
    configs = [{"work": w, "behaviour": "ok"} for w in (32, 1)]
    with WorkerPool(replace(options, workers=2)) as pool:
        measured = {o.config["work"]: o.median for o in pool.measure(task, configs)}
        raced = [o.median for o in pool.race(task, configs)]
    assert measured[32] > 2 * measured[1]
    assert raced[0] > 2 * raced[1]


def test_workers_left_early_serve_again(target: Target, options: MeasureOptions) -> None:
    """The one whose kernel is built and waits for its turn to be measured, too."""
    task = Task.of(fake_kernel(65536), target)
    jobs = [Job(task, {"work": 32 - i, "behaviour": "ok"}) for i in range(16)]
    with WorkerPool(replace(options, workers=2)) as pool:
        for _ in range(3):
            left = iter(jobs)
            next(iter(pool.run(lambda left=left: next(left, None))))
            outcomes = pool.race(task, [jobs[0].config])
            assert [o.status for o in outcomes] == ["ok"]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_two_threads_share_the_work_of_one_kernel(options: MeasureOptions, target: Target) -> None:
    task = Task.of(fake_kernel(1 << 20), target)
    with WorkerPool(replace(options, threads=2)) as pool:
        (outcome,) = pool.measure(task, [{"work": 32, "behaviour": "parallel"}])
        (worker,) = _children(os.getpid())
        used = [_computed(worker, t) for t in _threads(worker)]
        assert outcome.status == "ok"
        assert sorted(used)[-2] > 1e-3
        assert os.sched_getaffinity(worker) == os.sched_getaffinity(0)


def _threads(process: int) -> list[int]:
    return [int(p.name) for p in Path(f"/proc/{process}/task").iterdir()]


def _computed(process: int, thread: int) -> float:
    """Seconds that a thread ran."""
    return int(Path(f"/proc/{process}/task/{thread}/schedstat").read_text().split()[0]) / 1e9


def test_a_worker_that_cannot_start_is_reported(options: MeasureOptions, target: Target) -> None:
    task = Task.of(fake_kernel(), target)
    with (
        WorkerPool(replace(options, plugins=("no_such_module",))) as pool,
        pytest.raises(BuildError, match="no_such_module"),
    ):
        list(pool.measure(task, [task.space.default]))


def _children(process: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_die_with_a_killed_parent() -> None:
    code = (
        "from fake_template import fake_kernel; from tcomp.target.host import host_target\n"
        "from tcomp.tuner.measure import MeasureOptions, WorkerPool; from tcomp.tuner.task import Task\n"
        "pool = WorkerPool(MeasureOptions(plugins=('fake_template',), trial_seconds=60))\n"
        "task = Task.of(fake_kernel(), host_target())\n"
        "list(pool.measure(task, [{'work': 8, 'behaviour': 'ok'}])); print('ready', flush=True)\n"
        "list(pool.measure(task, [{'work': 8, 'behaviour': 'hang'}]))\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    with parent.stdout:
        assert parent.stdout.readline() == "ready\n"
    time.sleep(0.5)  # The worker is in the kernel that sleeps by now.
    (worker,) = _children(parent.pid)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 60
    while _runs(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(worker)


def _runs(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


def test_workers_go_on_while_the_next_job_is_thought_of(target: Target, options: MeasureOptions) -> None:
    task = Task.of(fake_kernel(), target)
    first, second = ({"work": work, "behaviour": "ok"} for work in (1, 2))
    jobs = iter([Job(task, first), Job(task, second)])
    with WorkerPool(replace(options, workers=1)) as pool:

        def think() -> Job | None:
            job = next(jobs, None)
            deadline = time.monotonic() + 300
            while job is not None and job.config == second and not pool._ended:
                pool.breathe()
                assert time.monotonic() < deadline
                time.sleep(0.01)
            return job

        outcomes = [outcome for _, outcome in pool.run(think)]
    assert [(o.status, o.config) for o in outcomes if isinstance(o, Outcome)] == [
        ("ok", first),
        ("ok", second),
    ]
