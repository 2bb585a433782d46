"""Registries that fill themselves from a package folder.

Dropping a module into the folder registers what the module declares; there is no central table to edit.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from threading import RLock
from typing import Generic, TypeVar

from tcomp.errors import UsageError

Entry = TypeVar("Entry")


class Registry(Mapping[str, Entry], Generic[Entry]):
    """Named entries declared by the modules of one package, imported on first look-up."""

    def __init__(self, noun: str, package: str) -> None:
        self._noun = noun
        self._package = package
        self._entries: dict[str, Entry] = {}
        self._discovered = False
        self._lock = RLock()

    def register(self, name: str, entry: Entry) -> Entry:
        if name in self._entries:
            raise ValueError(f"{self._noun} `{name}` is declared twice")
        self._entries[name] = entry
        return entry

    def discover(self) -> None:
        """Import every module of the package once."""
        with self._lock:
            if self._discovered:
                return
            # Set first: a module of the package may look up another's entry while it is imported.
            self._discovered = True
            package = importlib.import_module(self._package)
            for module in pkgutil.iter_modules(package.__path__, prefix=f"{self._package}."):
                importlib.import_module(module.name)

    def __getitem__(self, name: str) -> Entry:
        if name not in self._entries:
            self.discover()
        try:
            return self._entries[name]
        except KeyError:
            near = get_close_matches(name, self._entries, n=3)
            hint = f"; did you mean {', '.join(f'`{n}`' for n in near)}?" if near else ""
            raise UsageError(f"unknown {self._noun} `{name}`{hint}") from None

    def __contains__(self, name: object) -> bool:
        self.discover()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        self.discover()
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        self.discover()
        return len(self._entries)
