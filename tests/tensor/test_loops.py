"""Loop nests written directly: what stays behind a condition, and what becomes vectors."""

from __future__ import annotations

import numpy as np

from tcomp.codegen.jit import build_kernel
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.target.target import TARGETS
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.loops import TensorMap
from tcomp.tensor.selection import schedule
from tcomp.tvm_api import te

AVX512 = TARGETS["x86-64-v4"]


def concat_of_computed(shape: tuple[int, ...] = (1, 24, 16), axis: int = 1) -> Kernel:
    builder = GraphBuilder()
    parts = [builder.op("sigmoid", builder.input(name, shape)) for name in "ab"]
    return Kernel(builder.build(builder.op("concat", *parts, axis=axis)))


def test_operands_are_read_behind_their_condition() -> None:
    """Reading the second operand for an element of the first would lie before its start."""
    kernel = concat_of_computed((24, 3), 1)  # rows too short to be cut
    lines = str(schedule(kernel, AVX512).function.script()).splitlines()
    guarded = [line for line in lines if "if_then_else" in line]
    assert guarded
    assert not [line for line in lines if "input1[" in line and line not in guarded]


def test_a_condition_on_an_outer_loop_leaves_the_inner_one_vectorised() -> None:
    kernel = concat_of_computed()
    assert "T.vectorized(16)" in str(schedule(kernel, AVX512).function.script())
    arrays = [np.random.default_rng(i).standard_normal((1, 24, 16), np.float32) for i in range(2)]
    (found,) = build_kernel(kernel, TARGETS["x86-64-v3"])(arrays)
    np.testing.assert_allclose(found, evaluate(kernel.body, arrays)[0], rtol=1e-5)


def test_vectors_of_comparisons_become_numbers() -> None:
    builder = GraphBuilder()
    x, y = builder.input("x", (1, 64, 1), "int32"), builder.input("y", (1, 1, 40), "int32")
    one_hot = builder.op("cast", builder.op("equal", x, y), dtype="float32")
    kernel = Kernel(builder.build(one_hot))
    arrays = [
        np.arange(64, dtype=np.int32).reshape(1, 64, 1) % 40,
        np.arange(40, dtype=np.int32).reshape(1, 1, 40),
    ]
    (found,) = build_kernel(kernel, TARGETS["x86-64-v3"])(arrays)
    np.testing.assert_array_equal(found, evaluate(kernel.body, arrays)[0])


def test_tensor_maps_go_by_identity() -> None:
    """Scalars too, whose `==` is an expression; what is not there is not found."""
    first, second, absent = (te.placeholder((), name=name) for name in "abc")
    entries = TensorMap([(first, 1), (second, 2)])
    assert (entries.get(first), entries.get(second), entries.get(absent)) == (1, 2, None)
    assert [t.op.name for t in entries] == ["a", "b"]
    del entries[first]
    assert first not in entries
    assert len(entries) == 1
