"""How parallel loops are shared: their partition into chunks, and the pool that runs them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

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


def test_the_pool_runs_every_chunk_once(tmp_path: Path):
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{SOURCES}"]
    sources = [str(Path(__file__).parent / "pool_test.c"), str(SOURCES / "pool.c")]
    program = str(tmp_path / "pool_test")
    subprocess.run([*native_toolchain().command, *flags, *sources, "-o", program, "-lpthread"], check=True)
    result = subprocess.run([program], capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout) == (0, "fine\n")
