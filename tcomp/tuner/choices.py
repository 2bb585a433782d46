"""The configs that a library's kernels get: recorded ones where there are any, for one target or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tcomp.relay.graph import Graph
from tcomp.target.target import Target
from tcomp.tensor.common_packing import common_packing
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tensor.template import Packed
from tcomp.tuner.lookup import Lookup, Records
from tcomp.tuner.provenance import device_name
from tcomp.tuner.task import kernels


@dataclass(frozen=True)
class Choices:
    """Where each kernel's config came from, by kernel label; `configs` by `Kernel.key`.

    `elsewhere` and `simulated` are the devices of records that were made on others, or by estimates.
    """

    configs: Mapping[str, Config]
    tuned: int = 0
    default: int = 0
    missing: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    simulated: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def config_of(self, kernel: Kernel) -> Config | None:
        return self.configs.get(kernel.key)

    def __str__(self) -> str:
        text = (
            f"{self.tuned} kernels tuned, {self.default} with nothing to choose, {len(self.missing)} default"
        )
        for devices, how in (
            (self.elsewhere, "tuned on another device"),
            (self.simulated, "not measured but estimated"),
        ):
            if devices:
                text += f"; {len(devices)} {how}: {', '.join(sorted(set(devices)))}"
        return text


def choose_configs(graph: Graph, target: Target, logs: Sequence[str | Path], threads: int = 1) -> Choices:
    """The best recorded config of every kernel of the optimised `graph`.

    Raises RecordError when a log cannot be read.
    """
    return choose_together(graph, [target], logs, threads)[0]


def choose_together(
    graph: Graph,
    targets: Sequence[Target],
    logs: Sequence[str | Path],
    threads: int = 1,
    own_weights: bool = False,
) -> list[Choices]:
    """For each of `targets` the config of every kernel of `graph`, all packing constants alike.

    A target whose best config packs otherwise than the common way takes its best record that packs so, if
    that was no slower than the default, or else what an estimate finds best. With `own_weights` every target
    keeps what is best for it.
    Raises RecordError when a log cannot be read.
    """
    records, device = Records.load(logs), device_name(targets[0])
    chosen = [_Chosen(device) for _ in targets]
    for kernel, _ in kernels(graph):
        found = [records.lookup(kernel, target, threads, device) for target in targets]
        common = None
        if len(targets) > 1 and kernel.constant_inputs and not own_weights:
            common = common_packing(kernel, targets, [_config(lookup) for lookup in found])
        for index, (target, lookup) in enumerate(zip(targets, found, strict=True)):
            packed = None if common is None else common[index]
            if packed is not None and lookup.record is not None and not packed.holds(lookup.record.config):
                lookup = records.lookup(kernel, target, threads, device, packed.holds)
            chosen[index].add(kernel, lookup, packed)
    problems = tuple(str(p) for p in records.problems)
    return [one.choices(problems) for one in chosen]


def _config(lookup: Lookup) -> Config | None:
    return None if lookup.record is None else lookup.record.config


@dataclass
class _Chosen:
    """What was chosen so far for one target."""

    device: str
    configs: dict[str, Config] = field(default_factory=dict[str, Config])
    tuned: int = 0
    default: int = 0
    missing: list[str] = field(default_factory=list[str])
    elsewhere: list[str] = field(default_factory=list[str])
    simulated: list[str] = field(default_factory=list[str])

    def add(self, kernel: Kernel, found: Lookup, packed: Packed | None) -> None:
        """`packed` are the configs to choose from, None meaning all."""
        record, note = found.record, found.note
        if packed is not None:
            self.configs[kernel.key] = packed.default
            if record is not None and (record.relative or 1.0) > 1.0:
                record, note = None, "records that pack weights as the other variants do are slower"
        if record is not None:
            self.tuned += 1
            self.configs[kernel.key] = record.config
            if record.simulated:
                self.simulated.append(record.device)
            elif record.device != self.device:
                self.elsewhere.append(record.device)
        elif found.state == "default":
            self.default += 1
        else:
            self.missing.append(f"{kernel.label}: {note}")

    def choices(self, problems: tuple[str, ...]) -> Choices:
        missing, elsewhere, simulated = map(tuple, (self.missing, self.elsewhere, self.simulated))
        return Choices(self.configs, self.tuned, self.default, missing, elsewhere, simulated, problems)
