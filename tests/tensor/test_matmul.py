"""The matrix product template: numbers against the operator's own reference, register use, spaces."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from runnable import WIDEST

from tcomp.codegen.jit import build_kernel, build_scheduled
from tcomp.codegen.kernel_runner import KernelRunner
from tcomp.codegen.machine_code import hot_loop, multiplies, on_stack
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Value
from tcomp.relay.types import Array, TensorType, numpy_dtype
from tcomp.target.target import TARGETS
from tcomp.tensor.cpu.gemm import schedule_product
from tcomp.tensor.cpu.gemm_plan import Plan
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tensor.product import Product
from tcomp.tensor.schedules.matmul_cpu import MatmulCpu
from tcomp.tensor.selection import template_for

AVX2 = TARGETS["x86-64-v3"]


def matmul(
    a: tuple[int, ...],
    b: tuple[int, ...],
    *epilogue: str,
    constant: bool = True,
    dtype: str = "float32",
    **attrs: bool,
) -> Kernel:
    """A product followed by unary operators, `bias` or `bias first` (one a column), `residual` (full)."""
    builder = GraphBuilder()
    result: Value = builder.op("matmul", builder.input("a", a, dtype), builder.input("b", b, dtype), **attrs)
    for name in epilogue:
        if name in ("bias", "bias first", "residual"):
            shape = result.type.static_shape
            other = builder.input(name, shape if name == "residual" else shape[-1:], dtype)
            operands = (other, result) if name == "bias first" else (result, other)
            result = builder.op("add", *operands)
        else:
            result = builder.op(name, result)
    return Kernel(builder.build(result), frozenset({1}) if constant else frozenset())


def random_arrays(kernel: Kernel, seed: int = 0) -> list[Array]:
    generator = np.random.default_rng(seed)

    def one(type_: TensorType) -> Array:
        if "int" in type_.dtype:
            return generator.integers(-4, 5, type_.static_shape).astype(type_.dtype)
        return generator.standard_normal(type_.static_shape).astype(numpy_dtype(type_.dtype))

    return [one(v.type) for v in kernel.body.inputs]


def assert_matches(kernel: Kernel, target_name: str, config: Config | None = None) -> KernelRunner:
    arrays = random_arrays(kernel)
    runner = build_kernel(kernel, TARGETS[target_name], config)
    tolerance = {"float16": 5e-3, "bfloat16": 4e-2}.get(kernel.body.outputs[0].dtype, 1e-5)
    for found, expected in zip(runner(arrays), evaluate(kernel.body, arrays), strict=True):
        wide = expected.astype(np.float64)
        scale = max(1.0, float(np.abs(wide).max()))
        assert np.abs(found.astype(np.float64) - wide).max() <= tolerance * scale
    return runner


CASES = {
    "tail of rows and columns": matmul((100, 64), (64, 100), "relu"),
    "bias, gelu, residual": matmul((50, 32), (32, 96), "bias", "gelu", "residual"),
    "bias read before the product": matmul((50, 32), (32, 96), "bias first", "gelu"),
    "leading axes are rows": matmul((2, 25, 48), (48, 80), "bias", "residual", "relu"),
    "fewer columns than lanes": matmul((33, 40), (40, 10), "bias"),
    "one row": matmul((1, 64), (64, 200), "bias"),
    "vectors": matmul((7,), (7,)),
    "vector by batch": matmul((6,), (2, 6, 3)),
    "batch by vector": matmul((2, 5, 6), (6,), constant=False),
    "transposed constant": matmul((40, 24), (56, 24), transpose_b=True),
    "transposed operands": matmul((24, 40), (56, 24), constant=False, transpose_a=True, transpose_b=True),
    "transposed rows": matmul((32, 40), (32, 96), transpose_a=True),
    "computed right": matmul((40, 24), (24, 56), constant=False),
    "batch": matmul((3, 20, 16), (3, 16, 40), constant=False),
    "constant batch": matmul((3, 20, 16), (3, 16, 40)),
    "broadcast batch": matmul((2, 1, 4, 6), (3, 6, 8), "relu", constant=False),
    "batch, transposed": matmul((2, 3, 20, 16), (3, 40, 16), constant=False, transpose_b=True),
    "float64": matmul((20, 16), (16, 40), dtype="float64"),
    "float16": matmul((20, 16), (16, 40), dtype="float16"),
    "bfloat16": matmul((20, 16), (16, 40), dtype="bfloat16"),
    "bfloat16 with work behind it": matmul((20, 16), (16, 40), "bias", "relu", dtype="bfloat16"),
    "int8": matmul((20, 16), (16, 40), dtype="int8"),
}


@pytest.mark.parametrize("case", CASES)
def test_default_matches_reference(case: str) -> None:
    assert_matches(CASES[case], WIDEST.name)
    assert template_for(CASES[case], WIDEST).id == "matmul_cpu@2"


@pytest.mark.parametrize("case", ["tail of rows and columns", "computed right", "batch"])
def test_every_knob_matches_reference(case: str) -> None:
    kernel = CASES[case]
    space = template_for(kernel, WIDEST).space(kernel, WIDEST)
    rng = random.Random(0)
    for _ in range(6):
        assert_matches(kernel, WIDEST.name, space.random(rng))


def test_narrow_vectors_match_reference() -> None:
    assert_matches(CASES["tail of rows and columns"], "x86-64-v3")


def test_two_outputs_of_one_product() -> None:
    builder = GraphBuilder()
    product = builder.op("matmul", builder.input("a", (20, 16)), builder.input("b", (16, 40)))
    activated = builder.op("relu", product)
    assert_matches(Kernel(builder.build(product, activated), frozenset({1})), WIDEST.name)


def moved(dtype: str = "float32") -> Kernel:
    """Heads cut out of one tensor, multiplied, and put back side by side."""
    builder = GraphBuilder()
    x = builder.input("x", (2, 20, 6, 16), dtype)
    strides = (1, 1, 1, 1)
    a = builder.op("slice", x, begin=(0, 0, 0, 0), end=(2, 20, 3, 16), strides=strides)
    b = builder.op("slice", x, begin=(0, 0, 3, 0), end=(2, 20, 6, 16), strides=strides)
    heads = [builder.op("transpose", v, axes=(0, 2, 1, 3)) for v in (a, b)]
    product = builder.op("relu", builder.op("matmul", *heads, transpose_b=True))
    return Kernel(builder.build(builder.op("transpose", product, axes=(0, 2, 1, 3))))


@pytest.mark.parametrize("pack", [False, True])
def test_operands_and_results_are_moved_in_place(pack: bool) -> None:
    kernel = moved()
    default = template_for(kernel, WIDEST).space(kernel, WIDEST).default
    assert_matches(kernel, WIDEST.name, {**default, "pack_left": pack, "pack_right": pack})
    assert_matches(moved("bfloat16"), WIDEST.name)


@pytest.mark.parametrize("blocking", [(3, 2, 64), (2, 3, 192), (1, 1, 128)])
def test_uneven_blocks_match_reference(blocking: tuple[int, int, int]) -> None:
    kernel = matmul((70, 444), (444, 160), "bias", "gelu")
    space = template_for(kernel, WIDEST).space(kernel, WIDEST)
    row_block, group, chunk = blocking
    config = {
        **space.complete(space.default),
        "tile_rows": 6,
        "tile_vectors": 2,
        "pack_left": True,
        "parallel": True,
    }
    runner = build_scheduled(
        kernel,
        schedule_product(
            kernel,
            Product.of(kernel.body.nodes[0]),
            replace(
                Plan.of(Product.of(kernel.body.nodes[0]), WIDEST, config),
                row_block=row_block,
                group=group,
                chunk=chunk,
            ),
            WIDEST,
        ),
        WIDEST,
    )
    arrays = random_arrays(kernel)
    np.testing.assert_allclose(runner(arrays)[0], evaluate(kernel.body, arrays)[0], rtol=1e-4, atol=1e-3)
    assert "prefetcht" in runner.source()


SPLIT = [
    {"partial_sums": 2, "unroll": 4},
    {"partial_sums": 8, "unroll": 8, "tile_rows": 1},
    {"partial_sums": 4, "unroll": 8, "tile_rows": 1, "apart": True},
    {"unroll": 4, "chunk": 64, "parts": 2, "apart": True},
    {"parts": 2, "chunk": 64},
    {"parts": 4, "parallel": True},
    {"parts": 8, "chunk": 64, "partial_sums": 2, "unroll": 2, "parallel": True, "row_block": 1},
]


@pytest.mark.parametrize("knobs", SPLIT, ids=str)
@pytest.mark.parametrize("shape", [(7, 456, 20), (3, 5, 456, 20)], ids=["one", "batch"])
def test_split_sums_match_reference(shape: tuple[int, ...], knobs: Config) -> None:
    """456 steps are 57 of 8: parts and chunks of uneven size."""
    *batch, rows, depth, columns = shape
    kernel = matmul((*batch, rows, depth), (*batch, depth, columns), "bias", "gelu")
    default = template_for(kernel, AVX2).space(kernel, AVX2).default
    assert_matches(kernel, AVX2.name, {**default, "tile_rows": 2, "tile_vectors": 1, **knobs})


@pytest.mark.parametrize(
    ("rows", "columns", "constant", "apart"),
    [(1, 1000, True, True), (3, 1000, True, True), (1, 1000, False, False), (128, 1000, True, False)],
)
def test_few_rows_read_constants_as_several_streams(
    rows: int, columns: int, constant: bool, apart: bool
) -> None:
    kernel = matmul((rows, 1024), (1024, columns), constant=constant)
    assert template_for(kernel, AVX2).space(kernel, AVX2).default.get("apart", False) == apart


def test_threads_do_not_change_split_sums() -> None:
    kernel = matmul((8, 2048), (2048, 24), "bias")
    target = replace(AVX2, cores=2)
    config = template_for(kernel, target).space(kernel, target).default
    assert config["parts"] == 2
    arrays = random_arrays(kernel)
    shared, alone = (
        build_kernel(kernel, target, {**config, "parallel": parallel})(arrays)[0]
        for parallel in (True, False)
    )
    np.testing.assert_array_equal(shared, alone)


@pytest.mark.parametrize(
    ("a", "b", "cores", "expected"),
    [
        ((1, 4096), (4096, 8), 1, {"partial_sums": 8}),
        ((8, 8192), (8192, 8), 1, {"parts": 4}),
        ((8, 8192), (8192, 8), 2, {"parts": 4}),
        ((8, 8192), (8192, 8), 8, {"parts": 16}),
        ((1, 2048), (2048, 1000), 2, {}),
        ((128, 768), (768, 768), 2, {}),
    ],
)
def test_sums_are_split_where_outputs_are_few(
    a: tuple[int, int], b: tuple[int, int], cores: int, expected: Config
) -> None:
    kernel, target = matmul(a, b), replace(AVX2, cores=cores)
    template = template_for(kernel, target)
    default = template.algorithms.get("matmul_cpu", template).space(kernel, target).default
    assert {k: v for k, v in default.items() if k in ("partial_sums", "parts")} == expected


@pytest.mark.parametrize("target_name", ["x86-64-v4", "x86-64-v3"])
def test_sums_stay_in_registers(target_name: str) -> None:
    kernel = matmul((1024, 256), (256, 1024), "bias", "relu")
    target, template = TARGETS[target_name], MatmulCpu()
    space = template.space(kernel, target)
    default = space.complete(space.default)
    runner = build_scheduled(kernel, template.apply(kernel, target, default), target)
    loop = hot_loop(runner.source())
    sums = int(default["tile_rows"]) * int(default["tile_vectors"])
    assert multiplies(loop) == sums * int(default["unroll"])
    assert not on_stack(loop)
    assert "TVMBackendAllocWorkspace" not in runner.source("ll").split("define", 1)[1]


@pytest.mark.parametrize("name", ["x86-64-v3", "x86-64-v4", "icelake-server", "cortex-a76"])
def test_sums_before_a_heavy_epilogue_stay_in_registers(name: str) -> None:
    """It loops over a copy of the sums, which must not become their place in all steps of the product."""
    target = TARGETS[name]
    kernel = matmul((64, 256), (256, 768), "bias", "gelu")
    space = template_for(kernel, target).space(kernel, target)
    complete = space.complete(space.default)
    configs = [{**complete, "tile_rows": rows, "tile_vectors": vectors} for rows, vectors in ((4, 2), (8, 3))]
    legal = [config for config in configs if space.legal(config) is None]
    assert legal
    for config in legal:
        source = build_kernel(kernel, target, config).source()
        assert "memset" not in source
        assert not on_stack(hot_loop(source, target.machine), target.machine)


@pytest.mark.parametrize("name", ["x86-64-v3", "x86-64-v4", "cortex-a76", "raspberry-pi-5"])
def test_products_are_shared_on_devices_of_any_number_of_cores(name: str) -> None:
    target, kernel = TARGETS[name], matmul((128, 768), (768, 768))
    space = MatmulCpu().space(kernel, target)
    default = space.complete(space.default)
    assert default["parallel"]
    assert kernel.anchor is not None
    plan = Plan.of(Product.of(kernel.anchor), target, default)
    assert plan.groups * plan.row_blocks >= 2 * target.sharers
