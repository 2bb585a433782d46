"""Asking TVM's RPC tracker for boards, and waiting for what may never answer."""

from __future__ import annotations

import signal
import socket
import struct
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from tcomp.errors import DeviceError
from tcomp.tvm_api import rpc_protocol

_ANSWER_SECONDS = 10.0


@contextmanager
def within(seconds: float, what: str) -> Generator[None, None, None]:
    """Raise DeviceError, which names `what`, when the block takes longer than `seconds`.

    TVM waits for answers without a limit, but lets signals through. They come to the main thread alone, so
    that there is no limit in others. Not to be nested.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def expire(number: int, frame: FrameType | None) -> None:
        raise DeviceError(f"{what} does not answer within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass(frozen=True)
class RpcTracker:
    """The tracker at an address. All methods raise DeviceError when it does not answer, or is none."""

    host: str
    port: int

    def list_keys(self) -> list[str]:
        """What the servers are registered under."""
        answer = self._ask([rpc_protocol.TrackerCode.SUMMARY], _ANSWER_SECONDS)
        servers: list[dict[str, str]] = answer["server_info"]
        return sorted({server["key"].partition(":")[2] for server in servers})

    def request(self, key: str, seconds: float) -> tuple[str, int, str]:
        """Host, port and password of a free server with `key`, waiting up to `seconds` for one."""
        message = f"no server with key `{key}` became free within {max(0.0, seconds):.0f} s"
        if seconds <= 0:
            raise DeviceError(f"{self}: {message}")
        request = [rpc_protocol.TrackerCode.REQUEST, key, "", 1]
        host, port, match = self._ask(request, seconds, message)
        return host, port, match

    def __str__(self) -> str:
        return f"the tracker {self.host}:{self.port}"

    def _ask(self, message: list[Any], seconds: float, late: str = "it does not answer") -> Any:
        try:
            with socket.create_connection((self.host, self.port), _ANSWER_SECONDS) as connection:
                connection.sendall(struct.pack("<i", rpc_protocol.RPC_TRACKER_MAGIC))
                (magic,) = struct.unpack("<i", rpc_protocol.recvall(connection, 4))
                if magic != rpc_protocol.RPC_TRACKER_MAGIC:
                    raise DeviceError(f"what listens at {self.host}:{self.port} is no TVM RPC tracker")
                rpc_protocol.sendjson(connection, message)
                connection.settimeout(seconds)
                status, *answer = rpc_protocol.recvjson(connection)
        except TimeoutError:
            raise DeviceError(f"{self}: {late}") from None
        except OSError as error:
            reason = error.strerror or str(error)
            start = f"start `python -m tvm.exec.rpc_tracker --host 0.0.0.0 --port {self.port}`"
            raise DeviceError(f"{self} does not answer: {reason}; {start}") from None
        if status != rpc_protocol.TrackerCode.SUCCESS:
            raise DeviceError(f"{self} refuses: {answer}")
        return answer[0]
