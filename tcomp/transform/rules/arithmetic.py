"""Algebraic identities of elementwise operators."""

from __future__ import annotations

import numpy as np

from tcomp.relay.attributes import text
from tcomp.relay.graph import Constant, Value
from tcomp.relay.pattern import constant, op, operand
from tcomp.relay.rewrite import Build, Match, Rule
from tcomp.relay.types import FLOAT8, FLOATS, INTEGERS, numpy_dtype
from tcomp.transform.rules.common import as_root, fits_without_growth, is_float, is_signed, keep, scalar_of

_X, _Y, _A, _B, _C = operand("x"), operand("y"), constant("a"), constant("b"), constant("c")
_BINARY = (
    "add", "sub", "mul", "div", "mod", "pow", "maximum", "minimum", "equal", "not_equal", "less",
    "less_equal", "greater", "greater_equal", "logical_and", "logical_or", "logical_xor",
)  # fmt: skip


def _apply(name: str) -> Build:
    """Build function: the root becomes unary operator `name` of `x`, where that has the root's type."""

    def build(match: Match) -> Value | None:
        return match.op(name, match["x"]) if match["x"].type == match.type else None

    return build


def _divide_by_constant(match: Match) -> Value | None:
    data = match.data("c")
    if not is_float(match["x"]) or not np.all(np.isfinite(data)) or np.any(data == 0):
        return None
    inverse = 1 / data.astype(np.float64)
    if float(np.max(np.abs(inverse), initial=0.0)) > 1e30:
        return None
    return match.op("mul", match["x"], match.constant(inverse))


def _subtract_constant(match: Match) -> Value | None:
    if not is_signed(match["x"]):
        return None
    return match.op("add", match["x"], match.constant(-match.data("c")))


def _merge_constants(name: str) -> Build:
    def build(match: Match) -> Value | None:
        a, b = match.data("a"), match.data("b")
        if not fits_without_growth(a, b):
            return None
        merged = a + b if name == "add" else a * b
        return match.op(name, match["x"], match.constant(merged))

    return build


def _scale_of_shift(match: Match) -> Value | None:
    """(x a + b) c = x (a c) + b c"""
    a, b, c = (match.data(n) for n in "abc")
    if not is_float(match["x"]) or not fits_without_growth(a, c) or not fits_without_growth(b, c):
        return None
    scaled = match.op("mul", match["x"], match.constant(a * c))
    return match.op("add", scaled, match.constant(b * c))


def _power(match: Match) -> Value | None:
    x, exponent = match["x"], scalar_of(match["c"])
    if exponent is None or not is_float(x) or x.type != match.type:
        return None
    if exponent == 2:
        return match.op("mul", x, x)
    if exponent == 3:
        return match.op("mul", match.op("mul", x, x), x)
    unary = {0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}.get(exponent)
    return match.op(unary, x) if unary else None


def _cast_of_cast(match: Match) -> Value | None:
    inner = match.node("inner")
    if not _is_lossless(match["x"].dtype, text(inner.attrs, "dtype")):
        return None
    return match.op("cast", match["x"], dtype=match.type.dtype)


def _is_lossless(source: str, target: str) -> bool:
    """Whether every number of `source` is one of `target`."""
    if source == target or source == "bool":
        return True
    if target == "bool":
        return False
    if source in FLOAT8 or target in FLOAT8:
        return source in FLOAT8 and target in FLOATS
    if source == "bfloat16" or target == "bfloat16":
        return source == "bfloat16" and target in ("float32", "float64")
    return np.can_cast(numpy_dtype(source), numpy_dtype(target), "safe") and not (
        source in INTEGERS and target in FLOATS and numpy_dtype(source).itemsize >= 8
    )


def _same_cast(match: Match) -> Value | None:
    return match["x"] if match["x"].type == match.type else None


def _bound(match: Match, name: str) -> tuple[float, float]:
    node = match.node(name) if name in match else match.root
    if node.op == "relu":
        return 0.0, float("inf")
    low, high = node.attrs["min"], node.attrs["max"]
    return (
        float(low) if isinstance(low, (int, float)) else float("-inf"),
        float(high) if isinstance(high, (int, float)) else float("inf"),
    )


def _clip_of_clip(match: Match) -> Value | None:
    """Clamping twice is clamping once, to the inner bounds clamped to the outer ones."""
    low, high = _bound(match, "inner")
    outer_low, outer_high = _bound(match, "root")
    if not is_float(match["x"]) or low > high or outer_low > outer_high:
        return None
    return _clip(match, *(min(max(bound, outer_low), outer_high) for bound in (low, high)))


def _clip(match: Match, low: float, high: float) -> Value:
    if low == 0 and high == float("inf"):
        return match.op("relu", match["x"])
    return match.op(
        "clip",
        match["x"],
        min=None if low == float("-inf") else low,
        max=None if high == float("inf") else high,
    )


def _canonical_clip(match: Match) -> Value | None:
    low, high = _bound(match, "root")
    if low == float("-inf") and high == float("inf"):
        return match["x"]
    return match.op("relu", match["x"]) if (low, high) == (0, float("inf")) else None


