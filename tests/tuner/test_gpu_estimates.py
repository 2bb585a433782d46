"""What templates for GPUs estimate of a config leads their search, before anything of a task was measured."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import geometric_mean

import pytest

import bench_tuner
from gpu_check import Case, attention, conv, matmul
from simulated_device import SimulatedDevice
from tcomp.target.parse import parse_target
from tcomp.tensor.knobs import ALGORITHM, Alternatives, Config
from tcomp.tensor.selection import template_for
from tcomp.tensor.template import TEMPLATES, Template
from tcomp.tuner.cost_model import CostModel
from tcomp.tuner.loop import TuneOptions, tune
from tcomp.tuner.task import Task

H100 = parse_target("nvidia/h100")
CASES = (
    matmul(2048, 2048, 2048, "float16"),
    matmul(128, 3072, 768, "float32"),
    matmul(1, 1000, 2048, "float16"),
    conv(64, 64, 56, 3, 1, "float16"),
    conv(64, 64, 56, 3, 1, "float32"),
    attention(12, 128, 64, "float16"),
    attention(12, 128, 64, "float32"),
)


def no_features(task: Task, config: Config) -> tuple[float, ...]:
    raise AssertionError("estimates need no schedule")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_config_of_a_product_has_an_estimate(case: Case) -> None:
    """Also of each algorithm, whose default is chosen by it."""
    task, random = Task.of(case.kernel, H100), Random(0)
    template = template_for(case.kernel, H100)
    alternatives = template.algorithms or {"": template}
    for name, one in alternatives.items():
        cycles = one.cycles(case.kernel, H100)
        assert cycles is not None, name
        space = one.space(case.kernel, H100)
        default = cycles(space.complete(space.default))
        others = [cycles(space.complete(space.random(random))) for _ in range(50)]
        assert 0 < default <= 1.1 * min(others), name
    estimated = task.estimated([task.space.default])
    assert estimated is not None
    assert estimated[0] >= template.estimate(case.kernel, H100)


def test_every_template_beside_others_estimates() -> None:
    """Else no config of any of them would have an estimate."""
    on_gpu = [template for template in TEMPLATES.values() if template.family == "cuda"]
    several = {t.name for t in on_gpu if t.alternative_to} | {t.alternative_to for t in on_gpu}
    silent = [name for name in several if name and type(TEMPLATES[name]).cycles is Template.cycles]
    assert not silent


def test_estimates_drop_configs_that_cannot_be_near_and_keep_the_others() -> None:
    task = Task.of(matmul(4096, 4096, 4096, "float16").kernel, H100)
    space = task.space
    assert isinstance(space, Alternatives)
    model = CostModel(features=no_features)
    plain, warps = (
        space.join(name, space.spaces[name].default) for name in ("matmul_cuda", "matmul_mma_cuda")
    )
    assert model.is_promising(task, plain)  # Nothing is known yet.
    model.tell(task, space.default, 1e-3)
    assert not model.is_promising(task, plain)
    assert model.is_promising(task, warps)
    assert model.guide(task).most_scored is None
    scores = model.score(task, [plain, space.default, warps])
    assert scores[1] > scores[2] > scores[0]


def test_models_learn_where_estimates_are_wrong() -> None:
    """Of one algorithm times are four times what is estimated: it is the estimate's first choice no more."""
    task, random = Task.of(matmul(2048, 2048, 2048, "float16").kernel, H100), Random(0)
    space = task.space
    assert isinstance(space, Alternatives)
    model = CostModel(features=no_features)
    assert space.preferred == "matmul_wgmma_cuda"
    configs = [space.random(random) for _ in range(20)]
    for config, cycles in zip(configs, task.estimated(configs) or (), strict=True):
        model.tell(task, config, cycles * (4.0 if config.get(ALGORITHM) == space.preferred else 1.0))
    mma = space.join("matmul_mma_cuda", space.spaces["matmul_mma_cuda"].default)
    assert model.knows(task)
    own, other = model.score(task, [space.default, mma])
    assert other > own


def reached(task: Task, device: SimulatedDevice, folder: Path, trials: int) -> float:
    log = folder / f"{device.seed}{task.cycles is None}.jsonl"
    options = TuneOptions(trials=trials, seed=device.seed, finalists=1)
    tune([task], log, options, measurer=device, model=CostModel(device.seed))
    assert len(device.measured) == trials
    return min(device.measured)


def test_a_search_with_estimates_is_ahead_of_one_without(tmp_path: Path) -> None:
    """On devices that are off by a factor of two."""
    task = Task.of(matmul(128, 3072, 768, "float16").kernel, H100)
    without = Task(task.kernel, task.target, task.template, task.space, task.weight, task.algorithms)
    ratios: list[float] = []
    for seed in range(3):
        fast, slow = (reached(t, SimulatedDevice([task], 0.7, seed), tmp_path, 24) for t in (task, without))
        ratios.append(slow / fast)
    assert geometric_mean(ratios) > 1.15


@pytest.mark.parametrize(
    ("target", "said"), [("x86-64-v4", "for GPUs, not for `x86-64-v4`"), ("h100", "unknown target `h100`")]
)
def test_what_cannot_be_simulated_is_said(target: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_tuner.py", "--simulated", target])
    with pytest.raises(SystemExit, match=said):
        bench_tuner.main()


def test_a_model_looks_at_trials_once() -> None:
    """Not in each of the hundreds of questions that it answers before it learns again."""
    task, random, asked = Task.of(matmul(128, 3072, 768, "float16").kernel, H100), Random(0), list[Config]()
    estimate = task.cycles
    assert estimate is not None

    def cycles(config: Config) -> float:
        asked.append(config)
        return estimate(config)

    task, model = replace(task, cycles=cycles), CostModel(features=no_features)
    for seconds in range(1, 21):
        model.tell(task, task.space.random(random), seconds * 1e-6)
    model.score(task, [task.space.default])
    asked.clear()
    model.score(task, [task.space.default] * 3)
    assert len(asked) == 3
