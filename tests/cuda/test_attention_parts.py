"""Attention whose keys several blocks share: numbers on an emulated GPU, and when that is the default."""

from __future__ import annotations

import numpy as np
import pytest
from attention_runs import assert_matches
from test_attention_cuda import SMALL as PLAIN
from test_attention_cuda import arrays_of, attention
from test_attention_mma import SMALL
from test_attention_wgmma import HOPPER, TURNS
from test_attention_wgmma import SMALL as GROUP

from tcomp.errors import ScheduleError
from tcomp.target.target import TARGETS, Target
from tcomp.tensor.attention.mma_operands import Heads, attention_shape
from tcomp.tensor.attention.mma_plan import MmaAttentionPlan
from tcomp.tensor.attention.parts import KeyParts
from tcomp.tensor.attention.wgmma_operands import TiledAttentionOperands
from tcomp.tensor.attention.wgmma_plan import WgmmaAttentionPlan
from tcomp.tensor.gpu.rates import memory_cycles
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.template import TEMPLATES

Case = tuple[Kernel, dict[str, int]]
PLAIN_CASES: dict[str, Case] = {
    "one query": (attention((3, 1, 20), (3, 120, 20), (3, 120, 23)), {"split": 4}),
    "causal, parts without keys": (attention((2, 70, 16), (2, 70, 16), (2, 70, 32), causal=1), {"split": 2}),
    "grouped heads, mask": (
        attention((2, 3, 5, 16), (2, 1, 70, 16), (2, 1, 70, 16), (2, 1, 1, 70)), {"split": 2},
    ),
    "transposed result": (attention((3, 5, 16), (3, 70, 16), (3, 70, 32), after="heads last"), {"split": 2}),
}  # fmt: skip
NARROW_CASES: dict[str, Case] = {
    "one query, grouped heads": (
        attention((2, 4, 1, 64), (2, 1, 120, 64), (2, 1, 120, 64), dtype="float16"),
        {"split": 4, "tile_m": 16, "warps": 1, "stages": 3},
    ),
    "causal, parts without keys": (
        attention((2, 70, 16), (2, 70, 16), (2, 70, 23), dtype="bfloat16", causal=1), {"split": 2},
    ),
    "causal, queries in shared memory": (
        attention((1, 70, 128), (1, 100, 128), (1, 100, 128), dtype="float16", causal=31),
        {"split": 4, "tile_m": 64},
    ),
    "mask": (
        attention((2, 3, 5, 16), (2, 1, 70, 16), (2, 1, 70, 16), (2, 1, 1, 70), dtype="float16"),
        {"split": 2},
    ),
    "transposed result": (
        attention((3, 5, 16), (3, 70, 16), (3, 70, 32), after="heads last", dtype="float16"), {"split": 2},
    ),
}  # fmt: skip
GROUP_CASES: dict[str, Case] = {
    "one query, grouped heads": (
        attention((2, 4, 1, 64), (2, 1, 250, 64), (2, 1, 250, 64), dtype="float16"), {"split": 4},
    ),
    "causal, parts without keys": (
        attention((2, 150, 16), (2, 150, 16), (2, 150, 24), dtype="bfloat16", causal=1),
        {"split": 2, **TURNS},
    ),
    "mask, several steps": (
        attention((3, 5, 16), (1, 300, 16), (1, 300, 16), (3, 1, 300), dtype="float16"),
        {"split": 2, "stages": 3},
    ),
}  # fmt: skip
SLOW = ("transposed result", "causal, queries in shared memory")


def named(cases: dict[str, Case]) -> list[object]:
    return [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in cases]


@pytest.mark.parametrize("name", named(PLAIN_CASES))
def test_numbers_of_plain_instructions(name: str, gpu: Target) -> None:
    kernel, knobs = PLAIN_CASES[name]
    assert_matches("attention_cuda", kernel, {**PLAIN, **knobs}, gpu)


@pytest.mark.parametrize("name", named(NARROW_CASES))
def test_numbers_of_tensor_cores(name: str, gpu: Target) -> None:
    kernel, knobs = NARROW_CASES[name]
    assert_matches("attention_mma_cuda", kernel, {**SMALL, **knobs}, gpu)


@pytest.mark.parametrize("name", named(GROUP_CASES))
@pytest.mark.usefixtures("gpu")
def test_numbers_of_groups_of_warps(name: str) -> None:
    kernel, knobs = GROUP_CASES[name]
    assert_matches("attention_wgmma_cuda", kernel, {**GROUP, **knobs}, HOPPER)


@pytest.mark.parametrize("template", ["attention_cuda", "attention_mma_cuda"])
@pytest.mark.parametrize("hidden", [-np.inf, np.finfo(np.float32).min])
def test_parts_that_a_mask_hides(template: str, hidden: float, gpu: Target) -> None:
    dtype, config = ("float32", PLAIN) if template == "attention_cuda" else ("float16", SMALL)
    kernel = attention((3, 16), (96, 16), (96, 16), (3, 96), dtype=dtype)
    arrays = arrays_of(kernel)
    hides = np.zeros((3, 96), np.bool_)
    hides[0, :32], hides[1, 32:], hides[2, 32:64] = True, True, True
    if dtype == "float16":
        hidden = max(hidden, float(np.finfo(np.float16).min)) if np.isfinite(hidden) else hidden
    arrays[3] = np.where(hides, hidden, 0).astype(dtype)
    assert_matches(template, kernel, {**config, "split": 2}, gpu, arrays)


