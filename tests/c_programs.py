"""C programs that tests compile against a model's library, and the tools that they run under."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tcomp.api import optimize
from tcomp.codegen.artifact import Report, Weights, compile_graph
from tcomp.codegen.toolchain import Toolchain, native_toolchain
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.graph import Graph
from tcomp.target.host import host_target
from tcomp.target.target import Target

SOURCES = Path(__file__).parent / "codegen"


def parallel_model(side: int = 80) -> Graph:
    """Kernels that run in parallel, of an image; rows of the softmax are too long for the stack and take a
    workspace, from a `side` of 32 on."""
    rng = np.random.default_rng(0)
    b = GraphBuilder("parallel")
    x = b.input("x", (1, 16, side, side))
    weight = rng.standard_normal((16, 16, 3, 3)).astype(np.float32) / 12
    y = b.op("conv2d", x, b.constant(weight), padding=(1, 1, 1, 1))
    return b.build(b.op("softmax", b.op("reshape", b.op("relu", y), shape=(4, 4 * side * side)), axis=1))


def library(graph: Graph, folder: Path, target: Target | None = None, weights: Weights = "embed") -> Report:
    """`graph` as `folder`/NAME.so, for this machine unless there is a `target`."""
    target = target or host_target()
    return compile_graph(optimize(graph, target), target, folder / f"{graph.name}.so", weights=weights)


def program(source: str, folder: Path, libraries: Sequence[Path], compiler: Sequence[str] = ()) -> Path:
    """tests/codegen/`source` compiled with the headers in `folder` and linked with `libraries`."""
    output = folder / Path(source).stem
    flags = ["-std=gnu11", "-g", "-Wall", "-Wextra", "-Werror", f"-I{folder}", f"-I{SOURCES}"]
    command = [*(compiler or native_toolchain().command), *flags, SOURCES / source, *libraries]
    subprocess.run([*command, "-o", output, "-lpthread", "-ldl", f"-Wl,-rpath,{folder}"], check=True)
    return output


def run(command: Sequence[str | Path]) -> str:
    """Standard output of `command`, which must succeed and have nothing to complain about."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout[-2000:] + done.stderr[:4000]
    return done.stdout


def tool(name: str, package: str) -> str:
    """The path of an executable; skips the test where it is absent."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"no {name}: apt-get install {package}")
    return path


def instrumented(folder: Path, sanitizer: str) -> Toolchain:
    """The C compiler with a sanitizer; skips the test where it has none that works."""
    compiler, probe = folder / "cc", folder / "probe.c"
    flags = f"-fsanitize={sanitizer} -fno-sanitize-recover=all -fno-omit-frame-pointer -g"
    compiler.write_text(f'#!/bin/sh\nexec {native_toolchain().command[0]} {flags} "$@"\n')
    compiler.chmod(0o755)
    probe.write_text("int main(void) { return 0; }\n")
    made = subprocess.run([compiler, probe, "-o", folder / "probe"], capture_output=True, check=False)
    if made.returncode or subprocess.run([folder / "probe"], check=False).returncode:
        pytest.skip(f"the C compiler has no working -fsanitize={sanitizer}")
    return Toolchain("instrumented", (str(compiler),))


PAGE_KILOBYTES = 2048
"""A huge page; the arena is a multiple of it."""
SLACK_KILOBYTES = 256
"""The stack, the context and what libc keeps for itself."""


def check_memory(report: Report, runs: int) -> None:
    """The resident set gains arena, workspace, weights and the library, and does not grow."""
    more = [] if report.weights is None else [report.weights]
    output = run([program("memory.c", report.library.parent, [report.library]), str(runs), *more])
    allocated, growth, peak = map(int, output.split())
    arena, weights = report.program.arena_bytes // 1024, report.program.weights_bytes // 1024
    code = report.library_bytes // 1024 - (weights if report.weights is None else 0)
    print(f"arena {arena} kB, workspace {allocated - arena}, weights {weights}, code {code}; peak {peak}")
    assert growth <= 16
    assert allocated >= arena
    assert peak <= allocated + PAGE_KILOBYTES + weights + code + SLACK_KILOBYTES
