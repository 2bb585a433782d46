"""The order of instructions in loops that multiply, for cores that execute in order (`in_order.CORES`).

By LLVM's table of Cortex-A55 two products of 128 bits start in a cycle, so that it puts loads side by side,
and beside the `ins` that could start with a product each. So the instructions of such loops are put into
another order in LLVM's assembly, with the registers that they have: cycle by cycle, of those that wait for
nothing, the one that most others wait for. What `in_order` counts decides between that order, one that keeps
to LLVM's where it can, and LLVM's.

Only loops of known instructions without stores are touched, so that loads may pass each other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tcomp.codegen.in_order import WIDTH, Step, loop_cycles, step_of, together

_KNOWN = re.compile(
    r"(fml[as]|fmul|f(add|sub|max|min)(nm)?|[su]dot|ld[ur]*|ldp|ld1r?|prf(u?)m|adds?|subs?|and|lsl|cmp|mov|ins|dup)\s"
)
_INSTRUCTION = re.compile(r"\t[a-z]")
_PRODUCT = re.compile(r"(fmla|[su]dot)\s")
_FEWEST = 8
"""Products of a loop that is worth it."""
Rank = Callable[["_Body", int, bool], tuple[int, ...]]
"""What puts an instruction before others that could start in the same cycle, the highest first; in the
second place of a cycle where the last argument says so."""


def ordered(assembly: str, core: str) -> str:
    """LLVM's `assembly` for `core`, 64-bit code, with its loops in the order that takes fewest cycles."""
    lines = assembly.splitlines()
    labels = {line[:-1]: i for i, line in enumerate(lines) if line.startswith(".LBB") and line[-1:] == ":"}
    for end, line in enumerate(lines):
        jump = re.fullmatch(r"\s+(b\.\w+|cbn?z\s+\w+,)\s*(\.LBB\w+)", line)
        start = labels.get(jump.group(2), end) if jump else end
        places = [i for i in range(start + 1, end) if _INSTRUCTION.match(lines[i])]
        body = [lines[i].strip() for i in places]
        if any(line.startswith(".LBB") for line in lines[start + 1 : end]):
            continue
        if sum(map(bool, map(_PRODUCT.match, body))) < _FEWEST or not all(map(_KNOWN.match, body)):
            continue
        for place, text in zip(places, _best(body, line.strip(), core), strict=True):
            lines[place] = f"\t{text}"
    return "\n".join(lines) + "\n"


def _best(texts: Sequence[str], jump: str, core: str) -> Sequence[str]:
    """The fastest of the orders of a loop's instructions before its `jump`."""
    body = _Body.of([step_of(text, core) for text in texts], core)
    found = [texts, *([texts[i] for i in body.order(rank)] for rank in (_by_need, _as_written))]
    return min(found, key=lambda order: loop_cycles([*order, jump], core))


@dataclass(frozen=True)
class _Body:
    """Instructions of a loop; which follow each, in how many cycles at least, and how many each follows.

    `heights` are the cycles from the start of each to the end of the longest chain that waits for it.
    """

    steps: Sequence[Step]
    core: str
    followers: Sequence[dict[int, int]]
    waits: Sequence[int]
    heights: Sequence[int]

    @staticmethod
    def of(steps: Sequence[Step], core: str) -> _Body:
        followers: list[dict[int, int]] = [{} for _ in steps]
        writer: dict[str, int] = {}
        readers: dict[str, set[int]] = {}
        for i, step in enumerate(steps):
            reads, writes = step.reads | step.sums, step.writes | step.moves
            for register in reads & writer.keys():
                first = steps[writer[register]]
                cycles = 1 if register in first.moves else first.latency
                followers[writer[register]][i] = max(cycles, followers[writer[register]].get(i, 0))
            for register in writes:
                if register in writer:
                    followers[writer[register]].setdefault(i, 1)
                for reader in readers.get(register, ()):
                    followers[reader].setdefault(i, 0)
            for register in reads:
                readers.setdefault(register, set()).add(i)
            for register in writes:
                writer[register], readers[register] = i, set()
        heights = [0] * len(steps)
        for i in reversed(range(len(steps))):
            heights[i] = max((cycles + heights[k] for k, cycles in followers[i].items()), default=0)
        waits = [0] * len(steps)
        for each in followers:
            for k in each:
                waits[k] += 1
        return _Body(steps, core, followers, waits, heights)

    def order(self, rank: Rank) -> list[int]:
        """Cycle by cycle the instructions of the highest rank among those that can start."""
        waits, early = list(self.waits), [0] * len(self.steps)
        ready = [i for i, n in enumerate(waits) if n == 0]
        order, now, loads_free = list[int](), 0, 0
        while ready:
            slot: list[int] = []
            while len(slot) < WIDTH:
                fitting = [
                    i
                    for i in ready
                    if early[i] <= now
                    and (loads_free <= now or not self.steps[i].unit.startswith("load"))
                    and (not slot or together(self.steps[slot[0]], self.steps[i], self.core))
                ]
                if not fitting:
                    break
                chosen = max(fitting, key=lambda i: rank(self, i, bool(slot)))
                step = self.steps[chosen]
                ready.remove(chosen)
                slot.append(chosen)
                if step.unit.startswith("load"):
                    loads_free = now + step.cycles
                for k, cycles in self.followers[chosen].items():
                    waits[k] -= 1
                    early[k] = max(early[k], now + cycles)
                    if waits[k] == 0:
                        ready.append(k)
            order += slot
            now += max((self.steps[i].cycles for i in slot if self.steps[i].alone), default=1)
        return order


def _by_need(body: _Body, i: int, is_second: bool) -> tuple[int, ...]:
    """A product first, and beside it what most others wait for."""
    return (not is_second and body.steps[i].unit == "vector", body.heights[i], -i)


def _as_written(body: _Body, i: int, is_second: bool) -> tuple[int, ...]:
    return (-i,)
