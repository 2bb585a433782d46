"""Winograd convolution on GPUs: numbers on an emulated one; what it is chosen for; no spilling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_conv_cuda import SAME, TILE, conv
from test_simt_resources import ARCHITECTURES, compiled

from tcomp import api
from tcomp.codegen.artifact import compile_graph
from tcomp.codegen.jit import build_kernel
from tcomp.errors import ScheduleError
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.types import Array
from tcomp.runtime import load
from tcomp.target.target import TARGETS, Target
from tcomp.tensor.common_packing import common_packing
from tcomp.tensor.gpu.load import load_of
from tcomp.tensor.gpu.threads import launches_of
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Alternatives, Config, KnobValue
from tcomp.tensor.schedules.conv_winograd_cuda import WORTH
from tcomp.tensor.selection import schedule, template_for
from tcomp.tensor.winograd.choice import pixel_tiles
from tcomp.tensor.winograd.filtering import ERRORS, Scheme

NAME = "conv_winograd_cuda"
PIXELS = pixel_tiles()


def winograd(pixels: tuple[int, int], **knobs: KnobValue) -> Config:
    rows, columns = pixels
    own = {"outputs": rows, "columns": 0 if columns == rows else columns, "threads": 64, "streamed": 0}
    return {"algorithm": NAME, **TILE, **own, **knobs}


def assert_matches(kernel: Kernel, target: Target, config: Config) -> None:
    generator = np.random.default_rng(0)
    arrays = [generator.standard_normal(v.type.static_shape, np.float32) for v in kernel.body.inputs]
    found, expected = build_kernel(kernel, target, config)(arrays), evaluate(kernel.body, arrays)
    for result, right in zip(found, expected, strict=True):
        assert np.isfinite(result).all()
        largest = np.abs(right).max()
        assert np.abs(result - right).max() <= ERRORS[int(config["outputs"])] * max(1.0, largest)


def with_prologue() -> Kernel:
    """A convolution of relu(x), whose results are an output beside their sigmoid, transposed."""
    g = GraphBuilder()
    x, w = g.input("x", (1, 5, 9, 10)), g.input("w", (6, 5, 3, 3))
    result = g.op("conv2d", g.op("relu", x), w, padding=SAME)
    return Kernel(g.build(g.op("transpose", g.op("sigmoid", result), axes=(0, 2, 3, 1))), frozenset({1}))


CASES: Mapping[str, Kernel] = {
    "whole tiles": conv((1, 8, 8, 12), (32, 8, 3, 3), "bias", "residual", "relu", padding=SAME),
    "ragged, a batch": conv((3, 5, 9, 7), (6, 5, 3, 3), "bias", "relu", padding=SAME),
    "no padding": conv((2, 4, 7, 11), (9, 4, 3, 3), "residual"),
    "uneven padding": conv((1, 12, 6, 5), (40, 12, 3, 3), "bias", padding=(0, 2, 1, 0)),
    "one pixel": conv((1, 3, 3, 3), (2, 3, 3, 3), "bias"),
    "computed input, transposed output": with_prologue(),
}
FAST = ("ragged, a batch",)


@pytest.mark.parametrize("pixels", PIXELS, ids=str)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FAST else [pytest.mark.slow]) for n in CASES]
)
def test_convolutions_are_those_of_the_reference(name: str, pixels: tuple[int, int], gpu: Target) -> None:
    assert_matches(CASES[name], gpu, winograd(pixels))


def test_parts_of_the_channels_are_added_up(gpu: Target) -> None:
    kernel = conv((1, 32, 6, 7), (12, 32, 3, 3), "bias", "residual", padding=SAME)
    config = winograd((4, 4), split=4)
    assert len(launches_of(schedule(kernel, gpu, config).function)) == 4
    assert_matches(kernel, gpu, config)


LAYERS = {size: conv((1, c, size, size), (c, c, 3, 3), "bias", "relu", padding=SAME) for c, size in
          ((64, 56), (128, 28), (256, 14), (512, 7))}  # fmt: skip
"""Of ResNet-50."""


def space_of(kernel: Kernel, target: Target) -> Alternatives:
    space = template_for(kernel, target).space(kernel, target)
    assert isinstance(space, Alternatives)
    return space


ESTIMATES = {
    ("nvidia/a100", 1): ((30.2, 21.4), (30.2, 21.4), (34.6, 25.2), (37.4, 36.9)),
    ("nvidia/h100", 1): ((19.4, 17.7), (21.4, 19.0), (22.2, 21.6), (22.4, 26.5)),
    ("nvidia/a100", 32): ((657, 348), (653, 266), (649, 254), (659, 239)),
    ("nvidia/h100", 32): ((345, 211), (335, 156), (338, 147), (346, 137)),
}
"""Thousands of cycles of the layers by `conv_cuda` and by Winograd's algorithm, as in docs/design/cuda.md."""


