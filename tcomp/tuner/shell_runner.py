"""A runner of devices that have a shell: what is asked before the first trial, and what is left behind."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any

from tcomp.codegen.benchmark import prepare_toolchain
from tcomp.codegen.toolchain import find_static_toolchain
from tcomp.errors import DeviceError
from tcomp.target.target import Target
from tcomp.tuner.device import IDENTITY, Identity, State, conditions
from tcomp.tuner.on_device import DeviceStation
from tcomp.tuner.runner import Device, Runner, Station
from tcomp.tuner.shell import CALL_SECONDS, Shell

_CALLS = 5
"""Commands and files of a trial."""


@dataclass(frozen=True)
class ShellRunner(Runner):
    """Measures on the device behind `shell`, with files in a folder of this session's below `base` there."""

    shell: Shell
    base: str
    session: str = field(default_factory=lambda: token_hex(4))
    overhead_seconds: float = _CALLS * CALL_SECONDS

    @property
    def place(self) -> str:
        return f"{self.base}/tcomp-{self.session}"

    def connect(self, targets: Sequence[Target]) -> Device:
        self.shell.require_program()
        for target in targets:
            find_static_toolchain(target)
        answer = self.shell.run(IDENTITY)
        identity = Identity.of(answer.output)
        name = f"{identity.model or self.shell.name}"
        identity.require(targets, name)
        for target in targets:
            prepare_toolchain(target)
        cpus = identity.cpus(targets[0]) if targets else ()
        state = State.of(answer.output, cpus)
        return Device(name, conditions=conditions(state, state, cpus))

    def open(self, folder: Path, threads: int) -> Station[Any]:
        return DeviceStation(self.shell, self.place, folder, threads)

    def close(self) -> None:
        with suppress(DeviceError):  # It is gone, and with it the wish to clean it.
            self.shell.run(f"rm -rf {self.place}")
