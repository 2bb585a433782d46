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
from tcomp.tensor.loops import Buffer, Expression, Statement, local, sequence
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


@dataclass(frozen=True)
class Stream:
    """Vectors of float32 that are read one after the other, into `held`."""

    allocations: tuple[Statement, ...]
    cursor: Buffer
    held: Buffer

    @staticmethod
    def of(vectors: int, name: str) -> Stream:
        """A stream whose loads are of up to so many vectors."""
        allocate_cursor, cursor = local((2,), "int64", f"{name}_cursor")
        allocate_held, held = local((vectors * LANES,), "float32", name)
        return Stream((allocate_cursor, allocate_held), cursor, held)

    def reading(
        self, buffer: Buffer, index: Sequence[Expression], body: Statement, skipped: int = 0
    ) -> Statement:
        """`body`, whose loads begin at `buffer[index]`. Those that skip go on `skipped` elements behind what
        they have read, or before it."""
        skip = tirx.const(4 * skipped, "int64")
        begin = tirx.call_extern("int32", _BEGIN, _address(self.cursor, 0), _address(buffer, *index), skip)
        return sequence([*self.allocations, tirx.Evaluate(begin), body])

    def load(self, vectors: int, sums: Buffer, skips: bool = False) -> list[Statement]:
        """Load the next `vectors` vectors, not before what was added to `sums` so far."""
        ties = prod(int(extent) for extent in sums.shape) // LANES
        places = [_address(self.cursor, 0), _address(sums, *(0 for _ in sums.shape))]
        statements: list[Statement] = []
        for first in range(0, vectors, REGISTERS):
            count = min(REGISTERS, vectors - first)
            last = int(skips and first + count == vectors)
            name = f"{_NEXT}_{count}_{ties}_{last}"
            call = tirx.call_extern("int32", name, *places, _address(self.held, first * LANES))
            statements.append(tirx.Evaluate(call))
        return statements


def _address(buffer: Buffer, *index: Expression) -> Expression:
    return tirx.address_of(tirx.BufferLoad(buffer, list(index)))


def _begin_text(name: str) -> str:
    """The cursor holds the address and the bytes to skip, which LLVM shall not take for a constant: it moves
    an address on with a load by what that has read, or by a register."""
    return f"""
define weak void @{name}(ptr %cursor, ptr %first, i64 %skip) alwaysinline {{
  %hidden = call i64 asm "", "=r,0"(i64 %skip)
  %place = getelementptr i64, ptr %cursor, i64 1
  store ptr %first, ptr %cursor
  store i64 %hidden, ptr %place
  ret void
}}"""


def _next_text(name: str) -> str:
    """A load of `count` vectors after `ties` vectors of sums, which skips or not: `<name>_count_ties_skips`."""
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
    lines += [f'%all = call {taken} asm "", "{constraints}"({operands})', f"%from = extractvalue {taken} %all, 0"]
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
        lines += ["%skips = getelementptr i64, ptr %cursor, i64 1", "%skip = load i64, ptr %skips"]
        lines += [f"%more = add i64 %skip, {count * _BYTES}"]
    moved = "%more" if skips else str(count * _BYTES)
    lines += [f"%next = getelementptr i8, ptr %from, i64 {moved}", "store ptr %next, ptr %cursor", "ret void"]
    declaration = f"declare {{ {loaded} }} {function}(ptr)" if count > 1 else ""
    body = "\n".join(f"  {line}" for line in lines)
    return f"""
{declaration}
define weak void @{name}(ptr %cursor, ptr %sums, ptr %held) alwaysinline {{
{body}
}}"""


register_functions(_BEGIN, _begin_text)
register_functions(_NEXT, _next_text)
