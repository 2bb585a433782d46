"""What is refused after linking: libraries made wrong on purpose, and the reader of instructions."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from small_models import chain

from tcomp.codegen import check
from tcomp.codegen.aarch64 import find_register
from tcomp.codegen.artifact import compile_graph
from tcomp.codegen.check import DEMANDS, check_library
from tcomp.errors import ArtifactError, BuildError
from tcomp.runtime.elf import SharedLibrary
from tcomp.target.host import host_target
from tcomp.target.parse import parse_target

COMPILERS = {"arm64-android": "aarch64-linux-gnu-gcc", "armv7-android": "arm-linux-gnueabihf-gcc"}
GOOD = "int tcomp_x(int a) { return a + 1; }"
X18 = '__attribute__((naked)) int tcomp_x(int a) { __asm__("mov x18, x0\\n ret"); }'
DATA = '__attribute__((naked)) int tcomp_x(int a) { __asm__("b 1f\\n .word 0xaa0003f2\\n 1: ret"); }'
"""0xaa0003f2 is `mov x18, x0`."""
WEAK = "extern __attribute__((weak)) int __TVMBackendParallelLaunch; " + GOOD.replace(
    "1", "__TVMBackendParallelLaunch"
)


def library(folder: Path, source: str, *flags: str, system: str = "arm64-android") -> Path:
    compiler = shutil.which(COMPILERS[system])
    if compiler is None:
        pytest.skip(f"no {COMPILERS[system]}: apt-get install Debian's cross compilers")
    (folder / "x.c").write_text(source)
    command = [compiler, "-shared", "-fPIC", "-O1", "-nostdlib", "-o", "libx.so", "x.c", *flags]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "libx.so"


@pytest.mark.parametrize("system", list(COMPILERS))
def test_a_library_as_it_should_be(tmp_path: Path, system: str) -> None:
    check_library(library(tmp_path, GOOD, system=system), parse_target(system))


@pytest.mark.parametrize(
    ("source", "flags", "message"),
    [
        ("int tcomp_x(void) { return 1; } int other(void) { return 2; }", (), r"exports other; .*: use a"),
        (WEAK, (), r"needs __TVMBackendParallelLaunch of TVM's runtime"),
        ("_Thread_local int tcomp_x;", (), r"has thread-local storage.* use a compiler with -femulated-tls"),
        (GOOD, ("-Wl,-z,max-page-size=4096",), r"has a segment aligned to 4096 bytes.*max-page-size=16384"),
        (X18, (), r"uses register x18 in section \.text.* -ffixed-x18"),
    ],
    ids=["exports", "tvm", "thread-local", "pages", "x18"],
)
def test_refused(tmp_path: Path, source: str, flags: tuple[str, ...], message: str) -> None:
    path = library(tmp_path, source, *flags)
    with pytest.raises(BuildError, match=rf"libx\.so {message}"):
        check_library(path, parse_target("arm64-android"))


def test_refuses_foreign_libraries(tmp_path: Path) -> None:
    library(tmp_path, "int helper(void) { return 0; }", "-Wl,-soname,libhelper.so").rename(
        tmp_path / "libhelper.so"
    )
    path = library(tmp_path, "int helper(void); int tcomp_x(void) { return helper(); }", "-L.", "-lhelper")
    with pytest.raises(
        BuildError, match=r"needs libhelper\.so; on android only libc, libdl, libm may be needed"
    ):
        check_library(path, parse_target("arm64-android"))


def test_linux_has_no_register_and_knows_thread_local_storage(tmp_path: Path) -> None:
    check_library(library(tmp_path, X18 + "_Thread_local int tcomp_y;"), parse_target("arm64-linux"))


def test_data_among_code_is_no_instruction(tmp_path: Path) -> None:
    path = library(tmp_path, DATA)
    check_library(path, parse_target("arm64-android"))
    subprocess.run([COMPILERS["arm64-android"][:-3] + "strip", path], check=True)  # with it, the marks
    with pytest.raises(BuildError, match="uses register x18"):
        check_library(path, parse_target("arm64-android"))


@pytest.mark.parametrize("at", [0, 4, 32, 40, 54, 56, 58, 60, 62])
def test_a_damaged_header(tmp_path: Path, at: int) -> None:
    path = library(tmp_path, GOOD)
    good = path.read_bytes()
    path.write_bytes(good[:at] + b"\xff\xff" + good[at + 2 :])
    with pytest.raises((ArtifactError, BuildError), match=r"libx\.so"):
        check_library(path, parse_target("arm64-android"))


def test_this_machines_libraries_pass(tmp_path: Path) -> None:
    path = tmp_path / "chain.so"
    compile_graph(chain(), host_target(), path)
    check_library(path, host_target())
    needed = SharedLibrary(str(path), memoryview(path.read_bytes())).needed
    if shutil.which("readelf"):
        text = subprocess.check_output(["readelf", "-dW", path], text=True)
        assert re.findall(r"\(NEEDED\).*\[(.*)\]", text) == list(needed)


def test_every_system_of_a_target_has_its_demands() -> None:
    systems = {
        parse_target(tag).system for tag in ("arm64-linux", "arm64-android", "armv7-android", "znver4")
    }
    assert systems <= set(DEMANDS)
    assert check.PLATFORM_REGISTER == 18


def test_registers_as_a_disassembler_names_them(tmp_path: Path) -> None:
    """Random words; of those with SVE and SME nothing is known, and unallocated ones do not matter."""
    disassembler = shutil.which("aarch64-linux-gnu-objdump")
    if disassembler is None:
        pytest.skip("no aarch64-linux-gnu-objdump: apt-get install binutils-aarch64-linux-gnu")
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**32, 30000, dtype=np.uint64)
    for first in (0, 5, 10, 16):
        chosen = rng.random(len(words)) < 0.25
        words[chosen] = words[chosen] & ~np.uint64(31 << first) | np.uint64(18 << first)
    (tmp_path / "words").write_bytes(words.astype("<u4").tobytes())
    command = [disassembler, "-D", "-w", "-b", "binary", "-m", "aarch64", tmp_path / "words"]
    compared = 0
    for line in subprocess.check_output(command, text=True).splitlines():
        found = re.match(r"\s*[0-9a-f]+:\t([0-9a-f]{8}) \t(\w[^/]*)", line)
        if found is None or int(found[1], 16) >> 25 & 0b1101 == 0 or found[2].startswith("udf"):
            continue
        names = bool(re.search(r"\b[wx]18\b", found[2]))
        compared += names
        if names:
            assert find_register(int(found[1], 16).to_bytes(4, "little"), 18) == 0, line
    assert compared > 100


@pytest.mark.slow
def test_registers_of_real_code() -> None:
    """Exact on a C library, wherever a register is asked for that its SVE code does not use."""
    path, disassembler = Path("/usr/aarch64-linux-gnu/lib/libc.so.6"), "aarch64-linux-gnu-objdump"
    if not path.exists() or shutil.which(disassembler) is None:
        pytest.skip("no AArch64 C library and objdump: apt-get install gcc-aarch64-linux-gnu")
    text = subprocess.check_output([disassembler, "-d", "-w", path], text=True)
    lines = re.findall(r"^\s*[0-9a-f]+:\t([0-9a-f]{8}) \t([a-z][^/<\n]*)", text, re.MULTILINE)
    compared = 0
    for word, instruction in lines:
        code = int(word, 16).to_bytes(4, "little")
        expected = bool(re.search(r"\b[wx]20\b", instruction))
        compared += expected
        assert (find_register(code, 20) == 0) == expected, (word, instruction)
    assert compared > 10000
