"""What machine code says about its speed without being run: hot loops, and llvm-mca's count of their cycles.

Innermost loops are cut out of LLVM's assembly (`KernelRunner.source()`); the hot one is that which multiplies
into the most registers. llvm-mca then counts the cycles of an iteration in the steady state, all data in the
first-level cache.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tcomp.codegen import in_order
from tcomp.errors import BuildError
from tcomp.target.target import Target

ITERATIONS = 200
"""Of a loop in llvm-mca's simulation."""
_OLDEST = 17
"""LLVM that has a table of Neoverse N1's own."""
_PROGRAMS = ("llvm-mca", *(f"llvm-mca-{version}" for version in range(25, _OLDEST - 1, -1)))


@dataclass(frozen=True)
class InstructionSet:
    """How assembly of one architecture reads. All fields but `written` are patterns."""

    comment: str
    jump: str
    """A jump, its target left out."""
    multiply: str
    """Instructions that multiply and add."""
    written: int
    """Which operand is the result."""
    stack: str
    """Instructions that read or write the stack: in a loop, registers ran out."""


_X86 = InstructionSet("#", r"j\w+", r"vfmadd", -1, r".*mm.*\(%rsp|.*\(%rsp.*mm")
_ARM64 = InstructionSet(
    "//",
    r"b\.\w+|b|cbn?z \w+,|tbn?z \w+, #\d+,",
    r"(fmla|fmad|fmadd|fmlal2?|bfdot|bfmmla|bfmlal[bt]|[us]dot|usdot|sudot|us?mmla|smmla|[us]mlal2?|mla)\b",
    0,
    r".*\bsp\b",
)
_ARM = InstructionSet("@", r"b(?:eq|ne|hs|lo|mi|pl|hi|ls|ge|lt|gt|le)?", r"v(fma|mla|mlal)\.", 0, r".*\bsp\b")
INSTRUCTION_SETS: Mapping[str, InstructionSet] = {"x86_64": _X86, "aarch64": _ARM64, "arm": _ARM}
"""By `Target.machine`. A stack access counts on x86 for vectors alone, on ARM for all registers."""

_GROUPS = {"dot": 4, "mmla": 8, "bfdot": 2, "bfmmla": 4}
"""Products that an ARM instruction of these names adds into one element of its result."""

_TABLES = {
    "cortex-a53": "cortex-a53",
    "cortex-a55": "cortex-a55",
    "cortex-a72": "cortex-a72",
    "cortex-a76": "neoverse-n1",
    "cortex-a78": "neoverse-n1",
    "cortex-x2": "neoverse-v2",
    "neoverse-n1": "neoverse-n1",
    "neoverse-v1": "neoverse-v1",
    "generic": "neoverse-n1",
}
"""Whose table of LLVM's is right for an ARM core: that of Cortex-A76, for one, is Cortex-A57's there."""
_TABLE_ARMV7 = "cortex-a57"
"""The one core of recent make that LLVM knows the 32-bit instructions of."""


EXTENSIONS = {"arm": ("-mattr=+neon,+vfp4",)}
"""Options of llvm-mca for machines whose tables leave out what their targets have."""


def innermost_loops(assembly: str, machine: str) -> list[list[str]]:
    """The instructions of each loop that no other loop or branch is part of, down to its jump."""
    isa = INSTRUCTION_SETS[machine]
    lines = [re.sub(r"\s+", " ", line.partition(isa.comment)[0].strip()) for line in assembly.splitlines()]
    labels = {line[:-1]: i for i, line in enumerate(lines) if re.fullmatch(r"\.LBB\w+:", line)}
    found: list[list[str]] = []
    for end, line in enumerate(lines):
        jump = re.fullmatch(rf"(?:{isa.jump}) (\.LBB\w+)", line)
        start = labels.get(jump.group(1), end) if jump else end
        body = lines[start + 1 : end]
        if start < end and not any(re.match(r"\.LBB\w+:", text) for text in body):
            found.append([text for text in lines[start : end + 1] if text and not text.startswith(".")])
    return found


def hot_loop(assembly: str, machine: str = "x86_64", multiply: str | None = None) -> list[str]:
    """The innermost loop in which instructions that match `multiply` have most results; empty without any.

    Results count by the share of these instructions in the loop: transforms write more registers than the
    products between them. `multiply` is a pattern; without one, every instruction counts that multiplies and
    adds.
    """

    def weight(body: Sequence[str]) -> float:
        return results(body, machine, multiply) * multiplies(body, machine, multiply) / max(1, len(body))

    best: list[str] = []
    for body in innermost_loops(assembly, machine):
        if weight(body) > weight(best):
            best = body
    return best


def results(instructions: Sequence[str], machine: str = "x86_64", multiply: str | None = None) -> int:
    """How many registers are written by instructions that match `multiply`."""
    isa = INSTRUCTION_SETS[machine]
    pattern = multiply or isa.multiply
    operands = [text.partition(" ")[2].split(",") for text in instructions if re.match(pattern, text)]
    return len({found[isa.written].strip() for found in operands})


