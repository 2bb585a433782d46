"""The learned cost model: XGBoost, over features of the scheduled TIR and over knobs.

Two models share the work. One across all tasks whose features have the same names (all for CPUs, all for
GPUs) sees how the features of `features.py`, which mean the same in every template, differ from those of the
task's default config: for CPUs it starts from the model that ships
(`pretrained.ubj`, made by `scripts/train_cost_model.py`), learns from the other tasks of the session, and
ranks a few candidates of a task that has few trials of its own. It predicts logarithms of times, which
carries over to new tasks better than a ranking objective. One a task ranks by the knobs alone: it scores
thousands of candidates a second and takes over once the task has trials enough.

Where templates have arithmetic of their own (`Task.cycles`, on GPUs), it ranks before either of them, and
both learn only how times differ from what it says: each begins from its grades.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from math import inf, isfinite, isnan, log2
from typing import Any, NamedTuple

import numpy as np

from tcomp.relay.types import Array
from tcomp.target.target import Target
from tcomp.tensor.knobs import Config
from tcomp.tuner.estimate import estimate
from tcomp.tuner.features import NAMES, features_of, names_of
from tcomp.tuner.gpu_features import Registers
from tcomp.tuner.records import config_key
from tcomp.tuner.task import Identity, Task

ENOUGH_OWN_TRIALS = 12
ENOUGH_SHARED_TRIALS = 24
SHARED_TRIALS_PER_TASK = 32
FEATURIZED = 12
"""Configs of one question that the shared model looks at; scheduling each costs milliseconds."""
HOPELESS = 2.5
"""A candidate is dropped unbuilt when its estimate is so many times that of the fastest config so far."""
PRETRAINED = "pretrained.ubj"
_ROUNDS = 40
_ROUNDS_ON_TOP = 20
"""Trees added to the shipped model for what a session measured."""
_COMMON = {"eta": 0.2, "nthread": 1, "verbosity": 0, "seed": 0}
RANKING = {**_COMMON, "objective": "rank:pairwise", "max_depth": 5}
"""Among configs of one task, by their knobs."""
REGRESSION = {**_COMMON, "objective": "reg:squarederror", "max_depth": 3}
"""Across tasks, by features."""

Features = tuple[float, ...]
FeaturesOf = Callable[[Task, Config], Features]


class Group(NamedTuple):
    """Rows of one task; only those of one group are compared."""

    rows: Sequence[Features]
    seconds: Sequence[float]
    """Infinite for failures."""
    cycles: Sequence[float] | None = None
    """By the arithmetic of the templates, where they have one."""


@dataclass
class _Trials:
    """Trials of one task, and the successful ones that the shared model learns from."""

    task: Task
    configs: list[Config] = field(default_factory=list[Config])
    seconds: list[float] = field(default_factory=list[float])
    shared: list[tuple[Config, float]] = field(default_factory=list[tuple[Config, float]])
    best: tuple[float, Config | None] = (inf, None)

    @property
    def group(self) -> Group:
        """All of them by knobs."""
        return Group(_knobs(self.task, self.configs), self.seconds, self.task.estimated(self.configs))


class CostModel:
    """Learns from every trial it is told; predicts for one task at a time.

    `pretrained` is a booster over `relative_features` of those named `NAMES`, where tasks that have others
    start from nothing, as all do with None. `breathe` is called before everything that takes milliseconds.
    """

    def __init__(
        self,
        seed: int = 0,
        features: FeaturesOf = features_of,
        pretrained: Any | None = None,
        breathe: Callable[[], None] = lambda: None,
    ) -> None:
        self._seed = seed
        self._features_of = features
        self._pretrained = pretrained
        self._breathe = breathe
        self._features: dict[tuple[Identity, str], Features] = {}
        self._registers = Registers()
        self._trials: dict[Identity, _Trials] = {}
        self._boosters: dict[tuple[str, ...], tuple[int, Any]] = {}

    def tell(
        self, task: Task, config: Config, seconds: float, conditions: Mapping[str, str] | None = None
    ) -> None:
        """`config` of `task` took `seconds`, infinite when it failed, under `conditions` as in records."""
        key = task.identity, config_key(config)
        self._registers.tell(key, conditions or {})
        if key in self._features:
            self._registers.learn(key, self._features[key])
        trials = self._trials.setdefault(task.identity, _Trials(task))
        trials.configs.append(config)
        trials.seconds.append(seconds)
        if isfinite(seconds) and len(trials.shared) < SHARED_TRIALS_PER_TASK:
            trials.shared.append((config, seconds))
        if seconds < trials.best[0]:
            trials.best = seconds, config

    def guide(self, task: Task) -> TaskGuide:
        """What the model knows about configs of `task`, now and later."""
        return TaskGuide(self, task)

    def is_promising(self, task: Task, config: Config) -> bool:
        """Whether a config is worth a build, by its estimated time beside that of the best so far."""
        trials = self._trials.get(task.identity)
        if trials is None or trials.best[1] is None:
            return True
        mine, best = (self._estimated(task, c) for c in (config, trials.best[1]))
        return not mine > HOPELESS * best

    def _estimated(self, task: Task, config: Config) -> float:
        """Cycles by the arithmetic of the task's templates, or else by features."""
        cycles = task.estimated([config])
        return estimate(self._known(task, config), task.target) if cycles is None else cycles[0]

    def score(self, task: Task, configs: Sequence[Config]) -> list[float]:
        """Higher is better, equal where too little is known."""
        if not configs:
            return []
        cycles = task.estimated(configs)
        if self.knows(task):
            own = self._trials[task.identity]
            booster = self._booster(
                task.identity, len(own.seconds), lambda: self._train([own.group], RANKING)
            )
            return predict(booster, _knobs(task, configs), cycles)
        booster = self._shared_booster(task)
        if booster is None:
            return [0.0] * len(configs) if cycles is None else _grades(cycles).tolist()
        return predict(booster, [self._relative(task, c) for c in configs], cycles)

    def looks_at_schedules(self, task: Task) -> bool:
        """Whether scores come from scheduled kernels, and are dear."""
        return not self.knows(task) and (task.cycles is None or self._shared_booster(task) is not None)

    def knows(self, task: Task) -> bool:
        """Whether the task has trials enough for a model of its own, by knobs alone."""
        own = self._trials.get(task.identity)
        return own is not None and sum(map(isfinite, own.seconds)) >= ENOUGH_OWN_TRIALS

    def _shared_booster(self, task: Task) -> Any | None:
        """The model across tasks that have the same features: the shipped one, with the session's trials of
        the others on top."""
        names = names_of(task.target)
        start = self._pretrained if names == NAMES else None
        alike = [t for t in self._trials.values() if names_of(t.task.target) == names]
        others = [t for t in alike if len(t.shared) > 1 and t.task.identity != task.identity]
        known = sum(len(t.shared) for t in others)
        if known < ENOUGH_SHARED_TRIALS:
            return start
        rounds = _ROUNDS if start is None else _ROUNDS_ON_TOP

        def trained() -> Any:
            groups = [self._shared_group(t) for t in others]
            return self._train(groups, REGRESSION, rounds, start)

        return self._booster(names, known, trained)

    def _shared_group(self, trials: _Trials) -> Group:
        configs, seconds = zip(*trials.shared, strict=True)
        rows = [self._relative(trials.task, config) for config in configs]
        return Group(rows, seconds, trials.task.estimated(configs))

    def _relative(self, task: Task, config: Config) -> Features:
        default = self._known(task, task.space.default)
        return relative_features(self._known(task, config), default, task.target)

    def _known(self, task: Task, config: Config) -> Features:
        """Features of a config; unknown numbers where its template refuses it after all."""
        key = task.identity, config_key(config)
        if key not in self._features:
            self._breathe()
            try:
                self._features[key] = self._features_of(task, config)
            except Exception:  # TVM raises many kinds. A trial of the config would report it.
                self._features[key] = (float("nan"),) * len(names_of(task.target))
            self._registers.learn(key, self._features[key])
        known, gpu = self._features[key], task.target.gpu
        return known if gpu is None or isnan(known[-1]) else self._registers.complete(key, known, gpu)

    def _train(
        self, groups: list[Group], parameters: dict[str, Any], rounds: int = _ROUNDS, start: Any | None = None
    ) -> Any:
        return train(groups, {**parameters, "seed": self._seed}, rounds, start)

    def _booster(self, name: tuple[str, ...], size: int, trained: Callable[[], Any]) -> Any:
        """The model of a task or of features, of these names, trained again when its rows are not `size`."""
        trained_on, booster = self._boosters.get(name, (0, None))
        if trained_on != size:
            self._breathe()
            booster = trained()
            self._boosters[name] = size, booster
        return booster


