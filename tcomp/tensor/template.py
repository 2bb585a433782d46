"""Schedule templates: from a kernel and a config to scheduled TIR.

A template owns the tensor expression of its anchor (so the packing of operands can be a knob) and the
schedule of the whole kernel. `tensor/schedules` holds them, one file each. Templates of different
algorithms for the same kernel are alternatives, between which the knob `algorithm` of the config chooses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import ClassVar

from tcomp.registry import Registry
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Graph
from tcomp.relay.types import Array, TensorType
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import ALGORITHM, Alternatives, Config, Space
from tcomp.tvm_api import PrimFunc


@dataclass(frozen=True)
class Packing:
    """How a constant operand is rearranged before anything runs: `pack(original)` has type `type`.

    `function` is the same as a graph, of the original, where there is one: a GPU can then do it when the
    library is loaded.
    """

    type: TensorType
    pack: Callable[[Array], Array]
    function: Graph | None = None

    @staticmethod
    def by(function: Graph) -> Packing:
        """The packing that `function`, of one input and one output, is."""
        return Packing(function.outputs[0].type, lambda original: evaluate(function, [original])[0], function)


@dataclass(frozen=True)
class Scheduled:
    """A kernel ready for code generation.

    `function`'s parameters are the kernel's inputs (packed where `packing` says so), then `scratch`
    buffers (uninitialised memory that the caller provides), then the outputs. The output may share the memory
    of any one of the inputs `in_place`, and no other: each of its elements is stored once, after all reads of
    that input at the same index. `flops` are those of its algorithm where they are not the kernel's.
    """

    function: PrimFunc
    packing: Mapping[int, Packing] = field(default_factory=dict[int, Packing])
    scratch: tuple[TensorType, ...] = ()
    in_place: frozenset[int] = frozenset()
    flops: int | None = None


@dataclass(frozen=True)
class Packed:
    """Configs that pack constants in one way: the best of them without tuning, and its estimated cycles."""

    default: Config
    cycles: float
    holds: Callable[[Config], bool]
    """Whether a legal config is one of them."""


Cycles = Callable[[Config], float]
PackedBy = Mapping[Hashable, Packed]
"""By what decides how constants are packed. Targets that have a key in common pack alike by it."""


class Template(ABC):
    """One way to schedule a kind of kernel on a family of targets.

    `version` changes whenever the same config means another program; records of older versions are then
    stale.
    """

    name: str
    version: int = 1
    family: ClassVar[str] = "cpu"
    priority: ClassVar[int] = 0
    """Among the templates that accept a kernel, the highest priority wins."""
    takes_chains: ClassVar[bool] = False
    """Whether it schedules kernels with several anchors, and those alone."""
    alternative_to: ClassVar[str] = ""
    """The template beside which this one is offered as another algorithm, whatever its own priority. Kernels
    that the other does not accept are scheduled by this one alone."""

    @abstractmethod
    def accepts(self, kernel: Kernel, target: Target) -> bool:
        """Whether this template can schedule `kernel` on `target`."""

    @abstractmethod
    def space(self, kernel: Kernel, target: Target) -> Space:
        """The knobs, with defaults that are good without tuning, and their legality."""

    @abstractmethod
    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        """The scheduled function. `config` is legal in `space`, and complete."""

    def cycles(self, kernel: Kernel, target: Target) -> Cycles | None:
        """Estimated cycles of legal and complete configs, by the arithmetic that chooses the default; None
        where there is none."""
        return None

    def estimate(self, kernel: Kernel, target: Target) -> float:
        """Estimated cycles of the default config: the default is that of the least among alternatives."""
        cycles = self.cycles(kernel, target)
        if cycles is None:
            return inf
        space = self.space(kernel, target)
        return cycles(space.complete(space.default))

    def packings(self, kernel: Kernel, target: Target) -> PackedBy:
        """Every way to pack the constants of `kernel`; targets that share a library choose a common one.

        Templates whose knobs leave packing as it is have one.
        """
        return {(): Packed(self.space(kernel, target).default, self.estimate(kernel, target), lambda _: True)}

    @property
    def id(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def algorithms(self) -> Mapping[str, Template]:
        """Templates by value of the knob `algorithm`; none where there is no such choice."""
        return {}

    def id_of(self, config: Config) -> str:
        """The id of the template that schedules `config`."""
        return self.algorithms.get(str(config.get(ALGORITHM)), self).id


class Algorithms(Template):
    """Several templates as one, their names being the values of the knob `algorithm`.

    It goes by the name of the first, whose configs do without that knob.
    """

    def __init__(self, templates: Sequence[Template]) -> None:
        self._templates = {t.name: t for t in templates}
        self.name, self.version = templates[0].name, templates[0].version

    @property
    def algorithms(self) -> Mapping[str, Template]:
        return self._templates

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        return all(t.accepts(kernel, target) for t in self._templates.values())

    def estimate(self, kernel: Kernel, target: Target) -> float:
        return min(t.estimate(kernel, target) for t in self._templates.values())

    def cycles(self, kernel: Kernel, target: Target) -> Cycles | None:
        found = {name: t.cycles(kernel, target) for name, t in self._templates.items()}
        every = {name: cycles for name, cycles in found.items() if cycles is not None}
        if len(every) < len(found):
            return None
        return lambda config: every[str(config.get(ALGORITHM, self.name))](_own(config))

    def space(self, kernel: Kernel, target: Target) -> Alternatives:
        best = min(self._templates.values(), key=lambda t: t.estimate(kernel, target))
        spaces = {name: t.space(kernel, target) for name, t in self._templates.items()}
        return Alternatives.of(spaces, best.name)

    def packings(self, kernel: Kernel, target: Target) -> PackedBy:
        space = self.space(kernel, target)
        return {
            (name, key): Packed(
                space.join(name, packed.default), packed.cycles, _among(space, name, packed.holds)
            )
            for name, template in self._templates.items()
            for key, packed in template.packings(kernel, target).items()
        }

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        return self._templates[str(config.get(ALGORITHM, self.name))].apply(kernel, target, _own(config))


def _own(config: Config) -> Config:
    """`config` without the name of its algorithm."""
    return {name: value for name, value in config.items() if name != ALGORITHM}


def _among(space: Alternatives, algorithm: str, holds: Callable[[Config], bool]) -> Callable[[Config], bool]:
    """`holds` for configs of one algorithm, no others."""

    def holds_of(config: Config) -> bool:
        found, own = space.split(config)
        return found == algorithm and holds(own)

    return holds_of


TEMPLATES: Registry[Template] = Registry("schedule template", "tcomp.tensor.schedules")
