"""What emulated code is said to take: its listing, counts of its instructions, caches, llvm-mca's cycles."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tcomp.codegen import c_abi
from tcomp.codegen.benchmark import KERNEL
from tcomp.codegen.cycles import BYTES, Block, Code, Listing, Rates, count_cycles, instructions_outside
from tcomp.codegen.emulation import InstructionCounter, Piece, emulator_version
from tcomp.codegen.machine_code import find_llvm_mca
from tcomp.codegen.toolchain import find_static_toolchain
from tcomp.errors import BuildError
from tcomp.relay.builder import GraphBuilder
from tcomp.target.parse import parse_target
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.selection import schedule

TARGET = parse_target("cortex-a76")
ASSEMBLY = """
\t.text
\t.p2align\t4
kernel:
.Lfunc_begin0:
\tmov\tx9, #0                        // =0x0
\t.p2align\t5, , 8
.LBB0_1:                                // %for_body
.Ltmp1:
\tmov\tx10, #4
\t.p2align\t3, , 16
.LBB0_2:
\tldr\tq0, [x8], #16
\tfmla\tv3.4s, v0.4s, v2.4s
\tsubs\tx10, x10, #1
\tb.ne\t.LBB0_2
\tstr\tq3, [x1], #16
\tsubs\tx9, x9, #1
\tb.ne\t.LBB0_1
\tbl\texpf
\tret
\t.section\t.rodata
\t.long\t1, 2
"""
LOOP_OF_8 = """
\t.text
\t.globl _start
_start:
\tmov x10, #1000
\tadr x8, data
1:
\tsubs x10, x10, #1
\tldr x9, [x8]
\tldr x9, [x8, #4096]
\tldr x9, [x8, #8192]
\tldr x9, [x8, #12288]
\tldr x9, [x8, #16384]
\tnop
\tb.ne 1b
\tmov x0, #0
\tmov x8, #93
\tsvc #0
\t.data
\t.balign 4096
data:
\t.space 32768
"""


def require_tools(target: Target) -> None:
    try:
        emulator_version(target)
        find_static_toolchain(target)
        find_llvm_mca()
    except BuildError as error:
        pytest.skip(str(error))


def test_a_listing_knows_where_instructions_are() -> None:
    listing = Listing.of(ASSEMBLY, "aarch64")
    assert [line.offset for line in listing.lines] == [0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40]
    assert listing.lines[2].text == "ldr q0, [x8], #16"
    assert (listing.symbols["kernel"], listing.size) == (0, 44)
    assert listing.blocks == (
        Block(0, 1, is_loop=False),
        Block(1, 2, is_loop=False),
        Block(2, 6, is_loop=True),
        Block(6, 9, is_loop=False),
        Block(9, 10, is_loop=False),
        Block(10, 11, is_loop=False),
    )
    assert listing.has_calls
    assert not Listing.of(ASSEMBLY.replace("bl\texpf", "nop"), "aarch64").has_calls
    padded = Listing.of(ASSEMBLY.replace("5, , 8", "5, , 28"), "aarch64")
    assert padded.lines[1].offset == 32, "as much padding as is allowed"


@pytest.mark.parametrize("name", ["cortex-a76", "armv7-linux"])
@pytest.mark.parametrize("op", ["matmul", "softmax"])
def test_a_listing_is_as_long_as_its_object(name: str, op: str, tmp_path: Path) -> None:
    b, target = GraphBuilder(), parse_target(name)
    prefix = {"aarch64": "aarch64-linux-gnu", "arm": "arm-linux-gnueabihf"}[target.machine]
    size = shutil.which(f"{prefix}-size")
    if size is None:
        pytest.skip("no `size` for the machine: apt-get install Debian's cross compilers")
    x = b.input("x", (24, 33))
    out = b.op("matmul", x, b.input("y", (33, 40))) if op == "matmul" else b.op("softmax", x, axis=1)
    module = c_abi.build({KERNEL: schedule(Kernel(b.build(out)), target).function}, target)
    (tmp_path / "kernel.o").write_bytes(c_abi.object_of(module, target))
    said = subprocess.run([size, "-A", tmp_path / "kernel.o"], capture_output=True, text=True, check=True)
    (text,) = (int(line.split()[1]) for line in said.stdout.splitlines() if line.split()[:1] == [".text"])
    assert Listing.of(c_abi.assembly_of(module, target), target.machine).size == text


def test_times_and_misses_are_exact(tmp_path: Path) -> None:
    """Five lines 4 KiB apart fall into one set of a cache of 16 KiB and 4 ways, which holds four of them.

    The first round, which brings them, is in the piece of code before the loop's own.
    """
    require_tools(TARGET)
    (tmp_path / "loop.s").write_text(LOOP_OF_8)
    gcc = shutil.which("aarch64-linux-gnu-gcc")
    if gcc is None:
        pytest.skip("no aarch64-linux-gnu-gcc")
    subprocess.run([gcc, "-nostdlib", "-static", "loop.s", "-o", "loop"], cwd=tmp_path, check=True)
    found: dict[int, Piece] = {}
    for level_1 in (16384, 32768, 49152):
        target = parse_target(f'{{"tag": "cortex-a76", "cache_bytes": [{level_1}, 65536, 131072]}}')
        folder = tmp_path / str(level_1)
        folder.mkdir()
        done = InstructionCounter(target, folder).run([str(tmp_path / "loop")], 60)
        assert done.status == 0
        assert sum(p.instructions * p.times for p in done.pieces) == 2 + 8 * 1000 + 3
        found[level_1] = max(done.pieces, key=lambda p: p.times)
    assert found[16384].misses[0] == 5 * found[16384].times
    assert found[32768].misses[0] == 0
    assert found[49152].misses[0] == 0, "of 192 sets, three are wanted"
    assert found[16384].times == 999
    assert found[16384].misses[1:] == (0, 0), "they stay in the second cache"


def test_loops_count_by_their_chains(tmp_path: Path) -> None:
    """A loop of one chain of sums takes the latency of a sum an iteration, whatever else could start."""
    require_tools(TARGET)
    listing = Listing.of(ASSEMBLY.replace("bl\texpf", "nop"), "aarch64")
    base = 0x1000
    pieces = [
        Piece(base, 2, 1),
        Piece(base + 2 * BYTES, 4, 4000),
        Piece(base + 6 * BYTES, 3, 1000, (500, 0, 0)),
        Piece(0x9000, 7, 3),
    ]
    count = count_cycles(listing, base, pieces, 0, Rates(TARGET))
    assert count.instructions == 2 + 4 * 4000 + 3 * 1000
    assert 4000 * 2 <= count.core <= 4000 * 5
    second_level, _, memory = TARGET.bytes_per_cycle
    assert count.memory == 500 * 64 / second_level
    assert count.cycles == count.core
    assert instructions_outside(listing, base, pieces) == 21
    waiting = [Piece(base + 2 * BYTES, 4, 4000, (0, 0, 10000))]
    assert count_cycles(listing, base, waiting, 0, Rates(TARGET)).cycles == 10000 * 64 / memory


def test_llvm_mca_is_asked_once_for_the_same_code(monkeypatch: pytest.MonkeyPatch) -> None:
    require_tools(TARGET)
    asked: list[str] = []
    run = subprocess.run

    def counted(command: list[str], **options: str) -> subprocess.CompletedProcess[str]:
        asked.append(options["input"])
        return run(command, **options)

    rates = Rates(TARGET)
    monkeypatch.setattr("tcomp.codegen.cycles.subprocess.run", counted)
    chain = ("fadd v0.4s, v0.4s, v1.4s", "subs x10, x10, #1", "b.ne .L")
    codes = [Code(chain, True), Code(chain, False), Code(("nop",), False), Code(chain, True)]
    first = rates(codes)
    assert first[0] == first[3] > 1.9 > first[1] > first[2] > 0, (
        "a sum waits for the last one in a loop alone"
    )
    assert [text.count("BEGIN") for text in asked] == [1, 2]
    assert rates([*codes, Code(("ldr x9, [x8]",), False)])[:4] == first
    assert [text.count("BEGIN") for text in asked] == [1, 2, 1]


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BuildError, match="no `qemu-aarch64` found; install it, `apt-get install qemu-user`"):
        emulator_version(TARGET)
    with pytest.raises(BuildError, match=r"no llvm-mca .* found; install it: `apt-get install llvm-19`"):
        find_llvm_mca()
