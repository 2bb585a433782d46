"""Every command on damaged files, full and read-only disks, and killed at any moment.

Whatever happens, a command answers with exit status 0, 1 or 2, one line on stderr when it is 2, and files
that are whole or absent.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from folder_events import MOVED_TO, Watch
from fuzzing import altered, damaged, small_model

from tcomp.cli import main
from tcomp.relay.types import Array
from tcomp.runtime import load

SHAPE = ["--input-shape", "x:1,2,4,4"]
LOG = Path(__file__).parents[2] / "tuning_logs/x86-64-v4/magika.jsonl"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model as ONNX, Relay text and library, its inputs, and a log."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "small.onnx").write_bytes(small_model().SerializeToString())
    (folder / "small.jsonl").write_bytes(b"".join(LOG.read_bytes().splitlines(keepends=True)[:6]))
    np.savez(folder / "in.npz", x=np.zeros((1, 2, 4, 4), np.float32))
    source = [str(folder / "small.onnx"), *SHAPE]
    assert main(["opt", *source, "-p", "", "-o", str(folder / "small.relay")]) == 0
    assert main(["compile", *source, "--weights", "separate", "-o", str(folder / "small.so")]) == 0
    return folder


def answers(capsys: Capture, *argv: str) -> int:
    """Run a command line; its exit status, after checking that an error is one line."""
    capsys.readouterr()
    status = main(argv)
    error = capsys.readouterr().err
    assert status in (0, 1, 2)
    if status == 2:
        assert error.count("\n") == 1, error
        assert error.startswith(f"tcomp {argv[0]}: ")
    return status


@pytest.mark.parametrize(
    ("file", "argv"),
    [
        ("small.onnx", ["opt", "FILE", *SHAPE]),
        ("small.onnx", ["tune", "FILE", *SHAPE, "--tasks", "list"]),
        ("small.relay", ["opt", "FILE"]),
        ("small.relay.safetensors", ["opt", "small.relay"]),
        ("small.jsonl", ["log", "best", "FILE"]),
        ("small.jsonl", ["log", "prune", "FILE", "-o", "pruned.jsonl"]),
        ("small.so", ["run", "FILE"]),
        ("small.weights", ["run", "small.so"]),
        ("in.npz", ["run", "small.so", "-i", "FILE"]),
    ],
)
def test_damaged_files(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    file: str,
    argv: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    refused = 0
    for seed in range(20):
        # A new name each time: overwriting a library that is loaded would end this process.
        victim = tmp_path / (f"{seed}.so" if file == "small.so" else file)
        victim.write_bytes(damaged((folder / file).read_bytes(), random.Random(seed)))
        refused += answers(capsys, *[str(victim) if a == "FILE" else a for a in argv]) == 2
    assert refused > 5 or file == "small.jsonl"  # bad lines of a log are skipped
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_altered_models(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    model = small_model()
    path = tmp_path / "altered.onnx"
    statuses: list[int] = []
    for seed in range(60):
        path.write_bytes(altered(model, random.Random(seed)).SerializeToString())
        statuses.append(answers(capsys, "opt", str(path), *(SHAPE if seed % 3 else [])))
    assert statuses.count(2) > 30
    assert statuses.count(0) > 3


@pytest.mark.parametrize(
    "argv",
    [
        ["compile", "FOLDER/small.onnx", *SHAPE, "-o", "TMP"],
        ["compile", "TMP/a.onnx", "-o", "TMP/m.so"],
        ["opt", "FOLDER/small.onnx", "-o", "TMP"],
        ["opt", "FOLDER/small.onnx", "-o", "TMP/none/m.relay"],
        ["run", "FOLDER/small.so", "-o", "TMP"],
        ["run", "FOLDER/small.so", "-o", "TMP/none/o.npz"],
        ["run", "TMP"],
        ["run", "FOLDER/small.so", "-i", "TMP"],
        ["log", "show", "TMP"],
        ["log", "merge", "FOLDER/small.jsonl", "-o", "TMP"],
        ["tune", "FOLDER/small.onnx", *SHAPE, "--log", "TMP"],
        ["replay", "FOLDER/small.onnx", *SHAPE, "--log", "TMP"],
    ],
)
def test_folders_for_files(folder: Path, tmp_path: Path, capsys: Capture, argv: list[str]) -> None:
    (tmp_path / "a.onnx").mkdir()
    given = [a.replace("FOLDER", str(folder)).replace("TMP", str(tmp_path)) for a in argv]
    assert answers(capsys, *given) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"]


@contextmanager
def mounted(path: Path, options: str) -> Iterator[Path]:
    """A file system in memory at `path`; skips the test where mounting is not permitted."""
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True).returncode:
        pytest.skip("mounting a file system needs privileges that this process has not")
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


WRITERS = {
    "compile": ["compile", "FOLDER/small.onnx", *SHAPE, "-o", "DISK/m.so"],
    "run": ["run", "FOLDER/small.so", "-o", "DISK/o.npz"],
    "opt": ["opt", "FOLDER/small.onnx", "-o", "DISK/m.relay"],
    "merge": ["log", "merge", "FOLDER/small.jsonl", "-o", "DISK/m.jsonl"],
    "tune": ["tune", "FOLDER/small.onnx", *SHAPE, "--log", "DISK/t.jsonl", "--trials", "1"],
}


def writes(folder: Path, disk: Path, name: str) -> list[str]:
    return [a.replace("FOLDER", str(folder)).replace("DISK", str(disk)) for a in WRITERS[name]]


@pytest.mark.parametrize("name", WRITERS)
def test_a_read_only_disk(folder: Path, tmp_path: Path, capsys: Capture, name: str) -> None:
    with mounted(tmp_path / "disk", "size=1m,ro") as disk:
        assert answers(capsys, *writes(folder, disk, name)) == 2


@pytest.mark.parametrize("name", ["compile", "run", "opt", "merge"])
def test_a_full_disk(folder: Path, tmp_path: Path, capsys: Capture, name: str) -> None:
    with mounted(tmp_path / "disk", "size=4k") as disk:
        (disk / "full").write_bytes(bytes(4096))
        assert answers(capsys, *writes(folder, disk, name)) == 2
        assert [p.name for p in disk.iterdir()] == ["full"]


@pytest.mark.slow
def test_a_disk_that_fills_up_while_compiling(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    """Objects, C files, the linked library: whichever does not fit, nothing of them stays."""
    statuses: list[int] = []
    for pages in range(5, 60, 13):
        with mounted(tmp_path / f"disk{pages}", f"size={4 * pages}k") as disk:
            statuses.append(answers(capsys, *writes(folder, disk, "compile")))
            assert len(list(disk.iterdir())) == (0 if statuses[-1] else 3)
    assert statuses == sorted(statuses, reverse=True)
    assert {0, 2} == set(statuses)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_standard_output(folder: Path) -> None:
    command = [sys.executable, "-m", "tcomp", "log", "show", str(folder / "small.jsonl")]
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "No space left" in result.stderr


@pytest.mark.parametrize("name", ["compile", "run", "opt", "merge"])
def test_files_appear_whole(folder: Path, tmp_path: Path, capsys: Capture, name: str) -> None:
    """What a command writes is renamed into its place, over what was there: nobody sees half of it."""
    for _ in range(2):
        with Watch(tmp_path) as watch:
            assert answers(capsys, *writes(folder, tmp_path, name)) == 0
            events = list(iter(lambda: watch.next(0), None))
        seen = {(e.name, e.kind) for e in events if not e.name.startswith(".")}
        written = {p.name for p in tmp_path.iterdir()}
        assert written
        assert seen == {(name, MOVED_TO) for name in written}


@pytest.mark.slow
def test_killed_while_compiling(folder: Path, tmp_path: Path) -> None:
    """kill -9 after any change of a file: the library that was there still runs, or the new one does.

    Processes begin as copies of one that has imported everything, as imports write nothing.
    """
    output = tmp_path / "m.so"
    command = ["compile", str(folder / "small.onnx"), *SHAPE, "-o", str(output)]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tcomp.cli.compile", "tcomp.runtime"])

    def compile_until(last: float, begin: str = "") -> int:
        """Compile, but for a kill after the change of number `last` of files whose names begin like that; how
        many there were."""
        count = 0
        with Watch(tmp_path) as watch:
            process = context.Process(target=compile_alone, args=(command,))
            process.start()
            while count < last:
                is_alive = process.is_alive()
                event = watch.next(0.01)
                count += event is not None and event.name.startswith(begin)
                if event is None and not is_alive:
                    break
            process.kill()
            process.join()
        return count

    changes = compile_until(math.inf)
    headers = {path: path.read_bytes() for path in tmp_path.glob("*.h")}
    x = np.zeros((1, 2, 4, 4), np.float32)
    (expected,) = load(output, threads=1)(x)

    def assert_whole() -> None:
        process = context.Process(target=run_alone, args=(output, x, expected))
        process.start()
        process.join()
        assert process.exitcode == 0
        assert {p for p in tmp_path.iterdir() if not p.name.startswith(".")} == {output, *headers}
        assert {path: path.read_bytes() for path in headers} == headers

    killed = 0
    for last in range(1, changes, max(1, changes // 10)):
        killed += compile_until(last) == last
        assert_whole()
    assert killed > 5
    for name in ("tcomp.h", "m.h", "m.so"):
        assert compile_until(1, name) == 1
        assert_whole()


def compile_alone(command: list[str]) -> None:
    """The work of a process, whose exit status is the command's."""
    sys.exit(main(command))


def run_alone(library: Path, x: Array, expected: Array) -> None:
    """The work of a process, which half a library would end."""
    np.testing.assert_array_equal(load(library, threads=1)(x)[0], expected)


def test_a_log_of_a_newer_schema(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    """One that only a newer tcomp reads is refused where its records are needed; mixed ones are counted."""
    log = tmp_path / "log.jsonl"
    log.write_text(json.dumps({"schema": 99}) + "\n")
    model = [str(folder / "small.onnx"), *SHAPE]
    assert main(["compile", *model, "--log", str(log), "-o", str(tmp_path / "m.so")]) == 2
    assert "upgrade tcomp" in capsys.readouterr().err
    with log.open("ab") as file:
        file.write((folder / "small.jsonl").read_bytes() + b'{"cut')
    assert main(["replay", *model, "--log", str(log)]) == 0
    assert capsys.readouterr().err.count("skipped") == 2


def test_inputs_that_are_no_npz(folder: Path, capsys: Capture) -> None:
    library = str(folder / "small.so")
    assert main(["run", library, "-i", library]) == 2
    assert "is no .npz file; write one with numpy.savez" in capsys.readouterr().err
