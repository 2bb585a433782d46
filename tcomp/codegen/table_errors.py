"""What LLVM's tables get wrong about cores, mended in the code that llvm-mca is given.

By LLVM's table of Cortex-A55, `fmla` of 128 bits starts twice a cycle, as that of 64 bits does, though
`fmul` and `fadd` of 128 bits take both of the core's pipelines of 64 bits there. Loads of 128 bits
start beside other instructions, and a pair of them takes six cycles. On the core each blocks the
pipeline for two cycles, which is why ncnn (docs/developer-guide/arm-a53-a55-dual-issue.md), ONNX
Runtime (commit 50a6f095) and XNNPACK load 64 bits at a time. Mended, `fmla` starts beside no other
instruction; on the core a load of 64 bits or arithmetic of general registers may go with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

_FILL = "orr xzr, xzr, xzr"
"""Takes half a cycle of a core that starts two instructions, and waits for nothing."""
_MULTIPLY_ADD = re.compile(r"f(?:ml[as]|ml[as]l2?) v(\d+)\.(?:4s|8h|2d), v(\d+)\.\w+, v(\d+)\.\S+")
_LOAD = re.compile(r"(?:ldu?r q|ld1 \{ ?v)(\d+)(?:\.(?:16b|8h|4s|2d) ?\})?, (\[(\w+).*)")
_PAIR = re.compile(r"ldn?p q(\d+), q(\d+), (\[(\w+).*)")


def mended(instructions: Sequence[str], table: str) -> list[str]:
    """`instructions` with those that LLVM's `table` of a core is wrong about replaced by others that take as
    long, and use the same registers.
    """
    change = _CHANGES.get(table)
    return [new for text in instructions for new in (change(text) if change is not None else [text])]


def _cortex_a55(text: str) -> list[str]:
    product = _MULTIPLY_ADD.fullmatch(text)
    if product:
        # Of integers: it adds to its result, too, has the same latency, and starts once a cycle.
        return [f"mla v{product[1]}.4s, v{product[2]}.4s, v{product[3]}.4s"]
    load = _LOAD.fullmatch(text)
    if load:
        return _loads([load[1]], load[3], load[2])
    pair = _PAIR.fullmatch(text)
    if pair:
        return _loads([pair[1], pair[2]], pair[4], pair[3])
    return [text]


def _loads(registers: Sequence[str], base: str, address: str) -> list[str]:
    """Loads of vectors, with what takes the rest of the time in which nothing else starts."""
    code = [new for register in registers for new in (f"ldr q{register}, [{base}]", _FILL, _FILL, _FILL)]
    leaves_another = address.endswith("!") or not address.endswith("]")
    return [*code[:-1], f"add {base}, {base}, #16"] if leaves_another else code


_CHANGES: Mapping[str, Callable[[str], list[str]]] = {"cortex-a55": _cortex_a55}
"""By LLVM's name of the table."""
