"""As much of the ELF format as it takes to judge a shared library without loading it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from tcomp.errors import ArtifactError

MACHINES = {3: "x86", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv"}
RELOCATABLE, SHARED_OBJECT = 1, 3
"""Types of files: what a compiler writes, and a library."""
_EXECUTABLE_FLAG = 4
_SECTION_STRING_TABLE, _SECTION_DYNAMIC, _SECTION_DYNAMIC_SYMBOLS, _SECTION_NO_BITS = 3, 6, 11, 8
_TAG_NEEDED = 1
_LOCAL, _WEAK = 0, 2
"""Bindings of symbols. Some linkers put local ones into the dynamic table, which means nothing."""


@dataclass(frozen=True)
class _Layout:
    """How the tables of 32 or 64-bit files lie in memory: `struct` formats, and entries in one order."""

    header: str
    """Type, machine, ..., section table offset, ..., its entry size, count, index of names."""
    section: str
    """Name, kind, flags, address, offset, size, link, ..."""
    dynamic: str
    symbol: str
    symbol_fields: tuple[int, int, int]
    """Where name, info and section index stand among the fields of a symbol."""


_LAYOUTS = {
    1: _Layout("<HHIIIIIHHHHHH", "<IIIIIIIIII", "<iI", "<IIIBBH", (0, 3, 5)),
    2: _Layout("<HHIQQQIHHHHHH", "<IIQQQQIIQQ", "<qQ", "<IBBHQQ", (0, 1, 3)),
}
"""By the class byte of the identification."""


@dataclass(frozen=True)
class Section:
    name: str
    kind: int
    offset: int
    size: int
    link: int
    flags: int = 0

    @property
    def is_code(self) -> bool:
        return bool(self.flags & _EXECUTABLE_FLAG)


@dataclass(frozen=True)
class Symbol:
    """An entry of the dynamic symbol table."""

    name: str
    defined: bool
    weak: bool


@dataclass(frozen=True)
class SharedLibrary:
    """A parsed little-endian ELF shared library, or file of another type. `data` is its whole content.

    Every property raises ArtifactError when the file is damaged or of another type.
    """

    path: str
    data: memoryview
    file_type: int = SHARED_OBJECT

    @cached_property
    def machine(self) -> str:
        number = self._header[1]
        return MACHINES.get(number, f"machine {number}")

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        *_, section_offset, entry_bytes, count, names_index = self._header
        layout = self._layout
        if entry_bytes != struct.calcsize(layout.section) or names_index >= count:
            raise self._damaged("its section table is not valid")
        raw = [self._unpack(layout.section, section_offset + i * entry_bytes) for i in range(count)]
        names = Section("", raw[names_index][1], raw[names_index][4], raw[names_index][5], 0)
        return tuple(
            Section(self._string(names, entry[0]), entry[1], entry[4], entry[5], entry[6], entry[2])
            for entry in raw
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
        layout = self._layout.dynamic
        for section, strings in self._linked(_SECTION_DYNAMIC):
            for offset in _entries(section, layout):
                tag, value = self._unpack(layout, offset)
                if tag == _TAG_NEEDED:
                    found.append(self._string(strings, value))
        return tuple(found)

    @cached_property
    def symbols(self) -> tuple[Symbol, ...]:
        """The dynamic symbols: what the library exports and what it wants from others."""
        found: list[Symbol] = []
        layout, places = self._layout.symbol, self._layout.symbol_fields
        for section, strings in self._linked(_SECTION_DYNAMIC_SYMBOLS):
            for offset in _entries(section, layout)[1:]:
                fields = self._unpack(layout, offset)
                name, info, index = (fields[place] for place in places)
                if info >> 4 != _LOCAL:
                    found.append(Symbol(self._string(strings, name), index != 0, info >> 4 == _WEAK))
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
        if len(self.data) < 6 or self.data[4] not in _LAYOUTS or self.data[5] != 1:
            raise ArtifactError(f"{self.path} is not a little-endian library; compile for this machine")
        kind, machine, _, _, _, sections, *_, entry, count, names = self._unpack(self._layout.header, 16)
        if kind != self.file_type:
            wanted = "shared library" if self.file_type == SHARED_OBJECT else "object file"
            raise ArtifactError(f"{self.path} is an ELF file but no {wanted}")
        return kind, machine, sections, entry, count, names

    @property
    def _layout(self) -> _Layout:
        return _LAYOUTS[self.data[4]]

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


def _entries(section: Section, layout: str) -> range:
    """Where the entries of a table start."""
    return range(section.offset, section.offset + section.size, struct.calcsize(layout))
