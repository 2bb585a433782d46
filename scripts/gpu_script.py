"""What scripts that need a GPU have in common: the GPU, a choice of what to do, a file for what was found."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tcomp.errors import DeviceError
from tcomp.files import written_beside
from tcomp.target.parse import parse_target
from tcomp.target.target import Target


class Named(Protocol):
    """What a name chooses."""

    @property
    def name(self) -> str: ...


Chosen = TypeVar("Chosen", bound=Named)


class OutOfTime(Exception):
    """All seconds are over."""


def gpu_here() -> Target:
    """The GPU of this machine; ends the program with a line that says what is missing where there is none."""
    try:
        return parse_target("cuda")
    except DeviceError as error:
        raise SystemExit(str(error)) from None


def selected(every: Iterable[Chosen], part: str) -> list[Chosen]:
    """Those in whose name `part` occurs; ends the program with a line where there is none."""
    found = [one for one in every if part in one.name]
    if not found:
        raise SystemExit(f"nothing has `{part}` in its name; leave --select away to see all names")
    return found


def add_seconds(parser: argparse.ArgumentParser, default: float) -> None:
    """The option `--seconds`, after which nothing goes on."""
    parser.add_argument(
        "--seconds", type=float, default=default, help=f"end after so long (default {default:g})"
    )


def tick_until(end: float) -> Callable[[], None]:
    """What raises OutOfTime when it is called after the moment `end`, by the monotonic clock."""

    def tick() -> None:
        if time.monotonic() > end:
            raise OutOfTime

    return tick


def add_json(parser: argparse.ArgumentParser) -> None:
    """The option `--json`, of a file whose folder must be there before anything is measured."""
    parser.add_argument("--json", metavar="FILE", type=_file, help="write what is found to this file too")


def _file(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"`{text}` is no file in a folder that is there; make the folder")
    return path


def write_json(file: Path | None, rows: Sequence[Any]) -> None:
    """Replace the `file`, if there is one, as a whole."""
    if file is not None:
        with written_beside(file) as path:
            path.write_text(json.dumps(rows, indent=1))
