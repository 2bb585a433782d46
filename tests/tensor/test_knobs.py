"""Spaces: knobs that came later leave the configs that were written before as they were."""

from __future__ import annotations

import random

import pytest

from tcomp.errors import ScheduleError
from tcomp.tensor.knobs import (
    Alternatives,
    Choice,
    Config,
    Ordered,
    Space,
)


def space(default: int) -> Space:
    """`tile`, and `split` which came later: 1 means what was done without it."""

    def reason(config: Config) -> str | None:
        too_many = int(config["tile"]) * int(config["split"]) > 8
        return "too many registers" if too_many else None

    knobs = (Ordered("tile", (1, 2, 4, 8), 4), Ordered("split", (1, 2, 4), default))
    return Space(knobs, reason, {"split": 1})


def test_old_configs_stay_legal_and_the_same() -> None:
    assert space(1).default == {"tile": 4}
    space(2).check({"tile": 8})
    with pytest.raises(ScheduleError, match="too many registers"):
        space(2).check({"tile": 8, "split": 2})
    with pytest.raises(ScheduleError, match="`tile` is missing"):
        space(2).check({"split": 2})


def test_a_new_default_is_written() -> None:
    assert space(2).default == {"tile": 4, "split": 2}


def test_every_config_is_written_one_way() -> None:
    configs = list(space(1))
    assert len(configs) == 9
    assert all(config.get("split") != 1 for config in configs)
    for seed in range(20):
        assert space(1).random(random.Random(seed)) in configs
    near = list(space(1).neighbours({"tile": 4}))
    assert near == [{"tile": 2}, {"tile": 8}, {"tile": 4, "split": 2}]
    assert {"tile": 4} in space(1).neighbours({"tile": 4, "split": 2})


def test_children_have_knobs_of_both_parents() -> None:
    rng = random.Random(0)
    children = [space(1).cross({"tile": 4, "split": 2}, {"tile": 2}, rng) for _ in range(40)]
    assert all(child in list(space(1)) for child in children)
    assert {"tile": 2, "split": 2} in children
    assert {"tile": 4} in children
    illegal = [space(1).cross({"tile": 8}, {"tile": 2, "split": 4}, rng) for _ in range(40)]
    assert {"tile": 8, "split": 4} not in illegal


def test_encoding_has_the_knob_that_a_config_leaves_out() -> None:
    assert space(1).encode({"tile": 4}) == space(1).encode({"tile": 4, "split": 1})
    assert space(1).encode({"tile": 4}) != space(1).encode({"tile": 4, "split": 2})


def test_algorithms_may_have_such_knobs() -> None:
    other = Space((Choice("order", ("rows", "columns"), "rows"),))
    union = Alternatives.of({"first": space(1), "second": other}, "first")
    assert union.default == {"tile": 4}
    assert union.complete({"tile": 4}) == {"tile": 4, "split": 1}
    rows = {"algorithm": "second", "order": "rows"}
    assert union.complete(rows) == rows
    union.check({"tile": 4, "split": 2})
    assert union.legal({"tile": 8, "split": 2}) is not None
