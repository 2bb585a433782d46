"""Contexts that share weights and code on the emulated GPU: memory, any order of destruction, threads, what
is refused, and that nothing is lost where creation fails."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from ctypes import byref, c_void_p, sizeof
from itertools import permutations
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from c_programs import instrumented, program, run
from device_arrays import Held, held, refusing
from test_packing_on_gpu import by_winograd, inputs, network

from tcomp import api
from tcomp.cli import main
from tcomp.cli._options import size_text
from tcomp.codegen import artifact, link
from tcomp.codegen.artifact import Report, Variant, compile_graph, compile_variants
from tcomp.errors import ArtifactError, UsageError
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.graph import Graph
from tcomp.relay.types import Array
from tcomp.runtime import Model, load
from tcomp.runtime.library import COptions, open_library
from tcomp.target.cuda_driver import driver
from tcomp.target.parse import parse_target
from tcomp.target.target import Target

pytestmark = pytest.mark.emulated
OF_CREATION = (
    "a context", "a stream", "an event", "memory for tensors", "memory for weights", "copying the weights",
    "memory for packed weights", "memory to pack weights", "packing the weights",
)  # fmt: skip
"""What the driver can refuse."""


@pytest.fixture(scope="module")
def packed(gpu: Target, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A library whose weights the GPU packs."""
    output = tmp_path_factory.mktemp("sharing") / "packed.so"
    return compile_graph(api.optimize(network(), gpu), gpu, output, by_winograd)


@pytest.fixture(scope="module")
def expected(packed: Report) -> list[Array]:
    with load(packed.library) as model:
        return model(*inputs())


@pytest.fixture(autouse=True)
def nothing_is_left(emulated: Path) -> Iterator[None]:
    """Each test gives back all that it took of the driver."""
    gc.collect()
    before = held()
    yield
    gc.collect()
    assert held() - before == Held(*[0] * 9)


def check(model: Model, expected: list[Array]) -> None:
    for found, one in zip(model(*inputs()), expected, strict=True):
        np.testing.assert_array_equal(found, one)


