"""`--runner rpc://HOST:PORT/KEY`: candidates run on the boards that TVM's RPC tracker lends under KEY.

Each measurement borrows one board, the next free one: as many measure at the same time as there are boards,
and the trial of a board that is lost is tried again on another. A race runs on one board.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any, TypeVar

from tcomp.codegen.toolchain import find_toolchain
from tcomp.errors import DeviceError, TargetError, UsageError
from tcomp.target.target import Target
from tcomp.tensor.knobs import Config
from tcomp.tuner.rpc_candidates import CpuCandidate, GpuCandidate, RpcCandidate, last_line, require_remote_gpu
from tcomp.tuner.rpc_tracker import RpcTracker, within
from tcomp.tuner.runner import (
    RUNNERS,
    Device,
    Failed,
    Measure,
    Measured,
    Prepared,
    Raced,
    Rounds,
    Runner,
    Station,
)
from tcomp.tuner.timing import TimingStation
from tcomp.tvm_api import rpc, rpc_error, rpc_timeout

_WAIT_SECONDS = 60.0
"""For a board that is free."""
_CONNECT_SECONDS = 10.0
_MOVE_SECONDS = 15.0
"""For a candidate, its inputs and its outputs on the way."""
_GRACE_SECONDS = 5.0
"""A server ends a candidate by itself after the limit of its session. One that has not after this is lost."""
_PORT = 9190
_BIG_CORES = 1
"""TVM's word for the fastest cores of a board with several kinds."""


@dataclass(frozen=True)
class RpcRunner(Runner):
    """The boards registered under `key` at the tracker at `host`."""

    host: str
    port: int
    key: str
    wait_seconds: float = _WAIT_SECONDS
    move_seconds: float = _MOVE_SECONDS
    places: int | None = None
    overhead_seconds: float = _WAIT_SECONDS + _CONNECT_SECONDS + _MOVE_SECONDS + 2 * _GRACE_SECONDS

    def connect(self, targets: Sequence[Target]) -> Device:
        for target in targets:
            find_toolchain(target)
        keys = RpcTracker(self.host, self.port).list_keys()
        if self.key not in keys:
            found = f"it has {', '.join(keys)}" if keys else "it has none at all"
            raise DeviceError(
                f"no server with key `{self.key}` at the tracker {self.host}:{self.port}; {found}: "
                f"start `python -m tvm.exec.rpc_server --tracker {self.host}:{self.port} --key {self.key}`"
            )
        board = _Board(self, _CONNECT_SECONDS)
        machine = board.machine()
        for target in targets:
            if machine not in ("", target.machine):
                raise TargetError(
                    f"`{target.name}` is for {target.machine}, servers of key `{self.key}` are {machine}; "
                    "give their target with --target"
                )
            if target.gpu is not None:
                board.require_gpu(target)
        return Device(self.key)

    def open(self, folder: Path, threads: int) -> Station[Any]:
        return _RpcStation(self, folder, threads)


class _Board:
    """A session of a server, which ends it after `seconds`.

    Raises DeviceError when no server is free in time.
    """

    def __init__(self, runner: RpcRunner, seconds: float) -> None:
        deadline = monotonic() + runner.wait_seconds
        tracker = RpcTracker(runner.host, runner.port)
        while True:
            host, port, match = tracker.request(runner.key, deadline - monotonic())
            self._address = host, port
            self.name = f"{host}:{port}"
            # A server that is gone may still be registered; the tracker has others, or says that it has none.
            with suppress(RuntimeError, DeviceError), within(_CONNECT_SECONDS, self.name):
                self.session: Any = rpc.connect(host, port, match, session_timeout=seconds)
                return

    def machine(self) -> str:
        """The architecture of the server, as `Target.machine`; empty when it holds only TVM's runtime."""
        with within(_CONNECT_SECONDS, self.name):
            try:
                triple = self.session.get_function("target.llvm_get_system_triple")
            except AttributeError:
                return ""
            architecture = str(triple()).split("-")[0]
        return "arm" if architecture.startswith("arm") else architecture

    def require_gpu(self, target: Target) -> None:
        """Raise TargetError when the server has no GPU that runs code for `target`."""
        with TemporaryDirectory(prefix="tcomp-rpc-") as folder, within(_CONNECT_SECONDS, self.name):
            require_remote_gpu(self.session, target, Path(folder))

    def listens(self) -> bool:
        """Whether the server is there: then a session that ended was ended by what ran in it."""
        try:
            socket.create_connection(self._address, _CONNECT_SECONDS).close()
        except OSError:
            return False
        return True


_Result = TypeVar("_Result")


class _RpcStation(TimingStation[RpcCandidate]):
    def __init__(self, runner: RpcRunner, folder: Path, threads: int) -> None:
        self._runner = runner
        self._folder = folder
        self._threads = threads
        self._board: _Board | None = None

    def build(self, prepared: Prepared, config: Config) -> RpcCandidate:
        kind = CpuCandidate if prepared.target.gpu is None else GpuCandidate
        return kind.build(prepared, config, self._folder)

    def conditions(self) -> Mapping[str, str]:
        return {} if self._board is None else {"server": self._board.name}

    def measure(self, candidate: RpcCandidate, request: Measure) -> Measured | Failed:
        timed = super().measure
        measured = self._on_a_board([candidate], request.seconds_limit, lambda: timed(candidate, request))
        if isinstance(measured, Failed):
            return measured
        return replace(measured, conditions={**candidate.conditions(), **measured.conditions})

    def race(self, candidates: Sequence[RpcCandidate], request: Rounds) -> Raced | Failed:
        timed = super().race
        seconds = request.seconds_limit * len(candidates)
        return self._on_a_board(candidates, seconds, lambda: timed(candidates, request))

    def _on_a_board(
        self, candidates: Sequence[RpcCandidate], seconds: float, work: Callable[[], _Result]
    ) -> _Result | Failed:
        """What `work` answers with the candidates loaded on one board, which may take `seconds`."""
        limit = seconds + self._runner.move_seconds
        self._board = board = _Board(self._runner, limit)
        try:
            with within(limit + _GRACE_SECONDS, f"the server {board.name}"):
                board.session.get_function("runtime.config_threadpool")(_BIG_CORES, self._threads)
                for number, candidate in enumerate(candidates):
                    candidate.load(board.session, f"candidate{number}.so")
                return work()
        except rpc_timeout:
            return Failed("timeout", f"no answer of {board.name} in {limit:g} s")
        except rpc_error:
            raise  # The server is well, the candidate is not.
        except RuntimeError as error:
            reason = f"the session on {board.name} ended: {last_line(error)}"
            if board.listens():
                return Failed("crash", reason)
            raise DeviceError(reason) from error
        finally:
            for candidate in candidates:
                candidate.unload()
            self._board = None


def _parse(text: str) -> Runner:
    match = re.fullmatch(r"//([^:/\s]+|\[[0-9a-fA-F:]+\])(?::(\d{1,5}))?/([^/\s:]+)", text)
    if match is None:
        raise UsageError(f"runner `rpc:{text}` does not read as rpc://HOST:PORT/KEY")
    return RpcRunner(match[1].strip("[]"), int(match[2] or _PORT), match[3])


RUNNERS.register("rpc", _parse)
