"""What unrolled code has in common: bases of its addresses, computed once before it; and when to unroll.

Passes work on loops as long as they are loops: unrolled code has many times as many expressions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any

from tcomp.tensor.intrinsics import dtype_of
from tcomp.tvm_api import structural_key, structural_map, structural_mutate, structural_walk, tirx, tvm

_COMPARISONS = (tirx.LT, tirx.LE, tirx.GT, tirx.GE, tirx.EQ, tirx.NE)
_DECISIONS = (*_COMPARISONS, tirx.FloorDiv, tirx.FloorMod, tirx.Min, tirx.Max, tirx.Select)


def needs_simplification(function: Any) -> bool:
    """Whether copies of unrolled code can be simplified each in its own way, in which LLVM is no match.

    `for u in unroll(2): if x * 2 + u > 0: ...` has no condition in the second copy.
    """
    found: list[bool] = []

    def on_loop(loop: Any) -> None:
        if int(loop.kind) == tirx.ForKind.UNROLLED:
            counters.add(hash(loop.loop_var))

    def on_decision(node: Any) -> None:
        if dtype_of(node).startswith("float"):
            return
        variables = _variables(node)
        found.append(not counters.isdisjoint(variables) and not counters.issuperset(variables))

    counters = set[int]()
    structural_walk(function.body, (tirx.For, on_loop))
    structural_walk(function.body, (_DECISIONS, on_decision))
    return any(found)


def bind_bases(function: Any) -> Any:
    """`function`, before its loops are unrolled, with what unrolled loops leave alone in indices bound to
    variables of 64 bits, as addresses have.

    `for u in unroll(n): a[x * 7 + u * 16]` -> `b = x * 7; for u in unroll(n): a[b + u * 16]`

    So all accesses of a tile have one base and constants beside it, which compilers of unrolled code would
    have to find out, and do not always.
    """

    def on_loop(loop: Any, mutator: Any) -> Any:
        if int(loop.kind) != tirx.ForKind.UNROLLED:
            return mutator.default_mutate(loop)
        nest = _UnrolledNest.of(loop)
        return mutator.default_mutate(loop) if nest is None else nest.with_bases(loop)

    return function.with_body(structural_mutate(function.body, (tirx.For, on_loop)))


@dataclass
class _UnrolledNest:
    """An unrolled loop with unrolled loops alone inside, and the bases found in it.

    TVM's objects go by their handles: comparing two of its variables builds an expression.
    """

    counters: frozenset[int]
    bases: dict[Any, Any] = field(default_factory=dict[Any, Any])
    bindings: list[Any] = field(default_factory=list[Any])

    @staticmethod
    def of(loop: Any) -> _UnrolledNest | None:
        """The nest of `loop`; None with other loops inside, or bound variables: these may be in indices."""
        loops: list[Any] = []
        bound: list[Any] = []
        structural_walk(loop, [(tirx.For, loops.append), ((tirx.Bind, tirx.Let), bound.append)])
        if bound or any(int(inner.kind) != tirx.ForKind.UNROLLED for inner in loops):
            return None
        return _UnrolledNest(frozenset(hash(inner.loop_var) for inner in loops))

    def with_bases(self, loop: Any) -> Any:
        changed = structural_map(loop, [(tvm.ir.TensorLoad, self._load), (tirx.BufferStore, self._store)])
        return tirx.SeqStmt([*self.bindings, changed]) if self.bindings else loop

    def _load(self, load: Any) -> Any:
        index = self._index(load.indices[0])
        return load if index is None else tirx.BufferLoad(load.source, [index])

    def _store(self, store: Any) -> Any:
        index = self._index(store.indices[0])
        return store if index is None else tirx.BufferStore(store.buffer, store.value, [index])

    def _index(self, index: Any) -> Any | None:
        """A flat index with its base in a variable; None when it has none."""
        if isinstance(index, tirx.Ramp):
            first = self._index(index.base)
            return None if first is None else tirx.Ramp(first, index.stride.astype("int64"), index.lanes)
        if dtype_of(index) != "int32":
            return None
        terms = [(term, self._is_outside(term)) for term in self._terms(index, 1)]
        outside = [term for term, is_outside in terms if is_outside]
        inside = [term for term, is_outside in terms if not is_outside]
        if not outside:
            return None
        base = self._base(reduce(add, outside))
        return base + reduce(add, inside).astype("int64") if inside else base

    def _base(self, value: Any) -> Any:
        key = structural_key(value)
        if key not in self.bases:
            self.bases[key] = tirx.Var("base", "int64")
            self.bindings.append(tirx.Bind(self.bases[key], value.astype("int64")))
        return self.bases[key]

    def _terms(self, index: Any, factor: int) -> Iterator[Any]:
        """Expressions whose sum times `factor` `index` is."""
        if isinstance(index, tirx.Add | tirx.Sub):
            yield from self._terms(index.a, factor)
            yield from self._terms(index.b, factor if isinstance(index, tirx.Add) else -factor)
        elif (
            isinstance(index, tirx.Mul) and isinstance(index.b, tirx.IntImm) and isinstance(index.a, tirx.Add)
        ):
            yield from self._terms(index.a, factor * int(index.b))
        else:
            yield index if factor == 1 else index * factor

    def _is_outside(self, term: Any) -> bool:
        """Whether a term has variables, none of which this nest counts with; and loads nothing."""
        loads: list[Any] = []
        structural_walk(term, (tvm.ir.TensorLoad, loads.append))
        variables = _variables(term)
        return bool(variables) and not loads and self.counters.isdisjoint(variables)


def _variables(expression: Any) -> frozenset[int]:
    """The handles of the variables in an expression."""
    found: list[Any] = []
    structural_walk(expression, (tirx.Var, found.append))
    return frozenset(map(hash, found))
