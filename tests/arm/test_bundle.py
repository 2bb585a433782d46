"""Folders that hold what a library is made of, built by CMake."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from test_emulated import network, run, tools

from tcomp.api import optimize
from tcomp.cli import main
from tcomp.codegen.artifact import compile_graph
from tcomp.errors import BuildError
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.printer import save_graph
from tcomp.target.parse import parse_target


@pytest.mark.slow
@pytest.mark.parametrize("name", ["arm64-linux", "armv7-linux"])
def test_builds_the_same_library(name: str, tmp_path: Path) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("no cmake: apt-get install cmake")
    target, compiler = parse_target(name), tmp_path / "cc"
    toolchain, _ = tools(target)
    compiler.write_text(f'#!/bin/sh\nexec {shlex.join(toolchain.command)} "$@"\n')
    compiler.chmod(0o755)
    graph, bundle, direct = optimize(network(), target), tmp_path / "bundle", tmp_path / "direct"
    direct.mkdir()
    compile_graph(graph, target, direct / "libmodel.so")
    report = compile_graph(graph, target, bundle, form="bundle")
    assert report.library == bundle
    build = bundle / "build"
    configure = ["cmake", "-B", build, "-DCMAKE_SYSTEM_NAME=Linux", f"-DCMAKE_C_COMPILER={compiler}"]
    subprocess.run(configure, cwd=bundle, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", build], check=True, stdout=subprocess.DEVNULL)
    shutil.copy(build / "libmodel.so", bundle)
    image = np.random.default_rng(1).standard_normal((1, 3, 32, 32)).astype(np.float32)
    found = [run(folder / "libmodel.so", target, [image], folder) for folder in (bundle, direct)]
    assert [(r.returncode, r.stderr) for r in found] == [(0, b"")] * 2
    assert found[0].stdout == found[1].stdout != b""


def test_needs_no_compiler_and_replaces_an_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("ANDROID_NDK_HOME", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    builder = GraphBuilder("model")
    save_graph(builder.build(builder.op("relu", builder.input("x", (4,)))), tmp_path / "model.relay")
    arguments = ["compile", str(tmp_path / "model.relay"), "--target", "arm64-android", "-o"]
    assert main([*arguments, str(tmp_path / "libmodel.so")]) == 2
    assert "`pip install 'tcomp[cross]'`, or write with --bundle" in capsys.readouterr().err
    for _ in range(2):
        assert main([*arguments, str(tmp_path / "model"), "--bundle"]) == 0
    written = {path.name for path in (tmp_path / "model").rglob("*")}
    assert {"CMakeLists.txt", "model.c", "context.c", "tcomp.h", "model.h", "kernel0a_relu.o"} <= written
    text = (tmp_path / "model" / "CMakeLists.txt").read_text()
    assert "-DANDROID_ABI=arm64-v8a" in text
    assert "LINKER:-z,max-page-size=16384" in text


def test_replaces_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    target = parse_target("arm64-linux")
    with pytest.raises(BuildError, match="it exists and is no bundle; give a new name"):
        compile_graph(optimize(network(), target), target, tmp_path / "photos", form="bundle")
