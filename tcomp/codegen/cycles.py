"""Cycles of a kernel that was emulated: how often each instruction ran, times what its code takes.

    cycles = sum over innermost loops of  iterations * cycles of an iteration in the steady state
           + sum over other straight code of  times * its reciprocal throughput
           + instructions elsewhere (the C library, the thread pool), one cycle each

What code takes is llvm-mca's word, but for cores that execute in order (`codegen.in_order`): there, other
straight code waits for its own results. A loop's steady state knows its chains of dependent instructions;
elsewhere other code is taken to overlap with what is around it. Every jump is foreseen, and loads of what
was just stored do not wait. Beside that stands a roofline of the memory: lines that the caches did not hold,
at `Target.bytes_per_cycle`. The longer counts.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from tcomp.codegen import in_order
from tcomp.codegen.emulation import Piece
from tcomp.codegen.machine_code import EXTENSIONS, INSTRUCTION_SETS, find_llvm_mca, on_stack, table_of
from tcomp.errors import BuildError
from tcomp.target.target import Target

BYTES = 4
"""Of every instruction that is counted here: ARM's, but for Thumb."""
ITERATIONS = 64
"""Of a loop in llvm-mca's simulation."""
_NEGLIGIBLE = 0.002
"""Part of all executed instructions below which code is not looked at: it gets the mean of the rest."""
_ENDS = re.compile(r"(b|bl|blr|br|ret|b[lx]x?|cbn?z|tbn?z|b\.?(eq|ne|hs|lo|mi|pl|hi|ls|ge|lt|gt|le|cs|cc))\b")
"""Instructions that end straight code."""
LINE_BYTES = 64
_DATA = {".byte": 1, ".short": 2, ".hword": 2, ".long": 4, ".word": 4, ".inst": 4, ".xword": 8, ".quad": 8}


@dataclass(frozen=True)
class Line:
    """An instruction at its offset in the section of code. `labels` stand before it."""

    offset: int
    text: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """Straight code, the instructions numbered [begin, end). A loop jumps from its end to its begin."""

    begin: int
    end: int
    is_loop: bool


@dataclass(frozen=True)
class Code:
    """Straight code, or the body of a loop."""

    texts: tuple[str, ...]
    is_loop: bool


@dataclass(frozen=True)
class Listing:
    """The assembly of one object's `.text` section, with what is needed to find code in memory."""

    lines: tuple[Line, ...]
    symbols: Mapping[str, int]
    size: int
    machine: str

    @staticmethod
    def of(assembly: str, machine: str) -> Listing:
        """Read LLVM's assembly of an ARM machine."""
        comment = INSTRUCTION_SETS[machine].comment
        lines: list[Line] = []
        symbols: dict[str, int] = {}
        offset, labels, is_text = 0, list[str](), True
        for raw in assembly.splitlines():
            text = re.sub(r"\s+", " ", raw.partition(comment)[0].strip())
            word, _, rest = text.partition(" ")
            if word in (".text", ".section"):
                is_text = word == ".text" or rest.split(",")[0] == ".text"
            if not text or not is_text:
                continue
            if text.endswith(":"):
                labels.append(text[:-1])
                symbols[text[:-1]] = offset
            elif word == ".p2align":
                offset += _padding(offset, rest)
            elif word in _DATA:
                offset += _DATA[word] * len(rest.split(","))
            elif not word.startswith("."):
                lines.append(Line(offset, text, tuple(labels)))
                offset, labels = offset + BYTES, []
        return Listing(tuple(lines), symbols, offset, machine)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """All code: innermost loops as one block each, the rest cut at labels and jumps."""
        loops = self._innermost_loops()
        found: list[Block] = []
        begin = 0
        while begin < len(self.lines):
            end = loops.get(begin, 0)
            is_loop = end > 0
            if not is_loop:
                end = begin + 1
                while end < len(self.lines) and not self._starts(end) and end not in loops:
                    end += 1
            found.append(Block(begin, end, is_loop))
            begin = end
        return tuple(found)

    @property
    def has_calls(self) -> bool:
        """Whether code outside of the listing may be executed for its sake."""
        return any(re.match(r"bl\w* |bx ", line.text) for line in self.lines)

    def texts(self, block: Block) -> list[str]:
        return [line.text for line in self.lines[block.begin : block.end]]

    def code(self, block: Block) -> Code:
        """A block without the names of the places that it jumps to."""
        return Code(tuple(re.sub(r"\.LBB\w+", ".L", text) for text in self.texts(block)), block.is_loop)

    def _starts(self, index: int) -> bool:
        line, before = self.lines[index], self.lines[index - 1]
        return any(self._is_place(name) for name in line.labels) or _ENDS.match(before.text) is not None

    def _innermost_loops(self) -> dict[int, int]:
        """Where loops without any label inside begin, and where they end."""
        jump = re.compile(rf"(?:{INSTRUCTION_SETS[self.machine].jump}) (\.LBB\w+)")
        places = {name: i for i, line in enumerate(self.lines) for name in line.labels}
        found: dict[int, int] = {}
        for index, line in enumerate(self.lines):
            match = jump.fullmatch(line.text)
            begin = places.get(match[1], index + 1) if match else index + 1
            inside = self.lines[begin + 1 : index + 1]
            if begin <= index and not any(self._is_place(name) for x in inside for name in x.labels):
                found[begin] = index + 1
        return found

    @staticmethod
    def _is_place(label: str) -> bool:
        """Whether code may jump to a label: LLVM also writes labels for debuggers and data."""
        return not re.match(r"\.L(tmp|func_|PC|CPI)", label)


