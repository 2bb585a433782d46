"""TVM's RPC tracker and servers as processes of this machine."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tcomp.errors import DeviceError
from tcomp.tuner.rpc_tracker import RpcTracker
from tcomp.tuner.runners.rpc import RpcRunner
from tcomp.tvm_api import rpc

NEEDED = ("cloudpickle", "psutil", "tornado")
"""What TVM's tracker and server import beyond TVM."""
needs_servers = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in NEEDED),
    reason=f"TVM's RPC tracker and server need {', '.join(NEEDED)}: pip install 'tcomp[rpc]'",
)


class Tracker:
    """A process of `tvm.exec.rpc_tracker` on this machine."""

    def __init__(self, folder: Path) -> None:
        self._process, self.port = start("tvm.exec.rpc_tracker", folder)
        wait_for(lambda: RpcTracker("127.0.0.1", self.port).list_keys() == [], folder)

    def registered(self) -> set[int]:
        """The ports of its servers."""
        servers = rpc.connect_tracker("127.0.0.1", self.port).summary()["server_info"]
        return {server["addr"][1] for server in servers}

    def close(self) -> None:
        end(self._process)


class Servers:
    """Processes of `tvm.exec.rpc_server` on this machine, all of one tracker, whose port is `port`."""

    def __init__(self, tracker: Tracker, folder: Path) -> None:
        self.port = tracker.port
        self._tracker = tracker
        self._folder = folder
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def add(self, key: str, python: str = sys.executable) -> int:
        """Start a server; answers its port once it is registered."""
        arguments = ["--key", key, "--tracker", f"127.0.0.1:{self.port}"]
        process, port = start("tvm.exec.rpc_server", self._folder, *arguments, python=python)
        self._processes[port] = process
        wait_for(lambda: port in self._tracker.registered(), self._folder)
        return port

    def kill(self, port: int) -> None:
        end(self._processes[port])

    def close(self) -> None:
        """The tracker has none of these servers afterwards."""
        for process in self._processes.values():
            end(process)
        wait_for(lambda: not self._processes.keys() & self._tracker.registered(), self._folder)


def start(
    module: str, folder: Path, *arguments: str, python: str = sys.executable
) -> tuple[subprocess.Popen[bytes], int]:
    """A process of a module of TVM, and the port that it listens on. It finds no torch: that is slow."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "torch.py").write_text("raise ImportError('not needed here')\n")
    modules = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    place = ["--host", "127.0.0.1", "--port", str(port), "--port-end", str(port + 1)]
    with (folder / f"{port}.log").open("wb") as log:
        process = subprocess.Popen(
            [python, "-m", module, *place, *arguments],
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": modules},
        )
    return process, port


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill `process` and those that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for(ready: Callable[[], bool], folder: Path, seconds: float = 300) -> None:
    """Returns when `ready`; fails with the logs in `folder` when that takes too long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(DeviceError):
            if ready():
                return
        time.sleep(0.2)
    logs = {path.name: path.read_text()[-500:] for path in folder.glob("*.log")}
    pytest.fail(f"no answer within {seconds} s: {logs}")


def runner_of(servers: Servers, key: str = "board") -> RpcRunner:
    return RpcRunner("127.0.0.1", servers.port, key, wait_seconds=30, move_seconds=4)
