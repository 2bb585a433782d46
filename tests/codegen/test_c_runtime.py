"""The C runtime under load and with bad input: allocators, thread pools, several contexts and libraries,
shared weights, cancellation, refused memory and threads, weights of other models; also under sanitizers and
valgrind."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from c_programs import check_memory, instrumented, library, parallel_model, program, run, tool
from small_models import chain

from tcomp.api import optimize
from tcomp.codegen import artifact, link
from tcomp.codegen.artifact import compile_graph
from tcomp.target.parse import parse_target

UNDER_TOOLS = ("contexts", "sharing", "cancel", "bad_input", "two_models")
"""Programs that run under sanitizers and valgrind."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both models' libraries."""
    folder = tmp_path_factory.mktemp("models")
    for graph in (chain(), parallel_model()):
        library(graph, folder)
    return folder


def copied_libraries(folder: Path) -> list[Path]:
    copies = folder / "copies"
    copies.mkdir(exist_ok=True)
    return [shutil.copy2(folder / f"{model}.so", copies) for model in ("chain", "parallel")]


def build(name: str, folder: Path, compiler: tuple[str, ...] = (), runs: int = 40) -> list[str | Path]:
    """The command of the program, which runs its model so often."""
    models = {"bad_input": ("chain",), "two_models": ("chain", "parallel")}.get(name, ("parallel",))
    libraries = [folder / f"{model}.so" for model in models]
    more = {"bad_input": [], "refusals": [], "two_models": [str(runs), *copied_libraries(folder)]}
    return [program(f"{name}.c", folder, libraries, compiler), *more.get(name, [str(runs)])]


@pytest.mark.parametrize("name", [*UNDER_TOOLS, "refusals"])
def test_program(built: Path, name: str) -> None:
    run(build(name, built))


def weights_files(folder: Path) -> dict[str, Path]:
    good = (folder / "chain.weights").read_bytes()
    contents = {"cut": good[:-64], "empty": b"", "other": good[:-4] + b"\0\0\0\1", "longer": good + b"\0"}
    paths = {name: folder / f"{name}.weights" for name in contents}
    for name, path in paths.items():
        path.write_bytes(contents[name])
    return paths | {"good": folder / "chain.weights", "missing": folder / "nowhere", "folder": folder}


def test_weights_of_another_model(tmp_path: Path) -> None:
    built = library(chain(), tmp_path, weights="separate")
    create = program("weights.c", tmp_path, [built.library])
    files = weights_files(tmp_path)
    for how in ([], ["memory"], ["trust"]):
        assert run([create, files["good"], *how]) == "0 \n"
    expected = {
        "cut": "have 448 bytes; this model's have 512",
        "empty": "have 0 bytes",
        "longer": "have 513 bytes",
        "other": "are not those of this model; compile it again",
        "missing": "No such file or directory",
        "folder": "bytes; this model's have 512",
    }
    for name, text in expected.items():
        output = run([create, files[name]])
        assert output.startswith("4 "), output
        assert text in output
    assert "weights in memory are not those of this model" in run([create, files["other"], "memory"])
    assert "weights in memory have 448 bytes" in run([create, files["cut"], "memory"])
    unaligned = run([create, files["good"], "unaligned"])
    assert unaligned.startswith("4 ")
    assert "at a multiple of 64" in unaligned
    assert run([create, files["other"], "trust"]) == "0 \n"
    assert "give weights_path or weights" in run([create])
    assert run([create, files["good"], "share", tmp_path / "elsewhere"]) == "0 \n"


def test_contexts_share_a_file_of_weights(tmp_path: Path) -> None:
    """One mapping of it, which is there as long as one of them."""
    built = library(parallel_model(), tmp_path, weights="separate")
    sharing = program("sharing.c", tmp_path, [built.library])
    run([sharing, "20", tmp_path / "parallel.weights"])


def test_a_cpu_that_lacks_a_feature(tmp_path: Path) -> None:
    """Nothing but the check runs on it: the library's code would be illegal instructions there."""
    emulator = tool("qemu-x86_64", "qemu-user")
    target = parse_target("x86-64-v3")
    if not subprocess.check_output(["uname", "-m"]).startswith(b"x86_64"):
        pytest.skip("the library is for x86-64")
    compile_graph(optimize(chain(), target), target, tmp_path / "chain.so", weights="separate")
    create = program("weights.c", tmp_path, [tmp_path / "chain.so"])
    output = run([emulator, "-cpu", "Nehalem", create, tmp_path / "chain.weights"])
    assert output == "2 this CPU has no avx, which the library is compiled for (x86-64-v3 x86-64-v3)\n"


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_sanitizers_find_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sanitizer: str) -> None:
    """The runtime and the programs are instrumented; generated kernels are not."""
    toolchain = instrumented(tmp_path, sanitizer)
    monkeypatch.setattr(artifact, "find_toolchain", lambda target: toolchain)
    monkeypatch.setattr(link, "check_library", lambda path, target: None)  # it needs the sanitizer's library
    for graph in (chain(), parallel_model()):
        library(graph, tmp_path)
    for name in UNDER_TOOLS:
        run(build(name, tmp_path, toolchain.command))


@pytest.mark.slow
def test_valgrind_finds_nothing(tmp_path: Path) -> None:
    valgrind = tool("valgrind", "valgrind")
    target = parse_target("x86-64-v3")  # valgrind knows no AVX-512
    for graph in (chain(), parallel_model(side=40)):
        library(graph, tmp_path, target)
    flags = [
        "-q",
        "--error-exitcode=9",
        "--fair-sched=try",
        "--leak-check=full",
        "--errors-for-leak-kinds=definite,possible",
    ]
    for name in UNDER_TOOLS:
        run([valgrind, *flags, *build(name, tmp_path, runs=2)])


@pytest.mark.parametrize("weights", ["embed", "separate"])
def test_memory_is_arena_workspace_and_weights(tmp_path: Path, weights: artifact.Weights) -> None:
    check_memory(library(parallel_model(), tmp_path, weights=weights), 1000)
