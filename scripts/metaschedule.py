"""TVM's MetaSchedule as a searcher to compare with: the same compute, its own schedules, builder and runner.

It needs `pip install cloudpickle` beside TVM.
"""

from __future__ import annotations

import inspect
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule
from tvm.s_tir.transform import RemoveWeightLayoutRewriteBlock

from tcomp.relay.types import numpy_dtype
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.lower import lower_body, placeholders
from tcomp.tvm_api import te

BUILD_SECONDS = 120.0
"""After which a build is given up; the first one of a process begins with importing TVM."""


@dataclass(frozen=True)
class Found:
    """What a search of `trials` found.

    `curve` has the seconds since its start and the best kernel time so far, by MetaSchedule's own clock,
    after each round of measuring. `run` runs its best kernel so often and gives the seconds of one run; None
    when no trial succeeded, or when its rules cannot schedule the kernel.
    """

    trials: int
    curve: list[tuple[float, float]]
    run: Callable[[int], float] | None


@dataclass
class _Clock:
    """Listens to MetaSchedule's measuring."""

    started: float = field(default_factory=time.monotonic)
    trials: int = 0
    best: float = float("inf")
    curve: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])

    def hear(self, results: Any) -> None:
        self.trials += len(results)
        for result in results:
            if result.run_secs:
                self.best = min(self.best, float(np.median([float(s) for s in result.run_secs])))
        self.curve.append((time.monotonic() - self.started, self.best))


def search(kernel: Kernel, target: Target, trials: int, workers: int, folder: Path, seed: int = 0) -> Found:
    """Let MetaSchedule tune `kernel` for one thread: `workers` processes build, one measures.

    It may rearrange the constant operands as it likes, which costs it nothing, as for tcomp.
    """
    logging.getLogger("tvm").setLevel(logging.ERROR)

    def remember_modules() -> None:
        """Parsing TVM's scripted intrinsics asks 30,000 times which of all loaded modules a function is in:
        for minutes, in every process, unless the answers are kept."""
        if not hasattr(inspect.getmodule, "cache_info"):
            inspect.getmodule = lru_cache(maxsize=None)(inspect.getmodule)

    remember_modules()
    clock = _Clock()

    @derived_object
    class Listen(meta_schedule.measure_callback.PyMeasureCallback):
        def apply(self, scheduler: Any, task: int, candidates: Any, builds: Any, results: Any) -> None:
            clock.hear(results or [])

    tvm_target = tvm.target.Target({**target.llvm, "num-cores": 1})
    callbacks = [*meta_schedule.MeasureCallback.create("default"), Listen()]
    try:
        database = meta_schedule.tir_integration.tune_tir(
            compute(kernel),
            tvm_target,
            str(folder),
            max_trials_global=trials,
            num_trials_per_iter=min(trials, 32),
            builder=meta_schedule.builder.LocalBuilder(
                max_workers=workers, timeout_sec=BUILD_SECONDS, initializer=remember_modules
            ),
            measure_callbacks=callbacks,
            seed=seed,
        )
    except tvm.s_tir.ScheduleError as error:
        print(f"MetaSchedule cannot schedule {kernel.label}: {str(error).splitlines()[-1]}", file=sys.stderr)
        return Found(clock.trials, clock.curve, None)
    schedule = meta_schedule.tir_integration.compile_tir(database, compute(kernel), tvm_target)
    return Found(clock.trials, clock.curve, None if schedule is None else _runner(schedule, tvm_target))


def compute(kernel: Kernel) -> Any:
    """The kernel's operators as TVM states them, without any schedule."""
    inputs = placeholders(kernel)
    function = te.create_prim_func([*inputs, *lower_body(kernel, inputs)])
    free = sorted(kernel.constant_inputs)
    return function.with_attrs({"global_symbol": "main", "tirx.noalias": True, "layout_free_buffers": free})


def _runner(schedule: Any, target: Any) -> Callable[[int], float]:
    """Times the best kernel as its runner did: constants lie as the schedule wants them."""
    module = RemoveWeightLayoutRewriteBlock(skip_tensor_rewrite=True)(schedule.mod)
    library = tvm.compile(module, target=target)
    rng = np.random.default_rng(0)
    arguments = [
        tvm.runtime.tensor(rng.random([int(n) for n in p.shape]).astype(numpy_dtype(str(p.dtype))), tvm.cpu())
        for p in module["main"].params
    ]

    def seconds(number: int) -> float:
        return float(library.mod.time_evaluator("main", tvm.cpu(), number=number)(*arguments).mean)

    return seconds
