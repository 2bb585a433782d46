"""Tuning records: one measured trial a JSON line, self-contained, order-free, mergeable with `cat`.

A log is only ever appended to, one line and one `write` a trial, so that a process killed at any moment
loses at most the line it was writing. A line that cannot be read is skipped and counted with its number.
The format is described in `docs/log-format.md`.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from statistics import median, quantiles
from types import TracebackType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from tcomp.errors import RecordError
from tcomp.files import written_beside
from tcomp.tensor.knobs import Config

SCHEMA = 1
Status = Literal["ok", "build_error", "run_error", "timeout", "memory", "wrong", "crash", "lost"]
Phase = Literal["trial", "final", "model"]
STATUSES: tuple[str, ...] = get_args(Status)
PHASES: tuple[str, ...] = get_args(Phase)


@dataclass(frozen=True)
class Times:
    """Seconds of one run of a kernel. `spread` is (upper quartile - lower quartile) / median."""

    median: float
    min: float
    spread: float
    runs: int


def times_of(samples: Sequence[float], runs: int) -> Times:
    """What `samples`, from `runs` runs in all, say."""
    middle = median(samples)
    lower, _, upper = quantiles(samples, n=4) if len(samples) > 1 else (middle,) * 3
    return Times(middle, min(samples), (upper - lower) / middle if middle > 0 else 0.0, runs)


@dataclass(frozen=True)
class Check:
    """Largest error against the reference, relative to the output's scale, and what was allowed."""

    max_error: float
    tolerance: float


@dataclass(frozen=True)
class Record:
    """One trial of one config of one kernel.

    - `task`: `Kernel.key`; `op`: its label; `isa`: what the code runs on; `target`, `device`: where it ran.
    - `template`: `name@version`; `config`: values by knob name.
    - `phase`: `trial`; `final` for the interleaved re-measurement of winners against the default; `model` for
      that inside the whole model.
    - `baseline`: seconds of the default config in the same session, None when it did not run.
    - `baseline_template`: the template of that config; empty where it is `template`.
    - `simulated`: no device ran it, times are estimates; `conditions`: what the device was like.
    - `time`: UTC, ISO 8601.
    """

    task: str
    op: str
    target: str
    isa: str
    device: str
    threads: int
    template: str
    config: Config
    status: Status
    reason: str = ""
    phase: Phase = "trial"
    seconds: Times | None = None
    baseline: float | None = None
    baseline_template: str = ""
    check: Check | None = None
    seed: int = 0
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    time: str = ""
    simulated: bool = False
    conditions: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def is_usable(self) -> bool:
        """Whether the config ran and gave right numbers; those of a poor estimate were not looked at."""
        return self.status == "ok" and not (self.simulated and self.check is None)

    @property
    def config_key(self) -> str:
        """The config as canonical text, for equality and sets."""
        return config_key(self.config)

    @property
    def median(self) -> float:
        """Median seconds; infinite when the trial failed."""
        return self.seconds.median if self.seconds is not None else float("inf")

    @property
    def relative(self) -> float | None:
        """Time relative to the default config in the same session; below 1 is faster than it."""
        if self.seconds is None or not self.baseline:
            return None
        return self.seconds.median / self.baseline

    def to_line(self) -> str:
        """The record as one line of JSON with its checksum, no newline."""
        content = {"schema": SCHEMA, **asdict(self)}
        return _dump({**content, "checksum": _checksum(content)})


def config_key(config: Config) -> str:
    """`config` as canonical text."""
    return json.dumps(dict(config), sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True)
class Problem:
    """A line that was skipped. `newer` when a newer tcomp wrote it."""

    path: Path
    line: int
    reason: str
    newer: bool = False

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}"


@dataclass(frozen=True)
class LogContents:
    """What a log file holds: records in file order and the lines that were skipped."""

    path: Path
    records: tuple[Record, ...]
    problems: tuple[Problem, ...]

    def require_log(self) -> LogContents:
        """Raise RecordError when the file holds lines and not one of them is a record."""
        if self.records or not self.problems:
            return self
        first = self.problems[0]
        if first.newer:
            raise RecordError(f"{first}; upgrade tcomp or tune again into another file")
        raise RecordError(f"{first}; no line of {self.path} is a tuning record, is it a tuning log?")


def read_log(path: Path | str) -> LogContents:
    """Read a log; unreadable lines become problems.

    Raises RecordError when the file itself cannot be read.
    """
    path = Path(path)
    records: list[Record] = []
    problems: list[Problem] = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    records.append(parse_line(line))
                except NewerSchema as error:
                    problems.append(Problem(path, number, str(error), newer=True))
                except RecordError as error:
                    problems.append(Problem(path, number, str(error)))
    except OSError as error:
        raise RecordError(f"cannot read log {path}: {error.strerror}; give an existing file") from None
    return LogContents(path, tuple(records), tuple(problems))


