"""Everything that needs a GPU, in one command: `python scripts/gpu_check.py [--trials N] [--seconds S]`.

First the tests marked `gpu` and what else the emulated GPU runs, for at most a third of `--seconds`, then a
table of kernels, in passes, of which each makes the rows better: the default config of every kernel; that
beside PyTorch, which calls cuBLAS, cuDNN and FlashAttention, where it is installed; the best of `--trials`
random legal configs, or of as many as its share of the time allows, beside both; with `--triton` the kernel
which PyTorch's compiler finds among Triton's. A row also has what the best is of the card's peak for the
type, the algorithms of the default and, where it has another, of the best, and which PyTorch ran in what
precision. Below, for each kind of kernel the geometric mean of the ratios of PyTorch's time to the best,
beside what it should be. Operations are counted as those of direct convolution. Times are medians by CUDA
events with the L2 cache cold, those beside PyTorch's in turns, random data.

Kernels run in processes of the tuner's kind: one that breaks off, hangs or computes wrong numbers is named
in its row, with its config, and costs no other; `--select NAME --config JSON` runs it again. After
`--seconds` nothing goes on. With `--json FILE` the table is written there after each row. Ctrl-C and SIGTERM
print what there is. Ends with status 1 when a test failed or a kernel did, 130 when it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from random import Random
from statistics import geometric_mean
from typing import Any

from gpu_script import OutOfTime, add_json, add_seconds, gpu_here, selected, tick_until, write_json
from gpu_trials import TOLERANCE, TORCH, TRITON, CheckRunner
from tcomp.errors import BuildError, DeviceError, TcompError
from tcomp.relay.builder import GraphBuilder
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tuner.measure import GIB, Job, MeasureOptions, Outcome, TaskError, WorkerPool
from tcomp.tuner.task import Task

ROOT = Path(__file__).parent.parent
WORKERS = 6
"""Processes that build; one of them measures. More would wait for it."""
TRIAL_SECONDS, TRITON_SECONDS = 20.0, 180.0
"""Limits of building, and of checking and timing."""
PLUGINS: tuple[str, ...] = ()
"""Modules that these processes import first."""
TORCH_SECONDS = 120.0
"""In which PyTorch must have started once, its libraries read from the disk."""
MEMORY_BYTES = 16 * GIB
"""Of a process: PyTorch with its libraries, and the largest operands a few times."""
GOALS = {
    "square products": 1.0,
    "products of models": 1.1,
    "convolutions, 1 image": 1.0,
    "convolutions, 32 images": 1.0,
    "attention": 1.0,
    "rows": 1.0,
}
"""The ratio of PyTorch's time to tcomp's that each kind of kernel should have in the mean."""


@dataclass(frozen=True)
class Case:
    """An operator on tensors of these shapes. `kind` is one of `GOALS`.

    `dtype` is that of products; tensors of `tf32` are float32.
    """

    kind: str
    name: str
    op: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    attrs: Mapping[str, Any]
    weights: tuple[int, ...] = (1,)

    @property
    def kernel(self) -> Kernel:
        g = GraphBuilder(self.op)
        is_tf32 = self.dtype == "tf32"
        inputs = [
            g.input(f"x{i}", s, "float32" if is_tf32 else self.dtype) for i, s in enumerate(self.shapes)
        ]
        attrs = {**self.attrs, "multiply_as": "tf32"} if is_tf32 else self.attrs
        return Kernel(g.build(g.op(self.op, *inputs, **attrs)), frozenset(self.weights))


@dataclass(frozen=True)
class Problem:
    """What became of a config of which there is no time."""

    config: Config
    status: str
    reason: str

    def __str__(self) -> str:
        return f"{self.status}: {self.reason}; with --config '{json.dumps(self.config)}'"


@dataclass(frozen=True)
class Row:
    """Seconds of a case; None where there is nothing yet, or never will be because of `problems`.

    `configs` had right numbers; `algorithms` are the templates of the default and the best of them.
    `conditions` are what the default takes of a multiprocessor, and the clock while it ran; `torch_as` says
    which PyTorch ran, and in what precision.
    """

    kind: str
    name: str
    default: float | None
    best: float | None
    torch: float | None
    triton: float | None
    teraflops: float
    of_peak: float
    configs: int
    algorithms: tuple[str, ...]
    best_config: Config | None = None
    conditions: Mapping[str, str] = field(default_factory=dict[str, str])
    problems: tuple[Problem, ...] = ()
    torch_as: str = ""


@dataclass
class Entry:
    """What is known of a case. `raced`: seconds of `default`, `best`, `torch`, in turns, and of `triton`.
    `torch_as`: as `Row.torch_as`."""

    case: Case
    task: Task
    default: Config
    outcomes: list[Outcome] = field(default_factory=list[Outcome])
    raced: dict[str, float] = field(default_factory=dict[str, float])
    problems: list[Problem] = field(default_factory=list[Problem])
    torch_as: str = ""
    passed: set[str] = field(default_factory=set[str])
    """The passes that it had."""

    @property
    def right(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.status == "ok"]

    @property
    def best(self) -> Outcome | None:
        return min(self.right, key=lambda outcome: outcome.median, default=None)

    @property
    def row(self) -> Row:
        case, best, target = self.case, self.best, self.task.target
        first = next((o for o in self.right if o.config == self.default), None)
        default = self.raced.get("default", first.median if first is not None else None)
        # A race tells more than trials of their own: the best there may not be the best of trials.
        times = [self.raced[name] for name in ("default", "best") if name in self.raced]
        seconds = min(times) if times else (best.median if best is not None else None)
        peak = target.gpu.flops[case.dtype] if target.gpu is not None else 0.0
        rate = self.task.flops / seconds if seconds else 0.0
        winner = best.config if best is not None and seconds != self.raced.get("default") else self.default
        algorithms = (self.task.template_of(self.default), self.task.template_of(winner))
        return Row(
            case.kind, case.name, default, seconds, self.raced.get("torch"), self.raced.get("triton"),
            rate / 1e12, rate / peak if peak else 0.0, len(self.right), tuple(dict.fromkeys(algorithms)),
            winner if seconds else None, first.conditions if first is not None else {}, tuple(self.problems),
            self.torch_as,
        )  # fmt: skip


def matmul(m: int, n: int, k: int, dtype: str) -> Case:
    kind = "square products" if m == n == k else "products of models"
    return Case(kind, f"matmul {m}x{n}x{k} {dtype}", "matmul", ((m, k), (k, n)), dtype, {})


def conv(
    channels: int, filters: int, size: int, kernel: int, stride: int, dtype: str, images: int = 1
) -> Case:
    kind = "convolutions, 1 image" if images == 1 else f"convolutions, {images} images"
    name = f"conv {images}x {channels}->{filters} {size}x{size} {kernel}x{kernel}/{stride} {dtype}"
    shapes = ((images, channels, size, size), (filters, channels, kernel, kernel))
    attrs = {"strides": (stride,) * 2, "padding": (kernel // 2,) * 4}
    return Case(kind, name, "conv2d", shapes, dtype, attrs)


def rows(op: str, shape: tuple[int, int], dtype: str) -> Case:
    return Case("rows", f"{op} {shape[0]}x{shape[1]} {dtype}", op, (shape,), dtype, {"axis": 1}, ())


def attention(heads: int, length: int, size: int, dtype: str, causal: bool = False) -> Case:
    shape, attrs = (1, heads, length, size), {"scale": size**-0.5, "causal": int(causal)}
    name = f"attention {heads} heads {length}x{size}{' causal' if causal else ''} {dtype}"
    return Case("attention", name, "attention", (shape,) * 3, dtype, attrs, ())


LAYERS = (
    (3, 64, 224, 7, 2), (64, 64, 56, 3, 1), (64, 256, 56, 1, 1), (128, 128, 28, 3, 1),
    (256, 256, 14, 3, 1), (512, 512, 7, 3, 1), (1024, 256, 14, 1, 1),
)  # fmt: skip
"""Convolutions of ResNet-50."""
CASES = (
    *(matmul(n, n, n, dtype) for dtype in TOLERANCE for n in (2048, 4096, 8192)),
    *(
        matmul(m, n, k, dtype)
        for dtype in ("float16", "float32")
        for m, n, k in ((128, 768, 768), (128, 3072, 768), (128, 768, 3072), (1, 1000, 2048))
    ),
    *(
        conv(*layer, dtype, images)
        for images in (1, 32)
        for dtype in ("float16", "float32")
        for layer in LAYERS
    ),
    *(
        attention(*sizes, dtype)
        for dtype in ("float16", "float32")
        for sizes in ((12, 128, 64), (16, 1024, 64), (16, 4096, 64), (16, 4096, 128))
    ),
    attention(16, 4096, 128, "float16", causal=True),
    rows("softmax", (4096, 4096), "float32"),
)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=16, help="random configs of each kernel (default 16)")
    add_seconds(parser, 420)
    parser.add_argument("--select", default="", help="only kernels in whose name this occurs")
    parser.add_argument("--config", type=json.loads, help="JSON: the config to take for the default one")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--no-tests", action="store_true", help="only the table")
    which.add_argument("--no-table", action="store_true", help="only the tests, for all of the seconds")
    parser.add_argument("--triton", action="store_true", help="time Triton's too, which takes long to find")
    add_json(parser)
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    end = time.monotonic() + arguments.seconds
    target = gpu_here()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    entries = [entry_of(case, target, arguments.config) for case in selected(CASES, arguments.select)]
    failed, stopped = False, 0
    try:
        if arguments.no_table:
            return int(not tests_pass(arguments.seconds))
        if not arguments.no_tests:
            failed = not tests_pass(arguments.seconds / 3)
        print(heads(target))
        check_in_spite(Table(entries, target, arguments.json), end, arguments.trials, arguments.triton)
    except OutOfTime:
        print("out of time")
    except TcompError as error:
        print(error)
        failed = True
    except KeyboardInterrupt:
        print("interrupted")
        stopped = 130
    found = [entry.row for entry in entries]
    print("\n".join(["", heads(target), *map(line, found), means(found)]))
    return stopped or int(failed or any(row.problems for row in found))


def torch_has_gpu() -> bool:
    """Asked in a process of its own, so that this one holds none of the GPU's memory; says why not."""
    if find_spec("torch") is None:
        print("PyTorch is not installed; nothing is compared with it")
        return False
    command = [sys.executable, "-c", "import torch; torch.ones(1, device='cuda'); print('runs')"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TORCH_SECONDS)
    except subprocess.TimeoutExpired:
        print(f"PyTorch does not start in {TORCH_SECONDS:.0f} s; nothing is compared with it")
        return False
    runs = said.stdout.strip() == "runs"
    if not runs:
        last = (said.stderr.strip().splitlines() or [f"exit status {said.returncode}"])[-1]
        print(f"PyTorch does not run on this GPU, nothing is compared with it: {last}")
    return runs


