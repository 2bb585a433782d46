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


class Servers:
    """A tracker and processes of `tvm.exec.rpc_server`, all on this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.port = self._start("tracker", "tvm.exec.rpc_tracker")

    def add(self, key: str, python: str = sys.executable) -> int:
        """Start a server; answers its port once it is registered."""
        arguments = ["--key", key, "--tracker", f"127.0.0.1:{self.port}"]
        name = f"server{len(self._processes)}"
        port = self._start(name, "tvm.exec.rpc_server", *arguments, python=python)
        self._wait(lambda: port in self._registered())
        return port

    def _registered(self) -> list[int]:
        servers = rpc.connect_tracker("127.0.0.1", self.port).summary()["server_info"]
        return [server["addr"][1] for server in servers]

    def kill(self, port: int) -> None:
        process = next(p for name, p in self._processes.items() if name.endswith(f":{port}"))
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def close(self) -> None:
        for name in reversed(self._processes):
            self.kill(int(name.rpartition(":")[2]))

    def _start(self, name: str, module: str, *arguments: str, python: str = sys.executable) -> int:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        place = ["--host", "127.0.0.1", "--port", str(port), "--port-end", str(port + 1)]
        with (self._folder / f"{name}.log").open("wb") as log:
            self._processes[f"{name}:{port}"] = subprocess.Popen(
                [python, "-m", module, *place, *arguments],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if module.endswith("tracker"):
            self._wait(lambda: RpcTracker("127.0.0.1", port).list_keys() == [])
        return port

    def _wait(self, ready: Callable[[], bool], seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with suppress(DeviceError):
                if ready():
                    return
            time.sleep(0.2)
        logs = {path.name: path.read_text()[-500:] for path in self._folder.glob("*.log")}
        pytest.fail(f"no answer within {seconds} s: {logs}")


def runner_of(servers: Servers, key: str = "board") -> RpcRunner:
    return RpcRunner("127.0.0.1", servers.port, key, wait_seconds=30, move_seconds=4)
