"""The worker process: builds, checks and times kernels that may crash, hang or eat memory.

It runs `main` with a socket to its parent, answers one request at a time and ends when the socket closes
or, on Linux, when the parent dies in any way.
"""

from __future__ import annotations

import gc
import importlib
import os
import resource
import signal
import sys
from collections import OrderedDict
from dataclasses import dataclass
from math import ceil
from multiprocessing.connection import Connection
from statistics import median

from tcomp.codegen.jit import build_scheduled
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tensor.template import schedule
from tcomp.tuner.records import Check, Status, Times, times_of
from tcomp.tuner.trial_data import TrialData, compare, is_wrong, trial_data

_KEPT_BYTES = 256 << 20
"""Data of tasks that a worker keeps, so that turning to one again costs nothing."""
OUT_OF_MEMORY = ("bad_alloc", "MemoryError", "Cannot allocate memory", "Failed to allocate")
"""What C++, Python, the system and TVM say when memory is refused."""
_ADDRESS_SPACE_FACTOR = 2
"""Address space of a worker per byte of its memory limit: the parent ends it at the limit, by name, before
that; this stops what grows faster than the parent looks."""


@dataclass(frozen=True)
class Setup:
    """First request: where to run and what to import before anything else."""

    memory_limit: int
    core: int | None
    plugins: tuple[str, ...]


@dataclass(frozen=True)
class Prepare:
    """Make inputs and reference outputs of a kernel ready under the name `task`."""

    task: str
    kernel: Kernel
    target: Target
    seed: int


@dataclass(frozen=True)
class Build:
    """Schedule and compile the prepared `task` with `config`."""

    task: str
    config: Config


@dataclass(frozen=True)
class Measure:
    """Run, check and time what was built last; above `abandon_above` seconds it need not be precise."""

    abandon_above: float
    minimum_seconds: float = 0.012
    repeats: int = 5


@dataclass(frozen=True)
class Race:
    """Build all `configs` of a prepared task and time them in turns."""

    task: str
    configs: tuple[Config, ...]
    rounds: int = 9
    round_seconds: float = 0.01


@dataclass(frozen=True)
class Ready:
    """Setup or preparation is done."""


@dataclass(frozen=True)
class Built:
    """Code is there."""


@dataclass(frozen=True)
class Measured:
    """Times of a kernel whose numbers are right."""

    seconds: Times
    check: Check


@dataclass(frozen=True)
class Raced:
    """Times and check of each config of a race."""

    results: tuple[tuple[Times, Check], ...]


@dataclass(frozen=True)
class Failed:
    """A trial that ended in the worker with a reason, and left the worker alive."""

    status: Status
    reason: str
    check: Check | None = None


Request = Setup | Prepare | Build | Measure | Race
Reply = Ready | Built | Measured | Raced | Failed


@dataclass(frozen=True)
class _Prepared:
    kernel: Kernel
    target: Target
    data: TrialData


class Worker:
    """Answers requests one after the other."""

    def __init__(self) -> None:
        self._tasks: OrderedDict[str, _Prepared] = OrderedDict()
        self._built: _Candidate | None = None

    def answer(self, request: Request) -> Reply:
        if isinstance(request, Setup):
            set_up(request)
            return Ready()
        if isinstance(request, Prepare):
            return self._prepare(request)
        if isinstance(request, Build):
            return self._build(request)
        if isinstance(request, Measure):
            return self._measure(request)
        return self._race(request)

    def _prepare(self, request: Prepare) -> Reply:
        if request.task not in self._tasks:
            try:
                data = trial_data(request.kernel, request.seed)
            except Exception as error:
                return _failed("run_error", error)
            self._tasks[request.task] = _Prepared(request.kernel, request.target, data)
            while len(self._tasks) > 1 and sum(t.data.nbytes for t in self._tasks.values()) > _KEPT_BYTES:
                self._tasks.popitem(last=False)
        self._tasks.move_to_end(request.task)
        return Ready()

    def _build(self, request: Build) -> Reply:
        self._built = None
        try:
            self._built = _Candidate(self._tasks[request.task], request.config)
        except Exception as error:
            return _failed("build_error", error)
        return Built()

    def _measure(self, request: Measure) -> Reply:
        if self._built is None:
            raise RuntimeError("measure without a successful build")
        candidate = self._built
        try:
            candidate.run()
            check = candidate.check()
            if is_wrong(check):
                return _wrong(check)
            return Measured(_time(candidate, request), check)
        except Exception as error:
            return _failed("run_error", error)

    def _race(self, request: Race) -> Reply:
        try:
            candidates = [_Candidate(self._tasks[request.task], c) for c in request.configs]
            for candidate in candidates:
                candidate.run()
            firsts = [c.time(number=1, repeat=1)[0] for c in candidates]
            checks = [c.check() for c in candidates]
            for check in checks:
                if is_wrong(check):
                    return _wrong(check)
            numbers = [max(1, round(request.round_seconds / max(f, 1e-9))) for f in firsts]
            rounds = [
                [
                    candidate.time(number, repeat=1)[0]
                    for candidate, number in zip(candidates, numbers, strict=True)
                ]
                for _ in range(request.rounds)
            ]
        except Exception as error:
            return _failed("run_error", error)
        return Raced(tuple(zip(_race_times(rounds, numbers), checks, strict=True)))


