"""What an operator declares. The declarations themselves are in `tcomp/ops`, one file a family."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from tcomp.errors import TypeRuleError
from tcomp.registry import Registry
from tcomp.relay.graph import Attr, Attrs, Node
from tcomp.relay.types import Array, TensorType

TypeRule = Callable[[Sequence[TensorType], Attrs], Sequence[TensorType]]
Evaluate = Callable[[Sequence[Array], Attrs], Sequence[Array]]
# Inputs and results are `te.Tensor`s; relay itself knows nothing of TVM, so they are Any here.
Compute = Callable[[Sequence[Any], Attrs, Sequence[TensorType]], Sequence[Any]]


class FusionKind(Enum):
    """How an operator may take part in a fused kernel."""

    ELEMENTWISE = "elementwise"
    """output[i] depends on input[i] (numpy broadcasting included): prologue, epilogue or on its own."""
    MOVEMENT = "movement"
    """output[i] is one element of an input, at an index known from i: prologue, or on its own."""
    REDUCTION = "reduction"
    """Reduces rows (softmax, norms, sums): an anchor; elementwise may be fused around it."""
    CONTRACTION = "contraction"
    """matmul, convolution, pooling: an anchor; elementwise may be fused around it."""
    OPAQUE = "opaque"
    """Data-dependent or sequential: always a kernel of its own."""
    VIEW = "view"
    """Same bytes under another shape (reshape): no kernel at all, an alias in the plan."""


class LayoutRule(Enum):
    """How a blocked channel layout (NCHW16c) passes through an operator."""

    NONE = "none"
    """Needs plain layout."""
    ELEMENTWISE = "elementwise"
    """Works on any layout as long as all full-rank operands share it."""
    CONVOLUTION = "convolution"
    """Has `data_layout` and `out_layout` attributes."""
    POOL = "pool"
    """Has a `data_layout` attribute; the output has the same layout."""
    AXIS = "axis"
    """Works on any layout once its `axis` attribute is mapped, whole blocks provided (concat)."""


@dataclass(frozen=True)
class Sample:
    """One conformance case: the operator on random inputs of these types.

    `low`/`high` bound random values; `inputs` gives some operands exactly (index -> array), as for
    gather's indices. `rtol` widens the tolerance where float32 arithmetic needs it. Operands listed in
    `constant` are compile-time constants, as weights are in a model.
    """

    types: tuple[TensorType, ...]
    attrs: Attrs = field(default_factory=dict[str, Attr])
    low: float = -2.0
    high: float = 2.0
    inputs: Mapping[int, Array] = field(default_factory=dict[int, Array])
    constant: tuple[int, ...] = ()
    rtol: float = 1e-5
    atol: float = 1e-5


@dataclass(frozen=True)
class Cost:
    """Work of one application: floating-point operations and bytes that must move at least once."""

    flops: int
    nbytes: int


@dataclass(frozen=True)
class Alias:
    """Memory that an operand and a result may share: the smaller one lies `offset` bytes inside the other."""

    input: int
    output: int
    offset: int


AliasRule = Callable[[Sequence[TensorType], Attrs, Sequence[TensorType]], Sequence[Alias]]
CostRule = Callable[[Sequence[TensorType], Attrs, Sequence[TensorType]], Cost]


@dataclass(frozen=True)
class Op:
    """One operator with every fact about it.

    - `attrs`: attribute names with their defaults; `REQUIRED` marks those that must be given.
    - `infer`: output types from input types (shapes may be symbolic) and attributes; raises TypeRuleError.
    - `evaluate`: the numpy reference. `compute`: the tensor expression, for static shapes; None when the
      operator never reaches code generation as such (a pass or the frontend removes it).
    - `aliases`: for static types, the aliases that make the operator a mere arrangement of memory; none where
      it has to move elements.
    - `takes_movement`: a contraction whose schedules read operands through slices and transposes, and write
      their output through a transpose, that leave the innermost axis where it is.
    - `unpacks`: it computes weights from fewer bytes, which contractions do as they read them.
    - `zero_is_finite`: an elementwise operator that maps any mix of zero operands to a finite value, so
      that padding lanes of a blocked layout stay finite through it.
    - `flops_per_element`: for the default cost rule; `cost` replaces that rule.
    """

    name: str
    infer: TypeRule
    evaluate: Evaluate
    compute: Compute | None
    kind: FusionKind
    attrs: Mapping[str, Attr] = field(default_factory=dict[str, Attr])
    arity: tuple[int, int | None] = (1, 1)
    layout: LayoutRule = LayoutRule.NONE
    aliases: AliasRule | None = None
    takes_movement: bool = False
    unpacks: bool = False
    zero_is_finite: bool = False
    commutative: bool = False
    flops_per_element: int = 1
    cost: CostRule | None = None
    samples: tuple[Sample, ...] = ()

    def complete_attrs(self, attrs: Attrs) -> dict[str, Attr]:
        """`attrs` with defaults filled in, in declaration order.

        Raises TypeRuleError for unknown or missing attributes.
        """
        unknown = [name for name in attrs if name not in self.attrs]
        if unknown:
            raise TypeRuleError(
                f"`{self.name}` has no attribute `{unknown[0]}`; it has {', '.join(self.attrs) or 'none'}"
            )
        complete = {name: attrs.get(name, default) for name, default in self.attrs.items()}
        missing = [name for name, value in complete.items() if value is REQUIRED]
        if missing:
            raise TypeRuleError(f"`{self.name}` needs attribute `{missing[0]}`")
        return complete

    def infer_types(self, types: Sequence[TensorType], attrs: Attrs) -> tuple[TensorType, ...]:
        """Output types, after checking the number of operands."""
        least, most = self.arity
        if len(types) < least or (most is not None and len(types) > most):
            expected = str(least) if most == least else f"{least} to {most}" if most else f"at least {least}"
            raise TypeRuleError(f"`{self.name}` takes {expected} operands, not {len(types)}")
        return tuple(self.infer(types, attrs))

    def aliases_of(self, node: Node) -> Sequence[Alias]:
        """How the operands and results of `node` may share memory; empty when they may not."""
        inputs, outputs = ([v.type for v in values] for values in (node.inputs, node.outputs))
        if self.aliases is None or not all(t.is_static for t in (*inputs, *outputs)):
            return ()
        return self.aliases(inputs, node.attrs, outputs)

    def cost_of(self, inputs: Sequence[TensorType], attrs: Attrs, outputs: Sequence[TensorType]) -> Cost:
        """Floating-point operations and minimal bytes moved, for static types."""
        if self.cost is not None:
            return self.cost(inputs, attrs, outputs)
        nbytes = sum(t.nbytes for t in (*inputs, *outputs))
        elements = sum(t.nbytes // max(1, TensorType((), t.dtype).nbytes) for t in outputs)
        return Cost(elements * self.flops_per_element, nbytes)


REQUIRED = "<required>"
OPS: Registry[Op] = Registry("operator", "tcomp.ops")


def declare(op: Op) -> Op:
    """Register `op`; called at import by the modules of `tcomp/ops`."""
    return OPS.register(op.name, op)
