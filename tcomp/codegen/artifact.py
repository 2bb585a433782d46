"""From an optimized graph to a shared library with a plain C interface."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from tcomp.codegen import c_abi, freestanding
from tcomp.codegen.bench_case import BenchCase, bench_sources
from tcomp.codegen.bundle import check_place, install_bundle, write_bundle
from tcomp.codegen.check import check_object
from tcomp.codegen.cuda import model_code as cuda
from tcomp.codegen.describe import description, description_source
from tcomp.codegen.link import (
    RUNTIME,
    SERIAL_FLAGS,
    SOURCES,
    Runtime,
    compile_c,
    link,
    link_object,
    link_static,
)
from tcomp.codegen.model_source import (
    VariantCode,
    kernel_symbol,
    model_header,
    model_source,
    weights_source,
)
from tcomp.codegen.toolchain import Toolchain, find_static_toolchain, find_toolchain, static_target
from tcomp.codegen.variants import cold_kernels
from tcomp.errors import BuildError, GraphError
from tcomp.plan import Program, distinct_kernels, packing_program, plan_variants
from tcomp.plan.program import PlannedConstant
from tcomp.relay.graph import Graph
from tcomp.relay.types import numpy_dtype
from tcomp.runtime.stamp import write_stamp
from tcomp.target.arm_parts import preferences
from tcomp.target.target import Target
from tcomp.tensor.amx import has_tiles, uses_tiles
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tensor.selection import schedule
from tcomp.tensor.template import Scheduled

Weights = Literal["embed", "separate"]
Form = Literal["library", "bundle"]
"""A shared library, or a folder of what it is made of."""
ConfigOf = Callable[[Kernel], "Config | None"]
_EMBED_LIMIT = 2**31 - 2**26
"""Code reaches embedded weights by 32-bit offsets."""


@dataclass(frozen=True)
class Variant:
    """A kind of CPU that a library has code for.

    `config_of` gives each kernel's schedule configuration, None meaning its template's default.
    """

    target: Target
    config_of: ConfigOf | None = None


@dataclass(frozen=True)
class Report:
    """What was compiled, its files and their sizes, and where the seconds went.

    `programs` has one for each variant, by its name, the preferred one first.
    """

    programs: Mapping[str, Program]
    library: Path
    header: Path
    weights: Path | None
    library_bytes: int
    seconds: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def program(self) -> Program:
        """The program of the preferred variant: order, arena and weights are those of all."""
        return next(iter(self.programs.values()))


def compile_graph(
    graph: Graph,
    target: Target,
    output: Path,
    config_of: ConfigOf | None = None,
    weights: Weights = "embed",
    jobs: int | None = None,
    form: Form = "library",
    runtime: Runtime = "threads",
) -> Report:
    """A library for one kind of CPU: see `compile_variants`."""
    return compile_variants(graph, [Variant(target, config_of)], output, weights, jobs, form, runtime)


def compile_variants(
    graph: Graph,
    variants: Sequence[Variant],
    output: Path,
    weights: Weights = "embed",
    jobs: int | None = None,
    form: Form = "library",
    runtime: Runtime = "threads",
) -> Report:
    """Write the library `output`, its header and tcomp.h beside it, and with `separate` its weights.

    `graph` has only kernels and views. Of `variants`, the preferred one first (`by_preference`), the library
    takes the first that runs on the CPU, or the one for its core where cores name themselves. `jobs` bounds
    the threads that generate code. Files appear complete or not at all.

    With the form `bundle`, which needs no C compiler, `output` is a folder. With the runtime `freestanding`
    it is an object file with a header of its own, for one kind of CPU.
    Raises GraphError for symbolic shapes, BuildError when code generation, the C compiler or writing fails.
    """
    _check_static(graph)
    is_cuda = variants[0].target.family == "cuda"
    if is_cuda and (form == "bundle" or runtime != "threads"):
        raise BuildError(
            f"a model for `{variants[0].target.name}` is a library with the runtime `threads`; no other form"
        )
    if runtime == "freestanding" and (form == "bundle" or weights == "separate"):
        raise BuildError(
            "a freestanding model is one object with its weights; no bundle, no separate weights"
        )
    if runtime == "freestanding" and len(variants) > 1:
        raise BuildError(
            "a freestanding model has code for one CPU, as nothing could choose; name one target"
        )
    clock = _Clock()
    toolchain = find_toolchain(variants[0].target) if form == "library" else None
    with clock.measure("schedule"):
        cold = cold_kernels(graph, [v.target for v in variants])
        scheduled = [_schedule_all(graph, v.target, v.config_of) for v in variants]
        scheduled = [{**one, **{key: scheduled[-1][key] for key in cold}} for one in scheduled]
    if runtime == "freestanding" and any(uses_tiles(s.function) for one in scheduled for s in one.values()):
        raise BuildError(
            f"kernels for `{variants[0].target.name}` use tiles, for which a process has to ask its system, "
            'and a freestanding model asks nobody; give the target as {"tag": ..., "mattr": ["-amx-tile"]}'
        )
    with clock.measure("plan"):
        gpus = [v.target.gpu for v in variants if v.target.gpu is not None]
        programs = plan_variants(graph, scheduled, gpus)
    embed, weights_bytes = weights == "embed", programs[0].weights_bytes
    if embed and weights_bytes > _EMBED_LIMIT:
        raise BuildError(f"{weights_bytes} bytes of weights are too many to embed; use separate weights")
    with _writing(output, form) as folder:
        with clock.measure("code"):
            generate = _generate_cuda if is_cuda else partial(_generate, cold=cold)
            codes, objects = generate(programs, [v.target for v in variants], folder=folder, jobs=jobs)
        with clock.measure("weights"):
            digest = _write_weights(programs[0], folder / "weights")
        with clock.measure("link"):
            sources = _sources(codes, objects, folder, embed, digest, runtime)
            if toolchain is not None:
                _link(toolchain, codes[0].target, sources, objects, folder, output.name, runtime)
        if toolchain is None:
            files = _install_bundle(codes, sources, objects, folder, output, runtime)
        else:
            files = _install(codes, folder, output, embed, runtime)
    named = {v.target.variant: program for v, program in zip(variants, programs, strict=True)}
    return Report(named, output, files.header, files.weights, files.library_bytes, clock.seconds)


def compile_benchmark(
    graph: Graph, target: Target, output: Path, case: BenchCase, config_of: ConfigOf | None = None
) -> Program:
    """Write `output`, a static executable that runs `graph` on the input of `case`, checks and times it.

    `graph` and `config_of` are as in `compile_graph`, and so are the errors.
    """
    _check_static(graph)
    if target.gpu is not None:
        raise BuildError(
            f"a static program is for CPUs, not for `{target.name}`; compile a library and time it by "
            "`tcomp bench FILE.so`"
        )
    target = static_target(target)
    toolchain = find_static_toolchain(target)
    (program,) = programs = plan_variants(graph, [_schedule_all(graph, target, config_of)])
    if program.weights_bytes > _EMBED_LIMIT:
        raise BuildError(f"{program.weights_bytes} bytes of weights are too many for a static program")
    with _writing(output) as folder:
        codes, objects = _generate(programs, [target], frozenset(), folder, None)
        digest = _write_weights(program, folder / "weights")
        sources = _sources(codes, objects, folder, True, digest)
        sources += bench_sources(case, folder)
        link_static(toolchain, [*compile_c(toolchain, sources, folder), *objects], folder / "program", folder)
        os.replace(folder / "program", output)
    return program


@dataclass
class _Clock:
    seconds: dict[str, float] = field(default_factory=dict[str, float])

    def measure(self, stage: str) -> _Stage:
        return _Stage(self, stage)


@dataclass
class _Stage:
    clock: _Clock
    name: str
    start: float = 0.0

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        self.clock.seconds[self.name] = time.perf_counter() - self.start


@dataclass(frozen=True)
class _Files:
    header: Path
    weights: Path | None
    library_bytes: int


def _check_static(graph: Graph) -> None:
    for value in graph.inputs:
        if not value.type.is_static:
            raise GraphError(
                f"input `{value.name}` of `{graph.name}` has the symbolic shape {value.type}; "
                f"give it numbers, as in --input-shape {value.name}:1,3,224,224"
            )


@contextmanager
def _writing(output: Path, form: Form = "library") -> Generator[Path, None, None]:
    """A folder on the output's file system, so that renaming moves files into place at once."""
    if not output.parent.is_dir():
        raise BuildError(f"cannot write {output}: there is no folder {output.parent}; make it first")
    if form == "bundle":
        check_place(output)
    elif output.exists() and not output.is_file():
        raise BuildError(f"cannot write {output}: it is a folder or a device; give the name of a file")
    try:
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent.absolute()) as folder:
            yield Path(folder)
    except OSError as error:
        raise BuildError(
            f"cannot write {output}: {error.strerror}; give a file in a writable folder with room"
        ) from error


