"""`--runner ssh://[USER@]HOST[:PORT]`: candidates run on a Linux board, through OpenSSH's `ssh` and `scp`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from tcomp.errors import UsageError
from tcomp.tuner.runner import RUNNERS, Runner
from tcomp.tuner.shell import Shell
from tcomp.tuner.shell_runner import ShellRunner

_CONNECT_SECONDS = 10
_PERSIST_SECONDS = 60


class SshShell(Shell):
    """A host of `ssh`. One connection serves all commands, and ends by itself when it is not used."""

    program, package = "ssh", "openssh-client"

    def __init__(self, host: str, port: str = "") -> None:
        self.name = host
        self._host = host
        self._options = [
            "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_SECONDS}", "-o", "ControlMaster=auto",
            "-o", "ControlPath=/tmp/tcomp-ssh-%C", "-o", f"ControlPersist={_PERSIST_SECONDS}",
        ]  # fmt: skip
        if port:
            self._options += ["-o", f"Port={port}"]

    def run_command(self, script: str) -> list[str]:
        return ["ssh", *self._options, self._host, f"sh -c {shlex.quote(script)}"]

    def push_command(self, files: Sequence[Path], folder: str) -> list[str]:
        return ["scp", "-q", *self._options, *map(str, files), f"{self._host}:{folder}/"]

    def pull_command(self, path: str, file: Path) -> list[str]:
        return ["scp", "-q", *self._options, f"{self._host}:{path}", str(file)]


def _parse(text: str) -> Runner:
    match = re.fullmatch(r"//((?:[^@:/\s-][^@:/\s]*@)?[^@:/\s-][^@:/\s]*)(?::(\d+))?", text)
    if match is None:
        raise UsageError(f"runner `ssh:{text}` does not read as ssh://[USER@]HOST[:PORT]")
    return ShellRunner(SshShell(match[1], match[2] or ""), "/tmp")


RUNNERS.register("ssh", _parse)
