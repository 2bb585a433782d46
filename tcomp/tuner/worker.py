"""The worker process: has kernels built, checked and timed that may crash, hang or eat memory.

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
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tcomp.errors import DeviceError
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tuner.records import Status
from tcomp.tuner.runner import Failed, Measure, Measured, Prepared, Raced, Rounds, Runner, Station
from tcomp.tuner.task import Identity

_KEPT_BYTES = 256 << 20
"""Data of tasks that a worker keeps, so that turning to one again costs nothing."""
OUT_OF_MEMORY = ("bad_alloc", "MemoryError", "Cannot allocate memory", "Failed to allocate", "out of memory")
"""What C++, Python, the system, TVM and GPUs say when memory is refused."""
_ADDRESS_SPACE_FACTOR = 2
"""Address space of a worker per byte of its memory limit: the parent ends it at the limit, by name, before
that; this stops what grows faster than the parent looks."""


@dataclass(frozen=True)
class Setup:
    """First request: where to run, what to import before anything else, how to measure."""

    memory_limit: int
    core: int | None
    plugins: tuple[str, ...]
    runner: Runner
    folder: Path
    threads: int


@dataclass(frozen=True)
class Prepare:
    """Make inputs and reference outputs of a kernel ready under the name `task`."""

    task: Identity
    kernel: Kernel
    target: Target
    seed: int


@dataclass(frozen=True)
class Build:
    """Schedule and compile the prepared `task` with `config`."""

    task: Identity
    config: Config


@dataclass(frozen=True)
class Race:
    """Build all `configs` of a prepared task and time them in turns."""

    task: Identity
    configs: tuple[Config, ...]
    rounds: Rounds


@dataclass(frozen=True)
class Ready:
    """Setup or preparation is done."""


@dataclass(frozen=True)
class Built:
    """Code is there."""


@dataclass(frozen=True)
class Lost:
    """The device does not answer, or ended in the middle of a trial."""

    reason: str


Request = Setup | Prepare | Build | Measure | Race
Reply = Ready | Built | Measured | Raced | Failed | Lost


class Worker:
    """Answers requests one after the other."""

    def __init__(self) -> None:
        self._tasks: OrderedDict[Identity, Prepared] = OrderedDict()
        self._station: Station[Any] | None = None
        self._built: Any = None

    def answer(self, request: Request) -> Reply:
        if isinstance(request, Setup):
            set_up(request)
            self._station = request.runner.open(request.folder, request.threads)
            return Ready()
        if self._station is None:
            raise RuntimeError("a request before the setup")
        try:
            if isinstance(request, Prepare):
                return self._prepare(self._station, request)
            if isinstance(request, Build):
                return self._build(self._station, request)
            if isinstance(request, Measure):
                return self._measure(self._station, request)
            return self._race(self._station, request)
        except DeviceError as error:
            return Lost(str(error))

    def _prepare(self, station: Station[Any], request: Prepare) -> Reply:
        if request.target.gpu is not None:
            free_address_space()
        if request.task not in self._tasks:
            try:
                data = station.data(request.kernel, request.seed)
            except Exception as error:
                return _failed("run_error", error)
            self._tasks[request.task] = Prepared(request.kernel.key, request.kernel, request.target, data)
            while len(self._tasks) > 1 and sum(t.data.nbytes for t in self._tasks.values()) > _KEPT_BYTES:
                self._tasks.popitem(last=False)
        self._tasks.move_to_end(request.task)
        return Ready()

    def _build(self, station: Station[Any], request: Build) -> Reply:
        self._built = None
        try:
            self._built = station.build(self._tasks[request.task], request.config)
        except DeviceError:
            raise
        except Exception as error:
            return _failed("build_error", error)
        return Built()

    def _measure(self, station: Station[Any], request: Measure) -> Reply:
        if self._built is None:
            raise RuntimeError("measure without a successful build")
        try:
            return station.measure(self._built, request)
        except DeviceError:
            raise
        except Exception as error:
            return _failed("run_error", error)

    def _race(self, station: Station[Any], request: Race) -> Reply:
        try:
            candidates = [station.build(self._tasks[request.task], c) for c in request.configs]
            return station.race(candidates, request.rounds)
        except DeviceError:
            raise
        except Exception as error:
            return _failed("run_error", error)


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
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))
    if request.core is not None:
        os.sched_setaffinity(0, {request.core})
    for plugin in request.plugins:
        importlib.import_module(plugin)
    gc.freeze()  # The collector need not look at hundreds of thousands of imported objects again and again.


def free_address_space() -> None:
    """Lift the limit of `set_up`: a GPU's driver reserves addresses for all the memory that there is."""
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _address_space() -> int:
    """Bytes of address space in use."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def serve(answer: Callable[[Any], object]) -> None:
    """Answer requests on the socket that the first argument is the file descriptor of, until it is closed."""
    connection: Connection[object, Any] = Connection(int(sys.argv[1]))
    while True:
        try:
            request = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        connection.send(answer(request))


def main() -> None:
    """What a worker process runs."""
    serve(Worker().answer)
