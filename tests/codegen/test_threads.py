"""How parallel loops are shared: their partition into chunks, and the pool that runs them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from c_programs import run

from tcomp.codegen import c_abi
from tcomp.codegen.link import SOURCES
from tcomp.codegen.toolchain import native_toolchain
from tcomp.target.host import host_target
from tcomp.tensor.loops import function, parallel
from tcomp.tvm_api import tirx, tvm


@pytest.mark.parametrize("extent", [2, 3, 27, 63, 64, 65, 1000, 40_000_000])
def test_chunks_cover_a_loop_once(extent: int):
    size = min(extent, 1000)
    stride = extent // size
    out = tirx.decl_buffer([size], "int32", name="out")

    def count(i: object) -> object:
        at = tirx.floordiv(i, stride)
        return tirx.BufferStore(out, tirx.BufferLoad(out, [at]) + 1, [at])

    built = c_abi.build({"count": function([out], parallel(extent, count))}, host_target(), packed="main")
    found = tvm.runtime.tensor(np.zeros(size, np.int32), tvm.cpu())
    built["main"](found)
    assert (found.numpy() == stride).all()


def pool_program(folder: Path, test: str, *runtime: str) -> Path:
    """A program of the pool's own parts, without a model."""
    here, program = Path(__file__).parent, folder / "program"
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{SOURCES}", f"-I{here}"]
    sources = [here / test, *(SOURCES / name for name in runtime)]
    subprocess.run([*native_toolchain().command, *flags, *sources, "-o", program, "-lpthread"], check=True)
    return program


def test_the_pool_runs_every_chunk_once(tmp_path: Path):
    assert run([pool_program(tmp_path, "pool_test.c", "pool.c", "workspace.c", "affinity.c")]) == "fine\n"


def test_threads_stay_on_their_cpus(tmp_path: Path):
    if not {0, 1} <= os.sched_getaffinity(0):
        pytest.skip("needs CPUs 0 and 1")
    for name, speeds in {"cpu_capacity": (446, 1024), "cpufreq/cpuinfo_max_freq": (2400000, 1800000)}.items():
        for cpu, speed in enumerate(speeds):
            folder = tmp_path if name == "cpu_capacity" else tmp_path / "frequency"
            file = folder / f"cpu{cpu}" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{speed}\n")
    # Two CPUs, whatever the machine has.
    run(["taskset", "0x3", pool_program(tmp_path, "affinity_test.c", "pool.c", "workspace.c"), tmp_path])
