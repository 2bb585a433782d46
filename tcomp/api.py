"""What the command line does, as functions: load a model, optimise, tune, compile, verify, replay."""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from tcomp.accuracy import lower_within
from tcomp.codegen.artifact import Form, Report, Variant, Weights, compile_graph, compile_variants
from tcomp.codegen.artifact import compile_benchmark as write_benchmark
from tcomp.codegen.bench_case import BenchCase
from tcomp.codegen.bindings import check_bindings, write_bindings
from tcomp.codegen.link import Runtime
from tcomp.codegen.variants import by_preference, graph_target
from tcomp.errors import CheckFailed, ModelError, UnsupportedError, UsageError, check_choice
from tcomp.frontend.onnx import import_onnx
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Graph
from tcomp.relay.parser import load_graph
from tcomp.relay.specialize import specialize
from tcomp.relay.types import Array
from tcomp.target.parse import parse_target, parse_targets
from tcomp.target.target import Target
from tcomp.transform.pipeline import optimize as optimize_graph
from tcomp.transform.pipeline import passes_before_lowering, run_passes
from tcomp.transform.precision import Precision, describe_precision, factor_dtype, lowering
from tcomp.tuner.choices import Choices, choose_configs, choose_together
from tcomp.tuner.lookup import Records
from tcomp.tuner.loop import TaskResult, TuneOptions
from tcomp.tuner.loop import tune as tune_tasks
from tcomp.tuner.progress import Progress
from tcomp.tuner.provenance import device_name
from tcomp.tuner.replay import ReplayReport
from tcomp.tuner.replay import replay as replay_graph
from tcomp.tuner.task import Task, tasks
from tcomp.tuner.whole_model import settle
from tcomp.verification import Tolerance, Verification, chosen_inputs, verify_model

InputShapes = Mapping[str, Sequence[int]]


def load_model(model: str | Path | Graph, input_shapes: InputShapes | None = None) -> Graph:
    """The graph of a `.onnx` or `.relay` file, of `module:function` (called without arguments), or itself.

    `input_shapes` fix symbolic dimensions. Raises ModelError for a file that cannot be read, UsageError for
    a name that is none of these.
    """
    shapes = input_shapes or {}
    if isinstance(model, Graph):
        return specialize(model, shapes)
    path = Path(model)
    if path.suffix == ".onnx":
        return import_onnx(path, shapes)
    if path.suffix == ".relay":
        return specialize(load_graph(path), shapes)
    module, _, function = str(model).partition(":")
    if not function:
        raise UsageError(f"`{model}` is no model; give a .onnx or .relay file, or module:function")
    return specialize(_call(module, function), shapes)


def optimize(
    model: str | Path | Graph,
    target: str | Target = "llvm",
    input_shapes: InputShapes | None = None,
    precision: Precision = "exact",
) -> Graph:
    """`model` after all graph passes: its nodes are fused kernels and views."""
    return static_kernels(load_model(model, input_shapes), as_target(target), precision)


def static_kernels(graph: Graph, target: Target, precision: Precision = "exact") -> Graph:
    """`graph` optimised for `target`.

    Raises UnsupportedError naming the inputs whose dimensions are symbolic.
    """
    _check_static(graph)
    return optimize_graph(graph, target, precision=precision)


def _check_static(graph: Graph) -> None:
    symbolic = [f"{v.name}: {v.type}" for v in graph.inputs if not v.type.is_static]
    if symbolic:
        raise UnsupportedError(
            f"input {symbolic[0]} has symbolic dimensions; fix them with --input-shape NAME:1,3,224,224"
        )


def _exact_kernels(graph: Graph, target: Target, precision: Precision) -> Graph:
    """`graph` optimised for `target` but for the pass that takes bits: what `lower_within` begins with."""
    _check_static(graph)
    return run_passes(graph, passes_before_lowering(target, precision))


def as_target(target: str | Target) -> Target:
    """A target, or what its text names."""
    return parse_target(target) if isinstance(target, str) else target


@dataclass(frozen=True)
class Compiled:
    """A written artifact: where the configs of each variant came from, by its name, the preferred one first;
    the code generator's report; what runs in fewer bits; the sources that call it from other languages."""

    choices: Mapping[str, Choices]
    report: Report
    precision: str
    bindings: tuple[Path, ...] = ()


