"""One kernel built in memory, from hand-made schedules."""

from __future__ import annotations

import numpy as np
import pytest

from tcomp.codegen import c_abi
from tcomp.codegen.jit import build_kernel, build_scheduled
from tcomp.errors import InputError
from tcomp.relay.graph import Graph, Node, Value
from tcomp.relay.op import OPS
from tcomp.relay.types import TensorType, numpy_dtype
from tcomp.target.target import TARGETS
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.template import Packing, Scheduled
from tcomp.tvm_api import s_tir, te, tirx, tvm

V3 = TARGETS["x86-64-v3"]


def matmul(m: int, n: int, k: int) -> tuple[Kernel, Scheduled]:
    """A matmul whose second operand is a constant, packed to its transpose, with one scratch row."""
    a, b = Value(TensorType((m, k)), "a"), Value(TensorType((k, n)), "b")
    c = Value(TensorType((m, n)), "c")
    kernel = Kernel(Graph((a, b), (Node("matmul", (a, b), {}, (c,)),), (c,)), frozenset({1}))
    x, w = te.placeholder((m, k), name="x"), te.placeholder((n, k), name="w")
    axis = te.reduce_axis((0, k), name="k")
    scratch = te.compute((m, k), lambda i, j: x[i, j] * 2.0, name="doubled")
    y = te.compute((m, n), lambda i, j: te.sum(scratch[i, axis] * w[j, axis], axis=axis), name="y")
    schedule = s_tir.Schedule(te.create_prim_func([x, w, scratch, y]))
    packing = Packing(TensorType((n, k)), lambda array: np.ascontiguousarray(array.T))
    return kernel, Scheduled(schedule.mod["main"], {1: packing}, (TensorType((m, k)),))


def elementwise(dtype: str) -> tuple[Kernel, Scheduled]:
    x, y = Value(TensorType((3, 5), dtype), "x"), Value(TensorType((3, 5), dtype), "y")
    kernel = Kernel(Graph((x,), (Node("add", (x, x), {}, (y,)),), (y,)))
    a = te.placeholder((3, 5), dtype, name="a")
    return kernel, Scheduled(te.create_prim_func([a, te.compute((3, 5), lambda i, j: a[i, j] + a[i, j])]))


def test_packs_constants_and_provides_scratch():
    kernel, scheduled = matmul(4, 6, 5)
    runner = build_scheduled(kernel, scheduled, V3)
    rng = np.random.default_rng(0)
    a = rng.standard_normal((4, 5), np.float32)
    b = rng.standard_normal((5, 6), np.float32)
    (c,) = runner([a, b])
    np.testing.assert_allclose(c, 2 * (a @ b), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8", "int64"])
def test_runs_each_element_type(dtype: str):
    kernel, scheduled = elementwise(dtype)
    runner = build_scheduled(kernel, scheduled, V3)
    x = np.arange(15).reshape(3, 5).astype(numpy_dtype(dtype))
    (y,) = runner([x])
    assert y.dtype == x.dtype
    assert (y == x + x).all()


def test_times_and_shows_the_code():
    kernel, scheduled = elementwise("float32")
    runner = build_scheduled(kernel, scheduled, V3)
    seconds = runner.time([np.zeros((3, 5), np.float32)], number=2, repeat=4)
    assert len(seconds) == 4
    assert all(s > 0 for s in seconds)
    assert "vaddss" in runner.source("asm")
    assert "define" in runner.source("ll")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ([], "takes 1 arrays, not 0"),
        ([np.zeros((3, 4), np.float32)], r"float32\[3, 4\]; it must be f32\[3,5\]"),
        ([np.zeros((3, 5), np.float64)], "float64"),
    ],
)
def test_refuses_other_arrays(arrays: list[np.ndarray], message: str):
    kernel, scheduled = elementwise("float32")
    runner = build_scheduled(kernel, scheduled, V3)
    with pytest.raises(InputError, match=message):
        runner(arrays)


def test_parallel_loops_and_small_buffers_stay_in_generated_code():
    """Parallel loops reach the thread pool; a small local buffer lives on the stack, not in the workspace."""
    x = te.placeholder((64, 256), name="x")
    y = te.compute((64, 256), lambda i, j: x[i, j] * 3.0, name="y")
    schedule = s_tir.Schedule(te.create_prim_func([x, y]))
    block = schedule.get_sblock("y")
    local = schedule.cache_write(block, 0, "local")
    schedule.reverse_compute_at(local, schedule.get_loops(block)[0])
    schedule.parallel(schedule.get_loops(block)[0])
    code = str(c_abi.build({"kernel": schedule.mod["main"]}, V3).inspect_source("ll"))
    assert "ParallelLaunch" in code
    assert "AllocWorkspace" not in code


@pytest.mark.parametrize("op", ["matmul", "relu", "layout_transform"])
def test_the_passes_left_out_would_change_nothing(op: str, monkeypatch: pytest.MonkeyPatch):
    layouts = {"src": "NCHW16c", "dst": "NCHW", "channels": 384}
    attrs = layouts if op == "layout_transform" else dict(OPS[op].attrs)
    shapes = {"matmul": [(24, 96), (96, 64)], "relu": [(7, 33)], "layout_transform": [(1, 24, 14, 14, 16)]}
    inputs = tuple(Value(TensorType(shape), f"x{i}") for i, shape in enumerate(shapes[op]))
    types = OPS[op].infer_types([v.type for v in inputs], attrs)
    node = Node(op, inputs, attrs, tuple(Value(t, "y") for t in types))
    kernel = Kernel(Graph(inputs, (node,), node.outputs))
    ours = build_kernel(kernel, V3).source()
    # Left to LLVM on purpose.
    unchanged = tvm.transform.module_pass(lambda module, _: module, opt_level=0, name="Unchanged")
    monkeypatch.setattr(tirx.transform, "CommonSubexprElim", lambda: unchanged)
    stock, _, _ = tirx.compilation_pipeline.get_tir_pipeline("default")
    _, finish_host, finish_device = c_abi._pipeline()  # pyright: ignore[reportPrivateUsage]
    tirx.compilation_pipeline.register_tir_pipeline("stock", lambda: (stock, finish_host, finish_device))
    monkeypatch.setattr(c_abi, "_PIPELINE", "stock")
    assert build_kernel(kernel, V3).source() == ours