def tests_pass(seconds: float) -> bool:
    """Run what is marked `gpu`, and what else the emulated GPU runs; end it after so long."""
    # Compiling takes most time.
    parallel = ["-n", str(min(8, os.cpu_count() or 1))] if find_spec("xdist") else []
    # Names as tests end, and where one hangs: what is ended has no summary.
    said = ["-v", "--tb=short", "-o", "faulthandler_timeout=45", "-p", "sticky_errors"]
    # Warnings of packages that this machine has in other versions are no failures.
    chosen = ["-W", "default", "--real-gpu", "-m", "gpu", *parallel, str(ROOT / "tests" / "cuda")]
    command = [sys.executable, "-m", "pytest", *said, *chosen]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "scripts"), *sys.path])}
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, env=environment)
    try:
        return process.wait(seconds) == 0
    except subprocess.TimeoutExpired:
        print(f"the tests take more than {seconds:.0f} s and are ended")
        return False
    finally:
        with suppress(ProcessLookupError):  # Those that hold the GPU are of its group.
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def entry_of(case: Case, target: Target, config: Config | None = None) -> Entry:
    """The case before anything is known of it; `config` stands for its default."""
    task = Task.of(case.kernel, target)
    return Entry(case, task, task.space.default if config is None else config)


class Table:
    """The rows, printed and, into `file`, written whole whenever one changes."""

    def __init__(self, entries: Sequence[Entry], target: Target, file: Path | None = None) -> None:
        self.entries, self.target, self._file = entries, target, file

    def left(self, name: str) -> list[Entry]:
        """Those that did not have this pass."""
        return [entry for entry in self.entries if name not in entry.passed]

    def changed(self, entry: Entry, name: str) -> None:
        """This pass is over for `entry`."""
        entry.passed.add(name)
        print(line(entry.row), flush=True)
        write_json(self._file, [asdict(one.row) for one in self.entries])


