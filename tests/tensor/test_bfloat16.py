"""Arithmetic on bfloat16: the bits of roundings and pair sums, and the instructions for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from pair_types import runnable, without_instructions

from tcomp.codegen import c_abi
from tcomp.codegen.jit import build_kernel
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.types import Array
from tcomp.target.target import TARGETS, Target
from tcomp.tensor import bfloat16
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.loops import function, vectorized
from tcomp.tvm_api import tirx, tvm

HERE = {"as detected": runnable("bfloat16"), "plain": without_instructions("bfloat16")}
SPECIAL = np.array(
    [0.0, -0.0, 1.0, np.inf, -np.inf, np.nan, -np.nan, 3.4e38, -3.4e38, 1.0039062, 1.0117188, 1.0117189],
    np.float32,
)
"""Zeros, infinities, NaN, what overflows, ties to the even neighbour below and above, and just past a tie."""


@pytest.mark.parametrize("target", HERE.values(), ids=HERE)
def test_rounding_is_to_nearest_even_and_keeps_nan(target: Target) -> None:
    builder = GraphBuilder()
    cast = Kernel(builder.build(builder.op("cast", builder.input("x", (4099,)), dtype="bfloat16")))
    bits = np.random.default_rng(0).integers(0, 2**32, 4099, dtype=np.uint64).astype(np.uint32)
    x = bits.view(np.float32)
    x[np.abs(x) < np.finfo(np.float32).tiny] = 0  # the instruction flushes denormals
    x[: SPECIAL.size] = SPECIAL
    (found,) = build_kernel(cast, target)([x])
    with np.errstate(invalid="ignore"):
        expected = x.astype(ml_dtypes.bfloat16)
    nan = np.isnan(x)
    assert np.isnan(found[nan].astype(np.float32)).all()
    np.testing.assert_array_equal(found[~nan].view(np.uint16), expected[~nan].view(np.uint16))


def multiply_add(lanes: int) -> Any:
    """`total[i] += left[0] * right[i]`, all being pairs but the sums."""
    left, right = (tirx.decl_buffer([n], "uint32", name=name) for n, name in ((1, "left"), (lanes, "right")))
    total = tirx.decl_buffer([lanes], "float32", name="total")

    def body(lane: Any) -> Any:
        loads = [tirx.BufferLoad(buffer, [at]) for buffer, at in ((total, lane), (left, 0), (right, lane))]
        return tirx.BufferStore(total, bfloat16.multiply_add(*loads), [lane])

    return function([left, right, total], vectorized(lanes, body))


def random_pairs(count: int, seed: int) -> Array:
    values = np.random.default_rng(seed).uniform(-4, 4, (count, 2)).astype(ml_dtypes.bfloat16)
    return values.view(np.uint16).view(np.uint32).reshape(count)


def halves(pairs: Array) -> tuple[Array, Array]:
    """The low and the high element of each pair, exactly."""
    low, high = ((pairs << np.uint32(16)), (pairs & np.uint32(0xFFFF0000)))
    return low.view(np.float32).astype(np.float64), high.view(np.float32).astype(np.float64)


@pytest.mark.parametrize("lanes", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("target", HERE.values(), ids=HERE)
def test_both_products_are_added_to_a_float32_sum(target: Target, lanes: int) -> None:
    library = c_abi.build({"kernel": multiply_add(lanes)}, target, packed="main")
    left, right = random_pairs(1, 1), random_pairs(lanes, 2)
    total = np.random.default_rng(3).uniform(-4, 4, lanes).astype(np.float32)
    arguments = [tvm.runtime.tensor(x, tvm.cpu()) for x in (left, right, total)]
    library["main"](*arguments)
    (a_low, a_high), (b_low, b_high) = halves(left), halves(right)
    # float64 holds each of these sums exactly, so that each is rounded once.
    expected = ((total + a_high * b_high).astype(np.float32) + a_low * b_low).astype(np.float32)
    found = arguments[2].numpy()
    if target.has("avx512bf16"):  # other CPUs than Intel's may round both products' sum once
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    else:
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("tag", "lanes", "expected"),
    [
        ("znver4", 16, "zmm"),
        ("znver4", 8, "ymm"),
        ("znver5", 4, "xmm"),
        ("sapphirerapids", 16, "zmm"),
        ("znver4", 2, None),
        ("x86-64-v4", 16, None),
        ("znver3", 8, None),
    ],
)
def test_pairs_are_multiplied_by_one_instruction(tag: str, lanes: int, expected: str | None) -> None:
    source = c_abi.build({"kernel": multiply_add(lanes)}, TARGETS[tag]).inspect_source("asm")
    found = [line for line in source.splitlines() if "vdpbf16ps" in line]
    assert len(found) == (expected is not None)
    assert all(str(expected) in line for line in found)
    assert ("vfmadd" in source) == (expected is None)


@pytest.mark.parametrize(("tag", "count"), [("znver4", 1), ("x86-64-v4", 0)])
def test_rounding_is_one_instruction_where_there_is_one(tag: str, count: int) -> None:
    builder = GraphBuilder()
    x = builder.op("relu", builder.input("x", (16,)))
    source = build_kernel(
        Kernel(builder.build(builder.op("cast", x, dtype="bfloat16"))), TARGETS[tag]
    ).source()
    assert source.count("vcvtneps2bf16") == count


def test_a_switched_off_feature_is_not_used() -> None:
    znver4 = TARGETS["znver4"]
    off = {**znver4.llvm, "mattr": [*znver4.llvm["mattr"], "-avx512bf16"]}
    target = replace(znver4, llvm=off)
    assert "vdpbf16ps" not in c_abi.build({"kernel": multiply_add(16)}, target).inspect_source("asm")
