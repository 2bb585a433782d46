"""Which record to use for a kernel: a read-only store over any number of logs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

from tcomp.errors import RecordError, ScheduleError
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Space
from tcomp.tensor.selection import template_for
from tcomp.tuner.provenance import simulated_device
from tcomp.tuner.records import Problem, Record, config_key, read_log

UNVERIFIED = 1.03
"""A trial that was never raced against the default must have beaten it by this factor to be believed."""

DOUBT = 0.6
"""Twice the standard error of the median of nine rounds, as a part of their interquartile range."""

State = Literal["hit", "default", "stale", "missing"]


@dataclass(frozen=True)
class Lookup:
    """What the records say about one kernel.

    `hit`: `record` has the config to use; `default`: the template leaves nothing to choose; `stale`:
    there are records, but of another template version or with knob values that are no longer legal;
    `missing`: no record of a successful trial. `note` says why, or that the record is from elsewhere.
    """

    state: State
    record: Record | None = None
    note: str = ""


class Records:
    """Records of several logs together; their order does not matter."""

    def __init__(self, records: Iterable[Record], problems: Sequence[Problem] = ()) -> None:
        self.problems = tuple(problems)
        self._by_task: dict[tuple[str, str, int], list[Record]] = defaultdict(list)
        self._count = 0
        for record in records:
            self._by_task[record.task, record.isa, record.threads].append(record)
            self._count += 1

    @staticmethod
    def load(paths: Iterable[Path | str]) -> Records:
        """The records of log files and of folders of `.jsonl` files; skipped lines are in `problems`.

        Raises RecordError when a file cannot be read or holds lines but no record.
        """
        contents = [read_log(file).require_log() for path in paths for file in _files(Path(path))]
        return Records((r for c in contents for r in c.records), [p for c in contents for p in c.problems])

    def __len__(self) -> int:
        return self._count

    def best(
        self, kernel: Kernel, target: Target, threads: int = 1, device: str | None = None
    ) -> Record | None:
        """The record whose config to use, or None. See `lookup` for the reason."""
        return self.lookup(kernel, target, threads, device).record

    def lookup(
        self,
        kernel: Kernel,
        target: Target,
        threads: int = 1,
        device: str | None = None,
        suits: Callable[[Config], bool] = lambda config: True,
    ) -> Lookup:
        """The best record of `kernel` for the target's isa, preferably measured on `device`.

        Only records that `counts` accepts, with a config that `suits`, are looked at. Where nothing was
        measured, estimates for the target's core go before those for others of its isa.
        """
        template = template_for(kernel, target)
        space = template.space(kernel, target)
        if space.cardinality == 1:
            return Lookup("default", note="nothing to choose")
        found = self._by_task.get((kernel.key, target.isa, threads), [])
        if not found:
            return Lookup("missing", note=self._why_missing(kernel, target, threads))
        current = [r for r in found if counts(r, space, template.id_of)]
        if not current:
            versions = ", ".join(sorted({r.template for r in found}))
            default = template.id_of(space.default)
            return Lookup("stale", note=f"records are of {versions}, the template is {default}")
        suitable = [r for r in current if suits(r.config)]
        if all(r.simulated for r in suitable):
            device = simulated_device(target)
        record, elsewhere = best_record(suitable, space.default, device), ""
        if record is None:
            reason = "no trial succeeded" if suitable else "no record of a config that suits"
            return Lookup("missing", note=reason)
        if record.simulated:
            elsewhere = f"not measured but estimated: {record.device}"
        elif device is not None and record.device != device:
            elsewhere = f"measured on {record.device}"
        return Lookup("hit", record, elsewhere)

    def _why_missing(self, kernel: Kernel, target: Target, threads: int) -> str:
        others = sorted({(i, t) for k, i, t in self._by_task if k == kernel.key})
        if not others:
            return "no record"
        found = ", ".join(f"{isa} with {t} thread{'s' * (t != 1)}" for isa, t in others)
        return f"records only for {found}, not for {target.isa} with {threads}"


def best_record(records: Iterable[Record], default: Config, device: str | None = None) -> Record | None:
    """The fastest successful record, of those from `device` if there are any; a simulated one only when
    nothing was measured at all.

    Configs are compared by their time relative to the default's in the same session, so that sessions on
    a busy and on an idle machine compare. Once there were races against the default, only raced configs
    count, by their races alone, and win by more than their spread leaves in doubt; before, a config needs
    a margin of `UNVERIFIED` over the default. Races inside the whole model count more than those alone.
    """
    ok = measured_first(r for r in records if r.is_usable)
    here = [r for r in ok if r.device == device]
    default_key = config_key(default)
    raced = [r for r in here or ok if r.phase != "trial"]
    by_config: dict[str, list[Record]] = defaultdict(list)
    for record in raced or here or ok:
        by_config[record.config_key].append(record)
    ranked = [(_score(group, key == default_key), key) for key, group in by_config.items()]
    if not ranked:
        return None
    _, key = min(ranked)
    order = ("model", "final", "trial")
    return min(by_config[key], key=lambda r: (order.index(r.phase), r.median, r.time))


def _score(group: Sequence[Record], is_default: bool) -> tuple[bool, float]:
    """Lower is better. Records without a baseline come last, by absolute time. What a config was inside the
    whole model counts, where it is known, and not what it was alone."""
    group = [r for r in group if r.phase == "model"] or group
    relative = [r.relative for r in group if r.relative is not None]
    if is_default:
        return False, 1.0
    if not relative:
        return True, median(r.median for r in group)
    return False, median(relative) * (UNVERIFIED if group[0].phase == "trial" else 1.0 + _doubt(group))


def _doubt(races: Sequence[Record]) -> float:
    """How far a race's relative time may be off by chance: twice the standard error of its median."""
    return median(DOUBT * r.seconds.spread for r in races if r.seconds is not None)


