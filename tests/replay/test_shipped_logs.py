"""The records that ship still build: every tunable kernel of their models, with no miss."""

from __future__ import annotations

from pathlib import Path

import pytest

from models import MODELS
from tcomp.api import replay
from tcomp.tuner.records import read_log

ROOT = Path(__file__).parent.parent.parent
LOGS = sorted((ROOT / "tuning_logs").rglob("*.jsonl"))


def test_three_models_ship() -> None:
    assert len(LOGS) >= 3


@pytest.mark.parametrize("log", LOGS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_log_is_sound(log: Path) -> None:
    contents = read_log(log)
    assert contents.records
    assert not contents.problems
    assert {r.isa for r in contents.records} == {log.parent.name}


@pytest.mark.slow
@pytest.mark.parametrize("log", LOGS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_strict_replay(log: Path) -> None:
    model = ROOT / "models" / f"{log.stem}.onnx"
    assert model.exists(), f"run `python scripts/models.py {log.stem}`"
    report, problems = replay(model, log.parent.name, [log], MODELS[log.stem].input_shapes)
    assert not problems
    assert not report.failures, [f"{t.state} {t.label}: {t.note}" for t in report.failures]
    assert report.count("hit") > 0
