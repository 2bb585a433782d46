"""Products with weights of 4 and 8 bits, float8 too, compute what the reference does, on an emulated GPU."""

from __future__ import annotations

import numpy as np
import pytest
from mma_kernels import SMALL

from tcomp.codegen.cuda.cubin import compile_cubin
from tcomp.codegen.cuda.device_code import device_code
from tcomp.codegen.jit import build_scheduled
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.types import FLOAT8, numpy_dtype
from tcomp.target.target import TARGETS, Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.selection import schedule, template_for
from tcomp.tensor.template import TEMPLATES

TEMPLATE = "matmul_packed_cuda"


def product(
    rows: int,
    columns: int,
    depth: int,
    bits: int,
    block: int,
    zeros: bool = False,
    dtype: str = "float32",
    of: str = "uint8",
) -> Kernel:
    """relu(x times weights of type `of`, transposed, plus a bias)."""
    g = GraphBuilder("packed")
    blocks = -(-depth // block)
    x = g.input("x", (rows, depth), dtype)
    packed = g.input("packed", (columns, depth * bits // 8), of)
    scales = g.input("scales", (columns, blocks), dtype)
    middle = np.zeros((), numpy_dtype(of)) if of in FLOAT8 else np.uint8(1 << (bits - 1))
    zero = g.input("zeros", (columns, blocks), "uint8") if zeros else g.constant(middle)
    weights = g.op("dequantize_blocks", packed, scales, zero, bits=bits, block=block, columns=depth)
    y = g.op("matmul", x, weights, transpose_b=True)
    graph = g.build(g.op("relu", g.op("add", y, g.input("bias", (columns,), dtype))))
    return Kernel(graph, frozenset(range(1, 4 if zeros else 3)))


def numbers(kernel: Kernel) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [
        rng.integers(0, 16 if v.name == "zeros" else 256, v.type.static_shape).astype(np.uint8)
        if v.dtype == "uint8"
        else rng.uniform(-1, 1, v.type.static_shape).astype(numpy_dtype(v.dtype))
        for v in kernel.body.inputs
    ]


@pytest.mark.parametrize(
    ("kernel", "knobs"),
    [
        (product(1, 24, 512, 4, 32, zeros=True), {"warps": 2, "columns": 4, "unroll": 2}),
        (product(3, 13, 264, 4, 264), {"warps": 4, "columns": 2, "unroll": 4}),
        (product(2, 20, 528, 8, 16, zeros=True), {"warps": 1, "columns": 1, "unroll": 2, "split": 2}),
        (product(4, 9, 256, 8, 256, dtype="float16"), {"warps": 2, "columns": 1, "unroll": 1}),
        (product(3, 21, 264, 8, 24, of="float8_e4m3fn"), {"warps": 2, "columns": 2, "unroll": 2}),
        (product(1, 20, 512, 8, 512, of="float8_e5m2"), {"warps": 4, "columns": 1, "unroll": 2, "split": 2}),
    ],
    ids=[
        "4 bits, zero points", "4 bits, ragged", "8 bits, parts of the depth", "8 bits, float16",
        "float8_e4m3fn", "float8_e5m2, parts of the depth",
    ],
)  # fmt: skip
def test_few_rows(kernel: Kernel, knobs: dict[str, int], gpu: Target) -> None:
    template = TEMPLATES[TEMPLATE]
    assert template.accepts(kernel, gpu)
    space = template.space(kernel, gpu)
    config = {**space.default, "split": 1, **knobs}
    space.check(config)
    arrays = numbers(kernel)
    (found,) = build_scheduled(kernel, template.apply(kernel, gpu, config), gpu)(arrays)
    (expected,) = evaluate(kernel.body, arrays)
    tolerance = 2e-3 if found.dtype == np.float16 else 1e-5
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize(
    ("kernel", "knobs"),
    [
        (product(40, 50, 192, 4, 32, zeros=True, dtype="float16"), {"stages": 3}),
        pytest.param(
            product(33, 24, 200, 8, 200, dtype="float16"), {"stages": 2, "splits": 2}, marks=pytest.mark.slow
        ),
        pytest.param(
            product(20, 40, 320, 4, 64, dtype="float16"), {"depth_chunks": 8}, marks=pytest.mark.slow
        ),
        (product(40, 50, 192, 8, 32, dtype="float16", of="float8_e4m3fn"), {"stages": 3}),
        pytest.param(
            product(40, 50, 192, 8, 192, dtype="bfloat16", of="float8_e5m2"), {}, marks=pytest.mark.slow
        ),
    ],
    ids=["4 bits", "8 bits, parts of the depth", "wide steps", "float8_e4m3fn", "float8_e5m2, bfloat16"],
)
def test_tensor_cores(kernel: Kernel, knobs: dict[str, int], gpu: Target) -> None:
    """Weights are unpacked between memory and shared memory: there is no other launch, nor scratch."""
    template = TEMPLATES["matmul_mma_cuda"]
    config = {**SMALL, **knobs}
    template.space(kernel, gpu).check(config)
    scheduled = template.apply(kernel, gpu, config)
    assert len(scheduled.scratch) == (1 if "splits" in knobs else 0)
    arrays = numbers(kernel)
    (found,) = build_scheduled(kernel, scheduled, gpu)(arrays)
    (expected,) = evaluate(kernel.body, arrays)
    np.testing.assert_allclose(found, expected, rtol=4e-3, atol=2e-3 * np.abs(expected).max())


def test_plain_instructions(gpu: Target) -> None:
    """They load two weights of a column at once, and a pair of scales."""
    kernel, template = product(2, 4, 224, 4, 32, dtype="float16"), TEMPLATES["matmul_cuda"]
    config = {
        "tile_m": 32, "tile_n": 32, "tile_k": 16, "thread_m": 2, "thread_n": 2, "stages": 1, "split": 4,
        "vector": 4,
    }  # fmt: skip
    space = template.space(kernel, gpu)
    space.check(config)
    arrays = numbers(kernel)
    (found,) = build_scheduled(kernel, template.apply(kernel, gpu, space.complete(config)), gpu)(arrays)
    (expected,) = evaluate(kernel.body, arrays)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())


@pytest.mark.parametrize("of", FLOAT8)
def test_all_numbers_of_float8(of: str, gpu: Target) -> None:
    """Each of the 256 in a column of its own, where all others are zero."""
    g = GraphBuilder("all")
    x, packed, scales = g.input("x", (1, 8)), g.input("packed", (256, 8), of), g.input("scales", (256, 1))
    zero = g.constant(np.zeros((), numpy_dtype(of)))
    weights = g.op("dequantize_blocks", packed, scales, zero, bits=8, block=8, columns=8)
    kernel = Kernel(g.build(g.op("matmul", x, weights, transpose_b=True)), frozenset({1, 2}))
    bits = np.zeros((256, 8), np.uint8)
    bits[np.arange(256), np.arange(256) % 8] = np.arange(256)
    numbers = bits.view(numpy_dtype(of))
    template = TEMPLATES[TEMPLATE]
    scheduled = template.apply(kernel, gpu, {**template.space(kernel, gpu).default, "split": 1})
    arrays = [np.ones((1, 8), np.float32), numbers, np.full((256, 1), 2, np.float32)]
    (found,) = build_scheduled(kernel, scheduled, gpu)(arrays)
    np.testing.assert_array_equal(found[0], 2 * numbers.astype(np.float32).sum(axis=1))


def test_streams_are_left_to_tuning() -> None:
    """With weights to be unpacked, some tiles that share steps spill."""
    target, kernel = TARGETS["cuda:sm_80"], product(512, 4096, 4096, 4, 128, dtype="float16")
    space = template_for(kernel, target).space(kernel, target)
    assert space.default["algorithm"] == "matmul_mma_cuda"
    assert "streamed" not in space.default
    space.check({**space.default, "streamed": 1, "splits": 1})


def test_it_is_the_default_of_few_rows() -> None:
    """What is read counts: half a byte for a weight."""
    target = TARGETS["cuda:sm_80"]
    kernel = product(1, 4096, 4096, 4, 32)
    template = template_for(kernel, target)
    assert template.space(kernel, target).default["algorithm"] == TEMPLATE
    wide = GraphBuilder("wide")
    y = wide.op("matmul", wide.input("x", (1, 4096)), wide.input("w", (4096, 4096)), transpose_b=True)
    plain = Kernel(wide.build(y), frozenset({1}))
    assert template.estimate(kernel, target) < 0.25 * template_for(plain, target).estimate(plain, target)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize(
    ("bits", "of"), [(4, "uint8"), (8, "uint8"), (8, "float8_e4m3fn"), (8, "float8_e5m2")]
)
@pytest.mark.parametrize(("rows", "dtype"), [(1, "float32"), (8, "float16"), (512, "float16")])
@pytest.mark.usefixtures("real_compiler")
def test_defaults_do_not_spill(rows: int, dtype: str, bits: int, of: str, arch: str) -> None:
    target = TARGETS[f"cuda:{arch}"]
    kernel = product(rows, 4096, 4096, bits, 128, zeros=of == "uint8", dtype=dtype, of=of)
    code = device_code(schedule(kernel, target).function, "kernel", target)
    assert "tcomp_unpack" in code.source
    assert all(r.spilled_bytes == 0 for r in compile_cubin(code.source, arch).resources.values())
