"""Toolchains of the tests of generated programs."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tcomp.codegen import artifact, benchmark
from tcomp.codegen.toolchain import Toolchain, native_toolchain


@pytest.fixture(scope="module")
def native_static_programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Static programs for this machine are linked by its own compiler, where that has a static C library.

    ziglang, which comes first, takes a minute for its C library: tests for ARM have it do that.
    """
    folder, own = tmp_path_factory.mktemp("static"), native_toolchain()
    toolchain = Toolchain(own.name, (*own.command, "-static"), libraries=own.libraries)
    (folder / "nothing.c").write_text("int main(void) { return 0; }\n")
    command = [*toolchain.command, "nothing.c", "-o", "nothing", *toolchain.libraries]
    works = subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0
    with pytest.MonkeyPatch.context() as patch:
        for module in (artifact, benchmark) if works else ():
            patch.setattr(module, "find_static_toolchain", lambda target: toolchain)
        yield
