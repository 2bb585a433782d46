"""What becomes of the defaults of attention by groups of warps: registers, loops, choices, estimates."""

from __future__ import annotations

import re

import pytest
from gpu_assembly import disassembled
from test_attention_mma_code import BERT, KERNELS, LONG, heads

from tcomp.codegen.cuda.cubin import Cubin, compile_cubin
from tcomp.codegen.cuda.device_code import DeviceCode, device_code
from tcomp.target.target import TARGETS
from tcomp.tensor.attention.wgmma_operands import TiledAttentionOperands
from tcomp.tensor.attention.wgmma_plan import WgmmaAttentionPlan
from tcomp.tensor.gpu.rates import clock
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.selection import template_for
from tcomp.tensor.template import TEMPLATES

HOPPER = TARGETS["cuda:sm_90a"]
TEMPLATE = TEMPLATES["attention_wgmma_cuda"]
OTHERS = {
    "three groups": (heads(16, 4096, 64), {"consumers": 3}),
    "few registers": (heads(16, 4096, 64), {"tile_n": 64}),
    "few registers, three groups": (heads(16, 4096, 64), {"tile_n": 64, "consumers": 3}),
    "few registers, mask": (heads(12, 512, 64, mask=(512, 512)), {"tile_n": 64, "consumers": 2}),
    "long tiles": (heads(16, 4096, 64), {"tile_n": 192}),
    "no turns": (LONG, {"turns": 0}),
    "bfloat16, heads of 192": (heads(8, 1024, 192, "bfloat16"), {}),
    "persistent blocks": (heads(384, 512, 64), {"persistent": 1}),
    "persistent blocks, heads of 128": (LONG, {"persistent": 1}),
    "persistent blocks, one step": (heads(384, 128, 64, mask=(1, 128)), {"persistent": 1}),
    "causal, parts": (KERNELS["4096 x 128, causal"], {"split": 2}),
    "mask, parts": (KERNELS["2048 x 128, mask"], {"split": 2}),
}


def code_of(kernel: Kernel, **knobs: int) -> DeviceCode:
    config = {**TEMPLATE.space(kernel, HOPPER).default, **knobs}
    TEMPLATE.space(kernel, HOPPER).check(config)
    return device_code(TEMPLATE.apply(kernel, HOPPER, config).function, "kernel", HOPPER)


def compiled(kernel: Kernel, **knobs: int) -> Cubin:
    """Machine code that neither spills nor has products which wait for each other."""
    cubin = compile_cubin(code_of(kernel, **knobs).source, "sm_90a")
    assert all(found.spilled_bytes == 0 for found in cubin.resources.values())
    assert cubin.losses == ()
    return cubin


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.usefixtures("real_compiler")
def test_defaults_neither_spill_nor_wait(name: str) -> None:
    compiled(KERNELS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.usefixtures("real_compiler")
def test_other_plans_neither_spill_nor_wait(name: str) -> None:
    kernel, knobs = OTHERS[name]
    compiled(kernel, **knobs)


def loop_of_products(assembly: str) -> list[str]:
    """The instructions of the shortest loop in which products stay under way, by the text of nvdisasm."""
    labels: dict[str, int] = {}
    found: list[list[str]] = []
    instructions: list[str] = []
    for line in assembly.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif one := re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_.]+)(.*);", line):
            instructions.append((one[1] + (one[2] if one[1].startswith("WARPGROUP") else "")).strip())
            jump = re.search(r"`\((\.L_x_\d+)\)", one[2]) if one[1] == "BRA" else None
            if jump and jump[1] in labels:
                found.append(instructions[labels[jump[1]] :])
    return min((body for body in found if any("gsb0, 0x1" in name for name in body)), key=len)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "products"), [(64, 12), (128, 16)])
@pytest.mark.usefixtures("real_compiler")
def test_weights_are_computed_while_products_are_under_way(size: int, products: int) -> None:
    """Of 128 columns a group's products take 1024 cycles; a scheduler issues as many instructions."""
    text = disassembled(compiled(heads(16, 4096, size)).image)
    hot = loop_of_products(text)
    places = {
        what: [i for i, name in enumerate(hot) if name.startswith(what)]
        for what in ("HGMMA", "MUFU.EX2", "WARPGROUP.DEPBAR", "LDS", "STS", "LDL", "STL")
    }
    assert len(places["HGMMA"]) == products
    assert len(hot) < 500
    assert not places["LDS"] + places["STS"] + places["LDL"] + places["STL"]
    sums, scores = places["WARPGROUP.DEPBAR"]
    assert hot[sums].endswith("gsb0, 0x0")
    assert hot[scores].endswith("gsb0, 0x1")
    assert sums < places["HGMMA"][0]
    # 64 of the scores, two of what was summed up before.
    assert sum(place > scores for place in places["MUFU.EX2"]) == len(places["MUFU.EX2"]) == 66


def test_defaults_fill_the_processors() -> None:
    """Small problems are cut finer than large ones, of which two groups share keys."""
    assert int(TEMPLATE.space(BERT, HOPPER).default["consumers"]) == 1
    for kernel in (LONG, KERNELS["4096 x 64"]):
        default = TEMPLATE.space(kernel, HOPPER).default
        assert (default["consumers"], default["tile_n"], default["turns"]) == (2, 128, 1)


@pytest.mark.parametrize(
    ("extents", "single", "persistent", "taken"),
    [
        ((384, 512, 64), 107, 96, True),
        ((768, 197, 64), 64, 53, True),
        ((256, 512, 128), 118, 111, True),
        ((64, 1024, 128), 112, 109, False),
        ((16, 4096, 128), 422, 419, False),
    ],
)
def test_estimates_of_persistent_blocks(
    extents: tuple[int, int, int], single: int, persistent: int, taken: bool
) -> None:
    """Thousands of cycles of an H100, as docs/design/cuda.md has them."""
    kernel, gpu = heads(*extents), TARGETS["nvidia/h100"].gpu
    assert gpu is not None
    shape = TiledAttentionOperands(kernel).shape
    plans = list(WgmmaAttentionPlan.fitting(shape, gpu))
    found = [min(p.cycles(gpu) for p in plans if (p.persistent, p.split) == (k, 1)) for k in (0, 1)]
    assert [round(cycles / 1e3) for cycles in found] == [single, persistent]
    assert WgmmaAttentionPlan.default(shape, gpu).persistent == taken


@pytest.mark.parametrize("name", ["BERT-base", "4096 x 64", "4096 x 128", "grouped heads", "1024 x 80"])
def test_it_is_the_default_where_its_estimate_is_less(name: str) -> None:
    template = template_for(KERNELS[name], HOPPER)
    assert TEMPLATE.estimate(KERNELS[name], HOPPER) < TEMPLATES["attention_mma_cuda"].estimate(
        KERNELS[name], HOPPER
    )
    assert template.id_of(template.space(KERNELS[name], HOPPER).default) == TEMPLATE.id


def test_estimates_know_computing_and_memory() -> None:
    """Products of 16 heads of 4096 x 128 take 275,000 cycles of an H100; one query reads 64 MiB."""
    assert HOPPER.gpu is not None
    at_peak = LONG.flops * clock(HOPPER.gpu) / HOPPER.gpu.flops["float16"]
    assert 1.2 * at_peak < TEMPLATE.estimate(LONG, HOPPER) < 1.7 * at_peak
    reading = (64 << 20) * clock(HOPPER.gpu) / HOPPER.gpu.bytes_per_second
    assert reading < TEMPLATE.estimate(KERNELS["one query"], HOPPER)
