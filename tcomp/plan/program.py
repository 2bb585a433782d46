"""What a planned model is: steps in order, every buffer at a fixed place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, Union

from tcomp.relay.graph import Constant, Graph
from tcomp.relay.types import TensorType
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.template import Packing, Scheduled

ALIGNMENT = 64
"""Every buffer in the arena and every constant starts at a multiple of this many bytes; a part of a
concatenation starts where the part before it ends."""

Space = Literal["arena", "weights", "packed", "sources", "input", "output"]


def aligned(nbytes: int) -> int:
    """`nbytes` rounded up to the alignment."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Place:
    """Where a tensor is: `offset` bytes into the arena, the weights, what a GPU packs, what it packs from,
    or the model input or output `index`."""

    space: Space
    offset: int = 0
    index: int = 0

    def __add__(self, nbytes: int) -> Place:
        return replace(self, offset=self.offset + nbytes)

    def __str__(self) -> str:
        if self.space in ("input", "output"):
            return f"{self.space}[{self.index}]" + (f"+{self.offset}" if self.offset else "")
        return f"{self.space}+{self.offset}"


@dataclass(frozen=True)
class Tensor:
    """A named model input or output."""

    name: str
    type: TensorType


@dataclass(frozen=True)
class Run:
    """Call kernel number `kernel` with its parameters - inputs, scratch, outputs - at these places."""

    kernel: int
    arguments: tuple[Place, ...]
    name: str = ""


@dataclass(frozen=True)
class Copy:
    """Copy bytes: an output that no kernel writes, or a part of a concatenation."""

    source: Place
    destination: Place
    nbytes: int
    name: str = ""


Step = Union[Run, Copy]


@dataclass(frozen=True)
class Turn:
    """When a GPU does a step: after those before it in its `stream`, and after steps `waits` of others."""

    stream: int = 0
    waits: tuple[int, ...] = ()

    def __str__(self) -> str:
        waits = f" after {', '.join(map(str, self.waits))}" if self.waits else ""
        return f"[stream {self.stream}{waits}] "


@dataclass(frozen=True)
class PlannedKernel:
    """A kernel that one or more steps call."""

    kernel: Kernel
    scheduled: Scheduled


@dataclass(frozen=True)
class PlannedConstant:
    """A constant in the weights blob, rearranged by `packing` when the kernel wants it so."""

    constant: Constant
    packing: Packing | None
    offset: int

    @property
    def nbytes(self) -> int:
        return (self.constant.type if self.packing is None else self.packing.type).nbytes


@dataclass(frozen=True)
class DevicePacked:
    """A constant that a GPU packs at `place` when a context is created: `function` of what is at `operands`,
    the constant and then the function's own constants."""

    function: Graph
    operands: tuple[Place, ...]
    place: Place


@dataclass(frozen=True)
class Program:
    """A model ready for code generation.

    `live_bytes` is the largest sum of tensors alive at one step in this order: no arena can be smaller.
    `turns` are those of the steps, all in one stream but on GPUs. Those pack `packed`, in `packed_bytes` of
    memory of its own, before the first run; the last `source_bytes` of the weights are read for that alone.
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    kernels: tuple[PlannedKernel, ...]
    steps: tuple[Step, ...]
    constants: tuple[PlannedConstant, ...]
    arena_bytes: int
    live_bytes: int
    weights_bytes: int
    turns: tuple[Turn, ...] = ()
    packed: tuple[DevicePacked, ...] = ()
    packed_bytes: int = 0
    source_bytes: int = 0

    @property
    def streams(self) -> int:
        """How many streams the steps are in."""
        return max((turn.stream for turn in self.turns), default=0) + 1

    def label(self, step: Step) -> str:
        """How profiles and messages name `step`."""
        label = self.kernels[step.kernel].kernel.label if isinstance(step, Run) else "copy"
        return f"{label} ({step.name})" if step.name else label

    def __str__(self) -> str:
        lines = [
            f"program {self.name}: {len(self.steps)} steps, {len(self.kernels)} kernels, "
            f"arena {self.arena_bytes} bytes (live {self.live_bytes}), weights {self.weights_bytes} bytes"
            + (f", of which the GPU makes {self.packed_bytes} bytes" if self.packed else "")
        ]
        lines += [f"  input[{i}] {t.name}: {t.type}" for i, t in enumerate(self.inputs)]
        lines += [f"  output[{i}] {t.name}: {t.type}" for i, t in enumerate(self.outputs)]
        turns = map(str, self.turns) if self.streams > 1 else [""] * len(self.steps)
        numbered = enumerate(zip(self.steps, turns, strict=True))
        lines += [f"  {number}: {turn}{self._text(step)}" for number, (step, turn) in numbered]
        return "\n".join(lines)

    def _text(self, step: Step) -> str:
        if isinstance(step, Copy):
            return f"copy {step.nbytes} bytes {step.source} -> {step.destination}"
        outputs = len(self.kernels[step.kernel].kernel.body.outputs)
        read = ", ".join(map(str, step.arguments[:-outputs]))
        written = ", ".join(map(str, step.arguments[-outputs:]))
        return f"k{step.kernel} {self.label(step)}({read}) -> {written}"


ScheduledKernels = Mapping[str, Scheduled]
"""Scheduled kernels by `Kernel.key`."""
