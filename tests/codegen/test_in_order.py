"""Cortex-A53 and A55, which start instructions in order."""

from __future__ import annotations

import pytest

from tcomp.codegen.cycles import Code, Rates
from tcomp.codegen.in_order import loop_cycles, straight_cycles
from tcomp.codegen.jit import build_kernel
from tcomp.codegen.machine_code import hot_loop, simulated_cycles
from tcomp.errors import BuildError
from tcomp.relay.builder import GraphBuilder
from tcomp.target.parse import parse_target
from tcomp.tensor.kernel import Kernel

PRODUCTS = [f"fmla v{i}.4s, v{20 + i % 4}.4s, v{24 + i % 4}.s[{i % 4}]" for i in range(16)]
LOADS = {
    "ldr": [f"ldr q{28 + i}, [x0, #{16 * i}]" for i in range(4)],
    "ldur": [f"ldur q{28 + i}, [x0, #-{16 * i}]" for i in range(4)],
    "ldr, moving": [f"ldr q{28 + i}, [x{i}], #16" for i in range(4)],
    "ld1": [f"ld1 {{ v{28 + i}.4s }}, [x{i}]" for i in range(4)],
    "ldp": ["ldp q28, q29, [x0]", "ldp q30, q31, [x0, #32]"],
    "ldp, moving": ["ldp q28, q29, [x0], #32", "ldp q30, q31, [x1, #32]!"],
    "ldnp": ["ldnp q28, q29, [sp, #32]", "ldnp q30, q31, [x1]"],
}
HALVES = [
    *(f"ldr d{28 + i}, [x0, #{16 * i}]" for i in range(4)),
    *(f"ldr x{9 + i}, [x0, #{16 * i + 8}]" for i in range(4)),
    *(f"mov v{28 + i}.d[1], x{9 + i}" for i in range(4)),
]


def between(products: list[str], others: list[str]) -> list[str]:
    """Each of `others` behind a product."""
    paired = [text for pair in zip(products, others, strict=False) for text in pair]
    return [*paired, *products[len(others) :]]


@pytest.mark.parametrize("core", ["cortex-a53", "cortex-a55"])
@pytest.mark.parametrize("loads", LOADS.values(), ids=LOADS)
def test_a_load_of_16_bytes_takes_two_cycles(loads: list[str], core: str) -> None:
    assert loop_cycles(loads, core) == 8
    assert loop_cycles([*PRODUCTS, *loads], core) == 24


@pytest.mark.parametrize("core", ["cortex-a53", "cortex-a55"])
def test_products_of_four_start_once_a_cycle(core: str) -> None:
    assert loop_cycles(PRODUCTS, core) == 16
    assert loop_cycles([text.replace("4s", "2s") for text in PRODUCTS], core) == 8
    assert loop_cycles(["fmla v0.4s, v1.4s, v2.4s"], core) == 4, "a chain waits for its sums"
    other = ["fmla v0.4s, v1.4s, v2.4s", "fmul v1.4s, v0.4s, v3.4s"]
    assert loop_cycles(other, core) == {"cortex-a53": 8 + 4, "cortex-a55": 4 + 4}[core]


def test_halves_are_loaded_behind_products() -> None:
    assert loop_cycles(between(PRODUCTS, HALVES), "cortex-a55") == 16
    assert loop_cycles(between(PRODUCTS, HALVES[4:8]), "cortex-a53") == 16
    assert loop_cycles(between(PRODUCTS, ["ldr d28, [x0]"]), "cortex-a53") == 17
    assert loop_cycles([*PRODUCTS, "ldr d28, [x0]", "mov v29.d[1], x9"], "cortex-a53") == 17
    assert loop_cycles(["ldr d28, [x0]", "ldr x9, [x0]"], "cortex-a55") == 2, "one load at a time"


def test_what_is_waited_for() -> None:
    assert straight_cycles(["ldr x1, [x0]", "add x2, x1, #1", "add x3, x2, #1"], "cortex-a55") == 5
    assert straight_cycles(["add x1, x0, #1", "add x2, x0, #1", "nop", "nop"], "cortex-a55") == 2
    assert straight_cycles(["subs x1, x1, #1", "b.ne .L"], "cortex-a55") == 2
    assert straight_cycles(["ldr x1, [x0], #8", "ldr x2, [x0]"], "cortex-a53") == 2
    assert straight_cycles(["mov v0.d[1], x1", "mov v1.16b, v0.16b"], "cortex-a53") == 5
    assert straight_cycles(["st1 { v0.4s }, [x0]", "fmla v0.4s, v1.4s, v2.4s"], "cortex-a55") == 1


def test_these_cores_are_not_judged_by_tables() -> None:
    assert simulated_cycles(PRODUCTS, "aarch64", "cortex-a55", "aarch64-unknown-linux-gnu") == 16
    try:
        rates = Rates(parse_target("cortex-a55"))
        assert simulated_cycles(PRODUCTS, "aarch64", "neoverse-n1", "aarch64-unknown-linux-gnu") < 9
    except BuildError as error:
        pytest.skip(str(error))
    assert rates([Code(tuple(LOADS["ldr"]), True), Code(("nop",), False)]) == [8, 1]


@pytest.mark.parametrize(("core", "least"), [("cortex-a53", 0.65), ("cortex-a55", 0.9)])
def test_vectors_are_loaded_in_halves(core: str, least: float) -> None:
    b, target = GraphBuilder(), parse_target(core)
    product = b.op("matmul", b.input("x", (128, 256)), b.input("y", (256, 256)))
    kernel = Kernel(b.build(product), frozenset({1}))
    loop = hot_loop(build_kernel(kernel, target).source(), "aarch64")
    assert not [text for text in loop if text.startswith("ld") and " q" in text]
    products = sum(text.startswith("fmla") for text in loop)
    assert products > least * loop_cycles(loop, core)
