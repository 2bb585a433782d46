"""Several kinds of CPU in one library: which variant is preferred, which kernels all have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

from tcomp.codegen.c_abi import needed_features
from tcomp.errors import TargetError
from tcomp.relay.graph import Graph
from tcomp.target.arm_parts import speed
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel

COLD = 0.02
"""Share of a model's time that kernels without code of their own for each variant take together at most."""
_FLOPS_A_CYCLE, _BYTES_A_CYCLE = 16, 8
"""What tells kernels that matter from others on any CPU; nothing is decided by it that must be exact."""


def by_preference(targets: Sequence[Target]) -> tuple[Target, ...]:
    """`targets` of one library, the one to prefer first: a CPU takes the first whose features it has.

    Those that use more features come first; of those that use as many, the one for the faster core. Of GPUs
    the one with the highest compute capability comes first.
    Raises TargetError when nothing tells two of them apart where the library is loaded: CPUs other than ARM's
    are known by their features alone, GPUs by their architecture.
    """
    gpus = {target: target.gpu.arch for target in targets if target.gpu is not None}
    for one, other in combinations(gpus, 2):
        if gpus[one] == gpus[other]:
            raise TargetError(
                f"`{one.name}` and `{other.name}` are both {gpus[one]}, by which a library chooses code; "
                "keep one of them"
            )
    if gpus:
        return tuple(sorted(gpus, key=lambda target: gpus[target], reverse=True))
    features = {target: needed_features(target) for target in targets}
    for one, other in combinations(targets, 2):
        if one.machine == "x86_64" and features[one] == features[other]:
            raise TargetError(
                f"`{one.name}` and `{other.name}` use the same features, by which a library chooses code; "
                "keep one of them"
            )
    return tuple(sorted(targets, key=lambda t: (len(features[t]), speed(t)), reverse=True))


def graph_target(targets: Sequence[Target]) -> Target:
    """The target that decides the graph of a library for all `targets`: the preferred one, with caches and
    features that all have. Products take 16 bits only where that is faster on all."""
    first, *others = targets
    if not others:
        return first
    agreed = all(target.fast_dtype == first.fast_dtype for target in others)
    return replace(
        first,
        name=",".join(target.name for target in targets),
        cache_bytes=tuple(map(min, zip(*(target.cache_bytes for target in targets), strict=True))),
        bytes_per_cycle=tuple(map(min, zip(*(target.bytes_per_cycle for target in targets), strict=True))),
        cores=max(target.cores for target in targets),
        features=first.features.intersection(*(target.features for target in others)),
        fast_dtype=first.fast_dtype if agreed else None,
    )


def cold_kernels(graph: Graph, targets: Sequence[Target]) -> frozenset[str]:
    """Keys of the kernels that take hardly any time: one code for all `targets` keeps the library small.

    It is that for the last target, and there is none when some other lacks a feature which that one needs.
    GPUs have none in common.
    """
    common = set(needed_features(targets[-1]))
    if (
        len(targets) == 1
        or targets[0].family == "cuda"
        or not all(common <= set(needed_features(target)) for target in targets)
    ):
        return frozenset()
    cycles: Counter[str] = Counter()
    for node in graph.nodes:
        if node.op == "fused":
            kernel = Kernel.of(node)
            cycles[kernel.key] += max(kernel.flops // _FLOPS_A_CYCLE, kernel.nbytes // _BYTES_A_CYCLE)
    room, cold = COLD * cycles.total(), set[str]()
    for key, needed in sorted(cycles.items(), key=lambda item: item[1]):
        room -= needed
        if room < 0:
            break
        cold.add(key)
    return frozenset(cold)
