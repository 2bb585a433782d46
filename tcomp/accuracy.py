"""Fewer bits within a tolerance: compile, compare with float32, and take back what hurts most.

The compiled model runs once on given or random inputs, and its outputs are compared with the float32 graph
in the numpy evaluator. While an output is off by more than allowed, or is not finite, the kernels whose own
rounding is worst stay in float32: one at first, then twice as many each time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Constant, Graph, Node, Value
from tcomp.relay.op import OPS
from tcomp.relay.types import REALS, Array, numpy_dtype
from tcomp.runtime import load
from tcomp.target.host import runs_here
from tcomp.target.target import Target
from tcomp.transform.lower_precision import is_lowered, product_kernels, takes_fewer_bits
from tcomp.transform.precision import BY_SUMS, Precision, factor_dtype, lowering, without_bits

TOLERANCE = 2e-2
"""Allowed error of an output relative to its largest magnitude."""


@dataclass(frozen=True)
class Lowered:
    """A graph with products in fewer bits, and how far its outputs are from float32.

    `errors` are relative to each output's largest magnitude: of the library where it ran (`ran`), else of the
    graph in numpy, which rounds operands and results but no sums. None where that would say nothing.
    """

    graph: Graph
    target: Target
    precision: Precision
    products: int
    """Those that were to take fewer bits, and those that could not."""
    kept: tuple[str, ...] = ()
    errors: Mapping[str, float] = field(default_factory=dict[str, float])
    tolerance: float = TOLERANCE
    ran: bool = True

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
    tolerance: float = TOLERANCE,
) -> Lowered:
    """The graph `exact`, as it is before lowering, with as many products lowered as `tolerance` allows.

    `build` compiles a graph to a library; its last call is for the graph in the result. Where there is
    nothing to lower nothing is compared. When `target` does not run here, the graph does in numpy, which says
    nothing of algorithms.
    """

    def lowered(keep: Sequence[str] = ()) -> Graph:
        lower = lowering(target, precision, "|".join(keep))
        return exact if lower is None else lower.run(exact)

    graph = lowered()
    products = len(product_kernels(graph))
    runs = runs_here(target)
    if graph is exact or (not runs and factor_dtype(target, precision) is None):
        build(graph)
        return Lowered(graph, target, precision, products, tolerance=tolerance)

    def outputs_of(graph: Graph) -> Sequence[Array]:
        if not runs:
            return evaluate(graph, arrays)
        with load(build(graph)) as model:
            return model(*arrays)

    arrays = list(inputs.values())
    expected = evaluate(exact, arrays)
    ranking: list[str] | None = None
    kept: tuple[str, ...] = ()
    while True:
        pairs = zip(exact.outputs, outputs_of(graph), expected, strict=True)
        errors = {v.name: relative_error(a, e) for v, a, e in pairs}
        if graph is exact or all(e <= tolerance for e in errors.values()):
            if not runs:
                build(graph)
            return Lowered(graph, target, precision, products, kept, errors, tolerance, runs)
        ranking = ranking or worst_kernels(exact, graph, arrays)
        count = max(1, 2 * len(kept))
        kept = tuple(ranking[:count])
        graph = exact if count > len(ranking) else lowered(kept)


def relative_error(actual: Array, expected: Array) -> float:
    """Largest error over the largest magnitude; infinite where finite numbers became others.

    For integers and booleans, the share of elements that differ.
    """
    if expected.size == 0:
        return 0.0
    if expected.dtype.name not in REALS:
        return np.count_nonzero(np.not_equal(actual, expected)) / expected.size
    a, e = actual.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(e)
    if not np.array_equal(a[~finite], e[~finite], equal_nan=True) or not np.isfinite(a[finite]).all():
        return float("inf")
    scale = float(np.abs(e[finite]).max(initial=0.0))
    error = float(np.abs(a[finite] - e[finite]).max(initial=0.0))
    return error / scale if scale else float(error > 0)


def worst_kernels(exact: Graph, lowered: Graph, inputs: Sequence[Array]) -> list[str]:
    """Names of the kernels that compute with fewer bits, those first that do worst on exact inputs.

    Both graphs have the same nodes in the same order.
    """
    values: dict[Value, Array] = dict(zip(exact.inputs, inputs, strict=True))
    errors: dict[str, float] = {}
    for node, low in zip(exact.nodes, lowered.nodes, strict=True):
        operands = [v.data if isinstance(v, Constant) else values[v] for v in node.inputs]
        results = OPS[node.op].evaluate(operands, node.attrs)
        values.update(zip(node.outputs, results, strict=True))
        if node.name and takes_fewer_bits(low):
            error = _own_error(low, operands, results)
            errors[node.name] = max(error, errors.get(node.name, 0.0))
    return sorted(errors, key=lambda name: -errors[name])


def _own_error(low: Node, operands: Sequence[Array], results: Sequence[Array]) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = [
            v.data if isinstance(v, Constant) else a.astype(numpy_dtype(v.dtype))
            for a, v in zip(operands, low.inputs, strict=True)
        ]
        found = OPS[low.op].evaluate(rounded, low.attrs)
        return max(relative_error(a, e) for a, e in zip(found, results, strict=True))
