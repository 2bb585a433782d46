"""Evolutionary search: mutated and crossed configs of the fastest so far, ranked by what guides the search.

A batch has three parts: the best-ranked children, apart from each other; unmeasured neighbours of the fastest
config, so that search ends in a descent; random ones (epsilon-greedy), so that nothing is closed off.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from math import ceil

from tcomp.tensor.knobs import Config, Space
from tcomp.tuner.records import config_key
from tcomp.tuner.search.strategy import STRATEGIES, Choice, Guide, Unseen, apart

PARENTS = 16
CANDIDATES = 96
GENERATIONS = 3
RANDOM_SHARE = 0.1
NEIGHBOUR_SHARE = 0.25
LOOKED_AT = 4
"""Candidates for each place in a batch that are asked whether they are promising."""


class EvolutionarySearch:
    """Keeps the fastest configs as parents; without `guide` it is a plain evolution strategy."""

    def __init__(self, space: Space, seed: int, guide: Guide | None = None) -> None:
        self._space = space
        self._guide = guide
        self._unseen = Unseen(space, seed)
        self._rng = self._unseen.rng
        self._told: list[tuple[float, str, Choice]] = []

    def tell(self, config: Config, seconds: float) -> None:
        self._unseen.add(config)
        if seconds != float("inf"):
            self._told.append((seconds, config_key(config), dict(config)))
            self._told.sort(key=lambda entry: entry[:2])

    def ask(self, count: int) -> list[Choice]:
        near = self._take(self._neighbours(), ceil(NEIGHBOUR_SHARE * count) if count > 1 else 0)
        at_random = sum(self._rng.random() < RANDOM_SHARE for _ in range(count - len(near)))
        chosen = near + self._take(apart(self._evolve()[: 8 * PARENTS]), count - len(near) - at_random)
        return chosen + self._unseen.draw(count - len(chosen))

    def _take(self, ranked: Iterable[Choice], count: int) -> list[Choice]:
        """The first `count` unseen and promising ones, which become seen."""
        looked_at = islice((c for c in ranked if c in self._unseen), LOOKED_AT * count)
        promising = (c for c in looked_at if self._guide is None or self._guide.is_promising(c))
        return [c for c in islice(promising, count) if self._unseen.add(c)]

    def _neighbours(self) -> list[Choice]:
        """Unmeasured configs one step from the fastest."""
        near = self._space.neighbours(self._told[0][2]) if self._told else ()
        return self._rank([c for c in near if c in self._unseen])

    def _evolve(self) -> list[Choice]:
        """Unseen configs after some generations, best-ranked first; after one where scores are dear."""
        parents = [config for _, _, config in self._told[:PARENTS]]
        population: dict[str, Choice] = {}
        ranked: list[Choice] = []
        are_dear = self._guide is not None and self._guide.most_scored is not None
        for _ in range(1 if are_dear else GENERATIONS):
            population |= {config_key(c): c for c in self._children(parents) if c in self._unseen}
            ranked = self._rank(list(population.values()))
            parents = [config for _, _, config in self._told[: PARENTS // 2]] + ranked[: PARENTS // 2]
        return ranked

    def _rank(self, configs: list[Choice]) -> list[Choice]:
        """Best first by the guide; in a random order where it does not distinguish."""
        self._rng.shuffle(configs)
        if self._guide is None:
            return configs
        scores = self._guide.score(configs[: self._guide.most_scored])
        ranked = [configs[i] for i in sorted(range(len(scores)), key=lambda i: -scores[i])]
        return ranked + configs[len(scores) :]

    def _children(self, parents: list[Choice]) -> list[Choice]:
        """Steps of one or two knobs, crossings of two parents, and fresh blood."""
        children = [self._space.random(self._rng) for _ in range(CANDIDATES // (4 if parents else 1))]
        while parents and len(children) < CANDIDATES:
            child = dict(self._rng.choice(parents))
            if self._rng.random() < 0.3:
                child = self._space.cross(child, self._rng.choice(parents), self._rng)
            for _ in range(self._rng.choice((1, 1, 2))):
                near = list(self._space.neighbours(child))
                child = self._rng.choice(near) if near else child
            children.append(child)
        return children


STRATEGIES.register("evolutionary", EvolutionarySearch)
