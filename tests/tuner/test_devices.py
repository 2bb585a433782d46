"""Devices behind `adb` and `ssh`: stand-ins, for which a folder plays the device and qemu runs programs."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stand_in import install

from tcomp.cli import main
from tcomp.codegen.toolchain import Toolchain, find_static_toolchain
from tcomp.errors import BuildError, DeviceError, TargetError, UsageError
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.printer import save_graph
from tcomp.target.parse import parse_target
from tcomp.tensor.kernel import Kernel
from tcomp.tuner.device import Identity, State, conditions
from tcomp.tuner.loop import TuneOptions, tune
from tcomp.tuner.measure import MeasureOptions, WorkerPool
from tcomp.tuner.progress import DoubtfulTimes, Event
from tcomp.tuner.records import read_log
from tcomp.tuner.runner import Failed, ended_by, parse_runner
from tcomp.tuner.task import Task

TARGET = parse_target("cortex-a76")
CPU = "sys/devices/system/cpu/cpu{}/cpufreq/"
ZONE = "sys/class/thermal/thermal_zone0/"
CPUINFO = "".join(
    f"processor\t: {i}\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd fphp asimdhp asimddp\nCPU part\t: {part}\n\n"
    for i, part in enumerate(("0xd0b", "0xd0b", "0xd05", "0xd05"))
)


def board(governor: str = "performance", celsius: float = 45.0) -> dict[str, str]:
    """The files of a board with two large cores, which this machine has too, and two small ones."""
    files = {
        "proc/cpuinfo": CPUINFO,
        "sys/firmware/devicetree/base/model": "Some Board\0",
        f"{ZONE}type": "cpu-thermal\n",
        f"{ZONE}temp": f"{celsius * 1000:.0f}\n",
        f"{ZONE}trip_point_0_type": "passive\n",
        f"{ZONE}trip_point_0_temp": "80000\n",
    }
    for cpu, clock in enumerate((2400000, 2400000, 1800000, 1800000)):
        files |= {f"{CPU.format(cpu)}scaling_governor": governor + "\n"}
        names = ("scaling_cur_freq", "scaling_max_freq", "cpuinfo_max_freq")
        files |= {f"{CPU.format(cpu)}{name}": f"{clock}\n" for name in names}
    return files


def facts(files: dict[str, str]) -> str:
    """What the script IDENTITY prints of these files."""
    lines = ["fact machine aarch64", *(f"cpuinfo {line}" for line in CPUINFO.splitlines())]
    return "\n".join(
        [*lines, *(f"fact /{p} {t.strip(chr(0)).strip()}" for p, t in files.items() if "sys" in p)]
    )


def product() -> Task:
    """[24, 32] by constant [32, 48]."""
    b = GraphBuilder()
    out = b.op("matmul", b.input("a", (24, 32)), b.input("b", (32, 48)))
    return Task.of(Kernel(b.build(out), frozenset({1})), TARGET)


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that plays the device."""
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("no qemu-aarch64: apt-get install qemu-user")
    try:
        find_static_toolchain(TARGET)
    except BuildError as error:
        pytest.skip(str(error))
    commands = install(tmp_path, board())
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "device"


def measuring(name: str) -> MeasureOptions:
    return MeasureOptions(parse_runner(name), trial_seconds=60)


def test_names_of_hosts() -> None:
    for bad in ("ssh", "ssh:host", "ssh://", "ssh://-oProxyCommand=x", "ssh://host:port", "ssh://a b"):
        with pytest.raises(UsageError, match=r"does not read as ssh://\[USER@\]HOST"):
            parse_runner(bad)


def test_the_core_of_the_target_is_measured_on() -> None:
    identity = Identity.of(facts(board()))
    assert (identity.machine, identity.model) == ("aarch64", "Some Board")
    assert identity.cpus(TARGET) == (0, 1)
    assert identity.cpus(parse_target("cortex-a55")) == (2, 3)
    assert identity.cpus(parse_target("cortex-x2")) == (0, 1), "none there: the fastest"
    assert replace(identity, parts=dict.fromkeys(range(4), 0xD0B)).cpus(TARGET) == ()
    identity.require([TARGET], "a board")
    with pytest.raises(TargetError, match=r"a board lacks bf16, i8mm of target `cortex-x2`"):
        identity.require([parse_target("cortex-x2")], "a board")
    with pytest.raises(TargetError, match="calls itself aarch64, and target `x86-64-v3` is for x86_64"):
        identity.require([parse_target("x86-64-v3")], "a board")


