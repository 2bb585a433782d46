"""What happens to the files of a folder, told by the kernel in the order in which it happens."""

from __future__ import annotations

import ctypes
import os
import select
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

MODIFY, CLOSE_WRITE, MOVED_FROM, MOVED_TO, CREATE, DELETE = 0x2, 0x8, 0x40, 0x80, 0x100, 0x200
"""Kinds of events, as inotify(7) numbers them."""
_IS_FOLDER = 0x40000000
_HEADER = struct.Struct("iIII")


@dataclass(frozen=True)
class Event:
    """Something that happened to the file `name` of a watched folder, or of one made in it meanwhile."""

    name: str
    kind: int


class Watch:
    """The events of a folder and of those that are made in it, from the start of a `with` block."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._libc = ctypes.CDLL(None, use_errno=True)

    def __enter__(self) -> Watch:
        self._queue = self._checked(self._libc.inotify_init1(os.O_CLOEXEC))
        self._folders: dict[int, str] = {}
        self._waiting: list[Event] = []
        self._add("")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._queue)

    def next(self, timeout: float) -> Event | None:
        """The next event; None when there is none for `timeout` seconds."""
        if not self._waiting and select.select([self._queue], [], [], timeout)[0]:
            data = os.read(self._queue, 1 << 16)
            while data:
                folder, kind, _, length = _HEADER.unpack_from(data)
                name = data[_HEADER.size : _HEADER.size + length].rstrip(b"\0").decode()
                data = data[_HEADER.size + length :]
                self._note(os.path.join(self._folders[folder], name), kind)
        return self._waiting.pop(0) if self._waiting else None

    def _note(self, name: str, kind: int) -> None:
        if kind & CREATE and kind & _IS_FOLDER:
            self._add(name)
        if kind & (MODIFY | CLOSE_WRITE | MOVED_FROM | MOVED_TO | CREATE | DELETE):
            self._waiting.append(Event(name, kind & ~_IS_FOLDER))

    def _add(self, name: str) -> None:
        kinds = MODIFY | CLOSE_WRITE | MOVED_FROM | MOVED_TO | CREATE | DELETE
        path = os.fsencode(self._folder / name)
        number = self._libc.inotify_add_watch(self._queue, path, kinds)
        if number >= 0 or name == "":  # A folder may be gone before it is watched.
            self._folders[self._checked(number)] = name

    @staticmethod
    def _checked(result: int) -> int:
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result
