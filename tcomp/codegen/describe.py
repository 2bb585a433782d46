"""The description that a compiled library carries in its file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tcomp.codegen.macho import MachO, is_macho
from tcomp.codegen.model_source import VariantCode, common_features, instruction_sets, target_names
from tcomp.plan.program import Tensor
from tcomp.runtime.description import SECTION, Description
from tcomp.runtime.elf import RELOCATABLE, SharedLibrary
from tcomp.runtime.library import TensorInfo


def description(variants: Sequence[VariantCode], embed: bool, kernels: Sequence[Path]) -> Description:
    """What to say of a library of `variants`, with `kernels` in object files that are named after them, or in
    the variants themselves where they are for a GPU.

    The sizes of kernels are taken here because a library keeps no names of the functions that a parallel
    kernel consists of.
    """
    program = variants[0].program
    return Description(
        program.name,
        target_names(variants),
        instruction_sets(variants),
        tuple(common_features(variants)),
        _tensors(program.inputs),
        _tensors(program.outputs),
        program.arena_bytes,
        program.weights_bytes,
        embed,
        tuple(map(program.label, program.steps)),
        {kernel.symbol: len(kernel.cubin.image) for variant in variants for kernel in variant.device_kernels}
        | {path.stem: code_bytes(path) for path in kernels},
        max(variant.program.packed_bytes for variant in variants),
        program.source_bytes,
    )


def code_bytes(path: Path) -> int:
    """Bytes of machine code in an object file that LLVM made.

    Its section `.text` alone: what LLVM adds in others, such as conversions of float16, is the same weak code
    in each object.
    """
    data = path.read_bytes()
    if is_macho(data):
        return sum(len(code) for _, code in MachO(str(path), data).code)
    section = SharedLibrary(str(path), memoryview(data), RELOCATABLE).section(".text")
    return 0 if section is None else section.size


def description_source(path: str) -> str:
    """Assembly that puts the packed description at `path` into the library."""
    return f"""#ifdef __APPLE__
    .section __DATA,__tcomp_about
    .globl _tcomp_about
    .private_extern _tcomp_about
_tcomp_about:
    .incbin "{path}"
#else
    .section {SECTION},"a",%progbits
    .globl tcomp_about
    .hidden tcomp_about
tcomp_about:
    .incbin "{path}"
    .section .note.GNU-stack,"",%progbits
#endif
"""


def _tensors(tensors: Sequence[Tensor]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(t.name, t.type.static_shape, t.type.dtype) for t in tensors)
