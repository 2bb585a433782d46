"""Cycles of code on cores that start instructions in order, two at a time: Cortex-A53 and A55.

LLVM's tables of them say too little of that. By that of A55, `fmla` of 128 bits starts twice a cycle, and
loads of 128 bits start beside other instructions; by that of A53, `fmla` takes ten cycles before another one
may add to its sum, and llvm-mca lets no instruction end before an earlier one has. Here, which instructions
start together is what ncnn's authors measured (docs/developer-guide/arm-a53-a55-dual-issue.md), and XNNPACK's
and ONNX Runtime's kernels for these cores (commit 50a6f095 of the latter) go by:

- arithmetic of 128 bits takes both pipelines of 64 bits, so that one starts in a cycle;
- a load of 128 bits takes two cycles, in which nothing else starts;
- one of 64 bits starts beside anything but another load, and so does `ins` of a general register into a
  vector. On A53 neither starts beside vector arithmetic, but both together, unless the load is of a general
  register.

Latencies are those of LLVM's table for A55, and of GCC's cortex-a53.md: a multiply-add takes four cycles, on
A53 eight, of which it wants its sum for the last four.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CORES = ("cortex-a53", "cortex-a55")
"""By LLVM's names."""
WIDTH = 2
"""Instructions that start in a cycle."""
_ITERATIONS = 8
"""Of a loop, the later half of which is its steady state."""
_LATENCY: Mapping[str, Mapping[str, int]] = {
    "cortex-a53": {"product": 8, "vector": 4, "load": 4},
    "cortex-a55": {"product": 4, "vector": 4, "load": 3},
}
_SUM_LATENCY, _MULTIPLY_LATENCY = 4, 3
"""From a multiply-add to the next one of the same sum; of multiplications in general registers."""

_JUMP = re.compile(r"(b|bl|blr|br|ret|b\.\w+|cbn?z|tbn?z)\b")
_ADDS = re.compile(r"(f?ml[as]l?2?|[us]dot|[us]ml[as]l2?|bf\w+|[us]m*mla|[us]abal?2?|[us]adalp)\b")
"""Vector instructions that add to what their result held."""
_KEEPS = re.compile(r"(ins|mov|movk|bfi|bfxil|bsl|bif|bit|tbx|s[lr]i|\w+n2)\b")
"""Instructions that may leave a part of their result as it was."""
_COMPARES = re.compile(r"(cmp|cmn|tst|f?ccmp|ccmn|fcmpe?)\b")
_SETS_FLAGS = re.compile(r"(subs|adds|ands|bics)\b")
_READS_FLAGS = re.compile(r"(b\.\w+|f?csel|cset|csetm|csin[cv]|csneg|cin[cv]|cneg|f?ccmp|ccmn|adc|sbc)\b")
_MULTIPLY = re.compile(r"(mul|madd|msub|mneg|[us]mull|[us]madd\w|[us]mulh)\b")
_REGISTER = re.compile(r"\b(?:[vqdshb](?P<vector>\d+)|[xw](?P<general>\d+)|(?P<stack>sp))\b")
_WHOLE = re.compile(r"v\d+\.(16b|8h|4s|2d)|\bq\d+")
_BYTES = {"q": 16, "d": 8, "s": 4, "h": 2, "b": 1, "x": 8, "w": 4}


@dataclass(frozen=True)
class Step:
    """An instruction as the pipeline sees it.

    It takes `unit` for `cycles`, `alone` if nothing else starts in these, and `writes` are known after
    `latency`. `sums` are what it adds to, which it wants later than what it `reads`; `moves` are address
    registers that it writes, known in the next cycle. Units are `vector`, both vector pipelines; `half`, one
    of them; `insert`, from general registers to vectors; `load`, of vectors; `load general`; `store`;
    `jump`; `plain`.
    """

    unit: str
    reads: frozenset[str]
    writes: frozenset[str]
    latency: int = 1
    cycles: int = 1
    alone: bool = False
    sums: frozenset[str] = frozenset()
    moves: frozenset[str] = frozenset()


def loop_cycles(instructions: Sequence[str], core: str) -> float:
    """Cycles of an iteration in the steady state, on one of `CORES`, of a loop of 64-bit `instructions`."""
    ends = _ends([step_of(text, core) for text in instructions], core, _ITERATIONS)
    half = _ITERATIONS // 2
    return (ends[-1] - ends[half - 1]) / (_ITERATIONS - half)


def straight_cycles(instructions: Sequence[str], core: str) -> float:
    """Cycles until the last one of straight code has started, nothing being waited for before it."""
    return float(_ends([step_of(text, core) for text in instructions], core, 1)[-1])


