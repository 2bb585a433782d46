"""Tensors of more elements than positions of 32 bits reach: refused in one line, before any code is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tcomp import api
from tcomp.codegen import c_abi
from tcomp.codegen.cuda.device_code import device_code
from tcomp.errors import UnsupportedError
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.graph import Graph
from tcomp.target.parse import parse_target
from tcomp.tensor.gpu.threads import launch
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.loops import function
from tcomp.tensor.reach import REACH
from tcomp.tensor.selection import choices_for, schedule
from tcomp.tvm_api import tirx

TARGETS = ("llvm", "cortex-a76", "cuda:sm_75", "cuda:sm_80", "cuda:sm_90a")
LARGE: Mapping[str, tuple[Sequence[tuple[int, ...]], Mapping[str, Any]]] = {
    "relu": ([(3, 2**30)], {}),
    "transpose": ([(3, 2**15, 2**15)], {"axes": (0, 2, 1)}),
    "softmax": ([(3 * 2**20, 1024)], {"axis": 1}),
    "reduce_sum": ([(3 * 2**20, 1024)], {"axes": (0,), "keepdims": False}),
    "matmul": ([(65536, 64), (64, 65536)], {}),
    "conv2d": ([(256, 64, 512, 512), (64, 64, 3, 3)], {"padding": (1, 1, 1, 1)}),
    "max_pool2d": ([(256, 64, 512, 512)], {"kernel": (2, 2), "strides": (2, 2)}),
    "attention": ([(32768, 1024, 128)] * 3, {"scale": 0.125}),
}


def graph(op: str, dtype: str = "float32") -> Graph:
    shapes, attrs = LARGE[op]
    g = GraphBuilder(op)
    return g.build(g.op(op, *(g.input(f"x{i}", s, dtype) for i, s in enumerate(shapes)), **attrs))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("op", LARGE)
def test_large_tensors_are_refused(op: str, dtype: str, target: str) -> None:
    said = rf"{op}.*\d{{10}} elements; kernels count 2147418112 of one: take a"
    with pytest.raises(UnsupportedError, match=said):
        schedule(Kernel(graph(op, dtype)), parse_target(target))


@pytest.mark.parametrize("target", ["llvm", "cuda:sm_80"])
def test_compiling_says_so(target: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"matmul.*f32\[65536,65536\], 4294967296 elements"):
        api.compile(graph("matmul"), tmp_path / "model.so", target)
    assert not list(tmp_path.iterdir())


def test_scratch_counts_too() -> None:
    """Fewer inputs and outputs than positions reach, and more sums of parts of the depth."""
    g = GraphBuilder("deep")
    x, w = g.input("x", (2**15, 2**13), "float32"), g.input("w", (2**13, 2**15), "float32")
    kernel = Kernel(g.build(g.op("matmul", x, w)))
    target = parse_target("cuda:sm_80")
    config = {**choices_for(kernel, target)[1].default, "split": 4, "streamed": 0}
    with pytest.raises(UnsupportedError, match=r"scratch buffer `\w+` of kernel matmul is f32.* elements"):
        schedule(kernel, target, config)


def test_buffers_of_kernels_count_too() -> None:
    buffer = tirx.decl_buffer([2**16, 2**15], "float32", name="large")
    inside = tirx.AllocBuffer(buffer)
    plain = function([], inside)
    with pytest.raises(UnsupportedError, match=r"buffer `large` of a kernel is \[65536, 32768\], 2147483648"):
        c_abi.build({"kernel": plain}, parse_target("llvm"))
    launched = function([buffer], launch((1,), (1,), lambda block, thread: tirx.Evaluate(0)))
    with pytest.raises(UnsupportedError, match=r"buffer `large` of a kernel is \[65536, 32768\], 2147483648"):
        device_code(launched, "kernel", parse_target("cuda:sm_80"))


@pytest.mark.parametrize("target", ["llvm", "cuda:sm_80"])
def test_the_largest_are_taken(target: str) -> None:
    g = GraphBuilder("largest")
    kernel = Kernel(g.build(g.op("relu", g.input("x", (REACH,), "int8"))))
    scheduled = schedule(kernel, parse_target(target))
    if target == "llvm":
        c_abi.build({"kernel": scheduled.function}, parse_target(target))
    else:
        (only,) = device_code(scheduled.function, "kernel", parse_target(target)).launches
        assert only.grid[0] * only.block[0] * 16 >= REACH
