"""Values of shape arithmetic whose elements may be symbolic dimensions.

Exporters compute shapes at run time: Shape -> Gather -> Mul -> Concat -> Reshape. Where such a tensor's
elements are integers or `DimExpr`s, its value is known at import although it is no constant. It is kept
as an object array and the few operators that shape arithmetic uses are evaluated on it here; any other
operator, or a result that is no `Dim`, simply makes the value unknown (None).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tcomp.relay.dims import Dim, DimExpr
from tcomp.relay.graph import Attrs
from tcomp.relay.types import Array

SymbolicRule = Callable[[Sequence[Array], Attrs], "Array | None"]
MAX_ELEMENTS = 1024


def evaluate_symbolic(op: str, operands: Sequence[Array], attrs: Attrs) -> Array | None:
    """The object array of `Dim`s that `op` makes of `operands`, or None when that is not expressible."""
    rule = _RULES.get(op)
    if rule is None or any(a.size > MAX_ELEMENTS for a in operands) or _has_symbols(attrs):
        return None
    return rule(operands, attrs)


def _has_symbols(attrs: Attrs) -> bool:
    """Whether the result's shape itself is symbolic, so that its elements cannot be listed."""
    return any(isinstance(d, DimExpr) for a in attrs.values() if isinstance(a, tuple) for d in a)


def object_array(dims: Sequence[Dim]) -> Array:
    array = np.empty(len(dims), dtype=object)
    array[:] = list(dims)
    return array


def as_dims(array: Array) -> tuple[Dim, ...]:
    return tuple(d if isinstance(d, DimExpr) else int(d) for d in array.reshape(-1))


def is_number(array: Array) -> bool:
    """Whether no element is symbolic."""
    return not any(isinstance(d, DimExpr) for d in array.reshape(-1))


def _elementwise(function: Callable[..., Any]) -> SymbolicRule:
    def rule(operands: Sequence[Array], attrs: Attrs) -> Array | None:
        arrays = np.broadcast_arrays(*(np.asarray(a, dtype=object) for a in operands))
        elements = [function(*operands) for operands in zip(*(a.reshape(-1) for a in arrays), strict=True)]
        if any(e is None for e in elements):
            return None
        return object_array(elements).reshape(arrays[0].shape)

    return rule


def _plain(value: Any) -> Any:
    """numpy scalars as Python numbers, so that DimExpr arithmetic sees ints."""
    return value if isinstance(value, DimExpr) else value.item() if hasattr(value, "item") else value


def _add(a: Any, b: Any) -> Any:
    return _plain(a) + _plain(b)


def _subtract(a: Any, b: Any) -> Any:
    return _plain(a) - _plain(b)


def _multiply(a: Any, b: Any) -> Any:
    return _plain(a) * _plain(b)


def _negate(a: Any) -> Any:
    return _plain(a) * -1


def _divide(a: Any, b: Any) -> Any:
    a, b = _plain(a), _plain(b)
    if isinstance(a, int) and isinstance(b, int):
        return None if b == 0 else int(a / b) if abs(a) < 2**52 else a // b
    return None if b == 0 else a // b


def _equal(a: Any, b: Any) -> bool | None:
    a, b = _plain(a), _plain(b)
    if a == b:
        return True
    if not isinstance(a, DimExpr) and not isinstance(b, DimExpr):
        return False
    # A dimension is never negative; nothing else is known about a symbol.
    number = b if isinstance(a, DimExpr) else a
    return False if isinstance(number, int) and number < 0 and _is_dimension(a, b) else None


def _is_dimension(a: Any, b: Any) -> bool:
    expression = a if isinstance(a, DimExpr) else b
    return isinstance(expression, DimExpr) and all(c >= 0 for _, c in expression.terms)


def _same_or_numbers(choose: Callable[[int, int], int]) -> Callable[[Any, Any], Any]:
    def function(a: Any, b: Any) -> Any:
        a, b = _plain(a), _plain(b)
        if a == b:
            return a
        return choose(a, b) if isinstance(a, int) and isinstance(b, int) else None

    return function


def _where(condition: Any, a: Any, b: Any) -> Any:
    return None if isinstance(condition, DimExpr) else _plain(a if condition else b)


def _gather(operands: Sequence[Array], attrs: Attrs) -> Array | None:
    data, indices = operands
    if not is_number(indices):
        return None
    return _as_object(np.take(data, indices.astype(np.int64), axis=_int(attrs["axis"])))


def _slice(operands: Sequence[Array], attrs: Attrs) -> Array | None:
    index: list[slice] = []
    for begin, end, stride in zip(*(_ints(attrs[k]) for k in ("begin", "end", "strides")), strict=True):
        index.append(slice(begin, None if stride < 0 and end < 0 else end, stride))
    return operands[0][tuple(index)]


def _transpose(operands: Sequence[Array], attrs: Attrs) -> Array | None:
    result: Array = np.transpose(operands[0], _ints(attrs["axes"]))
    return result


def _broadcast_to(operands: Sequence[Array], attrs: Attrs) -> Array | None:
    result: Array = np.broadcast_to(operands[0], _ints(attrs["shape"]))
    return result


def _reduce(combine: Callable[[Any, Any], Any], start: int) -> SymbolicRule:
    def rule(operands: Sequence[Array], attrs: Attrs) -> Array | None:
        axes, keepdims = _ints(attrs["axes"]), bool(attrs["keepdims"])
        data = operands[0]
        if tuple(axes) != tuple(range(data.ndim)):
            return None
        total: Any = start
        for element in data.reshape(-1):
            total = combine(total, _plain(element))
        out = np.empty((1,) * data.ndim if keepdims else (), dtype=object)
        out[...] = total
        return out

    return rule


def _as_object(result: Any) -> Array:
    out = np.empty(np.shape(result), dtype=object)
    out[...] = result
    return out


def _ints(attr: Any) -> tuple[int, ...]:
    return tuple(int(a) for a in attr)


def _int(attr: Any) -> int:
    return int(attr)


_RULES: dict[str, SymbolicRule] = {
    "add": _elementwise(_add),
    "sub": _elementwise(_subtract),
    "mul": _elementwise(_multiply),
    "neg": _elementwise(_negate),
    "div": _elementwise(_divide),
    "equal": _elementwise(_equal),
    "maximum": _elementwise(_same_or_numbers(max)),
    "minimum": _elementwise(_same_or_numbers(min)),
    "where": _elementwise(_where),
    "cast": lambda operands, attrs: operands[0] if str(attrs["dtype"]) in ("int32", "int64") else None,
    "concat": lambda operands, attrs: np.concatenate(operands, axis=_int(attrs["axis"])),
    "gather": _gather,
    "slice": _slice,
    "reshape": lambda operands, attrs: operands[0].reshape(_ints(attrs["shape"])),
    "transpose": _transpose,
    "broadcast_to": _broadcast_to,
    "reduce_prod": _reduce(lambda a, b: a * b, 1),
    "reduce_sum": _reduce(lambda a, b: a + b, 0),
}
