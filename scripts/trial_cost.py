"""Where the CPU time of a trial goes: `python scripts/trial_cost.py MODEL [--configs 4] [--target TARGET]`.

Makes trials of the default and of random configs of every task of a model, in this process and in the steps
of a worker, and prints the milliseconds of CPU time a trial of each part, mean over all. `features` is what
the tuner's own process takes to look at a config before it is built. Waiting for others is in no part, so
that a busy machine changes little; only timing repeats itself while times spread. Of targets that do not run
here trials end with the machine code, which for GPUs is the time of the compiler.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from random import Random
from resource import RUSAGE_CHILDREN, getrusage
from typing import Any

from tcomp.api import as_target, load_model, static_kernels
from tcomp.codegen.jit import build_scheduled
from tcomp.codegen.kernel_runner import KernelRunner
from tcomp.target.host import runs_here
from tcomp.tensor.knobs import Config
from tcomp.tensor.selection import schedule
from tcomp.transform.precision import PRECISIONS
from tcomp.tuner.features import extract
from tcomp.tuner.measure import MeasureOptions
from tcomp.tuner.runner import Measure
from tcomp.tuner.runners.local import LocalCandidate
from tcomp.tuner.task import Task, tasks
from tcomp.tuner.timing import adaptive_times
from tcomp.tuner.trial_data import TrialData, trial_data
from tcomp.tvm_api import tvm

PARTS = (
    "scheduling",
    "passes of TVM",
    "compiler",
    "machine code",
    "arguments",
    "checking",
    "timing",
    "reference",
    "features",
)


class Cost:
    """CPU seconds by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.trials = 0
        cost, started = self, list[float]()

        @tvm.ir.instrument.pass_instrument
        class Passes:
            def run_before_pass(self, module: Any, info: Any) -> None:
                started.append(_cpu_seconds())

            def run_after_pass(self, module: Any, info: Any) -> None:
                begin = started.pop()
                if not started:
                    cost.seconds["passes of TVM"] += _cpu_seconds() - begin

        self._instrument: Any = Passes()

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Count what is done inside as `part`."""
        begin = _cpu_seconds()
        yield
        self.seconds[part] += _cpu_seconds() - begin

    def build(self, task: Task, config: Config) -> KernelRunner:
        """The first part of a trial, and what the tuner's process does of it.

        Raises BuildError when there is no code for `config`.
        """
        kernel, target = task.kernel, task.target
        self.trials += 1
        with self.of("features"):
            extract(kernel, schedule(kernel, target, config), target)
        with self.of("scheduling"):
            scheduled = schedule(kernel, target, config)
        passes = self.seconds["passes of TVM"]
        with self.of("compiler"), tvm.transform.PassContext(instruments=[self._instrument]):
            runner = build_scheduled(kernel, scheduled, target)
        self.seconds["compiler"] -= self.seconds["passes of TVM"] - passes
        return runner

    def trial(self, task: Task, data: TrialData, config: Config, best: float) -> float:
        """One trial of `config`; the seconds that the kernel takes. `best` seconds were reached before."""
        runner = self.build(task, config)
        with self.of("machine code"):
            runner.load()
        candidate = LocalCandidate(data, runner)
        with self.of("arguments"):
            candidate.prepare()
        with self.of("checking"):
            candidate.run()
            candidate.check()
        with self.of("timing"):
            times = adaptive_times(candidate, Measure(10.0, MeasureOptions().abandon_factor * best, best))
        return times.median

    def table(self) -> str:
        """A line a part, then the sum without `features`."""
        each = {part: self.seconds[part] / self.trials * 1e3 for part in PARTS}
        each[f"a trial, of {self.trials}"] = sum(each.values()) - each["features"]
        lines = [f"| {part} | {milliseconds:.1f} |" for part, milliseconds in each.items() if milliseconds]
        return "\n".join(["| part | CPU ms |", "|---|---|", *lines])


def measure(found: Sequence[Task], configs: int) -> Cost:
    """Trials of the default config of each task and of `configs` random ones."""
    cost, rng = Cost(), Random(0)
    gc.freeze()  # As workers do.
    for task in found:
        tried = [task.space.default, *(task.space.random(rng) for _ in range(configs))]
        if not runs_here(task.target):
            for config in tried:
                cost.build(task, config)
            continue
        with cost.of("reference"):
            data = trial_data(task.kernel, 0)
        best = float("inf")
        for config in tried:
            best = min(best, cost.trial(task, data, config, best))
    return cost


def _cpu_seconds() -> float:
    """Of this process and of compilers that it started and that have ended."""
    children = getrusage(RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--configs", type=int, default=4, help="random configs of each task")
    parser.add_argument("--target", default="llvm", help="default: this CPU")
    parser.add_argument("--precision", choices=PRECISIONS, default="exact")
    options = parser.parse_args()
    target = as_target(options.target)
    kernels = static_kernels(load_model(options.model, {}), target, options.precision)
    print(measure(tasks(kernels, target), options.configs).table())


if __name__ == "__main__":
    main()
