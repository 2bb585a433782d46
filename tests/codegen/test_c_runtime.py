"""The C runtime under load: the caller's allocator and thread pool, several contexts, and sanitizers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from tcomp.api import optimize
from tcomp.codegen import artifact, link
from tcomp.codegen.artifact import compile_graph
from tcomp.codegen.toolchain import Toolchain, native_toolchain
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.graph import Graph
from tcomp.target.host import host_target

PROGRAM = Path(__file__).with_name("contexts.c")


def parallel_model() -> Graph:
    """Kernels that run in parallel; rows of the softmax are too long for the stack and take a workspace."""
    rng = np.random.default_rng(0)
    b = GraphBuilder("parallel")
    x = b.input("x", (1, 64, 40, 40))
    weight = rng.standard_normal((64, 64, 3, 3)).astype(np.float32) / 24
    y = b.op("conv2d", x, b.constant(weight), padding=(1, 1, 1, 1))
    return b.build(b.op("softmax", b.op("reshape", b.op("relu", y), shape=(4, 25600)), axis=1))


def build(folder: Path, compiler: str) -> Path:
    """The program of contexts.c, linked with the model's library, both made by `compiler`."""
    target = host_target()
    library = folder / "parallel.so"
    compile_graph(optimize(parallel_model(), target), target, library)
    program = folder / "contexts"
    flags = ["-std=gnu11", "-g", "-Wall", "-Werror", "-I", str(folder)]
    command = [compiler, *flags, str(PROGRAM), str(library), "-o", str(program), "-lpthread"]
    subprocess.run([*command, f"-Wl,-rpath,{folder}"], check=True)
    return program


def test_callers_allocator_and_threads(tmp_path: Path) -> None:
    program = build(tmp_path, native_toolchain().command[0])
    result = subprocess.run([program], capture_output=True, text=True, check=False, timeout=120)
    assert (result.returncode, result.stderr) == (0, ""), result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_sanitizers_find_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sanitizer: str) -> None:
    """The runtime and the program are instrumented; generated kernels are not."""
    compiler = tmp_path / "cc"
    flags = f"-fsanitize={sanitizer} -fno-sanitize-recover=all -fno-omit-frame-pointer -g"
    compiler.write_text(f'#!/bin/sh\nexec {native_toolchain().command[0]} {flags} "$@"\n')
    compiler.chmod(0o755)
    probe = tmp_path / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    made = subprocess.run([compiler, probe, "-o", tmp_path / "probe"], capture_output=True, check=False)
    if made.returncode or subprocess.run([tmp_path / "probe"], check=False).returncode:
        pytest.skip(f"the C compiler has no working -fsanitize={sanitizer}")
    toolchain = Toolchain("instrumented", (str(compiler),))
    monkeypatch.setattr(artifact, "find_toolchain", lambda target: toolchain)
    monkeypatch.setattr(link, "check_library", lambda path, target: None)  # it needs the sanitizer's library
    program = build(tmp_path, str(compiler))
    result = subprocess.run([program], capture_output=True, text=True, check=False, timeout=300)
    assert (result.returncode, result.stderr) == (0, ""), result.stdout + result.stderr[:4000]
