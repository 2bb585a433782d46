"""Folders that all workers of a test run share, so that what takes long to make is made once."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path

import pytest

SharedFolder = Callable[[str, Callable[[Path], None]], Path]
"""The folder of a name; the first worker that asks for it makes what is in it, the others wait for that."""


def shared_folders(factory: pytest.TempPathFactory, is_worker: bool) -> SharedFolder:
    """Folders of one run, beside those of its workers where there are any."""
    base = factory.getbasetemp().parent if is_worker else factory.getbasetemp()

    def get(name: str, make: Callable[[Path], None]) -> Path:
        folder, whole = base / f"shared-{name}", base / f"shared-{name}.whole"
        with (base / f"shared-{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not whole.exists():
                folder.mkdir(exist_ok=True)
                make(folder)
                whole.touch()
        return folder

    return get
