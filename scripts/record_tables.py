"""Measure tables of trials, from which the cost model is trained and search is compared.

    python scripts/record_tables.py models/resnet50.onnx --tasks 0,3,4 --configs 300 -o resnet50.jsonl.gz

Every combination of a few values of each knob is built first, then all are timed in turns, so that a busy
moment of the machine meets all of them alike. Takes about a quarter of a second a config on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from math import ceil, inf
from pathlib import Path
from statistics import median
from typing import Any

from tcomp.api import as_target, load_model, static_kernels
from tcomp.codegen.jit import build_scheduled
from tcomp.codegen.kernel_runner import KernelRunner
from tcomp.errors import TcompError
from tcomp.tensor.knobs import Alternatives, Space
from tcomp.tensor.selection import schedule
from tcomp.tuner.features import extract
from tcomp.tuner.provenance import device_name
from tcomp.tuner.table import Row, Table, read_tables, write_tables
from tcomp.tuner.task import Task, tasks
from tcomp.tuner.trial_data import trial_data

ROUNDS = 5
ROUND_SECONDS = 0.003


def sub_space(space: Space, limit: int) -> Space:
    """`space` with values of knobs taken out evenly: at most `limit` legal configs, shared by algorithms."""
    if isinstance(space, Alternatives):
        share = limit // len(space.spaces)
        return Alternatives.of({n: sub_space(s, share) for n, s in space.spaces.items()}, space.preferred)
    counts = dict.fromkeys((k.name for k in space.knobs), 1)
    chosen = _cut(space, counts)
    while True:
        left = [k for k in space.knobs if counts[k.name] < len(k.values)]
        grown = [(len(k.values) / counts[k.name], k.name) for k in left]
        for _, name in sorted(grown, reverse=True):
            more = _cut(space, {**counts, name: counts[name] + 1})
            if len(list(more)) <= limit:
                counts[name] += 1
                chosen = more
                break
        else:
            return chosen


def _cut(space: Space, counts: dict[str, int]) -> Space:
    """Each knob with so many of its values: the default and others at even distances."""
    cut: list[Any] = []
    for knob in space.knobs:
        default, others = knob.default, [v for v in knob.values if v != knob.default]
        wanted = counts[knob.name] - 1
        kept = {others[(2 * i + 1) * len(others) // (2 * wanted)] for i in range(wanted)} | {default}
        cut.append(replace(knob, values=tuple(v for v in knob.values if v in kept)))  # pyright: ignore
    return Space(tuple(cut), space.legal)


def record(task: Task, limit: int, quiet: Callable[[], AbstractContextManager[Any]] = nullcontext) -> Table:
    """Measure one task. `quiet` surrounds the timing."""
    space = sub_space(task.space, limit)
    inputs = trial_data(task.kernel, 0).inputs
    rows: list[Row] = []
    runners: dict[int, KernelRunner] = {}
    for config in space:
        scheduled = schedule(task.kernel, task.target, config)
        rows.append(Row(config, inf, extract(task.kernel, scheduled, task.target)))
        try:
            runners[len(rows) - 1] = build_scheduled(task.kernel, scheduled, task.target)
            runners[len(rows) - 1].load()
        except TcompError:
            continue  # Its time stays infinite: a failure is a result.
    with quiet():
        seconds = _time_in_turns(runners, inputs)
    timed = [replace(row, seconds=seconds.get(i, inf)) for i, row in enumerate(rows)]
    return Table.of(task, space, device_name(task.target), timed)


def _time_in_turns(runners: dict[int, KernelRunner], inputs: Sequence[Any]) -> dict[int, float]:
    """Median seconds of each; those three times slower than the best get two rounds only."""
    samples: dict[int, list[float]] = {i: [] for i in runners}
    for _ in range(ROUNDS):
        best = min((median(s) for s in samples.values() if s), default=inf)
        for index, runner in runners.items():
            if len(samples[index]) > 1 and min(samples[index]) > 3 * best:
                continue
            arguments = runner.prepare(inputs)
            (once,) = runner.time_prepared(arguments, 1, 1)
            number = max(1, ceil(ROUND_SECONDS / max(once, 1e-9)))
            samples[index] += runner.time_prepared(arguments, number, 1) if number > 1 else [once]
    return {i: median(s) for i, s in samples.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--target", default="llvm")
    parser.add_argument("--tasks", help="numbers in `tcomp tune --tasks list`, from 0; all without it")
    parser.add_argument("--configs", type=int, default=300)
    parser.add_argument("-o", "--output", type=Path, required=True, help="appended to when it exists")
    arguments = parser.parse_args()
    target = as_target(arguments.target)
    found = tasks(static_kernels(load_model(arguments.model, {}), target), target)
    numbers = [int(n) for n in arguments.tasks.split(",")] if arguments.tasks else range(len(found))
    tables = read_tables(arguments.output) if arguments.output.exists() else []
    for number in numbers:
        tables.append(record(found[number], arguments.configs))
        table = tables[-1]
        print(f"{table.task.label}: {len(table.rows)} configs, default {table.default / table.fastest:.2f}x")
        write_tables(arguments.output, tables)


if __name__ == "__main__":
    main()
