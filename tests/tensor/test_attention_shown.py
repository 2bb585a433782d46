"""Attention on CPUs whose masks are truth values: rows that see nothing, and weights that are no numbers."""

from __future__ import annotations

import numpy as np
import pytest
from pair_types import runnable
from runnable import WIDEST
from shown_keys import WAYS, assert_shown, shown_arrays, shown_attention, with_nan
from test_amx import random_config
from tile_targets import tile_target  # noqa: F401  (a fixture)

from tcomp.codegen.jit import build_kernel
from tcomp.errors import TypeRuleError
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.types import TensorType
from tcomp.target.target import TARGETS, Target


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("target", [WIDEST.name, "x86-64-v3"])
def test_numbers(way: str, target: str) -> None:
    kernel = shown_attention(way, "float32")
    for arrays in (shown_arrays(kernel), with_nan(shown_arrays(kernel))):
        assert_shown(build_kernel(kernel, TARGETS[target])(arrays)[0], kernel, arrays, way, 1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_numbers_of_pairs(way: str) -> None:
    kernel, target = shown_attention(way, "bfloat16"), runnable("bfloat16")
    arrays = shown_arrays(kernel)
    config = random_config(kernel, target, "attention_pairs_cpu", seed=1)
    assert_shown(build_kernel(kernel, target, config)(arrays)[0], kernel, arrays, way, 4e-2)


@pytest.mark.parametrize("way", WAYS)
def test_numbers_of_tiles(way: str, tile_target: Target) -> None:  # noqa: F811
    kernel = shown_attention(way, "bfloat16")
    arrays = shown_arrays(kernel)
    config = random_config(kernel, tile_target, "attention_amx_cpu", seed=1)
    assert_shown(build_kernel(kernel, tile_target, config)(arrays)[0], kernel, arrays, way, 4e-2)


def test_masks_have_a_type() -> None:
    g = GraphBuilder()
    rows = [g.input(name, (2, 4)) for name in "qkv"]
    with pytest.raises(TypeRuleError, match=r"mask i32\[2\] is of neither float32, .* nor bool"):
        g.op("attention", *rows, g.input("mask", (2,), "int32"), scale=1.0)
    shown = g.op("attention", *rows, g.input("shown", (2,), "bool"), scale=1.0)
    assert shown.type == TensorType((2, 4))
    assert np.isneginf(next(n for n in g.build(shown).nodes).attrs["hidden"])  # pyright: ignore
