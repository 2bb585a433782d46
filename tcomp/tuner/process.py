"""The parent's side of a worker process: start it, talk to it with a time limit, bury it."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tcomp.tuner.records import Status
from tcomp.tuner.task import Identity
from tcomp.tuner.worker import OUT_OF_MEMORY

_COMMAND = (
    "import sys; from tcomp.tuner.lifeline import end_with; end_with(int(sys.argv[2]))\n"
    "from {module} import {function}; {function}()"
)
_EXIT_GRACE_SECONDS = 10.0
_POLL_SECONDS = 0.03
"""How often the memory of workers and the wish of the user to stop are looked at."""


@dataclass(frozen=True)
class Died:
    """A worker that ended or had to be ended, instead of an answer."""

    status: Status
    reason: str


class WorkerProcess:
    """A process that runs `entry`, by default a worker's function. `stage` names what it is doing, `prepared`
    the task whose data it holds, `folder` where it may keep files.

    It is in a session of its own, so that Ctrl-C in a terminal reaches only the parent.
    """

    def __init__(
        self, core: int | None, threads: int, memory_limit: int, entry: str = "tcomp.tuner.worker.main"
    ) -> None:
        self.core = core
        self.memory_limit = memory_limit
        self.stage = "starting"
        self.prepared: Identity | None = None
        self._limit = self._deadline = float("inf")
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `stop`)
        self._folder = tempfile.TemporaryDirectory(prefix="tcomp-worker-")
        self.folder = Path(self._folder.name)
        connection, theirs = Pipe()
        self.connection: Connection[Any, Any] = connection
        environment = dict(os.environ) | {
            "PYTHONPATH": os.pathsep.join(sys.path),
            "TVM_NUM_THREADS": str(threads),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        module, _, function = entry.rpartition(".")
        command = _COMMAND.format(module=module, function=function)
        self._process = subprocess.Popen(
            [sys.executable, "-c", command, str(theirs.fileno()), str(os.getpid())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._messages,
            env=environment,
            start_new_session=True,
        )
        theirs.close()

    def send(self, request: object, stage: str, seconds: float) -> None:
        """Send a request that must be answered within `seconds`."""
        self.stage, self._limit = stage, seconds
        self._deadline = time.monotonic() + seconds
        # A worker that died while idle is reported when its answer is waited for.
        with suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(request)

    @property
    def seconds_left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def receive(self) -> object:
        """The answer that is there, or `Died`."""
        try:
            return self.connection.recv()
        except (EOFError, ConnectionResetError):
            reason = self._why_it_ended()
            return Died("memory" if any(m in reason for m in OUT_OF_MEMORY) else "crash", reason)

    def beyond_limits(self) -> Died | None:
        """Why the process must be ended although it has not answered, if it must."""
        if time.monotonic() > self._deadline:
            return Died("timeout", f"no answer in {self._limit:g} s while {self.stage}")
        if self._resident_bytes() > self.memory_limit:
            mebibytes = self.memory_limit >> 20
            return Died("memory", f"took more than the memory limit of {mebibytes} MiB while {self.stage}")
        return None

    def _resident_bytes(self) -> int:
        """Physical memory in use; 0 where the system does not say."""
        try:
            pages = Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]
        except (OSError, IndexError):
            return 0
        return int(pages) * resource.getpagesize()

    def _why_it_ended(self) -> str:
        try:
            status = self._process.wait(_EXIT_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            return f"closed its connection while {self.stage}"
        cause = f"exit status {status}"
        if status < 0:
            cause = f"killed by {signal.Signals(-status).name}"
        message = self._last_message()
        return f"{cause} while {self.stage}" + (f": {message}" if message else "")

    def _last_message(self) -> str:
        """The last line on standard error that is not part of a stack trace."""
        self._messages.seek(0)
        lines = self._messages.read().decode(errors="replace").splitlines()
        said = [s for s in map(str.strip, lines) if s and not s.startswith(("File ", "Traceback"))]
        return said[-1][:200] if said else ""

    def kill(self) -> None:
        """Kill the process, with compilers and emulators that it started."""
        with suppress(
            ProcessLookupError
        ):  # It is the leader of a group, which is there as long as any of it.
            os.killpg(self._process.pid, signal.SIGKILL)

    def stop(self) -> None:
        """Kill the process and wait for its end, but not for ever."""
        self.kill()
        with suppress(subprocess.TimeoutExpired):  # A GPU's driver may not let go of it while a kernel hangs.
            self._process.wait(_EXIT_GRACE_SECONDS)
        self.connection.close()
        self._messages.close()
        self._folder.cleanup()


def next_messages(
    processes: Sequence[WorkerProcess], tick: Callable[[], None]
) -> list[tuple[WorkerProcess, object]]:
    """Wait for at least one of busy `processes` to answer, end, or pass its limit of time or memory.

    `tick` is called many times a second meanwhile.
    """
    while True:
        tick()
        left = min(p.seconds_left for p in processes)
        messages = messages_within(processes, min(left, _POLL_SECONDS))
        if messages:
            return messages


def messages_within(processes: Sequence[WorkerProcess], seconds: float) -> list[tuple[WorkerProcess, object]]:
    """What busy `processes` answer within `seconds`, and which of them ended or passed a limit."""
    ready = wait([p.connection for p in processes], timeout=seconds)
    messages: list[tuple[WorkerProcess, object]] = [
        (p, p.receive()) for p in processes if p.connection in ready
    ]
    answered = {p for p, _ in messages}
    ended = [(p, p.beyond_limits()) for p in processes if p not in answered]
    return messages + [(p, died) for p, died in ended if died is not None]


def available_cores() -> list[int | None]:
    """The cores this process may run on; one unbound place where the system does not say."""
    if not hasattr(os, "sched_getaffinity"):
        return [None]
    return list(sorted(os.sched_getaffinity(0)))
