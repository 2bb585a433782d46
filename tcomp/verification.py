"""Is the compiled model right, and if not, which node went wrong first?

The artifact's outputs are compared with a reference: ONNX Runtime, which shares no code with tcomp, or
tcomp's own numpy evaluator. When they differ, the three steps between model and artifact are checked one
by one: the import (each node against ONNX Runtime), the passes (the graph after each against the graph
before the first), the kernels (each compiled kernel against the evaluator on the same inputs).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tcomp.accuracy import TOLERANCE
from tcomp.codegen.artifact import compile_graph
from tcomp.codegen.jit import build_kernel
from tcomp.errors import InputError, UnsupportedError, UsageError
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Constant, Graph, Node, Value
from tcomp.relay.types import REALS, Array, numpy_dtype
from tcomp.runtime import load
from tcomp.runtime.fill import fill
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.transform.pass_ import Pass
from tcomp.transform.pipeline import optimize
from tcomp.transform.precision import Precision

ConfigOf = Callable[[Kernel], "Config | None"]


@dataclass(frozen=True)
class Tolerance:
    """`|actual - expected| <= atol + rtol * max|expected|`: relative to the tensor's scale."""

    rtol: float = 1e-4
    atol: float = 1e-6

    @staticmethod
    def of(precision: Precision) -> Tolerance:
        """What is allowed by default: products of 16-bit operands, and of tf32, carry 8 to 11 bits."""
        return Tolerance() if precision == "exact" else Tolerance(rtol=TOLERANCE)

    def excess(self, actual: Array, expected: Array) -> float:
        """Largest error as a multiple of what is allowed: above 1 is wrong, infinite for other shapes."""
        if actual.shape != expected.shape or actual.dtype != expected.dtype:
            return float("inf")
        if actual.size == 0:
            return 0.0
        if expected.dtype.name not in REALS:
            return 0.0 if np.array_equal(actual, expected) else float("inf")
        a, e = actual.astype(np.float64), expected.astype(np.float64)
        same = (a == e) | (np.isnan(a) & np.isnan(e))
        if bool(same.all()):
            return 0.0
        finite = np.isfinite(e)
        scale = float(np.abs(e[finite]).max(initial=0.0))
        error = np.where(same, 0.0, np.abs(a - e))
        worst = float(error.max())
        return worst / (self.atol + self.rtol * scale) if np.isfinite(worst) else float("inf")


@dataclass(frozen=True)
class Verification:
    """Outcome of `verify`. `excess` is the error of each output as a multiple of what is allowed."""

    reference: str
    excess: Mapping[str, float]
    first_bad: str | None = None

    @property
    def passed(self) -> bool:
        return all(e <= 1 for e in self.excess.values())

    def __str__(self) -> str:
        worst = max(self.excess, key=lambda n: self.excess[n])
        share = f"{self.excess[worst]:.3g} of the allowed error"
        summary = f"output `{worst}` has {share}, against {self.reference}"
        if self.passed:
            return f"ok: {summary}"
        return f"wrong: {summary}; first wrong: {self.first_bad or 'no single step exceeds the tolerance'}"


def verify_model(
    graph: Graph,
    target: Target,
    config_of: ConfigOf,
    onnx_path: Path | None = None,
    inputs: Mapping[str, Array] | None = None,
    tolerance: Tolerance | None = None,
    seed: int = 0,
    precision: Precision = "exact",
) -> Verification:
    """Compile `graph`, run it and compare; with `onnx_path` against ONNX Runtime, else the evaluator.

    Inputs that are not given are random. Raises UsageError for unknown inputs, InputError for those that do
    not fit, UnsupportedError when ONNX Runtime refuses the model.
    """
    tolerance = tolerance or Tolerance.of(precision)
    arrays = chosen_inputs(graph, inputs or {}, seed)
    session = None if onnx_path is None else OnnxReference(onnx_path)
    reference = "the numpy evaluator" if session is None else "ONNX Runtime"
    expected = evaluate(graph, arrays) if session is None else session.run(arrays)
    optimized = optimize(graph, target, precision=precision)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.so"
        compile_graph(optimized, target, path, config_of)
        actual = load(path)(*arrays.values())
    names = graph.output_names
    excess = {n: tolerance.excess(a, e) for n, a, e in zip(names, actual, expected, strict=True)}
    outcome = Verification(reference, excess)
    if outcome.passed:
        return outcome
    bad = (
        (session and first_bad_import(graph, session, arrays, tolerance))
        or first_bad_pass(graph, target, arrays, tolerance, precision)
        or first_bad_kernel(optimized, target, config_of, arrays, tolerance)
    )
    return Verification(reference, excess, bad or None)


