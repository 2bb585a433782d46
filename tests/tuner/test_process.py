"""A worker's process, seen from its parent."""

from __future__ import annotations

import subprocess

import pytest

from tcomp.tuner.process import WorkerProcess


def test_stopping_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a process that a driver holds."""
    process = WorkerProcess(None, 1, 1 << 30)
    popen = process._process  # pyright: ignore[reportPrivateUsage]
    wait, limits = popen.wait, list[float]()

    def held(timeout: float | None = None) -> int:
        assert timeout is not None
        limits.append(timeout)
        raise subprocess.TimeoutExpired("held", timeout)

    monkeypatch.setattr(popen, "wait", held)
    process.stop()
    assert limits == [10.0]
    assert wait() == -9


def test_a_process_of_another_function_tells_why_it_ends() -> None:
    process = WorkerProcess(None, 1, 1 << 30, entry="os.abort")
    try:
        assert "killed by SIGABRT" in str(process.receive())
    finally:
        process.stop()
