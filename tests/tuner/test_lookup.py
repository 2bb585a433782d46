"""Which record is used for a kernel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from fake_template import fake_kernel
from record_samples import SAMPLE, record

from tcomp.errors import RecordError
from tcomp.target.target import TARGETS
from tcomp.tuner.lookup import Records, best_record
from tcomp.tuner.records import write_log

DEFAULT = {"work": 8, "behaviour": "ok"}
TARGET = TARGETS["znver4"]


def config(work: int) -> dict[str, int | str]:
    return {"work": work, "behaviour": "ok"}


def test_a_record_serves_every_target_of_its_isa() -> None:
    records = Records([replace(SAMPLE, task=fake_kernel().key)])
    assert records.best(fake_kernel(), TARGET) is not None
    assert records.best(fake_kernel(), TARGETS["haswell"]) is None
    assert records.best(fake_kernel(), TARGET, threads=2) is None
    assert "not for x86-64-v4 with 2" in records.lookup(fake_kernel(), TARGET, threads=2).note


def test_other_versions_and_unknown_values_are_stale() -> None:
    for stale in (replace(SAMPLE, template="fake@0"), replace(SAMPLE, config={"work": 3, "behaviour": "ok"})):
        found = Records([replace(stale, task=fake_kernel().key)]).lookup(fake_kernel(), TARGET)
        assert (found.state, found.record) == ("stale", None)


def test_the_same_device_is_preferred_and_others_are_named() -> None:
    here = record(3e-6, device="here", task=fake_kernel().key, config=config(2))
    there = record(1e-6, device="there", task=fake_kernel().key, config=config(1))
    records = Records([there, here])
    assert records.best(fake_kernel(), TARGET, device="here") == here
    assert records.lookup(fake_kernel(), TARGET, device="nowhere").note == "measured on there"


def test_a_lost_race_outweighs_a_lucky_trial() -> None:
    lucky = record(1e-6, config=config(1))
    raced = record(5e-6, config=config(1), phase="final")
    default = record(4e-6, config=DEFAULT, phase="final")
    assert best_record([lucky, raced, default], DEFAULT) == default


def test_sessions_on_a_busy_machine_compare_by_their_own_default() -> None:
    busy = record(8e-6, baseline=20e-6, config=config(1), phase="final")
    idle = record(3e-6, baseline=4e-6, config=config(2), phase="final")
    assert best_record([busy, idle], DEFAULT) == busy


def test_a_trial_within_the_noise_does_not_beat_the_default() -> None:
    default = record(4e-6, config=DEFAULT)
    assert best_record([default, record(3.95e-6, config=config(1))], DEFAULT) == default


def test_order_does_not_matter() -> None:
    every = [record(m * 1e-6, config=config(w), phase=p) for m, w in ((3, 1), (2, 2), (5, 4), (4, 8))
             for p in ("trial", "final")]  # fmt: skip
    expected = best_record(every, DEFAULT)
    for seed in range(20):
        Random(seed).shuffle(every)
        assert best_record(every, DEFAULT) == expected


def test_failures_alone_are_missing() -> None:
    failed = replace(SAMPLE, task=fake_kernel().key, status="crash", seconds=None)
    assert Records([failed]).lookup(fake_kernel(), TARGET).state == "missing"


def test_folders_are_read_whole(tmp_path: Path) -> None:
    write_log(tmp_path / "a.jsonl", [SAMPLE])
    write_log(tmp_path / "b.jsonl", [record(3e-6)])
    assert len(Records.load([tmp_path])) == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordError, match=r"no \.jsonl"):
        Records.load([tmp_path / "empty"])


def test_records_compared_with_the_default_of_another_template_are_stale() -> None:
    """A faster algorithm became the default: what an older default was beaten by says nothing."""
    other = record(1e-6, config=config(1), task=fake_kernel().key, template="fake@1")
    assert Records([other]).lookup(fake_kernel(), TARGET).state == "hit"
    rebased = replace(other, baseline_template="fake@0")
    assert Records([rebased]).lookup(fake_kernel(), TARGET).state == "stale"