def compile(
    model: str | Path | Graph,
    output: str | Path,
    target: str | Target = "llvm",
    logs: Sequence[str | Path] = (),
    input_shapes: InputShapes | None = None,
    *,
    weights: Weights = "embed",
    require_tuned: bool = False,
    threads: int = 1,
    precision: Precision = "exact",
    inputs: Mapping[str, Array] | None = None,
    tolerance: float | None = None,
    bindings: Sequence[str] = (),
    own_weights: bool = False,
    form: Form = "library",
    runtime: Runtime = "threads",
) -> Compiled:
    """Compile `model` to the shared library `output`, with the configs of `logs` where there are records.

    `target` may name several CPUs (`x86-64-v3,x86-64-v4`): the library then has code for each and takes the
    best for the one it runs on. All share weights, which are packed in one way that suits them all, or, with
    `own_weights`, for each as suits it best.

    With the form `bundle`, `output` is a folder that a machine with a compiler makes the library of; with the
    runtime `freestanding`, an object file for a program without a system under it.

    `threads` selects the records that were measured with that many threads; the library itself runs with
    any number. With another precision than `exact` the library is run once on `inputs` (random where not
    given), and kernels stay in float32 while an output is off by more than `tolerance` of its largest
    magnitude (1e-2 in float16, else 2e-2).
    `bindings` are `jni`, `jni:PACKAGE` and `swift`: sources beside the header that call the library.
    Raises CheckFailed when `require_tuned` and a tunable kernel has no record, UsageError for an argument
    that is none of its values.
    """
    for what, value, known in (
        ("weights", weights, Weights),
        ("form", form, Form),
        ("runtime", runtime, Runtime),
    ):
        check_choice(what, value, get_args(known))
    check_bindings(bindings)
    targets = by_preference(parse_targets(target) if isinstance(target, str) else (target,))
    chosen = graph_target(targets)
    for one in targets:
        factor_dtype(one, precision)  # Each must have the instructions.
    if precision != "exact" and (form == "bundle" or runtime == "freestanding"):
        raise UsageError(
            f"precision `{precision}` runs the library, and this is none; compile it with `exact`"
        )
    if bindings and runtime == "freestanding":
        raise UsageError("bindings call a library; compile with the runtime `threads` or `serial`")
    loaded = load_model(model, input_shapes)
    exact = _exact_kernels(loaded, chosen, precision)
    written: list[tuple[dict[str, Choices], Report]] = []

    def build(graph: Graph) -> Path:
        choices = choose_together(graph, targets, logs, threads, own_weights)
        missing = [kernel for one in choices for kernel in one.missing]
        if require_tuned and missing:
            raise CheckFailed(f"{len(missing)} kernels have no usable record: {'; '.join(missing)}")
        variants = [Variant(t, one.config_of) for t, one in zip(targets, choices, strict=True)]
        report = compile_variants(graph, variants, Path(output), weights, form=form, runtime=runtime)
        written.append((dict(zip(report.programs, choices, strict=True)), report))
        return report.library

    note = ""
    if lowering(chosen, precision) is None:
        build(exact)
        note = describe_precision(exact, chosen, precision)
    else:
        arrays = chosen_inputs(loaded, inputs or {})
        note = str(lower_within(exact, chosen, precision, build, arrays, tolerance))
    report = written[-1][1]
    return Compiled(*written[-1], note, tuple(write_bindings(report.program, report.header, bindings)))


