"""Machine code of NVIDIA's GPUs from Volta on: instructions, the schedule that each carries, and loops.

The assembler writes into each instruction of 128 bits how it is issued (bits 105 to 125): how many cycles the
warp waits behind it (4 bits), whether another warp should go on (1), by which of six counters others know
that its result is there (3), and that its operands are read (3), which counters it waits for itself (6), and
which operands stay in the reuse cache (4). Sources: Jia et al., "Dissecting the NVIDIA Volta GPU Architecture
via Microbenchmarking", 2018; maxas, turingas and CuAssembler, whose field order is the same.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tcomp.errors import BuildError

_SCHEDULE_BIT = 105 - 64
_NONE = 7
"""The counter of an instruction that has none."""
_FUNCTION = re.compile(r"\.text\.(\w+):")
_LABEL = re.compile(r"(\.L_x_\d+):")
_INSTRUCTION = re.compile(
    r"\s+/\*(?P<at>[0-9a-f]+)\*/\s+(?:(?P<guard>@!?U?P\w+)\s+)?(?P<name>[A-Z]\w*)(?P<rest>[^;]*);"
    r"(?:\s+/\* 0x(?P<low>[0-9a-f]{16}) \*/)?"
)
_HIGH = re.compile(r"\s+/\* 0x([0-9a-f]{16}) \*/")
_JUMP = re.compile(r"`\((\.L_x_\d+)\)")
_JUMPS = ("BRA", "CALL")
"""A call of a label within the function is how the compiler leaves some loops; nothing returns from it."""
_ENDS = ("EXIT", "RET")
SHORTEST = 4


@dataclass(frozen=True)
class Issue:
    """How an instruction is issued. `stall` counts cycles; counters are numbers from 0 to 5."""

    stall: int
    yields: bool
    writes: int | None
    """The counter that is up until the result is there."""
    reads: int | None
    """The counter that is up until operands are read."""
    waits: tuple[int, ...]
    reuse: tuple[int, ...]
    """The operands that stay in the reuse cache, by number."""

    @staticmethod
    def of(high: int) -> Issue:
        """Decode the upper 64 bits of an instruction."""
        bits = high >> _SCHEDULE_BIT

        def counter(at: int) -> int | None:
            value = bits >> at & 7
            return None if value == _NONE else value

        return Issue(
            stall=bits & 15,
            # The bit is clear where another warp should go on.
            yields=not bits >> 4 & 1,
            writes=counter(5),
            reads=counter(8),
            waits=tuple(n for n in range(6) if bits >> 11 + n & 1),
            reuse=tuple(n for n in range(4) if bits >> 17 + n & 1),
        )


@dataclass(frozen=True)
class Instruction:
    """One instruction: `name` is what stands before the first point, `modifiers` what stands behind it."""

    name: str
    modifiers: tuple[str, ...]
    operands: tuple[str, ...]
    guard: str
    issue: Issue

    @property
    def jump(self) -> str | None:
        """The label that it may go on at."""
        found = _JUMP.search(self.operands[-1]) if self.name in _JUMPS and self.operands else None
        return found[1] if found else None

    @property
    def goes_on(self) -> bool:
        """Whether the next one may follow."""
        return bool(self.guard) or len(self.operands) > 1 or self.name not in (*_JUMPS, *_ENDS)

    @property
    def register_operands(self) -> tuple[int | None, ...]:
        """By operand behind the result, the number of the register of a lane that it is, if it is one."""
        found = (re.match(r"[-|]*R(\d+)\b", operand) for operand in self.operands[1:])
        return tuple(int(one[1]) if one else None for one in found)

    @property
    def text(self) -> str:
        named = ".".join((self.name, *self.modifiers))
        return " ".join(filter(None, (self.guard, named, ", ".join(self.operands))))


@dataclass(frozen=True)
class Function:
    """A function: its instructions in order, and at which of them labels stand."""

    name: str
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]

    def loops(self) -> list[Loop]:
        """Its loops in order, from the label to the jump back to it.

        A loop begins where all ways to its end come by: not where code that lies behind the function's end,
        such as what tries again to pass a barrier, goes back to. It has at least `SHORTEST` instructions.
        """
        spans: dict[int, int] = {}
        for end, instruction in enumerate(self.instructions):
            begin = self.labels.get(instruction.jump or "", end)
            if end + 1 - begin >= SHORTEST and end not in self._reached(without=begin):
                spans[begin] = end + 1
        return [
            Loop(self.instructions[begin:end], tuple(_inside(begin, end, spans)))
            for begin, end in spans.items()
        ]

    def _reached(self, without: int) -> set[int]:
        """The instructions that are reached from the first one by no way through that at `without`."""
        found, open_ = set[int](), [0]
        while open_:
            at = open_.pop()
            if at in found or at == without or at >= len(self.instructions):
                continue
            found.add(at)
            instruction = self.instructions[at]
            if instruction.jump in self.labels:
                open_.append(self.labels[instruction.jump])
            if instruction.goes_on:
                open_.append(at + 1)
        return found


def _inside(begin: int, end: int, spans: Mapping[int, int]) -> Iterator[tuple[int, int]]:
    """Other spans between `begin` and `end`, counted from `begin`."""
    for first, last in spans.items():
        if begin < first and last <= end:
            yield first - begin, last - begin


@dataclass(frozen=True)
class Loop:
    """The body of a loop, and where loops inside of it begin and end."""

    body: tuple[Instruction, ...]
    inner: tuple[tuple[int, int], ...] = ()

    @property
    def own(self) -> tuple[Instruction, ...]:
        """What does not belong to loops inside."""
        return tuple(
            one for at, one in enumerate(self.body) if not any(begin <= at < end for begin, end in self.inner)
        )


def read_sass(text: str) -> list[Function]:
    """The functions of what `nvdisasm -c -hex` prints.

    Raises BuildError where an instruction has no encoding beside it.
    """
    functions: list[Function] = []
    lines = text.splitlines()
    name, instructions, labels = "", list[Instruction](), dict[str, int]()
    for number, line in enumerate(lines):
        if begins := _FUNCTION.match(line):
            if instructions:
                functions.append(Function(name, tuple(instructions), labels))
            name, instructions, labels = begins[1], [], {}
        elif label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif found := _INSTRUCTION.match(line):
            high = _HIGH.match(lines[number + 1]) if number + 1 < len(lines) else None
            if found["low"] is None or high is None:
                raise BuildError(f"no encoding beside `{line.strip()}`; disassemble with `nvdisasm -c -hex`")
            modifiers, _, operands = found["rest"].partition(" ")
            instructions.append(
                Instruction(
                    found["name"],
                    tuple(filter(None, modifiers.split("."))),
                    tuple(part.strip() for part in operands.split(",") if part.strip()),
                    found["guard"] or "",
                    Issue.of(int(high[1], 16)),
                )
            )
    if instructions:
        functions.append(Function(name, tuple(instructions), labels))
    return functions


def disassemble(image: bytes) -> str:
    """The text of a cubin, with encodings.

    Raises BuildError, saying what to install, where there is no nvdisasm or it refuses the image.
    """
    program = shutil.which("nvdisasm")
    if program is None:
        raise BuildError("no nvdisasm: install it from the CUDA toolkit or PyPI's nvidia-cuda-nvdisasm")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(image)
        done = subprocess.run([program, "-c", "-hex", path], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise BuildError(f"{program}: {said}; take nvdisasm of the compiler's release or a newer one")
    return done.stdout


def bank_conflicts(loop: Sequence[Instruction]) -> tuple[int, ...]:
    """Which float32 multiply-adds of a loop, by number, read three registers of one bank.

    From Volta on registers have two banks, of even and odd numbers, each of which gives two operands at a
    time (Jia et al.). An operand that the operation before left in the reuse cache of its place is not read.
    """
    found: list[int] = []
    for number, instruction in enumerate(loop):
        if instruction.name != "FFMA":
            continue
        before = loop[number - 1]
        kept = {
            (place, before.register_operands[place])
            for place in before.issue.reuse
            if place < len(before.register_operands)
        }
        read = {
            register
            for place, register in enumerate(instruction.register_operands)
            if register is not None and (place, register) not in kept
        }
        odd = sum(register % 2 for register in read)
        if len(read) == 3 and odd in (0, 3):
            found.append(number)
    return tuple(found)
