"""Loops cut out of assembly, what they multiply, and what llvm-mca is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcomp.codegen.machine_code import (
    LoopCost,
    find_llvm_mca,
    hot_loop,
    innermost_loops,
    loop_cost,
    multiplies,
    multiply_adds,
    on_stack,
    results,
    table_of,
)
from tcomp.errors import BuildError
from tcomp.target.parse import parse_target

X86 = """
.LBB0_1:
\tvmovups (%rsp), %zmm3
\tvfmadd231ps %zmm1, %zmm2, %zmm3
\tvfmadd231ps %zmm1, %zmm2, %zmm3
\tvfmadd231ps %zmm1, %zmm2, %zmm3
\tjne .LBB0_1
.LBB0_2:
\tvfmadd231ps %zmm1, %zmm2, %zmm3
\t.loc 1 0 0
\tvfmadd231ps %zmm1, %zmm2, %zmm4
\tjne .LBB0_2
"""
ARM64 = """
.LBB0_1:
\tmov\tx9, #0                        // =0x0
.LBB0_2:                                // %for_body
.Ltmp1:
\tldp\tq0, q1, [x8], #32
\tldr\tq2, [sp, #16]                   // 16-byte Folded Reload
\tfmla\tv3.4s, v0.4s, v2.s[0]
\tfmla\tv4.2s, v1.2s, v2.2s
\tfmadd\ts5, s6, s7, s5
\tsubs\tx9, x9, #1
\tb.ne\t.LBB0_2
\tcbnz\tx10, .LBB0_1
"""
ARM = """
.LBB0_1:
\tvld1.32\t{d0, d1}, [r0:128]!            @ load
\tvfma.f32\tq8, q0, q1
\tvmla.f32\td18, d0, d2[1]
\tbne\t.LBB0_1
"""


def test_the_loop_with_most_sums_is_cut_out_of_assembly() -> None:
    loop = hot_loop(X86)
    assert loop == [
        "vfmadd231ps %zmm1, %zmm2, %zmm3",
        "vfmadd231ps %zmm1, %zmm2, %zmm4",
        "jne .LBB0_2",
    ]
    assert multiplies(loop) == results(loop) == 2
    assert on_stack(["vmovups (%rsp), %zmm3", *loop]) == ["vmovups (%rsp), %zmm3"]
    assert hot_loop(X86, multiply="vdpbf16ps") == []


def test_only_innermost_loops_of_arm_are_found() -> None:
    (loop,) = innermost_loops(ARM64, "aarch64")
    assert hot_loop(ARM64, "aarch64") == loop
    assert (loop[0], loop[-1], len(loop)) == ("ldp q0, q1, [x8], #32", "b.ne .LBB0_2", 7)
    assert (multiplies(loop, "aarch64"), multiply_adds(loop, "aarch64")) == (3, 4 + 2 + 1)
    assert on_stack(loop, "aarch64") == ["ldr q2, [sp, #16]"]


def test_loops_of_32_bit_arm() -> None:
    loop = hot_loop(ARM, "arm")
    assert (len(loop), multiplies(loop, "arm"), multiply_adds(loop, "arm")) == (4, 2, 4 + 2)
    assert on_stack(["add lr, sp, #208", *loop], "arm") == ["add lr, sp, #208"]


@pytest.mark.parametrize(
    ("instruction", "products"),
    [
        ("fmla v0.8h, v1.8h, v2.h[3]", 8),
        ("sdot v0.4s, v1.16b, v2.4b[0]", 16),
        ("smmla v0.4s, v1.16b, v2.16b", 32),
        ("bfdot v0.4s, v1.8h, v2.2h[0]", 8),
        ("bfmmla v0.4s, v1.8h, v2.8h", 16),
        ("fmlal v0.4s, v1.4h, v2.h[0]", 4),
        ("fadd v0.4s, v1.4s, v2.4s", 0),
    ],
)
def test_products_of_an_instruction(instruction: str, products: int) -> None:
    assert multiply_adds([instruction], "aarch64") == products


def fake_mca(folder: Path, output: str) -> str:
    program = folder / "llvm-mca"
    program.write_text(f'#!/bin/sh\ncat > {folder}/code\necho "$@" > {folder}/arguments\n{output}\n')
    program.chmod(0o755)
    return str(program)


def test_cycles_are_asked_of_llvm_mca(tmp_path: Path) -> None:
    """Cortex-A76 by the table of Neoverse N1: two products of four lanes a cycle are its peak."""
    target = parse_target("cortex-a76")
    cost = loop_cost(hot_loop(ARM64, "aarch64"), target, fake_mca(tmp_path, "echo 'Total Cycles:  600'"))
    assert cost == LoopCost(instructions=7, products=7, spills=1, cycles=3.0)
    assert cost.of_peak(target) == 7 / (3 * 8)
    lines = (tmp_path / "code").read_text().splitlines()
    assert (lines[0], lines[-1]) == ("loop:", "b.ne loop")
    assert "-mcpu=neoverse-n1" in (tmp_path / "arguments").read_text()


def test_what_llvm_mca_refuses_is_an_error(tmp_path: Path) -> None:
    program = fake_mca(tmp_path, "echo 'error: no such thing' >&2; exit 1")
    with pytest.raises(BuildError, match="counted no cycles: error: no such thing"):
        loop_cost(["b.ne .LBB0_1"], parse_target("cortex-a76"), program)


def test_an_old_llvm_mca_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LLVM 14 has Cortex-A57's table for every larger core."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, version in (("llvm-mca", "14.0.6"), ("llvm-mca-19", "19.1.7")):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\necho 'Debian LLVM version {version}'\n")
        program.chmod(0o755)
    assert find_llvm_mca() == str(tmp_path / "llvm-mca-19")
    (tmp_path / "llvm-mca-19").unlink()
    with pytest.raises(BuildError, match="apt-get install llvm-19"):
        find_llvm_mca()


@pytest.mark.parametrize(("name", "assembly"), [("cortex-a55", ARM64), ("armv7-linux", ARM)])
def test_llvm_mca_knows_the_instructions(name: str, assembly: str) -> None:
    try:
        find_llvm_mca()
    except BuildError as error:
        pytest.skip(str(error))
    target = parse_target(name)
    assert loop_cost(hot_loop(assembly, target.machine), target).cycles > 1


def test_a_core_without_a_table_is_an_error() -> None:
    assert table_of(parse_target("cortex-a76")) == "neoverse-n1"
    with pytest.raises(BuildError, match="no table of instructions for core `apple-m1`"):
        table_of(parse_target('{"tag": "arm64-linux", "mcpu": "apple-m1"}'))