def _schedule_all(graph: Graph, target: Target, config_of: ConfigOf | None) -> dict[str, Scheduled]:
    return {
        key: schedule(kernel, target, None if config_of is None else config_of(kernel))
        for key, kernel in distinct_kernels(graph).items()
    }


def _jobs(jobs: int | None) -> int:
    return jobs if jobs is not None else len(os.sched_getaffinity(0))


def _generate(
    programs: Sequence[Program],
    targets: Sequence[Target],
    cold: frozenset[str],
    folder: Path,
    jobs: int | None,
) -> tuple[list[VariantCode], list[Path]]:
    """The code of each variant, and the object files of all; kernels that came out the same share one.

    `cold` are the keys of kernels that all variants have compiled for the last target.
    """
    codes: list[VariantCode] = []
    objects: dict[str, bytes] = {}
    for number, (program, target) in enumerate(zip(programs, targets, strict=True)):
        symbols: list[str] = []
        used = [targets[-1] if planned.kernel.key in cold else target for planned in program.kernels]
        for index, code in enumerate(_kernel_objects(program, used, number, jobs)):
            own = kernel_symbol(program, index, number)
            earlier = [kernel_symbol(program, index, n) for n in range(number)]
            same = (s for s in earlier if objects.get(s) == code.replace(own.encode(), s.encode()))
            symbols.append(next(same, own))
            objects.setdefault(symbols[-1], code)
        tiled = has_tiles(target) and any(
            uses_tiles(planned.scheduled.function) for planned in program.kernels
        )
        codes.append(VariantCode(target, program, c_abi.needed_features(target, tiled), symbols))
    paths = [folder / f"{symbol}.o" for symbol in objects]
    for path, code in zip(paths, objects.values(), strict=True):
        path.write_bytes(code)
    return codes, paths


