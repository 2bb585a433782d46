"""What the estimated records that ship save: `python scripts/compare_estimates.py cortex-a76 cortex-a55`.

For each model of `tuning_logs/CORE`, the estimates of its tunable kernels, times their uses, with
default configs and with those that records choose, and how many kernels are not left at their defaults.
Needs the models (`python scripts/models.py`); nothing is built or emulated.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models import MODELS, ROOT
from tcomp.api import as_target, load_model, static_kernels
from tcomp.tuner.lookup import Records
from tcomp.tuner.records import config_key
from tcomp.tuner.task import Task, tasks


@dataclass(frozen=True)
class Saved:
    """Estimated seconds of the tunable kernels of a model."""

    model: str
    default: float
    best: float
    changed: int
    kernels: int

    def row(self) -> str:
        milliseconds = f"{self.default * 1e3:.2f} ms | {self.best * 1e3:.2f} ms"
        return (
            f"| {self.model} | {milliseconds} | {self.best / self.default:.3f} "
            f"| {self.changed} of {self.kernels} |"
        )


def saved(model: str, found: Sequence[Task], records: Records) -> Saved:
    """What `records` say of the tasks of a model.

    Raises ValueError for a task that they do not know, with its default config.
    """
    default, best, changed = 0.0, 0.0, 0
    for task in found:
        record = records.best(task.kernel, task.target)
        if record is None or record.baseline is None:
            raise ValueError(f"no estimate of {task.label} of {model}: {task.key}")
        default += task.weight * record.baseline
        best += task.weight * record.median
        changed += record.config_key != config_key(task.space.default)
    return Saved(model, default, best, changed, len(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("cores", metavar="CORE", nargs="+", help="a folder of tuning_logs")
    parser.add_argument("--logs", type=Path, default=ROOT / "tuning_logs", help="instead of tuning_logs")
    arguments = parser.parse_args()
    for core in arguments.cores:
        target = as_target(core)
        print(f"\n| {core} | default | records | ratio | other configs |\n|---|---|---|---|---|")
        for log in sorted((arguments.logs / core).glob("*.jsonl")):
            graph = load_model(str(ROOT / "models" / f"{log.stem}.onnx"), MODELS[log.stem].input_shapes)
            found = tasks(static_kernels(graph, target, "exact"), target)
            print(saved(log.stem, found, Records.load([log])).row(), flush=True)


if __name__ == "__main__":
    main()
