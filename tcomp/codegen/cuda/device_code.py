"""From scheduled TIR to CUDA C: one `__global__` function for each launch."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import isinf, prod
from pathlib import Path
from typing import Any

from tcomp.errors import BuildError
from tcomp.relay.types import numpy_dtype
from tcomp.target.target import Target
from tcomp.target.tile_map import TileMap
from tcomp.tensor.bfloat16 import ROUNDED
from tcomp.tensor.float8 import as_bits
from tcomp.tensor.gpu.threads import DYNAMIC_SHARED, grid_and_block, launches_of
from tcomp.tensor.intrinsics import dtype_of
from tcomp.tensor.reach import check_buffers
from tcomp.tensor.tensor_cores.copy_engine import CLUSTER, TILES, tile_map_of
from tcomp.tvm_api import (
    PrimFunc,
    global_function,
    load_cuda,
    structural_map,
    structural_mutate,
    structural_walk,
    tirx,
    tvm,
)

HEADERS = Path(__file__).parent / "device"
"""What generated code includes."""
_DEVICE_FUNCTION = re.compile(r"\btcomp_\w+")
"""A function of a header."""
_DEVICE_KERNEL = 2
"""`calling_conv` of a function that the driver launches."""


@dataclass(frozen=True)
class Launch:
    """One `__global__` function, which takes all parameters of its kernel, and how it is launched.

    Behind those it takes `maps`, of the tensors at parameters of these numbers.
    """

    symbol: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    dynamic_shared_bytes: int = 0
    maps: tuple[tuple[int, TileMap], ...] = ()


@dataclass(frozen=True)
class DeviceCode:
    """CUDA C of a kernel, and its launches in order."""

    source: str
    launches: tuple[Launch, ...]


def device_code(function: PrimFunc, symbol: str, target: Target) -> DeviceCode:
    """The code of a scheduled `function`, its `__global__` functions named after `symbol`.

    Raises BuildError when TVM refuses it, UnsupportedError when a buffer is too large.
    """
    check_buffers(function)
    function = as_bits(function)
    parts = launches_of(function)
    symbols = [symbol if len(parts) == 1 else f"{symbol}_{number}" for number in range(len(parts))]
    module = {
        tvm.ir.GlobalVar(name): _device_function(function, part, name, target)
        for name, part in zip(symbols, parts, strict=True)
    }
    device = _tvm_target(target)
    try:
        lowered = _lowering()(tvm.IRModule(module))
        source = global_function("target.build.cuda")(lowered, device).inspect_source("cuda")
    except Exception as error:  # TVM raises many kinds, all of them meaning that the code cannot be built.
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise BuildError(
            f"code generation for {symbol} on target `{target.name}` failed: {reason[-1]}"
        ) from error
    for name, part in zip(symbols, parts, strict=True):
        source = _in_clusters(source, name, _launch_facts(part)[2])
    return DeviceCode(
        _includes(source) + source,
        tuple(_launch(function, name, part) for name, part in zip(symbols, parts, strict=True)),
    )


def _in_clusters(source: str, symbol: str, blocks: int) -> str:
    """`source`, whose function `symbol` is launched in clusters: TVM has no word for it."""
    if blocks == 1:
        return source
    bounds = rf"(__launch_bounds__\(\d+\) {symbol}\()"
    return re.sub(bounds, rf"__cluster_dims__({blocks}, 1, 1) \1", source)


def _includes(source: str) -> str:
    """Directives for the headers whose functions `source` calls."""
    called = set(_DEVICE_FUNCTION.findall(source))
    headers = sorted(HEADERS.glob("*.cuh"))
    needed = [h.name for h in headers if called & set(_DEVICE_FUNCTION.findall(h.read_text()))]
    return "".join(f'#include "{name}"\n' for name in needed)


def _device_function(function: PrimFunc, part: Any, symbol: str, target: Target) -> PrimFunc:
    pointers: list[Any] = []
    declarations: list[Any] = []
    flat = _Flat()
    for buffer in function.params:
        pointer = tirx.Var(f"{buffer.name}_pointer", tirx.buffer.buffer_data_pointer_type(buffer))
        pointers.append(pointer)
        declarations.append(tirx.DeclBuffer(flat.of(buffer), data=pointer))
    part, maps, _ = _launch_facts(part)
    part = flat.statement(part)
    attrs = {
        "global_symbol": symbol,
        "tirx.noalias": True,
        "target": _tvm_target(target),
        "calling_conv": _DEVICE_KERNEL,
        "tirx.is_global_func": True,
    }
    parameters = [*pointers, *(variable for variable, _, _ in maps)]
    return tirx.PrimFunc(parameters, tirx.SeqStmt([*declarations, part])).with_attrs(attrs)


def _launch_facts(part: Any) -> tuple[Any, list[tuple[Any, Any, TileMap]], int]:
    """A launch without what is said about it: maps, their variables and buffers; blocks of a cluster."""
    maps: list[tuple[Any, Any, TileMap]] = []
    cluster = 1
    while isinstance(part, tirx.AttrStmt) and part.attr_key in (TILES, CLUSTER):
        if part.attr_key == TILES:
            maps.append(tile_map_of(part))
        else:
            cluster = int(part.node)
        part = part.body
    return part, maps, cluster


class _Flat:
    """Buffers as their elements in row-major order.

    TVM's FlattenBuffer would do the same and simplify the positions, where it takes `(i % 12 + 1) % 4` beside
    `(i // 12 + 1) % 3 * 4` for `i % 4`.
    """

    def __init__(self) -> None:
        self._flat: dict[str, Any] = {}

    def of(self, buffer: Any) -> Any:
        key = repr(buffer.__chandle__())
        if key not in self._flat:
            size = prod(int(d) for d in buffer.shape)
            scope = str(buffer.scope())
            self._flat[key] = tirx.decl_buffer([size], str(buffer.dtype), name=str(buffer.name), scope=scope)
        return self._flat[key]

    def statement(self, statement: Any) -> Any:
        def on_allocation(allocation: Any, mutator: Any) -> Any:
            return tirx.AllocBuffer(self.of(allocation.buffer), annotations=allocation.annotations)

        def on_load(load: Any, mutator: Any) -> Any:
            indices = [mutator.mutate(i) for i in load.indices]
            return tirx.BufferLoad(self.of(load.source), [_offset(indices, load.source.shape)])

        def on_store(store: Any, mutator: Any) -> Any:
            indices = [mutator.mutate(i) for i in store.indices]
            at = _offset(indices, store.buffer.shape)
            return tirx.BufferStore(self.of(store.buffer), mutator.mutate(store.value), [at])

        rules = [
            (tirx.AllocBuffer, on_allocation),
            (tvm.ir.expr.TensorLoad, on_load),
            (tirx.BufferStore, on_store),
        ]
        return structural_mutate(statement, rules)


def _offset(indices: Sequence[Any], shape: Sequence[Any]) -> Any:
    offset: Any = tirx.const(0, "int32")
    for index, extent in zip(indices, shape, strict=True):
        offset = offset * extent + index
    return offset


def _launch(function: PrimFunc, symbol: str, part: Any) -> Launch:
    part, maps, _ = _launch_facts(part)
    numbers = {repr(b.__chandle__()): number for number, b in enumerate(function.params)}
    shared_bytes: list[int] = []

    def on_allocation(allocation: Any) -> None:
        if str(allocation.buffer.scope()) == DYNAMIC_SHARED:
            itemsize = numpy_dtype(str(allocation.buffer.dtype)).itemsize
            shared_bytes.append(prod(int(d) for d in allocation.buffer.shape) * itemsize)

    structural_walk(part, [(tirx.AllocBuffer, on_allocation)])
    grid, block = grid_and_block(part)
    return Launch(
        symbol,
        grid,
        block,
        sum(shared_bytes),
        tuple((numbers[repr(buffer.__chandle__())], tiles) for _, buffer, tiles in maps),
    )


def _tvm_target(target: Target) -> Any:
    assert target.gpu is not None
    load_cuda()
    return tvm.target.Target({"kind": "cuda", "arch": target.gpu.arch})


@cache
def _lowering() -> Callable[[Any], Any]:
    """TVM's passes that concern loops. Templates place barriers and threads themselves."""
    return tvm.ir.transform.Sequential(
        [
            tirx.transform.BF16ComputeLegalize(),
            tirx.transform.NarrowDataType(32),
            tirx.transform.VectorizeLoop(True),
            tirx.transform.StorageRewrite(),
            tirx.transform.UnrollLoop(),
            tirx.transform.StmtSimplify(),
            tvm.transform.module_pass(_keep_nan, opt_level=0, name="KeepNaN"),
            tvm.transform.module_pass(_round_bfloat16, opt_level=0, name="RoundBfloat16"),
            tirx.transform.LowerIntrin(),
            tirx.transform.BF16StorageLegalize(),
            tvm.transform.module_pass(_name_infinity, opt_level=0, name="NameInfinity"),
        ]
    )