def _ends(steps: Sequence[Step], core: str, iterations: int) -> list[int]:
    """The cycle after that in which the last instruction of each iteration starts."""
    ready: dict[str, int] = {}
    free: dict[str, int] = {}
    now, ends = 0, list[int]()
    started: list[Step] = []
    for _ in range(iterations):
        for step in steps:
            unit = step.unit.partition(" ")[0]
            early = step.latency - _SUM_LATENCY
            at = max(
                now + bool(started and not together(started[-1], step, core)),
                free.get(unit, 0),
                *(ready.get(register, 0) for register in step.reads),
                *(ready.get(register, 0) - early for register in step.sums),
            )
            started = [*started, step] if at == now else [step]
            now = at
            ready.update((register, now + step.latency) for register in step.writes)
            ready.update((register, now + 1) for register in step.moves)
            free[unit] = now + step.cycles if unit in ("load", "store") else 0
            if step.alone:
                now, started = now + step.cycles, []
            elif len(started) == WIDTH:
                now, started = now + 1, []
        ends.append(now + bool(started))
    return ends


def together(first: Step, second: Step, core: str) -> bool:
    """Whether two instructions may start in one cycle."""
    if first.alone or second.alone:
        return False
    units = sorted((first.unit, second.unit))
    if units[0] == units[1]:
        return units[0] in ("plain", "half")
    computes = [unit in ("vector", "half") for unit in units]
    if all(computes):
        return False
    return core != "cortex-a53" or not any(computes) or not {"load", "insert"} & set(units)


def step_of(text: str, core: str) -> Step:
    """What the pipeline of one of `CORES` sees of an instruction."""
    text = re.sub(r"\s+", " ", text)
    name, _, operands = text.partition(" ")
    latency, registers = _LATENCY[core], _registers(operands)
    flags = frozenset({"flags"})
    reads = flags if _READS_FLAGS.match(name) else frozenset[str]()
    if _JUMP.match(name):
        return Step("jump", reads | set(registers), frozenset())
    if name.startswith(("ld", "st", "prf")):
        return _access(name, operands, latency["load"])
    unit = "vector" if _WHOLE.search(operands) else "half" if any(r[0] == "v" for r in registers) else "plain"
    if _COMPARES.match(name):
        return Step(unit, reads | set(registers), flags, 1 if unit == "plain" else latency["vector"])
    result, others = frozenset(registers[:1]), frozenset(registers[1:])
    writes = result | flags if _SETS_FLAGS.match(name) else result
    if unit == "plain":
        kept = result if _KEEPS.match(name) and name != "mov" else frozenset[str]()
        return Step(unit, reads | others | kept, writes, _MULTIPLY_LATENCY if _MULTIPLY.match(name) else 1)
    if _ADDS.match(name):
        return Step(unit, others, result, latency["product"], sums=result)
    merges = name != "mov" or "[" in operands.partition(",")[0]
    kept = result if _KEEPS.match(name) and merges else frozenset[str]()
    from_general = any(r[0] == "v" for r in result) and any(r[0] == "x" for r in others)
    return Step("insert" if from_general else unit, reads | others | kept, writes, latency["vector"])


def _access(name: str, operands: str, latency: int) -> Step:
    """A load, a store or a fetch: 64 bits are loaded in a cycle, 128 bits stored."""
    listed, _, address = operands.partition("}" if operands.startswith("{") else "[")
    if operands.startswith("{"):
        lane, _, address = address.partition("[" if not address.startswith("[") else "], [")
    else:
        lane = ""
    moved, base = frozenset(_registers(listed)), _registers(address)
    back = frozenset(base[:1] if re.search(r"\]!|\], ", address) else ())
    if name.startswith("prf"):
        return Step("load general", frozenset(base), frozenset())
    one_element = "[" in lane or name.startswith("ld1r")
    each = 8 if one_element else 16 if _WHOLE.search(listed) else _BYTES.get(listed.strip("{ ")[0], 8)
    nbytes = each * len(moved)
    if name.startswith("st"):
        return Step("store", moved | set(base), frozenset(), cycles=-(-nbytes // 16), moves=back)
    cycles = max(1, nbytes // 8)
    unit = "load" if any(r[0] == "v" for r in moved) else "load general"
    kept = moved if "[" in lane else frozenset[str]()
    return Step(unit, kept | set(base), moved, latency + cycles - 1, cycles, alone=each == 16, moves=back)


def _registers(operands: str) -> list[str]:
    """Those that operands name, in their order: `v3`, `x7`, `sp`."""
    found = _REGISTER.finditer(operands)
    return [
        f"v{m['vector']}" if m["vector"] else f"x{m['general']}" if m["general"] else m["stack"]
        for m in found
    ]
