"""Products of few bits on ARM: their numbers under qemu, and that the instructions are there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from op_samples import check
from quantized_graphs import convolutions
from test_emulated import run, tools
from test_emulated_sve import graph_of, outputs

from kernel_cycles import conv, direct_default, matmul
from tcomp.api import optimize
from tcomp.codegen.artifact import compile_graph
from tcomp.codegen.jit import build_kernel
from tcomp.codegen.machine_code import hot_loop, loop_cost
from tcomp.errors import BuildError
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Attr, Graph, Value
from tcomp.relay.op import OPS
from tcomp.relay.types import Array
from tcomp.rounding import relative_error
from tcomp.target.parse import parse_target
from tcomp.target.target import TARGETS
from tcomp.tensor.groups import ways_to_sum
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.selection import choices_for, template_for
from tcomp.transform.lower_precision import is_lowered, product_kernels


def weights(rng: np.random.Generator, *shape: int) -> Array:
    return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def network() -> Graph:
    """Convolutions of whole and ragged channels, with strides, pointwise and depthwise; two products."""
    rng = np.random.default_rng(0)
    g = GraphBuilder("network")
    x: Value = g.input("image", (1, 3, 32, 32))
    layers = (((32, 3, 3, 3), 2, 1), ((40, 32, 3, 3), 1, 1), ((40, 1, 3, 3), 1, 40), ((64, 40, 1, 1), 1, 1))
    for shape, strides, groups in (*layers, ((48, 64, 3, 3), 2, 1)):
        filters = g.constant(weights(rng, *shape))
        padding = (shape[-1] // 2,) * 4
        x = g.op("relu", g.op("conv2d", x, filters, strides=(strides,) * 2, padding=padding, groups=groups))
    rows = g.op("reshape", x, shape=(48, 64))
    x = g.op("relu", g.op("matmul", rows, g.constant(weights(rng, 64, 37))))
    return g.build(g.op("matmul", x, g.constant(weights(rng, 37, 100))))


@pytest.mark.parametrize(("name", "dtype"), [("cortex-a76", "float16"), ("neoverse-v1", "bfloat16")])
def test_fast_is_near_float32(name: str, dtype: str, tmp_path: Path) -> None:
    target, graph = parse_target(name), network()
    tools(target)
    assert target.fast_dtype == dtype
    lowered = optimize(graph, target, precision="fast")
    assert sum(is_lowered(n) for n in product_kernels(lowered)) >= 4
    library = tmp_path / "network.so"
    compile_graph(lowered, target, library)
    image = np.random.default_rng(1).standard_normal((1, 3, 32, 32)).astype(np.float32)
    result = run(library, target, [image], tmp_path)
    assert (result.returncode, result.stderr) == (0, b"")
    (exact,) = evaluate(graph, [image])
    found = np.frombuffer(result.stdout, np.float32).reshape(exact.shape)
    error = relative_error(found, exact)
    assert 1e-5 < error < (5e-3 if dtype == "float16" else 2e-2)


@pytest.mark.parametrize("name", ["arm64-linux", "cortex-x2", "armv7-linux"])
def test_convolutions_of_float16_whose_products_are_in_float32(name: str, tmp_path: Path) -> None:
    """Padding makes a copy of an input in float32, whose elements are factors as they are there."""
    target, op = parse_target(name), OPS["conv2d"]
    tools(target)
    samples = [sample for sample in op.samples if sample.types[0].dtype == "float16"]
    assert any(sample.attrs.get("data_layout") == "NCHW16c" for sample in samples)
    graph, arrays = graph_of([(op, sample) for sample in samples])
    compile_graph(graph, target, tmp_path / "samples.so")
    result = run(tmp_path / "samples.so", target, arrays, tmp_path)
    assert (result.returncode, result.stderr) == (0, b"")
    found, expected = outputs(graph, result.stdout), evaluate(graph, arrays)
    for one, other, sample in zip(found, expected, samples, strict=True):
        check([one], [other], sample)


def heads(causal: int) -> Graph:
    """Attention of three heads over 37 rows, between products."""
    rng = np.random.default_rng(0)
    g = GraphBuilder("heads")
    x = g.op("relu", g.input("x", (37, 48)))
    parts = [g.op("matmul", x, g.constant(weights(rng, 96, 48).T.copy())) for _ in range(3)]
    split = [g.op("transpose", g.op("reshape", p, shape=(37, 3, 32)), axes=(1, 0, 2)) for p in parts]
    mixed = g.op(
        "transpose", g.op("attention", *split, scale=0.2, causal=causal, name="heads"), axes=(1, 0, 2)
    )
    rows = g.op("reshape", mixed, shape=(37, 96))
    return g.build(g.op("matmul", rows, g.constant(weights(rng, 40, 96).T.copy())))


@pytest.mark.parametrize("causal", [0, 1])
def test_attention_multiplies_pairs(causal: int, tmp_path: Path) -> None:
    target, graph = parse_target("neoverse-v1"), heads(causal)
    tools(target)
    lowered = optimize(graph, target, precision="fast")
    (kernel,) = (Kernel.of(n) for n in lowered.nodes if n.op == "fused" and n.name == "heads")
    _, space = choices_for(kernel, target)
    assert space.default["algorithm"] == "attention_pairs_cpu"
    assert "bfdot" in build_kernel(kernel, target).source()
    library = tmp_path / "heads.so"
    compile_graph(lowered, target, library)
    x = np.random.default_rng(1).standard_normal((37, 48)).astype(np.float32)
    result = run(library, target, [x], tmp_path)
    assert (result.returncode, result.stderr) == (0, b"")
    (exact,) = evaluate(graph, [x])
    found = np.frombuffer(result.stdout, np.float32).reshape(exact.shape)
    assert 1e-5 < relative_error(found, exact) < 2e-2


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_int8_is_within_a_step(dtype: str, tmp_path: Path) -> None:
    target, graph = parse_target("cortex-a76"), convolutions(dtype)
    tools(target)
    library = tmp_path / "network.so"
    compile_graph(optimize(graph, target), target, library)
    x = np.random.default_rng(1).standard_normal((1, 8, 9, 9)).astype(np.float32)
    result = run(library, target, [x], tmp_path)
    assert (result.returncode, result.stderr) == (0, b"")
    (expected,) = evaluate(graph, [x])
    found = np.frombuffer(result.stdout, dtype).reshape(expected.shape)
    steps = np.abs(found.astype(np.int32) - expected.astype(np.int32))
    assert steps.max() <= 1
    assert steps.mean() < 0.01


DEPTHWISE: tuple[tuple[int, dict[str, Attr]], ...] = (
    (3, {"padding": (1,) * 4, "pad_value": -7}),
    (3, {"padding": (0, 1, 1, 0), "strides": (2, 2)}),
    (5, {"padding": (4, 2, 4, 2), "dilation": (2, 1), "pad_value": 127}),
    (7, {"padding": (3,) * 4, "strides": (1, 2)}),
    (2, {}),
)
"""Sizes of kernels and what else tells convolutions apart."""


@pytest.mark.parametrize("block", [4, 8])
def test_depthwise_products_of_int8_are_exact(block: int, tmp_path: Path) -> None:
    target, rng = parse_target("cortex-a76"), np.random.default_rng(0)
    tools(target)
    g = GraphBuilder("depthwise")
    x = g.input("x", (1, 16 // block, 9, 11, block), "int8")
    layouts = {f"{end}_layout": f"NCHW{block}c" for end in ("data", "out")}
    results: list[Value] = []
    for size, attrs in DEPTHWISE:
        filters = g.constant(rng.integers(-128, 128, (13, 1, size, size)).astype(np.int8))
        results.append(g.op("conv2d", x, filters, groups=13, out_dtype="int32", **layouts, **attrs))
    graph = g.build(*results)
    lowered = optimize(graph, target)
    kernels = [Kernel.of(n) for n in lowered.nodes if n.op == "fused"]
    assert [template_for(k, target).name for k in kernels] == ["depthwise_taps_cpu"] * len(DEPTHWISE)
    library = tmp_path / "depthwise.so"
    compile_graph(lowered, target, library)
    image = rng.integers(-128, 128, x.type.static_shape).astype(np.int8)
    result = run(library, target, [image], tmp_path)
    assert (result.returncode, result.stderr) == (0, b"")
    begin = 0
    for expected in evaluate(graph, [image]):
        found = np.frombuffer(result.stdout, np.int32, expected.size, begin).reshape(expected.shape)
        begin += found.nbytes
        np.testing.assert_array_equal(found, expected)
    assert begin == len(result.stdout)


@pytest.mark.parametrize(
    ("name", "dtype", "instruction"),
    [
        ("cortex-a55", "float16", "fmla"),
        ("cortex-a78", "float16", "fmla"),
        ("cortex-x2", "bfloat16", "bfdot"),
        ("cortex-a76", "int8", "sdot"),
    ],
)
def test_products_take_one_element_of_a_register(name: str, dtype: str, instruction: str) -> None:
    """`fmla v.8h, v.8h, v.h[0]`: hardly anything is spread into a register before."""
    target = TARGETS[name]
    g = GraphBuilder()
    operands = [g.input(n, (64, 64), dtype) for n in "ab"]
    wide = "int32" if dtype == "int8" else "float32"
    kernel = Kernel(g.build(g.op("matmul", *operands, out_dtype=wide)))
    lines = [line.split() for line in build_kernel(kernel, target).source().splitlines()]
    products = [line for line in lines if line[:1] == [instruction] and line[2][-4:] in (".8h,", "16b,")]
    by_element = [line for line in products if line[3][-3:] == "[0]"]
    assert len(products) >= 24
    assert len(by_element) >= 0.9 * len(products)


@pytest.mark.parametrize(
    ("name", "dtype", "times"),
    [
        ("cortex-a76", "float16", 1.9),
        ("neoverse-v1", "bfloat16", 3.9),
        ("cortex-a76", "int8", 3.8),
        ("neoverse-v1", "int8", 7.8),
    ],
)
def test_loops_multiply_faster_than_float32(name: str, dtype: str, times: float) -> None:
    """By llvm-mca, against the float32 products that the core could start in the same cycles."""
    target = TARGETS[name]
    sums = ways_to_sum(target, dtype)[0]
    for kernel in (matmul(128, 768, 768, dtype), conv(128, 28, 128, 3, 1, dtype, sums.block(target))):
        assembly = build_kernel(kernel, target, direct_default(kernel, target)).source()
        loop = hot_loop(assembly, target.machine)
        try:
            cost = loop_cost(loop, target)
        except BuildError as error:
            pytest.skip(str(error))
        assert cost.of_peak(target) >= times
        assert cost.spills == 0
