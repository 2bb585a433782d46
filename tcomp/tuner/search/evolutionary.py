"""Evolutionary search: mutated and crossed configs of the fastest so far, ranked by the cost model.

A part of every batch is drawn at random instead (epsilon-greedy), so that neither a wrong model nor an
early lead closes off the rest of the space.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from tcomp.tensor.knobs import Config, Space
from tcomp.tuner.records import config_key
from tcomp.tuner.search.strategy import STRATEGIES, Choice, Score, Unseen

PARENTS = 16
CANDIDATES = 96
GENERATIONS = 3
RANDOM_SHARE = 0.15


class EvolutionarySearch:
    """Keeps the fastest configs as parents; without `score` it is a plain evolution strategy."""

    def __init__(self, space: Space, seed: int, score: Score | None = None) -> None:
        self._space = space
        self._score = score
        self._unseen = Unseen(space, seed)
        self._rng = self._unseen.rng
        self._told: list[tuple[float, str, Choice]] = []

    def tell(self, config: Config, seconds: float) -> None:
        self._unseen.add(config)
        if seconds != float("inf"):
            self._told.append((seconds, config_key(config), dict(config)))
            self._told.sort(key=lambda entry: entry[:2])

    def ask(self, count: int) -> list[Choice]:
        at_random = (
            max(1, ceil(RANDOM_SHARE * count)) if count > 1 else int(self._rng.random() < RANDOM_SHARE)
        )
        chosen = self._evolve(count - at_random)
        return chosen + self._unseen.draw(count - len(chosen))

    def _evolve(self, count: int) -> list[Choice]:
        """The best-ranked unseen configs after some generations; those chosen become seen."""
        parents = [config for _, _, config in self._told[:PARENTS]]
        population: dict[str, Choice] = {}
        for _ in range(GENERATIONS):
            children = self._children(parents)
            population |= {config_key(c): c for c in children if c in self._unseen}
            if not population:
                return []
            ranked = self._rank(list(population.values()))
            parents = [config for _, _, config in self._told[: PARENTS // 2]] + ranked[: PARENTS // 2]
        return [c for c in self._rank(list(population.values()))[:count] if self._unseen.add(c)]

    def _rank(self, configs: list[Choice]) -> list[Choice]:
        """Best first by the model; in a random order where it does not distinguish."""
        self._rng.shuffle(configs)
        if self._score is None:
            return configs
        scores: Sequence[float] = self._score(configs)
        return [configs[i] for i in sorted(range(len(configs)), key=lambda i: -scores[i])]

    def _children(self, parents: list[Choice]) -> list[Choice]:
        """Steps of one or two knobs, crossings of two parents, and fresh blood."""
        children = [self._space.random(self._rng) for _ in range(CANDIDATES // (4 if parents else 1))]
        while parents and len(children) < CANDIDATES:
            child = dict(self._rng.choice(parents))
            if len(parents) > 1 and self._rng.random() < 0.3:
                child = self._cross(child, self._rng.choice(parents))
            for _ in range(self._rng.choice((1, 1, 2))):
                near = list(self._space.neighbours(child))
                child = self._rng.choice(near) if near else child
            children.append(child)
        return children

    def _cross(self, one: Choice, other: Choice) -> Choice:
        """Each knob from either parent that has it; `one` itself when that is not legal."""
        child = {name: self._rng.choice((one[name], other.get(name, one[name]))) for name in one}
        return child if self._space.legal(child) is None else one


STRATEGIES.register("evolutionary", EvolutionarySearch)
