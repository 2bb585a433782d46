"""Products of float16 matrices in pairs, against float32 products of the same rounded operands."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tcomp.codegen.jit import KernelRunner, build_kernel
from tcomp.relay.builder import GraphBuilder, make_node
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Attr, Value
from tcomp.target.host import host_target
from tcomp.target.target import TARGETS
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tensor.pairs import pack_pairs
from tcomp.tensor.register_tile import cut
from tcomp.tensor.template import template_for

FP16 = TARGETS["sapphirerapids"]
needs_fp16 = pytest.mark.skipif(not host_target().has("avx512fp16"), reason="this CPU has no AVX512-FP16")


def matmul(
    a: tuple[int, ...], b: tuple[int, ...], *epilogue: str, constant: bool = True, **attrs: Attr
) -> Kernel:
    """A float16 product summed in float32 with operators after it; `bias` is float32, `half` a cast."""
    builder = GraphBuilder()
    operands = builder.input("a", a, "float16"), builder.input("b", b, "float16")
    result: Value = builder.add(make_node("matmul", operands, {"out_dtype": "float32", **attrs})).output
    for name in epilogue:
        if name == "bias":
            result = builder.op("add", result, builder.input(name, result.type.static_shape[-1:]))
        elif name == "half":
            result = builder.op("cast", result, dtype="float16")
        else:
            result = builder.op(name, result)
    return Kernel(builder.build(result), frozenset({1}) if constant else frozenset())


def assert_matches(kernel: Kernel, config: Config | None = None) -> KernelRunner:
    """Rounding in short float16 sums adds no more than bfloat16's rounding of the operands would."""
    generator = np.random.default_rng(0)
    arrays = [generator.standard_normal(v.type.static_shape).astype(v.type.dtype) for v in kernel.body.inputs]
    runner = build_kernel(kernel, host_target(), config)
    (found,), (expected,) = runner(arrays), evaluate(kernel.body, arrays)
    error = found.astype(np.float64) - expected.astype(np.float64)
    scale = np.sqrt((expected.astype(np.float64) ** 2).mean())
    assert np.sqrt((error**2).mean()) <= 2e-3 * scale
    assert np.abs(error).max() <= 1.5e-2 * scale
    return runner


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


@needs_fp16
@pytest.mark.parametrize("name", CASES)
def test_products(name: str) -> None:
    assert template_for(CASES[name], host_target()).name == "matmul_pairs_cpu"
    assert_matches(CASES[name])


@needs_fp16
@pytest.mark.parametrize("seed", range(6))
def test_random_configs(seed: int) -> None:
    kernel = CASES["long depth" if seed % 2 else "tails"]
    space = template_for(kernel, host_target()).space(kernel, host_target())
    assert_matches(kernel, space.random(random.Random(seed)))


@needs_fp16
def test_the_inner_loop_multiplies_whole_vectors() -> None:
    source = build_kernel(CASES["bert"], FP16).source()
    lines = [line for line in source.splitlines() if "vfmadd" in line and "ph" in line]
    assert lines
    assert all("zmm" in line for line in lines)


@pytest.mark.parametrize("tag", ["x86-64-v3", "x86-64-v4", "znver4"])
def test_other_targets_take_another_template(tag: str) -> None:
    assert template_for(CASES["tails"], TARGETS[tag]).name == "matmul_cpu"


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


def test_pack_pairs_pads_an_odd_depth() -> None:
    matrix = np.arange(6, dtype=np.float16).reshape(3, 2)
    pairs = pack_pairs(matrix).view(np.float16).reshape(2, 2, 2)
    np.testing.assert_array_equal(pairs, [[[0, 2], [1, 3]], [[4, 0], [5, 0]]])
