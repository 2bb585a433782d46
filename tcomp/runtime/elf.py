"""As much of the ELF format as it takes to judge a shared library without loading it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from tcomp.errors import ArtifactError

MACHINES = {3: "x86", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv"}
_SHARED_OBJECT = 3
_SECTION_STRING_TABLE, _SECTION_DYNAMIC, _SECTION_DYNAMIC_SYMBOLS, _SECTION_NO_BITS = 3, 6, 11, 8
_TAG_NEEDED = 1


@dataclass(frozen=True)
class Section:
    name: str
    kind: int
    offset: int
    size: int
    link: int


@dataclass(frozen=True)
class Symbol:
    """An entry of the dynamic symbol table."""

    name: str
    defined: bool
    weak: bool


@dataclass(frozen=True)
class SharedLibrary:
    """A parsed 64-bit little-endian ELF shared library. `data` is its whole content.

    Every property raises ArtifactError when the file is damaged.
    """

    path: str
    data: memoryview

    @cached_property
    def machine(self) -> str:
        number = self._header[1]
        return MACHINES.get(number, f"machine {number}")

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        *_, section_offset, entry_bytes, count, names_index = self._header
        if entry_bytes != 64 or names_index >= count:
            raise self._damaged("its section table is not valid")
        raw = [self._unpack("<IIQQQQIIQQ", section_offset + i * 64) for i in range(count)]
        names = Section("", raw[names_index][1], raw[names_index][4], raw[names_index][5], 0)
        return tuple(
            Section(self._string(names, entry[0]), entry[1], entry[4], entry[5], entry[6]) for entry in raw
        )

    def section(self, name: str) -> Section | None:
        """The section called `name`, checked to lie inside the file."""
        for section in self.sections:
            if section.name == name and section.kind != _SECTION_NO_BITS:
                if section.offset + section.size > len(self.data):
                    raise self._damaged(f"section {name} reaches past its end")
                return section
        return None

    @cached_property
    def needed(self) -> tuple[str, ...]:
        """The libraries that this one asks the loader for."""
        found: list[str] = []
        for section, strings in self._linked(_SECTION_DYNAMIC):
            for offset in range(section.offset, section.offset + section.size, 16):
                tag, value = self._unpack("<qQ", offset)
                if tag == _TAG_NEEDED:
                    found.append(self._string(strings, value))
        return tuple(found)

    @cached_property
    def symbols(self) -> tuple[Symbol, ...]:
        """The dynamic symbols: what the library exports and what it wants from others."""
        found: list[Symbol] = []
        for section, strings in self._linked(_SECTION_DYNAMIC_SYMBOLS):
            for offset in range(section.offset + 24, section.offset + section.size, 24):
                name, info, _, index, _, _ = self._unpack("<IBBHQQ", offset)
                found.append(Symbol(self._string(strings, name), index != 0, info >> 4 == 2))
        return tuple(found)

    def _linked(self, kind: int) -> Iterator[tuple[Section, Section]]:
        for section in self.sections:
            if section.kind == kind:
                if section.link >= len(self.sections):
                    raise self._damaged("a section has no string table")
                yield section, self.sections[section.link]

    @cached_property
    def _header(self) -> tuple[int, ...]:
        """Type, machine, section table offset, its entry size, count and the index of its names."""
        if bytes(self.data[:4]) != b"\x7fELF":
            raise ArtifactError(f"{self.path} is not a shared library (no ELF header); compile it again")
        if bytes(self.data[4:6]) != b"\x02\x01":
            raise ArtifactError(
                f"{self.path} is not a 64-bit little-endian library; compile for this machine"
            )
        kind, machine, _, _, _, sections, *_, entry, count, names = self._unpack("<HHIQQQIHHHHHH", 16)
        if kind != _SHARED_OBJECT:
            raise ArtifactError(f"{self.path} is an ELF file but no shared library")
        return kind, machine, sections, entry, count, names

    def _unpack(self, layout: str, offset: int) -> tuple[int, ...]:
        try:
            return struct.unpack_from(layout, self.data, offset)
        except struct.error:
            raise self._damaged("it is truncated") from None

    def _string(self, table: Section, offset: int) -> str:
        start = table.offset + offset
        limit = min(table.offset + table.size, len(self.data))
        raw = bytes(self.data[start : min(limit, start + 4096)])
        end = raw.find(b"\0")
        if end < 0:
            raise self._damaged("a name in it has no end")
        return raw[:end].decode("utf-8", "replace")

    def _damaged(self, how: str) -> ArtifactError:
        return ArtifactError(f"{self.path} is damaged: {how}; compile it again")