def _maximum_of_scalar(match: Match) -> Value | None:
    bound = scalar_of(match["c"])
    if bound is None or not np.isfinite(bound) or not is_float(match["x"]) or match["x"].type != match.type:
        return None
    if match.root.op == "maximum":
        return _clip(match, bound, float("inf"))
    return _clip(match, float("-inf"), bound)


def _where_constant(match: Match) -> Value | None:
    chosen = scalar_of(match["c"])
    return None if chosen is None else as_root(match, match["x"] if chosen else match["y"])


def _drop_broadcast(match: Match) -> Value | None:
    """Elementwise operators broadcast by themselves."""
    root = match.root
    operands = [match["x"] if v is match["wide"] else v for v in root.inputs]
    result = match.op(root.op, *operands, **root.attrs)
    return result if result.type == match.type else None


def _shrink_uniform(match: Match) -> Value | None:
    """A constant whose elements are all equal is a scalar to an elementwise operator."""
    root = match.root
    operands = [_shrunk(v) for v in root.inputs]
    if all(a is b for a, b in zip(operands, root.inputs, strict=True)):
        return None
    result = match.op(root.op, *operands, **root.attrs)
    return result if result.type == match.type else None


def _shrunk(value: Value) -> Value:
    if not isinstance(value, Constant) or value.type.rank == 0 or scalar_of(value) is None:
        return value
    return Constant.of(value.data[(0,) * value.type.rank].reshape(()), value.name)


def _subtract_negated(match: Match) -> Value | None:
    other = "add" if match.root.op == "sub" else "sub"
    return match.op(other, match["x"], match["y"]) if is_signed(match["x"]) else None


def _scaled_negation(match: Match) -> Value | None:
    return match.op("mul", match["x"], match.constant(-match.data("c"))) if is_signed(match["x"]) else None


def _float_only(build: Build) -> Build:
    return lambda match: build(match) if is_float(match["x"]) else None


IDENTITIES = (
    Rule("add-zero", op("add", _X, constant(value=0)), keep("x")),
    Rule("sub-zero", op("sub", _X, constant(value=0)), keep("x")),
    Rule("mul-one", op("mul", _X, constant(value=1)), keep("x")),
    Rule("div-one", op("div", _X, constant(value=1)), keep("x")),
    Rule("pow-one", op("pow", _X, constant(value=1)), keep("x")),
    Rule("neg-neg", op("neg", op("neg", _X)), keep("x")),
    Rule("not-not", op("logical_not", op("logical_not", _X)), keep("x")),
    Rule("abs-abs", op("abs", op(("abs", "neg"), _X)), _apply("abs")),
    Rule("relu-relu", op("relu", op("relu", _X, name="inner")), keep("inner")),
    Rule("same-cast", op("cast", _X), _same_cast),
    Rule("cast-cast", op("cast", op("cast", _X, name="inner")), _cast_of_cast),
    Rule("where-constant", op("where", _C, _X, _Y), _where_constant),
    Rule("where-same", op("where", operand(), _X, _X), keep("x")),
)
STRENGTH_REDUCTIONS = (
    Rule("div-constant", op("div", _X, _C), _divide_by_constant),
    Rule("sub-constant", op("sub", _X, _C), _subtract_constant),
    Rule("small-power", op("pow", _X, _C), _power),
    Rule("reciprocal", op("div", constant(value=1), _X), _float_only(_apply("reciprocal"))),
    Rule("rsqrt", op("reciprocal", op("sqrt", _X)), _apply("rsqrt")),
    Rule(
        "mul-reciprocal",
        op("mul", _X, op("reciprocal", _Y, uses=1)),
        lambda m: m.op("div", m["x"], m["y"]),
    ),
    Rule("add-neg", op("add", _X, op("neg", _Y)), _subtract_negated),
    Rule("sub-neg", op("sub", _X, op("neg", _Y)), _subtract_negated),
    Rule("mul-neg", op("mul", op("neg", _X), _C), _scaled_negation),
    Rule("maximum-scalar", op(("maximum", "minimum"), _X, _C), _maximum_of_scalar),
    Rule("clip-bounds", op("clip", _X), _canonical_clip),
    Rule("clip-clip", op("clip", op(("clip", "relu"), _X, name="inner", uses=1)), _clip_of_clip),
    Rule("relu-clip", op("relu", op("clip", _X, name="inner", uses=1)), _clip_of_clip),
)
CONSTANT_CHAINS = (
    Rule("add-add", op("add", op("add", _X, _A, uses=1), _B), _merge_constants("add")),
    Rule("mul-mul", op("mul", op("mul", _X, _A, uses=1), _B), _merge_constants("mul")),
    Rule(
        "scale-shift",
        op("mul", op("add", op("mul", _X, _A, uses=1), _B, uses=1), _C),
        _scale_of_shift,
    ),
)
BROADCASTS = (
    Rule("operand-broadcast", op(_BINARY, op("broadcast_to", _X, name="wide"), _Y), _drop_broadcast),
    Rule("operand-broadcast", op(_BINARY, _Y, op("broadcast_to", _X, name="wide")), _drop_broadcast),
    Rule("uniform-constant", op(_BINARY, operand(), constant()), _shrink_uniform),
    Rule("uniform-constant", op(_BINARY, constant(), operand()), _shrink_uniform),
)
ARITHMETIC = (*BROADCASTS, *IDENTITIES, *STRENGTH_REDUCTIONS, *CONSTANT_CHAINS)
