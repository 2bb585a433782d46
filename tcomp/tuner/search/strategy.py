"""What a search strategy is: it is asked for configs and told what came of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from random import Random
from typing import Protocol

from tcomp.registry import Registry
from tcomp.tensor.knobs import Config, KnobValue, Space
from tcomp.tuner.records import config_key

Choice = dict[str, KnobValue]

ENUMERATED = 512
"""Spaces with up to this many combinations are listed instead of sampled."""


class Guide(Protocol):
    """What is known about configs of a task before they are measured."""

    def score(self, configs: Sequence[Config]) -> Sequence[float]:
        """How good they should be, higher is better; comparable within one call."""
        ...

    def is_promising(self, config: Config) -> bool:
        """Whether building it is worth the time."""
        ...

    @property
    def most_scored(self) -> int | None:
        """How many configs are worth a score, which takes milliseconds each; None when it costs nothing."""
        ...


class Strategy(Protocol):
    """Proposes configs of one task. Failed configs are told with infinite seconds."""

    def ask(self, count: int) -> list[Choice]:
        """Up to `count` legal configs that were neither asked for nor told before; none when all were."""
        ...

    def tell(self, config: Config, seconds: float) -> None:
        """`config` took `seconds`; also for configs that the strategy did not ask for."""
        ...


MakeStrategy = Callable[[Space, int, "Guide | None"], Strategy]
"""From a space, a seed and a guide (None for a search without one) to a strategy."""

STRATEGIES: Registry[MakeStrategy] = Registry("search strategy", "tcomp.tuner.search")


class Unseen:
    """The configs of a space that were not proposed or measured yet."""

    def __init__(self, space: Space, seed: int) -> None:
        self.space = space
        self.rng = Random(seed)
        self._seen: set[str] = set()
        self._rest: Iterator[Choice] | None = None
        if space.cardinality <= ENUMERATED:
            every = list(space)
            self.rng.shuffle(every)
            self._rest = iter(every)

    def add(self, config: Config) -> bool:
        """Mark `config` as seen. Returns whether it was new."""
        key = config_key(config)
        if key in self._seen:
            return False
        self._seen.add(key)
        return True

    def __contains__(self, config: Config) -> bool:
        return config_key(config) not in self._seen

    def draw(self, count: int) -> list[Choice]:
        """Up to `count` random unseen configs, now seen."""
        if self._rest is not None:
            return list(islice((c for c in self._rest if self.add(c)), count))
        drawn: list[Choice] = []
        for _ in range(20 * count):
            config = self.space.random(self.rng)
            if self.add(config):
                drawn.append(config)
            if len(drawn) == count:
                break
        return drawn


def apart(configs: Sequence[Choice]) -> list[Choice]:
    """`configs` with those first that differ in two knobs from all before them, then the others."""
    chosen: list[Choice] = []
    near: list[Choice] = []
    for config in configs:
        is_apart = all(len(config.items() - one.items()) > 1 for one in chosen)
        (chosen if is_apart else near).append(config)
    return chosen + near
