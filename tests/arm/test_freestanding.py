"""Models as one object without a system, in programs that have no C library, under qemu."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from test_emulated import network, run, tools

from tcomp.api import compile as compile_model
from tcomp.api import optimize
from tcomp.codegen import c_abi
from tcomp.codegen.artifact import compile_graph
from tcomp.errors import BuildError, UsageError
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Graph
from tcomp.relay.types import Array
from tcomp.target.parse import parse_target

PROGRAM = Path(__file__).with_name("bare.c")
LINKERS = {
    "arm64-linux": ["aarch64-linux-gnu-gcc"],
    "armv7-linux": ["arm-linux-gnueabihf-gcc", "-marm"],
}


def attention() -> Graph:
    g = GraphBuilder("network")
    x = g.input("image", (1, 4, 96, 64))
    return g.build(g.op("attention", x, x, x, scale=0.125))


def build(name: str, graph: Graph, folder: Path) -> None:
    """The program `bare` in `folder`, of `graph` compiled without a system for the target `name`."""
    target, (compiler, *flags) = parse_target(name), LINKERS[name]
    tools(target)
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}: apt-get install Debian's cross compilers")
    report = compile_graph(optimize(graph, target), target, folder / "network.o", runtime="freestanding")
    shutil.copy(report.header, folder / "bare.h")
    command = [compiler, *flags, "-O1", "-Wall", "-Werror", '-DHEADER="bare.h"', f"-I{folder}"]
    command += ["-nostdlib", "-ffreestanding", "-static", PROGRAM, folder / "network.o", "-lgcc"]
    subprocess.run([*command, "-o", folder / "bare"], check=True)


def run_alone(name: str, image: Array, folder: Path) -> subprocess.CompletedProcess[bytes]:
    _, emulator = tools(parse_target(name))
    command = [*emulator[:1], folder / "bare"]
    return subprocess.run(command, input=image.tobytes(), capture_output=True, check=False, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(LINKERS))
@pytest.mark.parametrize("graph", [network(), attention()], ids=["network", "attention"])
def test_runs_without_a_c_library(name: str, graph: Graph, tmp_path: Path) -> None:
    build(name, graph, tmp_path)
    (value,) = graph.inputs
    image = np.random.default_rng(1).standard_normal(value.type.static_shape).astype(np.float32)
    alone = run_alone(name, image, tmp_path)
    assert (alone.returncode, alone.stderr) == (0, b"")
    (expected,) = evaluate(graph, [image])
    found = np.frombuffer(alone.stdout, np.float32).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    target = parse_target(name)
    compile_graph(optimize(graph, target), target, tmp_path / "network.so", runtime="serial")
    library = run(tmp_path / "network.so", target, [image], tmp_path)
    assert (library.returncode, library.stdout) == (0, alone.stdout)


@pytest.mark.slow
def test_a_step_without_memory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second kernel takes a workspace. With less than the computed size the run ends there."""
    whole = c_abi.workspace_bytes
    monkeypatch.setattr(c_abi, "workspace_bytes", lambda *arguments: max(whole(*arguments) - 64, 0))
    build("arm64-linux", network(), tmp_path)
    alone = run_alone("arm64-linux", np.zeros((1, 3, 32, 32), np.float32), tmp_path)
    assert (alone.returncode, alone.stdout) == (2, b"")


def test_what_needs_a_c_library_is_named(tmp_path: Path) -> None:
    target = parse_target("arm64-linux")
    tools(target)
    g = GraphBuilder("wide")
    graph = g.build(g.op("log", g.input("x", (4,), "float64")))
    with pytest.raises(
        BuildError, match=r"the model needs log, which no C library gives .* or --runtime serial"
    ):
        compile_graph(optimize(graph, target), target, tmp_path / "wide.o", runtime="freestanding")
    assert not (tmp_path / "wide.o").exists()


def test_has_one_form(tmp_path: Path) -> None:
    target = parse_target("arm64-linux")
    graph = optimize(network(), target)
    with pytest.raises(BuildError, match="no bundle, no separate weights"):
        compile_graph(graph, target, tmp_path / "x.o", weights="separate", runtime="freestanding")
    with pytest.raises(UsageError, match="precision `fast` runs the library"):
        compile_model(network(), tmp_path / "x.o", precision="fast", runtime="freestanding")
    with pytest.raises(UsageError, match="bindings call a library"):
        compile_model(network(), tmp_path / "x.o", bindings=["swift"], runtime="freestanding")
