"""Operands that lie in memory in the order in which they are read, for ARM's loads of several registers.

`ld1` fills up to four neighbouring registers and moves its address on; pairs of registers (`ldp`) take two
instructions for four, and one more to move on. LLVM takes it where an intrinsic asks for it, and adds each
address to the first one where it can see both. So a stream keeps its address behind an empty piece of
assembly. The sums that the loaded factors are multiplied into go through that piece too: LLVM's scheduler
would otherwise hoist such loads until it runs out of registers. No instruction comes of it, and cores that
execute out of order find the next loads among the products before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from tcomp.target.target import Target
from tcomp.tensor.intrinsics import llvm_vector, register_functions
from tcomp.tensor.loops import (
    Buffer,
    Expression,
    Statement,
    call,
    local,
    sequence,
)
from tcomp.tvm_api import tirx

REGISTERS = 4
"""Most registers that one instruction fills."""
LANES = 4
_BYTES = LANES * 4
_VECTOR = llvm_vector("float", LANES)
_BEGIN, _NEXT = "tcomp_stream_begin", "tcomp_stream_next"


def has_streams(target: Target, dtype: str) -> bool:
    """Whether products of `dtype` read their operands as streams on `target`."""
    return target.register_lists and dtype == "float32"


def steps_together(vectors: int, steps: int, registers: int) -> int:
    """How many of `steps` are loaded together where each takes `vectors` vectors and there are `registers`
    for them: as many as one instruction has."""
    most = min(REGISTERS, registers)
    return next((n for n in (4, 2) if steps % n == 0 and n * vectors <= most), 1)


def registers_of_loads(vectors: int) -> list[tuple[int, int]]:
    """For each of the instructions that load so many vectors, its first one and how many it loads."""
    return [(first, min(REGISTERS, vectors - first)) for first in range(0, vectors, REGISTERS)]


@dataclass(frozen=True)
class Stream:
    """Vectors of float32 that are read one after the other."""

    allocation: Statement
    cursor: Buffer

    @staticmethod
    def of(name: str) -> Stream:
        return Stream(*local((2,), "int64", f"{name}_cursor"))

    def reading(
        self, buffer: Buffer, index: Sequence[Expression], body: Statement, move: int = 0
    ) -> Statement:
        """`body`, whose loads begin at `buffer[index]`. The last registers of those that skip are `move`
        elements before the first ones of the next load."""
        nbytes = tirx.const(4 * move, "int64")
        begin = call(_BEGIN, _address(self.cursor), _address(buffer, index), nbytes)
        return sequence([self.allocation, begin, body])

    def load(self, held: Buffer, vectors: int, sums: Buffer, skips: bool = False) -> list[Statement]:
        """Load the next `vectors` vectors into `held`, not before what was added to `sums` so far."""
        ties = prod(int(extent) for extent in sums.shape) // LANES
        statements: list[Statement] = []
        for first, count in registers_of_loads(vectors):
            name = f"{_NEXT}_{count}_{ties}_{int(skips and first + count == vectors)}"
            places = _address(self.cursor), _address(sums), _address(held, first * LANES)
            statements.append(call(name, *places))
        return statements


def _address(buffer: Buffer, at: Sequence[Expression] | int = 0) -> Expression:
    """Of an element; of the one `at` places along the last axis where that is a number."""
    index = [*(0 for _ in buffer.shape[1:]), at] if isinstance(at, int) else list(at)
    return tirx.address_of(tirx.BufferLoad(buffer, index))


def _begin_text(name: str) -> str:
    """The cursor holds the address and the bytes to move it by, which LLVM shall not take for a constant: a
    load moves an address on by what it has read, or by a register."""
    return f"""
define weak void @{name}(ptr %cursor, ptr %first, i64 %move) alwaysinline {{
  %hidden = call i64 asm "", "=r,0"(i64 %move)
  %place = getelementptr i64, ptr %cursor, i64 1
  store ptr %first, ptr %cursor
  store i64 %hidden, ptr %place
  ret void
}}"""


def _next_text(name: str) -> str:
    """A load of `count` vectors after `ties` vectors of sums, which skips or not: `name` ends with these."""
    count, ties, skips = (int(word) for word in name.removeprefix(f"{_NEXT}_").split("_"))
    tied = range(ties)
    types = ", ".join(["ptr", *(_VECTOR for _ in tied)])
    constraints = ",".join(["=r", *("=w" for _ in tied), *(str(i) for i in range(ties + 1))])
    operands = ", ".join(["ptr %at", *(f"{_VECTOR} %sum{i}" for i in tied)])
    taken, loaded = f"{{ {types} }}", ", ".join([_VECTOR] * count)
    function = f"@llvm.aarch64.neon.ld1x{count}.v{LANES}f32.p0"
    lines = ["%at = load ptr, ptr %cursor"]
    for i in tied:
        lines += [f"%place{i} = getelementptr i8, ptr %sums, i64 {i * _BYTES}"]
        lines += [f"%sum{i} = load {_VECTOR}, ptr %place{i}, align 4"]
    lines += [
        f'%all = call {taken} asm "", "{constraints}"({operands})',
        f"%from = extractvalue {taken} %all, 0",
    ]
    for i in tied:
        lines += [f"%same{i} = extractvalue {taken} %all, {i + 1}"]
        lines += [f"store {_VECTOR} %same{i}, ptr %place{i}, align 4"]
    if count == 1:
        lines += [f"%loaded0 = load {_VECTOR}, ptr %from, align 4"]
    else:
        lines += [f"%list = call {{ {loaded} }} {function}(ptr %from)"]
        lines += [f"%loaded{i} = extractvalue {{ {loaded} }} %list, {i}" for i in range(count)]
    for i in range(count):
        lines += [f"%target{i} = getelementptr i8, ptr %held, i64 {i * _BYTES}"]
        lines += [f"store {_VECTOR} %loaded{i}, ptr %target{i}, align 4"]
    if skips:
        lines += ["%moves = getelementptr i64, ptr %cursor, i64 1", "%move = load i64, ptr %moves"]
    move = "%move" if skips else str(count * _BYTES)
    lines += [f"%next = getelementptr i8, ptr %from, i64 {move}", "store ptr %next, ptr %cursor", "ret void"]
    declaration = f"declare {{ {loaded} }} {function}(ptr)" if count > 1 else ""
    body = "\n".join(f"  {line}" for line in lines)
    return f"""
{declaration}
define weak void @{name}(ptr %cursor, ptr %sums, ptr %held) alwaysinline {{
{body}
}}"""


register_functions(_BEGIN, _begin_text)
register_functions(_NEXT, _next_text)
