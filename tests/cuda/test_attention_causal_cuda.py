"""Causal attention on GPUs: numbers on an emulated one, tiles that are not read, estimates."""

from __future__ import annotations

import numpy as np
import pytest
from attention_runs import assert_matches, built
from test_attention_cuda import SMALL as PLAIN
from test_attention_cuda import arrays_of, attention
from test_attention_mma import SMALL
from test_attention_wgmma import HOPPER, TURNS
from test_attention_wgmma import SMALL as GROUP

from tcomp.target.target import TARGETS, Target
from tcomp.tensor.attention.mma_operands import MmaAttentionOperands
from tcomp.tensor.attention.online_softmax import Exponential
from tcomp.tensor.attention.shape import Blocks
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.loops import constant
from tcomp.tensor.template import TEMPLATES

PLAIN_CASES: dict[str, tuple[Kernel, dict[str, int]]] = {
    "square": (attention((2, 70, 20), (2, 70, 20), (2, 70, 36), causal=1), {}),
    "past": (attention((2, 9, 16), (2, 75, 16), (2, 75, 16), causal=67), {}),
    "more queries than keys": (attention((1, 100, 16), (1, 33, 16), (1, 33, 16), causal=1), {"tile_m": 64}),
    "grouped heads, mask": (
        attention((2, 3, 40, 16), (2, 1, 70, 16), (2, 1, 70, 16), (2, 1, 1, 70), causal=31), {},
    ),
    "negative scale": (attention((1, 40, 16), (1, 40, 16), (1, 40, 16), causal=1, scale=-0.4), {}),
}  # fmt: skip
NARROW_CASES: dict[str, tuple[Kernel, dict[str, int]]] = {
    "square": (
        attention((2, 70, 64), (2, 70, 64), (2, 70, 64), causal=1, dtype="float16"), {"stages": 3},
    ),
    "past": (attention((2, 9, 16), (2, 75, 16), (2, 75, 16), causal=67, dtype="bfloat16"), {}),
    "more queries than keys": (
        attention((1, 100, 16), (1, 33, 16), (1, 33, 16), causal=1, dtype="float16"), {"tile_m": 64},
    ),
    "grouped heads": (
        attention((2, 4, 19, 16), (2, 1, 45, 16), (2, 1, 45, 16), causal=27, dtype="float16"), {},
    ),
    "grouped heads, mask": (
        attention((4, 40, 16), (1, 70, 16), (1, 70, 16), (40, 70), causal=1, dtype="float16"), {"stages": 4},
    ),
    "negative scale": (
        attention((1, 40, 16), (1, 40, 16), (1, 40, 16), causal=1, scale=-0.4, dtype="float16"), {},
    ),
}  # fmt: skip
GROUP_CASES: dict[str, tuple[Kernel, dict[str, int]]] = {
    "square": (attention((2, 150, 64), (2, 150, 64), (2, 150, 64), causal=1, dtype="bfloat16"), TURNS),
    "past": (attention((2, 9, 16), (2, 200, 16), (2, 200, 16), causal=192, dtype="float16"), {"stages": 3}),
    "more queries than keys": (
        attention((1, 200, 16), (1, 33, 16), (1, 33, 16), causal=1, dtype="float16"),
        {},
    ),
    "grouped heads": (
        attention((2, 4, 40, 16), (2, 1, 100, 16), (2, 1, 100, 16), causal=61, dtype="float16"),
        {},
    ),
    "grouped heads, mask": (
        attention((4, 40, 16), (1, 100, 16), (1, 100, 16), (40, 100), causal=1, dtype="float16"),
        TURNS,
    ),
    "large scale": (
        attention((1, 140, 16), (1, 140, 16), (1, 140, 16), causal=1, scale=0.8, dtype="float16"),
        {"consumers": 2},
    ),
}
"""Of groups of warps; those of the last walk to tiles of which the first sees nothing."""
SLOW = ("more queries than keys", "negative scale", "past")


def named(cases: dict[str, tuple[Kernel, dict[str, int]]]) -> list[object]:
    return [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in cases]


@pytest.mark.parametrize("name", named(PLAIN_CASES))
def test_numbers_of_plain_instructions(name: str, gpu: Target) -> None:
    kernel, knobs = PLAIN_CASES[name]
    assert_matches("attention_cuda", kernel, {**PLAIN, **knobs}, gpu)


