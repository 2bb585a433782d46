"""Search schedules for the kernels of a model, on this machine or on a device (--runner).

Every trial is appended to the log at once. Running the same command again goes on where the log ends;
Ctrl-C keeps every finished trial and prints the command to resume with.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from tcomp.api import as_target, static_kernels
from tcomp.api import load_model as load
from tcomp.cli._options import (
    add_model,
    add_precision,
    add_target,
    add_threads,
    duration,
    input_shapes,
    positive,
)
from tcomp.errors import UsageError
from tcomp.transform.precision import describe_precision
from tcomp.tuner.loop import TuneOptions, tune
from tcomp.tuner.measure import MeasureOptions
from tcomp.tuner.process import available_cores
from tcomp.tuner.progress import (
    BudgetTooSmall,
    DoubtfulTimes,
    Event,
    ModelDone,
    Stopping,
    TaskDone,
    TaskSkipped,
    TrialDone,
    TuningStarted,
    to_json,
)
from tcomp.tuner.runner import parse_runner
from tcomp.tuner.search.strategy import STRATEGIES
from tcomp.tuner.task import Task, tasks
from tcomp.tuner.whole_model import settle


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_target(parser)
    add_precision(parser)
    add_threads(parser, "threads of a kernel while it is measured")
    parser.add_argument(
        "--runner",
        metavar="RUNNER",
        default="local",
        help="where kernels are measured: `local` (default), `simulate` (estimates, no device), "
        "`adb[:SERIAL]`, `ssh://[USER@]HOST[:PORT]`, `rpc://HOST:PORT/KEY` (TVM's RPC tracker)",
    )
    parser.add_argument("--log", metavar="FILE", type=Path, help="where trials go (default: MODEL.jsonl)")
    parser.add_argument("--trials", metavar="N", type=positive, help="trials in all (default: 64 a task)")
    parser.add_argument(
        "--time-budget",
        metavar="3m",
        type=duration,
        help="end trials and races after this long; timing the whole model follows",
    )
    parser.add_argument(
        "--patience",
        metavar="N",
        type=positive,
        default=48,
        help="leave a task after so many trials without progress (default: 48)",
    )
    parser.add_argument(
        "--prior",
        metavar="LOG",
        type=Path,
        action="append",
        default=[],
        help="records of another machine, whose best configs are tried first; may be given several times",
    )
    parser.add_argument("--workers", metavar="N", type=positive, help="processes that build (default: cores)")
    parser.add_argument(
        "--tasks",
        metavar="all|list|TEXT",
        default="all",
        help="`list` them, or tune those in whose name or text, as listed, TEXT occurs",
    )
    parser.add_argument(
        "--strategy",
        choices=sorted(STRATEGIES),
        default="evolutionary",
        help="how configs are chosen (default: evolutionary, led by the cost model)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the search and of the data")
    parser.add_argument("--json", action="store_true", help="print one event a line")


def run(arguments: argparse.Namespace) -> int:
    target, runner = as_target(arguments.target), parse_runner(arguments.runner)
    graph = static_kernels(load(arguments.model, input_shapes(arguments)), target, arguments.precision)
    note = describe_precision(graph, target, arguments.precision)
    if note:
        print(note, file=sys.stderr)
    found = tasks(graph, target)
    if arguments.tasks == "list":
        _list(found)
        return 0
    selected = [t for t in found if arguments.tasks == "all" or arguments.tasks in f"{t.label} {t.key}"]
    if not selected:
        raise UsageError(f"no task matches `{arguments.tasks}`; see --tasks list")
    log = arguments.log or Path(Path(arguments.model.replace(":", ".")).stem + ".jsonl")
    trials = arguments.trials or (None if arguments.time_budget else 64 * len(selected))
    workers = arguments.workers or len(available_cores())
    options = TuneOptions(
        trials=trials,
        time_budget=arguments.time_budget,
        patience=arguments.patience,
        priors=arguments.prior,
        seed=arguments.seed,
        strategy=arguments.strategy,
        measure=MeasureOptions(runner, workers=workers, threads=arguments.threads, seed=arguments.seed),
        resume_command="tcomp " + shlex.join(sys.argv[1:]),
    )
    report = reporter(arguments.json, sys.stdout)
    tune(selected, log, options, report)
    if arguments.tasks == "all" and runner.is_here:
        settle(graph, target, log, arguments.threads, report)
    return 0


def _list(found: list[Task]) -> None:
    for task in found:
        size = f"{task.flops / 1e6:.1f} MFLOP x {task.weight}"
        print(f"{task.label}  {task.template}  {size}  {task.space.cardinality} configs\n    {task.key}")


def reporter(as_json: bool, stream: TextIO) -> Callable[[Event], None]:
    """What prints events: a JSON line each, or text for people."""
    if as_json:
        return lambda event: print(json.dumps(to_json(event)), file=stream, flush=True)
    return _Text(stream)


class _Text:
    """Progress for people: one line that is rewritten on a terminal, a plain line a task elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty()

    def __call__(self, event: Event) -> None:
        if isinstance(event, TuningStarted):
            known = f", {event.known} known from {event.log}" if event.known else f", log {event.log}"
            self._line(f"{event.tasks} tasks, {event.trials or 'unlimited'} trials{known}")
            if event.priors:
                self._line(f"{event.priors} configs that were fast on other machines are tried first")
            if event.problems:
                self._line(f"skipped {event.problems} unreadable lines of {event.log}; see `tcomp log check`")
        elif isinstance(event, TrialDone):
            self._trial(event)
        elif isinstance(event, BudgetTooSmall):
            self._line(
                f"the budget ended before the first trial of {event.untried} of {event.tasks} tasks; they "
                "keep their defaults, give more --trials or --time-budget"
            )
        elif isinstance(event, DoubtfulTimes):
            self._line(f"warning: {event.reason}")
        elif isinstance(event, Stopping):
            self._line("stopping after the trials that run now; Ctrl-C again stops at once")
        elif isinstance(event, TaskSkipped):
            self._line(f"skipped {event.label}: {event.reason}")
        elif isinstance(event, ModelDone):
            self._model(event)
        else:
            self._done(event)

    def _trial(self, event: TrialDone) -> None:
        best = "-" if event.best is None else f"{event.best * 1e6:.1f} us"
        left = "" if event.seconds_left is None else f", {event.seconds_left:.0f} s left"
        text = (
            f"task {event.task + 1}/{event.tasks} {event.label}: trial {event.trial}, best {best}, "
            f"{event.rate:.1f} trials/s{left}"
        )
        if self._live:
            print(f"\r\x1b[K{text[:118]}", end="", file=self._stream, flush=True)
        elif event.trial % 50 == 0:
            self._line(text)

    def _done(self, event: TaskDone) -> None:
        if event.seconds is None:
            self._line(
                f"{event.label}: no trial succeeded" + (f"; the last: {event.reason}" if event.reason else "")
            )
            return
        self._line(
            f"{event.label} x{event.weight}: {event.seconds * 1e6:.1f} us, {event.speedup:.2f}x the default"
        )
        if event.spread is not None:
            self._line(
                f"    measurements spread by {event.spread:.0%}, too wide to tell a faster config from luck; "
                "the default stays, tune again when the machine is idle"
            )

    def _model(self, event: ModelDone) -> None:
        kernels = f"{event.tuned} tuned kernel{'s' * (event.tuned != 1)}"
        seconds, default = event.seconds * 1e3, event.default * 1e3
        self._line(f"whole model: {seconds:.2f} ms with {kernels}, {default:.2f} ms with none")
        if event.lost:
            self._line(f"    no faster there than with its default and taken back: {', '.join(event.lost)}")

    def _line(self, text: str) -> None:
        print(f"\r\x1b[K{text}" if self._live else text, file=self._stream, flush=True)