def check_in_spite(table: Table, end: float, trials: int, triton: bool) -> None:
    """As `check`; processes that do not start are tried once more, and then without PyTorch."""
    has_torch = torch_has_gpu()
    for with_torch in (has_torch, has_torch, False):
        options = MeasureOptions(
            runner=CheckRunner(with_torch=with_torch),
            workers=min(WORKERS, os.cpu_count() or 1),
            trial_seconds=TRIAL_SECONDS,
            memory_limit=MEMORY_BYTES,
            plugins=PLUGINS,
        )
        try:
            return check(table, options, end, trials, triton)
        except (BuildError, DeviceError) as error:
            print(f"{error}; what was found is kept")
            lost = error
    raise lost


def check(table: Table, options: MeasureOptions, end: float, trials: int, triton: bool = False) -> None:
    """All passes over the cases of `table` that they have not had.

    Raises OutOfTime at the moment `end`, by the monotonic clock; BuildError and DeviceError as the pool does.
    """
    with_torch = isinstance(options.runner, CheckRunner) and options.runner.with_torch
    with workers(options, end) as pool:
        defaults(table, pool)
        if with_torch:
            print("beside PyTorch, in turns")
            for entry in table.left("torch"):
                race(entry, pool, with_torch)
                table.changed(entry, "torch")
        if trials:
            print(f"up to {trials} random configs of each")
            left = table.left("others")
            for number, entry in enumerate(left):
                share = (end - time.monotonic()) / (len(left) - number)
                if try_others(entry, pool, trials, share):
                    race(entry, pool, with_torch)
                table.changed(entry, "others")
    if triton and with_torch:
        print("Triton's")
        with workers(replace(options, workers=1, trial_seconds=TRITON_SECONDS), end) as pool:
            for entry in table.left("triton"):
                (outcome,) = measured(pool, entry, [TRITON])
                if outcome.status == "ok":
                    entry.raced["triton"] = outcome.median
                else:
                    entry.problems.append(Problem(outcome.config, outcome.status, outcome.reason))
                table.changed(entry, "triton")


