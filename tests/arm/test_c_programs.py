"""The C runtime on ARM under qemu: wrong arguments, cancelling, several contexts and libraries."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from c_programs import library, parallel_model, program, run
from small_models import chain
from test_emulated import tools

from tcomp.target.parse import parse_target


@pytest.mark.slow
@pytest.mark.parametrize("name", ["arm64-linux", "armv7-linux"])
def test_programs(name: str, tmp_path: Path) -> None:
    target = parse_target(name)
    toolchain, emulator = tools(target)
    one, other = (library(graph, tmp_path, target).library for graph in (chain(), parallel_model()))
    copies = tmp_path / "copies"
    copies.mkdir()
    commands = {
        "bad_input": ([one], []),
        "cancel": ([other], ["10"]),
        "contexts": ([other], ["2"]),
        "sharing": ([other], ["2"]),
        "two_models": ([one, other], ["2", *(shutil.copy2(path, copies) for path in (one, other))]),
    }
    for source, (libraries, arguments) in commands.items():
        built = program(f"{source}.c", tmp_path, libraries, toolchain.command)
        run([*emulator, built, *arguments])
