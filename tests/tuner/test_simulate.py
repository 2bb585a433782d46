"""Tuning without a device: what estimates reject, and that they never count as measurements."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest
from fake_template import fake_graph, fake_kernel
from record_samples import record
from recorded import SPACE, RecordedDevice

from tcomp.api import Choices
from tcomp.cli import main
from tcomp.codegen.emulation import Emulated, InstructionCounter, emulator_version
from tcomp.codegen.machine_code import find_llvm_mca
from tcomp.codegen.toolchain import Toolchain, find_static_toolchain
from tcomp.errors import BuildError, TargetError, UsageError
from tcomp.relay.builder import GraphBuilder
from tcomp.target.parse import parse_target
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tuner.lookup import Records, best_record, fastest_configs
from tcomp.tuner.loop import TuneOptions, tune
from tcomp.tuner.measure import MeasureOptions, WorkerPool
from tcomp.tuner.records import Record, read_log, write_log
from tcomp.tuner.replay import replay
from tcomp.tuner.runner import Device, Measure, Measured, Prepared, parse_runner
from tcomp.tuner.task import Task
from tcomp.tuner.trial_data import trial_data

A76 = parse_target("cortex-a76")


def require_tools() -> None:
    try:
        emulator_version(A76)
        find_static_toolchain(A76)
        find_llvm_mca()
    except BuildError as error:
        pytest.skip(str(error))


def product(target: Target) -> Task:
    """[96, 256] by constant [256, 96]."""
    b = GraphBuilder()
    out = b.op("matmul", b.input("a", (96, 256)), b.input("b", (256, 96)))
    return Task.of(Kernel(b.build(out), frozenset({1})), target)


@pytest.mark.slow
def test_rejects_tiles_that_spill_or_wait() -> None:
    """A tile of 8x16 sums leaves no register for operands, one of 4x4 waits for its own sums."""
    require_tools()
    # With more registers than there are, the template allows the tile that does not fit.
    task = product(replace(A76, vector_registers=48))
    tiles = {"8x12": (8, 3), "8x16": (8, 4), "4x4": (4, 1)}
    configs: dict[str, Config] = {
        name: {**task.space.default, "tile_rows": rows, "tile_vectors": vectors}
        for name, (rows, vectors) in tiles.items()
    }
    with WorkerPool(MeasureOptions(parse_runner("simulate"))) as pool:
        outcomes = [next(iter(pool.measure(task, [config]))) for config in configs.values()]
    found = dict(zip(configs, outcomes, strict=True))
    assert [o.status for o in outcomes] == ["ok"] * 3
    assert found["8x16"].median > 1.1 * found["8x12"].median
    assert found["4x4"].median > 1.5 * found["8x12"].median
    assert int(found["8x12"].conditions["stack_accesses"]) == 0
    assert int(found["8x16"].conditions["stack_accesses"]) > 0
    ideal = 96 * 256 * 96 / (4 * 2) / 2e9
    assert ideal < found["8x12"].median < 1.1 * ideal


@pytest.mark.slow
def test_tunes_without_a_device(tmp_path: Path) -> None:
    require_tools()
    log = tmp_path / "log.jsonl"
    options = TuneOptions(trials=3, measure=MeasureOptions(parse_runner("simulate")))
    (result,) = tune([product(A76)], log, options)
    records = read_log(log).records
    assert [(r.status, r.phase) for r in records] == [("ok", "trial")] * 3, "nothing is raced"
    assert {(r.device, r.simulated) for r in records} == {("simulated cortex-a76", True)}
    assert result.record is not None
    assert result.record.conditions["table"] == "llvm-mca neoverse-n1"


def test_no_trial_waits_for_the_first_program(monkeypatch: pytest.MonkeyPatch) -> None:
    require_tools()
    linked: list[Toolchain] = []
    monkeypatch.setattr("tcomp.codegen.benchmark.link_static", lambda toolchain, *_: linked.append(toolchain))
    parse_runner("simulate").connect([A76])
    assert linked == [find_static_toolchain(A76)]


def test_what_cannot_be_simulated() -> None:
    with pytest.raises(TargetError, match=r"`x86-64-v3` is not simulated, ARM is"):
        parse_runner("simulate").connect([parse_target("x86-64-v3")])
    with pytest.raises(UsageError, match="the target of --target is simulated"):
        parse_runner("simulate:pixel-6")
    pool = WorkerPool(MeasureOptions(parse_runner("simulate"), threads=2))
    with pytest.raises(UsageError, match="kernels of 1 thread, not of 2"):
        pool.connect([A76])


def simulated(median: float, **changes: object) -> Record:
    return replace(record(median, **changes), simulated=True, device="simulated core")


def test_a_measured_record_wins_over_simulated_ones() -> None:
    default, fast, faster = ({"work": w, "behaviour": "ok"} for w in (8, 4, 2))
    estimates = [simulated(4e-6, config=default), simulated(1e-9, config=faster)]
    measured = [record(4e-6, config=default), record(3e-6, config=fast)]
    assert best_record([*estimates, *measured], default) == measured[1]
    assert best_record([*estimates, measured[0]], default) == measured[0]
    assert best_record(estimates, default) == estimates[1]
    assert fastest_configs([*estimates, *measured], 1) == [fast]
    assert fastest_configs(estimates, 1) == [faster]


def test_the_lookup_says_what_was_estimated() -> None:
    task = product(A76)
    common = {
        "task": task.key, "isa": A76.isa, "template": task.template_of(task.space.default),
        "config": dict(task.space.default),
    }  # fmt: skip
    found = Records([simulated(1e-3, **common)]).lookup(task.kernel, A76, 1, "a board")
    assert (found.state, found.note) == ("hit", "not measured but estimated: simulated core")
    a55 = replace(simulated(1e-3, **common), device="simulated cortex-a55")
    mine = replace(simulated(2e-3, **common), device="simulated cortex-a76")
    assert Records([a55, mine]).best(task.kernel, A76, 1, "a board") == mine, "the same isa, another core"
    both = Records([simulated(1e-3, **common), record(2e-3, **common)])
    assert both.lookup(task.kernel, A76, 1, "some CPU").note == ""


@pytest.mark.parametrize("first", [True, False])
def test_estimates_and_times_do_not_mix_in_a_session(first: bool, tmp_path: Path) -> None:
    """A session learns only from records of its own kind; configs of the other kind are tried first."""
    log, task = tmp_path / "log.jsonl", Task(fake_kernel(), A76, "fake@1", SPACE)
    one, other = RecordedDevice(device=Device("x", first)), RecordedDevice(device=Device("x", not first))
    tune([task], log, TuneOptions(trials=12), measurer=one)
    tune([task], log, TuneOptions(trials=6), measurer=other)
    assert len(other.measured) == 6, "none of the other kind counts as a trial"
    assert other.measured[0] == SPACE.default
    assert other.measured[1] in one.measured


def test_the_command_line_says_what_was_estimated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log.jsonl"
    other = simulated(7e-6, task="(f32[8]) %1=relu(%0) -> %1")
    write_log(log, [simulated(1e-6), record(2e-6), other])
    assert main(["log", "best", str(log)]) == 0
    measured, _, estimated, _ = capsys.readouterr().out.splitlines()
    assert measured.split()[:2] == ["2.0", "us"]
    assert "simulated" not in measured
    assert estimated.split()[:2] == ["7.0", "us"]
    assert " simulated relu" in estimated
    assert main(["log", "stats", str(log)]) == 0
    assert "time            2  estimated" in capsys.readouterr().out
    assert main(["log", "prune", str(log)]) == 0
    assert len(read_log(log).records) == 3, "estimates and measurements are pruned apart"


def test_choices_and_replay_say_what_was_estimated() -> None:
    graph = fake_graph(64)
    task = fake_kernel(64).key
    target = replace(A76, isa="x86-64-v4")
    report = replay(graph, target, Records([simulated(1e-6, task=task)]))
    assert report.summary == "1 kernels: 1 hit (1 simulated)"
    choices = Choices({}, 1, 0, simulated=("simulated core",))
    assert str(choices).endswith("0 default; 1 not measured but estimated: simulated core")


@pytest.mark.slow
def test_numbers_of_poor_estimates_are_not_computed(tmp_path: Path) -> None:
    """And what is counted is the same."""
    require_tools()
    task = product(A76)
    prepared = Prepared(task.key, task.kernel, A76, trial_data(task.kernel, 0))
    station = parse_runner("simulate").open(tmp_path, 1)
    candidate = station.build(prepared, task.space.default)
    forever, inputs = float("inf"), tuple(0 * array for array in prepared.data.inputs)
    first = station.measure(candidate, Measure(10.0, forever))
    poor = station.measure(candidate, Measure(10.0, forever, best=first.seconds.median))
    assert poor == replace(first, check=None)
    better = station.measure(candidate, Measure(10.0, forever, best=1.01 * first.seconds.median))
    assert better == first
    assert better.check is not None
    damaged = replace(prepared, data=replace(prepared.data, inputs=inputs))
    outcome = station.measure(station.build(damaged, task.space.default), Measure(10.0, forever, best=1.0))
    assert outcome.status == "wrong"


def test_an_estimate_without_numbers_is_never_used(tmp_path: Path) -> None:
    default, fast = ({"work": w, "behaviour": "ok"} for w in (8, 4))
    poor = replace(simulated(1e-9, config=fast), check=None)
    records = [simulated(4e-6, config=default), poor]
    assert best_record(records, default) == records[0]
    assert best_record([poor], default) is None
    assert best_record([record(4e-6, config=default), replace(poor, simulated=False)], default) is not None
    log = tmp_path / "log.jsonl"
    write_log(log, records)
    assert main(["log", "prune", str(log), "--keep", "5"]) == 0
    assert list(read_log(log).records) == records[:1]


@pytest.mark.slow
def test_a_kernel_may_take_longer_than_a_trial_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Emulation is slow, so its own limit counts, and running into it is no crash."""
    require_tools()
    task = product(A76)
    prepared = Prepared(task.key, task.kernel, A76, trial_data(task.kernel, 0))
    station = parse_runner("simulate").open(tmp_path, 1)
    candidate = station.build(prepared, task.space.default)
    assert isinstance(station.measure(candidate, Measure(0.001, float("inf"))), Measured)
    monkeypatch.setattr(InstructionCounter, "run", lambda *_: Emulated(-signal.SIGALRM, "", "", ()))
    outcome = station.measure(candidate, Measure(10.0, float("inf")))
    assert (outcome.status, outcome.reason) == ("timeout", "ran longer than the limit of a trial")
