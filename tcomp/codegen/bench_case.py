"""The sources of a program that times one model: an input, and the outputs that it must give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tcomp.codegen.link import SOURCES
from tcomp.relay.types import Array


@dataclass(frozen=True)
class BenchCase:
    """What the program runs with and compares with, in the order of the model's inputs and outputs.

    An output is right when it differs nowhere by more than `absolute + relative * max|expected|`. `threads`
    is how many the program uses unless it is told otherwise.
    """

    inputs: Sequence[Array]
    expected: Sequence[Array]
    relative: float
    absolute: float
    threads: int = 1


def bench_sources(case: BenchCase, folder: Path) -> list[Path]:
    """C and assembly, some of it written to `folder`, which with a model make the program."""
    data, tables = folder / "case_data.S", folder / "case.c"
    groups = {"input": case.inputs, "expected": case.expected}
    data.write_text("".join(_data(kind, arrays, folder) for kind, arrays in groups.items()) + _NO_STACK)
    tables.write_text(
        '#include "bench_case.h"\n'
        + "".join(_table(kind, len(arrays)) for kind, arrays in groups.items())
        + f"const tcomp_bench_case tcomp_case = {{input, expected, {case.relative!r}, {case.absolute!r}, "
        f"{case.threads}}};\n"
    )
    return [SOURCES / "bench_model.c", tables, data]


_NO_STACK = '    .section .note.GNU-stack,"",%progbits\n'


def _symbol(kind: str, index: int) -> str:
    return f"tcomp_case_{kind}{index}"


def _data(kind: str, arrays: Sequence[Array], folder: Path) -> str:
    """Assembly that defines the bytes of `arrays`, each of them aligned as allocated memory would be."""
    text = "    .section .rodata\n"
    for index, array in enumerate(arrays):
        path = folder / f"{kind}{index}"
        path.write_bytes(np.ascontiguousarray(array).tobytes())
        symbol = _symbol(kind, index)
        text += (
            f'    .balign 64\n    .globl {symbol}\n    .hidden {symbol}\n{symbol}:\n    .incbin "{path}"\n'
        )
        text += "    .byte 0\n"  # an empty array has an address too
    return text


def _table(kind: str, count: int) -> str:
    symbols = [_symbol(kind, index) for index in range(count)]
    declared = "".join(f"extern const char {symbol}[];\n" for symbol in symbols)
    return f"{declared}static const char *const {kind}[] = {{{', '.join([*symbols, '0'])}}};\n"
