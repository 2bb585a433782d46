"""Inside the whole model, configs that won alone win again or are taken back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from record_samples import SAMPLE, record

from tcomp.api import static_kernels
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.graph import Graph
from tcomp.target.target import Target
from tcomp.tuner.choices import choose_configs
from tcomp.tuner.lookup import best_record
from tcomp.tuner.progress import Event, ModelDone
from tcomp.tuner.provenance import device_name
from tcomp.tuner.records import Record, Times, read_log, write_log
from tcomp.tuner.task import Task, tasks
from tcomp.tuner.whole_model import settle

DEFAULT = {"work": 8, "behaviour": "ok"}
OTHER = {"work": 1, "behaviour": "ok"}


def test_a_race_inside_the_model_outweighs_those_alone() -> None:
    default = record(4e-6, config=DEFAULT, phase="final")
    alone = record(2e-6, config=OTHER, phase="final")
    assert best_record([default, alone], DEFAULT) == alone
    for inside, best in ((record(5e-6, config=OTHER, phase="model"), default), (alone, alone)):
        assert best_record([default, alone, inside], DEFAULT) == best
    confirmed = record(3e-6, config=OTHER, phase="model")
    assert best_record([default, alone, confirmed], DEFAULT) == confirmed


def product(target: Target) -> tuple[Graph, Task]:
    """Two products that are one kernel, and its task."""
    builder, rng = GraphBuilder(), np.random.default_rng(0)
    x = builder.input("x", (96, 256))
    for _ in range(2):
        x = builder.op("matmul", x, builder.constant(rng.standard_normal((256, 256)) / 16, "float32"))
    graph = static_kernels(builder.build(x), target)
    (task,) = tasks(graph, target)
    return graph, task


def claim(task: Task, config: dict[str, object], relative: float) -> Record:
    """A record that says `config` won its race alone."""
    seconds = Times(relative * 4e-6, relative * 4e-6, 0.0, 10)
    template, default = task.template_of(config), task.template_of(task.space.default)  # type: ignore[arg-type]
    changes = {
        "target": task.target.name,
        "isa": task.target.isa,
        "device": device_name(task.target),
        "op": task.label,
    }
    return replace(
        SAMPLE, task=task.key, template=template, baseline_template=default, config=config,
        phase="final", seconds=seconds, **changes,
    )  # fmt: skip


def test_a_winner_that_is_slow_in_the_model_is_taken_back(target: Target, tmp_path: Path) -> None:
    graph, task = product(target)
    slow = {**task.space.default, "tile_rows": 1, "tile_vectors": 1}
    task.space.check(slow)
    log, events = tmp_path / "log.jsonl", list[Event]()
    write_log(log, [claim(task, dict(task.space.default), 1.0), claim(task, slow, 0.5)])
    assert choose_configs(graph, target, [log]).configs == {task.key: slow}
    settle(graph, target, log, 1, events.append)
    assert choose_configs(graph, target, [log]).configs == {task.key: dict(task.space.default)}
    (measured,) = (r for r in read_log(log).records if r.phase == "model")
    assert measured.relative is not None
    assert measured.relative > 1.2
    (done,) = (e for e in events if isinstance(e, ModelDone))
    assert (done.tuned, done.lost) == (1, (task.label,))
    assert done.seconds > done.default > 0
    settle(graph, target, log, 1, events.append)
    assert len(events) == 1


def test_nothing_is_measured_where_defaults_stay(target: Target, tmp_path: Path) -> None:
    graph, task = product(target)
    log = tmp_path / "log.jsonl"
    write_log(log, [claim(task, dict(task.space.default), 1.0)])
    settle(graph, target, log, 1, lambda event: pytest.fail(f"unexpected {event}"))
    assert len(read_log(log).records) == 1