def test_signals_say_what_became_of_a_program() -> None:
    assert ended_by(signal.SIGALRM).status == "timeout"
    assert ended_by(signal.SIGKILL).status == "memory"
    illegal = ended_by(signal.SIGILL)
    assert (illegal.status, "lacks" in illegal.reason) == ("crash", True)
    assert ended_by(signal.SIGSEGV) == Failed("crash", "killed by SIGSEGV")
    assert ended_by(99) == Failed("crash", "killed by signal 99")


def test_governor_and_temperature_are_looked_at() -> None:
    cool = State.of(facts(board()), (0, 1))
    assert conditions(cool, cool, (0, 1)) == {
        "governor": "performance",
        "clock": "2400 MHz",
        "temperature": "45.0 C",
        "cpus": "0,1",
    }
    hot = State.of(facts(board(celsius=81.5)))
    assert conditions(cool, hot, ())["temperature"] == "81.5 C"
    assert "hot" in conditions(cool, hot, ())["warning"]
    assert "hot" not in conditions(cool, State.of(facts(board(celsius=79.0))), ()).get("warning", "")
    limited = board() | {f"{CPU.format(cpu)}scaling_max_freq": "1600000" for cpu in (0, 1)}
    assert "clock limited" in conditions(cool, State.of(facts(limited), (0, 1)), ())["warning"]
    lazy = State.of(facts(board("schedutil")))
    assert "governor is not `performance`" in conditions(lazy, lazy, ())["warning"]
    assert conditions(State.of(""), State.of(""), ()) == {}


def test_no_trial_waits_for_the_first_program(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    linked: list[Toolchain] = []
    monkeypatch.setattr("tcomp.codegen.benchmark.link_static", lambda toolchain, *_: linked.append(toolchain))
    parse_runner("adb").connect([TARGET])
    assert linked == [find_static_toolchain(TARGET)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adb:0123", "ssh://pi@board:2222"])
def test_tunes_on_a_device(name: str, device: Path, tmp_path: Path) -> None:
    log, events, task = tmp_path / "log.jsonl", list[Event](), product()
    options = TuneOptions(trials=3, finalists=1, measure=measuring(name))
    (result,) = tune([task], log, options, events.append)
    records = read_log(log).records
    assert {r.status for r in records} == {"ok"}
    assert result.trials == 3
    assert result.record is not None
    assert {(r.device, r.simulated) for r in records} == {("Some Board", False)}
    assert all(r.check is not None and r.check.max_error < 1e-5 for r in records)
    assert all(r.seconds is not None and r.seconds.runs >= 2 and r.seconds.median > 0 for r in records)
    assert {r.conditions["governor"] for r in records} == {"performance"}
    assert {r.conditions["cpus"] for r in records} == {"0,1"}
    assert not any(isinstance(e, DoubtfulTimes) for e in events)
    assert not list(device.rglob("tcomp-*")), "nothing is left on the device"


@pytest.mark.slow
def test_says_when_times_are_doubtful(device: Path, tmp_path: Path) -> None:
    for cpu in range(4):
        (device / CPU.format(cpu) / "scaling_governor").write_text("schedutil\n")
    log, events = tmp_path / "log.jsonl", list[Event]()
    tune([product()], log, TuneOptions(trials=2, finalists=0, measure=measuring("adb")), events.append)
    (warning,) = (e for e in events if isinstance(e, DoubtfulTimes))
    assert "governor is not `performance`" in warning.reason
    assert {r.conditions["governor"] for r in read_log(log).records} == {"schedutil"}


@pytest.mark.slow
def test_a_device_that_goes_away_costs_one_attempt(device: Path, tmp_path: Path) -> None:
    task = product()
    with WorkerPool(measuring("adb")) as pool:
        first = next(iter(pool.measure(task, [task.space.default])))
        (device / "lost").write_text("1")
        with pytest.raises(DeviceError, match=r"the phone is lost: adb: no devices/emulators found; lost 3"):
            list(pool.measure(task, [task.space.default, task.space.default]))
        (device / "lost").unlink()
        shutil.rmtree(device / "data/local/tmp")
        (device / "data/local/tmp").mkdir()
        back = next(iter(pool.measure(task, [task.space.default])))
    assert (first.status, back.status) == ("ok", "ok")


def test_no_device_is_one_line(device: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (device / "lost").write_text("0")
    b, model = GraphBuilder("m"), tmp_path / "model.relay"
    weights = b.constant(np.ones((32, 48), np.float32))
    save_graph(b.build(b.op("matmul", b.input("a", (24, 32)), weights)), model)
    arguments = ["tune", str(model), "--target", "cortex-a76", "--log", str(tmp_path / "log")]
    assert main([*arguments, "--trials", "1", "--runner", "ssh://board"]) == 2
    assert "board is lost: ssh: connect to host board port 22: No route to host" in capsys.readouterr().err