@pytest.mark.parametrize("name", named(NARROW_CASES))
def test_numbers_of_tensor_cores(name: str, gpu: Target) -> None:
    kernel, knobs = NARROW_CASES[name]
    assert_matches("attention_mma_cuda", kernel, {**SMALL, **knobs}, gpu)


@pytest.mark.parametrize("scale", [1e-3, 0.125, 0.3, 0.8, 1.0, 1.1, 40.0])
def test_no_keys_have_an_exact_exponent(scale: float) -> None:
    """Multiply-adds, which the emulated GPU does not have, find no difference of it to itself."""
    kernel = attention(*[(1, 8, 16)] * 3, causal=1, scale=scale, dtype="float16")
    exponential = Exponential(MmaAttentionOperands(kernel))
    lowest, factor = np.float32(exponential.lowest), np.float32(exponential.factor)
    assert float(lowest * factor) == float(lowest) * float(factor)


@pytest.mark.parametrize("name", named(GROUP_CASES))
@pytest.mark.usefixtures("gpu")
def test_numbers_of_groups_of_warps(name: str) -> None:
    kernel, knobs = GROUP_CASES[name]
    assert_matches("attention_wgmma_cuda", kernel, {**GROUP, **knobs}, HOPPER)


@pytest.mark.usefixtures("gpu")
def test_tiles_that_no_query_of_groups_sees_are_not_read() -> None:
    kernel = attention((1, 192, 16), (1, 192, 16), (1, 192, 16), dtype="float16", causal=1)
    arrays = arrays_of(kernel)
    for array in arrays[1:]:
        array[:, 128:] = np.nan
    (found,) = built("attention_wgmma_cuda", kernel, GROUP, HOPPER)(arrays)
    assert np.isfinite(found[:, :128]).all()
    assert np.isnan(found[:, 128:]).all()


@pytest.mark.parametrize("template", ["attention_cuda", "attention_mma_cuda"])
def test_tiles_that_no_query_of_a_block_sees_are_not_read(template: str, gpu: Target) -> None:
    """What is not a number there reaches no output, which zero times it would be."""
    dtype, config = ("float32", PLAIN) if template == "attention_cuda" else ("float16", SMALL)
    kernel = attention((1, 96, 16), (1, 96, 16), (1, 96, 16), dtype=dtype, causal=1)
    arrays = arrays_of(kernel)
    for array in arrays[1:]:
        array[:, 64:] = np.nan
    (found,) = built(template, kernel, config, gpu)(arrays)
    assert np.isfinite(found[:, :64]).all()
    assert np.isnan(found[:, 64:]).all()


@pytest.mark.parametrize("template", ["attention_cuda", "attention_mma_cuda", "attention_wgmma_cuda"])
def test_estimates_count_what_is_seen(template: str) -> None:
    target = TARGETS["nvidia/h100" if template == "attention_wgmma_cuda" else "nvidia/a100"]
    dtype = "float32" if template == "attention_cuda" else "float16"
    whole, half = (
        TEMPLATES[template].estimate(
            attention((64, 4096, 64), (64, 4096, 64), (64, 4096, 64), dtype=dtype, causal=causal), target
        )
        for causal in (0, 1)
    )
    assert 0.5 < half / whole < 0.56


def test_blocks_that_walk_furthest_come_first() -> None:
    """Of as many heads in turns as have keys and values in half of the second-level cache, 20 MiB."""
    gpu = TARGETS["nvidia/a100"].gpu
    assert gpu is not None
    kernel = attention((64, 4096, 128), (64, 4096, 128), (64, 4096, 128), dtype="float16", causal=1)
    assert kernel.anchor is not None
    blocks = Blocks.of(kernel.anchor, 64, 32, gpu)
    assert blocks.together == 8
    places = [tuple(map(int, blocks.place(constant(n)))) for n in range(blocks.count)]
    assert sorted(places) == [(head, block) for head in range(64) for block in range(32)]
    assert [block for _, block in places[:256]] == [31 - n // 8 for n in range(256)]
    assert {head for head, _ in places[:256]} == set(range(8))
