"""What fewer bits do to the outputs of a graph, estimated in numpy.

Operands and results are rounded as the graph says. Sums of float16 are short ones on CPUs (`ShortSums`),
whose rounding is drawn at random. An addition rounds its sum s by c |s|, c = 2e-4 (root mean square, over all
places of s between two powers of two). After i of K products p, s^2 is about i E[p^2] + (i d)^2, where the
whole sum t drifts by d a product: K^2 d^2 = t^2 - K E[p^2]. Added up over all short sums of n products, the
square of the error is c^2 (n / 2 K E[p^2] + n^2 / (3 K) K^2 d^2).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import numpy as np

from tcomp.relay.attributes import graph as graph_attribute
from tcomp.relay.evaluate import evaluate, evaluate_node
from tcomp.relay.graph import Constant, Graph, Node, Value
from tcomp.relay.op import OPS
from tcomp.relay.types import REALS, Array, numpy_dtype
from tcomp.target.target import Target
from tcomp.tensor.groups import MOST_STEPS
from tcomp.transform.lower_precision import takes_fewer_bits

ROUNDED_ADDITION = 2e-4
"""Root mean square of what an addition in float16 rounds, relative to its result."""
_DRAWS = 3
"""Runs of a graph in which something is random."""
_PRODUCTS = ("matmul", "conv1d", "conv2d", "conv3d")


def evaluate_rounded(graph: Graph, inputs: Sequence[Array], target: Target) -> Iterator[list[Array]]:
    """The outputs of a lowered `graph` on `target`, as near as numpy tells: of a few draws, one by one.

    Of one where nothing is drawn.
    """
    for seed in range(_DRAWS):
        rounding = _Rounding(target, seed)
        yield evaluate(graph, inputs, apply=rounding)
        if not rounding.has_drawn:
            return


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


def worst_kernels(exact: Graph, lowered: Graph, inputs: Sequence[Array], target: Target) -> Iterator[str]:
    """Names of the kernels that compute with fewer bits, those first whose rounding changes outputs most.

    Both graphs have the same nodes in the same order. What a kernel's rounding does is seen by running the
    exact graph with that kernel lowered. Kernels are tried together, and whichever group does worst is
    halved: the worst of n is found in 2 log n runs.
    """
    trial = _Trial(exact, lowered, inputs, target)
    places = [i for i, node in enumerate(lowered.nodes) if node.name and takes_fewer_bits(node)]
    groups = [(-trial.error(places), places)] if places else []
    named: set[str] = set()
    while groups:
        error, group = heapq.heappop(groups)
        if len(group) > 1 and error < 0:
            half = len(group) // 2
            for part in (group[:half], group[half:]):
                heapq.heappush(groups, (-trial.error(part), part))
            continue
        for name in (lowered.nodes[i].name for i in group):
            if name not in named:
                named.add(name)
                yield name


class _Trial:
    """Runs of an exact graph with some kernels lowered, from the first of these on."""

    def __init__(self, exact: Graph, lowered: Graph, inputs: Sequence[Array], target: Target) -> None:
        self._exact, self._lowered, self._apply = exact, lowered, _Rounding(target)
        self._values: dict[Value, Array] = dict(zip(exact.inputs, inputs, strict=True))
        for node in exact.nodes:
            self._run(node, node, self._values)

    def error(self, places: Sequence[int]) -> float:
        """The worst error of an output with the kernels at `places`, in rising order, lowered."""
        values = dict(self._values)
        nodes = list(zip(self._exact.nodes, self._lowered.nodes, strict=True))
        for at, (node, low) in enumerate(nodes[places[0] :], places[0]):
            self._run(node, low if at in places else node, values)
        outputs = self._exact.outputs
        return max(relative_error(_array(v, values), _array(v, self._values)) for v in outputs)

    def _run(self, node: Node, instead: Node, values: dict[Value, Array]) -> None:
        """Set the results of `node`, computed by `instead`, whose element types may be others."""
        with np.errstate(over="ignore", invalid="ignore"):
            operands = [
                v.data if isinstance(v, Constant) else values[own].astype(numpy_dtype(v.dtype), copy=False)
                for v, own in zip(instead.inputs, node.inputs, strict=True)
            ]
            for value, result in zip(node.outputs, self._apply(instead, operands), strict=True):
                values[value] = result.astype(numpy_dtype(value.dtype), copy=False)


def _array(value: Value, values: dict[Value, Array]) -> Array:
    return value.data if isinstance(value, Constant) else values[value]


class _Rounding:
    """How a node of a lowered graph is applied on `target`."""

    def __init__(self, target: Target, seed: int = 0) -> None:
        self.has_drawn = False
        self._target = target
        self._generator = np.random.default_rng(seed)

    def __call__(self, node: Node, operands: Sequence[Array]) -> list[Array]:
        if node.op == "fused":
            return evaluate(graph_attribute(node.attrs, "body"), operands, apply=self)
        results = evaluate_node(node, operands)
        is_short = self._target.gpu is None and all(a.dtype == np.float16 for a in operands)
        if node.op not in _PRODUCTS or not is_short:
            return results
        self.has_drawn = True
        (total,) = results
        noise = self._generator.standard_normal(total.shape, np.float32)
        return [(total + noise * _error_of_sums(node, operands, total)).astype(total.dtype)]


def _error_of_sums(node: Node, operands: Sequence[Array], total: Array) -> Array:
    """Root mean square of what the short sums of a product add to the error of each element of `total`."""
    cost = OPS[node.op].cost_of([v.type for v in node.inputs], node.attrs, [node.output.type])
    depth = max(1, cost.flops // (2 * max(1, total.size)))
    steps = min(MOST_STEPS, depth)
    (squares,) = evaluate_node(node, [np.square(a.astype(np.float32)) for a in operands])
    drift = np.maximum(np.square(total) - squares, 0)
    return ROUNDED_ADDITION * np.sqrt(steps / 2 * squares + steps**2 / (3 * depth) * drift)