def multiplies(instructions: Sequence[str], machine: str = "x86_64", multiply: str | None = None) -> int:
    """How many of the instructions match `multiply`, by default those that multiply and add."""
    pattern = multiply or INSTRUCTION_SETS[machine].multiply
    return sum(re.match(pattern, text) is not None for text in instructions)


def multiply_adds(instructions: Sequence[str], machine: str, sve_bits: int = 0) -> int:
    """How many single products ARM `instructions` add up: four for `fmla v0.4s, ...`, 16 for `sdot`.

    `sve_bits` is the length of SVE's vectors.
    """
    pattern = INSTRUCTION_SETS[machine].multiply
    return sum(_products(text, sve_bits) for text in instructions if re.match(pattern, text))


def _products(text: str, sve_bits: int) -> int:
    """The products of one ARM instruction."""
    name, _, operands = text.partition(" ")
    arranged = re.match(r"v\d+\.(\d+)[bhsd]", operands)
    scalable = re.match(r"z\d+\.([hsd])", operands)
    if arranged is not None:
        lanes = int(arranged.group(1))
    elif scalable is not None:
        lanes = sve_bits // {"h": 16, "s": 32, "d": 64}[scalable.group(1)]
    else:
        bits = {"q": 128, "d": 64}.get(operands[0], 0)
        element = re.search(r"\.\w(\d+)", name)
        lanes = max(1, bits // int(element.group(1))) if element is not None else 1
    grouped = max((g for g in _GROUPS if name.endswith(g)), key=len, default="")
    return lanes * _GROUPS.get(grouped, 1)


def on_stack(instructions: Sequence[str], machine: str = "x86_64") -> list[str]:
    """Instructions that read or write the stack: registers ran out. See INSTRUCTION_SETS."""
    return [text for text in instructions if re.match(INSTRUCTION_SETS[machine].stack, text)]


@dataclass(frozen=True)
class LoopCost:
    """One iteration of a loop: its instructions, single products, stack accesses, and cycles by llvm-mca."""

    instructions: int
    products: int
    spills: int
    cycles: float

    def of_peak(self, target: Target) -> float:
        """Products in these cycles as a part of the float32 products that `target` could start."""
        return self.products / (self.cycles * target.lanes() * target.fma_ports)


def loop_cost(instructions: Sequence[str], target: Target, program: str | None = None) -> LoopCost:
    """What llvm-mca says about a loop for an ARM `target`. `program` is llvm-mca, found if not given.

    Raises BuildError as `find_llvm_mca` and `simulated_cycles` do.
    """
    machine = target.machine
    cycles = simulated_cycles(instructions, machine, table_of(target), str(target.llvm["mtriple"]), program)
    products = multiply_adds(instructions, machine, target.sve_bits)
    spills = len(on_stack(instructions, machine))
    return LoopCost(len(instructions), products, spills, cycles)


def table_of(target: Target) -> str:
    """The core of LLVM's by whose table an ARM target is judged.

    Raises BuildError for a core that none is known for.
    """
    if target.machine != "aarch64":
        return _TABLE_ARMV7
    core = str(target.llvm["mcpu"])
    if core not in _TABLES:
        raise BuildError(
            f"no table of instructions for core `{core}`; there are some for {', '.join(_TABLES)}"
        )
    return _TABLES[core]


def simulated_cycles(
    instructions: Sequence[str], machine: str, table: str, triple: str, program: str | None = None
) -> float:
    """Cycles of an iteration in the steady state, by llvm-mca's table of a core, or `in_order` for its cores.

    Raises BuildError when there is no llvm-mca, or it does not understand the instructions.
    """
    if table in in_order.CORES:
        return in_order.loop_cycles(instructions, table)
    jump = INSTRUCTION_SETS[machine].jump
    code = [re.sub(rf"^({jump}) \.LBB\w+", r"\1 loop", text) for text in instructions]
    command = [
        program or find_llvm_mca(),
        f"-mtriple={triple}",
        f"-mcpu={table}",
        f"-iterations={ITERATIONS}",
    ]
    command += EXTENSIONS.get(machine, ())
    text = "\n".join(["loop:", *code]) + "\n"
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    total = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    if total is None:
        reason = next(iter(done.stderr.strip().splitlines()), f"exit code {done.returncode}")
        raise BuildError(f"`{' '.join(command)}` counted no cycles: {reason}")
    return int(total.group(1)) / ITERATIONS


def find_llvm_mca() -> str:
    """The path of an llvm-mca that is new enough.

    Raises BuildError when there is none.
    """
    for path in filter(None, map(shutil.which, _PROGRAMS)):
        said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
        version = re.search(r"LLVM version (\d+)", said)
        if version is not None and int(version.group(1)) >= _OLDEST:
            return path
    raise BuildError(f"no llvm-mca of LLVM {_OLDEST} or newer found; install it: `apt-get install llvm-19`")
