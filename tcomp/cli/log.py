"""Look at tuning logs, merge them, make them small, check them.

show   every record, one a line           best   the best record of each task
stats  counts by task and status          check  unreadable lines; exit status 1 when there are any
merge  several logs into one (-o)         prune  keep the best configs of each task (-o, or in place)
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tcomp.errors import UsageError
from tcomp.tuner.lookup import best_record
from tcomp.tuner.records import LogContents, Record, distinct, read_log, write_log

ACTIONS = ("show", "best", "stats", "merge", "check", "prune")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=ACTIONS, help="see above")
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path, help="a tuning log")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="where merge and prune write")
    parser.add_argument("--keep", type=int, default=1, help="configs a task that prune keeps (default 1)")
    parser.add_argument("--json", action="store_true", help="show, best: the records' own lines")


def run(arguments: argparse.Namespace) -> int:
    logs = [read_log(path) for path in arguments.files]
    problems = [p for log in logs for p in log.problems]
    records = list(distinct(r for log in logs for r in log.records))
    for problem in problems:
        print(f"skipped {problem}", file=sys.stderr)
    action = arguments.action
    if action == "check":
        return _check(logs)
    if action == "stats":
        _stats(records)
    elif action == "merge":
        _merge(records, arguments.output)
    elif action == "prune":
        _prune(records, arguments)
    else:
        _show(records if action == "show" else best_of_each(records), arguments.json)
    return 0


def by_task(records: Iterable[Record]) -> dict[tuple[str, str, int, str, bool], list[Record]]:
    """Records grouped by task, instruction set, threads and template version, simulated ones apart."""
    groups: dict[tuple[str, str, int, str, bool], list[Record]] = {}
    for record in records:
        key = (record.task, record.isa, record.threads, record.template, record.simulated)
        groups.setdefault(key, []).append(record)
    return groups


def best_of_each(records: Iterable[Record]) -> list[Record]:
    """The best successful record of each group that has one; simulated where nothing was measured."""
    groups = by_task(records).items()
    found = {key: best for key, group in groups if (best := best_record(group, _default_config(group)))}
    return [r for key, r in found.items() if not r.simulated or (*key[:-1], False) not in found]


def _default_config(group: Iterable[Record]) -> dict[str, bool | int | str]:
    """The config that the others were compared with: its time is its own baseline."""
    defaults = [dict(r.config) for r in group if r.relative == 1.0]
    return defaults[0] if defaults else {}


def pruned(records: Iterable[Record], keep: int) -> list[Record]:
    """All records of the `keep` best configs of each group, and of its default config."""
    kept: list[Record] = []
    for group in by_task(records).values():
        default = _default_config(group)
        left, wanted = list(group), [r.config_key for r in group if r.relative == 1.0]
        for _ in range(keep):
            best = best_record(left, default)
            if best is None:
                break
            wanted.append(best.config_key)
            left = [r for r in left if r.config_key != best.config_key]
        kept += [r for r in group if r.is_usable and r.config_key in wanted]
    return kept


def _check(logs: Iterable[LogContents]) -> int:
    bad = 0
    for log in logs:
        print(f"{log.path}: {len(log.records)} records, {len(log.problems)} unreadable lines")
        bad += len(log.problems)
    return 1 if bad else 0


def _stats(records: list[Record]) -> None:
    print(f"{len(records)} records, {len(by_task(records))} tasks")
    for title, values in (
        ("status", [r.status for r in records]),
        ("device", [f"{r.device} ({r.isa}, {r.threads} threads)" for r in records]),
        ("time", ["estimated" if r.simulated else "measured" for r in records]),
        ("template", [r.template for r in records]),
    ):
        for value, count in Counter(values).most_common():
            print(f"{title:10} {count:6}  {value}")


def _merge(records: list[Record], output: Path | None) -> None:
    if output is None:
        raise UsageError("merge needs -o FILE")
    print(f"{write_log(output, records)} records in {output}")


def _prune(records: list[Record], arguments: argparse.Namespace) -> None:
    if arguments.output is None and len(arguments.files) > 1:
        raise UsageError("prune of several logs needs -o FILE")
    output = arguments.output or arguments.files[0]
    kept = pruned(records, arguments.keep)
    print(f"{write_log(output, kept)} of {len(records)} records kept in {output}")


def _show(records: Iterable[Record], as_json: bool) -> None:
    for record in records:
        if as_json:
            print(record.to_line())
            continue
        time = f"{record.median * 1e6:10.1f} us" if record.status == "ok" else f"{record.status:>13}"
        relative = "" if record.relative is None else f" {1 / record.relative:5.2f}x"
        kind = "simulated " if record.simulated else ""
        print(f"{time}{relative:7} {kind}{record.op}  {record.template} {json.dumps(dict(record.config))}")
        print(f"{'':20} {record.task}")
