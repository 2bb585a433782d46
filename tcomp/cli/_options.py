"""Options that several subcommands share, how they read, and how sizes are written."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from tcomp.errors import UsageError
from tcomp.transform.precision import PRECISIONS

_SHAPE = re.compile(r"(?P<name>.+):(?P<dims>\d+(?:,\d+)*|)")


def add_model(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?" if optional else None,
        help="a .onnx or .relay file, or module:function in Python that returns a graph",
    )
    parser.add_argument(
        "--input-shape",
        metavar="NAME:1,3,224,224",
        action="append",
        default=[],
        help="fix the shape of an input; once for each input with dynamic dimensions",
    )


def add_target(parser: argparse.ArgumentParser, several: bool = False) -> None:
    more = "; or several tags, as in arm64-android+cortex-a55,cortex-a76, for one library" if several else ""
    parser.add_argument(
        "--target",
        metavar="TARGET",
        default="llvm",
        help=f"`llvm`: the CPU here (default); a tag of `tcomp targets`; a JSON dict{more}",
    )


def add_logs(parser: argparse.ArgumentParser, required: bool = False) -> None:
    parser.add_argument(
        "--log",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        required=required,
        help="tuning records to use; a file or a folder of .jsonl files; may be given several times",
    )


def add_threads(parser: argparse.ArgumentParser, meaning: str = "threads to run with") -> None:
    parser.add_argument("--threads", metavar="N", type=positive, default=1, help=f"{meaning} (default 1)")


def add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="exact",
        help="`fast` multiplies in 16 bits where the target does that faster; `tf32` rounds float32 for the "
        "tensor cores of GPUs (default exact)",
    )


def positive(text: str) -> int:
    """An integer of at least 1, for argparse."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"`{text}` is not a positive integer")
    return value


def duration(text: str) -> float:
    """Seconds from `90`, `90s`, `3m` or `1.5h`, for argparse."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"`{text}` is not a duration; write 90s, 3m or 1.5h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def size_text(nbytes: int) -> str:
    """`nbytes` for people."""
    return f"{nbytes / 1e6:.2f} MB" if nbytes >= 1e5 else f"{nbytes / 1e3:.1f} kB"


def input_shapes(arguments: argparse.Namespace) -> dict[str, tuple[int, ...]]:
    """The `--input-shape` options as a mapping.

    Raises UsageError for one that does not read as NAME:1,3,224,224 or that is given twice.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for text in arguments.input_shape:
        match = _SHAPE.fullmatch(text)
        if match is None:
            raise UsageError(f"--input-shape `{text}` does not read as NAME:1,3,224,224")
        if match["name"] in shapes:
            raise UsageError(f"--input-shape names `{match['name']}` twice")
        shapes[match["name"]] = tuple(int(d) for d in match["dims"].split(",") if d)
    return shapes
