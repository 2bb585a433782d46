"""Tuning tasks: the distinct kernels of an optimised graph that have something to choose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from tcomp.relay.graph import Graph
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import ALGORITHM, Config, Space
from tcomp.tensor.selection import choices_for
from tcomp.tensor.template import Cycles

Identity = tuple[str, str]
"""A kernel's key, and the `isa` of a target."""


@dataclass(frozen=True, eq=False)
class Task:
    """One kernel to tune on one target. `weight` is how often the graph runs it.

    `template` is the id of the template that schedules it; `algorithms` has the ids of all by the config's
    knob `algorithm` where there are several. `cycles` is the arithmetic of the templates, if they have one.
    """

    kernel: Kernel
    target: Target
    template: str
    space: Space
    weight: int = 1
    algorithms: Mapping[str, str] = field(default_factory=dict[str, str])
    cycles: Cycles | None = None

    @staticmethod
    def of(kernel: Kernel, target: Target, weight: int = 1) -> Task:
        """The task of `kernel`.

        Raises UnsupportedError when no template accepts it.
        """
        template, space = choices_for(kernel, target)
        ids = {name: t.id for name, t in template.algorithms.items()}
        return Task(kernel, target, template.id, space, weight, ids, template.cycles(kernel, target))

    def template_of(self, config: Config) -> str:
        """The id of the template that schedules `config`."""
        return self.algorithms.get(str(config.get(ALGORITHM)), self.template)

    def estimated(self, configs: Sequence[Config]) -> list[float] | None:
        """Cycles of each of `configs` by the templates' arithmetic, if they have one."""
        cycles = self.cycles
        return None if cycles is None else [cycles(self.space.complete(config)) for config in configs]

    @property
    def identity(self) -> Identity:
        """What tells it from all other tasks: the kernel, and what the code is for."""
        return self.key, self.target.isa

    @property
    def key(self) -> str:
        return self.kernel.key

    @property
    def label(self) -> str:
        return self.kernel.label

    @property
    def flops(self) -> int:
        """Floating-point operations of one run of the kernel."""
        return self.kernel.flops

    @cached_property
    def is_tunable(self) -> bool:
        """Whether there is more than the default to choose."""
        return self.space.cardinality > 1


def kernels(graph: Graph) -> list[tuple[Kernel, int]]:
    """The distinct kernels of an optimised graph in order of first use, with their number of uses."""
    found = [Kernel.of(node) for node in graph.nodes if node.op == "fused"]
    by_key = {kernel.key: kernel for kernel in reversed(found)}
    uses = Counter(kernel.key for kernel in found)
    return [(by_key[key], count) for key, count in uses.items()]


def tasks(graph: Graph, target: Target) -> list[Task]:
    """The tunable tasks of an optimised graph, the heaviest (operations times uses) first."""
    every = [Task.of(kernel, target, count) for kernel, count in kernels(graph)]
    return sorted((t for t in every if t.is_tunable), key=lambda t: -t.flops * t.weight)