def rounded(nbytes: int) -> int:
    return -(-nbytes // 4096) * 4096


def test_a_further_context_takes_an_arena(packed: Report, expected: list[Array]) -> None:
    size, before = packed.program, held()
    kept = size.weights_bytes - size.source_bytes
    with load(packed.library) as one:
        first = held() - before
        # Kernels alone have code there: that which packed the weights is gone.
        assert first.modules == len(size.kernels)
        assert first.contexts == 1
        assert first.buffers == 3
        assert first.nbytes == rounded(size.arena_bytes) + rounded(kept) + rounded(size.packed_bytes)
        before = held()
        others = [one.new_context() for _ in range(3)]
        more = held() - before
        assert (more.buffers, more.nbytes) == (3, 3 * rounded(size.arena_bytes))
        assert (more.modules, more.contexts) == (0, 0)
        for model in (*others, one):
            check(model, expected)
            model.close()


def test_inspecting_says_what_contexts_take(packed: Report, capsys: pytest.CaptureFixture[str]) -> None:
    """As the driver counts it, in whole pages."""
    assert main(["inspect", "--json", str(packed.library)]) == 0
    facts = json.loads(capsys.readouterr().out)
    shared, arena, tensors = (facts[f"{kind}_bytes"] for kind in ("shared", "arena", "tensor"))
    before = held()
    with load(packed.library) as one:
        first, before = held() - before, held()
        with one.new_context() as two:
            further, before = held() - before, held()
            two(*inputs())
            ran = held() - before
    assert further.nbytes == rounded(arena)
    for found, said in ((first, shared + arena), (ran, tensors)):
        assert said <= found.nbytes < said + 4096 * found.buffers
    assert main(["inspect", str(packed.library)]) == 0
    lines = capsys.readouterr().out.splitlines()
    where = "of the GPU's memory"
    each = f"{size_text(arena)} {where} each, and {size_text(tensors)} if inputs and outputs are in the CPU's"
    assert f"context   {each}" in lines
    assert f"shared    {size_text(shared)} {where}, once for all contexts that share weights" in lines


def test_contexts_end_in_any_order(packed: Report, expected: list[Array]) -> None:
    for order in permutations(range(3)):
        one = load(packed.library)
        two = one.new_context()
        models = [one, two, two.new_context()]
        for model in models:
            check(model, expected)
        for count, number in enumerate(order, 1):
            models[number].close()
            for rest in order[count:]:
                check(models[rest], expected)
    with pytest.raises(UsageError, match="model `network` is closed"):
        one.new_context()


def test_a_context_of_its_own_shares_nothing(packed: Report) -> None:
    before = held()
    with load(packed.library):
        first = held() - before
        with load(packed.library):
            assert held() - before == Held(*(2 * count for count in vars(first).values()))


def test_threads_hand_contexts_on(packed: Report, expected: list[Array]) -> None:
    """Each makes one of the one before it, runs it, and closes the one before."""
    first = load(packed.library)
    starts = [first.new_context() for _ in range(3)]
    failures: list[BaseException] = []

    def hand_on(model: Model) -> None:
        try:
            for _ in range(5):
                following = model.new_context()
                model.close()
                check(following, expected)
                model = following
            model.close()
        except BaseException as error:
            failures.append(error)
            raise

    threads = [Thread(target=hand_on, args=(model,)) for model in starts]
    for thread in threads:
        thread.start()
    first.close()
    for thread in threads:
        thread.join()
    assert not failures


def layer() -> Graph:
    rng = np.random.default_rng(0)
    g = GraphBuilder("parallel")
    weight = g.constant(rng.standard_normal((8, 4, 1, 1)).astype(np.float32))
    return g.build(g.op("relu", g.op("conv2d", g.input("x", (1, 4, 4, 4)), weight)))


def test_a_c_program_with_threads(gpu: Target, tmp_path: Path) -> None:
    report = compile_graph(api.optimize(layer(), gpu), gpu, tmp_path / "parallel.so", weights="separate")
    sharing = program("sharing.c", tmp_path, [report.library])
    run([sharing, "10", tmp_path / "parallel.weights"])


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_sanitizers_find_nothing_of_shared_code(
    gpu: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sanitizer: str
) -> None:
    """The runtime and the program are instrumented; the driver's stand-in and kernels, which keep stacks of
    fibres, are not."""
    toolchain = instrumented(tmp_path, sanitizer)
    monkeypatch.setattr(artifact, "find_toolchain", lambda target: toolchain)
    monkeypatch.setattr(link, "check_library", lambda path, target: None)  # it needs the sanitizer's library
    (tmp_path / "kept").write_text("leak:libcuda.so.1\nleak:emulated-cubin\n")
    monkeypatch.setenv("LSAN_OPTIONS", f"suppressions={tmp_path / 'kept'}:print_suppressions=0")
    report = compile_graph(api.optimize(layer(), gpu), gpu, tmp_path / "parallel.so", weights="separate")
    sharing = program("sharing.c", tmp_path, [report.library], toolchain.command)
    run([sharing, "10", tmp_path / "parallel.weights"])


def refused_calls(make: object, survivors: list[Model], expected: list[Array]) -> list[str]:
    """What is said when the first, the second, ... call of the driver is refused, until creation succeeds."""
    said: list[str] = []
    while True:
        before = held()
        with refusing(len(said)) as was_refused:
            try:
                model = make()  # pyright: ignore
            except ArtifactError as error:
                said.append(str(error))
                model = None
        if model is not None:
            assert not was_refused()
            check(model, expected)
            model.close()
            return said
        assert was_refused()
        assert held() == before
        for one in survivors:
            check(one, expected)


def test_where_creation_fails_nothing_is_lost(packed: Report, expected: list[Array]) -> None:
    """Every call that asks the driver for something is refused once; others compute what they did."""
    said = refused_calls(lambda: load(packed.library), [], expected)
    for what in OF_CREATION:
        assert any(f"GPU: {what}: out of memory (CUDA error 2)" in text for text in said), what
    assert sum("loading the code: out of memory" in text for text in said) > len(packed.program.kernels)
    with load(packed.library) as one, one.new_context() as two:
        further = refused_calls(one.new_context, [one, two], expected)
    assert len(further) < len(said) / 2
    assert all("GPU: " in text and "out of memory" in text for text in further)
    assert any("memory for tensors" in text for text in further)


def test_another_device_is_refused(
    packed: Report, expected: list[Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMULATED_DEVICES", "2")
    said = (
        r"share_with has its weights on device 0, and the current CUDA context is of device 1; "
        r"make device 0 current, or create the context without share_with$"
    )
    one, before = load(packed.library), held()
    driver().call("cuCtxPushCurrent_v2", c_void_p(2))
    try:
        with pytest.raises(ArtifactError, match=said):
            one.new_context()
        assert held() == before
        there = load(packed.library)
        further = there.new_context()
    finally:
        driver().call("cuCtxPopCurrent_v2", byref(c_void_p()))
    with pytest.raises(
        ArtifactError, match="weights on device 1, and the current CUDA context is of device 0"
    ):
        there.new_context()
    # A thread without a current CUDA context makes one where the weights are.
    made: list[Model] = []
    thread = Thread(target=lambda: made.extend([there.new_context(), one.new_context()]))
    thread.start()
    thread.join()
    assert len(made) == 2
    for model in (one, there, further, *made):
        check(model, expected)
        model.close()


def test_another_variant_is_refused(gpu: Target, tmp_path: Path) -> None:
    older, newer = (Variant(parse_target(f"cuda:sm_{arch}")) for arch in (75, 80))
    compile_variants(api.optimize(layer(), older.target), [newer, older], tmp_path / "two.so")
    with load(tmp_path / "two.so") as model:
        assert model.variant == "cuda:sm_80"
        library, context = open_library(tmp_path / "two.so"), c_void_p()
        options = COptions(struct_bytes=sizeof(COptions), share_with=model._context, variant=b"cuda:sm_75")
        assert library.tcomp_create(byref(options), byref(context)) == 1
        assert not context.value
        said = (
            "variant is cuda:sm_75, and share_with has code and weights of cuda:sm_80; leave out one of them"
        )
        assert said in library.tcomp_error(None).decode()
