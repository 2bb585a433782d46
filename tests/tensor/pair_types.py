"""The 16-bit types that are multiplied in pairs, and a target that runs here for each."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tcomp.relay.types import Array
from tcomp.target.host import host_target
from tcomp.target.parse import parse_target
from tcomp.target.target import PRODUCT_FEATURES, TARGETS, Target
from tcomp.target.tiles import TILE_FEATURES

needs_fp16 = pytest.mark.skipif(not host_target().has("avx512fp16"), reason="this CPU has no AVX512-FP16")
PAIR_TYPES = (pytest.param("float16", marks=needs_fp16), "bfloat16")
"""Any CPU computes pairs of bfloat16."""
HARDWARE = {
    "float16": parse_target('{"tag": "sapphirerapids", "mattr": ["-amx-bf16"]}'),
    "bfloat16": TARGETS["znver4"],
}
"""Targets with the instructions for pairs, and none for tiles."""


def runnable(dtype: str) -> Target:
    """This machine as a target that multiplies pairs of `dtype`, it is said, and no tiles."""
    host = host_target()
    return replace(host, fast_dtype=dtype, features=host.features - TILE_FEATURES)


def without_instructions(dtype: str) -> Target:
    """As `runnable`, with the instructions for pairs switched off."""
    target, feature = runnable(dtype), PRODUCT_FEATURES["x86_64", dtype]
    return replace(target, features=target.features - {feature})


def assert_near(found: Array, expected: Array, dtype: str) -> None:
    """`found` is near float32 sums of the same rounded operands.

    Rounding in short float16 sums adds no more than bfloat16's rounding of the operands would; sums of
    bfloat16 products differ in their order, and may be rounded to the neighbour where they are stored.
    """
    error = found.astype(np.float64) - expected.astype(np.float64)
    scale = np.sqrt((expected.astype(np.float64) ** 2).mean())
    spread = np.sqrt((error**2).mean())
    if dtype == "float16":
        assert spread <= 2e-3 * scale
        assert np.abs(error).max() <= 2e-2 * scale
    else:
        stored = 2.0**-7 * np.abs(expected.astype(np.float64)) if found.dtype != np.float32 else 0.0
        assert spread <= (2e-4 if found.dtype != np.float32 else 1e-6) * scale
        assert (np.abs(error) <= stored + 1e-5 * scale).all()
