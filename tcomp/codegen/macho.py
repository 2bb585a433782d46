"""As much of Apple's Mach-O format, 64 bits, as it takes to hide symbols and to judge a library."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from tcomp.errors import ArtifactError
from tcomp.runtime.elf import Symbol

MAGIC = 0xFEEDFACF
_HEADER = "<8I"
_COMMAND_SEGMENT, _COMMAND_SYMBOLS = 0x19, 0x2
_COMMANDS_LOAD = (0xC, 0x80000018, 0x8000001F)
"""A library, a weak one, one whose symbols are passed on."""
_SEGMENT_BYTES, _SECTION_COUNT_AT = 72, 64
_SECTION, _SECTION_BYTES, _SECTION_NAMES = "<QQ8I", 80, 32
_SYMBOL = "<IBBHQ"
_INSTRUCTIONS = 0x80000400
"""Flags of sections with code."""
_EXTERNAL, _PRIVATE, _KIND, _DEBUG = 0x01, 0x10, 0x0E, 0xE0
"""Bits of a symbol's type. A private external symbol is for the linker, and not exported."""


@dataclass(frozen=True)
class MachO:
    """An object or library. Properties raise ArtifactError when the file is damaged."""

    path: str
    data: bytes

    @cached_property
    def needed(self) -> tuple[str, ...]:
        """The libraries that this one asks the loader for."""
        names: list[str] = []
        for command, at, size in self._commands():
            if command in _COMMANDS_LOAD:
                (offset,) = self._unpack("<I", at + 8)
                names.append(self.data[at + offset : at + size].split(b"\0")[0].decode())
        return tuple(names)

    @cached_property
    def symbols(self) -> tuple[Symbol, ...]:
        """What the file gives to others, or wants from them; names are those of C, without the underscore."""
        found: list[Symbol] = []
        for at, strings in self._symbol_places():
            name, kind, *_ = self._unpack(_SYMBOL, at)
            if kind & _EXTERNAL and not kind & (_DEBUG | _PRIVATE):
                text = self.data[strings + name :].split(b"\0", 1)[0].decode().removeprefix("_")
                found.append(Symbol(text, kind & _KIND != 0, False))
        return tuple(found)

    @property
    def segments(self) -> tuple[tuple[int, int], ...]:
        """None as ELF has them: all are aligned to pages of 16 KiB, and thread-local data is the loader's."""
        return ()

    @cached_property
    def code(self) -> tuple[tuple[str, bytes], ...]:
        """Executable memory, by section."""
        found: list[tuple[str, bytes]] = []
        for command, at, _ in self._commands():
            if command != _COMMAND_SEGMENT:
                continue
            (count,) = self._unpack("<I", at + _SECTION_COUNT_AT)
            for place in range(
                at + _SEGMENT_BYTES, at + _SEGMENT_BYTES + count * _SECTION_BYTES, _SECTION_BYTES
            ):
                _, size, offset, _, _, _, flags, *_ = self._unpack(_SECTION, place + _SECTION_NAMES)
                if flags & _INSTRUCTIONS:
                    name = self.data[place : place + 16].rstrip(b"\0").decode()
                    found.append((name, self.data[offset : offset + size]))
        return tuple(found)

    def hidden(self) -> bytes:
        """The object with all its own symbols private to what it will be linked into."""
        changed = bytearray(self.data)
        for at, _ in self._symbol_places():
            kind = changed[at + 4]
            if kind & _EXTERNAL and kind & _KIND and not kind & _DEBUG:
                changed[at + 4] = kind | _PRIVATE
        return bytes(changed)

    def _symbol_places(self) -> Iterator[tuple[int, int]]:
        """Where each symbol is, and where the table of names is."""
        for command, at, _ in self._commands():
            if command == _COMMAND_SYMBOLS:
                offset, count, strings, _ = self._unpack("<4I", at + 8)
                size = struct.calcsize(_SYMBOL)
                yield from ((offset + i * size, strings) for i in range(count))

    def _commands(self) -> Iterator[tuple[int, int, int]]:
        """Kind, position and bytes of each load command."""
        magic, *_, count, _, _, _ = self._unpack(_HEADER, 0)
        if magic != MAGIC:
            raise ArtifactError(f"{self.path} is no 64-bit Mach-O file; compile it again")
        at = struct.calcsize(_HEADER)
        for _ in range(count):
            command, size = self._unpack("<II", at)
            if size < 8:
                raise ArtifactError(f"{self.path} is damaged: a load command has no size; compile it again")
            yield command, at, size
            at += size

    def _unpack(self, layout: str, offset: int) -> tuple[int, ...]:
        try:
            return struct.unpack_from(layout, self.data, offset)
        except struct.error:
            raise ArtifactError(f"{self.path} is damaged: it is truncated; compile it again") from None


def is_macho(data: bytes) -> bool:
    """Whether a file with the content `data` is in this format."""
    return data[:4] == struct.pack("<I", MAGIC)
