"""Schedule templates: from a kernel and a config to scheduled TIR.

A template owns the tensor expression of its anchor (so the algorithm and the packing of operands can be
knobs) and the schedule of the whole kernel. `tensor/schedules` holds them, one file each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from tcomp.errors import ScheduleError, UnsupportedError
from tcomp.registry import Registry
from tcomp.relay.types import Array, TensorType
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Space
from tcomp.tvm_api import PrimFunc


@dataclass(frozen=True)
class Packing:
    """How a constant operand is rearranged at compile time: `pack(original)` has type `type`."""

    type: TensorType
    pack: Callable[[Array], Array]


@dataclass(frozen=True)
class Scheduled:
    """A kernel ready for code generation.

    `function`'s parameters are the kernel's inputs (packed where `packing` says so), then `scratch`
    buffers (uninitialised memory that the caller provides), then the outputs.
    """

    function: PrimFunc
    packing: Mapping[int, Packing] = field(default_factory=dict[int, Packing])
    scratch: tuple[TensorType, ...] = ()


class Template(ABC):
    """One way to schedule a kind of kernel on a family of targets.

    `version` changes whenever the same config means another program; records of older versions are then
    stale.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    family: ClassVar[str] = "cpu"
    priority: ClassVar[int] = 0
    """Among the templates that accept a kernel, the highest priority wins."""

    @abstractmethod
    def accepts(self, kernel: Kernel, target: Target) -> bool:
        """Whether this template can schedule `kernel` on `target`."""

    @abstractmethod
    def space(self, kernel: Kernel, target: Target) -> Space:
        """The knobs, with defaults that are good without tuning, and their legality."""

    @abstractmethod
    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        """The scheduled function. `config` is legal in `space`."""

    @property
    def id(self) -> str:
        return f"{self.name}@{self.version}"


TEMPLATES: Registry[Template] = Registry("schedule template", "tcomp.tensor.schedules")


def template_for(kernel: Kernel, target: Target) -> Template:
    """The template with the highest priority that accepts `kernel`.

    Raises UnsupportedError when there is none.
    """
    fitting = [t for t in TEMPLATES.values() if t.family == target.family and t.accepts(kernel, target)]
    if not fitting:
        raise UnsupportedError(f"no schedule template for target `{target.name}` accepts kernel {kernel.key}")
    return max(fitting, key=lambda t: t.priority)


def schedule(kernel: Kernel, target: Target, config: Config | None = None) -> Scheduled:
    """Schedule `kernel` with `config`, or with its template's default.

    Raises ScheduleError when `config` is not legal for the kernel.
    """
    template = template_for(kernel, target)
    space = template.space(kernel, target)
    chosen = dict(space.default if config is None else config)
    try:
        space.check(chosen)
    except ScheduleError as error:
        raise ScheduleError(f"{template.id}: {error}; kernel {kernel.key}") from None
    return template.apply(kernel, target, chosen)
