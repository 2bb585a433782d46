"""Cortex-A55 as LLVM's table does not describe it."""

from __future__ import annotations

import pytest

from tcomp.codegen.machine_code import find_llvm_mca, simulated_cycles
from tcomp.codegen.table_errors import mended
from tcomp.errors import BuildError

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


def cycles(instructions: list[str], table: str = "cortex-a55") -> float:
    try:
        find_llvm_mca()
    except BuildError as error:
        pytest.skip(str(error))
    return simulated_cycles(instructions, "aarch64", table, "aarch64-unknown-linux-gnu")


def test_products_of_four_start_once_a_cycle() -> None:
    assert cycles(PRODUCTS) == pytest.approx(16, abs=0.1)
    assert cycles([text.replace("4s", "2s") for text in PRODUCTS]) == pytest.approx(8, abs=0.1)
    assert cycles(["fmla v0.4s, v1.4s, v2.4s"]) == pytest.approx(4, abs=0.1), "a chain waits for its sums"
    assert mended(["fmla v3.4s, v20.4s, v7.s[2]", "fmls v3.8h, v2.8h, v1.8h"], "cortex-a55") == [
        "mla v3.4s, v20.4s, v7.4s",
        "mla v3.4s, v2.4s, v1.4s",
    ]


@pytest.mark.parametrize("loads", LOADS.values(), ids=LOADS)
def test_a_load_of_16_bytes_takes_two_cycles(loads: list[str]) -> None:
    assert cycles(loads) == pytest.approx(8, abs=0.1)
    assert cycles([*PRODUCTS, *loads]) == pytest.approx(24, abs=0.1)


def test_other_code_and_cores_are_as_their_tables_say() -> None:
    code = ["ldr d0, [x0]", "ldp x1, x2, [x0]", "fmla v0.2s, v1.2s, v2.2s", "fadd v0.4s, v1.4s, v2.4s", "ret"]
    assert mended(code, "cortex-a55") == code
    assert mended([*PRODUCTS, *LOADS["ldp"]], "neoverse-n1") == [*PRODUCTS, *LOADS["ldp"]]
    assert cycles(PRODUCTS, "neoverse-n1") == pytest.approx(8, abs=0.1)
