"""`adb`, `ssh` and `scp` for tests: a folder plays the device, and qemu runs what is sent to it.

`install` writes them into a folder for PATH. Scripts see the device's /sys, /proc, /tmp and /data; a file
`lost` in its folder makes it unreachable, and a number in it makes it so after that many commands.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "device"
"""Where the device is when this file runs as one of its commands, from a folder beside it."""
_OWN = re.compile(r"(?<![\w./])/(?=(?:sys|proc|tmp|data)/)")


def install(folder: Path, files: Mapping[str, str]) -> Path:
    """Make a device with these files below `folder`, and the commands in `bin`, which is answered."""
    commands, device = folder / "bin", folder / "device"
    for place in (commands, device / "bin", device / "tmp", device / "data/local/tmp"):
        place.mkdir(parents=True)
    for path, text in files.items():
        (device / path).parent.mkdir(parents=True, exist_ok=True)
        (device / path).write_text(text)
    _executable(device / "bin/uname", "#!/bin/sh\necho aarch64\n")
    source = Path(__file__).read_text()
    for name in ("adb", "ssh", "scp"):
        _executable(commands / name, f"#!{sys.executable}\n{source}")
    return commands


def _executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def shell(script: str) -> int:
    """Run a script on the device; what it prints is printed."""
    command = ["sh", "-c", f"PATH={ROOT}/bin:$PATH\n{_OWN.sub(f'{ROOT}/', script)}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout.replace(str(ROOT), ""), end="")
    print(done.stderr.replace(str(ROOT), ""), end="", file=sys.stderr)
    return done.returncode


def push(files: list[str], folder: str) -> int:
    """Copy files to the device, programs with a script of their name that runs them under qemu."""
    place = ROOT / folder.lstrip("/")
    if not place.is_dir():
        print(f"{folder}: No such file or directory", file=sys.stderr)
        return 1
    for file in map(Path, files):
        content = file.read_bytes()
        path = place / file.name
        if content.startswith(b"\x7fELF"):
            path = place / f"elf-{file.name}"
            _executable(place / file.name, f'#!/bin/sh\nexec qemu-aarch64 ./{path.name} "$@"\n')
        path.write_bytes(content)
        path.chmod(0o755)
    return 0


def pull(path: str, file: str) -> int:
    Path(file).write_bytes((ROOT / path.lstrip("/")).read_bytes())
    return 0


def is_lost() -> bool:
    """Whether the device is away, counting its commands down where that is going to be."""
    mark = ROOT / "lost"
    if not mark.exists():
        return False
    left = int(mark.read_text() or 0)
    mark.write_text(str(max(0, left - 1)))
    return left == 0


def adb(arguments: list[str]) -> int:
    if arguments[:1] == ["-s"]:
        arguments = arguments[2:]
    if is_lost():
        print("adb: no devices/emulators found", file=sys.stderr)
        return 1
    action, *rest = arguments
    return (
        shell(*rest) if action == "shell" else push(rest[:-1], rest[-1]) if action == "push" else pull(*rest)
    )


def without_options(arguments: list[str]) -> list[str]:
    """What is left of a command line of ssh or scp."""
    while arguments and arguments[0].startswith("-"):
        arguments = arguments[2 if arguments[0] == "-o" else 1 :]
    return arguments


def ssh(arguments: list[str]) -> int:
    host, script = without_options(arguments)
    if is_lost():
        print(f"ssh: connect to host {host} port 22: No route to host", file=sys.stderr)
        return 255
    return shell(script)


def scp(arguments: list[str]) -> int:
    *sources, destination = without_options(arguments)
    if is_lost():
        print("scp: Connection closed", file=sys.stderr)
        return 255
    if ":" in destination:
        return push(sources, destination.split(":")[1])
    return pull(sources[0].split(":")[1], destination)


if __name__ == "__main__":
    sys.exit({"adb": adb, "ssh": ssh, "scp": scp}[Path(sys.argv[0]).name](sys.argv[1:]))
