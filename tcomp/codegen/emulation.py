"""Programs of other machines under qemu-user: how often each piece of their code ran, and missed caches."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tcomp.codegen.link import SOURCES, compile_c, link_plugin
from tcomp.codegen.toolchain import native_toolchain
from tcomp.errors import BuildError
from tcomp.target.target import Target

EMULATORS = {"aarch64": "qemu-aarch64", "arm": "qemu-arm"}
"""By `Target.machine`."""


@dataclass(frozen=True)
class Piece:
    """Instructions without a jump between them, from `address`, and how often they were executed.

    `misses` are the cache lines that they wanted and that the caches of each level did not hold.
    """

    address: int
    instructions: int
    times: int
    misses: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True)
class Emulated:
    """What a program said, its exit status (negative for a signal), and what of it was executed."""

    status: int
    output: str
    errors: str
    pieces: tuple[Piece, ...]


def find_emulator(target: Target) -> str:
    """The path of qemu for programs of `target`.

    Raises BuildError when there is none.
    """
    name = EMULATORS.get(target.machine)
    if name is None:
        raise BuildError(f"no emulator for target `{target.name}`; one of {', '.join(EMULATORS)} is emulated")
    path = shutil.which(name)
    if path is None:
        raise BuildError(f"no `{name}` found; install it, `apt-get install qemu-user`")
    return path


def fixed_addresses() -> list[str]:
    """What runs a command with its memory at the same addresses every time; nothing where that is forbidden.

    Which lines share a set of a cache depends on addresses.
    """
    command = ["setarch", "-R"]
    try:
        done = subprocess.run([*command, "true"], capture_output=True, check=False)
    except OSError:
        return []
    return command if done.returncode == 0 else []


def vector_options(target: Target) -> list[str]:
    """What gives the emulated CPU vectors of SVE of the target's length; by itself it has longer ones."""
    return ["-cpu", f"max,sve{target.sve_bits}=on"] if target.sve_bits else []


def emulator_version(target: Target) -> str:
    """`qemu-aarch64 7.2`.

    Raises BuildError as `find_emulator` does, and when qemu was built without plugins.
    """
    path = find_emulator(target)
    said = subprocess.run([path, "--help"], capture_output=True, text=True, check=False).stdout
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"version (\d+\.\d+)", version)
    if "-plugin" not in said or found is None:
        raise BuildError(f"{path} takes no plugins; install one that does, `apt-get install qemu-user`")
    return f"{Path(path).name} {found[1]}"


class InstructionCounter:
    """Emulates programs of a target and counts what they execute; keeps files in `folder`.

    With `caches`, also the lines that caches of the target's sizes miss, which takes many times as long.
    `options` are more ones of the emulator's: programs that are not static need `-L`.
    """

    def __init__(
        self, target: Target, folder: Path, caches: bool = True, options: Sequence[str] = ()
    ) -> None:
        self._emulator = find_emulator(target)
        self._prefix = fixed_addresses()
        self._folder = folder
        self._plugin = folder / "emulated.so"
        self._sizes = target.cache_bytes if caches else ()
        self._cpu = vector_options(target)
        self._options = options

    def run(self, command: Sequence[str], seconds: float) -> Emulated:
        """Run a program, in the counter's folder, for at most `seconds`.

        Raises BuildError when the plugin cannot be built or loaded, subprocess.TimeoutExpired.
        """
        if not self._plugin.exists():
            toolchain = native_toolchain()
            objects = compile_c(toolchain, [SOURCES / "emulated.c"], self._folder)
            link_plugin(toolchain, objects, self._plugin, self._folder)
        counts = self._folder / "counts"
        counts.unlink(missing_ok=True)
        sizes = (f"l{level}={size}" for level, size in enumerate(self._sizes, start=1))
        plugin = ",".join([str(self._plugin), f"out={counts}", *sizes])
        done = subprocess.run(
            [*self._prefix, self._emulator, *self._cpu, "-plugin", plugin, *self._options, *command],
            cwd=self._folder,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        if not counts.exists():
            reason = (done.stderr.strip().splitlines() or ["no counts"])[-1]
            raise BuildError(f"{self._emulator} does not load the plugin that counts instructions: {reason}")
        pieces: list[Piece] = []
        for line in counts.read_text().splitlines():
            address, *numbers = line.split()
            instructions, times, *misses = map(int, numbers)
            pieces.append(Piece(int(address, 16), instructions, times, (misses[0], misses[1], misses[2])))
        return Emulated(done.returncode, done.stdout, done.stderr, tuple(pieces))
