"""Configs that won alone are timed once more inside the model, where the caches hold other kernels' data.

A kernel that is timed again and again finds its weights and inputs in the caches that its last run left
behind. In a model they come from further away, and the config that is fastest there may be another one.
So the model is compiled twice, with the default configs and with the winners, both libraries run in turns,
each step is timed, and a winner that loses against the default there is taken back.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median

import numpy as np

from tcomp.codegen.artifact import compile_graph
from tcomp.plan.program import Program, Run
from tcomp.relay.graph import Graph
from tcomp.runtime import Model, load
from tcomp.runtime.fill import fill
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tensor.selection import template_for
from tcomp.tuner.lookup import Records
from tcomp.tuner.progress import ModelDone, Progress
from tcomp.tuner.provenance import device_name, now
from tcomp.tuner.records import LogWriter, Record, Times, config_key, times_of
from tcomp.tuner.task import kernels

ROUNDS = 9
MOST_SWAPS = 3
"""Times that a config taken back may be followed by the next best one of its races."""


@dataclass(frozen=True)
class InModel:
    """Seconds of whole runs, and of one use of each kernel by its key on average, in each round."""

    runs: list[float]
    kernels: Mapping[str, list[float]]


def settle(graph: Graph, target: Target, log: Path, threads: int, report: Progress) -> None:
    """Time the winners of `log` for the optimised `graph` inside it, and append what came of it to `log`.

    Nothing is done where every kernel keeps its default, or every winner was timed there before.
    """
    for _ in range(MOST_SWAPS):
        winners = _winners(graph, target, log, threads)
        if all(record.phase == "model" for record in winners.values()):
            return
        configs = {key: record.config for key, record in winners.items()}
        default, tuned = time_in_model(graph, target, [{}, configs], threads)
        with LogWriter(log) as writer:
            for key, record in winners.items():
                writer.append(_record(record, default.kernels[key], tuned.kernels[key]))
        left = _winners(graph, target, log, threads)
        kept = {(key, record.config_key) for key, record in left.items()}
        lost = [record.op for key, record in winners.items() if (key, record.config_key) not in kept]
        report(ModelDone(median(default.runs), median(tuned.runs), len(winners), tuple(lost)))


def time_in_model(
    graph: Graph, target: Target, choices: list[dict[str, Config]], threads: int, rounds: int = ROUNDS
) -> list[InModel]:
    """Compile `graph` with each of `choices`, configs by kernel key, and run the libraries in turns."""
    with tempfile.TemporaryDirectory() as folder:
        programs: list[Program] = []
        models: list[Model] = []
        for number, configs in enumerate(choices):
            library = Path(folder) / f"model{number}.so"
            programs.append(compile_graph(graph, target, library, lambda k, c=configs: c.get(k.key)).program)
            models.append(load(library, threads=threads))
        rng = np.random.default_rng(0)
        inputs = {i.name: fill(i.shape, i.dtype, "random", rng) for i in models[0].inputs}
        results = [InModel([], defaultdict(list)) for _ in choices]
        for _ in range(rounds):
            for result, program, model in zip(results, programs, models, strict=True):
                seconds = [step.seconds for step in model.profile(number=1, **inputs)]
                result.runs.append(sum(seconds))
                for key, uses in _by_kernel(program, seconds).items():
                    result.kernels[key].append(mean(uses))
        for model in models:
            model.close()
        return results


def _by_kernel(program: Program, seconds: list[float]) -> dict[str, list[float]]:
    """Times of the steps of each kernel by its key."""
    uses: dict[str, list[float]] = defaultdict(list)
    for step, time in zip(program.steps, seconds, strict=True):
        if isinstance(step, Run):
            uses[program.kernels[step.kernel].kernel.key].append(time)
    return uses


def _winners(graph: Graph, target: Target, log: Path, threads: int) -> dict[str, Record]:
    """The records of kernels, by key, whose best config here was raced and is not the default."""
    records, device = Records.load([log]), device_name(target)
    winners: dict[str, Record] = {}
    for kernel, _ in kernels(graph):
        record = records.best(kernel, target, threads, device)
        if record is None or record.device != device or record.phase == "trial":
            continue
        if record.config_key != config_key(_default(kernel, target)):
            winners[kernel.key] = record
    return winners


def _default(kernel: Kernel, target: Target) -> Config:
    return template_for(kernel, target).space(kernel, target).default


def _record(winner: Record, default: list[float], tuned: list[float]) -> Record:
    """The ratio within each round counts, as in a race."""
    ratio = times_of([t / d for t, d in zip(tuned, default, strict=True)], runs=len(tuned))
    baseline = median(default)
    seconds = Times(baseline * ratio.median, min(tuned), ratio.spread, ratio.runs)
    return replace(winner, phase="model", seconds=seconds, baseline=baseline, time=now())