def _padding(offset: int, arguments: str) -> int:
    """Bytes of `.p2align POWER, FILL, MOST` at `offset`."""
    power, _, most = [*(text.strip() for text in arguments.split(",")), "", ""][:3]
    padding = -offset % (1 << int(power))
    return 0 if most and padding > int(most) else padding


@dataclass(frozen=True)
class CycleCount:
    """Cycles of one run, of the core and of the memory behind its caches, the instructions that it executes,
    and accesses to the stack in innermost loops.
    """

    core: float
    memory: float
    instructions: int
    spills: int

    @property
    def cycles(self) -> float:
        """The longer of both: a core that waits for memory computes meanwhile."""
        return max(self.core, self.memory)


def count_cycles(
    listing: Listing,
    base: int,
    pieces: Sequence[Piece],
    elsewhere: int,
    rates: Rates,
) -> CycleCount:
    """Cycles of the code of `listing`, which lies at `base`, as executed by `pieces`.

    `elsewhere` instructions were executed outside of it for its sake. `rates` say what code and memory take
    on the core.
    """
    times = _times(listing, base, pieces)
    executed = [(b, times[b.end - 1] if b.is_loop else times[b.begin]) for b in listing.blocks]
    weights = [(b.end - b.begin) * n for b, n in executed]
    total = sum(weights)
    looked_at = [(b, n) for (b, n), w in zip(executed, weights, strict=True) if w > _NEGLIGIBLE * total]
    costs = rates([listing.code(b) for b, _ in looked_at])
    cycles, instructions, spills = 0.0, 0, 0
    for (block, count), cost in zip(looked_at, costs, strict=True):
        cycles += count * cost
        instructions += count * (block.end - block.begin)
        if block.is_loop:
            spills += count * len(on_stack(listing.texts(block), listing.machine))
    if instructions:
        cycles *= total / instructions
    inside = [p for p in pieces if base <= p.address < base + listing.size]
    lines = [sum(p.misses[level] for p in inside) for level in range(len(rates.bytes_per_cycle))]
    memory = max(n * LINE_BYTES / rate for n, rate in zip(lines, rates.bytes_per_cycle, strict=True))
    return CycleCount(cycles + elsewhere, memory, total + elsewhere, spills)


def instructions_outside(listing: Listing, base: int, pieces: Sequence[Piece]) -> int:
    """Executed instructions that are not of `listing`."""
    return sum(p.instructions * p.times for p in pieces if not base <= p.address < base + listing.size)


def _times(listing: Listing, base: int, pieces: Sequence[Piece]) -> list[int]:
    """How often each line was executed. Padding, on the way into a loop, is executed and is no line."""
    index = {base + line.offset: i for i, line in enumerate(listing.lines)}
    times = [0] * len(listing.lines)
    for piece in pieces:
        for address in range(piece.address, piece.address + BYTES * piece.instructions, BYTES):
            if address in index:
                times[index[address]] += piece.times
    return times


class Rates:
    """What code takes on a target's core, by llvm-mca or `in_order`. It is asked once for the same code.

    `bytes_per_cycle` are the target's; `source` says whose word it is.
    `program` is llvm-mca, found if not given; BuildError when there is none.
    """

    def __init__(self, target: Target, program: str | None = None) -> None:
        command = [program or find_llvm_mca(), f"-mtriple={target.llvm['mtriple']}"]
        self.bytes_per_cycle = target.bytes_per_cycle
        self._table = table_of(target)
        self.source = f"{'in order' if self._table in in_order.CORES else 'llvm-mca'} {self._table}"
        self._command = [*command, f"-mcpu={self._table}", *EXTENSIONS.get(target.machine, ())]
        self._known: dict[Code, float] = {}

    def __call__(self, codes: Sequence[Code]) -> list[float]:
        """Cycles of each: of a loop, an iteration in the steady state; else the reciprocal throughput.

        Raises BuildError when llvm-mca does not understand the code.
        """
        for is_loop in (True, False):
            unknown = [c for c in dict.fromkeys(codes) if c.is_loop == is_loop and c not in self._known]
            self._known.update(zip(unknown, self._ask(unknown, is_loop), strict=True))
        return [self._known[code] for code in codes]

    def _ask(self, codes: Sequence[Code], is_loop: bool) -> list[float]:
        if not codes:
            return []
        if self._table in in_order.CORES:
            cycles = in_order.loop_cycles if is_loop else in_order.straight_cycles
            return [cycles(code.texts, self._table) for code in codes]
        text: list[str] = []
        for number, code in enumerate(codes):
            text += [f"# LLVM-MCA-BEGIN {number}", *code.texts, "# LLVM-MCA-END"]
        # The throughput of straight code is added up from its instructions, and needs no simulation.
        iterations, wanted = (ITERATIONS, "Total Cycles") if is_loop else (1, "Block RThroughput")
        command = [*self._command, f"-iterations={iterations}"]
        command += ["-instruction-info=false", "-resource-pressure=false"]
        done = subprocess.run(
            command, input="\n".join(text) + "\n", capture_output=True, text=True, check=False
        )
        found = re.findall(rf"{wanted}:\s+([0-9.]+)", done.stdout)
        if len(found) != len(codes):
            failure = (x for x in done.stderr.splitlines() if "error" in x)
            reason = next(failure, f"exit code {done.returncode}")
            raise BuildError(f"`{' '.join(command)}` counted no cycles: {reason}")
        return [float(x) / iterations for x in found]
