"""Exact minimisation of a sum of small cost tables over discrete variables, by variable elimination.

A factor is a table over a few variables. A variable is eliminated by adding up the tables that mention it and
keeping, for each choice of its neighbours, the least over its own labels; walking back through the kept
choices gives an optimal assignment (Bertele and Brioschi, "Nonserial Dynamic Programming"). Variables go in
the order of the size of the table that they leave, which is small where the graph of factors is like a tree.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, prod
from typing import Union

import numpy as np

from tcomp.relay.types import Array

MOST_ENTRIES = 1 << 16
"""Entries of the largest table that elimination makes; beyond that variables are fixed instead."""


@dataclass(frozen=True)
class Factor:
    """The costs of the labels of some variables: `costs` has one axis for each variable in `scope`.

    `inf` forbids a choice.
    """

    scope: tuple[int, ...]
    costs: Array


@dataclass(frozen=True)
class Solution:
    """A label for every variable, their total cost, and which variables were fixed to keep tables small.

    It is optimal when none were.
    """

    labels: tuple[int, ...]
    cost: float
    fixed: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Step:
    """How a variable's label follows from those of its neighbours, which are decided before it."""

    variable: int
    neighbours: tuple[int, ...]
    best: Union[Array, int]

    def label(self, labels: Mapping[int, int]) -> int:
        if isinstance(self.best, int):
            return self.best
        return int(self.best[tuple(labels[n] for n in self.neighbours)])


def minimize(sizes: Sequence[int], factors: Iterable[Factor], most_entries: int = MOST_ENTRIES) -> Solution:
    """Labels, `sizes[v]` of them for variable `v`, that minimise the sum of `factors`.

    Ties go to the smaller label. Where even the cheapest elimination would need a table of more than
    `most_entries`, the variable with the most neighbours is fixed at the label that costs least when its
    neighbours suit themselves; once all labels are known, each is moved to its best as long as that helps.
    """
    everything = list(factors)
    elimination = _Elimination(sizes, everything)
    steps: list[_Step] = []
    fixed: list[int] = []
    while elimination.remaining:
        variable, entries = elimination.cheapest()
        if entries > most_entries:
            variable = elimination.most_connected()
            fixed.append(variable)
            steps.append(elimination.fix(variable))
        else:
            steps.append(elimination.eliminate(variable))
    labels: dict[int, int] = {}
    for step in reversed(steps):
        labels[step.variable] = step.label(labels)
    if fixed:
        _improve(labels, sizes, everything)
    ordered = tuple(labels[v] for v in range(len(sizes)))
    return Solution(ordered, total(everything, ordered), tuple(sorted(fixed)))


def total(factors: Iterable[Factor], labels: Sequence[int]) -> float:
    """The sum of `factors` at `labels`."""
    return sum(float(f.costs[tuple(labels[v] for v in f.scope)]) for f in factors)


class _Elimination:
    """The tables that are left, and the queue of variables by the size of the table that each would need."""

    def __init__(self, sizes: Sequence[int], factors: Iterable[Factor]) -> None:
        self._sizes = sizes
        self.remaining = set(range(len(sizes)))
        self._factors: list[list[Factor]] = [[] for _ in sizes]
        self._neighbours: list[set[int]] = [set() for _ in sizes]
        for factor in factors:
            self._add(factor)
        self._queue = [(self._entries(v), v) for v in sorted(self.remaining)]
        heapq.heapify(self._queue)

    def cheapest(self) -> tuple[int, int]:
        """The variable whose elimination needs the smallest table, and the entries of that."""
        while True:
            entries, variable = self._queue[0]
            if variable in self.remaining and entries == self._entries(variable):
                return variable, entries
            heapq.heappop(self._queue)

    def most_connected(self) -> int:
        return max(self.remaining, key=lambda v: (len(self._neighbours[v]), -v))

    def eliminate(self, variable: int) -> _Step:
        neighbours = tuple(sorted(self._neighbours[variable]))
        table: Array = np.zeros([self._sizes[v] for v in (*neighbours, variable)])
        for factor in self._factors[variable]:
            table = table + _aligned(factor, (*neighbours, variable))
        self._remove(variable)
        self._add(Factor(neighbours, table.min(axis=-1)))
        self._requeue(neighbours)
        return _Step(variable, neighbours, table.argmin(axis=-1))

    def fix(self, variable: int) -> _Step:
        held = self._factors[variable]
        costs = sum((_least(f, variable) for f in held), start=np.zeros(self._sizes[variable]))
        label = int(np.argmin(costs))
        neighbours = tuple(sorted(self._neighbours[variable]))
        self._remove(variable)
        for factor in held:
            at = factor.scope.index(variable)
            self._add(Factor(factor.scope[:at] + factor.scope[at + 1 :], factor.costs.take(label, axis=at)))
        self._requeue(neighbours)
        return _Step(variable, (), label)

    def _entries(self, variable: int) -> int:
        return prod(self._sizes[v] for v in (variable, *self._neighbours[variable]))

    def _requeue(self, variables: Iterable[int]) -> None:
        for variable in variables:
            heapq.heappush(self._queue, (self._entries(variable), variable))

    def _add(self, factor: Factor) -> None:
        for variable in factor.scope:
            self._factors[variable].append(factor)
            self._neighbours[variable] |= set(factor.scope) - {variable}

    def _remove(self, variable: int) -> None:
        self.remaining.remove(variable)
        for neighbour in self._neighbours[variable]:
            self._factors[neighbour] = [f for f in self._factors[neighbour] if variable not in f.scope]
            self._neighbours[neighbour] = {
                v for f in self._factors[neighbour] for v in f.scope if v != neighbour
            }


def _aligned(factor: Factor, scope: Sequence[int]) -> Array:
    """The costs with one axis for each variable of `scope`, of extent 1 where the factor does not have it."""
    order = sorted(range(len(factor.scope)), key=lambda axis: scope.index(factor.scope[axis]))
    moved = np.transpose(factor.costs, order)
    extents = dict(zip((factor.scope[axis] for axis in order), moved.shape, strict=True))
    return moved.reshape([extents.get(v, 1) for v in scope])


def _least(factor: Factor, variable: int) -> Array:
    """The least cost of each label of `variable`, over the other variables."""
    others = tuple(axis for axis, v in enumerate(factor.scope) if v != variable)
    least: Array = factor.costs.min(axis=others)
    return least


def _improve(labels: dict[int, int], sizes: Sequence[int], factors: Sequence[Factor]) -> None:
    """Move one label after the other to its best until none helps."""
    held: list[list[Factor]] = [[] for _ in sizes]
    for factor in factors:
        for variable in factor.scope:
            held[variable].append(factor)

    def cost(variable: int, label: int) -> float:
        chosen = {**labels, variable: label}
        return sum(float(f.costs[tuple(chosen[v] for v in f.scope)]) for f in held[variable])

    moved = True
    while moved:
        moved = False
        for variable in range(len(sizes)):
            costs = [cost(variable, label) for label in range(sizes[variable])]
            least = min(costs, default=inf)
            if least < costs[labels[variable]]:
                labels[variable] = costs.index(least)
                moved = True
