"""Loops in another order compute the same, in no more cycles."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcomp.codegen.in_order import CORES, loop_cycles
from tcomp.codegen.jit import CpuKernelRunner, build_kernel
from tcomp.codegen.machine_code import hot_loop, innermost_loops
from tcomp.codegen.ordering import ordered
from tcomp.relay.builder import GraphBuilder
from tcomp.target.parse import parse_target
from tcomp.tensor.kernel import Kernel

PATTERNS = (
    "fmla v{a}.4s, v{b}.4s, v{c}.s[1]", "fmul v{a}.4s, v{b}.4s, v{c}.4s", "ldr q{a}, [x{x}, #32]",
    "ldr d{a}, [x{x}]", "ldr q{a}, [x{x}], #16", "ldp q{a}, q{d}, [x{x}]", "ldr x{y}, [x{x}, #8]",
    "mov v{a}.d[1], x{x}", "ins v{a}.s[0], v{b}.s[1]", "add x{x}, x{y}, #64", "subs x{x}, x{x}, #1",
    "cmp x{x}, x{y}", "dup v{a}.4s, v{b}.s[2]", "mov x{x}, x{y}", "ld1 { v{a}.4s }, [x{x}], #16",
)  # fmt: skip
"""Vector registers a, b, c and d, the one after a; general ones x and y."""
KEEPS = re.compile(r"fmla|ins|mov v\d+\.d\[")


def instructions() -> st.SearchStrategy[str]:
    few = st.integers(0, 5)

    def text(pattern: str, a: int, b: int, c: int, x: int, y: int) -> str:
        names = {"a": a, "b": b, "c": c, "d": a + 1, "x": x, "y": y}
        return re.sub(r"\{(\w)\}", lambda found: str(names[found[1]]), pattern)

    return st.builds(text, st.sampled_from(PATTERNS), few, few, few, few, few)


def registers(text: str) -> list[str]:
    return re.sub(r"\b[qd](\d)", r"v\1", " ".join(re.findall(r"\b[vqdx]\d+\b", text))).split()


def results(texts: Sequence[str]) -> dict[str, object]:
    """What registers hold after instructions, as terms over what they held before."""
    held: dict[str, object] = {}
    for text in texts:
        name, named = text.split()[0], registers(text)
        count = 0 if name == "cmp" else 2 if name == "ldp" else 1
        read = named if count == 0 or KEEPS.match(text) else named[count:]
        term = (text, tuple(held.get(register, register) for register in read))
        for number, register in enumerate(named[:count]):
            held[register] = (number, term)
        if text.endswith("], #16"):
            held[named[-1]] = ("moved", held.get(named[-1], named[-1]))
        if name in ("cmp", "subs"):
            held["flags"] = ("flags", term)
    return held


def loop_of(texts: Sequence[str]) -> str:
    lines = ["main:", *texts, ".LBB0_1:", *texts, "b.ne .LBB0_1", "ret"]
    return "\n".join(line if line.endswith(":") else "\t" + line.replace(" ", "\t", 1) for line in lines)


PRODUCTS = tuple(f"fmla v{16 + i}.4s, v6.4s, v7.s[0]" for i in range(8))


@pytest.mark.parametrize("core", CORES)
@given(texts=st.lists(instructions(), min_size=1, max_size=16))
def test_registers_hold_the_same_after_a_loop(core: str, texts: list[str]) -> None:
    before = loop_of([*texts, *PRODUCTS])
    after = ordered(before, core)
    assert after.splitlines()[: len(texts) + 10] == before.splitlines()[: len(texts) + 10]
    (old,), (new,) = (innermost_loops(text, "aarch64") for text in (before, after))
    assert sorted(new) == sorted(old)
    assert results(new[:-1]) == results(old[:-1])
    assert loop_cycles(new, core) <= loop_cycles(old, core)


def test_halves_of_a_vector_hide_behind_products() -> None:
    halves = ["ldr d0, [x0], #16", "ldr x9, [x1], #16", "mov v0.d[1], x9"]
    (loop,) = innermost_loops(ordered(loop_of([*halves, *PRODUCTS]), "cortex-a55"), "aarch64")
    assert loop_cycles(loop, "cortex-a55") == 8
    assert loop_cycles([*halves, *PRODUCTS, "b.ne .LBB0_1"], "cortex-a55") > 8


@pytest.mark.parametrize(
    ("core", "rows", "depth", "columns", "least"),
    [
        ("cortex-a55", 128, 768, 768, 0.94),
        ("cortex-a53", 128, 768, 768, 0.7),
        ("cortex-a55", 4096, 64, 64, 0.76),
    ],
)
def test_products_are_nearer_to_the_peak(
    core: str, rows: int, depth: int, columns: int, least: float
) -> None:
    b, target = GraphBuilder(), parse_target(core)
    product = b.op("matmul", b.input("x", (rows, depth)), b.input("y", (depth, columns)))
    library = build_kernel(Kernel(b.build(product), frozenset({1})), target)
    assert isinstance(library, CpuKernelRunner)
    old, new = (
        hot_loop(text, "aarch64") for text in (str(library.library.inspect_source("asm")), library.source())
    )
    products = sum(text.startswith("fmla") for text in new)
    print(f"{core}: {products / loop_cycles(old, core):.0%}, {products / loop_cycles(new, core):.0%}")
    assert products / loop_cycles(old, core) + 0.05 < products / loop_cycles(new, core)
    assert products / loop_cycles(new, core) > least


@pytest.mark.parametrize("other", ["str q1, [x2]", "bl exp", "usra v1.4s, v2.4s, #1"])
def test_loops_of_other_instructions_stay(other: str) -> None:
    before = loop_of(["ldr d0, [x0]", "ldr d1, [x1]", *PRODUCTS, other]) + "\n"
    assert ordered(before, "cortex-a55") == before
