"""Products of few columns with lanes of the depth: numbers, what is the default, register use, packing."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from runnable import WIDEST
from test_matmul import assert_matches, matmul, random_arrays

from tcomp.codegen.jit import build_kernel
from tcomp.codegen.machine_code import hot_loop, multiplies, on_stack
from tcomp.target.target import TARGETS, Target
from tcomp.tensor.common_packing import common_packing
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Space
from tcomp.tensor.selection import schedule, template_for

AVX2 = TARGETS["x86-64-v3"]
ALGORITHM = "matmul_depth_cpu"


def own_space(kernel: Kernel, target: Target) -> Space:
    return template_for(kernel, target).algorithms[ALGORITHM].space(kernel, target)


def own_default(kernel: Kernel, target: Target) -> Config:
    return {"algorithm": ALGORITHM, **own_space(kernel, target).default}


NARROW = {
    "chunks": matmul((9, 2048), (2048, 16), "bias", "relu"),
    "tails of rows and columns": matmul((23, 272), (272, 9), "bias", "residual"),
    "leading axes are rows": matmul((2, 5, 512), (512, 6), "gelu"),
    "more columns than lanes": matmul((13, 256), (256, 21), "relu"),
    "one row": matmul((1, 512), (512, 10), "bias"),
    "vectors": matmul((512,), (512,)),
    "transposed constant": matmul((7, 512), (5, 512), transpose_b=True),
}


@pytest.mark.parametrize("target_name", ["x86-64-v3", WIDEST.name])
@pytest.mark.parametrize("case", NARROW)
def test_lanes_of_the_depth_match_reference(case: str, target_name: str) -> None:
    kernel, target = NARROW[case], TARGETS[target_name]
    space = own_space(kernel, target)
    rng = random.Random(0)
    for config in (space.default, space.random(rng), space.random(rng)):
        assert_matches(kernel, target_name, {"algorithm": ALGORITHM, **config})


def test_threads_do_not_change_sums_in_lanes_of_the_depth() -> None:
    kernel = matmul((40, 2048), (2048, 8))
    target, arrays = replace(WIDEST, cores=2), random_arrays(kernel)
    config = {**own_default(kernel, target), "chunk": 256, "row_block": 2}
    one, many = (
        build_kernel(kernel, target, {**config, "parallel": parallel})(arrays)[0]
        for parallel in (False, True)
    )
    assert np.array_equal(one, many)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((8, 8192, 8), "matmul_depth_cpu"),
        ((128, 768, 2), "matmul_depth_cpu"),
        ((128, 768, 24), "matmul_depth_cpu"),
        ((128, 768, 32), "matmul_cpu"),
        ((128, 768, 64), "matmul_cpu"),
        ((128, 64, 16), "matmul_cpu"),
    ],
    ids=str,
)
def test_lanes_are_of_the_depth_where_columns_are_few(shape: tuple[int, int, int], expected: str) -> None:
    rows, depth, columns = shape
    kernel, target = matmul((rows, depth), (depth, columns)), TARGETS["x86-64-v4"]
    default = template_for(kernel, target).space(kernel, target).default
    assert default.get("algorithm", "matmul_cpu") == expected


@pytest.mark.parametrize("target_name", ["x86-64-v3", "x86-64-v4"])
def test_sums_in_lanes_of_the_depth_stay_in_registers(target_name: str) -> None:
    kernel, target = matmul((64, 2048), (2048, 8)), TARGETS[target_name]
    config = own_default(kernel, target)
    loop = hot_loop(build_kernel(kernel, target, config).source())
    sums = int(config["tile_rows"]) * int(config["tile_columns"])
    assert multiplies(loop) == sums * int(config["unroll"])
    assert not on_stack(loop)


def test_several_levels_share_packed_columns() -> None:
    kernel, targets = matmul((64, 272), (272, 8)), [AVX2, TARGETS["x86-64-v4"]]
    packed = common_packing(kernel, targets, [None, None])
    assert packed is not None
    types = {
        schedule(kernel, target, one.default).packing[1].type
        for target, one in zip(targets, packed, strict=True)
    }
    assert len(types) == 1
