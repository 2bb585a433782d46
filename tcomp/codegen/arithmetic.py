"""A kernel's object without its arithmetic: it takes the same way, touches the same memory, computes nothing.

An emulator needs ten times as long for a vector multiplication as for anything else. How often which
code runs, and which memory it wants, does not depend on the numbers of most kernels: `without_arithmetic`
proves that for one of them, instruction by instruction, and puts `nop` in the place of what computes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from tcomp.codegen.cycles import Listing
from tcomp.codegen.machine_code import INSTRUCTION_SETS
from tcomp.errors import BuildError
from tcomp.runtime.elf import RELOCATABLE, SharedLibrary

_NOP = 0xD503201F
_LEFT_OUT = re.compile(
    r"(fml[as]|fn?m(add|sub)|f(mul|add|sub|div|sqrt)|f(max|min)(nm)?|fabs|fneg|[us]dot|[us]cvtf) [vsdhq]\d"
)
"""Arithmetic that writes a vector register and nothing else."""
_REPLACES = re.compile(r"(movi|mvni|fmov|dup|mov) [vsdhq]\d+(\.\d+[bhsd])?,")
"""Instructions after which nothing is left of what their vector register held."""
_COMPARES = re.compile(r"fc?cmpe? ")
_GENERAL = re.compile(r"([wx]\d+|[wx]zr|w?sp|p\d+)\b")
_VECTOR = re.compile(r"\b[vqdshbz](\d+)\b")
_HARMLESS_CALLS = ("memset", "memcpy", "memmove")
_CALL = re.compile(r"bl? ([^.\s]\S*)")
"""A call, or a jump to the begin of another function."""
_SAVED = sum(1 << register for register in range(8, 16))
"""Vector registers that a call leaves as they are."""
_GROUP, _VECTOR_ARITHMETIC = 0x0E000000, 0x0E000000
"""Bits of an encoding that tell Advanced SIMD and floating-point arithmetic from the rest."""


def without_arithmetic(code: bytes, listing: Listing) -> bytes | None:
    """The object `code` of `listing`, its slow vector arithmetic replaced by `nop`.

    None where a number that is computed or loaded into a vector register may decide what is executed or
    which memory is touched. What a kernel stores and loads into a general register again is not followed:
    kernels that compute integers are not for this function. 64-bit ARM.
    """
    if listing.machine != "aarch64":
        return None
    steps = [_step(line.text, listing) for line in listing.lines]
    if not any(step.is_left_out for step in steps) or _numbers_decide(steps, listing):
        return None
    library = SharedLibrary("the kernel's object", memoryview(code), RELOCATABLE)
    section = library.section(".text")
    if section is None or section.size < listing.size:
        raise BuildError("the kernel's object has other code than its listing")
    result = bytearray(code)
    for line, step in zip(listing.lines, steps, strict=True):
        if step.is_left_out:
            place = section.offset + line.offset
            (word,) = struct.unpack_from("<I", result, place)
            if word & _GROUP != _VECTOR_ARITHMETIC:
                raise BuildError(f"the kernel's object has {word:08x} where its listing has `{line.text}`")
            struct.pack_into("<I", result, place, _NOP)
    return bytes(result)


@dataclass(frozen=True)
class _Step:
    """What an instruction does to sets of vector registers, as bits, whose contents are numbers.

    Afterwards `sets` are, and `written` are when one of `read` was; others of `written` are not any more
    when it `replaces` them. It `decides` when numbers in `read` may change what is executed.
    """

    read: int = 0
    written: int = 0
    sets: int = 0
    replaces: bool = False
    decides: bool = False
    is_left_out: bool = False
    is_hidden: bool = False
    """It may do anything: it jumps to where a register says, or calls a function with numbers."""

    def after(self, numbers: int) -> int:
        if numbers & self.read:
            numbers |= self.written
        elif self.replaces:
            numbers &= ~self.written
        return numbers | self.sets


def _step(text: str, listing: Listing) -> _Step:
    name, _, operands = text.partition(" ")
    call = _CALL.match(text)
    if call or name == "blr":
        known = call is None or call[1] in _HARMLESS_CALLS or call[1] in listing.symbols
        return _Step(sets=0xFFFFFFFF & ~_SAVED, is_hidden=not known)
    every = _bits(operands)
    if name == "br":
        return _Step(is_hidden=True)
    if not every:
        return _Step()
    address = "".join(re.findall(r"\[[^\]]*\]?", operands)) if name[:2] in ("ld", "st", "pr") else ""
    if _bits(address):
        return _Step(is_hidden=True)
    if name.startswith("ld"):
        return _Step(sets=every)
    if name.startswith("st"):
        return _Step()
    if _COMPARES.match(text) or _GENERAL.match(operands):
        return _Step(read=every, decides=True)
    first, _, rest = operands.partition(",")
    written = _bits(first)
    if _LEFT_OUT.match(text):
        return _Step(sets=written, is_left_out=True)
    if _REPLACES.match(text):
        return _Step(read=_bits(rest), written=written, replaces=True)
    return _Step(read=every, written=written)


def _bits(operands: str) -> int:
    return sum(1 << number for number in {int(n) for n in _VECTOR.findall(operands)})


def _numbers_decide(steps: Sequence[_Step], listing: Listing) -> bool:
    """Whether numbers in vector registers may reach a general register, flags or an address."""
    if any(step.is_hidden for step in steps):
        return True
    following = _following(listing)
    before = [0] * len(steps)
    waiting = list(range(len(steps)))
    while waiting:
        index = waiting.pop()
        after = steps[index].after(before[index])
        for place in following[index]:
            if after & ~before[place]:
                before[place] |= after
                waiting.append(place)
    return any(s.decides and s.read & numbers for s, numbers in zip(steps, before, strict=True))


def _following(listing: Listing) -> list[list[int]]:
    """The lines that may be executed after each one."""
    places = {name: i for i, line in enumerate(listing.lines) for name in line.labels}
    jump = re.compile(rf"({INSTRUCTION_SETS[listing.machine].jump}) (\.L\w+)")
    found: list[list[int]] = []
    for index, line in enumerate(listing.lines):
        match = jump.fullmatch(line.text)
        to = [places[match[2]]] if match else []
        ends = line.text == "ret" or line.text.startswith("b ")
        found.append(to if ends or index + 1 == len(listing.lines) else [*to, index + 1])
    return found
