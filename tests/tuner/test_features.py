"""Features of a matmul written out by hand, and what the shared model learns from features."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from fake_template import fake_kernel
from recorded import SPACE, features, seconds

from tcomp.relay.builder import GraphBuilder
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.loops import (
    Expression,
    Statement,
    constant,
    function,
    loop,
)
from tcomp.tensor.template import Scheduled
from tcomp.tuner.cost_model import FEATURIZED, RANKING, REGRESSION, CostModel, Group, predict, train
from tcomp.tuner.features import NAMES, extract
from tcomp.tuner.task import Task
from tcomp.tvm_api import s_tir, te, tirx


def tiled_matmul() -> tuple[Kernel, Scheduled]:
    """[64, 128] x [128, 32] with a register tile of 4 x 16 and the reduction inside."""
    builder = GraphBuilder("matmul")
    a, b = builder.input("a", (64, 128)), builder.input("b", (128, 32))
    kernel = Kernel(builder.build(builder.op("matmul", a, b)))
    left, right = te.placeholder((64, 128), "float32", "left"), te.placeholder((128, 32), "float32", "right")
    k = te.reduce_axis((0, 128), "k")
    product = te.compute((64, 32), lambda i, j: te.sum(left[i, k] * right[k, j], axis=k), name="product")
    schedule = s_tir.Schedule(te.create_prim_func([left, right, product]))
    i, j, reduction = schedule.get_loops(schedule.get_sblock("product"))
    rows, row = schedule.split(i, [None, 4])
    columns, column = schedule.split(j, [None, 16])
    schedule.reorder(rows, columns, reduction, row, column)
    schedule.parallel(rows)
    schedule.unroll(row)
    schedule.vectorize(column)
    return kernel, Scheduled(schedule.mod["main"])


def test_features_say_what_the_loops_do(target: Target) -> None:
    kernel, scheduled = tiled_matmul()
    found = {n: 2**v for n, v in zip(NAMES, extract(kernel, scheduled, target), strict=True)}
    expected = {
        "flops": 2 * 64 * 128 * 32,
        "iterations": 64 * 128 * 32,
        "serial": 2 * 128,
        "parallel": 16,
        "vectorized": 16,
        "unrolled": 4,
        "innermost_serial": 128,
        "sums": 4,
        "vector_operands": 1,
        "broadcast_operands": 4,
        "working_set_0": 4 * (4 * 16 + 4 * 128 + 128 * 16),
    }
    assert {n: found[n] for n in expected} == pytest.approx(expected, rel=1e-3)


def test_a_loop_with_a_shorter_last_round_counts_as_its_longest(target: Target) -> None:
    kernel = fake_kernel(1280)
    x, y = buffers = [tirx.decl_buffer([1280], "float32", name=name) for name in "xy"]

    def chunk(number: Expression) -> Statement:
        extent = tirx.min(constant(512), 1280 - number * 512)
        return loop(extent, lambda i: tirx.BufferStore(y, x[number * 512 + i], [number * 512 + i]))

    scheduled = Scheduled(function(buffers, loop(3, chunk)))
    found = dict(zip(NAMES, extract(kernel, scheduled, target), strict=True))
    assert 2 ** found["iterations"] == pytest.approx(3 * 512)
    assert 2 ** found["innermost_serial"] == pytest.approx(512)


def test_smaller_caches_see_more_traffic(target: Target) -> None:
    kernel, scheduled = tiled_matmul()
    found = dict(zip(NAMES, extract(kernel, scheduled, target), strict=True))
    assert found["l1_bytes_per_flop"] >= found["l2_bytes_per_flop"] >= found["l3_bytes_per_flop"]


def test_the_shared_model_ranks_a_task_it_never_saw(target: Target) -> None:
    model = CostModel(features=features)
    known, new = (Task(fake_kernel(size), target, "fake@1", SPACE) for size in (64, 128))
    configs = list(SPACE)[::97]
    for config in configs[:60]:
        model.tell(known, config, seconds(config))
    better = worse = 0.0
    for first in range(60, 60 + 4 * FEATURIZED, FEATURIZED):
        candidates = configs[first : first + FEATURIZED]
        scores = model.score(new, candidates)
        by_score = sorted(range(len(candidates)), key=lambda i: -scores[i])
        times = [seconds(candidates[i]) for i in by_score]
        better += sum(times[: FEATURIZED // 2])
        worse += sum(times[-(FEATURIZED // 2) :])
    assert better < 0.9 * worse


def test_without_trials_the_model_says_nothing(target: Target) -> None:
    task = Task(fake_kernel(), target, "fake@1", SPACE)
    assert CostModel().score(task, [SPACE.default] * 3) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("parameters", [RANKING, REGRESSION], ids=["ranking", "regression"])
def test_groups_that_failed_as_a_whole_teach_nothing(parameters: dict[str, Any]) -> None:
    """Beside groups with and without estimates."""
    rows = [(0.0,), (1.0,)]
    failed, known = Group(rows, [inf, inf]), Group(rows * 8, [1.0, 4.0] * 8)
    estimated = Group(rows * 8, [1.0, 4.0] * 8, [3.0, 3.0] * 8)
    fast, slow = predict(train([failed, known, estimated], parameters), rows)
    assert fast > slow
