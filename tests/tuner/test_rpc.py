"""Measuring on the boards of a TVM RPC tracker: what is asked of it, servers that vanish, wrong numbers."""

from __future__ import annotations

import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_template import fake_kernel
from rpc_servers import Servers, needs_servers, runner_of

from tcomp.cli import main
from tcomp.codegen.toolchain import find_toolchain
from tcomp.errors import BuildError, DeviceError, TargetError, UsageError
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.printer import save_graph
from tcomp.target.parse import parse_target
from tcomp.target.target import Target
from tcomp.tuner.measure import MeasureOptions, WorkerPool
from tcomp.tuner.records import read_log
from tcomp.tuner.rpc_tracker import RpcTracker, within
from tcomp.tuner.runner import parse_runner
from tcomp.tuner.runners.rpc import RpcRunner
from tcomp.tuner.task import Task
from tcomp.tvm_api import rpc_protocol


@contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Generator[int, None, None]:
    """A port of this machine where each connection is given to `answer`."""

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, suppress(OSError):
                    answer(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def tracker_with(*keys: str) -> Callable[[socket.socket], None]:
    """Answers summaries with servers of `keys`; lends none of them."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(rpc_protocol.recvall(connection, 4))
        (code, *_) = rpc_protocol.recvjson(connection)
        if code == rpc_protocol.TrackerCode.SUMMARY:
            servers = [{"key": f"server:{key}", "addr": ["10.0.0.1", 9090]} for key in keys]
            rpc_protocol.sendjson(connection, [0, {"server_info": servers, "queue_info": {}}])
        connection.recv(1)

    return answer


@pytest.mark.parametrize(
    ("text", "runner"),
    [
        ("rpc://board:9191/pi-5", RpcRunner("board", 9191, "pi-5")),
        ("rpc://10.1.2.3/pi", RpcRunner("10.1.2.3", 9190, "pi")),
        ("rpc://[::1]:9190/pi", RpcRunner("::1", 9190, "pi")),
    ],
)
def test_reads_addresses(text: str, runner: RpcRunner) -> None:
    assert parse_runner(text) == runner


@pytest.mark.parametrize(
    "text", ["rpc", "rpc://board", "rpc://board:9190/", "rpc://:9190/pi", "rpc:board:1/pi"]
)
def test_refuses_other_addresses(text: str) -> None:
    with pytest.raises(UsageError, match="does not read as rpc://HOST:PORT/KEY"):
        parse_runner(text)


def test_an_unknown_key_is_told_with_those_that_are_there(target: Target) -> None:
    with listening(tracker_with("pi-5", "pixel", "pi-5")) as port:
        assert RpcTracker("127.0.0.1", port).list_keys() == ["pi-5", "pixel"]
        with pytest.raises(DeviceError, match=r"no server with key `pi` at .*; it has pi-5, pixel: start"):
            RpcRunner("127.0.0.1", port, "pi").connect([target])
    with listening(tracker_with()) as port, pytest.raises(DeviceError, match="it has none at all"):
        RpcRunner("127.0.0.1", port, "pi").connect([target])


def test_what_does_not_answer_is_told(target: Target) -> None:
    with (
        listening(lambda connection: connection.sendall(b"HTTP")) as port,
        pytest.raises(DeviceError, match="is no TVM RPC tracker"),
    ):
        RpcRunner("127.0.0.1", port, "pi").connect([target])
    with pytest.raises(DeviceError, match=rf"the tracker 127.0.0.1:{port} does not answer: .*refused; start"):
        RpcRunner("127.0.0.1", port, "pi").connect([target])


def test_waits_only_so_long_for_a_board(target: Target) -> None:
    with listening(tracker_with("pi")) as port:
        runner = RpcRunner("127.0.0.1", port, "pi", wait_seconds=0.2)
        begin = time.monotonic()
        with pytest.raises(DeviceError, match="no server with key `pi` became free within 0 s"):
            runner.connect([target])
        assert time.monotonic() - begin < 5


def test_a_block_that_takes_too_long_is_left() -> None:
    before = signal.getsignal(signal.SIGALRM)
    late = r"the server x does not answer within 0\.05 s"
    with pytest.raises(DeviceError, match=late), within(0.05, "the server x"):
        time.sleep(5)
    assert signal.getsignal(signal.SIGALRM) == before
    with within(0.05, "nothing"):
        pass
    time.sleep(0.1)


ARM_PYTHON = Path(__file__).resolve().parents[2] / "build" / "arm64-python" / "python"
"""What `scripts/arm64_python.py` makes."""


@contextmanager
def vanishing_server(tracker_port: int, key: str) -> Generator[list[bytes], None, None]:
    """A server that is gone, with all it listens on, as soon as a session has begun; lists the requests."""
    sessions: list[bytes] = []

    def ask(tracker: socket.socket, *message: Any) -> Any:
        rpc_protocol.sendjson(tracker, message)
        return rpc_protocol.recvjson(tracker)

    def serve() -> None:
        with listener, suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                rpc_protocol.recvall(connection, 4)
                (length,) = struct.unpack("<i", rpc_protocol.recvall(connection, 4))
                sessions.append(rpc_protocol.recvall(connection, length))
                name = f"server:{key}".encode()
                connection.sendall(struct.pack("<ii", rpc_protocol.RPC_CODE_SUCCESS, len(name)) + name)
                connection.recv(8)

    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(("127.0.0.1", tracker_port)) as tracker,
    ):
        port, codes = listener.getsockname()[1], rpc_protocol.TrackerCode
        tracker.sendall(struct.pack("<i", rpc_protocol.RPC_TRACKER_MAGIC))
        rpc_protocol.recvall(tracker, 4)
        ask(tracker, codes.UPDATE_INFO, {"key": f"server:{key}", "addr": [None, port]})
        ask(tracker, codes.PUT, key, [port, f"{key}:first"], None)
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield sessions
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


@needs_servers
@pytest.mark.slow
def test_each_misbehaviour_has_its_status(target: Target, options: MeasureOptions, servers: Servers) -> None:
    """The server that a crash ends is not asked again; the other one goes on."""
    ports = {servers.add("board"), servers.add("board")}
    task = Task.of(fake_kernel(), target)
    behaviours = ("ok", "wrong", "refuse", "hang", "parallel", "crash", "ok")
    with WorkerPool(replace(options, runner=runner_of(servers), workers=1)) as pool:
        assert pool.connect([target]).name == "board"
        outcomes = list(pool.measure(task, [{"work": 8, "behaviour": b} for b in behaviours]))
        raced = pool.race(task, [{"work": w, "behaviour": "ok"} for w in (1, 32)])
    assert [(o.config["behaviour"], o.status) for o in outcomes] == [
        ("ok", "ok"), ("wrong", "wrong"), ("refuse", "build_error"), ("hang", "timeout"), ("parallel", "ok"),
        ("crash", "crash"), ("ok", "ok"),
    ]  # fmt: skip
    assert outcomes[1].check is not None
    assert "max error" in outcomes[1].reason
    used = {o.conditions["server"] for o in outcomes if o.status == "ok"}
    assert used <= {f"127.0.0.1:{port}" for port in ports}
    assert [o.status for o in raced] == ["ok", "ok"]
    assert raced[0].median < raced[1].median


@needs_servers
@pytest.mark.slow
def test_a_trial_whose_board_vanishes_is_tried_on_another(
    target: Target, options: MeasureOptions, servers: Servers
) -> None:
    task = Task.of(fake_kernel(), target)
    with (
        vanishing_server(servers.port, "board") as sessions,
        WorkerPool(replace(options, runner=runner_of(servers))) as pool,
    ):
        port = servers.add("board")
        (outcome,) = pool.measure(task, [{"work": 8, "behaviour": "ok"}])
    assert len(sessions) == 1
    assert (outcome.status, outcome.conditions["server"]) == ("ok", f"127.0.0.1:{port}")


@needs_servers
@pytest.mark.slow
def test_boards_measure_at_once_and_killed_ones_are_left(
    target: Target, options: MeasureOptions, servers: Servers
) -> None:
    ports = [servers.add("board"), servers.add("board")]
    task = Task.of(fake_kernel(), target)
    configs = [{"work": w, "behaviour": "ok"} for w in (1, 2, 4, 8, 16, 32)]
    with WorkerPool(replace(options, runner=runner_of(servers), workers=2)) as pool:
        first = list(pool.measure(task, configs))
        servers.kill(ports[0])
        second = list(pool.measure(task, configs))
    assert {o.status for o in first} == {"ok"}
    assert {o.conditions["server"] for o in first} == {f"127.0.0.1:{port}" for port in ports}
    assert [(o.status, o.conditions["server"]) for o in second] == [("ok", f"127.0.0.1:{ports[1]}")] * 6
    servers.kill(ports[1])
    hasty = replace(runner_of(servers), wait_seconds=1.0)
    with (
        WorkerPool(replace(options, runner=hasty, workers=2)) as pool,
        pytest.raises(DeviceError, match=r"lost 3 times in a row"),
    ):
        list(pool.measure(task, configs))


@needs_servers
@pytest.mark.slow
def test_tune_records_the_key_and_the_board(servers: Servers, tmp_path: Path) -> None:
    port = servers.add("board")
    builder = GraphBuilder("mlp")
    weights = builder.constant(np.ones((64, 32), np.float32))
    model, log = tmp_path / "mlp.relay", tmp_path / "mlp.jsonl"
    save_graph(builder.build(builder.op("matmul", builder.input("x", (8, 64)), weights)), model)
    runner = f"rpc://127.0.0.1:{servers.port}/board"
    assert main(["tune", str(model), "--runner", runner, "--trials", "2", "--log", str(log)]) == 0
    records = read_log(log).records
    assert {(r.device, r.status, r.simulated) for r in records} == {("board", "ok", False)}
    assert {r.conditions["server"] for r in records} == {f"127.0.0.1:{port}"}
    assert main(["tune", str(model), "--runner", f"{runner}er", "--log", str(log)]) == 2


@needs_servers
@pytest.mark.slow
def test_servers_of_another_architecture_are_refused(servers: Servers) -> None:
    servers.add("board")
    target = parse_target("arm64-linux")
    with pytest.raises(TargetError, match="is for aarch64, servers of key `board` are"):
        runner_of(servers).connect([target])


@needs_servers
@pytest.mark.slow
@pytest.mark.skipif(not ARM_PYTHON.exists(), reason="no Python for ARM: python scripts/arm64_python.py")
def test_a_server_for_arm(options: MeasureOptions, servers: Servers) -> None:
    """The server runs under qemu, so that its times mean nothing; numbers and names must be right."""
    target = parse_target("arm64-linux")
    try:
        find_toolchain(target)
    except BuildError as error:
        pytest.skip(str(error))
    servers.add("board", str(ARM_PYTHON))
    runner = replace(runner_of(servers), move_seconds=60.0)
    task = Task.of(fake_kernel(), target)
    configs = [{"work": 8, "behaviour": b} for b in ("ok", "wrong", "ok")]
    with WorkerPool(replace(options, runner=runner, trial_seconds=60)) as pool:
        assert pool.connect([target]).name == "board"
        outcomes = list(pool.measure(task, configs))
    assert [o.status for o in outcomes] == ["ok", "wrong", "ok"]
    with pytest.raises(TargetError, match="servers of key `board` are aarch64"):
        runner.connect([parse_target("armv7-linux")])
