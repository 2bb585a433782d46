"""Dimensions: integers, or integer expressions over symbols such as `batch`.

An expression is kept in one canonical form - a sum of integer multiples of products of atoms - so that
two expressions that mean the same compare equal in all the cases that type rules produce. An atom is a
symbol or a floor division whose numerator does not divide evenly. Expressions that reduce to a constant
are plain `int`s, so concrete shapes never see this module's class.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Union

from tcomp.errors import ParseError


@dataclass(frozen=True)
class FloorDiv:
    """`numerator // denominator`, not further reducible."""

    numerator: DimExpr
    denominator: DimExpr | int

    def __str__(self) -> str:
        return f"{_factor(self.numerator)}//{_factor(self.denominator)}"


Atom = Union[str, FloorDiv]
Dim = Union[int, "DimExpr"]


@dataclass(frozen=True)
class DimExpr:
    """A sum of `coefficient * product(atoms)`; the empty product is the constant term."""

    terms: tuple[tuple[tuple[Atom, ...], int], ...]

    def __add__(self, other: Dim) -> Dim:
        return _sum([*self.terms, *_terms(other)])

    __radd__ = __add__

    def __neg__(self) -> Dim:
        return self * -1

    def __sub__(self, other: Dim) -> Dim:
        return self + other * -1

    def __rsub__(self, other: int) -> Dim:
        return self * -1 + other

    def __mul__(self, other: Dim) -> Dim:
        return _sum(
            (tuple(sorted((*a, *b), key=str)), c * d) for a, c in self.terms for b, d in _terms(other)
        )

    __rmul__ = __mul__

    def __floordiv__(self, other: Dim) -> Dim:
        return _floordiv(self, other)

    def __rfloordiv__(self, other: int) -> Dim:
        return _floordiv(other, self)

    def __mod__(self, other: Dim) -> Dim:
        return self - (self // other) * other

    def __rmod__(self, other: int) -> Dim:
        return other - (other // self) * self

    def __str__(self) -> str:
        text = ""
        for atoms, coefficient in self.terms:
            factors = [str(a) if isinstance(a, str) else f"({a})" for a in atoms]
            if abs(coefficient) != 1 or not factors:
                factors.insert(0, str(abs(coefficient)))
            sign = "-" if coefficient < 0 else "+" if text else ""
            text += (f" {sign} " if text else sign) + "*".join(factors)
        return text

    __repr__ = __str__


def symbol(name: str) -> DimExpr:
    """The dimension called `name`, unknown until a graph is specialised."""
    if not name.isidentifier():
        raise ParseError(f"`{name}` cannot name a dimension; use letters, digits and underscores")
    return DimExpr((((name,), 1),))


def product(dims: Iterable[Dim]) -> Dim:
    return prod(dims, start=1)  # type: ignore[call-overload, arg-type]


def is_static(shape: Iterable[Dim]) -> bool:
    return all(isinstance(d, int) for d in shape)


def symbols_of(dim: Dim) -> set[str]:
    """Names of the symbols that `dim` depends on."""
    if isinstance(dim, int):
        return set()
    found: set[str] = set()
    for atoms, _ in dim.terms:
        for atom in atoms:
            if isinstance(atom, str):
                found.add(atom)
            else:
                found |= symbols_of(atom.numerator) | symbols_of(atom.denominator)
    return found


def substitute(dim: Dim, values: Mapping[str, Dim]) -> Dim:
    """`dim` with symbols replaced; unknown symbols stay."""
    if isinstance(dim, int):
        return dim
    total: Dim = 0
    for atoms, coefficient in dim.terms:
        term: Dim = coefficient
        for atom in atoms:
            if isinstance(atom, str):
                term = term * values.get(atom, symbol(atom))
            else:
                term = term * (substitute(atom.numerator, values) // substitute(atom.denominator, values))
        total = total + term
    return total


def parse_dim(text: str) -> Dim:
    """Read what `str(dim)` writes: integers, symbols, `+ - * // %` and parentheses."""
    try:
        return _from_ast(ast.parse(text, mode="eval").body)
    except (SyntaxError, KeyError, AttributeError, ZeroDivisionError):
        raise ParseError(
            f"`{text}` is not a dimension; write an integer or an expression of symbols"
        ) from None


_OPERATORS: dict[type[ast.operator], Callable[[Dim, Dim], Dim]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: a // b,
    ast.Mod: lambda a, b: a % b,
}


def _from_ast(node: ast.AST) -> Dim:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.Name):
        return symbol(node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return _from_ast(node.operand) * -1
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_from_ast(node.left), _from_ast(node.right))
    raise SyntaxError


def _terms(dim: Dim) -> tuple[tuple[tuple[Atom, ...], int], ...]:
    return dim.terms if isinstance(dim, DimExpr) else (((), dim),)


def _sum(terms: Iterable[tuple[tuple[Atom, ...], int]]) -> Dim:
    merged: dict[tuple[Atom, ...], int] = {}
    for atoms, coefficient in terms:
        merged[atoms] = merged.get(atoms, 0) + coefficient
    kept = sorted(((a, c) for a, c in merged.items() if c), key=lambda t: (-len(t[0]), str(t[0])))
    if not kept:
        return 0
    if len(kept) == 1 and not kept[0][0]:
        return kept[0][1]
    return DimExpr(tuple(kept))


def _floordiv(numerator: Dim, denominator: Dim) -> Dim:
    if isinstance(numerator, int) and isinstance(denominator, int):
        return numerator // denominator
    if denominator == 1:
        return numerator
    if numerator == denominator:
        return 1
    whole: list[tuple[tuple[Atom, ...], int]] = []
    rest: list[tuple[tuple[Atom, ...], int]] = []
    for atoms, coefficient in _terms(numerator):
        quotient = _divide_term(atoms, coefficient, denominator)
        if quotient is None:
            rest.append((atoms, coefficient))
        else:
            whole.append(quotient)
    remainder = _sum(rest)
    if isinstance(remainder, int) and isinstance(denominator, int):
        return _sum(whole) + remainder // denominator
    if not isinstance(remainder, DimExpr):
        if remainder == 0:
            return _sum(whole)
        remainder = DimExpr((((), remainder),))
    return _sum([*whole, ((FloorDiv(remainder, denominator),), 1)])


def _divide_term(
    atoms: tuple[Atom, ...], coefficient: int, denominator: Dim
) -> tuple[tuple[Atom, ...], int] | None:
    """`coefficient * atoms / denominator` when it is exact for every value of the symbols."""
    if isinstance(denominator, int):
        return (atoms, coefficient // denominator) if coefficient % denominator == 0 else None
    if len(denominator.terms) != 1:
        return None
    (divisor_atoms, divisor), left = denominator.terms[0], list(atoms)
    if coefficient % divisor:
        return None
    for atom in divisor_atoms:
        if atom not in left:
            return None
        left.remove(atom)
    return tuple(left), coefficient // divisor


def _factor(dim: Dim) -> str:
    text = str(dim)
    return text if isinstance(dim, int) or text.isidentifier() else f"({text})"
