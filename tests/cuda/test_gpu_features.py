"""What the cost model sees of launches, and what becomes of kernels that spill."""

from __future__ import annotations

from math import isnan

import pytest
from cuda_kernels import kernel

from tcomp.target.parse import parse_target
from tcomp.target.target import Target
from tcomp.tensor.knobs import Config
from tcomp.tuner.cost_model import CostModel
from tcomp.tuner.estimate import estimate
from tcomp.tuner.features import features_of, names_of
from tcomp.tuner.gpu_features import GPU_NAMES, declared_registers
from tcomp.tuner.measure import MeasureOptions, WorkerPool
from tcomp.tuner.task import Task

pytestmark = pytest.mark.emulated

TILE = {
    "tile_m": 64, "tile_n": 128, "tile_k": 8, "thread_m": 8, "thread_n": 8,
    "stages": 2, "split": 1, "vector": 4,
}  # fmt: skip
"""128 threads with 64 sums; two stages of 8 rows, with padding, of (64 + 4) + (128 + 4) numbers."""


def product(target: Target) -> Task:
    return Task.of(kernel("matmul", (512, 256), (256, 1024)), target)


def config_of(task: Task, **changes: int) -> Config:
    return {**TILE, "algorithm": "matmul_cuda", **changes} if task.algorithms else {**TILE, **changes}


class Seen(CostModel):
    """A cost model that tells what it knows of a config."""

    def features(self, task: Task, config: Config) -> dict[str, float]:
        known = self._known(task, config)
        return {n: 2**f for n, f in zip(names_of(task.target), known, strict=True)}


def test_features_say_what_a_block_takes() -> None:
    target = parse_target("cuda:sm_80")
    task = product(target)
    features = features_of(task, config_of(task))
    found = {n: 2**f for n, f in zip(names_of(target), features, strict=True)}
    assert found["blocks"] == pytest.approx(512 // 64 * 1024 // 128)
    assert found["block_threads"] == pytest.approx(128)
    assert found["shared_bytes"] == pytest.approx(2 * 8 * (64 + 4 + 128 + 4) * 4, rel=0.05)
    assert 64 <= found["registers"] < 160
    assert found["warps_at_once"] % 4 == pytest.approx(0, abs=1e-3)
    resident = found["warps_at_once"] / 4
    assert found["waves"] == pytest.approx(64 / (108 * resident), rel=1e-3)
    assert estimate(features, target) > 0


def test_registers_are_the_compilers_once_it_has_built() -> None:
    task = product(parse_target("cuda:sm_80"))
    tried, other = config_of(task), config_of(task, tile_m=128)
    model = Seen()
    before = model.features(task, tried)
    model.tell(task, tried, 1e-3, {"registers": "200, 40"})
    found = model.features(task, tried)
    assert found["registers"] == pytest.approx(200, rel=1e-3)
    assert found["warps_at_once"] == pytest.approx(8, rel=1e-3)  # 65536 // (200 * 128) blocks of 4 warps
    assert before["warps_at_once"] > found["warps_at_once"]
    excess = 200 - declared_registers(features_of(task, tried))
    expected = declared_registers(features_of(task, other)) + excess
    assert model.features(task, other)["registers"] == pytest.approx(min(255, expected), rel=1e-3)


def test_records_before_any_feature_count_too() -> None:
    """As when tuning goes on with a log."""
    task = product(parse_target("cuda:sm_80"))
    model = Seen()
    model.tell(task, config_of(task), 1e-3, {"registers": "90"})
    assert model.features(task, config_of(task))["registers"] == pytest.approx(90, rel=1e-3)
    failed = Seen(features=lambda task, config: (float("nan"),) * len(names_of(task.target)))
    failed.tell(task, config_of(task), 1e-3, {"registers": "90"})
    assert all(map(isnan, failed.features(task, config_of(task)).values()))
    assert len(names_of(task.target)) - len(GPU_NAMES) == len(names_of(parse_target("x86-64-v3")))


def test_kernels_that_spill_are_not_measured(gpu: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """The emulated GPU would run them; what the compiler says of them ends the trial before."""
    task = Task.of(kernel("relu", (8, 32)), gpu)
    outcomes = {}
    for spilled in ("16", "0"):
        monkeypatch.setenv("EMULATED_SPILLS", spilled)
        with WorkerPool(MeasureOptions(trial_seconds=60)) as pool:
            (outcomes[spilled],) = pool.measure(task, [task.space.default])
    assert outcomes["16"].status == "build_error"
    assert "kernel spills 32 bytes, with 32 registers a thread" in outcomes["16"].reason
    assert outcomes["16"].seconds is None
    assert (outcomes["0"].status, outcomes["0"].conditions["registers"]) == ("ok", "32")
