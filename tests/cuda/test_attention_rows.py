"""Attention of few queries by plain instructions: numbers on an emulated GPU, code, and where it is taken."""

from __future__ import annotations

import pytest
from attention_runs import assert_matches
from test_attention_cuda import attention

from tcomp.codegen.cuda.cubin import compile_cubin
from tcomp.codegen.cuda.device_code import device_code
from tcomp.relay.builder import GraphBuilder
from tcomp.target.target import TARGETS, Target
from tcomp.tensor.gpu.rates import memory_cycles
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.selection import template_for
from tcomp.tensor.template import TEMPLATES

TEMPLATE = "attention_rows_cuda"


def queries_elsewhere(moved: str) -> Kernel:
    """Loads of queries are shorter than those of keys."""
    g = GraphBuilder()
    shape = (3, 2, 33) if moved == "sliced" else (3, 32, 2)
    query, key, value = (g.input(f"x{i}", own) for i, own in enumerate((shape, *((3, 40, 32),) * 2)))
    if moved == "sliced":
        query = g.op("slice", query, begin=(0, 0, 1), end=(3, 2, 33), strides=(1, 1, 1))
    else:
        query = g.op("transpose", query, axes=(0, 2, 1))
    return Kernel(g.build(g.op("attention", query, key, value, scale=0.3)))


SMALL = {"tile_n": 16, "lanes": 8, "warps": 2, "split": 1}
CASES: dict[str, tuple[Kernel, dict[str, int]]] = {
    "one query": (attention((3, 1, 64), (3, 70, 64), (3, 70, 64)), {}),
    "one query, parts": (attention((3, 1, 64), (3, 70, 64), (3, 70, 96)), {"split": 2, "tile_n": 32}),
    "eight of grouped heads, parts": (
        attention((2, 4, 2, 16), (2, 1, 150, 16), (2, 1, 150, 32)), {"split": 4, "lanes": 4},
    ),
    "grouped heads, mask": (attention((2, 3, 2, 16), (2, 1, 70, 16), (2, 1, 70, 16), (2, 1, 1, 70)), {}),
    "causal, grouped heads": (
        attention((2, 2, 3, 16), (2, 1, 75, 16), (2, 1, 75, 16), causal=67), {"warps": 1, "split": 2},
    ),
    "more queries than keys": (attention((2, 7, 16), (2, 5, 16), (2, 5, 16), causal=1), {}),
    "half precision": (
        attention((2, 2, 64), (2, 40, 64), (2, 40, 64), dtype="float16"), {"lanes": 16, "tile_n": 8},
    ),
    "elements one by one": (attention((2, 20), (45, 20), (45, 36)), {"lanes": 4, "warps": 1, "tile_n": 32}),
    "transposed result": (attention((3, 2, 16), (3, 20, 16), (3, 20, 32), after="heads last"), {}),
    "sliced queries": (queries_elsewhere("sliced"), {}),
    "transposed queries": (queries_elsewhere("transposed"), {}),
    "negative scale": (attention((1, 3, 16), (1, 40, 16), (1, 40, 16), scale=-0.4), {}),
}  # fmt: skip
FEW = ("one query, parts", "eight of grouped heads, parts", "causal, grouped heads", "sliced queries")
LONG = {
    "one query": attention((32, 1, 128), (32, 4096, 128), (32, 4096, 128)),
    "grouped heads": attention((8, 4, 1, 128), (8, 1, 4096, 128), (8, 1, 4096, 128)),
    "heads of 64": attention((12, 1, 64), (12, 1024, 64), (12, 1024, 64)),
    "eight queries, causal": attention((16, 8, 64), (16, 2048, 64), (16, 2048, 64), causal=2041),
    "half precision": attention((32, 1, 128), (32, 4096, 128), (32, 4096, 128), dtype="float16"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FEW else [pytest.mark.slow]) for n in CASES]
)
def test_numbers(name: str, gpu: Target) -> None:
    kernel, knobs = CASES[name]
    assert_matches(TEMPLATE, kernel, {**SMALL, **knobs}, gpu)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90a"])
@pytest.mark.parametrize("name", LONG)
@pytest.mark.usefixtures("real_compiler")
def test_defaults_do_not_spill(name: str, arch: str) -> None:
    target = TARGETS[f"cuda:{arch}"]
    space = TEMPLATES[TEMPLATE].space(LONG[name], target)
    function = TEMPLATES[TEMPLATE].apply(LONG[name], target, space.default).function
    cubin = compile_cubin(device_code(function, "kernel", target).source, arch)
    assert all(found.spilled_bytes == 0 for found in cubin.resources.values())


DOCUMENTED = {
    "one query": ((122, 132, 224), (664, 688, 785)),
    "grouped heads": ((30, 35, 206), (166, 175, 639)),
    "heads of 64": ((6, 11, 18), (31, 34, 43)),
    "eight queries, causal": ((15, 27, 36), (83, 94, 100)),
}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_documented_estimates(name: str) -> None:
    """Thousands of cycles, as docs/design/cuda.md has them."""
    for tag, documented in zip(("nvidia/a100", "nvidia/t4"), DOCUMENTED[name], strict=True):
        target, kernel = TARGETS[tag], LONG[name]
        assert target.gpu is not None
        cycles = [memory_cycles(target.gpu, kernel.nbytes)]
        cycles += [TEMPLATES[by].estimate(kernel, target) for by in (TEMPLATE, "attention_cuda")]
        assert tuple(round(found / 1e3) for found in cycles) == documented


@pytest.mark.parametrize("name", LONG)
def test_memory_bounds_long_keys(name: str) -> None:
    """By the estimate that is the time of keys and values, beside launches."""
    target, kernel = TARGETS["nvidia/t4"], LONG[name]
    assert target.gpu is not None
    template = template_for(kernel, target)
    assert template.id_of(template.space(kernel, target).default).startswith(TEMPLATE)
    reading = memory_cycles(target.gpu, kernel.nbytes)
    assert TEMPLATES[TEMPLATE].estimate(kernel, target) < 1.3 * reading + 6000
