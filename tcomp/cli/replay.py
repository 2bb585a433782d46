"""Rebuild every kernel of a model from a tuning log, without measuring.

With --strict the exit status is 1 when a task has no record, only records of another template version, or a
record that no longer builds; those tasks are listed.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from tcomp.api import replay
from tcomp.cli._options import add_logs, add_model, add_precision, add_target, add_threads, input_shapes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_target(parser)
    add_precision(parser)
    add_logs(parser, required=True)
    add_threads(parser, "use records that were measured with so many threads")
    parser.add_argument("--strict", action="store_true", help="exit 1 unless every task has a good record")
    parser.add_argument("--json", action="store_true", help="print one task a line")


def run(arguments: argparse.Namespace) -> int:
    report, problems = replay(
        arguments.model,
        arguments.target,
        arguments.log,
        input_shapes(arguments),
        arguments.threads,
        arguments.precision,
    )
    for problem in problems:
        print(f"skipped {problem}", file=sys.stderr)
    if arguments.json:
        for task in report.tasks:
            print(json.dumps(asdict(task)))
    else:
        print(report.summary)
        for task in report.failures:
            print(f"{task.state}: {task.label}: {task.note}\n    {task.key}")
    return 1 if arguments.strict and report.failures else 0