@contextmanager
def workers(options: MeasureOptions, end: float) -> Generator[WorkerPool]:
    with WorkerPool(options, tick_until(end)) as pool:
        yield pool


def defaults(table: Table, pool: WorkerPool) -> None:
    """Check and time the default config of each case."""
    of = {entry.task: entry for entry in table.entries}
    jobs = (Job(entry.task, entry.default) for entry in table.left("default"))
    for job, outcome in pool.run(lambda: next(jobs, None)):
        note(of[job.task], _outcome(job, outcome), is_default=True)
        table.changed(of[job.task], "default")


def try_others(entry: Entry, pool: WorkerPool, trials: int, seconds: float) -> bool:
    """Check and time random configs, of which none begins after `seconds`; whether one beats the default."""
    begin, random, before = time.monotonic(), Random(0), entry.best
    known = before.median if before is not None else float("inf")
    configs = (entry.task.space.random(random) for _ in range(trials))

    def source() -> Job | None:
        if time.monotonic() - begin > seconds or (config := next(configs, None)) is None:
            return None
        return Job(entry.task, config, known)

    for job, outcome in pool.run(source):
        note(entry, _outcome(job, outcome), is_default=False)
    return entry.best is not before


def _outcome(job: Job, outcome: Outcome | TaskError) -> Outcome:
    return Outcome(job.config, "run_error", str(outcome)) if isinstance(outcome, TaskError) else outcome


