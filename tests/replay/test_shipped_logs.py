"""The records that ship still build: every tunable kernel of their models."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from pathlib import Path

import pytest

from models import MODELS
from tcomp.api import load_model, replay
from tcomp.codegen import c_abi
from tcomp.relay.graph import Graph
from tcomp.target.target import TARGETS
from tcomp.transform.precision import Precision
from tcomp.tuner.provenance import simulated_device
from tcomp.tuner.records import read_log

ROOT = Path(__file__).parent.parent.parent
LOGS = sorted((ROOT / "tuning_logs").rglob("*.jsonl"))
FOLDERS = sorted({log.parent.name for log in LOGS})
FAST = ".fast"
"""Ends the names of logs of that precision."""
QUICK = {
    f"{core}-{model}"
    for core in ("cortex-a55", "cortex-a76")
    for model in ("mobilenetv2_100", "mtcnn_pnet", "mtcnn_rnet")
}
"""Logs whose kernels build in seconds: strict replay of them belongs to the quick tests."""


@lru_cache(maxsize=1)
def _graph(name: str) -> Graph:
    """A model as it was imported, kept while logs of the same are replayed, which stand together."""
    return load_model(ROOT / "models" / f"{name}.onnx", MODELS[name].input_shapes)


@pytest.mark.parametrize("log", LOGS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_log_is_sound(log: Path) -> None:
    contents = read_log(log)
    assert contents.records
    assert not contents.problems
    target = TARGETS[log.parent.name]
    assert {r.isa for r in contents.records} == {target.isa}
    estimates = [r for r in contents.records if r.simulated]
    assert all(r.is_usable for r in estimates), "their numbers were computed and are right"
    assert all(r.device == simulated_device(target) for r in estimates)
    assert not estimates or log.parent.name != target.isa, "estimates are of a core, in a folder of its name"


def _name(log: Path) -> str:
    return f"{log.parent.name}-{log.stem}"


def _model(log: Path) -> str:
    return log.stem.removesuffix(FAST)


def test_quick_logs_ship() -> None:
    assert {_name(log) for log in LOGS} >= QUICK


def test_models_have_records() -> None:
    """All on x86. Of the estimates, `tuning_logs/README.md` says which are not made yet."""
    stems = {folder: {log.stem for log in LOGS if log.parent.name == folder} for folder in FOLDERS}
    models = {folder: {s for s in found if not s.endswith(FAST)} for folder, found in stems.items()}
    assert len(models["x86-64-v4"]) == 16
    assert models["x86-64-v3"] == models["x86-64-v4"]
    assert stems["x86-64-v4"] - models["x86-64-v4"] == {m + FAST for m in models["x86-64-v4"]}
    text = (ROOT / "tuning_logs" / "README.md").read_text()
    for core in ("cortex-a55", "cortex-a76"):
        assert models[core] <= models["x86-64-v4"]
        missing = ", ".join(sorted(models["x86-64-v4"] - models[core])) or "none"
        assert f"Without estimates for {core}: {missing}." in text


@pytest.mark.parametrize(
    "log",
    [
        pytest.param(p, id=_name(p), marks=[] if _name(p) in QUICK else pytest.mark.slow)
        for p in sorted(LOGS, key=_model)
    ],
)
def test_strict_replay(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LLVM's code is made and verified, and optimised for the quick logs alone: nothing here runs it."""
    if _name(log) not in QUICK:
        monkeypatch.setattr(c_abi, "_OPT_LEVEL", 0)
    name = _model(log)
    model = ROOT / "models" / f"{name}.onnx"
    if not model.exists():
        needs = f"run `python scripts/models.py {name}`"
        pytest.skip(needs) if _name(log) in QUICK else pytest.fail(needs)
    # Cores of one instruction set choose other layouts and algorithms: that of most records counts.
    target = Counter(r.target for r in read_log(log).records).most_common(1)[0][0]
    precision: Precision = "fast" if log.stem.endswith(FAST) else "exact"
    report, problems = replay(_graph(name), target, [log], precision=precision)
    assert not problems
    assert not report.failures, [f"{t.state} {t.label}: {t.note}" for t in report.failures]
    assert report.count("hit") > 0
