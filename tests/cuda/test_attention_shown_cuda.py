"""Attention on GPUs whose masks are truth values: rows that see nothing, and weights that are no numbers."""

from __future__ import annotations

import pytest
from attention_runs import built
from shown_keys import WAYS, assert_shown, shown_arrays, shown_attention, with_nan
from test_attention_cuda import SMALL as PLAIN
from test_attention_mma import SMALL
from test_attention_wgmma import HOPPER
from test_attention_wgmma import SMALL as GROUP

from tcomp.target.target import Target

CONFIGS: dict[str, tuple[str, dict[str, int]]] = {
    "plain": ("attention_cuda", PLAIN),
    "plain, parts": ("attention_cuda", {**PLAIN, "split": 2}),
    "plain, few rows": ("attention_rows_cuda", {"tile_n": 16, "lanes": 8, "warps": 2, "split": 2}),
    "tensor cores": ("attention_mma_cuda", SMALL),
    "tensor cores, parts": ("attention_mma_cuda", {**SMALL, "split": 2}),
    "groups": ("attention_wgmma_cuda", GROUP),
}


QUICK = ("no numbers", "all alike")


@pytest.mark.parametrize(
    "way", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in WAYS]
)
@pytest.mark.parametrize("form", CONFIGS)
def test_numbers(form: str, way: str, gpu: Target) -> None:
    template, config = CONFIGS[form]
    is_plain = form.startswith("plain")
    rows = 6 if template == "attention_rows_cuda" else 37
    kernel = shown_attention(way, "float32" if is_plain else "float16", rows)
    target, tolerance = HOPPER if form == "groups" else gpu, 1e-5 if is_plain else 5e-3
    run = built(template, kernel, config, target)
    for arrays in (shown_arrays(kernel), with_nan(shown_arrays(kernel))):
        assert_shown(run(arrays)[0], kernel, arrays, way, tolerance)
