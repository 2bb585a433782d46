"""From scheduled TIR to functions with a plain C ABI: raw pointers in, an `int32` status out.

Everything that becomes machine code goes through `lower`, whether it runs in this process (`jit`) or in
an artifact (`artifact`): both hold the same code for the same kernel, but that objects for cores that execute
in order have another order of instructions (`ordering`).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, Literal

from tcomp.codegen import extremes, halves, in_order, sve
from tcomp.codegen.macho import MachO
from tcomp.codegen.ordering import ordered
from tcomp.errors import BuildError, TargetError
from tcomp.target.host import CHECKED_FEATURES
from tcomp.target.target import Target
from tcomp.target.tiles import TILE_FEATURES
from tcomp.tensor.blocks import lower_blocks
from tcomp.tensor.cpu.vectors import compiled_for
from tcomp.tensor.float8 import as_bits
from tcomp.tensor.intrinsics import with_instructions
from tcomp.tensor.reach import check_buffers
from tcomp.tvm_api import PrimFunc, s_tir, structural_map, structural_walk, tirx, tvm

STACK_BYTES = 16 * 1024
"""Largest buffer local to a kernel that stays on the stack; larger ones come from the workspace."""
WORKSPACE_ALIGNMENT = 64
"""As `ALIGNMENT` of freestanding.c."""
PARALLEL_CHUNKS = 64
"""Iterations of every parallel loop, as `CHUNKS` of the C runtime's pool.c."""
_PLAIN_C = 1
"""`calling_conv` of a function that TVM's MakePackedAPI leaves as it is."""
_WIDEST_EXTREME = "tcomp.widest_extreme"
"""Attribute of functions: `extremes.widest_instruction` of their target."""
_SVE_BITS = "tcomp.sve_bits"
"""Attribute of functions in vectors of SVE: their length."""
_HALF_LOADS = "tcomp.half_loads"
"""Attribute of functions whose vectors are loaded in halves."""
_PIPELINE = "tcomp_plain_c"
_OPT_LEVEL = 1
"""Of LLVM. Templates vectorise and unroll themselves: levels 2 and 3 take a fifth more of a build's time,
make kernels no faster (0.2% over those of four models), and spill more registers on AVX-512."""
_COMPILED_AS = {"neoverse-n1": "cortex-a76"}
"""Cores for which LLVM makes the code of another: Neoverse N1 is Cortex-A76 with other caches, but for it
LLVM loads further ahead, until it runs out of registers."""
_TENSOR_DATA, _ANY_VALUE = 1, 15
"""Fields of DLTensor and of TVM's argument slots, by their numbers in TVM's `TVMStructFieldKind`."""
_DLTENSOR_AT = {"objects": 24, "dltensors": 0}
"""Where an argument of a packed function has its DLTensor: TVM's tensor objects have a header before it."""
Tensors = Literal["objects", "dltensors"]
"""What TVM gives to a packed function: objects in one process, DLTensors in its RPC server."""


def to_c_abi(function: PrimFunc, symbol: str | None = None) -> PrimFunc:
    """`function(buffers...)` -> `int32 function(pointers...)`; private to its module without a `symbol`.

    Pointers must not alias. The status is 0, or -1 when a workspace or parallel launch fails.
    """
    pointers: list[Any] = []
    declarations: list[Any] = []
    for buffer in function.params:
        pointer = tirx.Var(f"{buffer.name}_pointer", tirx.buffer.buffer_data_pointer_type(buffer))
        pointers.append(pointer)
        declarations.append(tirx.DeclBuffer(buffer, data=pointer))
    # No Return here: it would come before the frees of workspaces, and the code after it would be dead.
    body = tirx.SeqStmt([*declarations, function.body])
    attrs: dict[str, Any] = dict(function.attrs or {})
    attrs.pop("global_symbol", None)
    attrs |= {"calling_conv": _PLAIN_C, "tirx.noalias": True}
    if symbol is not None:
        attrs["global_symbol"] = symbol
    return tirx.PrimFunc(pointers, body, ret_type=tvm.ir.PrimType("int32")).with_attrs(attrs)