@pytest.mark.parametrize(("card", "images"), ESTIMATES)
def test_estimates_are_the_documented_ones(card: str, images: int) -> None:
    target = TARGETS[card]
    for (plain, transformed), layer in zip(ESTIMATES[card, images], LAYERS.values(), strict=True):
        channels, size = layer.body.inputs[0].type.static_shape[1:3]
        kernel = conv(
            (images, channels, size, size), (channels, channels, 3, 3), "bias", "relu", padding=SAME
        )
        table = template_for(kernel, target).algorithms
        found = [table[name].estimate(kernel, target) / 1000 for name in ("conv_cuda", NAME)]
        assert found == pytest.approx([plain, WORTH * transformed], rel=5e-3), (channels, size)
        assert (space_of(kernel, target).preferred == NAME) == (WORTH * transformed < plain)


def test_estimates_know_what_leaves_the_second_level_cache() -> None:
    """Many images have more patches than the cache holds, so that the gain does not grow with them."""
    target = TARGETS["nvidia/a100"]

    def ratio(images: int) -> float:
        kernel = conv((images, 64, 56, 56), (64, 64, 3, 3), padding=SAME)
        table = template_for(kernel, target).algorithms
        return table[NAME].estimate(kernel, target) / table["conv_cuda"].estimate(kernel, target)

    assert ratio(8) < ratio(32) < 1


@pytest.mark.parametrize(
    "kernel",
    [
        conv((1, 8, 9, 9), (8, 8, 3, 3), padding=SAME, strides=(2, 2)),
        conv((1, 8, 9, 9), (8, 8, 3, 3), padding=(2, 2, 2, 2), dilation=(2, 2)),
        conv((1, 8, 9, 9), (8, 4, 3, 3), padding=SAME, groups=2),
        conv((1, 8, 9, 9), (8, 8, 5, 5)),
        conv((1, 8, 9), (8, 8, 3)),
        conv((1, 8, 9, 9), (8, 8, 3, 3), constant=False),
        conv((1, 8, 9, 9), (8, 8, 3, 3), dtype="float64"),
        conv((512, 64, 224, 224), (64, 64, 3, 3), padding=SAME),
    ],
    ids=["strides", "dilation", "groups", "5x5", "one axis", "weights that change", "float64", "many images"],
)
def test_other_convolutions_have_no_such_choice(kernel: Kernel) -> None:
    assert template_for(kernel, TARGETS["cuda:sm_80"]).algorithms == {}


def test_tiles_have_no_more_products_than_can_be_counted() -> None:
    kernel, target = conv((128, 64, 224, 224), (64, 64, 3, 3), padding=SAME), TARGETS["cuda:sm_80"]
    space, packings = space_of(kernel, target), template_for(kernel, target).packings(kernel, target)
    assert {key for algorithm, key in packings if algorithm == NAME} == {*PIXELS} - {(2, 1)}
    with pytest.raises(ScheduleError, match="2x1 pixels have more products than kernels count"):
        space.check(winograd((2, 1)))
    with pytest.raises(ScheduleError, match="4x4 pixels have more products than kernels count"):
        space.check(winograd((4, 4), split=4))
    space.check(winograd((4, 4)))


@pytest.mark.parametrize(
    ("pixels", "knobs", "reason"),
    [
        ((2, 2), {"columns": 2}, "`columns` 0"),
        ((2, 2), {"tile_m": 256, "thread_m": 2, "thread_n": 2}, "threads; at most 1024"),
        ((4, 4), {"split": 64}, "no 64 parts"),
    ],
)
def test_what_cannot_run_says_why(pixels: tuple[int, int], knobs: Config, reason: str) -> None:
    with pytest.raises(ScheduleError, match=reason):
        schedule(LAYERS[28], TARGETS["cuda:sm_80"], winograd(pixels, **knobs))


