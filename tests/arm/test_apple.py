"""Libraries and objects for Apple's systems: built here, read here, never run here."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from test_emulated import network

from tcomp.api import optimize
from tcomp.codegen.artifact import compile_graph
from tcomp.codegen.check import check_library
from tcomp.codegen.jit import build_kernel
from tcomp.codegen.link import SOURCES
from tcomp.codegen.macho import MAGIC, MachO
from tcomp.codegen.toolchain import Toolchain, find_static_toolchain, find_toolchain
from tcomp.errors import ArtifactError, BuildError
from tcomp.relay.builder import GraphBuilder
from tcomp.target.parse import parse_target
from tcomp.tuner.task import kernels

MACOS = parse_target("arm64-apple")
OBJECT, LIBRARY = 1, 6
"""File types."""


@pytest.fixture(scope="module")
def toolchain() -> Toolchain:
    try:
        return find_toolchain(MACOS)
    except BuildError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def library(toolchain: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> MachO:
    path = tmp_path_factory.mktemp("apple") / "libnetwork.dylib"
    compile_graph(optimize(network(), MACOS), MACOS, path)
    return MachO(str(path), path.read_bytes())


def test_a_library(library: MachO) -> None:
    magic, _, _, kind = struct.unpack_from("<4I", library.data)
    assert (magic, kind) == (MAGIC, LIBRARY)
    assert library.needed == ("/usr/lib/libSystem.B.dylib",)
    header = (SOURCES / "tcomp.h").read_text()
    declared = set(re.findall(r"\b(tcomp_\w+)\(", re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)))
    exported = {symbol.name for symbol in library.symbols if symbol.defined}
    assert {name for name in exported if name.startswith("tcomp_")} == declared | {"tcomp_api_network"}
    assert b"@rpath/libnetwork.dylib" in library.data
    assert sum(len(code) for _, code in library.code) > 10000


def test_an_object_without_a_system(toolchain: Toolchain, tmp_path: Path) -> None:
    path = tmp_path / "network.o"
    compile_graph(optimize(network(), MACOS), MACOS, path, runtime="freestanding")
    made = MachO(str(path), path.read_bytes())
    assert struct.unpack_from("<4I", made.data)[3] == OBJECT
    defined = {symbol.name for symbol in made.symbols if symbol.defined}
    assert {"network_run", "memcpy"} <= defined
    assert not [name for name in defined if name.startswith("kernel")]
    assert "network_run" in (tmp_path / "network.h").read_text()


def test_rows_of_zeros_need_no_system(toolchain: Toolchain, tmp_path: Path) -> None:
    """LLVM writes the padding of a wide image by `bzero`."""
    g = GraphBuilder("network")
    image, weights = g.input("image", (1, 3, 8, 224)), g.constant(np.ones((8, 3, 3, 3), np.float32))
    graph = optimize(g.build(g.op("conv2d", image, weights, strides=(2, 2), padding=(1,) * 4)), MACOS)
    code = "".join(build_kernel(kernel, MACOS).source() for kernel, _ in kernels(graph))
    assert "_bzero" in code
    path = tmp_path / "network.o"
    compile_graph(graph, MACOS, path, runtime="freestanding")
    made = MachO(str(path), path.read_bytes())
    assert "bzero" in {symbol.name for symbol in made.symbols if symbol.defined}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("int tcomp_x(void) { return 1; } int other(void) { return 2; }", "exports other"),
        ('__attribute__((naked)) int tcomp_x(int a) { __asm__("mov x18, x0\\n ret"); }', "uses register x18"),
    ],
    ids=["exports", "x18"],
)
def test_refused(toolchain: Toolchain, tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "x.c").write_text(source)
    command = [*toolchain.command, "-dynamiclib", "-O1", "-o", "libx.dylib", "x.c"]
    subprocess.run(command, cwd=tmp_path, check=True)
    with pytest.raises(BuildError, match=rf"libx\.dylib {message}"):
        check_library(tmp_path / "libx.dylib", MACOS)


def test_ios_needs_a_mac(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    phone = parse_target('{"tag": "arm64-apple", "mtriple": "arm64-apple-ios13.0.0"}')
    with pytest.raises(BuildError, match="install Xcode on a Mac"):
        find_toolchain(phone)
    xcrun = tmp_path / "xcrun"
    xcrun.touch(mode=0o755)
    assert find_toolchain(phone).command[:4] == (str(xcrun), "--sdk", "iphoneos", "clang")


def test_a_bundle_needs_no_toolchain(tmp_path: Path) -> None:
    compile_graph(optimize(network(), MACOS), MACOS, tmp_path / "model", form="bundle")
    text = (tmp_path / "model" / "CMakeLists.txt").read_text()
    assert "-DCMAKE_OSX_ARCHITECTURES=arm64" in text
    assert "LINKER:" not in text
    assert (tmp_path / "model" / "apple" / "sched.h").is_file()
    kernel = next((tmp_path / "model" / "kernels").glob("kernel0*.o"))
    made = MachO(str(kernel), kernel.read_bytes())
    assert not [symbol for symbol in made.symbols if symbol.defined]


@pytest.mark.parametrize(
    "content", [b"", b"\x7fELF" + bytes(60), struct.pack("<8I", MAGIC, 0, 0, 6, 9, 0, 0, 0)]
)
def test_damaged(content: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"libx\.dylib is .*compile it again"):
        _ = MachO("libx.dylib", content).symbols


def test_programs_are_not_static() -> None:
    with pytest.raises(BuildError, match="`arm64-apple` cannot be static"):
        find_static_toolchain(MACOS)
