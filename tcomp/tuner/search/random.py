"""Random search without repetition: the yardstick for every other strategy."""

from __future__ import annotations

from tcomp.tensor.knobs import Config, Space
from tcomp.tuner.search.strategy import STRATEGIES, Choice, Guide, Unseen


class RandomSearch:
    """Uniform legal configs; all of them, shuffled, when the space is small."""

    def __init__(self, space: Space, seed: int, guide: Guide | None = None) -> None:
        self._unseen = Unseen(space, seed)

    def ask(self, count: int) -> list[Choice]:
        return self._unseen.draw(count)

    def tell(self, config: Config, seconds: float) -> None:
        self._unseen.add(config)


STRATEGIES.register("random", RandomSearch)