def test_targets_of_one_library_agree_on_the_pixels_of_tiles() -> None:
    targets = [TARGETS["cuda:sm_80"], TARGETS["cuda:sm_90a"]]
    kernel = LAYERS[14]
    found = common_packing(kernel, targets, [None, None])
    assert found is not None
    first, second = ({**packed.default} for packed in found)
    assert first["algorithm"] == second["algorithm"] == NAME
    assert (first["outputs"], first["columns"]) == (second["outputs"], second["columns"])
    for target, packed in zip(targets, found, strict=True):
        space_of(kernel, target).check(packed.default)
        assert packed.holds(packed.default)


@pytest.mark.parametrize("pixels", PIXELS)
def test_weights_are_those_of_the_algorithm(pixels: tuple[int, int]) -> None:
    """Of its graph, in the order in which products read them, and rounded once."""
    kernel = conv((1, 5, 9, 10), (6, 5, 3, 3), padding=SAME)
    packing = schedule(kernel, TARGETS["cuda:sm_80"], winograd(pixels)).packing[1]
    assert packing.function is not None
    weights: Array = np.random.default_rng(0).standard_normal((6, 5, 3, 3), np.float32)
    taps: Array = np.transpose(weights.reshape(6, 5, 9), (2, 1, 0)).reshape(9, -1)
    expected = Scheme.of(pixels).transform_weights(taps).reshape(-1, 5, 6)
    found = packing.pack(weights)
    assert found.dtype == np.float32
    np.testing.assert_array_max_ulp(found, expected.astype(np.float32), maxulp=1)
    assert packing.type == packing.function.outputs[0].type


def test_its_load_counts_its_own_products() -> None:
    """4x4 pixels take 36 products of the channels of what are 144 directly."""
    target, kernel = TARGETS["cuda:sm_90"], LAYERS[56]
    assert target.gpu is not None
    scheduled = schedule(
        kernel, target, {**template_for(kernel, target).packings(kernel, target)[NAME, (4, 4)].default}
    )
    assert scheduled.flops == (64 * 64 * 2) * 36 * 14 * 14
    direct = replace(scheduled, flops=None)
    load, other = (load_of(kernel, one, target.gpu) for one in (scheduled, direct))
    assert load.cycles < other.cycles


@pytest.mark.slow
def test_a_library_takes_it_by_itself(gpu: Target, tmp_path: Path) -> None:
    """At least one of two convolutions; what passes between launches lies in the arena."""
    generator = np.random.default_rng(0)

    def weights(*shape: int) -> Array:
        return (generator.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    g = GraphBuilder("block")
    x = g.input("x", (1, 48, 64, 64))
    y = g.op("relu", g.op("conv2d", x, g.constant(weights(48, 48, 3, 3)), padding=SAME))
    y = g.op("add", g.op("conv2d", y, g.constant(weights(48, 48, 3, 3)), padding=SAME), x)
    graph = g.build(g.op("reduce_mean", g.op("relu", y), axes=(2, 3), keepdims=False))
    fused = api.optimize(graph, gpu)
    kernels = [Kernel.of(node) for node in fused.nodes if node.op == "fused"]
    defaults = [template_for(kernel, gpu).space(kernel, gpu).default for kernel in kernels]
    assert sum(config.get("algorithm") == NAME for config in defaults) >= 1
    compile_graph(fused, gpu, tmp_path / "block.so")
    data = generator.standard_normal((1, 48, 64, 64), np.float32)
    (found,), (expected,) = load(tmp_path / "block.so")(data), evaluate(graph, [data])
    assert np.abs(found - expected).max() <= 2 * ERRORS[4] * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("pixels", PIXELS, ids=str)
@pytest.mark.parametrize("size", [56, 14])
def test_no_launch_spills(size: int, pixels: tuple[int, int], arch: str, real_compiler: None) -> None:
    """The best products for each tile of pixels."""
    target = TARGETS[f"cuda:{arch}"]
    packed = template_for(LAYERS[size], target).packings(LAYERS[size], target)[NAME, pixels]
    compiled(LAYERS[size], arch, packed.default)
