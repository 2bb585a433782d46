"""A shell on another device: commands of a program here (`ssh`, `adb`) that run, send and fetch there."""

from __future__ import annotations

import re
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tcomp.errors import BuildError, DeviceError

CALL_SECONDS = 30.0
"""Time for reaching the device and for moving a file of a few MB, beyond what a command itself takes."""
BYTES_PER_SECOND = 500_000.0
"""The slowest connection that is waited for."""
_STATUS = "tcomp-status"


@dataclass(frozen=True)
class Answer:
    """What a command on the device said, and its exit status: 128 and the signal where one ended it."""

    status: int
    output: str
    errors: str


class Shell(ABC):
    """How to reach one device. Every method raises DeviceError when it does not answer."""

    program: str
    """The program here, with the package that has it: for messages."""
    package: str
    name: str
    """The device, for messages."""

    @abstractmethod
    def run_command(self, script: str) -> list[str]:
        """The command here that runs a script for `sh` there."""

    @abstractmethod
    def push_command(self, files: Sequence[Path], folder: str) -> list[str]:
        """The command here that copies files into a folder there, under their own names."""

    @abstractmethod
    def pull_command(self, path: str, file: Path) -> list[str]:
        """The command here that copies a file from there."""

    def require_program(self) -> None:
        """Raise BuildError when the program that reaches devices is not installed here."""
        if shutil.which(self.program) is None:
            raise BuildError(f"no `{self.program}` found; install it, `apt-get install {self.package}`")

    def run(self, script: str, seconds: float = 0.0) -> Answer:
        """Run a script there, which takes at most `seconds`."""
        # Old versions of adb lose the exit status, and a connection that breaks has one as well.
        done = self._call(self.run_command(f"({script}\n); echo {_STATUS} $?"), CALL_SECONDS + seconds)
        output, _, status = done.stdout.rpartition(f"{_STATUS} ")
        if not re.fullmatch(r"\d+\s*", status):
            raise self._lost(done)
        return Answer(int(status), output, done.stderr)

    def push(self, files: Sequence[Path], folder: str) -> None:
        """Copy files into a folder there."""
        seconds = sum(file.stat().st_size for file in files) / BYTES_PER_SECOND
        done = self._call(self.push_command(files, folder), CALL_SECONDS + seconds)
        if done.returncode != 0:
            raise self._lost(done)

    def pull(self, path: str, file: Path, nbytes: int) -> bytes:
        """The content of a file of so many bytes there, by way of `file` here."""
        done = self._call(self.pull_command(path, file), CALL_SECONDS + nbytes / BYTES_PER_SECOND)
        if done.returncode != 0:
            raise self._lost(done)
        return file.read_bytes()

    def _call(self, command: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                stdin=subprocess.DEVNULL,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise DeviceError(f"{self.name} gives no answer in {seconds:.0f} s") from None
        except OSError as error:
            raise DeviceError(f"cannot run `{command[0]}`: {error.strerror}") from None

    def _lost(self, done: subprocess.CompletedProcess[str]) -> DeviceError:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        reason = lines[-1] if lines else f"{self.program} ended with status {done.returncode}"
        return DeviceError(f"{self.name} is lost: {reason}")