def _generate_cuda(
    programs: Sequence[Program], targets: Sequence[Target], folder: Path, jobs: int | None
) -> tuple[list[VariantCode], list[Path]]:
    """The code of each variant, cubins in `folder` whose names the generated sources know; no objects."""

    def compiled(program: Program, target: Target, number: int, kind: str) -> VariantCode:
        def one(index: int) -> cuda.DeviceKernel:
            planned = program.kernels[index]
            try:
                symbol = kernel_symbol(program, index, number, kind)
                return cuda.device_kernel(planned.scheduled, symbol, target, folder)
            except BuildError as error:
                raise BuildError(f"{error}; kernel {planned.kernel.key}") from error

        with ThreadPoolExecutor(_jobs(jobs)) as threads:
            kernels = list(threads.map(one, range(len(program.kernels))))
        return VariantCode(target, program, (), [k.symbol for k in kernels], kernels)

    codes: list[VariantCode] = []
    for number, (program, target) in enumerate(zip(programs, targets, strict=True)):
        code = compiled(program, target, number, "kernel")
        if program.packed:
            packing = packing_program(program.packed, partial(schedule, target=target))
            code = replace(code, packing=compiled(packing, target, number, "pack"))
        codes.append(code)
    return codes, []


def _kernel_objects(
    program: Program, targets: Sequence[Target], number: int, jobs: int | None
) -> list[bytes]:
    """The object of each kernel, for its target. TVM leaves Python's lock meanwhile, so threads help."""

    def one(index: int) -> bytes:
        planned = program.kernels[index]
        functions = {kernel_symbol(program, index, number): planned.scheduled.function}
        try:
            return c_abi.object_code(functions, targets[index])
        except BuildError as error:
            raise BuildError(f"{error}; kernel {planned.kernel.key}") from error

    with ThreadPoolExecutor(_jobs(jobs)) as threads:
        return list(threads.map(one, range(len(program.kernels))))


