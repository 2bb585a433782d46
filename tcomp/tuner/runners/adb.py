"""`--runner adb[:SERIAL]`: candidates run on an Android phone, through Android's `adb`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tcomp.tuner.runner import RUNNERS, Runner
from tcomp.tuner.shell import Shell
from tcomp.tuner.shell_runner import ShellRunner


class AdbShell(Shell):
    """The phone called `serial`, or the only one that is connected."""

    program, package = "adb", "adb"

    def __init__(self, serial: str = "") -> None:
        self.name = f"phone {serial}" if serial else "the phone"
        self._adb = ["adb", *(["-s", serial] if serial else [])]

    def run_command(self, script: str) -> list[str]:
        return [*self._adb, "shell", script]

    def push_command(self, files: Sequence[Path], folder: str) -> list[str]:
        return [*self._adb, "push", *map(str, files), f"{folder}/"]

    def pull_command(self, path: str, file: Path) -> list[str]:
        return [*self._adb, "pull", path, str(file)]


def _parse(text: str) -> Runner:
    return ShellRunner(AdbShell(text), "/data/local/tmp")


RUNNERS.register("adb", _parse)
