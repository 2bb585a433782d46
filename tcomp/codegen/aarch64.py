"""Which general registers an AArch64 instruction names: enough of the encoding to find a forbidden one.

After the tables of the Arm Architecture Reference Manual, chapter C4. Of SVE and SME instructions only the
space is known, not the fields: they are taken to name no general register.
"""

from __future__ import annotations

from typing import cast

import numpy as np

_D, _N, _A, _M = 0, 5, 10, 16
"""First bits of the register fields: Rd or Rt, Rn, Ra or Rt2, Rm or Rs."""


def find_register(code: bytes, register: int) -> int | None:
    """The offset of the first instruction in `code` that names the general register x`register`."""
    words = np.frombuffer(code[: len(code) // 4 * 4], "<u4")
    fields = [words >> first & 31 == register for first in (_D, _N, _A, _M)]
    for index in cast("list[int]", np.flatnonzero(np.logical_or.reduce(fields)).tolist()):
        word = int(words[index])
        if any(word >> first & 31 == register for first in _fields(word)):
            return 4 * index
    return None


def _bits(word: int, high: int, low: int) -> int:
    return word >> low & (1 << high - low + 1) - 1


def _fields(word: int) -> tuple[int, ...]:
    """Where the general registers of an instruction stand."""
    group = _bits(word, 28, 25)
    if group >> 1 == 0b100:
        return _immediate(word)
    if group >> 1 == 0b101:
        return _branch(word)
    if group & 0b101 == 0b100:
        return _memory(word)
    if group & 0b111 == 0b101:
        return _register(word)
    return _vector(word) if group & 0b111 == 0b111 else ()


def _immediate(word: int) -> tuple[int, ...]:
    kind = _bits(word, 25, 23)
    if kind < 2 or kind == 0b101:  # ADR; MOVZ and the like
        return (_D,)
    return (_D, _N, _M) if kind == 0b111 else (_D, _N)


def _branch(word: int) -> tuple[int, ...]:
    if _bits(word, 30, 26) == 0b00101 or _bits(word, 31, 24) in (0b01010100, 0b11010100):
        return ()  # B, BL; B.cond; exceptions
    if _bits(word, 31, 25) == 0b1101011:
        return (_N, _D) if word >> 24 & 1 else (_N,)  # with a modifier for pointer authentication
    return (_D,)


def _memory(word: int) -> tuple[int, ...]:
    kind, is_vector = _bits(word, 29, 27), word >> 26 & 1
    data: tuple[int, ...] = () if is_vector else (_D,)
    if kind == 0b001:
        if not is_vector:
            return (_D, _N, _A, _M)  # exclusive and ordered; CAS
        return (_N, _M) if word >> 23 & 1 else (_N,)  # structures; with an increment
    if kind == 0b011 and not word >> 24 & 1:
        return () if _bits(word, 31, 30) == 0b11 else data  # literals; prefetches of them
    if kind == 0b011:
        return (_D, _N, _M) if _bits(word, 11, 10) == 0b01 else (*data, _N)  # copies, fills
    if kind & 0b011 == 0b001:
        return (_N,) if is_vector else (_D, _N, _A)  # pairs
    offset = _bits(word, 11, 10) if not word >> 24 & 1 and word >> 21 & 1 else None
    if _bits(word, 31, 30) == 0b11 and _bits(word, 23, 22) == 0b10 and offset in (None, 0b10):
        data = ()  # prefetches have a hint in this place
    return (*data, _N, _M) if offset in (0b00, 0b10) else (*data, _N)  # atomics; a register


def _register(word: int) -> tuple[int, ...]:
    if not word >> 28 & 1:
        return (_D, _N, _M)
    kind = _bits(word, 24, 21)
    if kind & 0b1000:
        return (_D, _N, _A, _M)
    if kind == 0b0010:
        return (_N,) if word >> 11 & 1 else (_N, _M)  # compares with an immediate or a register
    if kind == 0b0110 and word >> 30 & 1:
        return (_D, _N)
    if kind == 0:
        return (_D, _N, _M) if _bits(word, 15, 10) == 0 else (_N,)  # with carry; flags
    return (_D, _N, _M)


def _vector(word: int) -> tuple[int, ...]:
    if _bits(word, 30, 24) == 0b0011110 and not (word >> 21 & 1 and _bits(word, 15, 10)):
        return (_N,) if _bits(word, 18, 16) in (0b010, 0b011, 0b111) else (_D,)  # floats and integers
    if not word >> 31 and _bits(word, 29, 21) == 0b001110000 and not word >> 15 & 1 and word >> 10 & 1:
        copy = _bits(word, 14, 11)
        return {0b0001: (_N,), 0b0011: (_N,), 0b0101: (_D,), 0b0111: (_D,)}.get(copy, ())
    return ()
