"""Movement kernels: regions in which nothing is left to choose, and transposes in registers."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
import pytest
from runnable import RUNNABLE

from tcomp.codegen.jit import build_kernel
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Value
from tcomp.relay.types import numpy_dtype
from tcomp.target.target import TARGETS
from tcomp.tensor.access import Region
from tcomp.tensor.cpu.regions import regions
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.loops import TensorMap, buffers_of
from tcomp.tensor.lower import lower_body, placeholders
from tcomp.tensor.selection import schedule

V4 = TARGETS["x86-64-v4"]
Make = Callable[..., Value]


def to_blocks(b: GraphBuilder, x: Value) -> Value:
    return b.op("layout_transform", x, src="NCHW", dst="NCHW16c", channels=x.shape[1])


def to_plain(channels: int) -> Make:
    return lambda b, x: b.op("layout_transform", x, src="NCHW16c", dst="NCHW", channels=channels)


def joined(channels: int) -> Make:
    """Ragged blocks side by side: the second operand begins in the middle of a block."""
    return lambda b, *x: to_blocks(b, b.op("concat", *(to_plain(channels)(b, v) for v in x), axis=1))


def padded(*padding: int) -> Make:
    return lambda b, x: b.op("pad", x, padding=padding, value=1.5)


CASES: list[tuple[Make, list[tuple[int, ...]]]] = [
    (to_blocks, [(1, 136, 9, 9)]),
    (to_blocks, [(2, 24, 5, 3)]),
    (to_blocks, [(1, 17, 2, 2)]),
    (to_plain(136), [(1, 9, 9, 9, 16)]),
    (to_plain(24), [(2, 2, 14, 14, 16)]),
    (to_plain(5), [(1, 1, 7, 1, 16)]),
    (joined(24), [(1, 2, 6, 6, 16), (1, 2, 6, 6, 16)]),
    (joined(21), [(1, 2, 3, 5, 16), (1, 2, 3, 5, 16), (1, 2, 3, 5, 16)]),
    (padded(0, 8, 2, 0, 5, 1), [(3, 20, 33)]),
    (padded(0, 0, 1, 0, 0, 1), [(3, 20, 33)]),
]


def kernel_of(make: Make, shapes: list[tuple[int, ...]], dtype: str = "float32") -> Kernel:
    builder = GraphBuilder()
    inputs = [builder.input(f"x{i}", s, dtype) for i, s in enumerate(shapes)]
    return Kernel(builder.build(make(builder, *inputs)))


def regions_of(kernel: Kernel) -> list[Region]:
    inputs = placeholders(kernel)
    (output,) = lower_body(kernel, inputs)
    return regions(output, TensorMap(zip(inputs, buffers_of(inputs, "input"), strict=True)))


@pytest.mark.parametrize(("make", "shapes"), CASES)
@pytest.mark.parametrize("target", RUNNABLE)
def test_numbers(make: Make, shapes: list[tuple[int, ...]], target: str) -> None:
    kernel = kernel_of(make, shapes)
    arrays = [np.random.default_rng(i).standard_normal(s).astype(np.float32) for i, s in enumerate(shapes)]
    (found,) = build_kernel(kernel, TARGETS[target])(arrays)
    np.testing.assert_array_equal(found, evaluate(kernel.body, arrays)[0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("make", "shapes"), [CASES[0], CASES[3]])
def test_blocks_of_16_bit_elements(make: Make, shapes: list[tuple[int, ...]], dtype: str) -> None:
    kernel = kernel_of(make, shapes, dtype)
    array = np.random.default_rng(0).standard_normal(shapes[0]).astype(numpy_dtype(dtype))
    (found,) = build_kernel(kernel, TARGETS[RUNNABLE[0]])([array])
    np.testing.assert_array_equal(found, evaluate(kernel.body, [array])[0])


@pytest.mark.parametrize(("make", "shapes"), CASES)
def test_regions_cover_the_tensor_once(make: Make, shapes: list[tuple[int, ...]]) -> None:
    kernel = kernel_of(make, shapes)
    covered = np.zeros(kernel.body.outputs[0].type.static_shape, np.int32)
    for region in regions_of(kernel):
        covered[tuple(slice(span.begin, span.begin + span.extent) for span in region)] += 1
    assert (covered == 1).all()


def test_ragged_blocks_leave_no_condition() -> None:
    for make, shapes in CASES[6:7]:
        assert "if_then_else" not in str(schedule(kernel_of(make, shapes), V4).function.script())


def test_blocks_are_transposed_in_registers() -> None:
    text = str(schedule(kernel_of(to_blocks, [(1, 32, 8, 8)]), V4).function.script())
    assert text.count("T.Shuffle") == 16 * 4


def test_a_tensor_of_too_many_pieces_stays_whole() -> None:
    kernel = kernel_of(lambda b, *x: b.op("concat", *x, axis=0), [(2, 5)] * 60)
    (region,) = regions_of(kernel)
    assert prod(span.extent for span in region) == 600
