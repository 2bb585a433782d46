"""What the classes for a model and its tensors are called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tcomp.codegen.model_source import api_symbol, identifier
from tcomp.plan.program import Program
from tcomp.plan.program import Tensor as ModelTensor

_TAKEN = frozenset(
    {
        # Members of the classes, in either language.
        "api", "cancel", "close", "context", "inputs", "outputs", "run", "sharing", "threads",
        "weights",
        # Words that neither Kotlin nor Swift takes for a name, or that name a type in them.
        "Any", "Protocol", "Self", "Type", "as", "associatedtype", "break", "case", "catch", "class",
        "continue", "default", "defer", "deinit", "do", "else", "enum", "extension", "fallthrough",
        "false", "fileprivate", "for", "fun", "func", "guard", "if", "import", "in", "init", "inout",
        "interface", "internal", "is", "let", "nil", "null", "object", "open", "operator", "package",
        "private", "protocol", "public", "repeat", "rethrows", "return", "self", "static", "struct",
        "subscript", "super", "switch", "this", "throw", "throws", "true", "try", "typealias", "typeof",
        "val", "var", "when", "where", "while",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """An input or output: its property, and what a comment says about it."""

    name: str
    constant: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    elements: int
    comment: str


class Names:
    """The names that bindings of a model share."""

    def __init__(self, program: Program) -> None:
        self.model = identifier(program.name)
        self.api = api_symbol(program)
        self.type = "".join(part[:1].upper() + part[1:] for part in self.model.split("_")) or "Model"
        if not self.type[0].isalpha():
            self.type = f"Model{self.type}"
        taken = set(_TAKEN)
        self.inputs = _tensors("Input", program.inputs, taken)
        self.outputs = _tensors("Output", program.outputs, taken)
        signature = [[f"{t.name}: {_type(t)}" for t in tensors] for tensors in (self.inputs, self.outputs)]
        self.comment = f"{self.model}: {', '.join(signature[0])} -> {', '.join(signature[1])}"


def _type(tensor: Tensor) -> str:
    return f"{tensor.dtype}[{','.join(map(str, tensor.shape))}]"


def _tensors(kind: str, tensors: Sequence[ModelTensor], taken: set[str]) -> list[Tensor]:
    found: list[Tensor] = []
    for index, tensor in enumerate(tensors):
        name = identifier(tensor.name).strip("_") or kind.lower()
        name = identifier(name[:1].lower() + name[1:])
        while not taken.isdisjoint({name, f"{name.upper()}_SHAPE"}):
            name += "_"
        constant = f"{name.upper()}_SHAPE"
        taken |= {name, constant}
        shape = tensor.type.static_shape
        elements = tensor.type.nbytes // tensor.type.with_shape((1,)).nbytes
        comment = f"{kind} {index}: {tensor.type.dtype}[{','.join(map(str, shape))}]"
        found.append(Tensor(name, constant, tensor.type.dtype, shape, tensor.type.nbytes, elements, comment))
    return found
