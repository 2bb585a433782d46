"""Fewer bits within a tolerance: compile, compare with float32, and take back what hurts most.

The compiled model runs once on given or random inputs, and its outputs are compared with the float32 graph
in the numpy evaluator. While an output is off by more than allowed, or is not finite, the kernels whose
rounding does most to the outputs stay in float32: one at first, then twice as many each time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median

from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Graph
from tcomp.relay.types import Array
from tcomp.rounding import evaluate_rounded, relative_error, worst_kernels
from tcomp.runtime import load
from tcomp.target.host import runs_here
from tcomp.target.target import Target
from tcomp.transform.lower_precision import is_lowered, product_kernels
from tcomp.transform.precision import BY_SUMS, Precision, factor_dtype, lowering, without_bits

TOLERANCE = 2e-2
"""Allowed error of an output relative to its largest magnitude, of types with 8 bits."""
_TOLERANCES = {"float16": 1e-2}


def allowed_error(target: Target, precision: Precision) -> float:
    """What is allowed by default, relative to an output's largest magnitude."""
    return _TOLERANCES.get(factor_dtype(target, precision) or "", TOLERANCE)


@dataclass(frozen=True)
class Lowered:
    """A graph with products in fewer bits, and how far its outputs are from float32.

    `errors` are relative to each output's largest magnitude: of the library where it ran (`ran`), else of the
    graph in numpy (`evaluate_rounded`). None where that would say nothing.
    """

    graph: Graph
    target: Target
    precision: Precision
    products: int
    """Those that were to take fewer bits, and those that could not."""
    kept: tuple[str, ...]
    errors: Mapping[str, float]
    tolerance: float
    ran: bool

    def __str__(self) -> str:
        lowered = sum(map(is_lowered, self.graph.nodes))
        dtype = factor_dtype(self.target, self.precision)
        how = BY_SUMS if dtype is None else f"in {dtype}"
        parts = [without_bits(self.target)] if dtype is None else []
        parts.append(f"{lowered} of {self.products} products {how}")
        if self.kept:
            shown = ", ".join(self.kept[:5]) + (", ..." if len(self.kept) > 5 else "")
            kept = "kept plain" if dtype is None else "kept in float32"
            parts.append(f"{len(self.kept)} kernels {kept} for accuracy ({shown})")
        if not self.errors:
            parts.append(f"accuracy not checked: `{self.target.name}` does not run on this machine")
        else:
            worst = max(self.errors, key=lambda name: self.errors[name])
            parts.append(
                f"error of `{worst}` {self.errors[worst]:.2%} of its scale (allowed {self.tolerance:.2%})"
            )
            if not self.ran:
                parts.append(f"rounded in numpy, as `{self.target.name}` does not run on this machine")
        return f"precision {self.precision}: " + "; ".join(parts)


def lower_within(
    exact: Graph,
    target: Target,
    precision: Precision,
    build: Callable[[Graph], Path],
    inputs: Mapping[str, Array],
    tolerance: float | None = None,
) -> Lowered:
    """The graph `exact`, as it is before lowering, with as many products lowered as `tolerance` allows.

    By default that is `allowed_error`.

    `build` compiles a graph to a library; its last call is for the graph in the result. Where there is
    nothing to lower nothing is compared. When `target` does not run here, errors are estimated in numpy,
    which says nothing of algorithms.
    """

    def lowered(keep: Sequence[str] = ()) -> Graph:
        lower = lowering(target, precision, "|".join(keep))
        return exact if lower is None else lower.run(exact)

    graph = lowered()
    products = len(product_kernels(graph))
    allowed = allowed_error(target, precision) if tolerance is None else tolerance
    runs = runs_here(target)
    if graph is exact or (not runs and factor_dtype(target, precision) is None):
        build(graph)
        return Lowered(graph, target, precision, products, (), {}, allowed, runs)

    def outputs_of(graph: Graph) -> Sequence[Sequence[Array]]:
        if not runs:
            return list(evaluate_rounded(graph, arrays, target))
        with load(build(graph)) as model:
            return [model(*arrays)]

    arrays = list(inputs.values())
    expected = evaluate(exact, arrays)
    ranking = worst_kernels(exact, graph, arrays, target)
    kept: tuple[str, ...] = ()
    while True:
        found = zip(*outputs_of(graph), strict=True)  # of each output in all runs, whose median counts
        errors = {
            name: median(relative_error(a, e) for a in several)
            for name, several, e in zip(exact.output_names, found, expected, strict=True)
        }
        if graph is exact or all(e <= allowed for e in errors.values()):
            if not runs:
                build(graph)
            return Lowered(graph, target, precision, products, kept, errors, allowed, runs)
        more = tuple(islice(ranking, max(1, len(kept))))
        kept = (*kept, *more)
        graph = lowered(kept) if more else exact
