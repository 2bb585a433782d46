"""Which products may be by Strassen's algorithm, and that the library of such a model is right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from runnable import WIDEST

import tcomp
from tcomp.relay.attributes import graph as graph_attribute
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Graph
from tcomp.runtime import load
from tcomp.target.target import TARGETS, Target
from tcomp.tensor.kernel import anchors_of
from tcomp.transform.allow_strassen import AllowStrassen
from tcomp.transform.pipeline import optimize
from tcomp.transform.precision import Precision


def network() -> Graph:
    """Two products of constants, one of computed matrices, a pointwise convolution and one of 3x3."""
    rng = np.random.default_rng(0)

    def constant(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return (rng.standard_normal(shape) / 16).astype(np.float32)

    g = GraphBuilder()
    x, image = g.input("x", (96, 256)), g.input("image", (1, 64, 12, 12))
    first = g.op("relu", g.op("matmul", x, g.constant(constant(256, 512)), name="first"))
    second = g.op("tanh", g.op("matmul", first, g.constant(constant(512, 256)), name="second"))
    square = g.op("matmul", second, g.op("transpose", x, axes=(1, 0)), name="square")
    wide = g.op("conv2d", image, g.constant(constant(64, 64, 3, 3)), padding=(1,) * 4, name="wide")
    point = g.op("conv2d", g.op("relu", wide), g.constant(constant(128, 64, 1, 1)), name="point")
    return g.build(square, g.op("relu", point))


def allowed(graph: Graph) -> set[str]:
    bodies = [graph_attribute(n.attrs, "body") for n in graph.nodes if n.op == "fused"]
    return {a.name for body in bodies for a in anchors_of(body) if a.attrs.get("strassen")}


def test_products_of_constants_and_of_pixels_are() -> None:
    exact = optimize(network(), TARGETS["x86-64-v4"])
    assert allowed(exact) == set()
    assert allowed(AllowStrassen().run(exact)) == {"first", "second", "point"}
    kept = "|".join(n.name for n in exact.nodes if "first" in n.name)
    assert kept
    assert allowed(AllowStrassen(kept).run(exact)) == {"second", "point"}


@pytest.mark.parametrize(
    ("name", "precision", "some"),
    [
        ("x86-64-v4", "exact", False),
        ("x86-64-v4", "fast", True),
        ("cortex-a72", "fast", True),
        ("cortex-a76", "fast", False),
    ],
)
def test_precision_fast_asks_for_it_where_16_bits_are_no_faster(
    name: str, precision: Precision, some: bool
) -> None:
    assert bool(allowed(optimize(network(), TARGETS[name], precision=precision))) == some


def test_the_library_is_compared_with_plain_products(tmp_path: Path) -> None:
    target: Target = WIDEST
    assert target.fast_dtype is None
    compiled = tcomp.compile(network(), tmp_path / "m.so", target, precision="fast")
    assert "3 of 5 products may be by Strassen's algorithm; error of `" in compiled.precision
    arrays = [np.random.default_rng(1).standard_normal(v.type.static_shape) for v in network().inputs]
    inputs = [a.astype(np.float32) for a in arrays]
    with load(tmp_path / "m.so") as model:
        outputs = model(*inputs)
    for found, expected in zip(outputs, evaluate(network(), inputs), strict=True):
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
