"""What happens to a graph between import and planning, from top to bottom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

from tcomp.relay.graph import Graph
from tcomp.relay.types import FLOAT8
from tcomp.target.target import Target
from tcomp.transform.canonicalize import CanonicalizeContractions, SinkTransposes
from tcomp.transform.common_subexpressions import CommonSubexpressions
from tcomp.transform.dead_code import DeadCode
from tcomp.transform.flush_subnormals import FlushSubnormals
from tcomp.transform.fold_constants import FoldConstants
from tcomp.transform.fold_scales import FoldScales
from tcomp.transform.fuse_ops import FuseOps
from tcomp.transform.layout import BlockChannels
from tcomp.transform.lower_quantized import LowerQuantized
from tcomp.transform.lower_resize import LowerResize
from tcomp.transform.merge_matmuls import MergeMatmuls
from tcomp.transform.merge_sums import MergeSums
from tcomp.transform.pass_ import Pass
from tcomp.transform.precision import Precision, factor_dtype, lowering
from tcomp.transform.recognize import RecognizeActivations, RecognizeAttention, RecognizeNorms
from tcomp.transform.simplify import Simplify

Observe = Callable[[Pass, Graph, Graph, Counter[str]], None]


def default_passes(target: Target, precision: Precision = "exact") -> tuple[Pass, ...]:
    """The passes that `optimize` runs for `target`, in order.

    Precision `fast` is `exact` on targets that multiply 16-bit floats no faster than float32.
    Raises UnsupportedError for precision `tf32` on targets without it.
    """
    lower = lowering(target, precision)
    return (*passes_before_lowering(target, precision), *([] if lower is None else [lower]))


def passes_before_lowering(target: Target, precision: Precision = "exact") -> tuple[Pass, ...]:
    """Those of `default_passes` that keep all bits of float32: layouts and kernels are `precision`'s.

    Chains of convolutions are float32 kernels, so that there are none with 16 bits.
    """
    return (
        DeadCode(),
        LowerResize(),
        LowerQuantized(
            integer_products=target.multiplies("int8"),
            float8_products=all(target.multiplies(dtype) for dtype in FLOAT8),
            # CPUs convert a matrix as it is in less time.
            float8_weights=target.gpu is not None,
        ),
        FoldConstants(),
        Simplify(),
        FoldConstants(),
        CommonSubexpressions(),
        RecognizeActivations(),
        RecognizeNorms(),
        SinkTransposes(),
        FoldScales(),
        CanonicalizeContractions(),
        RecognizeAttention(),
        CommonSubexpressions(),
        MergeMatmuls(),
        Simplify(),
        FoldConstants(),
        CommonSubexpressions(),
        FlushSubnormals(),
        *_arrangement(target, factor_dtype(target, precision)),
    )


def _arrangement(target: Target, dtype: str | None) -> tuple[Pass, ...]:
    """Layouts and kernels."""
    blocks = (BlockChannels.for_isa(replace(target, fast_dtype=dtype)), CommonSubexpressions())
    if target.gpu is not None:
        return (*blocks, FuseOps(alignment=target.vector_bits // 8, gathers=True))
    sums = MergeSums(block=target.lanes(), most_bytes=2 * target.cache_bytes[1])
    return (sums, *blocks, FuseOps(near_bytes=0 if dtype else target.cache_bytes[1], cores=target.cores))


def run_passes(graph: Graph, passes: Iterable[Pass], observe: Observe | None = None) -> Graph:
    """Run `passes` in order, each verified; `observe` sees the graph before and after and what was done."""
    for item in passes:
        stats: Counter[str] = Counter()
        after = item.run(graph, stats)
        if observe is not None:
            observe(item, graph, after, stats)
        graph = after
    return graph


def optimize(
    graph: Graph,
    target: Target,
    observe: Observe | None = None,
    precision: Precision = "exact",
) -> Graph:
    """`graph` as kernels for `target`: its nodes are `fused` groups and views."""
    return run_passes(graph, default_passes(target, precision), observe)
