"""Libraries for several kinds of CPU: which code they take, what they share, what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_models import chain

from tcomp.api import compile, optimize
from tcomp.codegen.artifact import Report, Variant, compile_variants
from tcomp.codegen.variants import by_preference, cold_kernels, graph_target
from tcomp.errors import ArtifactError, TargetError
from tcomp.plan import distinct_kernels
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Graph
from tcomp.runtime import load
from tcomp.target.host import host_target, missing_features
from tcomp.target.parse import parse_target, parse_targets
from tcomp.target.target import Target

HOST = host_target()
BOTH = "x86-64-v3,x86-64-v4"
HERE = "x86-64-v3" if missing_features(parse_target("x86-64-v4")) else "x86-64-v4"
"""Of both, the code that is best on this machine."""
X = np.random.default_rng(0).standard_normal((4, 32), np.float32)


def network() -> Graph:
    """Convolutions that use packed weights, and a classifier of 10 columns."""
    rng = np.random.default_rng(0)
    g = GraphBuilder("network")
    x = g.input("image", (1, 16, 24, 24))
    for channels, size in ((32, 3), (48, 1), (64, 3)):
        shape = (channels, x.type.static_shape[1], size, size)
        weights = g.constant(rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(np.prod(shape[1:]))))
        x = g.op("relu", g.op("conv2d", x, weights, padding=(size // 2,) * 4))
    x = g.op("reduce_mean", x, axes=(2, 3), keepdims=False)
    return g.build(g.op("matmul", x, g.constant(rng.standard_normal((64, 10), np.float32))))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return compile(network(), tmp_path_factory.mktemp("both") / "both.so", BOTH, weights="separate").report


def test_takes_the_best_for_this_cpu(report: Report) -> None:
    image = np.random.default_rng(1).standard_normal((1, 16, 24, 24), np.float32)
    with load(report.library, threads=1) as model:
        assert model.variant == HERE
        assert model.target == "x86-64-v4,x86-64-v3 x86-64-v4,x86-64-v3"
        (found,) = model(image)
    (expected,) = evaluate(network(), [image])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_variant_may_be_named(report: Report) -> None:
    with load(report.library, threads=1, variant="x86-64-v3") as model:
        assert model.variant == model.new_context(threads=1).variant == "x86-64-v3"
    with pytest.raises(ArtifactError, match="variant is x86-64-v2; the library has x86-64-v4, x86-64-v3"):
        load(report.library, variant="x86-64-v2")
    if HERE == "x86-64-v3":
        with pytest.raises(ArtifactError, match=r"this CPU has no avx512.*, which variant x86-64-v4 needs"):
            load(report.library, variant="x86-64-v4")


def test_no_variant_runs_here(tmp_path: Path) -> None:
    targets = parse_targets("x86-64-v4,sapphirerapids,znver4")
    if not all(missing_features(target) for target in targets):
        pytest.skip("this CPU runs one of them")
    compile_variants(chain(), [Variant(t) for t in targets], tmp_path / "far.so")
    with pytest.raises(
        ArtifactError, match=r"no \S+ for x86-64-v4, and no \S+ for sapph\S+, and no \S+ for zn"
    ):
        load(tmp_path / "far.so")


def test_weights_are_stored_once(report: Report, tmp_path: Path) -> None:
    """But for the classifier: the vectors of AVX2 do not divide its 10 columns as those of AVX-512 do."""
    own = compile(network(), tmp_path / "own.so", BOTH, weights="separate", own_weights=True).report
    alone = compile(network(), tmp_path / "alone.so", "x86-64-v4", weights="separate").report
    shared, both, one = (r.program.weights_bytes for r in (report, own, alone))
    assert one <= shared < 1.2 * one
    assert both > 1.5 * one


def test_variants_agree_in_all_but_code(report: Report) -> None:
    first, second = report.programs.values()
    assert list(report.programs) == ["x86-64-v4", "x86-64-v3"]
    assert (first.arena_bytes, first.constants) == (second.arena_bytes, second.constants)
    assert [first.label(step) for step in first.steps] == [second.label(step) for step in second.steps]


def test_equal_code_is_there_once(tmp_path: Path) -> None:
    """Code for a target and for the same target by another name is the same."""
    twin = parse_target('{"tag": "x86-64-v3", "name": "twin"}')
    one = compile_variants(chain(), [Variant(HOST)], tmp_path / "one.so").library_bytes
    variants = [Variant(parse_target("x86-64-v3")), Variant(twin)]
    two = compile_variants(chain(), variants, tmp_path / "two.so").library_bytes
    assert two < one + 4096
    with load(tmp_path / "two.so", threads=1, variant="twin") as model:
        for actual, expected in zip(model(X), evaluate(chain(), [X]), strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_more_features_are_preferred() -> None:
    def names(text: str) -> list[str]:
        return [target.variant for target in by_preference(parse_targets(text))]

    assert names("x86-64-v3,x86-64-v4,znver4") == ["znver4", "x86-64-v4", "x86-64-v3"]
    assert names("cortex-a55,cortex-x2,cortex-a76,cortex-a53") == [
        "cortex-x2", "cortex-a76", "cortex-a55", "cortex-a53"
    ]  # fmt: skip
    with pytest.raises(TargetError, match="`x86-64-v3` and `twin` use the same features"):
        by_preference([parse_target("x86-64-v3"), parse_target('{"tag": "x86-64-v3", "name": "twin"}')])


def test_the_graph_suits_all() -> None:
    def target(text: str) -> Target:
        return graph_target(by_preference(parse_targets(text)))

    assert target("x86-64-v3,x86-64-v4").lanes() == 16
    assert target("haswell,x86-64-v4").cache_bytes == (32 * 1024, 256 * 1024, 2048 * 1024)
    assert target("cortex-a76,cortex-a55").multiplies("int8")
    assert not target("cortex-a76,cortex-a72").multiplies("int8")
    assert target("znver4,x86-64-v3").fast_dtype is None
    assert target("znver4").fast_dtype == "bfloat16"


def test_kernels_that_take_no_time_are_common() -> None:
    targets = by_preference(parse_targets(BOTH))
    graph = optimize(network(), targets[0])
    cold = [k.label for key, k in distinct_kernels(graph).items() if key in cold_kernels(graph, targets)]
    assert cold
    assert not any("conv2d" in label for label in cold)
    assert cold_kernels(graph, targets[:1]) == frozenset()
    assert cold_kernels(graph, targets[::-1]) == frozenset()  # the last needs what the first lacks
