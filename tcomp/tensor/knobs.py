"""Knobs and spaces: what a schedule template lets the tuner choose.

A search strategy sees only this protocol - default, random, neighbours, encode, cardinality - and never
the kinds of knobs behind it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, product
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

    `legal` answers None, or the reason why a complete config cannot be scheduled. `added` are knobs that a
    template got after records of it had been written, with the value that means what it did before: configs
    leave them out where they have it, so that those records stay what they were.
    """

    knobs: tuple[Knob, ...]
    legal: Legal = _always
    added: Config = field(default_factory=dict[str, KnobValue])

    def complete(self, config: Config) -> dict[str, KnobValue]:
        """`config` with the values of added knobs that it leaves out."""
        return {**self.added, **config}

    def _written(self, config: Config) -> dict[str, KnobValue]:
        """`config` without added knobs that change nothing."""
        return {name: v for name, v in config.items() if name not in self.added or v != self.added[name]}

    @property
    def default(self) -> dict[str, KnobValue]:
        return self._written({k.name: k.default for k in self.knobs})

    @property
    def cardinality(self) -> int:
        """Number of combinations before `legal` cuts some away."""
        return prod(len(k.values) for k in self.knobs)

    def check(self, config: Config) -> None:
        """Raise ScheduleError when `config` has other knobs, unknown values or is not legal."""
        names, full = {k.name for k in self.knobs}, self.complete(config)
        if set(full) != names:
            odd = sorted(set(full) ^ names)[0]
            raise ScheduleError(f"knob `{odd}` is {'unknown' if odd in config else 'missing'}")
        for knob in self.knobs:
            if full[knob.name] not in knob.values:
                raise ScheduleError(
                    f"knob `{knob.name}` is {full[knob.name]}; allowed: {', '.join(map(str, knob.values))}"
                )
        reason = self.legal(full)
        if reason is not None:
            raise ScheduleError(reason)

    def random(self, rng: random.Random, attempts: int = 1000) -> dict[str, KnobValue]:
        """A random legal config."""
        for _ in range(attempts):
            config = {k.name: k.random(rng) for k in self.knobs}
            if self.legal(config) is None:
                return self._written(config)
        return self.default

    def neighbours(self, config: Config) -> Iterator[dict[str, KnobValue]]:
        """Legal configs that differ from `config` in one step of one knob."""
        full = self.complete(config)
        for knob in self.knobs:
            for value in knob.neighbours(full[knob.name]):
                near = {**full, knob.name: value}
                if self.legal(near) is None:
                    yield self._written(near)

    def cross(self, one: Config, other: Config, rng: random.Random) -> dict[str, KnobValue]:
        """Each knob from either config; `one` itself when that is not legal."""
        first, second = self.complete(one), self.complete(other)
        child = {name: rng.choice((value, second[name])) for name, value in first.items()}
        return self._written(child) if self.legal(child) is None else dict(one)

    def encode(self, config: Config) -> tuple[float, ...]:
        full = self.complete(config)
        return tuple(x for k in self.knobs for x in k.encode(full[k.name]))

    def __iter__(self) -> Iterator[dict[str, KnobValue]]:
        """Every legal config."""
        for values in product(*(k.values for k in self.knobs)):
            config = {k.name: v for k, v in zip(self.knobs, values, strict=True)}
            if self.legal(config) is None:
                yield self._written(config)


ALGORITHM = "algorithm"
"""The knob that says which of several alternatives a config belongs to."""


@dataclass(frozen=True)
class Alternatives(Space):
    """The disjoint union of spaces, one an algorithm: a config has the knobs of its algorithm alone.

    The knob `algorithm` names it. Configs without that knob are of the first one, so that an algorithm
    added later changes no config that was written before. `preferred` is the algorithm of the default.
    """

    spaces: Mapping[str, Space] = field(default_factory=dict[str, Space])
    preferred: str = ""

    @staticmethod
    def of(spaces: Mapping[str, Space], preferred: str) -> Alternatives:
        """The union of `spaces`, by name of their algorithm."""

        def reason(config: Config) -> str | None:
            try:
                union.check(config)
            except ScheduleError as error:
                return str(error)
            return None

        algorithm = Choice(ALGORITHM, tuple(spaces), preferred)
        union = Alternatives((algorithm,), reason, spaces=spaces, preferred=preferred)
        return union

    def split(self, config: Config) -> tuple[str, dict[str, KnobValue]]:
        """The algorithm of `config`, and its own knobs."""
        own = {name: value for name, value in config.items() if name != ALGORITHM}
        return str(config.get(ALGORITHM, next(iter(self.spaces)))), own

    def complete(self, config: Config) -> dict[str, KnobValue]:
        algorithm, own = self.split(config)
        return self.join(algorithm, self.spaces[algorithm].complete(own))

    def join(self, algorithm: str, own: Config) -> dict[str, KnobValue]:
        """The config of `own` knobs of `algorithm`: the inverse of `split`."""
        first = next(iter(self.spaces))
        return dict(own) if algorithm == first else {ALGORITHM: algorithm, **own}

    @property
    def default(self) -> dict[str, KnobValue]:
        return self.join(self.preferred, self.spaces[self.preferred].default)

    @property
    def cardinality(self) -> int:
        return sum(space.cardinality for space in self.spaces.values())

    def check(self, config: Config) -> None:
        algorithm, own = self.split(config)
        if algorithm not in self.spaces:
            raise ScheduleError(f"knob `{ALGORITHM}` is {algorithm}; allowed: {', '.join(self.spaces)}")
        self.spaces[algorithm].check(own)

    def random(self, rng: random.Random, attempts: int = 1000) -> dict[str, KnobValue]:
        algorithm = rng.choice(tuple(self.spaces))
        return self.join(algorithm, self.spaces[algorithm].random(rng, attempts))

    def neighbours(self, config: Config) -> Iterator[dict[str, KnobValue]]:
        """Neighbours within the algorithm, and the defaults of all others."""
        algorithm, own = self.split(config)
        for near in self.spaces[algorithm].neighbours(own):
            yield self.join(algorithm, near)
        for other, space in self.spaces.items():
            if other != algorithm:
                yield self.join(other, space.default)

    def cross(self, one: Config, other: Config, rng: random.Random) -> dict[str, KnobValue]:
        """Algorithms do not mix: `one` itself when `other` has another."""
        (algorithm, own), (rival, others) = self.split(one), self.split(other)
        return self.join(
            algorithm, self.spaces[algorithm].cross(own, others if rival == algorithm else own, rng)
        )

    def encode(self, config: Config) -> tuple[float, ...]:
        """For each algorithm whether it is the config's, and its knobs: zeros where it is not."""
        algorithm, own = self.split(config)
        parts: list[float] = []
        for name, space in self.spaces.items():
            knobs = space.encode(own if name == algorithm else space.default)
            parts += [1.0, *knobs] if name == algorithm else [0.0] * (1 + len(knobs))
        return tuple(parts)

    def __iter__(self) -> Iterator[dict[str, KnobValue]]:
        return chain.from_iterable(
            (self.join(name, own) for own in space) for name, space in self.spaces.items()
        )
