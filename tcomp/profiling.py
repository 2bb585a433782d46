"""Where the time of a model goes: each step's time beside what the machine could do at best."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tcomp.codegen.machine import Machine
from tcomp.plan.program import PlannedKernel, Program, Run
from tcomp.runtime import Model
from tcomp.target.target import Target
from tcomp.tensor.groups import ways_to_sum
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tensor.selection import template_for

ConfigOf = Callable[[Kernel], "Config | None"]


@dataclass(frozen=True)
class StepFacts:
    """What is known about a step before it runs.

    `flops` and `nbytes` count its operations and the bytes of its operands and results once; `floor` is the
    seconds that these take on the machine's roofline. `config` has the knobs that differ from the default.
    """

    flops: int
    nbytes: int
    floor: float
    template: str
    config: Mapping[str, int | str | bool]


@dataclass(frozen=True)
class StepProfile:
    """The median time of one step, in seconds; `facts` is None where nothing but its label is known."""

    label: str
    seconds: float
    facts: StepFacts | None = None

    @property
    def roofline(self) -> float | None:
        """The fraction of the machine's best that the step reaches."""
        return None if self.facts is None else self.facts.floor / self.seconds

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json`."""
        known = {} if self.facts is None else {**asdict(self.facts), "roofline": self.roofline}
        return {"label": self.label, "seconds": self.seconds, **known}


def step_facts(
    program: Program, target: Target, config_of: ConfigOf, machine: Machine
) -> list[StepFacts | None]:
    """Facts of each step of `program`; None for copies."""
    kernels = [_facts(p, program, target, config_of(p.kernel), machine) for p in program.kernels]
    return [kernels[step.kernel] if isinstance(step, Run) else None for step in program.steps]


def profile(
    model: Model, inputs: Mapping[str, Any], rounds: int, facts: Sequence[StepFacts | None] | None = None
) -> tuple[list[StepProfile], float]:
    """The median times of all steps, and of whole runs without a clock between steps, in turns."""
    whole: list[float] = []
    rows: list[list[float]] = []
    labels: list[str] = []
    for _ in range(rounds):
        begin = time.perf_counter()
        model(**inputs)
        whole.append(time.perf_counter() - begin)
        steps = model.profile(number=1, **inputs)
        rows.append([s.seconds for s in steps])
        labels = [s.label for s in steps]
    medians = [statistics.median(column) for column in zip(*rows, strict=True)]
    known = facts if facts is not None else [None] * len(labels)
    profiles = [StepProfile(*entry) for entry in zip(labels, medians, known, strict=True)]
    return profiles, statistics.median(whole)


def table(steps: Sequence[StepProfile], whole: float) -> str:
    """Steps by time, for people: time, share, speed, roofline, template with tuned knobs, label."""
    total = sum(s.seconds for s in steps)
    lines = [f"{'us':>10} {'share':>6} {'GFLOP/s':>8} {'GB/s':>6} {'roof':>5}  step"]
    for step in sorted(steps, key=lambda s: -s.seconds):
        lines.append(
            f"{step.seconds * 1e6:10.1f} {step.seconds / total:6.1%} {_speeds(step)}  {step.label}"
            f"{_schedule(step)}"
        )
    lines.append(f"{total * 1e6:10.1f} us in {len(steps)} steps; {whole * 1e6:.1f} us a run")
    floors = [s.facts.floor for s in steps if s.facts is not None]
    if floors:
        lines.append(f"{sum(floors) * 1e6:10.1f} us at the roofline: {sum(floors) / total:.1%}")
    return "\n".join(lines)


def _facts(
    planned: PlannedKernel, program: Program, target: Target, config: Config | None, machine: Machine
) -> StepFacts:
    kernel = planned.kernel
    template = template_for(kernel, target)
    default = template.space(kernel, target).default
    changed = {k: v for k, v in (config or {}).items() if default.get(k) != v}
    values = kernel.body.inputs
    packed = {i: p.type for i, p in planned.scheduled.packing.items()}
    weights = sum(packed.get(i, values[i].type).nbytes for i in kernel.constant_inputs)
    tensors = kernel.nbytes - sum(values[i].type.nbytes for i in kernel.constant_inputs)
    moving = machine.move(tensors) + machine.stream(weights, program.weights_bytes)
    floor = max(kernel.flops / (machine.flops * products_rate(kernel, target)), moving)
    used = template.id_of(default if config is None else config)
    return StepFacts(kernel.flops, tensors + weights, floor, used, changed)


def products_rate(kernel: Kernel, target: Target) -> int:
    """Products of a kernel's factors that a core starts in the time of one of float32."""
    anchor = kernel.anchor
    if anchor is None or not anchor.inputs:
        return 1
    factors = anchor.attrs.get("multiply_as") or anchor.inputs[0].dtype
    return max((sums.rate(target) for sums in ways_to_sum(target, str(factors))), default=1)


def _speeds(step: StepProfile) -> str:
    if step.facts is None:
        return " " * 21
    gflops, gbytes = (n / step.seconds * 1e-9 for n in (step.facts.flops, step.facts.nbytes))
    return f"{gflops:8.1f} {gbytes:6.1f} {step.roofline:5.0%}"


def _schedule(step: StepProfile) -> str:
    if step.facts is None:
        return ""
    knobs = " ".join(f"{k}={v}" for k, v in step.facts.config.items())
    return f"  [{step.facts.template} {knobs or 'default'}]"
