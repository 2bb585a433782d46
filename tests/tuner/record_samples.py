"""Records made up for tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tcomp.tuner.records import Check, Record, Times

SAMPLE = Record(
    task="(f32[256]) %1=relu(%0) -> %1",
    op="relu",
    target="emeraldrapids",
    isa="x86-64-v4",
    device="some CPU",
    threads=1,
    template="fake@1",
    config={"work": 4, "behaviour": "ok"},
    status="ok",
    seconds=Times(2e-6, 1.9e-6, 0.01, 100),
    baseline=4e-6,
    check=Check(1e-7, 1e-4),
    versions={"tcomp": "0.1.0"},
    time="2026-01-01T00:00:00Z",
)


def record(median: float = 2e-6, **changes: Any) -> Record:
    """SAMPLE with another time and other fields."""
    return replace(SAMPLE, seconds=Times(median, median, 0.0, 10), **changes)
