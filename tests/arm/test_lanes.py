"""Kernels that multiply by lanes of registers: their loops, and their numbers under qemu."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_emulated import run, tools

from tcomp.api import optimize
from tcomp.codegen.artifact import compile_graph
from tcomp.codegen.jit import build_kernel
from tcomp.codegen.machine_code import (
    find_llvm_mca,
    hot_loop,
    innermost_loops,
    loop_cost,
    multiplies,
    multiply_adds,
    on_stack,
)
from tcomp.errors import BuildError
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Graph, Value
from tcomp.relay.types import Array
from tcomp.target.parse import parse_target
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.selection import template_for

A76 = parse_target("cortex-a76")


def conv(channels: int, size: int, outputs: int, taps: int, stride: int = 1, groups: int = 1) -> Kernel:
    """A convolution with bias and clipping in blocked layout; its input is plain when it has few channels."""
    g = GraphBuilder()
    plain = channels < 4
    data = g.input("data", (1, channels, size, size) if plain else (1, channels // 4, size, size, 4))
    result = g.op(
        "conv2d",
        data,
        g.input("weight", (outputs, channels // groups, taps, taps)),
        strides=(stride, stride),
        padding=(taps // 2,) * 4,
        groups=groups,
        data_layout="NCHW" if plain else "NCHW4c",
        out_layout="NCHW4c",
    )
    bias = g.input("bias", (1, outputs // 4, 1, 1, 4))
    clipped = g.op("clip", g.op("add", result, bias), min=0.0, max=6.0)
    return Kernel(g.build(clipped), frozenset({1, 2}))


def matmul(rows: int, depth: int, columns: int) -> Kernel:
    g = GraphBuilder()
    product = g.op("matmul", g.input("a", (rows, depth)), g.input("b", (depth, columns)))
    return Kernel(g.build(product), frozenset({1}))


KERNELS = {
    "1x1": conv(256, 14, 1024, 1),
    "1x1 strided": conv(256, 56, 512, 1, 2),
    "3x3 strided": conv(128, 56, 128, 3, 2),
    "Winograd": conv(256, 14, 256, 3),
    "7x7 strided, three channels": conv(3, 224, 64, 7, 2),
    "wide matmul": matmul(128, 768, 768),
    "narrow matmul": matmul(4096, 64, 64),
}


@pytest.mark.parametrize("core", ["cortex-a76", "cortex-a55"])
@pytest.mark.parametrize("name", KERNELS)
def test_hot_loops_multiply_by_lanes(name: str, core: str) -> None:
    """Few instructions but products; no factor is broadcast; registers suffice.

    A vector in halves takes three.
    """
    target = parse_target(core)
    loop = hot_loop(build_kernel(KERNELS[name], target).source(), target.machine)
    products = [text for text in loop if text.startswith("fmla")]
    assert all(".s[" in text for text in products)
    assert not on_stack(loop, target.machine)
    assert not target.half_loads or not [text for text in loop if text.startswith("ld") and " q" in text]
    most = 2.2 if target.half_loads else 1.4
    assert len(loop) < most * multiply_adds(loop, target.machine, target.sve_bits) / target.lanes()


def part_of_peak(kernel: Kernel, target: Target) -> float:
    """What the hot loop of a kernel reaches by llvm-mca."""
    try:
        find_llvm_mca()
    except BuildError as error:
        pytest.skip(str(error))
    return loop_cost(hot_loop(build_kernel(kernel, target).source(), target.machine), target).of_peak(target)


@pytest.mark.parametrize("name", KERNELS)
def test_hot_loops_reach_nine_tenths_of_the_peak(name: str) -> None:
    assert part_of_peak(KERNELS[name], parse_target("cortex-a76")) > 0.9


@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_rows_load_without_address_arithmetic(stride: int) -> None:
    target, kernel = parse_target("cortex-a76"), conv(144, 56, 144, 3, stride, 144)
    assert template_for(kernel, target).name == "depthwise_cpu"
    loop = hot_loop(build_kernel(kernel, target).source(), target.machine)
    assert not on_stack(loop, target.machine)
    assert len(loop) < 1.9 * multiply_adds(loop, target.machine, target.sve_bits) / target.lanes()


@pytest.mark.parametrize(
    ("target_name", "instructions", "others"),
    [("cortex-a76", ("fmax", "fmin"), "fcm"), ("armv7-linux", ("vmax.f32", "vmin.f32"), "vcgt")],
)
def test_extremes_are_one_instruction(target_name: str, instructions: tuple[str, ...], others: str) -> None:
    source = build_kernel(conv(64, 14, 64, 1), parse_target(target_name)).source().split()
    assert all(name in source for name in instructions)
    assert not any(word.startswith(others) for word in source)


def test_extremes_inside_functions_are_one_instruction() -> None:
    """Arguments of the error function, and of exponentials, are kept in range by them."""
    g = GraphBuilder()
    product = g.op("matmul", g.input("a", (128, 64)), g.input("b", (64, 192)))
    kernel = Kernel(g.build(g.op("gelu", product)), frozenset({1}))
    source = build_kernel(kernel, parse_target("cortex-a76")).source().split()
    assert {"fmax", "fmin"} <= set(source)
    assert not any(word.startswith("fcm") for word in source)


def test_extremes_of_float64_are_compared_on_32_bit_arm() -> None:
    """Vectors there hold none, and LLVM would end the process over their `maximum`."""
    g = GraphBuilder()
    q, k, v = (
        g.input(name, shape, "float64") for name, shape in (("q", (3, 4)), ("k", (5, 4)), ("v", (5, 2)))
    )
    kernel = Kernel(g.build(g.op("attention", q, k, v, scale=0.5)))
    assert "vcmp.f64" in build_kernel(kernel, parse_target("armv7-linux")).source().replace("vcmpe", "vcmp")


@pytest.mark.parametrize("groups", [1, 64])
def test_sums_start_from_the_bias(groups: int) -> None:
    kernel = conv(64, 14, 64, 3 if groups > 1 else 1, groups=groups)
    assert " fadd " not in build_kernel(kernel, parse_target("cortex-a76")).source().replace("\t", " ")


def test_inputs_in_the_second_cache_are_not_fetched_ahead() -> None:
    target = parse_target("cortex-a76")
    near, far = (build_kernel(conv(256, size, 64, 1), target).source() for size in (14, 56))
    assert "prfm" not in near
    assert "prfm" in far


@pytest.mark.parametrize(("core", "most", "reloads"), [("cortex-a76", 1.28, 0), ("neoverse-v1", 1.45, 2)])
def test_attention_multiplies_by_lanes(core: str, most: float, reloads: int) -> None:
    """Both products take factors of several steps with one load; constants serve several exponentials.

    Loads of factors for SVE reach eight of their lengths far, so that more addresses are held.
    """
    g, target = GraphBuilder(), parse_target(core)
    heads = [g.input(name, (12, 128, 32)) for name in "qkv"]
    source = build_kernel(Kernel(g.build(g.op("attention", *heads, scale=0.25))), target).source()
    loops = innermost_loops(source, target.machine)
    products = [loop for loop in loops if multiplies(loop, target.machine) > len(loop) / 2]
    shifts = [sum(text.split()[0] in ("shl", "lsl") for text in loop) for loop in loops]
    assert len(products) >= 2
    for loop in products:
        assert len(on_stack(loop, target.machine)) <= reloads
        assert len(loop) < most * multiply_adds(loop, target.machine, target.sve_bits) / target.lanes()
    assert all(len(loop) < 24 * n for loop, n in zip(loops, shifts, strict=True) if n >= 4)
    assert any(n >= 4 for n in shifts)


@pytest.mark.parametrize(
    ("name", "most"),
    [("wide matmul", 1.08), ("1x1", 1.10), ("Winograd", 1.12), ("3x3 strided", 1.13)],
)
def test_four_registers_are_loaded_at_once(name: str, most: float) -> None:
    """Three loads for two steps of 24 products leave little: 1.06 instructions a product and the loop."""
    target = parse_target("cortex-a76")
    loop = hot_loop(build_kernel(KERNELS[name], target).source(), target.machine)
    assert sum(text.startswith("ld1 ") for text in loop) >= 3
    assert len(loop) < most * multiply_adds(loop, target.machine, target.sve_bits) / target.lanes()


def test_cores_that_execute_in_order_load_ahead() -> None:
    """Behind a load of four registers they would wait."""
    source = build_kernel(KERNELS["wide matmul"], parse_target("cortex-a55")).source().split()
    assert "ld1" not in source


def test_registers_suffice_on_neoverse_n1() -> None:
    target = parse_target("neoverse-n1")
    loop = hot_loop(build_kernel(KERNELS["1x1"], target).source(), target.machine)
    assert not on_stack(loop, target.machine)


def test_registers_suffice_on_32_bit_arm() -> None:
    target = parse_target("armv7-linux")
    loop = hot_loop(build_kernel(KERNELS["wide matmul"], target).source(), target.machine)
    assert not on_stack(loop, target.machine)


def network() -> Graph:
    """Convolutions of every kind, of channels and sizes that tiles do not divide."""
    rng = np.random.default_rng(0)
    g = GraphBuilder("network")

    def step(x: Value, outputs: int, taps: int, stride: int = 1, groups: int = 1, dilation: int = 1) -> Value:
        shape = (outputs, x.type.static_shape[1] // groups, taps, taps)
        weights = (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        padding = (taps // 2 * dilation,) * 4
        sizes = {"strides": (stride, stride), "dilation": (dilation, dilation)}
        made = g.op("conv2d", x, g.constant(weights), padding=padding, groups=groups, **sizes)
        return g.op("add", made, g.constant(rng.standard_normal((outputs, 1, 1)).astype(np.float32)))

    x = g.op("relu", step(g.input("image", (1, 3, 61, 45)), 24, 7, 2))
    for sizes in ((40, 1), (40, 3), (36, 3, 2), (36, 3, 1, 36), (36, 3, 2, 36), (24, 3, 1, 3), (52, 1, 2)):
        x = g.op("relu", step(x, *sizes))
    x = step(x, 20, 3, dilation=2)
    rows = g.op("reshape", x, shape=(20, x.type.size // 20))
    for shape in ((x.type.size // 20, 37), (37, 100), (100, 260)):
        weights = rng.standard_normal(shape) / np.sqrt(shape[0])
        rows = g.op("matmul", rows, g.constant(weights.astype(np.float32)))
    heads = g.op("reshape", rows, shape=(4, 20, 65))
    mixed = g.op("attention", heads, heads, heads, scale=0.02)
    return g.build(g.op("attention", heads, mixed, mixed, scale=0.02, causal=3))


@pytest.mark.parametrize("name", ["arm64-linux", "cortex-a55", "cortex-a76", "armv7-linux"])
def test_numbers_are_those_of_the_reference(name: str, tmp_path: Path) -> None:
    target, graph = parse_target(name), network()
    tools(target)
    library = tmp_path / "network.so"
    compile_graph(optimize(graph, target), target, library)
    image: Array = np.random.default_rng(1).standard_normal((1, 3, 61, 45)).astype(np.float32)
    result = run(library, target, [image], tmp_path)
    assert (result.returncode, result.stderr) == (0, b"")
    (expected,) = evaluate(graph, [image])
    found = np.frombuffer(result.stdout, np.float32).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("unroll", "sums"), [(1, 1), (2, 1), (2, 2), (4, 2)])
def test_steps_of_any_number_are_written_out(unroll: int, sums: int, tmp_path: Path) -> None:
    """Weights of as many steps as are written out, or fewer, are one load."""
    tools(A76)
    g, rng = GraphBuilder("steps"), np.random.default_rng(0)
    weights = g.constant(rng.standard_normal((12, 24, 2, 2)).astype(np.float32))
    blocks = {"data_layout": "NCHW4c", "out_layout": "NCHW4c"}
    image = g.input("image", (1, 6, 9, 21, 4))
    graph = optimize(g.build(g.op("conv2d", image, weights, padding=(0, 0, 1, 1), **blocks)), A76)
    config = {
        "tile_height": 1,
        "tile_width": 5,
        "oc_blocks": 1,
        "order": "weights",
        "unroll": unroll,
        "unroll_kernel": unroll == 2,
        "prefetch": 0,
        "partial_sums": sums,
    }
    library = tmp_path / "network.so"
    compile_graph(graph, A76, library, lambda kernel: config if kernel.anchor else None)
    data = rng.standard_normal((1, 6, 9, 21, 4)).astype(np.float32)
    (expected,) = evaluate(graph, [data])
    found = np.frombuffer(run(library, A76, [data], tmp_path).stdout, np.float32).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["arm64-linux", "armv7-linux"])
def test_nan_stays_nan(name: str, tmp_path: Path) -> None:
    target = parse_target(name)
    tools(target)
    g = GraphBuilder("bounds")
    graph = g.build(g.op("clip", g.op("relu", g.input("x", (19,))), min=0.5, max=6.0))
    library = tmp_path / "network.so"
    compile_graph(optimize(graph, target), target, library)
    x = np.linspace(-9, 9, 19, dtype=np.float32)
    x[[3, 18]] = np.nan
    result = run(library, target, [x], tmp_path)
    found = np.frombuffer(result.stdout, np.float32)
    np.testing.assert_array_equal(found, np.clip(np.maximum(x, 0), 0.5, 6))


@pytest.mark.parametrize("name", ["arm64-linux", "armv7-linux"])
def test_nan_of_rows_and_windows_stays(name: str, tmp_path: Path) -> None:
    target = parse_target(name)
    tools(target)
    g = GraphBuilder("extremes")
    x = g.input("x", (2, 3, 20))
    rows = (g.op("reduce_max", x, axes=(axis,)) for axis in (1, 2))
    graph = g.build(*rows, g.op("max_pool1d", x, kernel=(3,), strides=(2,)))
    library = tmp_path / "network.so"
    compile_graph(optimize(graph, target), target, library)
    x = np.random.default_rng(0).standard_normal((2, 3, 20)).astype(np.float32)
    x[[0, 1, 1], [0, 1, 2], [3, 0, 19]] = np.nan
    found = np.frombuffer(run(library, target, [x], tmp_path).stdout, np.float32)
    np.testing.assert_array_equal(found, np.concatenate([y.ravel() for y in evaluate(graph, [x])]))