def test_parts_have_steps() -> None:
    assert KeyParts(4, 8, 100).complaint is None
    assert (KeyParts(4, 7, 100).share, KeyParts(4, 7, 100).complaint) == (2, None)
    assert "some would have none" in str(KeyParts(4, 5, 100).complaint)
    kernel = attention((3, 1, 16), (3, 120, 16), (3, 120, 16))
    with pytest.raises(ScheduleError, match="8 parts of 4 steps"):
        TEMPLATES["attention_cuda"].space(kernel, TARGETS["cuda:sm_80"]).check({**PLAIN, "split": 8})


@pytest.mark.parametrize("template", ["attention_cuda", "attention_mma_cuda"])
def test_parts_are_within_reach_of_an_index(template: str) -> None:
    """Of 8 batches of 32 heads of 4096 x 128, each has 2^27 sums."""
    kernel = attention(*[(8, 32, 4096, 128)] * 3, dtype="float16")
    space = TEMPLATES[template].space(kernel, TARGETS["cuda:sm_90a"])
    default = {**space.default, "split": 1}
    assert space.legal({**default, "split": 8}) is None
    assert "more than kernels count" in str(space.legal({**default, "split": 16}))


@pytest.mark.parametrize("template", ["attention_cuda", "attention_mma_cuda", "attention_wgmma_cuda"])
def test_they_are_the_default_where_queries_are_few(template: str) -> None:
    target = TARGETS["nvidia/h100" if template == "attention_wgmma_cuda" else "nvidia/a100"]
    dtype = "float32" if template == "attention_cuda" else "float16"

    def default(kernel: Kernel) -> int:
        return int(TEMPLATES[template].space(kernel, target).default.get("split", 1))

    assert default(attention((32, 1, 128), (32, 4096, 128), (32, 4096, 128), dtype=dtype)) >= 4
    assert default(attention((16, 4096, 128), (16, 4096, 128), (16, 4096, 128), dtype=dtype)) == 1
    assert default(attention((32, 1, 128), (32, 32, 128), (32, 32, 128), dtype=dtype)) == 1


@pytest.mark.parametrize(
    ("shapes", "tag", "whole", "parts", "count"),
    [
        (((32, 1, 128), (32, 4096, 128)), "nvidia/a100", 110, 61, 8),
        (((8, 4, 1, 128), (8, 1, 4096, 128)), "nvidia/a100", 110, 15, 32),
        (((8, 4, 1, 128), (8, 1, 32768, 128)), "nvidia/a100", 852, 122, 32),
        (((32, 1, 128), (32, 4096, 128)), "nvidia/h100", 88, 40, 8),
        (((8, 4, 1, 128), (8, 1, 4096, 128)), "nvidia/h100", 88, 11, 32),
        (((8, 4, 1, 128), (8, 1, 32768, 128)), "nvidia/h100", 669, 79, 32),
    ],
)
def test_documented_estimates(
    shapes: tuple[tuple[int, ...], tuple[int, ...]], tag: str, whole: int, parts: int, count: int
) -> None:
    """Thousands of cycles of one query a head, as docs/design/cuda.md has them."""
    target, template, (query, keys) = TARGETS[tag], TEMPLATES["attention_mma_cuda"], shapes
    kernel = attention(query, keys, keys, dtype="float16")
    assert target.gpu is not None
    assert kernel.anchor is not None
    plans = MmaAttentionPlan.fitting(attention_shape(kernel.anchor, Heads.of(kernel)), target.gpu)
    unshared = min(plan.cycles(target.gpu) for plan in plans if plan.split == 1)
    assert (round(unshared / 1e3), round(template.estimate(kernel, target) / 1e3)) == (whole, parts)
    assert template.space(kernel, target).default["split"] == count


@pytest.mark.parametrize(
    ("queries", "keys", "whole", "parts", "others"),
    [
        ((8, 64, 128), (8, 4096, 128), 69, 13, 16),
        ((16, 128, 64), (16, 8192, 64), 78, 23, 28),
        ((4, 8, 16, 128), (4, 1, 16384, 128), 261, 23, 34),
    ],
)
def test_documented_estimates_of_groups(
    queries: tuple[int, ...], keys: tuple[int, ...], whole: int, parts: int, others: int
) -> None:
    """Thousands of cycles of an H100, as docs/design/cuda.md has them, and those of `mma.sync`."""
    target, kernel = TARGETS["nvidia/h100"], attention(queries, keys, keys, dtype="float16")
    assert target.gpu is not None
    plans = WgmmaAttentionPlan.fitting(TiledAttentionOperands(kernel).shape, target.gpu)
    cycles = [min(plan.cycles(target.gpu) for plan in plans if plan.split == 1)]
    cycles += [TEMPLATES[f"attention_{by}_cuda"].estimate(kernel, target) for by in ("wgmma", "mma")]
    assert [round(found / 1e3) for found in cycles] == [whole, parts, others]


def test_memory_bounds_one_query() -> None:
    """64 MiB of keys and values; blocks of whole heads would take longer."""
    target, template = TARGETS["nvidia/a100"], TEMPLATES["attention_mma_cuda"]
    assert target.gpu is not None
    kernel = attention((32, 1, 128), (32, 4096, 128), (32, 4096, 128), dtype="float16")
    reading = memory_cycles(target.gpu, kernel.nbytes)
    assert reading <= template.estimate(kernel, target) < 1.05 * reading
