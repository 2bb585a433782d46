"""Typed reads of node attributes.

`Attrs` maps names to a union; operators, templates and passes read one kind of value through these. Each
raises TypeRuleError naming the attribute when its value is of another kind.
"""

from __future__ import annotations

from tcomp.errors import TypeRuleError
from tcomp.relay.dims import Dim, DimExpr
from tcomp.relay.graph import Attr, Attrs, Graph


def integer(attrs: Attrs, name: str) -> int:
    """One integer."""
    value = attrs[name]
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong(name, value, "an integer")
    return value


def number(attrs: Attrs, name: str) -> float:
    """One integer or float, as a float."""
    value = attrs[name]
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise _wrong(name, value, "a number")
    return float(value)


def flag(attrs: Attrs, name: str) -> bool:
    """A boolean."""
    value = attrs[name]
    if not isinstance(value, bool):
        raise _wrong(name, value, "True or False")
    return value


def text(attrs: Attrs, name: str) -> str:
    """A string."""
    value = attrs[name]
    if not isinstance(value, str):
        raise _wrong(name, value, "a string")
    return value


def one_of(attrs: Attrs, name: str, allowed: tuple[str, ...]) -> str:
    """A string out of `allowed`."""
    value = text(attrs, name)
    if value not in allowed:
        raise _wrong(name, value, "one of " + ", ".join(allowed))
    return value


def integers(attrs: Attrs, name: str, length: int | None = None) -> tuple[int, ...]:
    """A tuple of integers, of `length` entries where that is given."""
    value = attrs[name]
    wanted = "integers" if length is None else f"{length} integers"
    if not isinstance(value, tuple) or (length is not None and len(value) != length):
        raise _wrong(name, value, f"a tuple of {wanted}")
    numbers = tuple(v for v in value if isinstance(v, int) and not isinstance(v, bool))
    if len(numbers) != len(value):
        raise _wrong(name, value, f"a tuple of {wanted}")
    return numbers


def numbers(attrs: Attrs, name: str, length: int | None = None) -> tuple[float, ...]:
    """A tuple of numbers as floats, of `length` entries where that is given."""
    value = attrs[name]
    wanted = "numbers" if length is None else f"{length} numbers"
    if not isinstance(value, tuple) or (length is not None and len(value) != length):
        raise _wrong(name, value, f"a tuple of {wanted}")
    found = tuple(float(v) for v in value if isinstance(v, (int, float)) and not isinstance(v, bool))
    if len(found) != len(value):
        raise _wrong(name, value, f"a tuple of {wanted}")
    return found


def dims(attrs: Attrs, name: str, length: int | None = None) -> tuple[Dim, ...]:
    """A tuple of dimensions, integers or symbolic, of `length` entries where that is given."""
    value = attrs[name]
    wanted = "dimensions" if length is None else f"{length} dimensions"
    if not isinstance(value, tuple) or (length is not None and len(value) != length):
        raise _wrong(name, value, f"a tuple of {wanted}")
    found = tuple(v for v in value if isinstance(v, (int, DimExpr)) and not isinstance(v, bool))
    if len(found) != len(value):
        raise _wrong(name, value, f"a tuple of {wanted}")
    return found


def dim(attrs: Attrs, name: str) -> Dim:
    """One dimension, an integer or symbolic."""
    value = attrs[name]
    if not isinstance(value, (int, DimExpr)) or isinstance(value, bool):
        raise _wrong(name, value, "a dimension")
    return value


def graph(attrs: Attrs, name: str) -> Graph:
    """A nested graph."""
    value = attrs[name]
    if not isinstance(value, Graph):
        raise _wrong(name, value, "a graph")
    return value


def _wrong(name: str, value: Attr, wanted: str) -> TypeRuleError:
    found = "a graph" if isinstance(value, Graph) else repr(value)
    return TypeRuleError(f"attribute `{name}` is {found}; it must be {wanted}")