class NewerSchema(RecordError):
    """A line written by a newer tcomp."""


def parse_line(line: bytes | str) -> Record:
    """The record on one line.

    Raises RecordError for anything else, NewerSchema when `schema` is above the known one.
    """
    content = _json_object(line)
    if content["schema"] > SCHEMA:
        raise NewerSchema(f"schema {content['schema']} is newer than the {SCHEMA} this tcomp reads")
    if content.pop("checksum", None) != _checksum(content):
        raise RecordError("the checksum does not match (edited or damaged)")
    try:
        return _from_json(content)
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(f"not a complete tuning record: {error!r}") from None


def _json_object(line: bytes | str) -> dict[str, Any]:
    try:
        content: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise RecordError("not a line of JSON (cut off or damaged)") from None
    found = cast("dict[str, Any]", content) if isinstance(content, dict) else {}
    if type(found.get("schema")) is not int:
        raise RecordError("JSON, but not a tuning record (no `schema` number)")
    return found


def _from_json(content: dict[str, Any]) -> Record:
    """Unknown fields are left out; known ones must have their field's type."""
    values = _typed(Record, content)
    for name, kind in (("seconds", Times), ("check", Check)):
        if isinstance(content.get(name), dict):
            values[name] = kind(**_typed(kind, content[name]))
    if values["status"] == "ok" and values.get("seconds") is None:
        raise ValueError("status ok without seconds")
    return Record(**values)


_HINTS = {kind: get_type_hints(kind) for kind in (Record, Times, Check)}


def _typed(kind: type[Record | Times | Check], content: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `content` for the fields of `kind`.

    Raises TypeError naming the first that has another type than its field.
    """
    values = {name: content[name] for name in _HINTS[kind] if name in content}
    for name, value in values.items():
        if not _fits(value, _HINTS[kind][name]):
            raise TypeError(f"{name} is {value!r}")
    return values


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value out of JSON has the type `hint`; objects stand for dataclasses."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if get_origin(hint) is Mapping:
        if not isinstance(value, dict):
            return False
        return all(_fits(v, get_args(hint)[1]) for v in cast("dict[str, Any]", value).values())
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    return isinstance(value, dict) if is_dataclass(hint) else type(value) is hint


def _dump(content: Mapping[str, Any]) -> str:
    return json.dumps(content, separators=(",", ":"), allow_nan=False)


def _checksum(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return f"{zlib.crc32(canonical.encode()):08x}"


class LogWriter:
    """Appends records to a log, each with one `write`, at once.

    A last line that was cut off is ended first, so that it damages no other. Raises RecordError when the
    file cannot be written, naming it.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise RecordError(
                f"cannot write log {self.path}: {error.strerror}; give a file in a writable folder"
            ) from None
        self._line_is_open = self._ends_inside_a_line()

    def _ends_inside_a_line(self) -> bool:
        size = os.fstat(self._file).st_size
        return size > 0 and os.pread(self._file, 1, size - 1) != b"\n"

    def append(self, record: Record) -> None:
        data = record.to_line().encode() + b"\n"
        if self._line_is_open:
            data = b"\n" + data
        try:
            written = os.write(self._file, data)
        except OSError as error:
            raise RecordError(f"cannot write log {self.path}: {error.strerror}") from None
        self._line_is_open = written < len(data)
        if self._line_is_open:
            raise RecordError(
                f"cannot write log {self.path}: only {written} of {len(data)} bytes; disk full?"
            )

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> LogWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def write_log(path: Path | str, records: Iterable[Record]) -> int:
    """Replace `path` by a log of `records` in one step: written beside, then renamed. Returns their number.

    Raises RecordError when it cannot be written; the old file is untouched then.
    """
    path = Path(path)
    count = 0
    try:
        with written_beside(path) as beside, beside.open("w", encoding="utf-8") as file:
            for record in records:
                file.write(record.to_line() + "\n")
                count += 1
    except OSError as error:
        raise RecordError(
            f"cannot write log {path}: {error.strerror}; give a file in a writable folder with room"
        ) from None
    return count


def distinct(records: Iterable[Record]) -> Iterator[Record]:
    """`records` without exact repetitions, as come from concatenating overlapping logs."""
    seen: set[str] = set()
    for record in records:
        line = record.to_line()
        if line not in seen:
            seen.add(line)
            yield record
