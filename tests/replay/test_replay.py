"""Replay finds, misses and refuses records without measuring."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tuner"))

from fake_template import fake_graph, fake_kernel
from record_samples import SAMPLE

from tcomp.target.target import TARGETS
from tcomp.tuner.lookup import Records
from tcomp.tuner.records import Record
from tcomp.tuner.replay import replay

TARGET = TARGETS["x86-64-v4"]
GOOD = replace(SAMPLE, task=fake_kernel(64).key)


@pytest.mark.parametrize(
    ("records", "state", "note"),
    [
        ([GOOD], "hit", ""),
        ([], "missing", "no record"),
        ([replace(GOOD, template="fake@0")], "stale", "fake@0"),
        ([replace(GOOD, config={"work": 1, "behaviour": "refuse"})], "broken", "refused on purpose"),
        ([replace(GOOD, isa="x86-64-v3")], "missing", "x86-64-v3"),
    ],
)
def test_states(records: list[Record], state: str, note: str) -> None:
    report = replay(fake_graph(64, 64), TARGET, Records(records))
    (task,) = report.tasks
    assert (task.state, task.weight) == (state, 2)
    assert note in task.note
    assert bool(report.failures) == (state != "hit")
    assert report.summary == f"1 kernels: 1 {state}"
