"""How fast tuning finds fast configs: best time against trials, replayed from tables of real measurements.

    python scripts/bench_tuner.py                                  replay: all strategies, many seeds
    python scripts/bench_tuner.py --live models/resnet50.onnx      tune a model: what it takes, what it saves

A replay answers from `tuning_logs/tables` (`scripts/record_tables.py` made them), so that every strategy
meets the same machine. The shipped cost model is replaced by one that never saw the task (leave one out).
Prints a markdown table, and JSON with `--json`.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tcomp.api import as_target, load_model, static_kernels
from tcomp.tuner.cost_model import CostModel
from tcomp.tuner.loop import TuneOptions, tune
from tcomp.tuner.measure import MeasureOptions
from tcomp.tuner.process import available_cores
from tcomp.tuner.progress import Event, TaskDone, TrialDone
from tcomp.tuner.table import Table, TableMeasurer
from tcomp.tuner.task import tasks
from train_cost_model import load, train

TRIALS = (1, 4, 8, 16, 32, 64)
NEAR = 0.95


@dataclass(frozen=True)
class Searcher:
    """One line of the comparison."""

    name: str
    strategy: str
    shipped: bool


SEARCHERS = (
    Searcher("random", "random", shipped=False),
    Searcher("evolution, nothing shipped", "evolutionary", shipped=False),
    Searcher("evolution, shipped model", "evolutionary", shipped=True),
)


def replay(table: Table, searcher: Searcher, pretrained: Any, seed: int) -> list[float]:
    """The fastest time of the table over the best time so far, after each trial."""
    device = TableMeasurer([table])
    model = CostModel(seed, device.features, pretrained if searcher.shipped else None)
    options = TuneOptions(trials=TRIALS[-1], seed=seed, strategy=searcher.strategy, finalists=1)
    with tempfile.TemporaryDirectory() as folder:
        tune([table.task], Path(folder) / "log.jsonl", options, measurer=device, model=model)
    best, curve = float("inf"), list[float]()
    for config in device.measured:
        best = min(best, table.row(config).seconds)
        curve.append(table.fastest / best)
    return curve + curve[-1:] * (TRIALS[-1] - len(curve))


def compare(tables: Sequence[Table], seeds: int) -> list[dict[str, Any]]:
    """For each table and searcher the medians over seeds."""
    results: list[dict[str, Any]] = []
    for table in tables:
        pretrained = train([t for t in tables if t is not table])
        for searcher in SEARCHERS:
            curves = [replay(table, searcher, pretrained, seed) for seed in range(seeds)]
            until = [next((i for i, part in enumerate(c, 1) if part >= NEAR), len(c) + 1) for c in curves]
            results.append(
                {
                    "task": f"{table.task.label} {table.task.kernel.body.inputs[1].type}",
                    "configs": len(table.rows),
                    "searcher": searcher.name,
                    "reached": {n: median(c[n - 1] for c in curves) for n in TRIALS},
                    "trials_to_near": median(until),
                }
            )
    return results


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """Part of the best speed reached, a line a task and searcher, then the medians over all tasks."""
    head = [f"after {n}" for n in TRIALS]
    lines = [
        f"| task | configs | search | {' | '.join(head)} | trials to {NEAR:.0%} |",
        f"|---|---|---|{'---|' * (len(TRIALS) + 1)}",
    ]
    for r in results:
        reached = " | ".join(f"{r['reached'][n]:.1%}" for n in TRIALS)
        lines.append(
            f"| {r['task']} | {r['configs']} | {r['searcher']} | {reached} | {r['trials_to_near']:g} |"
        )
    for searcher in SEARCHERS:
        mine = [r for r in results if r["searcher"] == searcher.name]
        means = " | ".join(f"{sum(r['reached'][n] for r in mine) / len(mine):.1%}" for n in TRIALS)
        trials = sum(r["trials_to_near"] for r in mine) / len(mine)
        lines.append(f"| **mean of {len(mine)}** | | {searcher.name} | {means} | {trials:.1f} |")
    return "\n".join(lines)


def live(model: str, target: str, budget: float, log: Path) -> dict[str, Any]:
    """Tune a model here from nothing but the shipped model; what it took and what it gained."""
    resolved = as_target(target)
    found = tasks(static_kernels(load_model(model, {}), resolved), resolved)
    events: list[tuple[float, Event]] = []
    started, computed = time.monotonic(), _cpu_seconds()
    options = TuneOptions(
        trials=None,
        time_budget=budget,
        patience=48,
        measure=MeasureOptions(workers=len(available_cores())),
    )
    tune(found, log, options, lambda e: events.append((time.monotonic() - started, e)))
    trials = [t for t, e in events if isinstance(e, TrialDone)]
    done = [e for _, e in events if isinstance(e, TaskDone) and e.seconds and e.default]
    here, workers = (after - before for after, before in zip(_cpu_seconds(), computed, strict=True))
    best = sum(e.weight * (e.default or 0.0) / e.speedup for e in done)
    return {
        "model": model,
        "tasks": len(found),
        "trials": len(trials),
        "trials_per_second": len(trials) / trials[-1],
        "cpu_ms_per_trial": {"tuner": here / len(trials) * 1e3, "workers": workers / len(trials) * 1e3},
        "seconds": time.monotonic() - started,
        "kernel_seconds_default": sum(e.weight * (e.default or 0.0) for e in done),
        "kernel_seconds_tuned": best,
    }


def _cpu_seconds() -> list[float]:
    """Of this process, and of the processes that it started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return [u.ru_utime + u.ru_stime for u in used]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--live", metavar="MODEL")
    parser.add_argument("--target", default="llvm")
    parser.add_argument("--time-budget", type=float, default=180.0, help="seconds, for --live")
    parser.add_argument("--log", type=Path, help="for --live; a new file")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    arguments = parser.parse_args()
    if arguments.live:
        log = arguments.log or Path(tempfile.mkdtemp()) / "log.jsonl"
        results: Any = live(arguments.live, arguments.target, arguments.time_budget, log)
        json.dump(results, sys.stdout, indent=2)
    else:
        results = compare(load(), arguments.seeds)
        print(markdown(results))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