@dataclass(frozen=True)
class TaskGuide:
    """A cost model as the `Guide` of one task."""

    model: CostModel
    task: Task

    def score(self, configs: Sequence[Config]) -> Sequence[float]:
        return self.model.score(self.task, configs)

    def is_promising(self, config: Config) -> bool:
        return self.model.is_promising(self.task, config)

    @property
    def most_scored(self) -> int | None:
        return FEATURIZED if self.model.looks_at_schedules(self.task) else None


@lru_cache(maxsize=1)
def shipped_model() -> Any:
    """The booster that ships with tcomp, trained on features named by `NAMES`."""
    import xgboost

    library: Any = xgboost
    booster = library.Booster({"nthread": 1})
    booster.load_model(bytearray(files("tcomp.tuner").joinpath(PRETRAINED).read_bytes()))
    return booster


def relative_features(features: Features, default: Features, target: Target) -> Features:
    """How `features` differ from those of the default config, and the estimate of the time from its."""
    ratio = estimate(features, target) / estimate(default, target)
    return (*(a - b for a, b in zip(features, default, strict=True)), log2(ratio) if ratio > 0 else ratio)


def train(
    groups: Sequence[Group], parameters: dict[str, Any], rounds: int = _ROUNDS, start: Any | None = None
) -> Any:
    """A booster that orders the rows of each group, continuing `start` if there is one."""
    import xgboost

    library: Any = xgboost
    rows = np.array([row for group in groups for row in group.rows], np.float32)
    labels = [_relevance(group.seconds) for group in groups]
    data = library.DMatrix(rows, label=np.concatenate(labels))
    data.set_group([len(group.rows) for group in groups])
    if any(group.cycles is not None for group in groups):
        data.set_base_margin(np.concatenate([_expected(g, of) for g, of in zip(groups, labels, strict=True)]))
    return library.train(parameters, data, num_boost_round=rounds, xgb_model=start)


def predict(booster: Any, rows: Sequence[Features], cycles: Sequence[float] | None = None) -> list[float]:
    """Scores of rows, higher is better."""
    margin = None if cycles is None else _grades(cycles)
    return [float(s) for s in booster.inplace_predict(np.array(rows, np.float32), base_margin=margin)]


def _knobs(task: Task, configs: Sequence[Config]) -> list[Features]:
    return [task.space.encode(config) for config in configs]


def _expected(group: Group, grades: Array) -> Array:
    """From which grades a model learns: those by arithmetic, or the mean where there is none."""
    return np.full_like(grades, grades.mean()) if group.cycles is None else _grades(group.cycles)


def _grades(times: Sequence[float]) -> Array:
    """15 for the shortest, one less for each 1/4 of a doubling."""
    return (15.0 - 4 * np.log2(np.array(times) / min(times))).astype(np.float32)


def _relevance(seconds: Sequence[float]) -> Array:
    """Grades of times down to 0, which failures have, also where all are."""
    if not isfinite(min(seconds)):
        return np.zeros(len(seconds), np.float32)
    return np.round(np.maximum(_grades(seconds), 0.0), 1)
