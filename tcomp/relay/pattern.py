"""Patterns over the values of a graph, matched from a node backwards to its operands.

    x = operand("x")
    erf = op("erf", op("div", x, constant(value=SQRT2)))
    gelu = op("mul", op("mul", x, op("add", erf, constant(value=1))), constant(value=0.5))

A pattern is data. Matching yields every way in which the pattern fits, so alternatives, commutative
operands and optional nodes backtrack. The same name twice must meet the same value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, Union

import numpy as np

from tcomp.relay.graph import Attr, Constant, Node, Value
from tcomp.relay.op import OPS
from tcomp.relay.types import Array

Bindings = Mapping[str, Value]
AttrTest = Union[Attr, Callable[[Attr], bool]]


class Scope(Protocol):
    """The graph that a pattern is matched in."""

    def producer(self, value: Value) -> Node | None:
        """The node that makes `value`; None for inputs and constants."""
        ...

    def use_count(self, value: Value) -> int:
        """How often `value` is read, graph outputs included."""
        ...


@dataclass(frozen=True)
class Operand:
    """Any value that `where` accepts."""

    name: str = ""
    where: Callable[[Value], bool] | None = None


@dataclass(frozen=True)
class ConstantOperand:
    """A constant. `value`: every element is that number; `where`: a predicate on its data."""

    name: str = ""
    value: float | None = None
    where: Callable[[Array], bool] | None = None


@dataclass(frozen=True)
class Apply:
    """A node that applies one of `ops`, seen at its only output.

    `attrs` gives exact values or predicates. `uses` is the number of reads its output must have.
    Operands of an operator declared commutative match in either order. `variadic` accepts any operands
    behind those given.
    """

    ops: tuple[str, ...]
    inputs: tuple[Pattern, ...]
    attrs: Mapping[str, AttrTest] = field(default_factory=dict[str, AttrTest])
    uses: int | None = None
    name: str = ""
    variadic: bool = False


@dataclass(frozen=True)
class Either:
    """The first of `choices` that fits, then the others."""

    choices: tuple[Pattern, ...]


Pattern = Union[Operand, ConstantOperand, Apply, Either]


def operand(name: str = "", where: Callable[[Value], bool] | None = None) -> Operand:
    """Any value, bound to `name`."""
    return Operand(name, where)


def constant(
    name: str = "", value: float | None = None, where: Callable[[Array], bool] | None = None
) -> ConstantOperand:
    """A compile-time constant, bound to `name`."""
    return ConstantOperand(name, value, where)


def op(
    ops: str | tuple[str, ...], *inputs: Pattern, uses: int | None = None, name: str = "", **attrs: AttrTest
) -> Apply:
    """A node with these operands; `ops` is one operator name or several."""
    return Apply((ops,) if isinstance(ops, str) else ops, inputs, attrs, uses, name)


def either(*choices: Pattern) -> Either:
    """Any of `choices`."""
    return Either(choices)


def maybe(ops: str | tuple[str, ...], inner: Pattern, name: str = "", **attrs: AttrTest) -> Either:
    """`inner` under an optional unary node, such as a cast or a reshape."""
    names = (ops,) if isinstance(ops, str) else ops
    return Either((Apply(names, (inner,), attrs, None, name), inner))


def root_operators(pattern: Pattern) -> tuple[str, ...]:
    """The operators that the topmost node of `pattern` may apply.

    Raises ValueError when the pattern does not start with a node.
    """
    if isinstance(pattern, Apply):
        return pattern.ops
    if isinstance(pattern, Either):
        return tuple(name for choice in pattern.choices for name in root_operators(choice))
    raise ValueError("a rule's pattern must start with an operator")


def matches(pattern: Pattern, value: Value, scope: Scope, bound: Bindings) -> Iterator[Bindings]:
    """Every extension of `bound` with which `pattern` fits `value`."""
    if isinstance(pattern, Either):
        for choice in pattern.choices:
            yield from matches(choice, value, scope, bound)
    elif isinstance(pattern, Operand):
        if pattern.where is None or pattern.where(value):
            yield from _bind(pattern.name, value, bound)
    elif isinstance(pattern, ConstantOperand):
        if isinstance(value, Constant) and _constant_fits(pattern, value.data):
            yield from _bind(pattern.name, value, bound)
    else:
        yield from _apply_matches(pattern, value, scope, bound)


def is_uniform(data: Array, value: float) -> bool:
    """Whether `data` has elements and all of them are `value`, up to the rounding of their own type."""
    if data.size == 0:
        return False
    wanted = np.asarray(value).astype(data.dtype)
    first = data[(slice(0, 1),) * data.ndim]
    return bool(np.all(_close(first, wanted))) and (data.size == 1 or bool(np.all(_close(data, wanted))))


def _close(data: Array, wanted: Array) -> Array:
    if data.dtype.kind in "biu" or not np.isfinite(wanted):
        return data == wanted
    scale = 1e-6 if data.dtype.itemsize >= 4 else 1e-3
    with np.errstate(invalid="ignore"):
        return (data == wanted) | (np.abs(data - wanted) <= scale * np.abs(wanted))


def _constant_fits(pattern: ConstantOperand, data: Array) -> bool:
    if pattern.value is not None and not is_uniform(data, pattern.value):
        return False
    return pattern.where is None or pattern.where(data)


def _bind(name: str, value: Value, bound: Bindings) -> Iterator[Bindings]:
    if not name:
        yield bound
    elif name not in bound:
        yield {**bound, name: value}
    elif bound[name] is value:
        yield bound


def _apply_matches(pattern: Apply, value: Value, scope: Scope, bound: Bindings) -> Iterator[Bindings]:
    node = scope.producer(value)
    if node is None or node.op not in pattern.ops or len(node.outputs) != 1:
        return
    if len(node.inputs) != len(pattern.inputs) and not pattern.variadic:
        return
    if len(node.inputs) < len(pattern.inputs):
        return
    if pattern.uses is not None and scope.use_count(value) != pattern.uses:
        return
    if not all(_attr_fits(test, node.attrs.get(name)) for name, test in pattern.attrs.items()):
        return
    for with_name in _bind(pattern.name, value, bound):
        yield from _operands_match(pattern.inputs, node.inputs, scope, with_name)
        if len(pattern.inputs) == len(node.inputs) == 2 and OPS[node.op].commutative:
            yield from _operands_match(pattern.inputs, node.inputs[::-1], scope, with_name)


def _operands_match(
    patterns: tuple[Pattern, ...], values: tuple[Value, ...], scope: Scope, bound: Bindings
) -> Iterator[Bindings]:
    if not patterns:
        yield bound
        return
    for extended in matches(patterns[0], values[0], scope, bound):
        yield from _operands_match(patterns[1:], values[1:], scope, extended)


def _attr_fits(test: AttrTest, found: Attr) -> bool:
    return test(found) if callable(test) else test == found


def any_operands(ops: str | tuple[str, ...], *first: Pattern, name: str = "") -> Apply:
    """A node with `first` and any further operands."""
    return Apply((ops,) if isinstance(ops, str) else ops, first, {}, None, name, variadic=True)
