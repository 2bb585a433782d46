"""Constants that a GPU packs when a context is created, on the emulated one: numbers, sizes, memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from test_conv_winograd_cuda import winograd

from tcomp import api
from tcomp.cli import main
from tcomp.codegen.artifact import Report, Variant, compile_graph, compile_variants
from tcomp.errors import TcompError
from tcomp.plan import constants, packing_program
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Graph
from tcomp.relay.types import Array
from tcomp.runtime import load
from tcomp.runtime.description import describe
from tcomp.target.parse import parse_target
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tensor.selection import schedule
from tcomp.tensor.winograd.filtering import ERRORS

pytestmark = pytest.mark.emulated

CHANNELS = 24
ORIGINAL, TRANSFORMED = 9 * CHANNELS**2 * 4, 36 * CHANNELS**2 * 4


def network() -> Graph:
    """Two convolutions by Winograd's algorithm, of which another kernel reads the weights of the first, and a
    pointwise one."""
    rng = np.random.default_rng(0)

    def weights(size: int) -> Array:
        values = rng.standard_normal((CHANNELS, CHANNELS, size, size)) / (size * np.sqrt(CHANNELS))
        return values.astype(np.float32)

    g = GraphBuilder("network")
    first = g.constant(weights(3))
    y = g.op("conv2d", g.input("image", (1, CHANNELS, 4, 4)), first, padding=(1,) * 4)
    y = g.op("conv2d", g.op("relu", y), g.constant(weights(3)), padding=(1,) * 4)
    y = g.op("conv2d", y, g.constant(weights(1)))
    scale = g.input("scale", (3, 3))
    return g.build(y, g.op("reduce_sum", g.op("mul", first, scale), axes=(0, 1), keepdims=False))


def inputs(seed: int = 1) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in ((1, CHANNELS, 4, 4), (3, 3))]


def by_winograd(kernel: Kernel) -> Config | None:
    anchor = kernel.anchor
    is_wide = anchor is not None and anchor.op == "conv2d" and anchor.inputs[1].type.shape[-1] == 3
    return winograd((4, 4)) if is_wide else None


@dataclass(frozen=True)
class Libraries:
    """The same model, packed by the GPU and by the compiler."""

    small: Report
    large: Report


@pytest.fixture(scope="module")
def libraries(gpu: Target, tmp_path_factory: pytest.TempPathFactory) -> Libraries:
    folder, fused = tmp_path_factory.mktemp("libraries"), api.optimize(network(), gpu)
    small = compile_graph(fused, gpu, folder / "small.so", by_winograd)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "CODE_BYTES", 2**40)
        large = compile_graph(fused, gpu, folder / "large.so", by_winograd)
    return Libraries(small, large)


def test_the_library_has_weights_as_they_were(libraries: Libraries) -> None:
    small, large = libraries.small.program, libraries.large.program
    assert small.packed_bytes == 2 * TRANSFORMED
    assert not large.packed
    # What another kernel reads lies among its weights, which are copied to the GPU anyway.
    assert ORIGINAL < small.source_bytes < ORIGINAL + 36 * 9 * 8 + 2 * 64
    assert large.weights_bytes - small.weights_bytes == 2 * TRANSFORMED - small.source_bytes
    code = sum(describe(libraries.small.library).description.kernels.values())
    code -= sum(describe(libraries.large.library).description.kernels.values())
    less = libraries.large.library_bytes - libraries.small.library_bytes
    assert less == pytest.approx(2 * TRANSFORMED - small.source_bytes - code, abs=20_000)


def test_numbers_are_the_same_bits(libraries: Libraries) -> None:
    small, large = load(libraries.small.library), load(libraries.large.library)
    for seed in (1, 2):
        found = small(*inputs(seed))
        for one, other in zip(found, large(*inputs(seed)), strict=True):
            np.testing.assert_array_equal(one, other)
        for one, expected in zip(found, evaluate(network(), inputs(seed)), strict=True):
            assert np.abs(one - expected).max() <= 2 * ERRORS[4] * np.abs(expected).max()


def test_another_context_packs_its_own(libraries: Libraries) -> None:
    one, again = load(libraries.small.library), load(libraries.small.library)
    np.testing.assert_array_equal(again(*inputs())[0], one(*inputs())[0])


def test_memory_of_packing_is_free_afterwards(
    libraries: Libraries, gpu: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two contexts fit where two and what one of them packs with would not."""
    program = libraries.small.program
    kept = program.weights_bytes - program.source_bytes
    stays = program.arena_bytes + kept + program.packed_bytes
    arena = packing_program(program.packed, lambda kernel: schedule(kernel, gpu)).arena_bytes
    passes = arena + program.source_bytes
    pages = 5 * 4096
    assert passes > 2 * pages
    monkeypatch.setenv("EMULATED_MEMORY", str(stays + passes // 2))
    with pytest.raises(TcompError, match=r"GPU: memory to pack weights: out of memory \(CUDA error 2\)"):
        load(libraries.small.library)
    monkeypatch.setenv("EMULATED_MEMORY", str(stays + passes + pages))
    model = load(libraries.small.library)  # Nothing is left of the one before.
    monkeypatch.setenv("EMULATED_MEMORY", str(2 * stays + passes + 2 * pages))
    other = load(libraries.small.library)
    np.testing.assert_array_equal(model(*inputs())[1], other(*inputs())[1])


@pytest.mark.slow
def test_separate_weights_are_packed_too(gpu: Target, libraries: Libraries, tmp_path: Path) -> None:
    report = compile_graph(
        api.optimize(network(), gpu), gpu, tmp_path / "model.so", by_winograd, weights="separate"
    )
    assert report.weights is not None
    assert report.weights.stat().st_size == libraries.small.program.weights_bytes
    found = load(tmp_path / "model.so", weights=report.weights)(*inputs())
    np.testing.assert_array_equal(found[0], load(libraries.large.library)(*inputs())[0])


def test_variants_pack_what_they_need(
    libraries: Libraries, gpu: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One by Winograd's algorithm, the other one with weights that the compiler packs."""
    older, newer = parse_target("cuda:sm_80"), parse_target("cuda:sm_90a")
    variants = [Variant(newer, lambda kernel: None), Variant(older, by_winograd)]
    report = compile_variants(api.optimize(network(), older), variants, tmp_path / "two.so")
    of_newer, of_older = report.programs["cuda:sm_90a"], report.programs["cuda:sm_80"]
    assert (of_newer.packed_bytes, of_older.packed_bytes) == (0, 2 * TRANSFORMED)
    assert of_newer.weights_bytes == of_older.weights_bytes
    for capability in ("80", "90"):
        monkeypatch.setenv("EMULATED_CAPABILITY", capability)
        found = load(tmp_path / "two.so")(*inputs())
        for one, expected in zip(found, evaluate(network(), inputs()), strict=True):
            assert np.abs(one - expected).max() <= 2 * ERRORS[4] * np.abs(expected).max()


def test_inspecting_names_what_packs(libraries: Libraries, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(libraries.small.library)]) == 0
    assert "packed    0.17 MB, by the GPU when a context is created" in capsys.readouterr().out
    assert main(["inspect", "--size", str(libraries.small.library)]) == 0
    said = capsys.readouterr().out
    assert "pack0a_" in said
    assert f"{libraries.small.program.weights_bytes:12,}  weights" in said
