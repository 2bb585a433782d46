"""The machine code of kernels, for tests that look at what the compiler made of them."""

from __future__ import annotations

from collections import Counter

import pytest

from tcomp.codegen.cuda.sass import disassemble, read_sass
from tcomp.errors import BuildError


def disassembled(image: bytes) -> str:
    """The text of a cubin; the test is skipped where there is no nvdisasm."""
    try:
        return disassemble(image)
    except BuildError as error:
        pytest.skip(str(error))


def loop_bodies(assembly: str) -> list[Counter[str]]:
    """How many instructions of each name every loop has, by the text of nvdisasm."""
    loops = [loop for function in read_sass(assembly) for loop in function.loops()]
    return [Counter(one.name for one in loop.body) for loop in loops]
