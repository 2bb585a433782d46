"""Check a compiled model against ONNX Runtime or the numpy evaluator.

Exit status 1, with the first wrong node, pass or kernel, when an output is off by more than
`atol + rtol * max|expected|`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from tcomp.api import verify
from tcomp.cli._options import add_logs, add_model, add_precision, add_target, input_shapes
from tcomp.cli.run import read_arrays
from tcomp.verification import Tolerance


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_target(parser)
    add_precision(parser)
    add_logs(parser)
    parser.add_argument(
        "--against",
        choices=("onnxruntime", "reference"),
        default="onnxruntime",
        help="what is right: ONNX Runtime (default) or the numpy evaluator",
    )
    parser.add_argument(
        "-i", "--input", metavar="IN.npz", type=Path, help="inputs by name; others are random"
    )
    parser.add_argument(
        "--rtol",
        type=float,
        help="relative to the output's scale (default 1e-4; with --precision fast or tf32 2e-2)",
    )
    parser.add_argument("--atol", type=float, help="absolute (default 1e-6)")
    parser.add_argument("--seed", type=int, default=0, help="of the random inputs")


def run(arguments: argparse.Namespace) -> int:
    allowed = Tolerance.of(arguments.precision)
    given = {n: v for n in ("rtol", "atol") if (v := getattr(arguments, n)) is not None}
    outcome = verify(
        arguments.model,
        arguments.target,
        arguments.log,
        input_shapes(arguments),
        arguments.against,
        {} if arguments.input is None else read_arrays(arguments.input),
        replace(allowed, **given),
        arguments.seed,
        arguments.precision,
    )
    print(outcome)
    return 0 if outcome.passed else 1