def uncertainty(records: Iterable[Record], default: Config, device: str | None = None) -> float | None:
    """The spread of a config that was faster than the default in its races, but not beyond doubt.

    None when a config is published, or none looked faster: then nothing is uncertain.
    """
    raced = [r for r in records if r.phase == "final" and r.seconds is not None and r.device == device]
    best = best_record(raced, default, device)
    if best is None or best.config_key != config_key(default):
        return None
    faster = [r for r in raced if (r.relative or 1.0) * UNVERIFIED < 1.0]
    spreads = [r.seconds.spread for r in faster if r.seconds is not None]
    return max(spreads, default=None)


def measured_first(records: Iterable[Record]) -> list[Record]:
    """The measured ones of `records`, or all when all are simulated: the two kinds never compare."""
    every = list(records)
    return [r for r in every if not r.simulated] or every


def fastest_configs(records: Iterable[Record], count: int) -> list[Config]:
    """The `count` configs that were fastest relative to the default where these records were made."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in measured_first(r for r in records if r.status == "ok"):
        groups[record.config_key].append(record)
    ranked = sorted(groups, key=lambda key: (_score(groups[key], is_default=False), key))
    return [groups[key][0].config for key in ranked[:count]]


def counts(record: Record, space: Space, template_of: Callable[[Config], str]) -> bool:
    """Whether `record` is legal, of a current template, and has the default of a current one for baseline."""
    return (
        record.template == template_of(record.config)
        and (record.baseline_template or record.template) == template_of(space.default)
        and is_legal(space, record.config)
    )


def is_legal(space: Space, config: Config) -> bool:
    """Whether `config` is one of `space`: its knobs, known values, legal together."""
    try:
        space.check(config)
    except ScheduleError:
        return False
    return True


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.rglob("*.jsonl"))
    if not files:
        raise RecordError(f"folder {path} holds no .jsonl file; give a log, or a folder of logs")
    return files
