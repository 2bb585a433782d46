"""Pipelines as text, and the whole pipeline on small random graphs and on the shapes of real models."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcomp.errors import ParseError, UsageError
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.dims import symbol
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Graph, Value
from tcomp.relay.op import OPS
from tcomp.target.target import TARGETS
from tcomp.tensor.kernel import Kernel
from tcomp.transform.fuse_ops import FuseOps
from tcomp.transform.pass_ import parse_pipeline, print_pipeline
from tcomp.transform.pipeline import optimize

TARGET = TARGETS["x86-64-v4"]


def test_pipeline_text_round_trips() -> None:
    text = "simplify,fuse-ops{max-depth=8},fold-constants"
    passes = parse_pipeline(text)
    assert passes[1] == FuseOps(max_depth=8)
    assert print_pipeline(passes) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fuse-ops{depth=8}", "has no option `depth`; it has max-depth"),
        ("fuse-ops{max-depth=deep}", "option `max-depth` is `deep`, not of type int"),
        ("fuse-ops{max-depth}", "write `option=value`"),
        ("fuse-ops{max-depth=8", "cannot read pipeline"),
        ("Fuse", "cannot read pipeline"),
    ],
)
def test_malformed_pipelines_say_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ParseError, match=message):
        parse_pipeline(text)


def test_unknown_passes_suggest_a_name() -> None:
    with pytest.raises(UsageError, match="unknown pass `fuse-op`; did you mean `fuse-ops`"):
        parse_pipeline("fuse-op")


def kernels(graph: Graph) -> list[list[str]]:
    return [[n.op for n in Kernel.of(node).body.nodes] for node in graph.nodes if node.op == "fused"]


def check_same_numbers(graph: Graph, optimized: Graph, rng: np.random.Generator) -> None:
    inputs = [rng.standard_normal(v.type.static_shape).astype(v.dtype) for v in graph.inputs]
    for before, after in zip(evaluate(graph, inputs), evaluate(optimized, inputs), strict=True):
        assert np.array_equal(np.isnan(before), np.isnan(after))
        scale = max(1.0, float(np.max(np.abs(np.nan_to_num(before)), initial=0.0)))
        np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-4 * scale)


def check_final(graph: Graph) -> None:
    for node in graph.nodes:
        assert node.op == "fused" or OPS[node.op].aliases_of(node)
        if node.op == "fused":
            assert Kernel.of(node).key
            assert len(node.outputs) == 1


def transformer_layer(rng: np.random.Generator) -> Graph:
    b = GraphBuilder()

    def weight(*shape: int) -> Value:
        return b.constant(rng.standard_normal(shape) / 4, "float32")

    def dense(x: Value, outputs: int) -> Value:
        inputs = x.shape[-1]
        assert isinstance(inputs, int)
        return b.op("add", b.op("matmul", x, weight(inputs, outputs)), weight(outputs))

    def heads(x: Value) -> Value:
        return b.op("transpose", b.op("reshape", x, shape=(1, 6, 2, 8)), axes=(0, 2, 1, 3))

    x = b.input("x", (1, 6, 16))
    query, key, value = (heads(dense(x, 16)) for _ in range(3))
    scores = b.op("matmul", query, b.op("transpose", key, axes=(0, 1, 3, 2)))
    scores = b.op("div", scores, b.constant(8**0.5, "float32"))
    context = b.op("matmul", b.op("softmax", scores, axis=3), value)
    joined = b.op("reshape", b.op("transpose", context, axes=(0, 2, 1, 3)), shape=(1, 6, 16))
    x = b.op("layer_norm", b.op("add", dense(joined, 16), x), weight(16), weight(16), axis=2)
    inner = dense(x, 32)
    erf = b.op("erf", b.op("div", inner, b.constant(2**0.5, "float32")))
    gelu = b.op(
        "mul", b.op("mul", inner, b.op("add", erf, b.constant(1, "float32"))), b.constant(0.5, "float32")
    )
    return b.build(b.op("layer_norm", b.op("add", dense(gelu, 16), x), weight(16), weight(16), axis=2))


def test_a_transformer_layer_becomes_few_kernels() -> None:
    rng = np.random.default_rng(0)
    graph = transformer_layer(rng)
    optimized = optimize(graph, TARGET)
    check_final(optimized)
    check_same_numbers(graph, optimized, rng)
    found = Counter("+".join(ops) for ops in kernels(optimized))
    assert found["slice+transpose+slice+transpose+slice+transpose+attention+transpose"] == 1
    assert found["layer_norm"] == 2
    assert found["matmul+add+gelu"] == 1
    assert found["matmul+add+add"] == 2
    assert sum(found.values()) == 7


def test_a_residual_block_is_one_kernel_a_convolution() -> None:
    rng = np.random.default_rng(0)
    b = GraphBuilder()
    x = b.input("x", (1, 16, 8, 8))
    y = x
    for _ in range(2):
        y = b.op("conv2d", y, b.constant(rng.standard_normal((16, 16, 3, 3)), "float32"), padding=(1,) * 4)
        parameters = [b.constant(rng.random(16) + 0.5, "float32") for _ in range(4)]
        y = b.op("relu", b.op("batch_norm", y, *parameters))
    graph = b.build(b.op("reduce_mean", b.op("add", y, x), axes=(2, 3), keepdims=False))
    optimized = optimize(graph, TARGET)
    check_same_numbers(graph, optimized, rng)
    assert kernels(optimized) == [
        ["layout_transform"],
        ["conv2d", "add", "relu"],
        ["conv2d", "add", "relu", "add"],
        ["reduce_mean"],
    ]


def test_channels_last_models_keep_one_transpose_at_the_border() -> None:
    rng = np.random.default_rng(0)
    b = GraphBuilder()
    y = b.input("x", (1, 8, 8, 16))
    for _ in range(4):
        weight = b.constant(rng.standard_normal((16, 16, 1, 1)), "float32")
        y = b.op("conv2d", b.op("transpose", y, axes=(0, 3, 1, 2)), weight)
        y = b.op("transpose", y, axes=(0, 2, 3, 1))
        y = b.op("relu", b.op("add", y, b.constant(rng.standard_normal(16), "float32")))
    graph = b.build(y)
    optimized = optimize(graph, TARGET)
    check_same_numbers(graph, optimized, rng)
    moved = sum("transpose" in ops for ops in kernels(optimized))
    assert moved == 2, "one at the input, one at the output"


def test_symbolic_graphs_pass_through() -> None:
    b = GraphBuilder()
    x = b.input("x", (symbol("batch"), 4))
    graph = b.build(b.op("relu", b.op("matmul", x, b.constant(np.ones((4, 4)), "float32"))))
    optimized = optimize(graph, TARGET)
    (output,) = evaluate(optimized, [np.ones((3, 4), "float32")])
    np.testing.assert_array_equal(output, np.full((3, 4), 4.0))


UNARY = ("relu", "exp", "neg", "sigmoid", "tanh", "abs", "silu")
BINARY = ("add", "sub", "mul", "maximum", "div")


class RandomGraph:
    """A graph grown step by step from [1, C, 4, 4] and [3, 5] tensors, steps drawn by hypothesis."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.rng = np.random.default_rng(draw(st.integers(0, 2**16)))
        self.builder = GraphBuilder()
        channels = draw(st.sampled_from([3, 16, 20]))
        self.values: list[Value] = [
            self.builder.input("image", (1, channels, 4, 4)),
            self.builder.input("rows", (3, 5)),
        ]

    def pick(self) -> Value:
        return self.draw(st.sampled_from(self.values))

    def weight(self, *shape: int) -> Value:
        return self.builder.constant(self.rng.standard_normal(shape), "float32")

    def step(self) -> None:
        x = self.pick()
        kind = self.draw(st.sampled_from(["unary", "binary", "constant", "shape", "reduce", "contract"]))
        self.values.append(getattr(self, kind)(x))

    def unary(self, x: Value) -> Value:
        return self.builder.op(self.draw(st.sampled_from(UNARY)), x)

    def binary(self, x: Value) -> Value:
        same = [v for v in self.values if v.shape == x.shape]
        other = self.draw(st.sampled_from(same))
        name = self.draw(st.sampled_from(BINARY[:-1]))
        return self.builder.op(name, x, other)

    def constant(self, x: Value) -> Value:
        kept = self.draw(st.lists(st.booleans(), min_size=x.type.rank, max_size=x.type.rank))
        shape = [d if keep else 1 for d, keep in zip(x.type.static_shape, kept, strict=True)]
        data = self.rng.choice([-2.0, -1.0, 0.5, 1.0, 3.0], shape)
        name = self.draw(st.sampled_from(BINARY))
        return self.builder.op(name, x, self.builder.constant(data, "float32"))

    def reduce(self, x: Value) -> Value:
        axes = self.draw(st.sets(st.integers(0, x.type.rank - 1), min_size=1)) if x.type.rank else set[int]()
        if not axes:
            return self.unary(x)
        name = self.draw(st.sampled_from(["reduce_mean", "reduce_max", "reduce_sum"]))
        return self.builder.op(name, x, axes=tuple(sorted(axes)), keepdims=self.draw(st.booleans()))

    def shape(self, x: Value) -> Value:
        shape = x.type.static_shape
        if len(shape) < 2:
            return self.builder.op("reshape", x, shape=(1, int(np.prod(shape))))
        match self.draw(st.sampled_from(["transpose", "reshape", "slice", "concat", "pad"])):
            case "transpose":
                return self.builder.op(
                    "transpose", x, axes=tuple(self.draw(st.permutations(range(len(shape)))))
                )
            case "reshape":
                return self.builder.op("reshape", x, shape=(shape[0] * shape[1], *shape[2:]))
            case "slice":
                begin = tuple(self.draw(st.integers(0, d - 1)) for d in shape)
                return self.builder.op("slice", x, begin=begin, end=shape, strides=(1,) * len(shape))
            case "concat":
                return self.builder.op("concat", x, x, axis=self.draw(st.integers(0, len(shape) - 1)))
            case _:
                return self.builder.op("pad", x, padding=(0,) * (len(shape) + 1) + (1,) * (len(shape) - 1))

    def contract(self, x: Value) -> Value:
        shape = x.type.static_shape
        if len(shape) == 4 and min(shape[2:]) >= 3:
            outputs = self.draw(st.sampled_from([8, 16, 20]))
            return self.builder.op("conv2d", x, self.weight(outputs, shape[1], 3, 3), padding=(1,) * 4)
        if len(shape) == 4:
            return self.builder.op("softmax", x, axis=3)
        return self.builder.op("matmul", x, self.weight(shape[-1], 6)) if shape else self.unary(x)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    grown = RandomGraph(draw)
    for _ in range(draw(st.integers(1, 8))):
        grown.step()
    outputs = draw(st.lists(st.sampled_from(grown.values), min_size=1, max_size=2, unique=True))
    return grown.builder.build(*dict.fromkeys([grown.values[-1], *outputs]))


@settings(max_examples=120)
@given(graph=graphs())
def test_random_graphs_keep_their_numbers(graph: Graph) -> None:
    optimized = optimize(graph, TARGET)
    check_final(optimized)
    check_same_numbers(graph, optimized, np.random.default_rng(1))
