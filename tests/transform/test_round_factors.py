"""Precision tf32: which products round their operands, on which targets, under which keys."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tcomp import api
from tcomp.errors import TypeRuleError, UnsupportedError
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Graph
from tcomp.relay.types import rounded_to_tf32
from tcomp.target.target import TARGETS
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.selection import template_for
from tcomp.transform.lower_precision import is_lowered, product_kernels
from tcomp.transform.pipeline import optimize
from tcomp.transform.precision import describe_precision
from tcomp.tuner.trial_data import tolerance

A100 = TARGETS["cuda:sm_80"]


def network() -> Graph:
    """A convolution, a depthwise one, another, a classifier."""
    rng = np.random.default_rng(0)
    g = GraphBuilder("network")

    def weights(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    x = g.op("conv2d", g.input("image", (8, 16, 28, 28)), g.constant(weights(64, 16, 3, 3)), padding=(1,) * 4)
    x = g.op("conv2d", g.op("relu", x), g.constant(weights(64, 1, 3, 3)), groups=64, padding=(1,) * 4)
    x = g.op("conv2d", g.op("relu", x), g.constant(weights(64, 64, 3, 3)), padding=(1,) * 4)
    x = g.op("reduce_mean", g.op("relu", x), axes=(2, 3), keepdims=False)
    return g.build(g.op("matmul", x, g.constant(weights(64, 16)), name="classifier"))


def test_products_round_and_tensors_keep_their_types() -> None:
    graph = optimize(network(), A100, precision="tf32")
    kernels = [Kernel.of(n) for n in graph.nodes if n.op == "fused"]
    rounded = [k for k in kernels if "multiply_as=tf32" in k.key]
    assert [k.anchor.op for k in rounded if k.anchor] == ["conv2d", "conv2d", "matmul"]
    assert {v.dtype for k in kernels for v in (*k.body.inputs, *k.body.outputs)} == {"float32"}
    assert {template_for(k, A100).name for k in rounded} == {"conv_mma_cuda", "matmul_cuda"}
    assert any("NCHW4c" in k.key for k in rounded), "neighbouring pixels of a chunk lie side by side"
    assert all(tolerance(k) >= 1e-2 for k in rounded)
    assert all(tolerance(k) == 1e-4 for k in kernels if k not in rounded)
    said = describe_precision(graph, A100, "tf32")
    assert said.startswith("precision tf32: 3 products in tf32")


def test_kernels_have_other_keys_than_those_of_float32() -> None:
    keys = {
        precision: {Kernel.of(n).key for n in product_kernels(optimize(network(), A100, precision=precision))}
        for precision in ("exact", "tf32")
    }
    assert keys["exact"]
    assert not any("tf32" in key for key in keys["exact"])
    lowered = [n for n in optimize(network(), A100, precision="tf32").nodes if is_lowered(n)]
    assert not {Kernel.of(n).key for n in lowered} & keys["exact"]


def test_the_reference_rounds_too() -> None:
    x = np.random.default_rng(1).standard_normal((8, 16, 28, 28)).astype(np.float32)
    (exact,), (rounded,) = (
        evaluate(g, [x]) for g in (network(), optimize(network(), A100, precision="tf32"))
    )
    error = np.abs(rounded - exact).max() / np.abs(exact).max()
    assert 1e-5 < error < 1e-2


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (0x3F801000, 0x3F802000),  # as near to 1 as to the next one
        (0x3F800FFF, 0x3F800000),
        (0xBF801000, 0xBF802000),
        (0x7F7FFFFF, 0x7F800000),
        (0x7FFFFFFF, 0x7FFFFFFF),
        (0xFF800000, 0xFF800000),
    ],
)
def test_rounds_to_the_nearest(bits: int, expected: int) -> None:
    number = np.array([bits], np.uint32).view(np.float32)
    assert rounded_to_tf32(number).view(np.uint32)[0] == expected


@pytest.mark.parametrize("target", ["cuda:sm_75", "x86-64-v4", "cuda:sm_75,cuda:sm_80"])
def test_targets_without_it_say_what_to_do(target: str, tmp_path: Path) -> None:
    said = "has no products of tf32, which GPUs from cuda:sm_80 on have; take precision `fast` or `exact`"
    with pytest.raises(UnsupportedError, match=said):
        api.compile(network(), tmp_path / "m.so", target, precision="tf32")


def test_other_types_cannot_be_rounded() -> None:
    g = GraphBuilder("half")
    x = g.input("x", (4, 4), "float16")
    with pytest.raises(
        TypeRuleError, match="multiply_as is tf32, operands are float16; it can be tf32 for float32"
    ):
        g.op("matmul", x, x, multiply_as="tf32")
