"""Loop nests written directly: elements of tensor expressions, and loops around stores of them.

Elementwise and reduction templates state their loops outright instead of transforming a default nest:
`Elements` gives the scalar expression of any element of a tensor, with everything it is computed from
inlined, and `loop`, `parallel`, `vector_loop` put it under loops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextvars import ContextVar
from typing import Any

from tcomp.relay.types import BITS, numpy_dtype
from tcomp.tensor.math import bits_of_bfloat16, convert, dtype_of
from tcomp.tvm_api import (
    Tensor,
    structural_key,
    structural_map,
    structural_mutate,
    structural_walk,
    te,
    tirx,
    tvm,
)

Expression = Any
Statement = Any
Buffer = Any
Body = Callable[[Expression], Statement]

_SERIAL, _PARALLEL, _VECTORIZED, _UNROLLED = 0, 1, 2, 3
_LOAD = "te.tensor_load"
_GUARD = "prim.if_then_else"
_REINTERPRET = "tirx.reinterpret"


_LOOPS: ContextVar[tuple[tuple[Any, Expression], ...]] = ContextVar(
    "loops around what is being built", default=()
)


def loops_around() -> tuple[tuple[Any, Expression], ...]:
    """The variables and extents of the loops whose bodies are being built, from the outermost."""
    return _LOOPS.get()


def under(variable: Any, extent: Expression, body: Body) -> Statement:
    """`body(variable)`, built with the knowledge that the variable counts to `extent`."""
    token = _LOOPS.set((*_LOOPS.get(), (variable, extent)))
    try:
        return body(variable)
    finally:
        _LOOPS.reset(token)


def constant(value: float, dtype: str = "int32") -> Expression:
    return tirx.const(value, dtype)


def sequence(statements: Sequence[Statement]) -> Statement:
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(list(statements))


def call(name: str, *arguments: Expression) -> Statement:
    """A call of the function `name` of C or LLVM's language, of whose result nothing is used."""
    return tirx.Evaluate(tirx.call_extern("int32", name, *arguments))


def _for(extent: Expression, kind: int, name: str, body: Body, **annotations: Any) -> Statement:
    variable = tirx.Var(name, "int32")
    inside = under(variable, extent, body)
    return tirx.For(variable, constant(0), extent, kind, inside, annotations=annotations)


def _counted(extent: int, kind: int, name: str, body: Body) -> Statement:
    return body(constant(0)) if extent == 1 else _for(constant(extent), kind, name, body)


def loop(extent: int | Expression, body: Body, name: str = "i") -> Statement:
    """`for i in range(extent): body(i)`; no loop at all for a single iteration."""
    if isinstance(extent, int):
        return _counted(extent, _SERIAL, name, body)
    return _for(extent, _SERIAL, name, body)


def rolled(extent: int | Expression, body: Body, name: str = "i") -> Statement:
    """As `loop`, which a GPU's compiler does not write out either."""
    if isinstance(extent, int):
        if extent == 1:
            return body(constant(0))
        extent = constant(extent)
    return _for(extent, _SERIAL, name, body, disable_unroll=constant(1))


def loop_nest(ranges: Sequence[range], body: Callable[[list[Expression]], Statement]) -> Statement:
    """`for a in ranges[0]: for b in ranges[1]: ... body([a, b, ...])`."""

    def nest(at: list[Expression]) -> Statement:
        if len(at) == len(ranges):
            return body(at)
        values = ranges[len(at)]
        return loop(len(values), lambda i: nest([*at, i * values.step + values.start]))

    return nest([])


def written_out(extents: Sequence[int], body: Callable[[list[Expression]], Statement]) -> Statement:
    """As `loop_nest` over ranges from zero, written out."""

    def nest(at: list[Expression]) -> Statement:
        if len(at) == len(extents):
            return body(at)
        return unrolled(extents[len(at)], lambda i: nest([*at, i]))

    return nest([])


def unrolled(extent: int, body: Body, name: str = "u") -> Statement:
    """As `loop`, written out."""
    return _counted(extent, _UNROLLED, name, body)


def left_to_compiler(statement: Statement) -> Statement:
    """`statement`, whose `unrolled` loops stay loops in the code and are written out by what compiles it."""
    zero = constant(0)
    return tirx.AttrStmt(zero, "pragma_unroll_explicit", zero, statement)


