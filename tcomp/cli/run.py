"""Run a compiled model once, on arrays from a file or on made-up ones.

Outputs are written to an .npz file with -o, or summarised.
"""

from __future__ import annotations

import argparse
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from tcomp.cli._options import add_threads
from tcomp.errors import InputError, UsageError
from tcomp.files import written_beside
from tcomp.runtime import Model, load
from tcomp.runtime.fill import FILLS, fill


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "artifact", metavar="ARTIFACT", type=Path, help="a library that `tcomp compile` wrote"
    )
    parser.add_argument("-i", "--input", metavar="IN.npz", type=Path, help="inputs by name")
    parser.add_argument("-o", "--output", metavar="OUT.npz", type=Path, help="write the outputs by name")
    parser.add_argument("--fill", choices=FILLS, default="random", help="inputs that -i does not give")
    parser.add_argument(
        "--variant", metavar="NAME", help="the code of a library for several CPUs to run (default: the best)"
    )
    add_threads(parser)


def run(arguments: argparse.Namespace) -> int:
    with load(arguments.artifact, threads=arguments.threads, variant=arguments.variant) as model:
        outputs = model(**made_inputs(model, arguments.input, arguments.fill))
        named = {info.name: array for info, array in zip(model.outputs, outputs, strict=True)}
    if arguments.output is not None:
        _write_arrays(arguments.output, named)
        return 0
    for name, array in named.items():
        values = array.astype(np.float64)
        facts = (
            f"min {values.min():.6g}, mean {values.mean():.6g}, max {values.max():.6g}" if array.size else ""
        )
        print(f"{name}: {array.dtype}{list(array.shape)} {facts}")
    return 0


def made_inputs(model: Model, path: Path | None, how: str) -> dict[str, Any]:
    """Arrays for all inputs of `model`: those of the .npz file at `path`, the others filled.

    Raises InputError for a file that cannot be read or names an unknown input.
    """
    given = {} if path is None else read_arrays(path)
    names = [info.name for info in model.inputs]
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise InputError(f"{path} holds `{unknown[0]}`; the model's inputs are {', '.join(names)}")
    rng = np.random.default_rng(0)
    return {
        info.name: given[info.name] if info.name in given else fill(info.shape, info.dtype, how, rng)
        for info in model.inputs
    }


def _write_arrays(path: Path, named: Mapping[str, Any]) -> None:
    try:
        with written_beside(path) as beside, beside.open("wb") as file:
            np.savez(file, **cast("Any", named))
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror}; give a file in a writable folder with room"
        ) from None


_DAMAGED = (
    OSError,
    ValueError,
    EOFError,
    AttributeError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)


def read_arrays(path: Path) -> dict[str, Any]:
    """The arrays of an .npz file by name.

    Raises InputError when it cannot be read.
    """
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise InputError(f"{path} is no .npz file; write one with numpy.savez")
            with np.load(file, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
    except _DAMAGED as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)[:200]
        raise InputError(f"cannot read {path} as .npz: {reason}; write it with numpy.savez") from None
