"""Loop nests written directly: elements of tensor expressions, and loops around stores of them.

Elementwise and reduction templates state their loops outright instead of transforming a default nest:
`Elements` gives the scalar expression of any element of a tensor, with everything it is computed from
inlined, and `loop`, `parallel`, `vector_loop` put it under loops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tcomp.tensor.math import dtype_of
from tcomp.tvm_api import Tensor, structural_mutate, te, tirx, tvm

Expression = Any
Statement = Any
Buffer = Any
Body = Callable[[Expression], Statement]

_SERIAL, _PARALLEL, _VECTORIZED, _UNROLLED = 0, 1, 2, 3
_LOAD = "te.tensor_load"
_GUARDS = ("tirx.if_then_else",)


def constant(value: float, dtype: str = "int32") -> Expression:
    return tirx.const(value, dtype)


def sequence(statements: Sequence[Statement]) -> Statement:
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(list(statements))


def _for(extent: int, kind: int, name: str, body: Body) -> Statement:
    if extent == 1:
        return body(constant(0))
    variable = tirx.Var(name, "int32")
    return tirx.For(variable, constant(0), constant(extent), kind, body(variable))


def loop(extent: int, body: Body, name: str = "i") -> Statement:
    """`for i in range(extent): body(i)`; no loop at all for a single iteration."""
    return _for(extent, _SERIAL, name, body)


def unrolled(extent: int, body: Body, name: str = "u") -> Statement:
    """As `loop`, written out."""
    return _for(extent, _UNROLLED, name, body)


def parallel(extent: int, body: Body, name: str = "p") -> Statement:
    """As `loop`, its iterations shared among threads."""
    return _for(extent, _PARALLEL, name, body)


def vectorized(lanes: int, body: Body, name: str = "lane") -> Statement:
    """One vector operation for each operation of `body`."""
    return _for(lanes, _VECTORIZED, name, body)


def vector_loop(extent: int, lanes: int, unroll: int, body: Body) -> list[Statement]:
    """`body` at every index of [0, extent), in vectors, without a scalar rest.

    Whole blocks of `unroll` vectors come first, then the vectors that are left, then one more vector that
    ends at `extent` and overlaps what came before it: `body` must be free to run twice at an index.
    Extents below `lanes` take narrower vectors of a power of two.
    """
    while lanes > extent:
        lanes //= 2
    block = lanes * unroll
    blocks, vectors = extent // block, extent % block // lanes

    def strip(start: Expression) -> Statement:
        return vectorized(lanes, lambda lane: body(start + lane))

    statements: list[Statement] = []
    if blocks:
        statements.append(
            loop(blocks, lambda b: unrolled(unroll, lambda u: strip(b * block + u * lanes)), "block")
        )
    if vectors:
        statements.append(unrolled(vectors, lambda u: strip(u * lanes + blocks * block)))
    if extent % lanes:
        statements.append(strip(constant(extent - lanes)))
    return statements


def local(shape: Sequence[int], dtype: str, name: str) -> tuple[Statement, Buffer]:
    """A buffer that lives as long as the statements after its allocation; small ones lie on the stack."""
    buffer = tirx.decl_buffer(list(shape), dtype, name=name, scope="local")
    return tirx.AllocBuffer(buffer), buffer


class Elements:
    """Elements of tensors at symbolic indices.

    `buffers` are the tensors that lie in memory; all others are computed where they are needed. Values
    that an expression needs are bound to variables, once for each point, in `statements`: these come
    before the statement that uses the result. An `Elements` serves one point of a nest.
    """

    def __init__(self, buffers: Mapping[Tensor, Buffer]) -> None:
        self.statements: list[Statement] = []
        self._buffers = buffers
        self._known: dict[tuple[Any, ...], Expression] = {}
        self._analyzer: Any = tvm.sym.Analyzer()
        self._guarded = 0

    def bind(self, tensor: Tensor, value: Expression) -> None:
        """Let `value` stand for every element of `tensor` at this point (a reduction's result)."""
        self._known[(tensor,)] = value

    def element(self, tensor: Tensor, indices: Sequence[Expression]) -> Expression:
        """The value of `tensor[indices]`."""
        if (tensor,) in self._known:
            return self._known[(tensor,)]
        at = [self._analyzer.simplify(i) for i in indices]
        if tensor in self._buffers:
            return tirx.BufferLoad(self._buffers[tensor], at)
        key = (tensor, *(str(i) for i in at))
        if key not in self._known:
            value = self.expression(tensor.op.body[tensor.value_index], tensor.op.axis, at)
            if self._guarded:
                return value
            self._known[key] = self._bound(value, tensor.op.name)
        return self._known[key]

    def expression(self, body: Expression, axes: Sequence[Any], indices: Sequence[Expression]) -> Expression:
        """`body`, a tensor expression over `axes`, at `indices`."""
        values = {axis.var: index for axis, index in zip(axes, indices, strict=True)}

        def on_variable(variable: Any, mutator: Any) -> Expression:
            return values.get(variable, variable)

        def on_call(call: Any, mutator: Any) -> Expression:
            if call.op.name == _LOAD:
                return self.element(call.args[0], [mutator.mutate(i) for i in call.args[1:]])
            if call.op.name not in _GUARDS:
                return mutator.default_mutate(call)
            condition = mutator.mutate(call.args[0])
            self._guarded += 1
            branches = [mutator.mutate(a) for a in call.args[1:]]
            self._guarded -= 1
            return tirx.if_then_else(condition, *branches)

        return structural_mutate(body, [(tvm.ir.Var, on_variable), (tvm.ir.Call, on_call)])

    def store(self, buffer: Buffer, tensor: Tensor, indices: Sequence[Expression]) -> Statement:
        """Store `tensor[indices]` into `buffer`, after what its value needs."""
        value = self.element(tensor, indices)
        at = [self._analyzer.simplify(i) for i in indices]
        return sequence([*self.statements, tirx.BufferStore(buffer, value, at)])

    def _bound(self, value: Expression, name: str) -> Expression:
        if isinstance(value, (tvm.ir.Var, tvm.ir.expr.TensorLoad, tirx.FloatImm, tirx.IntImm)):
            return value
        variable = tirx.Var(name, dtype_of(value))
        self.statements.append(tirx.Bind(variable, value))
        return variable


def buffers_of(tensors: Sequence[Tensor], prefix: str) -> list[Buffer]:
    """A buffer for each tensor."""
    return [
        tirx.decl_buffer([int(d) for d in t.shape], str(t.dtype), name=f"{prefix}{i}")
        for i, t in enumerate(tensors)
    ]


def function(parameters: Sequence[Buffer], body: Statement) -> Any:
    """The function of `parameters` that runs `body`; no two of them overlap."""
    return tirx.PrimFunc(list(parameters), body).with_attrs({"tirx.noalias": True})


def is_computed(tensor: Tensor) -> bool:
    """Whether `tensor` has an element expression: it is neither an input nor an opaque result."""
    return isinstance(tensor.op, te.ComputeOp)
