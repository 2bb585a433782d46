"""How fast tuning finds fast configs: best time against trials, replayed from tables of real measurements.

    python scripts/bench_tuner.py                                  replay: all strategies, many seeds
    python scripts/bench_tuner.py --simulated nvidia/h100          the same for a GPU that is not there
    python scripts/bench_tuner.py --live models/resnet50.onnx      tune a model: what it takes, what it saves

A replay answers from `tuning_logs/tables` (`scripts/record_tables.py` made them), so that every strategy
meets the same machine. The shipped cost model is replaced by one that never saw the task (leave one out).
A simulated GPU's times are what templates estimate, all wrong by some factor (`simulated_device.py`);
searches are compared with a thousand trials of their own. Prints a markdown table, and JSON with `--json`.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

from gpu_check import attention, conv, matmul
from simulated_device import SimulatedDevice
from tcomp.api import as_target, load_model, static_kernels
from tcomp.errors import TcompError, UsageError
from tcomp.target.target import Target
from tcomp.tuner.cost_model import CostModel
from tcomp.tuner.loop import TuneOptions, tune
from tcomp.tuner.measure import MeasureOptions, Measurer
from tcomp.tuner.process import available_cores
from tcomp.tuner.progress import Event, TaskDone, TrialDone
from tcomp.tuner.table import Table, TableMeasurer
from tcomp.tuner.task import Task, tasks
from train_cost_model import load, train

TRIALS = (1, 4, 8, 16, 32, 64)
NEAR = 0.95


@dataclass(frozen=True)
class Searcher:
    """One line of the comparison."""

    name: str
    strategy: str
    shipped: bool = False
    estimates: bool = True
    """Whether it knows what templates estimate."""


SEARCHERS = (
    Searcher("random", "random"),
    Searcher("evolution, nothing shipped", "evolutionary"),
    Searcher("evolution, shipped model", "evolutionary", shipped=True),
)
ON_GPU = (
    Searcher("random", "random"),
    Searcher("evolution, no estimates", "evolutionary", estimates=False),
    Searcher("evolution", "evolutionary"),
)
THOUSAND = 1000
ERRORS = (0.3, 0.7)
"""Of estimates of a simulated GPU: two thirds of the times are within a factor of 1.35, or 2."""
CASES = (
    matmul(4096, 4096, 4096, "float16"),
    matmul(128, 3072, 768, "float16"),
    matmul(2048, 2048, 2048, "float32"),
    conv(256, 256, 14, 3, 1, "float16", images=32),
    conv(64, 64, 56, 3, 1, "float32"),
    attention(16, 4096, 128, "float16"),
)


def replay(table: Table, searcher: Searcher, pretrained: Any, seed: int) -> list[float]:
    """The fastest time of the table over the best time so far, after each trial."""
    device = TableMeasurer([table])
    model = CostModel(seed, device.features, pretrained if searcher.shipped else None)
    _search(table.task, device, model, searcher.strategy, seed)
    best = list(accumulate((table.row(config).seconds for config in device.measured), min))
    return _filled([table.fastest / seconds for seconds in best])


def _search(
    task: Task, device: Measurer, model: CostModel, strategy: str, seed: int, trials: int = TRIALS[-1]
) -> None:
    options = TuneOptions(trials=trials, seed=seed, strategy=strategy, finalists=1)
    with tempfile.TemporaryDirectory() as folder:
        tune([task], Path(folder) / "log.jsonl", options, measurer=device, model=model)


def _filled(curve: list[float]) -> list[float]:
    """`curve` with its last value for trials that were not needed."""
    return curve + curve[-1:] * (TRIALS[-1] - len(curve))


def compare(tables: Sequence[Table], seeds: int) -> list[dict[str, Any]]:
    """For each table and searcher the medians over seeds."""
    results: list[dict[str, Any]] = []
    for table in tables:
        pretrained = train([t for t in tables if t is not table])
        for searcher in SEARCHERS:
            curves = [replay(table, searcher, pretrained, seed) for seed in range(seeds)]
            name = f"{table.task.label} {table.task.kernel.body.inputs[1].type}"
            results.append(_result(name, len(table.rows), searcher, curves))
    return results


def _result(task: str, configs: int, searcher: Searcher, curves: Sequence[list[float]]) -> dict[str, Any]:
    until = [next((i for i, part in enumerate(c, 1) if part >= NEAR), len(c) + 1) for c in curves]
    return {
        "task": task,
        "configs": configs,
        "searcher": searcher.name,
        "reached": {n: median(c[n - 1] for c in curves) for n in TRIALS},
        "trials_to_near": median(until),
    }


def simulate(target: Target, error: float, seeds: int) -> list[dict[str, Any]]:
    """For each case and searcher the medians over seeds, of simulated devices of that error.

    Raises UsageError for a target that is no GPU.
    """
    if target.gpu is None:
        raise UsageError(f"templates estimate for GPUs, not for `{target.name}`; name one such as cuda:sm_80")
    results: list[dict[str, Any]] = []
    for case in CASES:
        task = Task.of(case.kernel, target)
        best = {(s, seed): _simulated(task, s, error, seed) for s in ON_GPU for seed in range(seeds)}
        thousand = [_simulated(task, ON_GPU[-1], error, seed, THOUSAND)[-1] for seed in range(seeds)]
        for searcher in ON_GPU:
            curves = [
                _filled([thousand[seed] / seconds for seconds in best[searcher, seed]])
                for seed in range(seeds)
            ]
            results.append(_result(f"{case.name}, {error}", task.space.cardinality, searcher, curves))
    return results


def _simulated(
    task: Task, searcher: Searcher, error: float, seed: int, trials: int = TRIALS[-1]
) -> list[float]:
    """The best time so far, after each trial."""
    device, known = SimulatedDevice([task], error, seed), task if searcher.estimates else _unknown(task)
    _search(known, device, CostModel(seed), searcher.strategy, seed, trials)
    return list(accumulate(device.measured, min))


def _unknown(task: Task) -> Task:
    return replace(task, cycles=None)


def markdown(results: Sequence[dict[str, Any]], searchers: Sequence[Searcher] = SEARCHERS) -> str:
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
    for searcher in searchers:
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
    parser.add_argument("--simulated", metavar="TARGET")
    parser.add_argument("--live", metavar="MODEL")
    parser.add_argument("--target", default="llvm")
    parser.add_argument("--time-budget", type=float, default=180.0, help="seconds, for --live")
    parser.add_argument("--log", type=Path, help="for --live; a new file")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    try:
        run(parser.parse_args())
    except TcompError as error:
        raise SystemExit(str(error)) from None


def run(arguments: argparse.Namespace) -> None:
    """What `arguments` ask for. Raises TcompError as what they name does."""
    if arguments.live:
        log = arguments.log or Path(tempfile.mkdtemp()) / "log.jsonl"
        results: Any = live(arguments.live, arguments.target, arguments.time_budget, log)
        json.dump(results, sys.stdout, indent=2)
    elif arguments.simulated:
        results = []
        for error in ERRORS:
            found = simulate(as_target(arguments.simulated), error, arguments.seeds)
            print(markdown(found, ON_GPU), flush=True)
            results += found
    else:
        results = compare(load(), arguments.seeds)
        print(markdown(results))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