def compile_benchmark(
    model: str | Path | Graph,
    output: str | Path,
    target: str | Target = "llvm",
    logs: Sequence[str | Path] = (),
    input_shapes: InputShapes | None = None,
    threads: int = 1,
    precision: Precision = "exact",
) -> Choices:
    """Write `output`, a static executable that checks and times `model` on a device, with random inputs.

    What its outputs must be is computed here, from the graph before all passes. It runs on `threads`
    threads unless told otherwise, with the records for that many.
    """
    chosen = as_target(target)
    loaded = load_model(model, input_shapes)
    graph = _exact_kernels(loaded, chosen, precision)
    arrays = chosen_inputs(loaded, {})
    if lowering(chosen, precision) is not None:
        with tempfile.TemporaryDirectory() as folder:

            def build(lowered: Graph) -> Path:
                configs = choose_configs(lowered, chosen, logs, threads)
                return compile_graph(lowered, chosen, Path(folder, "model.so"), configs.config_of).library

            graph = lower_within(graph, chosen, precision, build, arrays).graph
    choices = choose_configs(graph, chosen, logs, threads)
    allowed = Tolerance.of(precision)
    inputs = list(arrays.values())
    case = BenchCase(inputs, evaluate(loaded, inputs), allowed.rtol, allowed.atol, threads)
    write_benchmark(graph, chosen, Path(output), case, choices.config_of)
    return choices


def tune(
    model: str | Path | Graph,
    log: str | Path,
    target: str | Target = "llvm",
    input_shapes: InputShapes | None = None,
    options: TuneOptions | None = None,
    select: Callable[[Task], bool] | None = None,
    progress: Progress | None = None,
    precision: Precision = "exact",
) -> list[TaskResult]:
    """Search schedules for the kernels of `model`, appending every trial to `log`.

    They are measured as `options.measure.runner` says: on this machine if nothing else is asked for. There,
    when all kernels were selected, winners are timed once more inside the whole model afterwards. `results`
    are those of the kernels alone.
    Raises Interrupted on Ctrl-C with every finished trial kept.
    """
    chosen, options = as_target(target), options or TuneOptions()
    graph = static_kernels(load_model(model, input_shapes), chosen, precision)
    found = [t for t in tasks(graph, chosen) if select is None or select(t)]
    results = tune_tasks(found, log, options, progress)
    if select is None and options.measure.runner.is_here:
        settle(graph, chosen, Path(log), options.measure.threads, progress or (lambda event: None))
    return results


def replay(
    model: str | Path | Graph,
    target: str | Target = "llvm",
    logs: Sequence[str | Path] = (),
    input_shapes: InputShapes | None = None,
    threads: int = 1,
    precision: Precision = "exact",
) -> tuple[ReplayReport, tuple[str, ...]]:
    """Look up and build every kernel of `model` from `logs`, measuring nothing.

    Answers the report and the log lines that were skipped. Raises RecordError when a log cannot be read.
    """
    chosen = as_target(target)
    records = Records.load(logs)
    graph = static_kernels(load_model(model, input_shapes), chosen, precision)
    report = replay_graph(graph, chosen, records, threads, device_name(chosen))
    return report, tuple(str(p) for p in records.problems)


def verify(
    model: str | Path | Graph,
    target: str | Target = "llvm",
    logs: Sequence[str | Path] = (),
    input_shapes: InputShapes | None = None,
    against: str = "onnxruntime",
    inputs: Mapping[str, Array] | None = None,
    tolerance: Tolerance | None = None,
    seed: int = 0,
    precision: Precision = "exact",
) -> Verification:
    """Compile `model`, run it, and compare with ONNX Runtime or (`against="reference"`) the evaluator.

    Raises UsageError when ONNX Runtime is asked for and the model is no `.onnx` file, and for another peer.
    """
    check_choice("against", against, ("onnxruntime", "reference"))
    chosen = as_target(target)
    graph = load_model(model, input_shapes)
    path = None
    if against == "onnxruntime":
        path = None if isinstance(model, Graph) else Path(model)
        if path is None or path.suffix != ".onnx":
            name = f"graph {model.name}" if isinstance(model, Graph) else model
            raise UsageError(f"ONNX Runtime cannot run `{name}`; use --against reference")
    choices = choose_configs(static_kernels(graph, chosen, precision), chosen, logs)
    return verify_model(graph, chosen, choices.config_of, path, inputs, tolerance, seed, precision)


def _call(module: str, function: str) -> Graph:
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does: a module beside the user
    try:
        graph = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise ModelError(f"cannot call `{module}:{function}`: {error}") from error
    if not isinstance(graph, Graph):
        raise ModelError(f"`{module}:{function}` returned {type(graph).__name__}, not a tcomp graph")
    return graph
