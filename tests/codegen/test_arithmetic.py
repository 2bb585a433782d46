"""Leaving the arithmetic of a kernel out: where it changes nothing that is counted, and where it may."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from tcomp.codegen import c_abi
from tcomp.codegen.arithmetic import without_arithmetic
from tcomp.codegen.benchmark import KERNEL
from tcomp.codegen.cycles import Listing
from tcomp.errors import BuildError
from tcomp.relay.builder import GraphBuilder
from tcomp.runtime.elf import RELOCATABLE, SharedLibrary
from tcomp.target.parse import parse_target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.selection import schedule

NOP = 0xD503201F
LOOP = """
\t.text
kernel:
\tfmov\td8, x9
\tmov\tx10, #4
.LBB0_1:
\tldp\tq0, q1, [x8], #32
\tfmla\tv3.4s, v0.4s, v1.4s
{}
\tsubs\tx10, x10, #1
\tb.ne\t.LBB0_1
\tstr\tq3, [x1], #16
\tret
"""
HARMLESS = {
    "nothing more": "nop",
    "a general register kept in a vector register": "fmov x11, d8",
    "a number that is replaced before": "movi v3.2d, #0000000000000000\n\tfmov w11, s3",
    "a number that is copied": "mov v5.16b, v3.16b\n\tstr q5, [x2]",
    "memory set to zero": "bl memset",
    "a function of the kernel": "bl kernel",
}
DECIDING = {
    "a comparison": "fcmp s3, #0.0\n\tb.mi .LBB0_1",
    "a product as a place": "fmov w11, s3\n\tldr w12, [x2, w11, uxtw #2]",
    "a loaded number as a place": "umov w11, v0.s[1]",
    "a number that went through others": "zip1 v5.4s, v3.4s, v8.4s\n\tmov v6.16b, v5.16b\n\tfmov w11, s6",
    "a part of a register that is replaced": "mov v3.s[0], v8.s[0]\n\tmov w11, v3.s[1]",
    "a number out of the last round": "fmov w11, s7\n\tfadd v7.4s, v3.4s, v3.4s",
    "what a call may have left": "bl memset\n\tfmov w11, s20",
    "a function of numbers": "bl expf",
    "a jump to such a function": "b expf",
    "a jump to a place in a register": "br x11",
}


def assembled(assembly: str, folder: Path) -> tuple[bytes, Listing]:
    compiler = shutil.which("aarch64-linux-gnu-gcc")
    if compiler is None:
        pytest.skip("no aarch64-linux-gnu-gcc")
    (folder / "kernel.s").write_text(assembly)
    subprocess.run([compiler, "-c", "kernel.s", "-o", "kernel.o"], cwd=folder, check=True)
    return (folder / "kernel.o").read_bytes(), Listing.of(assembly, "aarch64")


@pytest.mark.parametrize("text", HARMLESS.values(), ids=HARMLESS)
def test_what_only_computes_is_left_out(text: str, tmp_path: Path) -> None:
    code, listing = assembled(LOOP.format(f"\t{text}"), tmp_path)
    bare = without_arithmetic(code, listing)
    assert bare is not None
    assert changed(code, bare) == [12], "the sum, and nothing else"


@pytest.mark.parametrize("text", DECIDING.values(), ids=DECIDING)
def test_what_numbers_decide_is_executed(text: str, tmp_path: Path) -> None:
    assert without_arithmetic(*assembled(LOOP.format(f"\t{text}"), tmp_path)) is None


def test_a_listing_of_other_code_is_noticed(tmp_path: Path) -> None:
    code, _ = assembled(LOOP.format("\tnop"), tmp_path)
    listing = Listing.of(LOOP.replace("\tmov\tx10, #4\n", "").format("\tnop"), "aarch64")
    with pytest.raises(BuildError, match=r"the kernel's object has .* where its listing has `fmla"):
        without_arithmetic(code, listing)


def test_all_products_of_a_kernel_are_left_out() -> None:
    b, target = GraphBuilder(), parse_target("cortex-a76")
    kernel = Kernel(b.build(b.op("matmul", b.input("x", (24, 33)), b.input("y", (33, 40)))))
    module = c_abi.build({KERNEL: schedule(kernel, target).function}, target)
    listing = Listing.of(c_abi.assembly_of(module, target), target.machine)
    code = c_abi.object_of(module, target)
    bare = without_arithmetic(code, listing)
    assert bare is not None
    products = [line.offset for line in listing.lines if line.text.startswith(("fmla", "fmul", "fadd"))]
    assert len(products) > 20
    assert changed(code, bare) == products


def changed(code: bytes, bare: bytes) -> list[int]:
    """Offsets of the instructions that are `nop` in `bare` alone; whatever else differs is an error."""
    section = SharedLibrary("object", memoryview(code), RELOCATABLE).section(".text")
    assert section is not None
    assert len(code) == len(bare)
    end = section.offset + section.size
    assert (code[: section.offset], code[end:]) == (bare[: section.offset], bare[end:])
    pairs = zip(words(code, section.offset, end), words(bare, section.offset, end), strict=True)
    different = [(4 * i, after) for i, (before, after) in enumerate(pairs) if before != after]
    assert all(word == NOP for _, word in different)
    return [offset for offset, _ in different]


def words(code: bytes, begin: int, end: int) -> tuple[int, ...]:
    return struct.unpack(f"<{(end - begin) // 4}I", code[begin:end])
