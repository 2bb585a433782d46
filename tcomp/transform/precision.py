"""What fewer bits a model may be computed with: which pass does that, and what people are told of it."""

from __future__ import annotations

from typing import Literal, get_args

from tcomp.errors import UnsupportedError, check_choice
from tcomp.relay.graph import Graph
from tcomp.target.target import Target
from tcomp.tensor.cpu.patches import multiplies_patches
from tcomp.transform.allow_strassen import AllowStrassen
from tcomp.transform.lower_precision import LowerPrecision, is_lowered, product_kernels
from tcomp.transform.pass_ import Pass
from tcomp.transform.round_factors import RoundFactors

Precision = Literal["exact", "fast", "tf32"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
"""`exact` computes in the model's own types; `fast` lets float32 products take 16-bit operands or, on CPUs
that multiply those no faster, Strassen's algorithm; `tf32` lets tensor cores of GPUs round float32 operands
to 10 bits of mantissa."""


def factor_dtype(target: Target, precision: Precision) -> str | None:
    """The type that float32 products take their operands in; None where that is float32.

    Raises UnsupportedError for tf32 on targets that have none, UsageError for a precision that is none.
    """
    check_choice("precision", precision, PRECISIONS)
    if precision != "tf32":
        return target.fast_dtype if precision == "fast" else None
    if target.gpu is None or "tf32" not in target.gpu.flops:
        raise UnsupportedError(
            f"`{target.name}` has no products of tf32, which GPUs from cuda:sm_80 on have; take precision "
            "`fast` or `exact` for this target"
        )
    return "tf32"


def lowering(target: Target, precision: Precision, keep: str = "") -> Pass | None:
    """The pass that lets products lose bits, but for the kernels in `keep`, joined by `|`.

    None where nothing changes. Raises as `factor_dtype` does.
    """
    dtype = factor_dtype(target, precision)
    if dtype is None:
        return AllowStrassen(keep) if precision == "fast" and target.gpu is None else None
    if dtype == "tf32":
        return RoundFactors(keep)
    return LowerPrecision(
        dtype,
        keep,
        plain=target.gpu is not None,
        # CPUs would compute attention of float16 in float32.
        attention=dtype == "bfloat16" or target.gpu is not None,
        patches=multiplies_patches(target),
    )


def describe_precision(graph: Graph, target: Target, precision: Precision) -> str:
    """What of the optimized `graph` runs in fewer bits, for people; nothing when that was not asked for."""
    if precision == "exact":
        return ""
    dtype = factor_dtype(target, precision)
    products = product_kernels(graph)
    wide = [n.name for n in products if not is_lowered(n)]
    lowered = len(products) - len(wide)
    if dtype is None:
        return f"precision fast: {without_bits(target)}" + (
            f"; {lowered} products {BY_SUMS}" if lowered else ""
        )
    kept = f", {len(wide)} in float32 ({', '.join(wide[:5])})" if wide else ""
    return f"precision {precision}: {lowered} products in {dtype}{kept}"


BY_SUMS = "may be by Strassen's algorithm"


def without_bits(target: Target) -> str:
    """What people are told of targets that have no fast type of 16 bits."""
    return f"`{target.name}` multiplies 16-bit floats no faster; all stays in float32"