def packed_entry(function: PrimFunc, kernel: Any, symbol: str, tensors: Tensors) -> PrimFunc:
    """A function that TVM finds under `symbol` and that only calls `kernel`, the GlobalVar of the plain one.

    Its arguments are `tensors`. They are not checked here (`KernelRunner` does): checks as TVM emits
    them take as long to compile as a small kernel.
    """
    handle = tvm.ir.PointerType(tvm.ir.PrimType("void"))
    names = ("self", "arguments", "count", "result")
    parameters = [tirx.Var(n, "int32" if n == "count" else handle) for n in names]
    pointers: list[Any] = []
    for index, buffer in enumerate(function.params):
        held = tirx.tvm_struct_get(parameters[1], index, _ANY_VALUE, handle)
        tensor = tirx.handle_add_byte_offset(held, _DLTENSOR_AT[tensors])
        data = tirx.tvm_struct_get(tensor, 0, _TENSOR_DATA, handle)
        pointers.append(tirx.reinterpret(tirx.buffer.buffer_data_pointer_type(buffer), data))
    status = tvm.ir.Call(kernel, pointers, ret_ty=tvm.ir.PrimType("int32"))
    attrs = {"calling_conv": _PLAIN_C, "global_symbol": f"__tvm_ffi_{symbol}"}
    throw = tvm.ir.Call("tirx.tvm_throw_last_error", [], ret_ty="int32")
    body = tirx.IfThenElse(status != tirx.const(0, "int32"), tirx.Evaluate(throw), None)
    return tirx.PrimFunc(parameters, body, ret_type=tvm.ir.PrimType("int32")).with_attrs(attrs)


def build(
    functions: Mapping[str, PrimFunc], target: Target, packed: str | None = None, tensors: Tensors = "objects"
) -> Any:
    """A TVM runtime module with one plain C function for each of `functions`, by symbol.

    With `packed`, the kernels are private to the module, and one more function, of TVM's calling
    convention and of that name, calls the only kernel there is with `tensors`.
    Raises BuildError when TVM or LLVM refuses the code, UnsupportedError when a buffer is too large.
    """
    target = compiled_for(functions.values(), target)
    module: dict[Any, PrimFunc] = {}
    for symbol, function in functions.items():
        variable = tvm.ir.GlobalVar(symbol)
        check_buffers(function)
        function = as_bits(function)
        plain = to_c_abi(with_instructions(function, target), None if packed else symbol)
        plain = plain.with_attr(_WIDEST_EXTREME, extremes.widest_instruction(target))
        plain = plain.with_attr(_HALF_LOADS, True) if target.half_loads else plain
        module[variable] = plain.with_attr(_SVE_BITS, target.sve_bits) if target.sve_bits else plain
        if packed is not None:
            module[tvm.ir.GlobalVar(packed)] = packed_entry(function, variable, packed, tensors)
    try:
        return tirx.build(tvm.IRModule(module), target=_tvm_target(target), pipeline=_PIPELINE)
    except Exception as error:  # TVM raises many kinds, all of them meaning that the code cannot be built.
        reason = str(error).strip().splitlines() or [type(error).__name__]
        names = ", ".join(list(functions)[:3])
        raise BuildError(
            f"code generation for {names} on target `{target.name}` failed: {reason[-1]}"
        ) from error


def object_code(functions: Mapping[str, PrimFunc], target: Target) -> bytes:
    """The object of `functions`.

    In objects for Apple's systems the functions are private to the library, as linkers there need no list of
    what to export. Raises BuildError as `build` does.
    """
    with sve.alone(target):
        code = object_of(build(functions, target), target)
    return MachO("the kernels' object", code).hidden() if target.system == "apple" else code


def assembly_of(module: Any, target: Target) -> str:
    """The assembly of a module that was built for `target`, in the order that its object has."""
    text = str(module.inspect_source("asm"))
    return ordered(text, str(target.llvm["mcpu"])) if _is_ordered(target) else text


def object_of(module: Any, target: Target, assembly: str | None = None) -> bytes:
    """The object of a module that was built for `target`. Who has its `assembly_of` may give that.

    LLVM ends the process when a disk is full, so it writes to memory.
    """
    if _is_ordered(target):
        module = _assembled(module, assembly or assembly_of(module, target))
    memory = os.memfd_create("tcomp-object")
    with os.fdopen(memory, "rb") as file:
        module.write_to_file(f"/proc/self/fd/{memory}", "o")
        return file.read()


def _is_ordered(target: Target) -> bool:
    """Whether code gets another order than LLVM's."""
    return target.machine == "aarch64" and target.llvm.get("mcpu") in in_order.CORES


def _assembled(module: Any, assembly: str) -> Any:
    """A module for the target of `module` that has nothing but `assembly`."""
    lines = str(module.inspect_source("ll")).splitlines()
    kept = [line for line in lines if line.startswith("target ")]
    kept += [f"module asm {_quoted(line)}" for line in assembly.splitlines()]
    target = next(
        line.partition(" = ")[2] for line in lines if line.startswith("!") and '"tvm_target"' in line
    )
    kept += ["!llvm.module.flags = !{!0}", f"!0 = {target}"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "assembly.ll")
        path.write_text("\n".join([*kept, ""]))
        return tvm.runtime.load_module(str(path))


def _quoted(line: str) -> str:
    """A string as LLVM writes it."""
    return '"' + line.replace("\\", "\\5C").replace('"', "\\22") + '"'


