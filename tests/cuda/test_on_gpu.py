"""What the emulated GPU cannot show: that a real one agrees. Skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cuda_kernels import KERNELS
from device_arrays import OnGpu, Stream, page_locked
from op_samples import arrays_of, check, graph_of_sample, makes_kernels
from test_cuda_models import TOLERANCE, image, network
from test_streams import branches
from test_wgmma_instructions import copied_as_tf32

from tcomp import api
from tcomp.codegen.artifact import compile_graph
from tcomp.codegen.jit import build_kernel
from tcomp.relay.evaluate import evaluate
from tcomp.relay.op import OPS, Op
from tcomp.relay.types import rounded_to_tf32
from tcomp.runtime import load
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tuner.trial_data import compare, is_wrong, trial_data

pytestmark = pytest.mark.gpu
OPERATORS = [op for op in OPS.values() if makes_kernels(op)]


@pytest.mark.parametrize("op", OPERATORS, ids=lambda op: op.name)
def test_kernel_computes_the_reference(op: Op, card: Target) -> None:
    for sample in op.samples:
        graph, arrays = graph_of_sample(op, sample), arrays_of(op, sample)
        runner = build_kernel(Kernel(graph, frozenset(sample.constant)), card)
        check(runner(arrays), evaluate(graph, arrays), sample)


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_of_a_model_computes_the_reference(name: str, card: Target) -> None:
    data = trial_data(KERNELS[name], seed=0)
    runner = build_kernel(KERNELS[name], card)
    assert not is_wrong(compare(data, runner(data.inputs)))


def test_model_equals_the_reference(card: Target, tmp_path: Path) -> None:
    library = tmp_path / "network.so"
    compile_graph(api.optimize(network(), card), card, library)
    model = load(library)
    for seed in range(3):
        (expected,) = evaluate(network(), [image(seed)])
        np.testing.assert_allclose(model(image(seed))[0], expected, **TOLERANCE)
    assert all(step.seconds > 0 for step in model.profile(image()))


def test_branches_and_streams(card: Target, tmp_path: Path) -> None:
    """Streams of a graph, two runs of one context in two streams of the caller's, page-locked memory."""
    library = tmp_path / "branches.so"
    report = compile_graph(api.optimize(branches(), card), card, library)
    assert report.program.streams > 1
    model = load(library)
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((1, 8, 5, 6)).astype(np.float32) for _ in range(3)]
    expected = [evaluate(branches(), [x])[0] for x in inputs]
    streams = Stream(), Stream()
    first, second = OnGpu(np.zeros_like(expected[0])), page_locked(np.zeros_like(expected[1]))
    given = OnGpu(inputs[0]), page_locked(inputs[1])
    for _ in range(3):
        model.enqueue([given[0]], [first], int(streams[0]))
        model.enqueue([given[1]], [second], int(streams[1]))
    np.testing.assert_allclose(model(inputs[2])[0], expected[2], **TOLERANCE)
    for stream in streams:
        stream.wait()
    np.testing.assert_allclose(first.read(), expected[0], **TOLERANCE)
    np.testing.assert_allclose(second, expected[1], **TOLERANCE)


def test_copies_round_to_tf32(card: Target) -> None:
    if card.isa != "sm_90a":
        pytest.skip(f"{card.description} has no copies of tiles")
    tensor = np.random.default_rng(0).standard_normal((1, 16, 32)).astype(np.float32)
    np.testing.assert_array_equal(copied_as_tf32(tensor), rounded_to_tf32(tensor).reshape(-1))