def _keep_nan(module: Any, context: Any) -> Any:
    """`max` and `min` of floats as functions that answer NaN where either operand is."""

    def on_extreme(node: Any) -> Any:
        dtype = dtype_of(node)
        name = "tcomp_maximum" if isinstance(node, tirx.Max) else "tcomp_minimum"
        return tirx.call_pure_extern(dtype, name, node.a, node.b) if dtype.startswith("float") else node

    return _mapped(module, ((tirx.Max, tirx.Min), on_extreme))


def _round_bfloat16(module: Any, context: Any) -> Any:
    """Rounding to bfloat16 by an instruction: in bits, what is rounded would be written out four times, and
    what follows from that, rounded again, sixteen times."""

    def on_call(found: Any) -> Any:
        if getattr(found.op, "name", "") != ROUNDED:
            return found
        return tirx.call_pure_extern(dtype_of(found), "tcomp_bfloat16_bits", *found.args)

    return _mapped(module, (tvm.ir.Call, on_call))


def _name_infinity(module: Any, context: Any) -> Any:
    """Infinity of bfloat16 as that of float32, converted: TVM has a name in CUDA C for that one alone."""

    def on_constant(node: Any) -> Any:
        if dtype_of(node) != "bfloat16" or not isinf(node.value):
            return node
        return tirx.Cast("bfloat16", tirx.FloatImm("float32", node.value))

    return _mapped(module, (tirx.FloatImm, on_constant))


def _mapped(module: Any, rule: Any) -> Any:
    changed = {v: f.with_body(structural_map(f.body, rule)) for v, f in module.functions.items()}
    return tvm.IRModule(changed, attrs=module.attrs)
