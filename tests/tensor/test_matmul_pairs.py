"""Products of 16-bit matrices in pairs, against float32 products of the same rounded operands."""

from __future__ import annotations

import random

import numpy as np
import pytest
from pair_types import HARDWARE, PAIR_TYPES, assert_near, runnable, without_instructions

from tcomp.codegen.jit import build_kernel
from tcomp.codegen.machine_code import hot_loop, on_stack
from tcomp.relay.builder import GraphBuilder, make_node
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Attr, Value
from tcomp.relay.types import numpy_dtype
from tcomp.target.target import TARGETS, Target
from tcomp.tensor.cpu.primitives import cut
from tcomp.tensor.groups import ways_to_sum
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tensor.selection import template_for


def matmul(
    a: tuple[int, ...], b: tuple[int, ...], *epilogue: str, constant: bool = True, **attrs: Attr
) -> dict[str, Kernel]:
    """A 16-bit product summed in float32, with operators after it, by type; `half` is a cast."""
    return {d: _matmul(a, b, epilogue, constant, attrs, d) for d in ("float16", "bfloat16")}


def _matmul(
    a: tuple[int, ...],
    b: tuple[int, ...],
    epilogue: tuple[str, ...],
    constant: bool,
    attrs: dict[str, Attr],
    dtype: str,
) -> Kernel:
    builder = GraphBuilder()
    operands = builder.input("a", a, dtype), builder.input("b", b, dtype)
    result: Value = builder.add(make_node("matmul", operands, {"out_dtype": "float32", **attrs})).output
    for name in epilogue:
        if name == "bias":
            result = builder.op("add", result, builder.input(name, result.type.static_shape[-1:]))
        elif name == "half":
            result = builder.op("cast", result, dtype=dtype)
        else:
            result = builder.op(name, result)
    return Kernel(builder.build(result), frozenset({1}) if constant else frozenset())


def assert_matches(kernel: Kernel, target: Target, config: Config | None = None) -> None:
    generator = np.random.default_rng(0)
    arrays = [
        generator.standard_normal(v.type.static_shape).astype(numpy_dtype(v.type.dtype))
        for v in kernel.body.inputs
    ]
    (found,), (expected,) = build_kernel(kernel, target, config)(arrays), evaluate(kernel.body, arrays)
    assert_near(found, expected, kernel.body.inputs[0].dtype)


CASES = {
    "bert": matmul((128, 768), (768, 256), "bias", "gelu", "half"),
    "tails": matmul((100, 62), (62, 100), "relu"),
    "odd depth": matmul((33, 37), (37, 41)),
    "odd depth, computed": matmul((33, 37), (37, 41), constant=False),
    "long depth": matmul((20, 3072), (3072, 48)),
    "batch": matmul((3, 28, 64), (3, 64, 40), constant=False),
    "batch, keys by rows": matmul((3, 28, 64), (3, 48, 64), constant=False, transpose_b=True),
    "transposed": matmul((24, 40), (56, 24), constant=False, transpose_a=True, transpose_b=True),
    "transposed constant": matmul((40, 24), (56, 24), transpose_b=True),
    "broadcast batch": matmul((2, 1, 4, 6), (3, 6, 8), constant=False),
    "leading axes are rows": matmul((2, 25, 48), (48, 80), "bias", "relu"),
    "one row": matmul((1, 256), (256, 100), "bias"),
    "few columns": matmul((33, 40), (40, 10), "bias"),
    "vectors": matmul((8,), (8,)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", PAIR_TYPES)
def test_products(dtype: str, name: str) -> None:
    kernel, target = CASES[name][dtype], runnable(dtype)
    assert template_for(kernel, target).name == "matmul_pairs_cpu"
    assert_matches(kernel, target)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dtype", PAIR_TYPES)
def test_random_configs(dtype: str, seed: int) -> None:
    kernel, target = CASES["long depth" if seed % 2 else "tails"][dtype], runnable(dtype)
    space = template_for(kernel, target).space(kernel, target)
    assert_matches(kernel, target, space.random(random.Random(seed)))


def test_pairs_of_bfloat16_need_no_instructions() -> None:
    assert_matches(CASES["bert"]["bfloat16"], without_instructions("bfloat16"))


@pytest.mark.parametrize(("dtype", "instruction"), [("float16", "vfmadd231ph"), ("bfloat16", "vdpbf16ps")])
def test_the_inner_loop_multiplies_whole_vectors(dtype: str, instruction: str) -> None:
    kernel, target = CASES["bert"][dtype], HARDWARE[dtype]
    default = template_for(kernel, target).space(kernel, target).default
    loop = hot_loop(build_kernel(kernel, target).source(), multiply=instruction)
    products = [line for line in loop if line.startswith(instruction)]
    sums = int(default["tile_rows"]) * int(default["tile_vectors"])
    assert len(products) == sums * int(default["unroll"])
    assert all("zmm" in line for line in products)
    assert not on_stack(loop)


@pytest.mark.parametrize(
    ("tag", "dtype"),
    [
        ("x86-64-v3", "float16"),
        ("x86-64-v4", "bfloat16"),
        ("znver4", "float16"),
        ("icelake-server", "bfloat16"),
        ("znver3", "bfloat16"),
    ],
)
def test_other_targets_take_another_template(tag: str, dtype: str) -> None:
    assert template_for(CASES["tails"][dtype], TARGETS[tag]).name == "matmul_cpu"


@pytest.mark.parametrize(
    ("extents", "most", "outer", "inner"),
    [
        ((384,), 96, (4,), (96,)),
        ((12, 3, 3, 8), 96, (12,), (1, 3, 3, 8)),
        ((16, 1, 1, 8), 96, (2,), (8, 1, 1, 8)),
        ((97,), 96, (97,), (1,)),
        ((2, 3), 100, (1,), (2, 3)),
    ],
)
def test_cut(extents: tuple[int, ...], most: int, outer: tuple[int, ...], inner: tuple[int, ...]) -> None:
    assert cut(extents, most) == (outer, inner)


def test_packing_pads_an_odd_depth() -> None:
    matrix = np.arange(6, dtype=np.float16).reshape(3, 2)
    (sums,) = ways_to_sum(HARDWARE["float16"], "float16")
    pairs = sums.pack(matrix).view(np.float16).reshape(2, 2, 2)
    np.testing.assert_array_equal(pairs, [[[0, 2], [1, 3]], [[4, 0], [5, 0]]])


@pytest.mark.parametrize(
    ("target", "dtype", "rate"),
    [
        (HARDWARE["float16"], "float16", 2),
        (TARGETS["znver4"], "bfloat16", 2),
        (TARGETS["emeraldrapids"], "bfloat16", 16),
        (TARGETS["cortex-a76"], "float16", 2),
        (TARGETS["cortex-a76"], "int8", 4),
        (TARGETS["cortex-x2"], "bfloat16", 4),
        (TARGETS["cortex-x2"], "int8", 8),
    ],
)
def test_rates_of_products(target: Target, dtype: str, rate: int) -> None:
    """As llvm-mca counts them for ARM, and `scripts/bench_instructions.py` on x86."""
    assert max(sums.rate(target) for sums in ways_to_sum(target, dtype)) == rate
