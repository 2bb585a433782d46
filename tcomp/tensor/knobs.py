"""Knobs and spaces: what a schedule template lets the tuner choose.

A search strategy sees only this protocol - default, random, neighbours, encode, cardinality - and never
the kinds of knobs behind it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import log2, prod
from typing import Protocol, Union

from tcomp.errors import ScheduleError

KnobValue = Union[bool, int, str]
Config = Mapping[str, KnobValue]
"""Values by knob name: the whole of what a record stores about a schedule."""


class Knob(Protocol):
    """One named choice."""

    @property
    def name(self) -> str: ...
    @property
    def default(self) -> KnobValue: ...
    @property
    def values(self) -> tuple[KnobValue, ...]: ...
    def random(self, rng: random.Random) -> KnobValue: ...
    def neighbours(self, value: KnobValue) -> tuple[KnobValue, ...]: ...
    def encode(self, value: KnobValue) -> tuple[float, ...]: ...


@dataclass(frozen=True)
class Ordered:
    """A number out of an ascending list; neighbours are the next smaller and larger ones."""

    name: str
    values: tuple[int, ...]
    default: int

    def random(self, rng: random.Random) -> KnobValue:
        return rng.choice(self.values)

    def neighbours(self, value: KnobValue) -> tuple[KnobValue, ...]:
        at = self.values.index(int(value))
        return tuple(self.values[i] for i in (at - 1, at + 1) if 0 <= i < len(self.values))

    def encode(self, value: KnobValue) -> tuple[float, ...]:
        return (log2(1 + abs(int(value))),)


@dataclass(frozen=True)
class Choice:
    """One of a few unordered alternatives (an algorithm, a loop order); all others are neighbours."""

    name: str
    values: tuple[KnobValue, ...]
    default: KnobValue

    def random(self, rng: random.Random) -> KnobValue:
        return rng.choice(self.values)

    def neighbours(self, value: KnobValue) -> tuple[KnobValue, ...]:
        return tuple(v for v in self.values if v != value)

    def encode(self, value: KnobValue) -> tuple[float, ...]:
        return tuple(float(v == value) for v in self.values)


Legal = Callable[[Config], "str | None"]


def _always(config: Config) -> str | None:
    return None


@dataclass(frozen=True)
class Space:
    """All configs of a kernel under one template: a product of knobs, cut down by `legal`.

    `legal` answers None, or the reason why a config cannot be scheduled.
    """

    knobs: tuple[Knob, ...]
    legal: Legal = _always

    @property
    def default(self) -> dict[str, KnobValue]:
        return {k.name: k.default for k in self.knobs}

    @property
    def cardinality(self) -> int:
        """Number of combinations before `legal` cuts some away."""
        return prod(len(k.values) for k in self.knobs)

    def check(self, config: Config) -> None:
        """Raise ScheduleError when `config` has other knobs, unknown values or is not legal."""
        names = {k.name for k in self.knobs}
        if set(config) != names:
            odd = sorted(set(config) ^ names)[0]
            raise ScheduleError(f"knob `{odd}` is {'unknown' if odd in config else 'missing'}")
        for knob in self.knobs:
            if config[knob.name] not in knob.values:
                raise ScheduleError(
                    f"knob `{knob.name}` is {config[knob.name]}; allowed: {', '.join(map(str, knob.values))}"
                )
        reason = self.legal(config)
        if reason is not None:
            raise ScheduleError(reason)

    def random(self, rng: random.Random, attempts: int = 1000) -> dict[str, KnobValue]:
        """A random legal config."""
        for _ in range(attempts):
            config = {k.name: k.random(rng) for k in self.knobs}
            if self.legal(config) is None:
                return config
        return self.default

    def neighbours(self, config: Config) -> Iterator[dict[str, KnobValue]]:
        """Legal configs that differ from `config` in one step of one knob."""
        for knob in self.knobs:
            for value in knob.neighbours(config[knob.name]):
                near = {**config, knob.name: value}
                if self.legal(near) is None:
                    yield near

    def encode(self, config: Config) -> tuple[float, ...]:
        return tuple(x for k in self.knobs for x in k.encode(config[k.name]))

    def __iter__(self) -> Iterator[dict[str, KnobValue]]:
        """Every legal config."""
        for values in product(*(k.values for k in self.knobs)):
            config = {k.name: v for k, v in zip(self.knobs, values, strict=True)}
            if self.legal(config) is None:
                yield config
