"""The learned cost model: XGBoost ranking, over features of the scheduled TIR and over knobs.

Two models share the work. One across all tasks sees the features of `features.py`, which mean the same in
every template: it ranks a few candidates of a task that has few trials of its own. One a task sees only
the knobs: it scores thousands of candidates a second and takes over once the task has trials enough.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isfinite, log2
from typing import Any

import numpy as np

from tcomp.relay.types import Array
from tcomp.tensor.knobs import Config
from tcomp.tuner.features import NAMES, features_of
from tcomp.tuner.records import config_key
from tcomp.tuner.search.strategy import Score
from tcomp.tuner.task import Task

ENOUGH_OWN_TRIALS = 12
ENOUGH_SHARED_TRIALS = 24
SHARED_TRIALS_PER_TASK = 32
FEATURIZED = 24
"""Candidates of one question that the shared model looks at; scheduling each costs milliseconds."""
_ROUNDS = 40
_PARAMETERS = {"objective": "rank:pairwise", "max_depth": 5, "eta": 0.2, "nthread": 1, "verbosity": 0}

Features = tuple[float, ...]
FeaturesOf = Callable[[Task, Config], Features]
Group = tuple[Sequence[Features], Sequence[float]]
"""Rows of one task and their seconds, infinite for failures; only rows of one group are compared."""


@dataclass
class _Trials:
    """Trials of one task, and the successful ones that the shared model learns from."""

    task: Task
    knobs: list[Features] = field(default_factory=list[Features])
    seconds: list[float] = field(default_factory=list[float])
    shared: list[tuple[Config, float]] = field(default_factory=list[tuple[Config, float]])


class CostModel:
    """Learns from every trial it is told; predicts for one task at a time."""

    def __init__(self, seed: int = 0, features: FeaturesOf = features_of) -> None:
        self._parameters = {**_PARAMETERS, "seed": seed}
        self._features_of = features
        self._features: dict[tuple[str, str], Features] = {}
        self._trials: dict[str, _Trials] = {}
        self._boosters: dict[str, tuple[int, Any]] = {}

    def tell(self, task: Task, config: Config, seconds: float) -> None:
        """`config` of `task` took `seconds`, infinite when it failed."""
        trials = self._trials.setdefault(task.key, _Trials(task))
        trials.knobs.append(task.space.encode(config))
        trials.seconds.append(seconds)
        if isfinite(seconds) and len(trials.shared) < SHARED_TRIALS_PER_TASK:
            trials.shared.append((config, seconds))

    def scorer(self, task: Task) -> Score:
        """Predictions for configs of `task`: higher is better, equal where too little is known."""
        return lambda configs: self._score(task, configs) if configs else []

    def _score(self, task: Task, configs: Sequence[Config]) -> list[float]:
        own = self._trials.get(task.key)
        if own is not None and sum(map(isfinite, own.seconds)) >= ENOUGH_OWN_TRIALS:
            booster = self._booster(task.key, len(own.seconds), lambda: [(own.knobs, own.seconds)])
            return _predict(booster, [task.space.encode(c) for c in configs])
        others = [t for t in self._trials.values() if len(t.shared) > 1 and t.task.key != task.key]
        known = sum(len(t.shared) for t in others)
        if known < ENOUGH_SHARED_TRIALS:
            return [0.0] * len(configs)
        booster = self._booster("", known, lambda: [self._shared_group(t) for t in others])
        scores = _predict(booster, [self._candidate(task, c) for c in configs[:FEATURIZED]])
        return scores + [min(scores)] * (len(configs) - len(scores))

    def _candidate(self, task: Task, config: Config) -> Features:
        """Features of a config that was not tried; unknown where its template refuses it after all."""
        try:
            return self._featurized(task, config)
        except Exception:  # TVM raises many kinds. A trial of the config would report it.
            return (float("nan"),) * len(NAMES)

    def _shared_group(self, trials: _Trials) -> Group:
        rows = [self._featurized(trials.task, config) for config, _ in trials.shared]
        return rows, [seconds for _, seconds in trials.shared]

    def _featurized(self, task: Task, config: Config) -> Features:
        key = task.key, config_key(config)
        if key not in self._features:
            self._features[key] = self._features_of(task, config)
        return self._features[key]

    def _booster(self, name: str, size: int, groups: Callable[[], list[Group]]) -> Any:
        """The model called `name`, trained again when the number of its rows is not `size`."""
        trained_on, booster = self._boosters.get(name, (0, None))
        if trained_on != size:
            booster = _train(self._parameters, groups())
            self._boosters[name] = size, booster
        return booster


def _train(parameters: dict[str, Any], groups: Sequence[Group]) -> Any:
    import xgboost

    library: Any = xgboost
    rows = np.array([row for rows, _ in groups for row in rows], np.float32)
    data = library.DMatrix(rows, label=np.concatenate([_relevance(seconds) for _, seconds in groups]))
    data.set_group([len(rows) for rows, _ in groups])
    return library.train(parameters, data, num_boost_round=_ROUNDS)


def _predict(booster: Any, rows: Sequence[Features]) -> list[float]:
    return [float(s) for s in booster.inplace_predict(np.array(rows, np.float32))]


def _relevance(seconds: Sequence[float]) -> Array:
    """Grades 0 to 15 from times: 15 is the fastest, each 1/4 of a doubling costs one, failures get 0."""
    fastest = min(seconds)
    grades = [max(0.0, 15.0 - 4 * log2(s / fastest)) if isfinite(s) else 0.0 for s in seconds]
    return np.round(np.array(grades, dtype=np.float32), 1)
