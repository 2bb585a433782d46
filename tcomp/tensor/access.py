"""How an output's elements reach memory: the strides of every load, and the loops that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tcomp.tensor.loops import Elements, Expression, TensorMap
from tcomp.tvm_api import Tensor, structural_walk, tirx, tvm


@dataclass(frozen=True)
class Access:
    """Loads of one output's expression.

    `strides` holds, for each load that is linear in the output's index, elements per step of each axis;
    `all_linear` says whether every load is.
    """

    shape: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    all_linear: bool

    def contiguous_with_next(self, axis: int) -> bool:
        """Whether `axis` and the one after it are one axis for every load."""
        return self.all_linear and all(s[axis] == s[axis + 1] * self.shape[axis + 1] for s in self.strides)

    def transposed_axis(self) -> int | None:
        """The axis that is contiguous in a load for which the innermost axis is not."""
        for strides in self.strides:
            if strides[-1] > 1 and 1 in strides[:-1]:
                return strides.index(1)
        return None


def access_of(tensor: Tensor, buffers: TensorMap) -> Access:
    """The loads that one element of `tensor` makes."""
    shape = tuple(int(d) for d in tensor.shape)
    variables = [tirx.Var(f"i{axis}", "int32") for axis in range(len(shape))]
    elements = Elements(buffers)
    value = elements.element(tensor, variables)
    found: list[list[int] | None] = []

    def on_load(load: Any) -> None:
        found.append(_strides(load, variables))

    for expression in [*elements.statements, value]:
        structural_walk(expression, (tvm.ir.expr.TensorLoad, on_load))
    linear = tuple(tuple(s) for s in found if s is not None)
    return Access(shape, linear, len(linear) == len(found))


def _strides(load: Any, variables: Sequence[Expression]) -> list[int] | None:
    offset: Expression = tirx.const(0, "int32")
    for index, extent in zip(load.indices, load.source.shape, strict=True):
        offset = offset * extent + index
    coefficients = tvm.sym.detect_linear_equation(offset, variables)
    if not coefficients or not all(isinstance(c, tirx.IntImm) for c in coefficients):
        return None
    return [int(c) for c in coefficients[: len(variables)]]
