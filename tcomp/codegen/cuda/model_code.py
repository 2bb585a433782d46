"""What a model for GPUs has beside its steps: cubins, a table of launches, a C function for each kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from tcomp.codegen.cuda.cubin import Cubin, compile_cubin
from tcomp.codegen.cuda.device_code import Launch, device_code
from tcomp.plan.program import Program
from tcomp.target.target import Target
from tcomp.target.tile_map import DRIVER_SWIZZLES, DRIVER_TYPES, TileMap
from tcomp.tensor.template import Scheduled

LAUNCHING = ("cuda_launch.c", "cuda_driver.c")
"""What starts kernels that generated tables describe."""
RUNTIME = ("cuda.c", "cuda_run.c", "cuda_placed.c", *LAUNCHING)
STEP = (
    "#define STEP(number, call)                                                    \\",
    "  if (tcomp_pool_is_cancelled(f->pool) || tcomp_cuda_begin(f, number) != 0 || \\",
    "      (call) != 0 || tcomp_cuda_end(f, number) != 0)                          \\",
    "    return number;",
    "",
)


@dataclass(frozen=True)
class DeviceKernel:
    """A kernel's cubin, of an architecture, and the launches that run it."""

    symbol: str
    arch: str
    parameters: int
    launches: tuple[Launch, ...]
    cubin: Cubin


def device_kernel(scheduled: Scheduled, symbol: str, target: Target, folder: Path) -> DeviceKernel:
    """The code of a kernel; its cubin is written into `folder`, where `image_source` finds it.

    Raises BuildError when code generation or the compiler fails.
    """
    assert target.gpu is not None
    code = device_code(scheduled.function, symbol, target)
    cubin = compile_cubin(code.source, target.gpu.arch, portable=True)
    (folder / f"{symbol}.cubin").write_bytes(cubin.image)
    parameters = len(scheduled.function.params)
    return DeviceKernel(symbol, target.gpu.arch, parameters, code.launches, cubin)


def image_source(kernels: Sequence[DeviceKernel]) -> str:
    """Assembly that puts the cubins into read-only memory."""
    lines = ["    .section .rodata"]
    for kernel in kernels:
        name = f"{kernel.symbol}_image"
        lines += ["    .balign 64", f"    .globl {name}", f"    .hidden {name}", f"{name}:"]
        lines.append(f'    .incbin "{kernel.symbol}.cubin"')
    return "\n".join([*lines, '    .section .note.GNU-stack,"",%progbits', ""])


def launch_tables(kernels: Sequence[DeviceKernel]) -> list[str]:
    """C of the tables in cuda_launch.h."""
    launches = [(image, launch) for image, kernel in enumerate(kernels) for launch in kernel.launches]
    maps = [one for _, launch in launches for one in launch.maps]
    first_maps = accumulate((len(launch.maps) for _, launch in launches), initial=0)
    table = [(*launch, first) for launch, first in zip(launches, first_maps, strict=False)]
    return [
        *(f"extern const char {kernel.symbol}_image[];" for kernel in kernels),
        "const tcomp_cuda_image tcomp_cuda_images[] = {",
        *map(_image, kernels),
        "    {0},",  # C has no arrays of length 0.
        "};",
        f"const int32_t tcomp_cuda_launch_count = {len(launches)}, tcomp_cuda_map_count = {len(maps)};",
        "const tcomp_cuda_map_info tcomp_cuda_maps[] = {",
        *(_map(number, tiles) for number, tiles in maps),
        "    {0},",
        "};",
        "const tcomp_cuda_launch_info tcomp_cuda_launches[] = {",
        *(_launch(*line) for line in table),
        "    {0},",
        "};",
    ]


def source(variants: Sequence[Sequence[DeviceKernel]], program: Program) -> list[str]:
    """C of the tables in cuda.h, and the function of each kernel. `variants` have the kernels of each."""
    kernels = [kernel for variant in variants for kernel in variant]
    ends = [sum(map(len, variants[:index])) for index in range(len(variants) + 1)]
    lines = [
        *launch_tables(kernels),
        f"const int32_t tcomp_cuda_variant_images[] = {{{', '.join(map(str, ends))}}};",
        *_steps(program),
    ]
    first = 0
    for kernel in kernels:
        lines += _function(kernel, first)
        first += len(kernel.launches)
    return lines


def _steps(program: Program) -> list[str]:
    """In which stream each step is, and what it waits for."""
    waits = [step for turn in program.turns for step in turn.waits]
    firsts = accumulate((len(turn.waits) for turn in program.turns), initial=0)
    lines = [
        f"    {{{turn.stream}, {first}, {len(turn.waits)}, {int(number in waits)}}},"
        for number, (turn, first) in enumerate(zip(program.turns, firsts, strict=False))
    ]
    return [
        "const tcomp_cuda_step_info tcomp_cuda_steps[] = {",
        *lines,
        "    {0},",
        "};",
        f"const int32_t tcomp_cuda_waits[] = {{{', '.join(map(str, [*waits, 0]))}}};",
        f"const int32_t tcomp_cuda_stream_count = {program.streams};",
    ]


def _image(kernel: DeviceKernel) -> str:
    number = kernel.arch.removeprefix("sm_")
    exact = int(number.endswith("a"))
    return f"    {{{kernel.symbol}_image, {number.rstrip('a')}, {exact}}},"


def _launch(image: int, launch: Launch, first_map: int) -> str:
    grid, block = map(_numbers, (launch.grid, launch.block))
    shared, maps = launch.dynamic_shared_bytes, len(launch.maps)
    return f'    {{{image}, "{launch.symbol}", {grid}, {block}, {shared}, {first_map}, {maps}}},'


def _map(parameter: int, tiles: TileMap) -> str:
    shapes = [tiles.extents, tiles.strides, tiles.box]
    if tiles.walk is not None:
        shapes += [(1, *tiles.walk.steps, 1), tiles.walk.lower, tiles.walk.upper]
    kind = (
        f"{DRIVER_TYPES[tiles.dtype]}, {DRIVER_SWIZZLES[tiles.swizzle]}, {len(tiles.extents)}, {tiles.begin}"
    )
    return f"    {{{parameter}, {kind}, {', '.join(map(_numbers, shapes))}}},"


def _numbers(values: Sequence[int]) -> str:
    return f"{{{', '.join(map(str, values))}}}"


def _function(kernel: DeviceKernel, first: int) -> list[str]:
    names = [f"p{i}" for i in range(kernel.parameters)]
    parameters = ", ".join(["const tcomp_frame *f", *(f"const void *{name}" for name in names)])
    return [
        f"static int32_t {kernel.symbol}({parameters}) {{",
        f"  const void *const arguments[] = {{{', '.join(names)}}};",
        f"  return tcomp_cuda_launch(f, {first}, {len(kernel.launches)}, arguments, {len(names)});",
        "}",
    ]
