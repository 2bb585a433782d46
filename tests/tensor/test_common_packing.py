"""Ways to pack constants: what templates say about them is true, and targets find one in common."""

from __future__ import annotations

import random
from collections.abc import Mapping
from math import isclose

import numpy as np
import pytest

from tcomp.relay.builder import GraphBuilder
from tcomp.target.parse import parse_target
from tcomp.target.target import Target
from tcomp.tensor.common_packing import common_packing
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tensor.selection import schedule, template_for

TARGETS = [parse_target(name) for name in ("cortex-a55", "cortex-a76", "x86-64-v3", "x86-64-v4")]
BLOCK = 16


def convolution(in_channels: int, out_channels: int, size: int, kernel: int) -> Kernel:
    b = GraphBuilder()
    x = b.input("x", (1, in_channels // BLOCK, size, size, BLOCK))
    w = b.input("w", (out_channels, in_channels, kernel, kernel))
    layouts = {"data_layout": f"NCHW{BLOCK}c", "out_layout": f"NCHW{BLOCK}c"}
    return Kernel(b.build(b.op("conv2d", x, w, padding=(kernel // 2,) * 4, **layouts)), frozenset({1}))


def chain(size: int) -> Kernel:
    b = GraphBuilder()
    x = b.input("x", (1, 1, size, size, BLOCK))
    layouts = {"data_layout": f"NCHW{BLOCK}c", "out_layout": f"NCHW{BLOCK}c"}
    shapes = ((96, 16, 1, 1), (96, 1, 3, 3), (16, 96, 1, 1))
    for shape, groups, padding in zip(shapes, (1, 96, 1), (0, 1, 0), strict=True):
        x = b.op("conv2d", x, b.input("w", shape), groups=groups, padding=(padding,) * 4, **layouts)
    return Kernel(b.build(x), frozenset({1, 2, 3}))


def product(rows: int, depth: int, columns: int) -> Kernel:
    b = GraphBuilder()
    x, w = b.input("x", (rows, depth)), b.input("w", (depth, columns))
    return Kernel(b.build(b.op("matmul", x, w)), frozenset({1}))


KERNELS: Mapping[str, Kernel] = {
    "1x1": convolution(64, 96, 14, 1),
    "3x3": convolution(32, 64, 28, 3),
    "chain": chain(28),
    "product": product(100, 256, 384),
    "deep product": product(4, 2048, 160),
    "one row": product(1, 1280, 1000),
}


def packed(kernel: Kernel, target: Target, config: Config) -> list[bytes]:
    """The bytes of all constants, packed, by a kernel's schedule."""
    rng = np.random.default_rng(0)
    types = [v.type for v in kernel.body.inputs]
    arrays = [rng.standard_normal(t.static_shape, np.float32) for t in types]
    packing = schedule(kernel, target, config).packing
    return [packing[i].pack(arrays[i]).tobytes() for i in sorted(kernel.constant_inputs)]


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_the_default_is_the_best_of_one_way(name: str, target: Target) -> None:
    kernel = KERNELS[name]
    template = template_for(kernel, target)
    space, ways = template.space(kernel, target), template.packings(kernel, target)
    own = [way for way in ways.values() if way.holds(space.default)]
    assert len(own) == 1
    assert isclose(own[0].cycles, min(way.cycles for way in ways.values()))
    assert space.complete(own[0].default) == space.complete(space.default)
    for way in ways.values():
        space.check(way.default)
        assert way.holds(way.default)
        assert sum(other.holds(way.default) for other in ways.values()) == 1


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("names", ["cortex-a55,cortex-a76", "x86-64-v4,x86-64-v3"])
def test_targets_that_know_a_way_pack_alike(name: str, names: str) -> None:
    kernel, targets = KERNELS[name], [parse_target(n) for n in names.split(",")]
    first, second = (template_for(kernel, t).packings(kernel, t) for t in targets)
    common = [key for key in first if key in second]
    assert len(common) > 1
    for key in common[:: max(1, len(common) // 5)]:
        a, b = (
            packed(kernel, t, ways[key].default) for t, ways in zip(targets, (first, second), strict=True)
        )
        assert a == b


@pytest.mark.parametrize("name", KERNELS)
def test_the_common_way_costs_least_together(name: str) -> None:
    kernel, targets = KERNELS[name], [parse_target(n) for n in ("x86-64-v4", "x86-64-v3")]
    found = common_packing(kernel, targets, [None, None])
    assert found is not None
    tables = [template_for(kernel, t).packings(kernel, t) for t in targets]
    least = [min(way.cycles for way in table.values()) for table in tables]
    cost = sum(way.cycles / own for way, own in zip(found, least, strict=True))
    for key in tables[0].keys() & tables[1].keys():
        assert cost <= sum(t[key].cycles / own for t, own in zip(tables, least, strict=True)) + 1e-9


def test_a_config_that_packs_in_a_way_of_its_own() -> None:
    kernel, targets = product(4, 2048, 160), [parse_target(n) for n in ("x86-64-v4", "x86-64-v3")]
    space = template_for(kernel, targets[0]).space(kernel, targets[0])
    ways = template_for(kernel, targets[0]).packings(kernel, targets[0]).values()
    rng = random.Random(0)
    configs = (space.random(rng) for _ in range(1000))
    own = next(c for c in configs if not any(way.holds(c) for way in ways))
    found, expected = (common_packing(kernel, targets, [first, None]) for first in (own, None))
    assert found is not None
    assert expected is not None
    assert [way.default for way in found] == [way.default for way in expected]


def test_columns_that_no_two_vectors_divide_have_no_common_way() -> None:
    targets = [parse_target(n) for n in ("x86-64-v4", "x86-64-v3")]
    assert common_packing(product(8, 64, 10), targets, [None, None]) is None


def test_one_way_where_knobs_do_not_matter() -> None:
    b = GraphBuilder()
    kernel = Kernel(b.build(b.op("relu", b.input("x", (64, 64)))))
    found = common_packing(kernel, TARGETS[:2], [None, None])
    assert found is not None
    assert all(way.holds({}) for way in found)