class _Candidate:
    """A built config with its machine code and its arguments."""

    def __init__(self, prepared: _Prepared, config: Config) -> None:
        scheduled = schedule(prepared.kernel, prepared.target, config)
        self._data = prepared.data
        self._runner = build_scheduled(prepared.kernel, scheduled, prepared.target)
        self._runner.load()
        self._arguments = self._runner.prepare(self._data.inputs)

    def run(self) -> None:
        self._runner.run_prepared(self._arguments)

    def time(self, number: int, repeat: int) -> list[float]:
        """Seconds of one run, averaged over `number`, `repeat` times, after a run that is not counted."""
        return self._runner.time_prepared(self._arguments, number=number, repeat=repeat)

    def clock(self, repeat: int) -> list[float]:
        """Seconds of each of `repeat` runs, measured from Python; for kernels that take milliseconds."""
        return self._runner.clock_prepared(self._arguments, repeat)

    def check(self) -> Check:
        """The error of the outputs of the last run."""
        first_output = len(self._arguments) - len(self._data.expected)
        return compare(self._data, [t.numpy() for t in self._arguments[first_output:]])


def _wrong(check: Check) -> Failed:
    reason = f"max error {check.max_error:.3g} of the output's scale, allowed {check.tolerance:.3g}"
    return Failed("wrong", reason, check)


def _time(candidate: _Candidate, request: Measure) -> Times:
    """Time adaptively: enough runs for `minimum_seconds`, again while the spread stays above 5%.

    A candidate that is slow in its first two runs gets no more of them. It ran once before, for its numbers.
    """
    firsts = candidate.clock(repeat=2)
    fastest = max(min(firsts), 1e-9)
    repeats, number = request.repeats, max(1, ceil(request.minimum_seconds / (request.repeats * fastest)))
    if fastest > request.abandon_above and number * repeats * fastest > request.minimum_seconds / 4:
        return times_of([fastest], runs=2)
    # One run of a slow kernel is a sample; many runs of a fast one are timed from C.
    samples = firsts if number == 1 else []
    while True:
        missing = repeats - len(samples) % repeats
        samples += candidate.clock(missing) if number == 1 else candidate.time(number, missing)
        times = times_of(samples, runs=number * len(samples))
        steady = times.spread < 0.05 or times.median > request.abandon_above
        if steady or len(samples) >= 3 * repeats:
            return times


def _race_times(rounds: list[list[float]], numbers: list[int]) -> list[Times]:
    """Times of each candidate from rounds in which all ran one after the other.

    Their ratio to the first candidate in the same round decides: what slows the machine down for a while
    slows both. `median` is the first one's median times the median ratio, `spread` that of the ratio.
    """
    first = median(times[0] for times in rounds)
    results = [times_of([times[0] for times in rounds], numbers[0] * len(rounds))]
    for index, number in enumerate(numbers[1:], start=1):
        ratio = times_of([times[index] / times[0] for times in rounds], number * len(rounds))
        fastest = min(times[index] for times in rounds)
        results.append(Times(first * ratio.median, fastest, ratio.spread, ratio.runs))
    return results


def _failed(status: Status, error: Exception) -> Failed:
    """The failure of a stage that otherwise gives `status`; memory that ran out is told apart."""
    reason = one_line(error)
    out_of_memory = isinstance(error, MemoryError) or any(m in reason for m in OUT_OF_MEMORY)
    return Failed("memory" if out_of_memory else status, reason)


def one_line(error: BaseException) -> str:
    """The last line of an error's text, where TVM and LLVM say what happened, with its class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:300]


def set_up(request: Setup) -> None:
    """Leave no core files, stay within memory, sit on one core, import plugins."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = _address_space() + _ADDRESS_SPACE_FACTOR * request.memory_limit
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    if request.core is not None:
        os.sched_setaffinity(0, {request.core})
    for plugin in request.plugins:
        importlib.import_module(plugin)
    gc.freeze()  # The collector need not look at hundreds of thousands of imported objects again and again.


def _address_space() -> int:
    """Bytes of address space in use."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def serve(connection: Connection[Reply, Request]) -> None:
    """Answer requests until the parent closes the connection."""
    worker = Worker()
    while True:
        try:
            request = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        connection.send(worker.answer(request))


def main() -> None:
    """Serve on the socket whose file descriptor is the only argument."""
    serve(Connection(int(sys.argv[1])))
