"""Ctrl-C while tuning: the first is a wish to stop after the batch in flight, the second stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any


class Interrupts:
    """Counts Ctrl-C while entered, instead of having KeyboardInterrupt raised between any two operations.

    `check` is called where stopping at once loses nothing. `announce` is called once, from there, after
    the first. Outside the main thread, where Python delivers no signals, nothing changes.
    """

    def __init__(self, announce: Callable[[], None]) -> None:
        self._announce = announce
        self._count = 0
        self._announced = False
        self._previous: Any = None

    @property
    def requested(self) -> bool:
        """Whether the user wants to stop."""
        return self._count > 0

    def check(self) -> None:
        """Raise KeyboardInterrupt after the second Ctrl-C."""
        if self._count > 1:
            raise KeyboardInterrupt
        if self._count and not self._announced:
            self._announced = True
            self._announce()

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
