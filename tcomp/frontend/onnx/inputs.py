"""The types of a model's inputs: declared shapes, shapes the user gives, names for dynamic dimensions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from numbers import Integral

import onnx

from tcomp.errors import ModelError, UnsupportedError
from tcomp.frontend.onnx.tensors import dtype_of
from tcomp.relay.dims import Dim, symbol
from tcomp.relay.types import TensorType


class DimNames:
    """Turns ONNX's names of dynamic dimensions into symbols: valid, distinct, the same for the same name."""

    def __init__(self) -> None:
        self._symbols: dict[str, str] = {}

    def symbol(self, name: str) -> Dim:
        """The dimension ONNX calls `name`."""
        if name not in self._symbols:
            clean = re.sub(r"\W", "_", name, flags=re.ASCII) or "dim"
            clean = clean if clean.isidentifier() else f"dim_{clean}"
            taken = set(self._symbols.values())
            unique, number = clean, 2
            while unique in taken:
                unique, number = f"{clean}_{number}", number + 1
            self._symbols[name] = unique
        return symbol(self._symbols[name])


def input_types(
    values: Sequence[onnx.ValueInfoProto], given: Mapping[str, Sequence[int]]
) -> dict[str, TensorType]:
    """The type of each graph input, by name.

    `given` shapes bind dynamic dimensions; a symbol bound by one input is bound in all of them.
    Raises ModelError when a given shape contradicts a declared one, another given one, or is needed.
    """
    unknown = [name for name in given if name not in {v.name for v in values}]
    if unknown:
        names = ", ".join(f"`{v.name}`" for v in values) or "none"
        raise ModelError(
            f"--input-shape names `{unknown[0]}`, which is no input of the model; inputs: {names}"
        )
    for name, shape in given.items():
        if isinstance(shape, str) or not all(isinstance(size, Integral) for size in shape):
            raise ModelError(
                f"the shape given for `{name}` is {shape!r}; it must be whole numbers: (1, 3, 224, 224)"
            )
    names, bindings = DimNames(), dict[str, Dim]()
    types: dict[str, TensorType] = {}
    for value in values:
        declared = _declared_type(value, names, given.get(value.name))
        if value.name in given:
            _bind(value.name, declared, given[value.name], bindings)
        types[value.name] = declared
    return {
        name: TensorType(tuple(given[name]), t.dtype) if name in given else t.substitute(bindings)
        for name, t in types.items()
    }


def _declared_type(value: onnx.ValueInfoProto, names: DimNames, given: Sequence[int] | None) -> TensorType:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        described = (kind or "no type").replace("_type", "")
        raise UnsupportedError(f"input `{value.name}` is a {described}; tcomp takes tensors only")
    tensor = value.type.tensor_type
    dtype = dtype_of(tensor.elem_type, f"input `{value.name}`")
    if not tensor.HasField("shape"):
        if given is None:
            raise ModelError(
                f"input `{value.name}` has no shape in the model; give --input-shape {value.name}:1,3,224,224"
            )
        return TensorType(tuple(given), dtype)
    dims: list[Dim] = []
    for axis, dim in enumerate(tensor.shape.dim):
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            dims.append(int(dim.dim_value))
        else:
            dims.append(names.symbol(dim.dim_param or f"{value.name}_{axis}"))
    return TensorType(tuple(dims), dtype)


def _bind(name: str, declared: TensorType, given: Sequence[int], bindings: dict[str, Dim]) -> None:
    """Match a given shape with the declared one and note what its symbols stand for."""
    shown = "[" + ",".join(map(str, given)) + "]"
    if len(given) != declared.rank:
        raise ModelError(
            f"--input-shape gives `{name}` the shape {shown}, but the model declares {declared}: "
            f"{declared.rank} dimensions, not {len(given)}"
        )
    for axis, (wanted, size) in enumerate(zip(declared.shape, given, strict=True)):
        if size < 1:
            raise ModelError(f"--input-shape gives `{name}` the size {size} at axis {axis}; sizes start at 1")
        if isinstance(wanted, int):
            if wanted != size:
                raise ModelError(
                    f"--input-shape gives `{name}` the shape {shown}, but the model declares {declared}: "
                    f"axis {axis} is {wanted}, not {size}"
                )
            continue
        key = str(wanted)
        bound = bindings.setdefault(key, size)
        if bound != size:
            raise ModelError(
                f"--input-shape gives `{name}` the shape {shown}, so `{key}` is {size}, "
                f"but another input makes it {bound}"
            )