def _write_weights(program: Program, path: Path) -> bytes:
    """Write every constant, packed, at its offset; answers the BLAKE2b-256 digest of the file."""
    digest = hashlib.blake2b(digest_size=32)
    with path.open("wb") as file:
        for entry in program.constants:
            padding = bytes(entry.offset - file.tell())
            data = _packed(entry)
            for piece in (padding, data):
                file.write(piece)
                digest.update(piece)
        tail = bytes(program.weights_bytes - file.tell())
        file.write(tail)
        digest.update(tail)
    return digest.digest()


def _packed(entry: PlannedConstant) -> memoryview:
    """The bytes of a constant as its kernel wants them."""
    array = entry.constant.data
    if entry.packing is not None:
        array = entry.packing.pack(array)
        expected = entry.packing.type
        if array.shape != expected.static_shape or array.dtype != numpy_dtype(expected.dtype):
            found = f"{array.dtype}{list(array.shape)}"
            raise BuildError(f"packing {entry.constant.type} gave {found}; its schedule promises {expected}")
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _sources(
    codes: Sequence[VariantCode],
    objects: Sequence[Path],
    folder: Path,
    embed: bool,
    digest: bytes,
    runtime: Runtime = "threads",
) -> list[Path]:
    """C and assembly that make the model whole with its kernels' `objects`."""
    model, about = folder / "model.c", folder / "about.S"
    if runtime == "freestanding":
        model.write_text(freestanding.freestanding_source(codes[0]))
        sources = [model, freestanding.FOLDER / "freestanding.c"]
    else:
        cores = preferences([code.target for code in codes]) if len(codes) > 1 else []
        model.write_text(model_source(codes, cores, embed, digest))
        (folder / "about").write_bytes(description(codes, embed, objects).pack())
        about.write_text(description_source("about"))
        sources = [model, about, *(SOURCES / name for name in RUNTIME)]
        if codes[0].is_cuda:
            images = folder / "images.S"
            images.write_text(cuda.image_source([kernel for code in codes for kernel in code.device_kernels]))
            sources += [images, *(SOURCES / name for name in cuda.RUNTIME)]
    if embed and codes[0].program.weights_bytes:
        assembly = folder / "embedded.S"
        assembly.write_text(weights_source("weights"))
        sources.append(assembly)
    return sources


def _link(
    toolchain: Toolchain,
    target: Target,
    sources: Sequence[Path],
    objects: Sequence[Path],
    folder: Path,
    name: str,
    runtime: Runtime,
) -> None:
    library = folder / "library"
    if runtime == "freestanding":
        made = compile_c(toolchain, sources, folder, freestanding.FLAGS)
        link_object(toolchain, [*made, *objects], library, folder)
        check_object(library, target)
        return
    flags = (f"-I{SOURCES / 'serial'}", *SERIAL_FLAGS) if runtime == "serial" else ()
    link(toolchain, target, [*compile_c(toolchain, sources, folder, flags), *objects], library, folder, name)
    if target.system != "apple":  # Its loader checks signatures; the stamp is one of ELF files.
        write_stamp(library)


def _install(
    codes: Sequence[VariantCode], folder: Path, output: Path, embed: bool, runtime: Runtime
) -> _Files:
    """Rename the finished files into place, the library last."""
    header, interface = output.with_suffix(".h"), output.parent / "tcomp.h"
    if runtime == "freestanding":
        (folder / "model.h").write_text(freestanding.freestanding_header(codes[0]))
        os.replace(folder / "model.h", header)
        os.replace(folder / "library", output)
        return _Files(header, None, output.stat().st_size)
    (folder / "model.h").write_text(model_header(codes))
    shutil.copyfile(SOURCES / "tcomp.h", folder / "tcomp.h")
    weights = None
    if not embed and codes[0].program.weights_bytes:
        weights = output.with_suffix(".weights")
        os.replace(folder / "weights", weights)
    os.replace(folder / "tcomp.h", interface)
    os.replace(folder / "model.h", header)
    os.replace(folder / "library", output)
    return _Files(header, weights, output.stat().st_size)


def _install_bundle(
    codes: Sequence[VariantCode],
    sources: Sequence[Path],
    objects: Sequence[Path],
    folder: Path,
    output: Path,
    runtime: Runtime,
) -> _Files:
    (folder / "model.h").write_text(model_header(codes))
    data = [folder / name for name in ("model.h", "weights", "about")]
    write_bundle(folder / "bundle", codes[0].target, sources, objects, data, runtime)
    install_bundle(folder / "bundle", output)
    written = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    return _Files(output / "model.h", output / "weights", written)
