"""Tables of measured trials: every config of a part of a task's space, with its time and its features.

Where a log is what a user keeps, a table is what the tuner itself is made from: the cost model that ships
is trained on tables, and a table can play the device (`TableMeasurer`), so that search is tested and
compared over many seeds without measuring. Features are stored, not computed again: a table stays true
when the template that made it changes.

A file holds JSON lines, compressed: for each task a line that describes it, then a line for each config,
`[[index of each knob's value], seconds or null, [features]]`.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import inf, isfinite
from pathlib import Path
from typing import Any

from tcomp.errors import RecordError
from tcomp.relay.parser import parse_graph
from tcomp.relay.printer import print_graph
from tcomp.target.target import TARGETS, Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import (
    Alternatives,
    Choice,
    Config,
    KnobValue,
    Ordered,
    Space,
)
from tcomp.tuner.features import names_of
from tcomp.tuner.measure import Job, Outcome, Source
from tcomp.tuner.records import Check, Times, config_key
from tcomp.tuner.runner import Device
from tcomp.tuner.task import Task

_KNOBS: Mapping[str, Any] = {"ordered": Ordered, "choice": Choice}


@dataclass(frozen=True)
class Row:
    """One measured config. `seconds` is infinite where it failed."""

    config: Config
    seconds: float
    features: tuple[float, ...]


@dataclass(frozen=True)
class Table:
    """The measured configs of one task, whose space is cut down to just them. `device` measured them."""

    task: Task
    device: str
    rows: Mapping[str, Row]

    @staticmethod
    def of(task: Task, space: Space, device: str, rows: Sequence[Row]) -> Table:
        """The table of `rows`: every legal config of `space`, which is that of the task with fewer values."""
        by_key = {config_key(row.config): row for row in rows}

        def only_measured(part: Space, whole: Callable[[Config], Config]) -> Space:
            def legal(config: Config) -> str | None:
                return None if config_key(whole(config)) in by_key else "it was not measured"

            return Space(part.knobs, legal)

        if isinstance(space, Alternatives):
            parts = {
                name: only_measured(part, partial(space.join, name)) for name, part in space.spaces.items()
            }
            measured: Space = Alternatives.of(parts, space.preferred)
        else:
            measured = only_measured(space, dict[str, KnobValue])
        return Table(Task(task.kernel, task.target, task.template, measured, task.weight), device, by_key)

    @property
    def fastest(self) -> float:
        """Seconds of the fastest config."""
        return min(row.seconds for row in self.rows.values())

    @property
    def default(self) -> float:
        """Seconds of the default config."""
        return self.row(self.task.space.default).seconds

    def row(self, config: Config) -> Row:
        return self.rows[config_key(config)]


def write_tables(path: Path, tables: Sequence[Table]) -> None:
    """Write `tables`; the same ones give the same bytes."""
    lines = [json.dumps(line, separators=(",", ":")) for table in tables for line in _to_json(table)]
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0))


def read_tables(path: Path) -> list[Table]:
    """The tables of a file.

    Raises RecordError when it cannot be read or holds features of another definition.
    """
    try:
        lines: list[Any] = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    except (OSError, EOFError, ValueError) as error:
        raise RecordError(f"cannot read trial tables {path}: {error}; give a file that tcomp wrote") from None
    tables: list[Table] = []
    while lines:
        head, rows, lines = lines[0], lines[1 : 1 + lines[0]["rows"]], lines[1 + lines[0]["rows"] :]
        tables.append(_from_json(path, head, rows))
    return tables


def _to_json(table: Table) -> Iterator[Any]:
    task, space = table.task, table.task.space
    union = space if isinstance(space, Alternatives) else Alternatives.of({"": space}, "")
    knobs = {name: [_knob_to_json(k) for k in part.knobs] for name, part in union.spaces.items()}
    several = {"algorithms": knobs, "preferred": union.preferred}
    yield {
        "task": task.key,
        "relay": print_graph(task.kernel.body),
        "constants": sorted(task.kernel.constant_inputs),
        "target": task.target.name,
        "template": task.template,
        "weight": task.weight,
        "device": table.device,
        **(several if union is space else {"knobs": knobs[""]}),
        "features": names_of(task.target),
        "rows": len(table.rows),
    }
    for row in table.rows.values():
        algorithm, own = union.split(row.config)
        part = union.spaces[algorithm]
        config = part.complete(own)
        values = [knob.values.index(config[knob.name]) for knob in part.knobs]
        seconds = float(f"{row.seconds:.4g}") if isfinite(row.seconds) else None
        line = [values, seconds, [round(f, 2) for f in row.features]]
        yield [*line, algorithm] if union is space else line


def _knob_to_json(knob: Any) -> dict[str, Any]:
    return {"kind": type(knob).__name__.lower(), **asdict(knob)}


def _from_json(path: Path, head: dict[str, Any], lines: Sequence[Any]) -> Table:
    if tuple(head["features"]) != names_of(TARGETS[head["target"]]):
        raise RecordError(f"{path} has features of another version of tcomp; measure the tables again")
    kernel = Kernel(parse_graph(head["relay"], source=str(path)), frozenset(head["constants"]))
    space = _space_from_json(head)
    union = space if isinstance(space, Alternatives) else Alternatives.of({"": space}, "")
    task = Task(kernel, TARGETS[head["target"]], head["template"], space, head["weight"])
    rows: list[Row] = []
    for line in lines:
        values, seconds, features = line[:3]
        name = line[3] if union is space else next(iter(union.spaces))
        own = {k.name: k.values[int(i)] for k, i in zip(union.spaces[name].knobs, values, strict=True)}
        rows.append(Row(union.join(name, own), inf if seconds is None else seconds, tuple(features)))
    return Table.of(task, space, head["device"], rows)


def _space_from_json(head: Mapping[str, Any]) -> Space:
    if "algorithms" in head:
        spaces = {name: _space_of_knobs(knobs) for name, knobs in head["algorithms"].items()}
        return Alternatives.of(spaces, head["preferred"])
    return _space_of_knobs(head["knobs"])


def _space_of_knobs(knobs: Sequence[Mapping[str, Any]]) -> Space:
    return Space(
        tuple(
            _KNOBS[k["kind"]](name=k["name"], values=tuple(k["values"]), default=k["default"]) for k in knobs
        )
    )


class TableMeasurer:
    """Answers at once from tables; `measured` lists what was asked for."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self._tables = {table.task.key: table for table in tables}
        self.measured: list[Config] = []

    def connect(self, targets: Sequence[Target]) -> Device:
        """See `Measurer.connect`."""
        return Device(", ".join(sorted({table.device for table in self._tables.values()})))

    def run(self, source: Source) -> Iterator[tuple[Job, Outcome]]:
        """See `Measurer.run`."""
        while (job := source()) is not None:
            self.measured.append(job.config)
            yield job, self._outcome(job.task, job.config)

    def race(self, task: Task, configs: Sequence[Config]) -> list[Outcome]:
        """See `Measurer.race`."""
        return [self._outcome(task, c) for c in configs]

    def features(self, task: Task, config: Config) -> tuple[float, ...]:
        """The stored features, in place of `features_of`."""
        return self._tables[task.key].row(config).features

    def _outcome(self, task: Task, config: Config) -> Outcome:
        seconds = self._tables[task.key].row(config).seconds
        if not isfinite(seconds):
            return Outcome(config, "build_error", "failed when the table was measured")
        return Outcome(config, "ok", "", Times(seconds, seconds, 0.0, 10), Check(0.0, 1e-4))
