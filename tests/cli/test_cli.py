"""The command line: exit status, one-line errors, and the whole way from graph to library."""

from __future__ import annotations

import io
import json
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tcomp.cli import commands, main
from tcomp.cli.tune import reporter
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.dims import symbol
from tcomp.relay.printer import save_graph
from tcomp.target.host import host_target
from tcomp.tuner.progress import TaskDone
from tcomp.tuner.provenance import device_name
from tcomp.tuner.records import read_log, write_log

COMMANDS = ["bench", "compile", "inspect", "log", "opt", "replay", "run", "targets", "tune", "verify"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A two-layer perceptron with a symbolic batch, as Relay text."""
    rng = np.random.default_rng(0)
    b = GraphBuilder("mlp")
    x = b.input("x", (symbol("batch"), 64))
    hidden = b.op("matmul", x, b.constant(rng.standard_normal((64, 96)).astype(np.float32), name="w1"))
    hidden = b.op("relu", b.op("add", hidden, b.constant(np.ones((1, 96), np.float32), name="b1")))
    out = b.op("matmul", hidden, b.constant(rng.standard_normal((96, 32)).astype(np.float32), name="w2"))
    path = tmp_path / "mlp.relay"
    save_graph(b.build(b.op("softmax", out, axis=1)), path)
    return path


def fails(capsys: pytest.CaptureFixture[str], *argv: str, status: int = 2) -> str:
    """Run a command line that must fail with one line on stderr; returns it."""
    assert main(argv) == status
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith(f"tcomp {argv[0]}: ")
    return captured.err


@pytest.mark.slow
def test_tasks_are_chosen_by_name_or_text(model: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    argv = [
        "tune",
        str(model),
        "--input-shape",
        "x:8,64",
        "--trials",
        "1",
        "--workers",
        "1",
        "--log",
        str(log),
    ]
    assert main([*argv, "--tasks", "const f32[96,32]"]) == 0
    assert {"const f32[96,32]" in r.task for r in read_log(log).records} == {True}


def test_every_command_is_there() -> None:
    assert list(commands()) == COMMANDS
    assert all(commands().values())


def test_facts_of_named_targets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets", "nvidia/a100", "raspberry-pi-5"]) == 0
    gpu, cpu = capsys.readouterr().out.split("\n\n")
    facts = {line[:15].strip(): line[16:] for line in gpu.splitlines()}
    assert facts["multiprocessors"] == "108"
    assert facts["shared memory"] == "164 KiB a multiprocessor, 163 KiB a block"
    assert facts["memory"] == "1555 GB/s"
    assert facts["plain float32"] == "19.5 TFLOP/s"
    assert "tf32 156 TFLOP/s" in facts["tensor cores"]
    assert "L1 64 KiB, L2 512 KiB" in cpu
    assert main(["targets", "nvidia/a1000"]) == 2
    assert "did you mean `nvidia/a100`" in capsys.readouterr().err


def test_ctrl_c_while_a_command_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tcomp.cli.importlib.import_module", interrupted)
    assert main(["targets"]) == 130
    assert capsys.readouterr().err == "tcomp targets: interrupted\n"


@pytest.mark.parametrize(
    ("argv", "limit"), [(["-m", "tcomp", "--help"], 0.3), (["-c", "import tcomp.runtime"], 0.4)]
)
def test_starts_quickly(argv: list[str], limit: float) -> None:
    """Seconds of CPU, the best of a few; the limits leave room for a busy machine."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *argv], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    assert min(seconds() for _ in range(5)) < limit


def test_graph_to_library(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    library, outputs = tmp_path / "mlp.so", tmp_path / "out.npz"
    shape = ["--input-shape", "x:8,64"]
    more = ["--bindings", "jni:com.app,swift", "--json"]
    assert main(["compile", str(model), *shape, "-o", str(library), *more]) == 0
    facts = json.loads(capsys.readouterr().out)
    sources = {Path(p).name for p in facts["bindings"]}
    assert sources >= {"Mlp.kt", "mlp_jni.c", "Mlp.swift"}
    assert facts["library_bytes"] == library.stat().st_size
    assert facts["arena_bytes"] >= facts["arena_lower_bound"]
    assert facts["streams"] == 1
    assert {p.name for p in tmp_path.iterdir()} >= {"mlp.so", "mlp.h", "tcomp.h"} | sources
    assert main(["run", str(library), "-o", str(outputs)]) == 0
    (scores,) = np.load(outputs).values()
    np.testing.assert_allclose(scores.sum(axis=1), np.ones(8), rtol=1e-5)
    assert main(["verify", str(model), *shape, "--against", "reference"]) == 0
    assert "ok: " in capsys.readouterr().out


@pytest.mark.slow
def test_bench_shows_where_time_goes(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = ["bench", str(model), "--input-shape", "x:8,64", "--per-op", "--rounds", "3"]
    assert main([*bench, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["times"]["tcomp"]["min"] <= report["times"]["tcomp"]["median"]
    assert sum("matmul" in step["label"] for step in report["steps"]) == 2
    for step in report["steps"]:
        assert step["seconds"] > 0
        assert step["floor"] == pytest.approx(step["roofline"] * step["seconds"])
        assert "@" in step["template"]
        assert step["config"] == {}
    first = next(step for step in report["steps"] if step["label"].startswith("matmul_add"))
    assert first["flops"] == 2 * 8 * 64 * 96 + 2 * 8 * 96
    assert first["nbytes"] == 4 * (8 * 64 + 64 * 96 + 8 * 96)  # a bias of equal elements is one number
    assert main(bench) == 0
    assert " us a run\n" in capsys.readouterr().out
    library = tmp_path / "mlp.so"
    assert main(["compile", str(model), "--input-shape", "x:8,64", "-o", str(library)]) == 0
    capsys.readouterr()
    assert main(["bench", str(library), "--per-op", "--json"]) == 0
    steps = json.loads(capsys.readouterr().out)["steps"]
    assert [set(step) for step in steps] == [{"label", "seconds"}] * len(report["steps"])


@pytest.mark.slow
def test_tune_replay_and_log(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = str(tmp_path / "mlp.jsonl")
    shape = ["--input-shape", "x:8,64"]
    tune = ["tune", str(model), *shape, "--log", log, "--json"]
    assert main([*tune, "--trials", "6"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sum(e["event"] == "trial-done" for e in events) == 6
    assert main([*tune, "--trials", "8"]) == 0
    again = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert again[0]["known"] == 6
    assert sum(e["event"] == "trial-done" for e in again) == 2
    assert main(["replay", str(model), *shape, "--log", log, "--strict"]) == 0
    assert (
        main(["compile", str(model), *shape, "--log", log, "--require-tuned", "-o", str(tmp_path / "m.so")])
        == 0
    )
    other = ["--input-shape", "x:9,64", "--log", log]
    assert main(["replay", str(model), *other, "--strict"]) == 1
    assert main(["compile", str(model), *other, "--require-tuned", "-o", str(tmp_path / "n.so")]) == 1
    assert not (tmp_path / "n.so").exists()
    assert main(["log", "stats", log]) == 0
    assert main(["log", "check", log]) == 0
    pruned = str(tmp_path / "small.jsonl")
    assert main(["log", "prune", log, "-o", pruned]) == 0
    assert main(["replay", str(model), *shape, "--log", pruned, "--strict"]) == 0


@pytest.mark.slow
def test_tune_says_what_it_takes_from_other_machines_and_what_it_leaves_out(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prior, log = tmp_path / "elsewhere.jsonl", tmp_path / "here.jsonl"
    tune = ["tune", str(model), "--input-shape", "x:8,64"]
    assert main([*tune, "--trials", "6", "--log", str(prior)]) == 0
    write_log(prior, [replace(r, device="another CPU") for r in read_log(prior).records])
    capsys.readouterr()
    assert main([*tune, "--trials", "1", "--prior", str(prior), "--log", str(log)]) == 0
    said = "".join(capsys.readouterr())
    assert "configs that were fast on other machines are tried first" in said
    assert "the budget ended before the first trial of" in said
    assert {r.device for r in read_log(log).records} == {device_name(host_target())}


def test_tune_says_that_measurements_spread_too_wide_to_decide() -> None:
    stream = io.StringIO()
    done = TaskDone(0, "conv2d", "key", 1, {}, 1e-3, 1e-3, 1.0, spread=0.3)
    reporter(as_json=False, stream=stream)(done)
    assert "1.00x the default" in stream.getvalue()
    assert "spread by 30%, too wide to tell a faster config from luck; the default stays" in stream.getvalue()


def test_tune_says_why_no_trial_succeeded() -> None:
    stream = io.StringIO()
    done = TaskDone(0, "conv2d", "key", 1, {}, None, None, 1.0, reason="out of memory")
    reporter(as_json=False, stream=stream)(done)
    assert stream.getvalue() == "conv2d: no trial succeeded; the last: out of memory\n"


def test_symbolic_model_asks_for_shapes(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = fails(capsys, "compile", str(model), "-o", str(tmp_path / "m.so"))
    assert "batch" in error
    assert "--input-shape" in error


def test_one_library_for_several_cpus(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    library, shape = str(tmp_path / "m.so"), ["--input-shape", "x:8,64"]
    both = ["compile", str(model), *shape, "--target", "x86-64-v3,x86-64-v4", "-o", library]
    assert main(both) == 0
    said = capsys.readouterr().out
    assert "\nx86-64-v4: 0 kernels tuned" in said
    assert "\nx86-64-v3: 0 kernels tuned" in said
    assert main([*both, "--json", "--own-weights"]) == 0
    assert json.loads(capsys.readouterr().out)["variants"] == ["x86-64-v4", "x86-64-v3"]
    assert main(["run", library, "--variant", "x86-64-v3"]) == 0
    capsys.readouterr()
    assert "the library has x86-64-v4, x86-64-v3" in fails(capsys, "run", library, "--variant", "x86-64-v2")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["tune", "MODEL", "--target", "x86-64-v3,x86-64-v4"],
            "give one at a time: `x86-64-v3`, `x86-64-v4`",
        ),
        (["compile", "MODEL", "--target", "x86-64-v3,arm64-linux", "-o", "m.so"], "a library is for one of"),
        (["compile", "missing.onnx", "-o", "m.so"], "missing.onnx"),
        (["compile", "missing.relay", "-o", "m.so"], "missing.relay"),
        (["compile", "model.txt", "-o", "m.so"], "give a .onnx or .relay file"),
        (["compile", "nowhere:graph", "-o", "m.so"], "nowhere"),
        (["opt", "MODEL", "-p", "no-such-pass"], "unknown pass `no-such-pass`"),
        (["opt", "MODEL", "-p", "simplify{x=1}"], "has no option `x`"),
        (["opt", "MODEL", "--input-shape", "x"], "does not read as NAME:"),
        (["opt", "MODEL", "--input-shape", "y:1,2"], "the inputs are x"),
        (["opt", "MODEL", "--input-shape", "x:1,2"], "contradicts"),
        (["opt", "MODEL", "--target", "pentium-9"], "pentium-9"),
        (["opt", "MODEL", "-o", "/dev/null"], "/dev/null is no file"),
        (["verify", "MODEL", "--input-shape", "x:1,64"], "--against reference"),
        (["run", "MODEL"], "mlp.relay"),
        (["run", "missing.so"], "missing.so"),
        (["inspect", "missing.so"], "missing.so"),
        (["inspect", "MODEL"], "mlp.relay"),
        (["bench", "MODEL", "--against", "abacus"], "unknown peer `abacus`"),
        (["bench", "MODEL", "--static"], "--static and -o go together"),
        (["bench", "MODEL", "-o", "program"], "--static and -o go together"),
        (["bench", "m.so", "--static", "-o", "program"], "--static takes a model"),
        (["bench", "MODEL", "--static", "-o", "program", "--per-op"], "nothing runs here"),
        (["bench", "MODEL", "--static", "-o", "program"], "--input-shape"),
        (["log", "show", "missing.jsonl"], "missing.jsonl"),
        (["tune", "MODEL", "--input-shape", "x:8,64", "--tasks", "lstm"], "no task matches"),
    ],
)
def test_bad_input_is_one_line(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert message in fails(capsys, *[str(model) if a == "MODEL" else a for a in argv])
    assert sorted(tmp_path.iterdir()) == before


def test_unwritable_folder(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "no" / "such" / "folder" / "m.so"
    error = fails(capsys, "compile", str(model), "--input-shape", "x:8,64", "-o", str(target))
    assert "there is no folder" in error


def test_inputs_that_do_not_fit(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    library = tmp_path / "m.so"
    assert main(["compile", str(model), "--input-shape", "x:8,64", "-o", str(library)]) == 0
    capsys.readouterr()
    for name, array in (("y", np.zeros((8, 64), np.float32)), ("x", np.zeros((8, 63), np.float32))):
        np.savez(tmp_path / "in.npz", **{name: array})
        assert name in fails(capsys, "run", str(library), "-i", str(tmp_path / "in.npz"))
    (tmp_path / "in.npz").write_bytes(b"PK nonsense")
    assert "in.npz" in fails(capsys, "run", str(library), "-i", str(tmp_path / "in.npz"))


def test_opt_prints_what_passes_leave(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["opt", str(model), "-p", ""]) == 0
    assert "softmax(" in capsys.readouterr().out
    assert main(["opt", str(model), "--input-shape", "x:8,64", "--stats"]) == 0
    captured = capsys.readouterr()
    assert "fused(" in captured.out
    assert "fuse-ops: " in captured.err
