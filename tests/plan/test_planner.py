"""Whole programs, executed step by step in a byte arena and compared with the graph's own evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import chain, diamond, fused

from tcomp.errors import UnsupportedError
from tcomp.plan import Program, distinct_kernels, plan, plan_variants
from tcomp.plan.program import Copy, Place
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Graph, Value
from tcomp.relay.types import Array, TensorType, numpy_dtype
from tcomp.target.cuda import ARCHITECTURES
from tcomp.tensor.epilogue import epilogue_operands
from tcomp.tensor.gpu.threads import launch
from tcomp.tensor.template import Packing, Scheduled
from tcomp.tvm_api import tirx


def planned(graph: Graph, scratch: tuple[TensorType, ...] = (), in_place: bool = False) -> Program:
    kernels = distinct_kernels(graph).items()
    none = frozenset[int]()
    return plan(
        graph,
        {
            key: Scheduled(None, {}, scratch, epilogue_operands(kernel) if in_place else none)
            for key, kernel in kernels
        },
    )


def weights_of(program: Program) -> Array:
    """The bytes of all constants, packed."""
    weights = np.zeros(program.weights_bytes, np.uint8)
    for entry in program.constants:
        data = entry.constant.data if entry.packing is None else entry.packing.pack(entry.constant.data)
        raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        weights[entry.offset : entry.offset + raw.size] = raw
    return weights


def simulate(
    program: Program,
    inputs: Sequence[Array],
    order: Sequence[int] | None = None,
    given: Mapping[str, Array] | None = None,
) -> list[Array]:
    """Run the program's steps, in `order`, on numpy memory; scratch is filled with garbage.

    `given` is memory by its name, in place of the program's own weights.
    """
    spaces: dict[str, Array] = {"arena": np.full(program.arena_bytes, 0xA5, np.uint8)}
    spaces |= {"weights": weights_of(program)} if given is None else given
    ins = [np.ascontiguousarray(a).reshape(-1).view(np.uint8) for a in inputs]
    outs = [np.zeros(t.type.nbytes, np.uint8) for t in program.outputs]

    def memory(place: Place, nbytes: int) -> Array:
        files = {"input": ins, "output": outs}.get(place.space)
        space = spaces[place.space] if files is None else files[place.index]
        assert place.offset + nbytes <= len(space)
        return space[place.offset : place.offset + nbytes]

    def view(place: Place, type_: TensorType) -> Array:
        return memory(place, type_.nbytes).view(numpy_dtype(type_.dtype)).reshape(type_.static_shape)

    for number in range(len(program.steps)) if order is None else order:
        step = program.steps[number]
        if isinstance(step, Copy):
            memory(step.destination, step.nbytes)[:] = memory(step.source, step.nbytes)
            continue
        kernel, scheduled = program.kernels[step.kernel].kernel, program.kernels[step.kernel].scheduled
        body = kernel.body
        count, scratch = len(body.inputs), len(scheduled.scratch)
        for place, type_ in zip(step.arguments[count : count + scratch], scheduled.scratch, strict=True):
            memory(place, type_.nbytes)[:] = 0x5A
        shared = {step.arguments[i] for i in scheduled.in_place}
        for place, value in zip(step.arguments[count + scratch :], body.outputs, strict=True):
            if place not in shared:
                view(place, value.type)[...] = np.nan  # Before operands are read: they must not overlap.
        operands = [
            view(place, value.type) for place, value in zip(step.arguments[:count], body.inputs, strict=True)
        ]
        made = zip(step.arguments[count + scratch :], body.outputs, evaluate(body, operands), strict=True)
        for place, value, result in made:
            view(place, value.type)[...] = result
    return [
        raw.view(numpy_dtype(t.type.dtype)).reshape(t.type.static_shape)
        for raw, t in zip(outs, program.outputs, strict=True)
    ]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Random graphs of elementwise kernels, views, slices and concatenations of rows; outputs may be
    anything, repeated too."""
    builder = GraphBuilder("random")
    values: list[Value] = [builder.input(f"x{i}", (6, 4)) for i in range(draw(st.integers(1, 2)))]
    values.append(builder.constant(np.full((6, 4), draw(st.integers(1, 2)), np.float32)))
    for _ in range(draw(st.integers(1, 10))):
        left = draw(st.sampled_from(values))
        rows, *row = left.type.static_shape
        kind = draw(st.sampled_from(("reshape", "slice", "concat", "kernel", "kernel")))
        if kind == "reshape":
            size = rows * prod(row)
            shapes = [(size,), (1, size), *([(size // 2, 2)] if size % 2 == 0 else [])]
            values.append(builder.op("reshape", left, shape=draw(st.sampled_from(shapes))))
            continue
        if kind == "slice":
            begin = draw(st.integers(0, rows - 1))
            ends = (draw(st.integers(begin + 1, rows)), *row)
            begins, strides = (begin, *(0 for _ in row)), tuple(1 for _ in left.shape)
            values.append(builder.op("slice", left, begin=begins, end=ends, strides=strides))
            continue
        if kind == "concat":
            operands = [v for v in values if list(v.type.static_shape[1:]) == row]
            joined = draw(st.lists(st.sampled_from(operands), min_size=1, max_size=3))
            values.append(builder.op("concat", *joined, axis=0))
            continue
        fitting = [v for v in values if v.shape == left.shape]
        node = fused(draw(st.sampled_from(("add", "sub", "maximum"))), left, draw(st.sampled_from(fitting)))
        values.append(builder.add(node).output)
    return builder.build(*draw(st.lists(st.sampled_from(values), min_size=1, max_size=4)))


@settings(deadline=None)
@given(graphs(), st.sampled_from(((), (TensorType((5,)), TensorType((100,))))), st.booleans())
def test_programs_compute_what_graphs_do(graph: Graph, scratch: tuple[TensorType, ...], in_place: bool):
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(v.type.static_shape, np.float32) for v in graph.inputs]
    program = planned(graph, scratch, in_place)
    for found, expected in zip(simulate(program, inputs), evaluate(graph, inputs), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert program.live_bytes <= program.arena_bytes


def in_streams(program: Program, rng: np.random.Generator) -> list[int]:
    """The program's steps in one of the orders that streams and waits allow."""
    left = {s: [i for i, t in enumerate(program.turns) if t.stream == s] for s in range(program.streams)}
    done: list[int] = []
    while any(left.values()):
        firsts = [steps[0] for steps in left.values() if steps]
        ready = [i for i in firsts if set(program.turns[i].waits) <= set(done)]
        done.append(int(rng.choice(ready)))
        left[program.turns[done[-1]].stream].pop(0)
    return done


def for_gpu(
    graph: Graph, blocks: int, scratch: tuple[TensorType, ...] = (), in_place: bool = False
) -> Program:
    """As `planned`, of kernels with so many blocks for a GPU of four multiprocessors."""
    gpu = replace(ARCHITECTURES["sm_80"], processors=4)
    some = SimpleNamespace(body=launch((blocks,), (32,), lambda block, thread: tirx.Evaluate(0)))
    scheduled = {
        key: Scheduled(some, {}, scratch, epilogue_operands(kernel) if in_place else frozenset())
        for key, kernel in distinct_kernels(graph).items()
    }
    return plan_variants(graph, [scheduled], [gpu])[0]


@settings(deadline=None)
@given(
    graphs(), st.sampled_from(((), (TensorType((5,)), TensorType((100,))))), st.booleans(), st.integers(0, 99)
)
def test_streams_compute_what_graphs_do_in_any_order(
    graph: Graph, scratch: tuple[TensorType, ...], in_place: bool, seed: int
):
    rng = np.random.default_rng(seed)
    inputs = [rng.standard_normal(v.type.static_shape, np.float32) for v in graph.inputs]
    program = for_gpu(graph, 1, scratch, in_place)
    found = simulate(program, inputs, in_streams(program, rng))
    for one, expected in zip(found, evaluate(graph, inputs), strict=True):
        np.testing.assert_array_equal(one, expected)


def test_branches_share_no_memory():
    """Two chains, whose intermediate results would take turns in the memory of one order."""
    builder = GraphBuilder("chains")
    ends = [builder.input(name, (64,)) for name in "xy"]
    for op in ("relu", "exp", "neg", "tanh"):
        ends = [builder.add(fused(op, end)).output for end in ends]
    graph = builder.build(builder.add(fused("sub", *ends)).output)
    program, rng = for_gpu(graph, 1), np.random.default_rng(0)
    inputs = [rng.standard_normal(64, np.float32) for _ in "xy"]
    for _ in range(10):
        (found,) = simulate(program, inputs, in_streams(program, rng))
        np.testing.assert_array_equal(found, evaluate(graph, inputs)[0])


def test_a_chain_has_one_stream():
    builder = GraphBuilder("line")
    value = builder.input("x", (64,))
    for _ in range(3):
        value = builder.add(fused("exp", value)).output
    program = for_gpu(builder.build(value), blocks=1)
    assert (program.streams, str(program.turns[2])) == (1, "[stream 0] ")


def test_branches_run_side_by_side_where_there_is_room():
    program = for_gpu(diamond(), blocks=1)
    assert [str(turn) for turn in program.turns] == [
        "[stream 0] ", "[stream 1] ", "[stream 0] ", "[stream 1] ", "[stream 0 after 3] ",
    ]  # fmt: skip
    assert "  4: [stream 0 after 3] k2 mul(" in str(program)
    large = 1 << 20  # Four multiprocessors are busy with so many numbers, and one is not.
    assert for_gpu(diamond(large), blocks=1).streams == 2
    assert for_gpu(diamond(large), blocks=4).streams == 1


def test_constants_packed_alike_are_stored_once():
    graph = diamond()
    packing = Packing(TensorType((65,)), lambda array: np.append(array, np.float32(0)))
    keys = distinct_kernels(graph)
    program = plan(graph, {k: Scheduled(None, {1: packing} if "const" in k else {}) for k in keys})
    assert [entry.nbytes for entry in program.constants] == [65 * 4]
    assert program.weights_bytes == 320


def test_views_and_passed_through_values_cost_copies_only_where_needed():
    program = planned(chain())
    copies = [step for step in program.steps if isinstance(step, Copy)]
    assert [str(step.source).split("+")[0] for step in copies] == ["weights", "input[0]"]


def test_outputs_take_the_memory_of_an_operand_that_is_read_for_the_last_time():
    """A residual network keeps one tensor and the branch beside it; the input and what is returned stay."""
    builder = GraphBuilder()
    x = builder.input("x", (256,))
    trunk = first = builder.add(fused("exp", x)).output
    for _ in range(3):
        branch = builder.add(fused("relu", builder.add(fused("neg", trunk)).output)).output
        trunk = builder.add(fused("add", branch, trunk)).output
    program = planned(builder.build(builder.add(fused("exp", trunk)).output, first), in_place=True)
    assert program.arena_bytes == 2 * 1024
    assert program.arena_bytes < planned(builder.build(trunk, first)).arena_bytes
    (found, kept) = simulate(program, [np.ones(256, np.float32)])
    assert kept[0] == np.exp(np.float32(1))
    np.testing.assert_array_equal(found, np.exp(kept))


def test_parts_of_a_concatenation_are_written_in_place():
    """Each layer joins its result to all before, as in DenseNet."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 2, 8))
    features = builder.add(fused("exp", x)).output
    for _ in range(3):
        new = builder.add(fused("relu", features)).output
        channels = new.type.static_shape[1]
        first = builder.op("reshape", new, shape=(1, channels, 8))
        features = builder.op("concat", features, first, axis=1)
    program = planned(builder.build(builder.add(fused("neg", features)).output))
    assert not any(isinstance(step, Copy) for step in program.steps)
    assert program.live_bytes == features.type.nbytes


def test_unfused_operators_are_refused():
    builder = GraphBuilder()
    x = builder.input("x", (4,))
    with pytest.raises(UnsupportedError, match="`relu` node is not in a kernel; run the fuse pass"):
        planned(builder.build(builder.op("relu", x)))


def test_variants_share_what_they_pack_alike():
    """Three variants: the second packs as the first, in an array of its own; the third in another order."""
    builder = GraphBuilder("one")
    x = builder.input("x", (4, 8))
    weights = builder.constant(np.arange(32, dtype=np.float32).reshape(4, 8))
    graph = builder.build(builder.add(fused("add", x, weights)).output)
    (key,) = distinct_kernels(graph)
    plain = TensorType((4, 8), "float32")
    scratch = [(), (TensorType((1000,), "float32"),), (plain, plain)]
    packings = [
        Packing(plain, lambda a: a + 0),
        Packing(plain, lambda a: np.ascontiguousarray(a)),
        Packing(TensorType((8, 4), "float32"), lambda a: np.ascontiguousarray(a.T)),
    ]
    programs = plan_variants(
        graph, [{key: Scheduled(None, {1: p}, s)} for p, s in zip(packings, scratch, strict=True)]
    )
    places = [program.steps[0].arguments[1] for program in programs]  # pyright: ignore
    assert places == [Place("weights", 0), Place("weights", 0), Place("weights", 128)]
    assert {len(program.constants) for program in programs} == {2}
    assert {program.weights_bytes for program in programs} == {256}
    assert {program.arena_bytes for program in programs} == {4032}  # room for the scratch of any
    assert [len(program.steps[0].arguments) for program in programs] == [3, 4, 5]  # pyright: ignore
