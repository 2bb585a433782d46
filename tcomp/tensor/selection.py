"""Which template schedules a kernel on a target, and what of its configs is legal there."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from tcomp.errors import ScheduleError, UnsupportedError
from tcomp.target.target import Target
from tcomp.tensor.cpu.vectors import IN_NEON, vectors_for
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Space
from tcomp.tensor.reach import check_reach
from tcomp.tensor.template import (
    TEMPLATES,
    Algorithms,
    Cycles,
    PackedBy,
    Scheduled,
    Template,
)


def template_for(kernel: Kernel, target: Target) -> Template:
    """The template with the highest priority that accepts `kernel`, together with its alternatives.

    Raises UnsupportedError when there is none, or a value has more elements than kernels count.
    """
    for value in kernel.body.inputs:
        check_reach(value.type, f"input `{value.name}` of kernel {kernel.label}")
    for node in kernel.body.nodes:
        for value in node.outputs:
            check_reach(value.type, f"what {node.where} makes in kernel {kernel.label}")
    is_chain = len(kernel.anchors) > 1
    candidates = [t for t in TEMPLATES.values() if t.family == target.family and t.takes_chains == is_chain]
    suited = vectors_for(kernel, target)
    fitting = [t for t in candidates if t.accepts(kernel, suited)]
    names = {t.name for t in fitting}
    rivals = [t for t in fitting if names.isdisjoint(_stands_beside(t))]
    if not rivals:
        raise UnsupportedError(f"no schedule template for target `{target.name}` accepts kernel {kernel.key}")
    best = max(rivals, key=lambda t: t.priority)
    chosen = [best, *(t for t in fitting if best.name in _stands_beside(t))]
    if suited is not target:
        chosen = [_InNeon(t, suited) for t in chosen]
    return Algorithms(chosen) if len(chosen) > 1 else chosen[0]


def _stands_beside(template: Template) -> set[str]:
    """The names of the templates that `template` is an alternative to: of one, and of those that this is one
    to."""
    found: set[str] = set()
    while template.alternative_to:
        found.add(template.alternative_to)
        template = TEMPLATES[template.alternative_to]
    return found


def schedule(kernel: Kernel, target: Target, config: Config | None = None) -> Scheduled:
    """Schedule `kernel` with `config`, or with its template's default.

    Raises ScheduleError when `config` is not legal for the kernel.
    """
    template, space = choices_for(kernel, target)
    chosen = dict(space.default if config is None else config)
    try:
        space.check(chosen)
    except ScheduleError as error:
        raise ScheduleError(f"{template.id_of(chosen)}: {error}; kernel {kernel.key}") from None
    return template.apply(kernel, target, space.complete(chosen))


@lru_cache(maxsize=64)
def choices_for(kernel: Kernel, target: Target) -> tuple[Template, Space]:
    """What schedules `kernel`, and its configs: the same for the hundreds that a search looks at.

    Raises UnsupportedError when no template accepts it, or it adds up an operand without elements: loops over
    them would not even begin the sums.
    """
    for value in kernel.body.inputs if kernel.anchor is not None else ():
        if value.type.nbytes == 0:
            raise UnsupportedError(
                f"operand `{value.name}` of kernel {kernel.label} is {value.type}, without elements; pass "
                "`fold-constants` computes what is made of those"
            )
    template = template_for(kernel, target)
    return template, template.space(kernel, target)


class _InNeon(Template):
    """A template whose kernels are written for `target`, a core without its SVE, whatever is asked for."""

    def __init__(self, template: Template, target: Target) -> None:
        self._template, self._target = template, target
        self.name, self.version = template.name, template.version

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        return self._template.accepts(kernel, self._target)

    def space(self, kernel: Kernel, target: Target) -> Space:
        return self._template.space(kernel, self._target)

    def cycles(self, kernel: Kernel, target: Target) -> Cycles | None:
        return self._template.cycles(kernel, self._target)

    def estimate(self, kernel: Kernel, target: Target) -> float:
        return self._template.estimate(kernel, self._target)

    def packings(self, kernel: Kernel, target: Target) -> PackedBy:
        return self._template.packings(kernel, self._target)

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        scheduled = self._template.apply(kernel, self._target, config)
        return replace(scheduled, function=scheduled.function.with_attr(IN_NEON, True))
