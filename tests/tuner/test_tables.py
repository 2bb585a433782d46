"""Tables of real measurements play the device and judge search, the shipped cost model and the filter."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from statistics import median

import pytest

from tcomp.errors import RecordError
from tcomp.tensor.knobs import ALGORITHM, Alternatives
from tcomp.tuner.cost_model import HOPELESS, CostModel, shipped_model
from tcomp.tuner.estimate import estimate
from tcomp.tuner.loop import TuneOptions, tune
from tcomp.tuner.records import config_key
from tcomp.tuner.table import Table, TableMeasurer, read_tables, write_tables
from tcomp.tuner.task import Task
from train_cost_model import MODEL, TABLES, load, regret, train

ALL = load()
LARGE = sorted(ALL, key=lambda t: -len(t.rows))[:2]
SEEDS = range(5)


def label(table: Table) -> str:
    return table.task.kernel.label


def reached(table: Table, folder: Path, strategy: str, seed: int, trials: int = 24) -> float:
    """The best time after so many trials, as a multiple of the table's best."""
    device = TableMeasurer([table])
    options = TuneOptions(trials=trials, seed=seed, strategy=strategy)
    model = CostModel(seed, features=device.features)
    tune([table.task], folder / f"{strategy}{seed}.jsonl", options, measurer=device, model=model)
    assert len(device.measured) == trials
    return min(table.row(config).seconds for config in device.measured) / table.fastest


@pytest.mark.parametrize("table", LARGE, ids=label)
def test_evolution_with_a_cost_model_beats_random_on_real_kernels(table: Table, tmp_path: Path) -> None:
    evolved = median(reached(table, tmp_path, "evolutionary", seed) for seed in SEEDS)
    drawn = median(reached(table, tmp_path, "random", seed) for seed in SEEDS)
    assert evolved < drawn
    assert evolved < 1.03


def test_a_replayed_search_repeats_exactly(tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    first, again = (reached(LARGE[0], folder, "evolutionary", 3) for folder in (tmp_path, tmp_path / "again"))
    assert first == again


def test_a_table_of_two_algorithms_has_legal_configs_of_both() -> None:
    tables = [t for t in ALL if isinstance(t.task.space, Alternatives)]
    assert tables
    for table in tables:
        space = Task.of(table.task.kernel, table.task.target).space
        configs = list(table.task.space)
        assert len({c.get(ALGORITHM) for c in configs}) == 2
        assert [config_key(c) for c in configs] == list(table.rows)
        assert all(space.legal(c) is None for c in configs)


@pytest.mark.parametrize("table", ALL, ids=label)
def test_the_filter_keeps_the_fastest_twentieth(table: Table) -> None:
    rows = sorted((r for r in table.rows.values() if isfinite(r.seconds)), key=lambda r: r.seconds)
    best = estimate(rows[0].features, table.task.target)
    fastest = rows[: max(1, len(rows) // 20)]
    dropped = [r for r in fastest if estimate(r.features, table.task.target) > HOPELESS * best]
    assert not dropped


def test_the_filter_saves_builds() -> None:
    dropped = 0
    for table in ALL:
        best = min(table.rows.values(), key=lambda r: r.seconds)
        limit = HOPELESS * estimate(best.features, table.task.target)
        dropped += sum(estimate(r.features, table.task.target) > limit for r in table.rows.values())
    assert dropped > 0.05 * sum(len(t.rows) for t in ALL)


def test_the_shipped_model_is_that_of_the_shipped_tables(tmp_path: Path) -> None:
    again = tmp_path / MODEL.name
    train(ALL).save_model(again)
    assert again.stat().st_size == pytest.approx(MODEL.stat().st_size, rel=0.05)
    assert [regret(shipped_model(), t) for t in ALL] == pytest.approx([regret(train(ALL), t) for t in ALL])


def test_a_model_of_other_tasks_ranks_better_than_the_default() -> None:
    """Leave one out: the best of eight configs, chosen without a trial of the task."""
    chosen = [regret(train([t for t in ALL if t is not table]), table) for table in ALL]
    default = [table.default / table.fastest for table in ALL]
    assert median(chosen) < 0.5 * median(default) + 0.5


def test_tables_read_back_equal_and_foreign_files_are_refused(tmp_path: Path) -> None:
    copy = tmp_path / "copy.jsonl.gz"
    write_tables(copy, ALL)
    again = read_tables(copy)
    assert [t.rows for t in again] == [t.rows for t in ALL]
    assert [t.task.key for t in again] == [t.task.key for t in ALL]
    assert [list(t.task.space) for t in again] == [list(t.task.space) for t in ALL]
    for file in TABLES.glob("*.jsonl.gz"):
        write_tables(copy, read_tables(file))
        assert copy.read_bytes() == file.read_bytes()
    copy.write_bytes(b"\x1f\x8bnot a table")
    with pytest.raises(RecordError, match=r"cannot read trial tables .*copy"):
        read_tables(copy)
