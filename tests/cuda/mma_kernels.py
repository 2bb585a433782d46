"""Kernels for tensor cores that several tests need, and how their numbers are checked."""

from __future__ import annotations

import numpy as np

from tcomp.codegen.jit import build_scheduled
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Attr, Value
from tcomp.relay.types import Array, numpy_dtype
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tensor.template import TEMPLATES
from tcomp.tensor.tensor_cores.stored_output import Output

SMALL = {
    "block_rows": 32, "block_columns": 32, "warp_rows": 32, "warp_columns": 16, "depth_chunks": 4,
    "stages": 3, "splits": 1, "group": 2,
}  # fmt: skip
"""Two warps: the emulated GPU's threads take turns."""


def rows_of(itemsize: int, in_lines: bool = True) -> Output:
    """The output of a product of matrices with many columns."""
    return Output((itemsize,), 4096, in_lines)


def matmul(
    a: tuple[int, ...],
    b: tuple[int, ...],
    *epilogue: str,
    dtype: str = "float16",
    constant: bool = False,
    prologue: str = "",
    **attrs: Attr,
) -> Kernel:
    """A product followed by unary operators, `bias` (one a column), `residual` (full)."""
    builder = GraphBuilder()
    left, right = builder.input("a", a, dtype), builder.input("b", b, dtype)
    if prologue:
        left, right = builder.op(prologue, left), builder.op(prologue, right)
    result: Value = builder.op("matmul", left, right, **attrs)
    for name in epilogue:
        if name in ("bias", "residual"):
            shape = result.type.static_shape
            other = builder.input(name, shape if name == "residual" else shape[-1:], result.dtype)
            result = builder.op("add", result, other)
        elif name == "transpose":
            order = tuple(reversed(range(result.type.rank)))
            result = builder.op("transpose", result, axes=order)
        else:
            result = builder.op(name, result)
    return Kernel(builder.build(result), frozenset({1}) if constant else frozenset())


def arrays_for(kernel: Kernel) -> list[Array]:
    """Small integers: sums of their products are exact in any order."""
    generator = np.random.default_rng(0)
    return [
        generator.integers(-2, 3, v.type.static_shape).astype(numpy_dtype(v.dtype))
        for v in kernel.body.inputs
    ]


def assert_computes(kernel: Kernel, gpu: Target, template: str, config: Config) -> None:
    schedule = TEMPLATES[template]
    assert schedule.accepts(kernel, gpu)
    schedule.space(kernel, gpu).check(config)
    arrays = arrays_for(kernel)
    (found,) = build_scheduled(kernel, schedule.apply(kernel, gpu, config), gpu)(arrays)
    (expected,) = evaluate(kernel.body, arrays)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found.astype("float64"), expected.astype("float64"), rtol=2e-3, atol=1e-6)


def conv(
    data: tuple[int, ...],
    weight: tuple[int, ...],
    epilogue: bool = False,
    constant: bool = True,
    dtype: str = "float16",
    **attrs: Attr,
) -> Kernel:
    """A convolution; with `epilogue`, followed by a bias, a residual of the output's shape, and relu."""
    builder = GraphBuilder()
    operands = [builder.input("data", data, dtype), builder.input("weight", weight, dtype)]
    result: Value = builder.op(f"conv{len(weight) - 2}d", *operands, **attrs)
    if epilogue:
        shape = result.type.static_shape
        bias = builder.input("bias", (1, shape[1], 1, 1, *shape[4:]), result.dtype)
        residual = builder.input("residual", shape, result.dtype)
        result = builder.op("relu", builder.op("add", builder.op("add", result, bias), residual))
    return Kernel(builder.build(result), frozenset({1}) if constant else frozenset())


def in_blocks(data: int, out: int) -> dict[str, Attr]:
    return {"data_layout": f"NCHW{data}c", "out_layout": f"NCHW{out}c"}
