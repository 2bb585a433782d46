"""Libraries for Android, linked without an NDK, under qemu with a C library that has Android's interface."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from test_emulated import PROGRAM, network, tools

from tcomp.api import optimize
from tcomp.codegen.android import STUBS
from tcomp.codegen.artifact import Weights, compile_graph
from tcomp.codegen.toolchain import find_toolchain
from tcomp.errors import BuildError
from tcomp.relay.evaluate import evaluate
from tcomp.runtime.elf import SharedLibrary
from tcomp.target.parse import parse_target
from tcomp.target.target import Target

FOLDER = Path(__file__).parent
FLOAT_ABI_AT, HARD_FLOATS = 37, b"\x04"
"""A byte of the ELF header that 32-bit loaders look at; functions of the model take no floats."""
STAND_INS: dict[str, list[str]] = {
    "libc.so": [str(FOLDER / "bionic.c")],
    "libm.so": ["-x", "c", "/dev/null", "-Wl,--no-as-needed", "-lm"],
}


@pytest.fixture(params=["arm64-android", "armv7-android"])
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Target:
    monkeypatch.delenv("ANDROID_NDK_HOME", raising=False)
    found = parse_target(request.param)
    try:
        find_toolchain(found)
    except BuildError as error:
        pytest.skip(str(error))
    return found


def run(library: Path, target: Target, arguments: list[str], data: bytes, folder: Path) -> bytes:
    """What run_library.c makes of `data` by `library`, which finds libc.so and libm.so in `folder`."""
    linux, emulator = tools(parse_target({"aarch64": "arm64-linux", "arm": "armv7-linux"}[target.machine]))
    for name, inputs in STAND_INS.items():
        command = [*linux.command, "-shared", "-fPIC", "-O1", f"-Wl,-soname,{name}", *inputs]
        subprocess.run([*command, "-o", folder / name], check=True)
    flags = [
        "-D_GNU_SOURCE",
        f'-DLIBRARY="{library}"',
        f"-I{library.parent}",
        "-include",
        FOLDER / "opened.h",
    ]
    subprocess.run([*linux.command, *flags, PROGRAM, "-o", folder / "program", "-ldl"], check=True)
    command = [*emulator, "-E", f"LD_LIBRARY_PATH={folder}", folder / "program", *arguments]
    result = subprocess.run(command, input=data, capture_output=True, check=False, timeout=120)
    assert (result.returncode, result.stderr) == (0, b"")
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["embed", "separate"])
def test_equals_the_reference(target: Target, weights: Weights, tmp_path: Path) -> None:
    graph, library = network(), tmp_path / "libnetwork.so"
    tools(parse_target({"aarch64": "arm64-linux", "arm": "armv7-linux"}[target.machine]))
    compile_graph(optimize(graph, target), target, library, weights=weights)
    with library.open("r+b") as file:
        if target.machine == "arm":
            file.seek(FLOAT_ABI_AT)
            file.write(HARD_FLOATS)
    image = np.random.default_rng(1).standard_normal((1, 3, 32, 32)).astype(np.float32)
    folder = tmp_path / "system"
    folder.mkdir()
    arguments = ["3"] if weights == "embed" else ["3", str(library.with_suffix(".weights"))]
    (expected,) = evaluate(graph, [image])
    found = np.frombuffer(run(library, target, arguments, image.tobytes(), folder), np.float32)
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_asks_the_phone_for_nothing_else(target: Target, tmp_path: Path) -> None:
    path = tmp_path / "libnetwork.so"
    compile_graph(optimize(network(), target), target, path)
    library = SharedLibrary(str(path), memoryview(path.read_bytes()))
    assert set(library.needed) <= set(STUBS)
    wanted = {symbol.name for symbol in library.symbols if not symbol.defined}
    assert wanted <= {name for names in STUBS.values() for name in names}
    assert "malloc" in wanted


def test_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANDROID_NDK_HOME", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BuildError, match=r"ANDROID_NDK_HOME .* or `pip install 'tcomp\[cross\]'`"):
        find_toolchain(parse_target("arm64-android"))


def test_the_ndk_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clang = tmp_path / "toolchains" / "llvm" / "prebuilt" / "linux-x86_64" / "bin" / "clang"
    clang.parent.mkdir(parents=True)
    clang.touch()
    monkeypatch.setenv("ANDROID_NDK_HOME", str(tmp_path))
    found = find_toolchain(parse_target("armv7-android"))
    assert found.command == (str(clang), "--target=armv7a-linux-androideabi24")
    assert "-lpthread" not in found.libraries  # bionic's libc has it inside