def workspace_bytes(function: PrimFunc, target: Target) -> int:
    """An upper bound of the memory that `function` takes while one thread runs it, for its larger buffers."""
    plain = to_c_abi(with_instructions(as_bits(function), target), "kernel")
    module = tvm.IRModule({tvm.ir.GlobalVar("kernel"): plain})
    lower, _, _ = _pipeline()
    lowered = lower(tirx.transform.BindTarget(_tvm_target(target).with_host(_tvm_target(target)))(module))
    sizes: list[int] = []

    def on_buffer(statement: Any) -> None:
        nbytes = _nbytes(statement.buffer)
        if nbytes is None:
            raise BuildError(f"buffer {statement.buffer.name} has no fixed size, which a static arena needs")
        sizes.append(0 if nbytes <= STACK_BYTES else -(-nbytes // WORKSPACE_ALIGNMENT) * WORKSPACE_ALIGNMENT)

    for part in lowered.functions.values():
        structural_walk(part.body, (tirx.AllocBuffer, on_buffer))
    return sum(sizes)


def needed_features(target: Target, with_tiles: bool = True) -> list[str]:
    """The CPU features that code for `target` may use, by LLVM's names: those worth checking before a run.

    Those of tiles, for which a process needs leave, are none of them unless the code is `with_tiles`.
    """
    enabled = tvm.target.codegen.llvm_get_cpu_features(_tvm_target(target))
    found = {str(name) for name in enabled} & CHECKED_FEATURES
    if not with_tiles:
        found -= TILE_FEATURES
    return sorted(f"sve{target.sve_bits}" if name == "sve" else name for name in found)


def _tvm_target(target: Target) -> Any:
    core = str(target.llvm.get("mcpu"))
    _check_core(core, str(target.llvm["mtriple"]))
    own: dict[str, Any] = {"mcpu": _COMPILED_AS[core]} if core in _COMPILED_AS else {}
    attributes = [*target.llvm.get("mattr", ()), *halves.llvm_attributes(target)]
    own |= {"mattr": attributes} if attributes else {}
    return tvm.target.Target({"opt-level": _OPT_LEVEL, **target.llvm, **own, **sve.llvm_target(target)})


@cache
def _check_core(core: str, triple: str) -> None:
    """Raise TargetError for a core that LLVM does not know, for which it would write code for any."""
    any_core = tvm.target.Target({"kind": "llvm", "mtriple": triple})
    known = [str(name) for name in tvm.target.codegen.llvm_get_cpu_archlist(any_core)]
    if core not in known:
        near = get_close_matches(core, known, n=3)
        hint = f"did you mean {', '.join(f'`{n}`' for n in near)}?" if near else f"one of {', '.join(known)}"
        raise TargetError(f"LLVM knows no `mcpu` `{core}` for {triple}; {hint}")


def _nbytes(buffer: Any) -> int | None:
    """Size of a buffer in bytes, or None when it is dynamic."""
    if not all(isinstance(d, tirx.IntImm) for d in buffer.shape):
        return None
    dtype = tvm.runtime.DataType(str(buffer.dtype))
    return prod(int(d) for d in buffer.shape) * ((dtype.bits * dtype.lanes + 7) // 8)


def _on_stack(statement: Any) -> Any:
    nbytes = _nbytes(statement.buffer)
    if nbytes is None or nbytes > STACK_BYTES:
        return statement
    return tirx.AllocBuffer(statement.buffer, annotations={"disable_lower_builtin": tirx.const(1, "int32")})


def _is_plain(function: Any) -> bool:
    return isinstance(function, tirx.PrimFunc) and int(function.attrs.get("calling_conv", 0)) == _PLAIN_C


def _map_plain(name: str, change: Any) -> Any:
    """A module pass that applies `change` to every plain C function."""

    def transform(module: Any, context: Any) -> Any:
        functions = {v: change(f) if _is_plain(f) else f for v, f in module.functions.items()}
        return tvm.IRModule(functions, attrs=module.attrs)

    return tvm.transform.module_pass(transform, opt_level=0, name=name)


def _add_device_scope(function: Any) -> Any:
    """What LowerTVMBuiltin wants around allocations, and what MakePackedAPI gives to packed functions only.

    It must come after StorageRewrite, which hoists allocations out of such scopes.
    """
    body = structural_map(function.body, (tirx.AllocBuffer, _on_stack))
    body = tirx.AttrStmt("default", "device_type", tirx.const(1, "int32"), body)
    body = tirx.AttrStmt("default", "device_id", tirx.const(0, "int32"), body)
    return function.with_body(body).without_attr("tirx.is_entry_func")


def _chunk_parallel(function: Any) -> Any:
    """Give every parallel loop the same number of iterations, so that the pool can share it piece by piece.

    `parallel p in n: f(p)` -> `parallel c in 64: for p in [c * n // 64, (c + 1) * n // 64): f(p)`

    To LLVM a chunk's number is a parameter. Its lowest bits are that number, and say that it is small: LLVM
    need not search long for a proof that indices do not overflow.
    """

    def on_loop(loop: Any) -> Any:
        if int(loop.kind) != tirx.ForKind.PARALLEL or int(loop.extent) == PARALLEL_CHUNKS:
            return loop
        chunk, extent = tirx.Var("chunk", "int32"), int(loop.extent)
        number = (chunk & (PARALLEL_CHUNKS - 1)).astype("int64")
        edges = [(number + i) * extent // PARALLEL_CHUNKS for i in (0, 1)]
        begin, end = (loop.min + edge.astype(str(loop.loop_var.ty.dtype)) for edge in edges)
        part = tirx.For(loop.loop_var, begin, end - begin, tirx.ForKind.SERIAL, loop.body)
        return tirx.For(chunk, 0, PARALLEL_CHUNKS, tirx.ForKind.PARALLEL, part)

    return function.with_body(structural_map(function.body, (tirx.For, on_loop)))


def _keep_nan(function: Any) -> Any:
    return extremes.keep_nan(_name_extremes(function))


def _name_extremes(function: Any) -> Any:
    return extremes.by_instructions(function, int(function.attrs.get(_WIDEST_EXTREME, 0)))


def _name_extremes_of_functions(function: Any) -> Any:
    """As `_name_extremes`, in what `exp` and the like became. SVE's operations have their names by then."""
    return function if _SVE_BITS in function.attrs else _name_extremes(function)


def _name_sve_operations(function: Any) -> Any:
    bits = function.attrs.get(_SVE_BITS)
    return function if bits is None else sve.with_functions(function, int(bits))


def _load_halves(function: Any) -> Any:
    return halves.with_functions(function) if _HALF_LOADS in function.attrs else function


def _return_zero(function: Any) -> Any:
    return function.with_body(tirx.SeqStmt([function.body, tirx.Return(tirx.const(0, "int32"))]))


def _lower_blocks(module: Any, context: Any) -> Any:
    """Blocks become plain loops around statements. Most templates write such loops, without any block."""
    found: list[Any] = []
    for function in module.functions.values():
        structural_walk(function.body, (s_tir.SBlock, found.append))
    return lower_blocks(module) if found else module


def _pipeline() -> tuple[Any, Any, Any]:
    """The part of TVM's stock lowering that concerns loops, with what plain C functions need after it.

    Stock lowering has two dozen passes more, for the threads and memory of a GPU and for what templates leave
    out anyway. They change nothing in the code of CPU kernels, and take a third of the time of all passes.
    Common subexpressions are left to LLVM, which shares fewer and so spills less.
    """
    _, _, finish_device = tirx.compilation_pipeline.get_tir_pipeline("default")
    lower = tvm.ir.transform.Sequential(
        [
            tvm.transform.module_pass(_lower_blocks, opt_level=0, name="LowerBlocks"),
            s_tir.transform.StmtSimplify(),
            s_tir.transform.LowerOpaqueBlock(),
            tirx.transform.FlattenBuffer(),
            tirx.transform.BF16ComputeLegalize(),
            tirx.transform.NarrowDataType(32),
            tirx.transform.VectorizeLoop(True),
            tirx.transform.StorageRewrite(),
            tirx.transform.UnrollLoop(),
            s_tir.transform.RenormalizeSplitPattern(),
            tirx.transform.StmtSimplify(),
            s_tir.transform.RewriteUnsafeSelect(),
            tirx.transform.VerifyMemory(),
            tirx.transform.AnnotateEntryFunc(),
            tirx.transform.SplitHostDevice(),
            tirx.transform.MakePackedAPI(),
            tirx.transform.BF16StorageLegalize(),
        ]
    )

    def finish_host() -> Any:
        return tvm.ir.transform.Sequential(
            [
                _map_plain("AddDeviceScope", _add_device_scope),
                tirx.transform.LowerTVMBuiltin(),
                _map_plain("KeepNan", _keep_nan),
                _map_plain("NameSveOperations", _name_sve_operations),
                _map_plain("LoadHalves", _load_halves),
                _map_plain("ReturnZero", _return_zero),
                _map_plain("ChunkParallel", _chunk_parallel),
                tirx.transform.LowerIntrin(),
                _map_plain("NameExtremesOfFunctions", _name_extremes_of_functions),
            ]
        )

    return lower, finish_host, finish_device


tirx.compilation_pipeline.register_tir_pipeline(_PIPELINE, _pipeline)
