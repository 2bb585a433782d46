"""The learned cost model: XGBoost ranking over the knobs of one task, trained in milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite, log2
from typing import Any

import numpy as np

from tcomp.relay.types import Array
from tcomp.tensor.knobs import Config
from tcomp.tuner.search.strategy import Score
from tcomp.tuner.task import Task

ENOUGH_TRIALS = 12
_ROUNDS = 40
_PARAMETERS = {"objective": "rank:pairwise", "max_depth": 5, "eta": 0.2, "nthread": 1, "verbosity": 0}


@dataclass
class _Trials:
    """Trials of one task as rows; `seconds` are infinite for failures."""

    knobs: list[tuple[float, ...]] = field(default_factory=list[tuple[float, ...]])
    seconds: list[float] = field(default_factory=list[float])
    trained_on: int = 0
    booster: Any = None


class CostModel:
    """Learns from every trial it is told; predicts for one task at a time."""

    def __init__(self, seed: int = 0) -> None:
        self._parameters = {**_PARAMETERS, "seed": seed}
        self._trials: dict[str, _Trials] = {}

    def tell(self, task: Task, config: Config, seconds: float) -> None:
        """`config` of `task` took `seconds`, infinite when it failed."""
        trials = self._trials.setdefault(task.key, _Trials())
        trials.knobs.append(task.space.encode(config))
        trials.seconds.append(seconds)

    def scorer(self, task: Task) -> Score:
        """Predictions for configs of `task`: higher is better, all zero while too little is known."""
        return lambda configs: self._score(task, configs)

    def _score(self, task: Task, configs: Sequence[Config]) -> list[float]:
        trials = self._trials.get(task.key, _Trials())
        if not configs or sum(map(isfinite, trials.seconds)) < ENOUGH_TRIALS:
            return [0.0] * len(configs)
        import xgboost

        library: Any = xgboost
        if trials.trained_on != len(trials.seconds):
            data = library.DMatrix(np.array(trials.knobs, np.float32), label=_relevance(trials.seconds))
            data.set_group([len(trials.seconds)])
            trials.booster = library.train(self._parameters, data, num_boost_round=_ROUNDS)
            trials.trained_on = len(trials.seconds)
        rows = np.array([task.space.encode(c) for c in configs], np.float32)
        return [float(s) for s in trials.booster.predict(library.DMatrix(rows))]


def _relevance(seconds: Sequence[float]) -> Array:
    """Grades 0 to 15 from times: 15 is the fastest, each 1/4 of a doubling costs one, failures get 0."""
    fastest = min(seconds)
    grades = [max(0.0, 15.0 - 4 * log2(s / fastest)) if isfinite(s) else 0.0 for s in seconds]
    return np.round(np.array(grades, dtype=np.float32), 1)