def parallel(extent: int, body: Body, name: str = "p") -> Statement:
    """As `loop`, its iterations shared among threads."""
    return _counted(extent, _PARALLEL, name, body)


def vectorized(lanes: int, body: Body, name: str = "lane") -> Statement:
    """One vector operation for each of `body`; a plain loop where an operation has no vector form."""
    if lanes == 1:
        return body(constant(0))
    variable = tirx.Var(name, "int32")
    statement = _within_lanes(under(variable, lanes, body), variable, lanes)
    kind = _VECTORIZED if _has_vector_form(statement, variable) else _SERIAL
    allocations, statement = _values_in_lanes(statement, variable, lanes)
    return sequence([*allocations, tirx.For(variable, constant(0), constant(lanes), kind, statement)])


def _within_lanes(statement: Statement, lane: Expression, lanes: int) -> Statement:
    """`lane // 16 -> 0` and the like, so that what does not depend on the lane does not mention it."""
    analyzer = tvm.sym.Analyzer()
    analyzer.bind(lane, tvm.ir.Range(0, lanes))
    divisions = (tirx.FloorDiv, tirx.FloorMod)
    return structural_map(statement, (divisions, analyzer.simplify))


def _values_in_lanes(statement: Statement, lane: Expression, lanes: int) -> tuple[list[Statement], Statement]:
    """Keep the float values bound in `statement` in buffers, a lane each, that LLVM turns into registers.

    TVM's analysers substitute bound variables by their values, so a chain of operators which each read their
    operand twice would take exponential time; what lies in a buffer they leave alone.
    """
    if not _has_binds(statement):  # Most statements; mutation takes far longer than this look.
        return [], statement
    allocations: list[Statement] = []
    places: dict[str, Buffer] = {}

    def on_bind(bind: Any, mutator: Any) -> Statement:
        value = mutator.mutate(bind.value)
        if not dtype_of(value).startswith("float"):
            return tirx.Bind(bind.var, value)
        allocate, place = local((lanes,), dtype_of(value), str(bind.var.name))
        allocations.append(allocate)
        places[repr(bind.var.__chandle__())] = place
        return tirx.BufferStore(place, value, [lane])

    def on_variable(variable: Any, mutator: Any) -> Expression:
        place = places.get(repr(variable.__chandle__()))
        return variable if place is None else tirx.BufferLoad(place, [lane])

    changed = structural_mutate(statement, [(tirx.Bind, on_bind), (tvm.ir.Var, on_variable)])
    return allocations, changed


def _has_binds(statement: Statement) -> bool:
    found: list[Any] = []
    structural_walk(statement, (tirx.Bind, found.append))
    return bool(found)


def _has_vector_form(statement: Statement, lane: Any) -> bool:
    found: list[bool] = []

    def on_call(call: Any) -> None:
        name = call.op.name
        if name == _GUARD:
            found.append(not _depends_on(call.args[0], lane))
        elif not call.op.get_attr("TVectorizable"):
            found.append(not _depends_on(call, lane))

    def on_store(store: Any) -> None:
        # One bfloat16 for all lanes is a broadcast, which TVM's legalisation leaves as it is.
        if dtype_of(store.value) in BITS:
            found.append(_depends_on(store.value, lane))

    structural_walk(statement, [(tvm.ir.Call, on_call), (tirx.BufferStore, on_store)])
    return all(found)


def _depends_on(expression: Expression, variable: Any) -> bool:
    # Variables bound to values are taken to depend on the lane.
    names: list[bool] = []

    def on_variable(found: Any) -> None:
        names.append(bool(found.same_as(variable)) or not _is_index(found))

    structural_walk(expression, (tvm.ir.Var, on_variable))
    return any(names)


def _is_index(variable: Any) -> bool:
    return not isinstance(variable.ty, tvm.ir.PrimType) or str(variable.ty.dtype) == "int32"


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


CACHE_LINE = 64
"""Bytes."""


def prefetch(buffer: Buffer, index: Sequence[Expression], near: bool = True) -> Statement:
    """Ask for the cache line of `buffer[index]`, which need not lie inside, and do not wait for it.

    It goes to the first-level cache, or where it is not needed soon (not `near`) to the second.
    """
    address = tirx.address_of(tirx.BufferLoad(buffer, list(index)))
    for_reading, keep, of_data = (constant(value) for value in (0, 3 if near else 2, 1))
    return tirx.Evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch", address, for_reading, keep, of_data))


