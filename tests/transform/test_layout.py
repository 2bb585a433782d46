"""Layouts follow estimated costs: of kernels in each layout, and of changing from one to the other."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product
from math import isfinite

import numpy as np
import pytest

from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Constant, Graph, Value
from tcomp.relay.op import OPS
from tcomp.relay.types import TensorType
from tcomp.target.target import TARGETS, Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.selection import template_for
from tcomp.tensor.template import Template
from tcomp.transform import layout_costs
from tcomp.transform.layout import BlockChannels
from tcomp.transform.layout_choice import choose_layouts
from tcomp.transform.layout_costs import LayoutCosts, is_view

V3, V4 = TARGETS["x86-64-v3"], TARGETS["x86-64-v4"]


class Net:
    """A graph under construction whose weights are random."""

    def __init__(self) -> None:
        self.builder = GraphBuilder()
        self._rng = np.random.default_rng(0)

    def input(self, channels: int, size: int) -> Value:
        return self.builder.input("x", (1, channels, size, size))

    def conv(self, x: Value, outputs: int, kernel: int = 3, groups: int = 1) -> Value:
        inputs = x.type.static_shape[1] // groups
        weight = self._rng.standard_normal((outputs, inputs, kernel, kernel)).astype(np.float32) / 8
        return self.builder.op("conv2d", x, Constant.of(weight), padding=(kernel // 2,) * 4, groups=groups)

    def relu(self, x: Value) -> Value:
        return self.builder.op("relu", x)


def layouts(graph: Graph) -> list[tuple[str, str]]:
    """Of the convolutions, in order: what each reads and writes."""
    convolutions = [n for n in graph.nodes if n.op == "conv2d"]
    return [(str(n.attrs["data_layout"]), str(n.attrs["out_layout"])) for n in convolutions]


def changes(graph: Graph) -> int:
    return sum(n.op == "layout_transform" for n in graph.nodes)


def check_numbers(before: Graph, after: Graph) -> None:
    rng = np.random.default_rng(1)
    inputs = [rng.standard_normal(v.type.static_shape).astype(v.dtype) for v in before.inputs]
    for expected, found in zip(evaluate(before, inputs), evaluate(after, inputs), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_many_channels_are_blocked() -> None:
    net = Net()
    x = net.relu(net.conv(net.input(64, 28), 64))
    graph = net.builder.build(net.conv(x, 64))
    after = BlockChannels(V3).run(graph)
    assert layouts(after) == [("NCHW8c", "NCHW8c")] * 2
    assert changes(after) == 2
    check_numbers(graph, after)


@pytest.mark.parametrize(
    ("target", "dtype", "channels", "block"),
    [
        ("cuda:sm_90a", "float16", 128, 64),
        ("cuda:sm_90a", "float16", 72, 8),
        ("cuda:sm_90a", "tf32", 128, 32),
        ("cuda:sm_80", "float16", 128, 8),
        ("cuda:sm_80", "tf32", 128, 4),
    ],
)
def test_blocks_of_gpus_are_lines_where_windows_are_tiles(
    target: str, dtype: str, channels: int, block: int
) -> None:
    """Channels that fill no line stay in blocks of 16 bytes."""
    net = Net()
    x = net.input(channels, 56)
    for _ in range(5):
        x = net.relu(net.conv(x, channels))
    graph = net.builder.build(x)
    after = BlockChannels(replace(TARGETS[target], fast_dtype=dtype)).run(graph)
    assert layouts(after)[2] == (f"NCHW{block}c",) * 2


def test_few_channels_stay_plain() -> None:
    net = Net()
    x = net.relu(net.conv(net.input(3, 20), 2))
    graph = net.builder.build(net.conv(x, 2, 1))
    assert BlockChannels(V3).run(graph).nodes == graph.nodes


def test_groups_that_break_blocks_stay_plain_between_blocked_kernels() -> None:
    """Four groups of 34 channels would be merged into one; depthwise convolutions around stay blocked."""
    net = Net()
    x = net.relu(net.conv(net.input(136, 28), 136, 3, 136))
    x = net.relu(net.conv(x, 136, 1, 4))
    graph = net.builder.build(net.conv(x, 136, 3, 136))
    after = BlockChannels(V3).run(graph)
    assert layouts(after) == [("NCHW8c", "NCHW8c"), ("NCHW", "NCHW"), ("NCHW8c", "NCHW8c")]
    assert changes(after) == 4
    check_numbers(graph, after)


def test_smaller_blocks_where_they_make_a_concatenation_whole() -> None:
    """Parts of 12 channels are 1.5 blocks of 8: blocks of 4, vectors of NEON, are written in place."""
    net = Net()
    x = net.relu(net.conv(net.input(3, 40), 96))
    parts = [net.relu(net.conv(x, 12)) for _ in range(4)]
    joined = net.builder.op("concat", *parts, axis=1)
    graph = net.builder.build(net.conv(net.conv(joined, 96), 96))
    after = BlockChannels(TARGETS["cortex-a76"]).run(graph)
    (concat,) = (n for n in after.nodes if n.op == "concat")
    assert concat.output.shape == (1, 12, 40, 40, 4)
    check_numbers(graph, after)


def test_readers_share_one_change_of_layout() -> None:
    net = Net()
    x = net.builder.op("sin", net.input(64, 28))
    y = net.builder.op("transpose", x, axes=(0, 2, 3, 1))
    z = net.builder.op("transpose", y, axes=(0, 3, 1, 2))
    graph = net.builder.build(net.conv(z, 64), net.conv(z, 64), net.conv(z, 32))
    stats: Counter[str] = Counter()
    after = BlockChannels(V3).run(graph, stats)
    assert layouts(after) == [("NCHW8c", "NCHW8c")] * 3
    assert changes(after) == stats["layout transforms"] == 4


@pytest.mark.parametrize("seed", range(4))
def test_no_other_choice_of_layouts_is_cheaper(seed: int) -> None:
    """All choices of a small graph of convolutions, their costs added up by hand."""
    rng = np.random.default_rng(seed)
    net = Net()
    x = net.input(int(rng.integers(2, 40)), 12)
    first = net.conv(x, int(rng.integers(2, 40)))
    second = net.conv(first, int(rng.integers(2, 40)), 1)
    third = net.conv(first, int(rng.integers(2, 40)), 1)
    graph = net.builder.build(second, third)
    costs, nodes = LayoutCosts(V3), graph.nodes
    chosen = choose_layouts(graph, V3, Counter())
    names = sorted({n for c in chosen.values() for n in (c.source, c.result)} | {"NCHW", "NCHW8c"})

    def price(choice: tuple[str, ...]) -> float:
        pairs = list(zip(choice[::2], choice[1::2], strict=True))
        kernels = sum(costs.convolution(n, *pair) for n, pair in zip(nodes, pairs, strict=True))
        made = {x: ("NCHW", {pairs[0][0]}), first: (pairs[0][1], {pairs[1][0], pairs[2][0]})}
        made |= {n.output: (pair[1], {"NCHW"}) for n, pair in zip(nodes[1:], pairs[1:], strict=True)}
        return kernels + sum(
            costs.transform(value.type, source, wanted)
            for value, (source, all_wanted) in made.items()
            for wanted in all_wanted
        )

    found = tuple(layout for n in nodes for layout in (chosen[n].source, chosen[n].result))
    assert price(found) == pytest.approx(min(map(price, product(names, repeat=6))))


def test_layouts_do_not_depend_on_caches_and_cores() -> None:
    """Kernels are the keys of records, which hold for all CPUs of an instruction set."""
    small = replace(V3, name="small", cores=16, cache_bytes=(1 << 13, 1 << 16, 1 << 17))
    assert BlockChannels.for_isa(small).target == replace(V3, name="small")


def test_equal_kernels_are_estimated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def counting(kernel: Kernel, target: Target) -> Template:
        asked.append(kernel.key)
        return template_for(kernel, target)

    monkeypatch.setattr(layout_costs, "template_for", counting)
    net = Net()
    x = net.input(32, 14)
    for _ in range(10):
        x = net.relu(net.conv(x, 32))
    BlockChannels(V3).run(net.builder.build(x))
    assert len(asked) == len(set(asked)) == 4


@pytest.mark.parametrize("op", ["conv2d", "max_pool2d", "avg_pool2d"])
def test_every_kernel_that_has_layouts_has_an_estimate(op: str) -> None:
    for sample in OPS[op].samples:
        builder = GraphBuilder()
        operands = [builder.input(f"x{i}", t.static_shape, t.dtype) for i, t in enumerate(sample.types)]
        kernel = Kernel(builder.build(builder.op(op, *operands, **sample.attrs)), frozenset(sample.constant))
        assert isfinite(template_for(kernel, V3).estimate(kernel, V3)), kernel.key


@pytest.mark.parametrize("pair", [("NCHW", "NCHW"), ("NCHW", "NCHW8c"), ("NCHW8c", "NCHW8c")])
def test_a_batch_costs_as_much_as_its_images(pair: tuple[str, str]) -> None:
    def price(batch: int) -> float:
        net = Net()
        x = net.builder.input("x", (batch, 32, 14, 14))
        (node,) = net.builder.build(net.conv(x, 32, 5)).nodes
        return LayoutCosts(V3).convolution(node, *pair)

    assert price(3) == pytest.approx(3 * price(1))


@pytest.mark.parametrize(
    ("shape", "source", "result", "expected"),
    [
        ((1, 32, 1, 1), "NCHW", "NCHW8c", True),
        ((1, 32, 1, 1), "NCHW8c", "NCHW16c", True),
        ((1, 20, 1, 1), "NCHW", "NCHW8c", False),
        ((1, 32, 2, 1), "NCHW", "NCHW8c", False),
    ],
)
def test_single_pixels_in_whole_blocks_are_views(
    shape: tuple[int, ...], source: str, result: str, expected: bool
) -> None:
    type_ = TensorType(shape)
    assert is_view(type_, source, result) is expected
    assert (LayoutCosts(V3).transform(type_, source, result) == 0) is expected
