"""Strassen's algorithm for products and pointwise convolutions: numbers, spaces, spills, the choice of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import test_conv2d
import test_matmul
from runnable import WIDEST

from tcomp.codegen.jit import build_kernel, build_scheduled
from tcomp.codegen.machine_code import hot_loop, multiplies, on_stack
from tcomp.relay.evaluate import evaluate
from tcomp.relay.types import Array
from tcomp.target.target import TARGETS, Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import ALGORITHM, Config
from tcomp.tensor.schedules.conv_strassen_cpu import ConvStrassenCpu
from tcomp.tensor.schedules.matmul_strassen_cpu import MatmulStrassenCpu
from tcomp.tensor.selection import choices_for
from tcomp.tensor.strassen.plan import (
    SHARED,
    STEPS,
    Kept,
    StrassenPlan,
    choose,
    left_operands,
    right_operands,
    shares_blocks,
)
from tcomp.tensor.template import Template

AVX2 = TARGETS["x86-64-v3"]
MATMUL, CONV = MatmulStrassenCpu(), ConvStrassenCpu()


def matmul(
    a: tuple[int, ...],
    b: tuple[int, ...],
    *epilogue: str,
    constant: bool = True,
    dtype: str = "float32",
    strassen: bool = True,
    **attrs: bool,
) -> Kernel:
    """As `test_matmul.matmul`, of a product that may take the algorithm."""
    return test_matmul.matmul(a, b, *epilogue, constant=constant, dtype=dtype, strassen=strassen, **attrs)


def conv(data: tuple[int, ...], outputs: int, block: int, strides: int = 1, padding: int = 0) -> Kernel:
    """A pointwise convolution of blocked data with bias, residual and relu."""
    blocked = (data[0], data[1] // block, *data[2:], block)
    layout = f"NCHW{block}c"
    return test_conv2d.conv2d(
        blocked,
        (outputs, data[1], 1, 1),
        epilogue=True,
        strassen=True,
        data_layout=layout,
        out_layout=layout,
        strides=(strides,) * 2,
        padding=(padding,) * 4,
    )


CASES: dict[str, tuple[Template, Callable[[int], Kernel]]] = {
    "halves that fit": (MATMUL, lambda _: matmul((64, 128), (128, 192), "bias", "gelu")),
    "odd rows and columns": (MATMUL, lambda lanes: matmul((37, 136), (136, 9 * lanes), "bias", "residual")),
    "two rows": (MATMUL, lambda _: matmul((2, 64), (64, 96))),
    "rows of a batch": (MATMUL, lambda _: matmul((3, 11, 72), (72, 112), "bias", "relu")),
    "transposed weights": (MATMUL, lambda _: matmul((29, 88), (160, 88), "bias", transpose_b=True)),
    "pixels": (CONV, lambda lanes: conv((1, 64, 7, 9), 96, lanes)),
    "pixels of images": (CONV, lambda lanes: conv((3, 128, 5, 5), 160, lanes)),
    "every other pixel": (CONV, lambda lanes: conv((2, 64, 9, 9), 64, lanes, strides=2)),
}


def assert_matches(template: Template, kernel: Kernel, target: Target, config: Config) -> None:
    arrays = test_conv2d.random_arrays(kernel)
    scheduled = template.apply(kernel, target, config)
    (found,) = build_scheduled(kernel, scheduled, target)(arrays)
    (expected,) = evaluate(kernel.body, arrays)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("target", [WIDEST, AVX2], ids=["widest", "avx2"])
def test_numbers(name: str, target: Target) -> None:
    template, make = CASES[name]
    kernel = make(max(8, target.lanes("float32")))
    assert template.accepts(kernel, target)
    space, draw = template.space(kernel, target), random.Random(name)
    assert_matches(template, kernel, target, space.default)
    for _ in range(3):
        assert_matches(template, kernel, target, space.random(draw))


def test_the_sums_are_those_of_a_product() -> None:
    """On integers, so that they are exact, and from the tables that the nest goes by."""
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-9, 10, (2, 2, 3, 3)) for _ in range(2))
    quarters = (m[i, j] for m in (a, b) for i in (0, 1) for j in (0, 1))
    a11, a12, a21, a22, b11, b12, b21, b22 = quarters
    products = [
        left @ right
        for left, right in zip(
            left_operands(a11, a12, a21, a22), right_operands(b11, b12, b21, b22), strict=True
        )
    ]
    kept: dict[Kept, Array] = {}
    found: list[Array] = [np.zeros((3, 3))] * 4
    for number, (step, product) in enumerate(zip(STEPS, products, strict=True)):
        if number == SHARED:
            kept[Kept.QUARTER], kept[Kept.U1] = product + kept[Kept.U3], product + kept[Kept.U2]
        else:
            kept[step.to] = product if step.start is None else product + kept[step.start]
        if step.completes is not None:
            found[step.completes] = kept[Kept.QUARTER]
    expected = [a11 @ b11 + a12 @ b21, a11 @ b12 + a12 @ b22, a21 @ b11 + a22 @ b21, a21 @ b12 + a22 @ b22]
    np.testing.assert_array_equal(found, expected)


def test_numbers_are_chosen_at_run_time() -> None:
    for numbers in ([0, 0], [1, 0, 1], [3, 0, 2, 5], [step.to for step in STEPS]):
        assert [choose(numbers, place) for place in range(len(numbers))] == list(numbers)


def test_what_it_does_not_take() -> None:
    def accepts(kernel: Kernel) -> bool:
        return MATMUL.accepts(kernel, WIDEST)

    assert accepts(matmul((64, 128), (128, 128)))
    assert not accepts(matmul((64, 128), (128, 128), strassen=False)), "nobody lets errors mix"
    assert not accepts(matmul((64, 128), (128, 128), constant=False))
    assert not accepts(matmul((64, 126), (126, 128))), "halves of 63 steps, not whole vectors"
    assert not accepts(matmul((1, 128), (128, 128)))
    assert not accepts(matmul((64, 128), (128, 32)))
    assert not accepts(matmul((64, 128), (128, 133))), "columns that are not whole vectors"
    assert not accepts(matmul((64, 128), (128, 128), dtype="bfloat16"))
    assert not accepts(matmul((128, 64), (128, 128), transpose_a=True))
    assert accepts(matmul((64, 4096), (4096, 262144)))
    assert not accepts(matmul((64, 4096), (4096, 327680))), "packed weights of more than 2**31 elements"
    assert not accepts(matmul((1_000_000, 2048), (2048, 128))), "left operands of more than 2**31 elements"
    padded = conv((1, 128, 8, 8), 128, 16, padding=1)
    assert not CONV.accepts(padded, WIDEST)


def test_defaults_are_legal() -> None:
    """Of few rows too, and on a CPU of more cores than there are blocks."""
    for cores in (1, 8):
        target = replace(TARGETS["x86-64-v4"], cores=cores)
        for rows in range(2, 60):
            kernel = matmul((rows, 1024), (1024, 64))
            MATMUL.space(kernel, target).check(MATMUL.space(kernel, target).default)


@pytest.mark.parametrize("name", ["cortex-a76", "x86-64-v3", "x86-64-v4"])
def test_large_products_take_it_and_small_ones_do_not(name: str) -> None:
    target = TARGETS[name]

    def algorithm(kernel: Kernel) -> object:
        _, space = choices_for(kernel, target)
        return space.default.get(ALGORITHM, "matmul_cpu")

    assert algorithm(matmul((197, 384), (384, 1536), "bias", "gelu")) == MATMUL.name
    assert algorithm(matmul((16, 64), (64, 128))) == "matmul_cpu"


@pytest.mark.parametrize("target", [WIDEST, AVX2], ids=["widest", "avx2"])
def test_sums_stay_in_registers(target: Target) -> None:
    kernel = matmul((128, 768), (768, 768), "bias")
    scheduled = MATMUL.apply(kernel, target, MATMUL.space(kernel, target).default)
    loop = hot_loop(build_scheduled(kernel, scheduled, target).source())
    assert multiplies(loop)
    assert not on_stack(loop)


def test_channels_are_read_in_vectors() -> None:
    """Those of a block lie beside each other, fewer than the steps whose factors do."""
    kernel = conv((1, 256, 14, 14), 256, 8)
    scheduled = CONV.apply(kernel, AVX2, CONV.space(kernel, AVX2).default)
    assert "vinsertps" not in build_scheduled(kernel, scheduled, AVX2).source()


@pytest.mark.parametrize("blocks", [1, 8])
def test_the_same_bits_by_one_thread_and_by_two(blocks: int) -> None:
    """Whether panels or blocks of rows are shared, of which some overlap."""
    kernel = matmul((150, 256), (256, 304), "bias", "residual")
    target = replace(WIDEST, cores=2)
    arrays = test_matmul.random_arrays(kernel)
    results: list[Array] = []
    for parallel in (False, True):
        knobs = {"tile_rows": 5, "tile_vectors": 2, "blocks": blocks, "parallel": parallel}
        config = {**MATMUL.space(kernel, target).default, **knobs}
        assert shares_blocks(StrassenPlan.of(MATMUL.product_of(kernel).shape, target, config), target) == (
            parallel and blocks == 8
        )
        runner = build_scheduled(kernel, MATMUL.apply(kernel, target, config), target)
        results += [runner(arrays)[0] for _ in range(5)]
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


def test_it_is_reached_by_the_knob() -> None:
    kernel = matmul((64, 128), (128, 192), "bias")
    config = {ALGORITHM: MATMUL.name, **MATMUL.space(kernel, WIDEST).default}
    arrays = test_matmul.random_arrays(kernel)
    (found,), (expected,) = build_kernel(kernel, WIDEST, config)(arrays), evaluate(kernel.body, arrays)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_errors_are_a_few_times_those_of_plain_sums() -> None:
    kernel = matmul((128, 768), (768, 768))
    a, b = test_matmul.random_arrays(kernel)
    scheduled = MATMUL.apply(kernel, WIDEST, MATMUL.space(kernel, WIDEST).default)
    (found,) = build_scheduled(kernel, scheduled, WIDEST)([a, b])
    exact = a.astype(np.float64) @ b.astype(np.float64)
    assert np.abs(found - exact).max() < 4e-6 * np.abs(exact).max()
