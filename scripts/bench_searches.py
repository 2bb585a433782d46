"""Searches side by side on this machine: how long each takes until a kernel is how fast.

    python scripts/bench_searches.py --list
    python scripts/bench_searches.py 8 10 --trials 64

Tasks are those of `tuning_logs/tables/zen1.jsonl.gz` with their whole spaces. Each search starts from nothing
but what ships, and gets as many trials and the same cores. Then the best kernels of all are timed in turns.
Prints a markdown table, and JSON with `--json`. What MetaSchedule needs: see `scripts/metaschedule.py`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from models import ROOT
from tcomp.codegen.jit import build_kernel
from tcomp.target.host import host_target
from tcomp.target.target import Target
from tcomp.tuner.cost_model import CostModel
from tcomp.tuner.loop import TuneOptions, tune
from tcomp.tuner.measure import MeasureOptions
from tcomp.tuner.process import available_cores
from tcomp.tuner.progress import Event, TaskDone, TrialDone
from tcomp.tuner.table import read_tables
from tcomp.tuner.task import Task
from tcomp.tuner.trial_data import trial_data

TABLES = ROOT / "tuning_logs" / "tables" / "zen1.jsonl.gz"
ROUNDS = 9
ROUND_SECONDS = 0.05
PEER = "MetaSchedule"
SEARCHES = ("tcomp", "tcomp, nothing shipped", "random", PEER)


@dataclass(frozen=True)
class Found:
    """What one search did.

    `curve` has the seconds since its start and the best kernel time so far, after each trial; `best` runs its
    best kernel so often and gives the seconds of one run.
    """

    trials: int
    curve: list[tuple[float, float]]
    seconds: float
    best: Callable[[int], float]


def search(name: str, task: Task, trials: int) -> Found | None:
    """Run one of `SEARCHES` on `task`; None when it finds no kernel."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        if name == PEER:
            import metaschedule

            found = metaschedule.search(
                task.kernel, task.target, trials, len(available_cores()), Path(folder)
            )
            if found.run is None:
                return None
            return Found(found.trials, found.curve, time.monotonic() - started, found.run)
        events: list[tuple[float, Event]] = []
        options = TuneOptions(
            trials=trials,
            strategy="random" if name == "random" else "evolutionary",
            measure=MeasureOptions(workers=len(available_cores())),
        )
        model = CostModel() if name == "tcomp, nothing shipped" else None
        tune(
            [task],
            Path(folder) / "log.jsonl",
            options,
            lambda e: events.append((time.monotonic() - started, e)),
            model=model,
        )
    curve = [(t, e.best) for t, e in events if isinstance(e, TrialDone) and e.best is not None]
    (done,) = (e for _, e in events if isinstance(e, TaskDone))
    return Found(len(curve), curve, time.monotonic() - started, _timer(task, done))


def _timer(task: Task, done: TaskDone) -> Callable[[int], float]:
    runner = build_kernel(task.kernel, task.target, done.config)
    arguments = runner.prepare(trial_data(task.kernel, 0).inputs)
    return lambda number: runner.time_prepared(arguments, number, 1)[0]


def in_turns(found: dict[str, Found]) -> dict[str, float]:
    """Median seconds of the best kernel of each search."""
    number = {name: max(1, int(ROUND_SECONDS / f.best(1))) for name, f in found.items()}
    samples: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(ROUNDS):
        for name, f in found.items():
            samples[name].append(f.best(number[name]))
    return {name: median(s) for name, s in samples.items()}


def reached(found: Found, seconds: float) -> float | None:
    """Seconds into the search at which a kernel of at most `seconds` was known."""
    return next((t for t, best in found.curve if best <= seconds), None)


def compare(task: Task, names: Sequence[str], trials: int) -> list[dict[str, Any]]:
    searches = {name: search(name, task, trials) for name in names}
    found = {name: one for name, one in searches.items() if one is not None}
    best = in_turns(found)
    goal = best.get(PEER, 0.0)
    return [
        {
            "task": task.key,
            "label": f"{task.label} {task.kernel.body.inputs[1].type}",
            "search": name,
            "trials": f.trials,
            "seconds": f.seconds,
            "best": best[name],
            "reached_peer": reached(f, goal) if name != PEER else f.seconds,
            "curve": f.curve,
        }
        for name, f in found.items()
    ]


def markdown(results: Sequence[dict[str, Any]]) -> str:
    lines = [
        f"| task | search | trials | seconds | best kernel | as fast as {PEER}'s after |",
        "|---|---|---|---|---|---|",
    ]
    for r in results:
        after = "-" if r["reached_peer"] is None else f"{r['reached_peer']:.1f} s"
        cells = (
            r["label"],
            r["search"],
            r["trials"],
            f"{r['seconds']:.0f}",
            f"{r['best'] * 1e3:.3f} ms",
            after,
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def fixed_tasks(target: Target) -> list[Task]:
    """The fixed set, with the whole spaces of their templates on `target`."""
    return [Task.of(table.task.kernel, target) for table in read_tables(TABLES)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("numbers", nargs="*", type=int, help="tasks, as --list numbers them; default all")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--searches", nargs="*", choices=SEARCHES, default=SEARCHES)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    arguments = parser.parse_args()
    found = fixed_tasks(host_target())
    if arguments.list:
        for number, task in enumerate(found):
            print(f"{number:2} {task.label:24} {task.key[:120]}")
        return
    results: list[dict[str, Any]] = []
    for number in arguments.numbers or range(len(found)):
        results += compare(found[number], arguments.searches, arguments.trials)
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    print(markdown(results))


if __name__ == "__main__":
    main()
