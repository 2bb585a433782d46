"""Targets with tile registers that run on any CPU: with its own, or with ones that a C program emulates."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tcomp.codegen import jit
from tcomp.target.host import host_target
from tcomp.target.target import Target
from tcomp.target.tiles import BFLOAT16_TILES
from tcomp.tensor import amx
from tcomp.tensor.intrinsics import register_functions

_PREFIXES = ("tcomp_tiles_configure", "tcomp_tiles_release", "tcomp_tile_")


def tiled(target: Target) -> Target:
    """`target`, said to multiply tiles of bfloat16."""
    hidden = [f"-{feature}" for feature in BFLOAT16_TILES]
    attributes = [a for a in target.llvm.get("mattr", ()) if a not in hidden]
    features = target.features | set(BFLOAT16_TILES)
    return replace(
        target, llvm={**target.llvm, "mattr": attributes}, features=features, fast_dtype="bfloat16"
    )


@cache
def _load_emulation() -> None:
    source = Path(__file__).with_name("tiles_emulation.c")
    with TemporaryDirectory() as folder:
        library = Path(folder) / "tiles.so"
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


@pytest.fixture(params=["hardware", "emulated"])
def tile_target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Target]:
    """A target for each way to have tiles; the first is skipped where this CPU has none."""
    host = host_target()
    if request.param == "hardware":
        if not amx.has_tiles(host):
            pytest.skip("this CPU has no tile registers (AMX)")
        yield replace(host, fast_dtype="bfloat16")
        return
    _load_emulation()
    monkeypatch.setattr(jit, "require_runnable", lambda target: None)
    for beginning, text in amx.TEXTS.items():
        register_functions(beginning, lambda name, text=text: emulated(text(name)))
    yield tiled(host)
    for beginning, text in amx.TEXTS.items():
        register_functions(beginning, text)


def emulated(text: str) -> str:
    """The text of a function whose instruction is a call of the emulation."""
    names = {
        "ldtilecfg": "configure", "tilerelease": "release", "tilezero": "zero", "tileloadd64": "load",
        "tilestored64": "store", "tdpbf16ps": "multiply",
    }  # fmt: skip
    for instruction, name in names.items():
        text = text.replace(f"@llvm.x86.{instruction}(", f"@tcomp_emulated_{name}(")
    return text.replace("(i8", "(i32").replace(", i8 ", ", i32 ").replace(", i8", ", i32")
