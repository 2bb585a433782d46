"""Train the cost model that ships with tcomp from the tables of trials that ship beside it.

    python scripts/train_cost_model.py                     writes tcomp/tuner/pretrained.ubj
    python scripts/train_cost_model.py --cross-validate    ranks each task by a model of the others

The same tables and the same version of xgboost give the same file.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from tcomp.tuner import cost_model
from tcomp.tuner.table import Row, Table, read_tables

ROOT = Path(__file__).parents[1]
TABLES = ROOT / "tuning_logs" / "tables"
MODEL = ROOT / "tcomp" / "tuner" / cost_model.PRETRAINED
ROUNDS = 90


def load(folder: Path = TABLES) -> list[Table]:
    """All tables of a folder, in the order of the files' names."""
    return [table for file in sorted(folder.glob("*.jsonl.gz")) for table in read_tables(file)]


def train(tables: Sequence[Table]) -> Any:
    """A booster that ranks the configs of every table."""
    every = [(t, list(t.rows.values())) for t in tables]
    groups = [cost_model.Group(features(t, rows), [r.seconds for r in rows]) for t, rows in every]
    return cost_model.train(groups, cost_model.REGRESSION, ROUNDS)


def features(table: Table, rows: Sequence[Row]) -> list[tuple[float, ...]]:
    """What the model sees of `rows`."""
    default = table.row(table.task.space.default).features
    return [cost_model.relative_features(r.features, default, table.task.target) for r in rows]


def regret(booster: Any, table: Table, count: int = 8) -> float:
    """How much slower than the best config the best of the `count` best-ranked ones is, as a factor."""
    rows = [row for row in table.rows.values() if isfinite(row.seconds)]
    scores = cost_model.predict(booster, features(table, rows))
    ranked = sorted(range(len(rows)), key=lambda i: -scores[i])
    return min(rows[i].seconds for i in ranked[:count]) / table.fastest


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", type=Path, default=TABLES, help="folder of .jsonl.gz files")
    parser.add_argument("--cross-validate", action="store_true")
    parser.add_argument("-o", "--output", type=Path, default=MODEL)
    arguments = parser.parse_args()
    tables = load(arguments.tables)
    if arguments.cross_validate:
        for table in tables:
            found = regret(train([t for t in tables if t is not table]), table)
            lead = table.default / table.fastest
            print(
                f"{table.task.label} ({len(table.rows)} configs): best of 8 {found:.3f}x, default {lead:.3f}x"
            )
        return
    train(tables).save_model(arguments.output)
    print(f"{arguments.output}: {arguments.output.stat().st_size} bytes from {len(tables)} tasks")


if __name__ == "__main__":
    main()
