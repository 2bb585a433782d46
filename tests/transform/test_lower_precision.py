"""Which values and products of a model go to 16 bits, and what the pipeline says about it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tcomp.errors import GraphError
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Attr, Graph, Node, Value
from tcomp.target.parse import parse_target
from tcomp.target.target import TARGETS, Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.selection import template_for
from tcomp.transform.lower_precision import LowerPrecision, is_lowered, product_kernels
from tcomp.transform.pipeline import optimize, passes_before_lowering, run_passes
from tcomp.transform.precision import describe_precision, lowering
from tcomp.tuner.task import tasks

FP16 = parse_target('{"tag": "emeraldrapids", "mattr": ["-amx-bf16"]}')
BF16, NO_FP16 = TARGETS["znver4"], TARGETS["x86-64-v4"]


def mlp(scale: float = 1.0) -> Graph:
    """Two products between a norm and a softmax."""
    rng = np.random.default_rng(0)
    builder = GraphBuilder()
    first = (rng.standard_normal((32, 64)) * scale).astype(np.float32)
    second = rng.standard_normal((64, 32)).astype(np.float32)
    weight, bias = builder.constant(np.ones(32, np.float32)), builder.constant(np.zeros(32, np.float32))
    x = builder.op("layer_norm", builder.input("x", (16, 32)), weight, bias, axis=1)
    y = builder.op("gelu", builder.op("matmul", x, builder.constant(first), name="first"))
    z = builder.op("add", builder.op("matmul", y, builder.constant(second), name="second"), x)
    return builder.build(builder.op("softmax", z, axis=1))


@pytest.mark.parametrize("target", [FP16, BF16], ids=lambda t: t.fast_dtype)
def test_fast_lowers_both_products_and_keeps_the_interface(target: Target) -> None:
    optimized = optimize(mlp(), target, precision="fast")
    assert [is_lowered(n) for n in product_kernels(optimized)] == [True, True]
    assert [str(v.type) for v in (*optimized.inputs, *optimized.outputs)] == ["f32[16,32]"] * 2
    x = np.random.default_rng(1).standard_normal((16, 32)).astype(np.float32)
    (exact,), (fast,) = evaluate(mlp(), [x]), evaluate(optimized, [x])
    assert 0 < np.abs(fast - exact).max() < 5e-2
    said = describe_precision(optimized, target, "fast")
    assert said == f"precision fast: 2 products in {target.fast_dtype}"


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4", "skylake-avx512"])
def test_other_targets_stay_in_float32_and_say_so(target: str) -> None:
    optimized = optimize(mlp(), TARGETS[target], precision="fast")
    types = {v.dtype for n in optimized.nodes for v in (*n.inputs, *n.outputs)}
    assert types == {"float32"}
    said = describe_precision(optimized, TARGETS[target], "fast")
    assert target in said
    assert "float32" in said
    assert describe_precision(optimized, TARGETS[target], "exact") == ""


def test_weights_out_of_range_keep_their_product_in_float32() -> None:
    optimized = optimize(mlp(scale=1e6), FP16, precision="fast")
    assert [is_lowered(n) for n in product_kernels(optimized)] == [False, True]
    assert "1 in float32 (first)" in describe_precision(optimized, FP16, "fast")


def test_bfloat16_has_the_range_of_float32() -> None:
    optimized = optimize(mlp(scale=1e6), BF16, precision="fast")
    assert [is_lowered(n) for n in product_kernels(optimized)] == [True, True]


def test_tasks_of_both_types_have_keys_of_their_own() -> None:
    """Records are kept by instruction set, which `znver4` and `emeraldrapids` share: keys tell them apart."""
    assert FP16.isa == BF16.isa
    found = {t: [x.kernel for x in tasks(optimize(mlp(), t, precision="fast"), t)] for t in (FP16, BF16)}
    half, brain = ({k.key for k in found[t] if k.anchor and k.anchor.op == "matmul"} for t in (FP16, BF16))
    assert len(half) == len(brain) == 2
    assert all("f16[" in key and "bf16[" not in key for key in half)
    assert all("bf16[" in key for key in brain)


def test_kept_kernels_read_and_write_float32() -> None:
    optimized = LowerPrecision(keep="first").run(optimize(mlp(), FP16))
    first, second = product_kernels(optimized)
    assert not is_lowered(first)
    assert {v.dtype for v in (*first.inputs, *first.outputs)} == {"float32"}
    assert not is_lowered(second)
    assert all(v.dtype == "float32" for v in evaluate(optimized, [np.ones((16, 32), np.float32)]))


def inverted_residual(size: int) -> Graph:
    """Pointwise, depthwise and pointwise convolution behind a strided one, in plain layout."""
    rng = np.random.default_rng(0)
    builder = GraphBuilder()

    def conv(x: Value, outputs: int, inputs: int, kernel: int, name: str, **attrs: Attr) -> Value:
        weight = builder.constant(
            rng.standard_normal((outputs, inputs, kernel, kernel)).astype(np.float32) / 4
        )
        return builder.op(
            "relu", builder.op("conv2d", x, weight, name=name, padding=(kernel // 2,) * 4, **attrs)
        )

    x = conv(builder.input("x", (1, 3, 2 * size, 2 * size)), 16, 3, 3, "stem", strides=(2, 2))
    x = conv(conv(x, 64, 16, 1, "expand"), 64, 1, 3, "depthwise", groups=64)
    return builder.build(conv(conv(x, 16, 64, 1, "project"), 16, 16, 1, "last"))


def test_a_chain_of_convolutions_is_one_kernel_in_float32() -> None:
    target = replace(FP16, cache_bytes=(48 * 1024, 256 * 1024, 1024 * 1024))
    chained = optimize(inverted_residual(56), target)
    assert [len(Kernel.of(n).anchors) for n in chained.nodes if n.op == "fused"].count(3) == 1
    lowered = LowerPrecision().run(chained)
    (chain,) = (n for n in lowered.nodes if n.op == "fused" and len(Kernel.of(n).anchors) == 3)
    assert {v.dtype for v in (*chain.inputs, *chain.outputs)} == {"float32"}
    assert template_for(Kernel.of(chain), target).name == "conv_chain_cpu"
    assert all(
        is_lowered(n) for n in product_kernels(optimize(inverted_residual(56), target, precision="fast"))[1:]
    )
    x = np.random.default_rng(1).standard_normal((1, 3, 112, 112)).astype(np.float32)
    (exact,), (found,) = evaluate(inverted_residual(56), [x]), evaluate(chained, [x])
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("target", [TARGETS["emeraldrapids"], BF16], ids=["tiles", "pairs"])
def test_first_convolutions_round_what_they_read(target: Target) -> None:
    graph = inverted_residual(28)
    optimized = optimize(graph, target, precision="fast")
    first, *others = product_kernels(optimized)
    assert first.name == "stem"
    assert all(is_lowered(n) for n in (first, *others))
    assert "multiply_as=bfloat16" in Kernel.of(first).key
    assert [v.dtype for v in (*first.inputs, *first.outputs)] == ["float32", "float32", "bfloat16"]
    said = describe_precision(optimized, target, "fast")
    assert said == f"precision fast: {1 + len(others)} products in bfloat16"
    x = np.random.default_rng(1).standard_normal((1, 3, 56, 56)).astype(np.float32)
    (exact,), (fast,) = evaluate(graph, [x]), evaluate(optimized, [x])
    assert 0 < np.abs(fast - exact).max() < 2e-2 * np.abs(exact).max()


@pytest.mark.parametrize("target", [FP16, TARGETS["neoverse-v1"]], ids=lambda t: t.fast_dtype)
def test_first_convolutions_stay_in_float32_elsewhere(target: Target) -> None:
    optimized = optimize(inverted_residual(28), target, precision="fast")
    assert "stem" not in [n.name for n in product_kernels(optimized)]
    (stem,) = (n for n in optimized.nodes if n.name == "stem")
    assert not is_lowered(stem)


def test_first_convolutions_may_be_kept() -> None:
    target = TARGETS["emeraldrapids"]
    lower = lowering(target, "fast", keep="stem")
    assert lower is not None
    exact = run_passes(inverted_residual(28), passes_before_lowering(target, "fast"))
    (stem,) = (n for n in lower.run(exact).nodes if n.name == "stem")
    assert not is_lowered(stem)
    assert {v.dtype for v in (*stem.inputs, *stem.outputs)} == {"float32"}


@pytest.mark.parametrize("prologue", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
def test_gpus_round_what_convolutions_read_inside_their_kernel(prologue: bool, groups: int) -> None:
    """A graph's input is, but for groups, which tensor cores do not multiply."""
    g = GraphBuilder()
    x = g.input("x", (1, 3, 12, 12))
    weight = np.random.default_rng(0).standard_normal((24, 3 // groups, 3, 3)).astype(np.float32)
    source = g.op("relu", x) if prologue else x
    graph = g.build(g.op("relu", g.op("conv2d", source, g.constant(weight), groups=groups)))
    target = TARGETS["cuda:sm_80"]
    lowered = optimize(graph, target, precision="fast")
    (product,) = (n for n in lowered.nodes if n.op == "fused" and Kernel.of(n).anchor is not None)
    rounds = groups == 1 or prologue
    assert is_lowered(product) is rounds
    if groups == 1:
        assert template_for(Kernel.of(product), target).id == "conv_mma_cuda@1"
    data = np.random.default_rng(1).standard_normal((1, 3, 12, 12)).astype(np.float32)
    (expected,), (found,) = evaluate(graph, [data]), evaluate(lowered, [data])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=5e-3, atol=2e-2)


def test_patches_are_of_bfloat16() -> None:
    with pytest.raises(GraphError, match="patches are of bfloat16, dtype is float16"):
        LowerPrecision("float16", patches=True).run(optimize(mlp(), NO_FP16))


def test_unknown_types_are_refused() -> None:
    with pytest.raises(GraphError, match="dtype is float8; it must be float16 or bfloat16"):
        LowerPrecision("float8").run(optimize(mlp(), NO_FP16))


@pytest.mark.parametrize(("largest", "lowered"), [(0.1, True), (1e3, False)])
def test_packed_weights_become_16_bits_by_their_scales(largest: float, lowered: bool) -> None:
    rng = np.random.default_rng(0)
    builder = GraphBuilder()
    x = builder.op("softmax", builder.input("x", (4, 1024)), axis=1)
    x = builder.op("matmul", x, builder.constant(rng.standard_normal((1024, 1024)).astype(np.float32)))
    levels = builder.constant(rng.integers(0, 256, (512, 512)).astype(np.uint8))
    scales = builder.constant(np.full((512, 32), largest, np.float32))
    zero = builder.constant(np.uint8(8))
    weights = builder.op("dequantize_blocks", levels, scales, zero, bits=4, block=32, columns=1024)
    graph = builder.build(builder.op("matmul", x, weights, transpose_b=True, name="packed"))
    optimized = optimize(graph, TARGETS["cuda:sm_80"], precision="fast")
    (packed,) = (n for n in optimized.nodes if n.name == "packed")
    assert is_lowered(packed) == lowered
    assert ("const f16[512,32]" in Kernel.of(packed).key) == lowered
    array = rng.standard_normal((4, 1024)).astype(np.float32)
    (exact,), (found,) = evaluate(graph, [array]), evaluate(optimized, [array])
    np.testing.assert_allclose(found, exact, atol=1e-2 * np.abs(exact).max())


def masked_attention() -> Graph:
    """Attention over merged products of one input, with a mask that is one of the graph's."""
    rng = np.random.default_rng(0)
    builder = GraphBuilder()
    x, mask = builder.input("x", (16, 32)), builder.input("mask", (16, 16))
    rows = [
        builder.op(
            "matmul", builder.op("relu", x), builder.constant(rng.standard_normal((32, 32), np.float32))
        )
        for _ in range(3)
    ]
    return builder.build(
        builder.op("relu", builder.op("attention", *rows, mask, scale=0.2, causal=2, name="heads"))
    )


def test_attention_is_lowered() -> None:
    """In bfloat16 (tiles or pairs), and on GPUs. Its mask stays as it is, all operands in float16 on CPUs."""
    x = [np.random.default_rng(1).standard_normal(s).astype(np.float32) for s in ((16, 32), (16, 16))]
    (exact,) = evaluate(masked_attention(), x)
    cpus = (TARGETS["emeraldrapids"], BF16, TARGETS["neoverse-v1"], FP16)
    for target in (*cpus, TARGETS["cuda:sm_80"], TARGETS["cuda:sm_75"]):
        lowered = target.fast_dtype == "bfloat16" or target.family == "cuda"
        optimized = optimize(masked_attention(), target, precision="fast")
        (anchor,) = (a for n in optimized.nodes for a in anchors_of(n) if a.op == "attention")
        assert [v.dtype for v in anchor.inputs] == [target.fast_dtype if lowered else "float32"] * 3 + [
            "float32"
        ]
        assert anchor.attrs["causal"] == 2
        (fast,) = evaluate(optimized, x)
        assert 0 < np.abs(fast - exact).max() < 5e-2 * np.abs(exact).max()


def test_attention_may_be_kept() -> None:
    exact = run_passes(masked_attention(), passes_before_lowering(BF16, "fast"))
    lower = lowering(BF16, "fast", keep="heads")
    assert lower is not None
    (heads,) = (n for n in lower.run(exact).nodes if n.name == "heads")
    assert not is_lowered(heads)
    assert {v.dtype for v in (*heads.inputs, *heads.outputs)} == {"float32"}


def anchors_of(node: Node) -> list[Node]:
    body = node.attrs.get("body")
    return list(body.nodes) if isinstance(body, Graph) else []