class OnnxReference:
    """ONNX Runtime on the original file, with any intermediate tensor as output.

    Raises UsageError when onnxruntime is not installed.
    """

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise UsageError(
                "ONNX Runtime is not installed: pip install 'tcomp[verify]', or use --against reference"
            ) from None
        self._runtime: Any = onnxruntime
        self._path = path

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        return self._run(str(self._path), inputs)

    def intermediates(self, inputs: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
        """The named intermediate tensors that the file's graph produces; others are left out."""
        import onnx

        model = onnx.load(str(self._path))
        produced = {o for n in model.graph.node for o in n.output if o}
        wanted = [n for n in names if n in produced]
        del model.graph.output[:]
        model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in wanted)
        results = self._run(model.SerializeToString(), inputs)
        return dict(zip(wanted, results, strict=True))

    def _run(self, model: str | bytes, inputs: Mapping[str, Array]) -> list[Array]:
        options = self._runtime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        try:
            session = self._runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            return session.run(None, dict(inputs))
        except Exception as error:  # its kinds have no common base
            raise UnsupportedError(
                f"ONNX Runtime cannot run {self._path}: {str(error)[:300]}; use --against reference"
            ) from None


def first_bad_import(
    graph: Graph, reference: OnnxReference, inputs: Mapping[str, Array], tolerance: Tolerance
) -> str | None:
    """The first imported node whose result differs from ONNX Runtime's tensor of the same name."""
    names = [v.name for node in graph.nodes for v in node.outputs if v.name]
    expected = reference.intermediates(inputs, names)
    found: list[str] = []

    def observe(node: Node, results: Sequence[Array]) -> None:
        for value, result in zip(node.outputs, results, strict=True):
            if not found and value.name in expected and tolerance.excess(result, expected[value.name]) > 1:
                found.append(f"{node.where}, as imported, against ONNX Runtime")

    evaluate(graph, inputs, observe)
    return found[0] if found else None


def first_bad_pass(
    graph: Graph,
    target: Target,
    inputs: Mapping[str, Array],
    tolerance: Tolerance,
    precision: Precision = "exact",
) -> str | None:
    """The first graph pass that changes the outputs."""
    expected = evaluate(graph, inputs)
    found: list[str] = []

    def observe(item: Pass, before: Graph, after: Graph, stats: object) -> None:
        if found or before is after:
            return
        actual = evaluate(after, inputs)
        if any(tolerance.excess(a, e) > 1 for a, e in zip(actual, expected, strict=True)):
            found.append(f"pass `{item.name}` changes the outputs")

    optimize(graph, target, observe, precision)
    return found[0] if found else None


def first_bad_kernel(
    optimized: Graph, target: Target, config_of: ConfigOf, inputs: Mapping[str, Array], tolerance: Tolerance
) -> str | None:
    """The first kernel whose compiled code differs from the evaluator on the same inputs."""
    env: dict[Value, Array] = dict(zip(optimized.inputs, inputs.values(), strict=True))
    found: list[str] = []

    def observe(node: Node, results: Sequence[Array]) -> None:
        operands = [v.data if isinstance(v, Constant) else env[v] for v in node.inputs]
        env.update(zip(node.outputs, results, strict=True))
        if found or node.op != "fused":
            return
        kernel = Kernel.of(node)
        actual = build_kernel(kernel, target, config_of(kernel))(operands)
        if any(tolerance.excess(a, e) > 1 for a, e in zip(actual, results, strict=True)):
            origins = ", ".join(dict.fromkeys(n.where for n in kernel.body.nodes))
            found.append(f"kernel {kernel.label} compiled from {origins}")

    evaluate(optimized, inputs, observe)
    return found[0] if found else None


def chosen_inputs(graph: Graph, given: Mapping[str, Array], seed: int = 0) -> dict[str, Array]:
    """Arrays for all inputs of `graph`: those given, the others random.

    Raises UsageError for unknown inputs, InputError for arrays of another type.
    """
    names = [v.name for v in graph.inputs]
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise UsageError(f"there is no input `{unknown[0]}`; the inputs are {', '.join(names)}")
    if not graph.is_static:
        raise UnsupportedError("the model has symbolic dimensions; give --input-shape for its inputs")
    for value in graph.inputs:
        array = given.get(value.name)
        if array is not None and (array.shape, array.dtype) != (value.shape, numpy_dtype(value.dtype)):
            found = f"{array.dtype}{list(array.shape)}"
            raise InputError(f"input `{value.name}` is {found}; it must be {value.type}")
    rng = np.random.default_rng(seed)
    return {
        v.name: given[v.name] if v.name in given else fill(v.type.static_shape, v.dtype, "random", rng)
        for v in graph.inputs
    }