def note(entry: Entry, outcome: Outcome, is_default: bool) -> None:
    """Of random configs, those that spill are no problem: tuning drops them."""
    entry.outcomes.append(outcome)
    if outcome.status != "ok" and (is_default or outcome.status != "build_error"):
        entry.problems.append(Problem(outcome.config, outcome.status, outcome.reason))


def race(entry: Entry, pool: WorkerPool, with_torch: bool) -> None:
    """Time the default, the best and PyTorch in turns, those of them that there are."""
    runs = {"torch": TORCH} if with_torch else {}
    if entry.best is not None and entry.best.config != entry.default:
        runs["best"] = entry.best.config
    if any(outcome.config == entry.default for outcome in entry.right):
        runs = {"default": entry.default, **runs}
    if not runs:
        return
    try:
        outcomes = pool.race(entry.task, list(runs.values()))
    except TaskError as error:
        outcomes = [Outcome(config, "run_error", str(error)) for config in runs.values()]
    if any(outcome.status != "ok" for outcome in outcomes):
        # One breaks off, and none has a time: what was found before stays.
        last, reason = outcomes[-1], f"{outcomes[-1].reason}, in turns of {' and '.join(runs)}"
        entry.problems.append(Problem(last.config, last.status, reason))
        return
    for name, outcome in zip(runs, outcomes, strict=True):
        entry.raced[name] = outcome.median
        entry.torch_as = outcome.conditions.get("torch", entry.torch_as)


def measured(pool: WorkerPool, entry: Entry, configs: Sequence[Config]) -> list[Outcome]:
    try:
        return list(pool.measure(entry.task, configs))
    except TaskError as error:
        return [Outcome(config, "run_error", str(error)) for config in configs]


def heads(target: Target) -> str:
    names = (
        f"{'default':>10} {'best':>10} {'torch':>10} {'triton':>10} {'ratio':>6} {'TFLOP/s':>8} {'peak':>5}"
    )
    said = f"{target.description}, {target.name}: microseconds, L2 cold, medians"
    return f"{said}\n{'kernel':44} {names} algorithms"


def line(row: Row) -> str:
    def text(seconds: float | None) -> str:
        return "-" if seconds is None else f"{seconds * 1e6:.1f}"

    ratio = f"{row.torch / row.best:.2f}" if row.torch and row.best else "-"
    times = " ".join(f"{text(s):>10}" for s in (row.default, row.best, row.torch, row.triton))
    said = "; ".join(filter(None, [", ".join(row.algorithms), row.torch_as]))
    problems = [f"\n    {problem}" for problem in row.problems]
    return (
        f"{row.name:44} {times} {ratio:>6} {row.teraflops:8.1f} {row.of_peak:5.0%} {said}{''.join(problems)}"
    )


def means(found: Sequence[Row]) -> str:
    """A line for each kind of kernels that PyTorch ran too."""
    lines: list[str] = []
    for kind, goal in GOALS.items():
        ratios = [r.torch / r.best for r in found if r.kind == kind and r.torch and r.best]
        if ratios:
            mean, least = geometric_mean(ratios), min(ratios)
            lines.append(
                f"{kind:44} {mean:5.2f} of PyTorch's speed (should be {goal:.2f}; least {least:.2f})"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