def prefetch_share(
    buffer: Buffer, behind: Sequence[Expression], number: Expression, elements: int, rounds: int
) -> list[Statement]:
    """Ask for share `number` of what begins at `buffer[behind]`, for the second-level cache.

    A walk over a panel of operands, `elements` of them a step, that is repeated `rounds` times can so spread
    the fetching of the panel that it takes next over all its steps.
    """
    dtype = numpy_dtype(str(buffer.dtype))
    share, line = -(-elements // rounds), CACHE_LINE // dtype.itemsize
    *outer, last = behind
    return [
        prefetch(buffer, [*outer, last + number * share + offset], near=False)
        for offset in range(0, share, line)
    ]


class TensorMap(MutableMapping[Tensor, Any]):
    """A mapping by tensor identity; `==` of tensors without axes builds an expression instead."""

    def __init__(self, items: Iterable[tuple[Tensor, Any]] = ()) -> None:
        self._entries: dict[tuple[int, int], tuple[Tensor, Any]] = {}
        for tensor, value in items:
            self[tensor] = value

    @staticmethod
    def _key(tensor: Tensor) -> tuple[int, int]:
        return hash(tensor.op), int(tensor.value_index)

    def __setitem__(self, tensor: Tensor, value: Any) -> None:
        self._entries[self._key(tensor)] = (tensor, value)

    def __getitem__(self, tensor: Tensor) -> Any:
        return self._entries[self._key(tensor)][1]

    def __delitem__(self, tensor: Tensor) -> None:
        del self._entries[self._key(tensor)]

    def __contains__(self, tensor: object) -> bool:
        return self._key(tensor) in self._entries

    def __iter__(self) -> Iterator[Tensor]:
        return (tensor for tensor, _ in self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)


def local(shape: Sequence[int], dtype: str, name: str) -> tuple[Statement, Buffer]:
    """A buffer that lives as long as the statements after its allocation; small ones lie on the stack."""
    buffer = tirx.decl_buffer(list(shape), dtype, name=name, scope="local")
    return tirx.AllocBuffer(buffer), buffer


def aligned_local(shape: Sequence[int], lanes: int, dtype: str, name: str) -> tuple[list[Statement], Buffer]:
    """As `local`, aligned to vectors of `lanes` elements, which divide the last extent.

    TVM aligns a buffer on the stack to 16 bytes, or to its elements where these are larger.
    """
    vectors = tirx.decl_buffer(
        [*shape[:-1], shape[-1] // lanes], f"{dtype}x{lanes}", name=name, scope="local"
    )
    elements = tirx.decl_buffer(list(shape), dtype, name=name, data=vectors.data, scope="local")
    return [tirx.AllocBuffer(vectors), tirx.DeclBuffer(elements, data=vectors.data)], elements


def fold_lanes(
    buffer: Buffer, lanes: int, combine: Callable[[Expression, Expression], Expression]
) -> list[Statement]:
    """Combine the lanes of a vector, a power of two of them, by halves into the first."""
    halves: list[Statement] = []
    while lanes > 1:
        lanes //= 2

        def half(lane: Expression, width: int = lanes) -> Statement:
            pair = [tirx.BufferLoad(buffer, [lane + offset]) for offset in (0, width)]
            return tirx.BufferStore(buffer, combine(*pair), [lane])

        halves.append(vectorized(lanes, half))
    return halves


def aligned_stack(lanes: int, dtype: str) -> Statement:
    """What makes LLVM align the stack for vectors that it spills.

    It decides whether the stack is aligned before it knows of spills, by the variables that must lie there;
    later it takes any place, and then spills of 64 bytes straddle two cache lines. A prefetch keeps a
    variable on the stack, and is all that this costs.
    """
    keep, place = local((1,), f"{dtype}x{lanes}", "on_stack")
    return sequence([keep, prefetch(place, [0])])


class Elements:
    """Elements of tensors at symbolic indices.

    `buffers` are the tensors that lie in memory; all others are computed where they are needed. Values
    that an expression needs are bound to variables, once for each point, in `statements`: these come
    before the statement that uses the result. An `Elements` serves one point of a nest. `ranges` are extents
    of variables in the indices; choices that they settle are not left to run time.
    """

    def __init__(self, buffers: TensorMap, ranges: Iterable[tuple[Any, Expression]] = ()) -> None:
        self.statements: list[Statement] = []
        self._buffers = buffers
        self._known: dict[tuple[Any, ...], Expression] = {}
        self._rows = TensorMap()
        self._analyzer: Any = tvm.sym.Analyzer()
        for variable, extent in ranges:
            self._analyzer.bind(variable, tvm.ir.Range(0, extent))
        self._guarded = 0

    def bind(self, tensor: Tensor, value: Expression) -> None:
        """Let `value` stand for every element of `tensor` at this point (a reduction's result)."""
        self._rows[tensor] = value

    def element(self, tensor: Tensor, indices: Sequence[Expression]) -> Expression:
        """The value of `tensor[indices]`."""
        if tensor in self._rows:
            return self._rows[tensor]
        at = [self._analyzer.simplify(i) for i in indices]
        if tensor in self._buffers:
            buffer = self._buffers[tensor]
            return tirx.BufferLoad(buffer, at) if isinstance(buffer, tvm.ir.Var) else buffer(at)
        key = (hash(tensor.op), int(tensor.value_index), *map(structural_key, at))
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
            if call.op.name == _REINTERPRET and dtype_of(call.args[0]) == "bfloat16":
                return bits_of_bfloat16(mutator.mutate(call.args[0]))
            if call.op.name != _GUARD:
                return mutator.default_mutate(call)
            condition = self._analyzer.simplify(mutator.mutate(call.args[0]))
            if isinstance(condition, tirx.IntImm):
                return mutator.mutate(call.args[1 if int(condition) else 2])
            self._guarded += 1
            branches = [mutator.mutate(a) for a in call.args[1:]]
            self._guarded -= 1
            return tirx.if_then_else(condition, *branches)

        def on_cast(cast: Any, mutator: Any) -> Expression:
            value = mutator.mutate(cast.value)
            return convert(value, dtype_of(cast))

        rules = [(tvm.ir.Var, on_variable), (tvm.ir.Call, on_call), (tirx.Cast, on_cast)]
        return structural_mutate(body, rules)

    def store(self, buffer: Buffer, tensor: Tensor, indices: Sequence[Expression]) -> Statement:
        """Store `tensor[indices]` into `buffer`, after what its value needs."""
        value = self.element(tensor, indices)
        at = [self._analyzer.simplify(i) for i in indices]
        return sequence([*self.statements, tirx.BufferStore(buffer, value, at)])

    def _bound(self, value: Expression, name: str) -> Expression:
        if isinstance(value, (tvm.ir.Var, tvm.ir.expr.TensorLoad, tirx.FloatImm, tirx.IntImm)):
            return value
        dtype = dtype_of(value)
        if dtype == "bool" or dtype in BITS:  # TVM's legalisation cannot bind bfloat16
            return value
        variable = tirx.Var(f"{name}_value", dtype)  # `pow` alone would hide C's function
        self.statements.append(tirx.Bind(variable, value))
        return variable


def extern(
    x: Sequence[Tensor],
    types: Sequence[tuple[tuple[int, ...], str]],
    build: Callable[[Sequence[Buffer], Sequence[Buffer]], Statement],
    name: str,
) -> list[Tensor]:
    """Tensors of `types` (shape, element type) that the statement of `build(inputs, outputs)` fills."""
    sources = [tirx.decl_buffer(t.shape, str(t.dtype), name=f"{name}_input") for t in x]
    targets = [tirx.decl_buffer(list(shape), dtype, name=f"{name}_output") for shape, dtype in types]
    result = te.extern(
        [shape for shape, _ in types],
        list(x),
        build,
        dtype=[dtype for _, dtype in types],
        name=name,
        in_buffers=sources,
        out_buffers=targets,
    )
    return [result] if len(types) == 1 else list(result)


def buffers_of(tensors: Sequence[Tensor], prefix: str) -> list[Buffer]:
    """A buffer for each tensor."""
    return [
        tirx.decl_buffer([int(d) for d in t.shape], str(t.dtype), name=f"{prefix}{i}")
        for i, t in enumerate(tensors)
    ]


def function(parameters: Sequence[Buffer], body: Statement) -> Any:
    """The function of `parameters` that runs `body`; no two of them overlap."""
    return tirx.PrimFunc(list(parameters), body).with_attrs({"tirx.noalias": True})
