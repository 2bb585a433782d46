"""Products and convolutions by tile registers, against float32 sums of the same rounded operands."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from pair_types import assert_near
from test_attention import attention
from test_conv_pairs import conv
from test_matmul_pairs import CASES as MATMULS
from tile_targets import tile_target  # noqa: F401  (a fixture)

from tcomp.codegen.jit import build_kernel
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.types import Array, numpy_dtype
from tcomp.target.target import TARGETS, Target
from tcomp.tensor.amx import TILES, TileBlock, blocks
from tcomp.tensor.cpu.tile_nest import in_pieces
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tensor.selection import choices_for
from tcomp.tvm_api import structural_map, tirx, tvm


def convolution(
    channels: int,
    size: int,
    outputs: int,
    kernel: int = 3,
    stride: int = 1,
    padding: int = 1,
    blocks: tuple[int, int] = (32, 32),
    rank: int = 2,
    batch: int = 1,
) -> Kernel:
    """A bfloat16 convolution with a float32 bias, relu and a bfloat16 residual."""
    into, out = blocks
    layouts = {"data_layout": f"NCHW{into}c", "out_layout": f"NCHW{out}c"}
    builder = GraphBuilder()
    data = builder.input("data", (batch, -(-channels // into), *(size,) * rank, into), "bfloat16")
    weight = builder.input("weight", (outputs, channels, *(kernel,) * rank), "bfloat16")
    attrs = {"strides": (stride,) * rank, "padding": (padding,) * 2 * rank, "out_dtype": "float32"}
    result = builder.op(f"conv{rank}d", data, weight, **attrs, **layouts)
    bias = builder.input("bias", (1, -(-outputs // out), *(1,) * rank, out))
    residual = builder.op("cast", builder.input("r", result.type.static_shape, "bfloat16"), dtype="float32")
    summed = builder.op("relu", builder.op("add", builder.op("add", result, bias), residual))
    return Kernel(builder.build(builder.op("cast", summed, dtype="bfloat16")), frozenset({1, 2}))


CONVOLUTIONS = {
    "3x3": convolution(64, 14, 64),
    "3x3, small image": convolution(64, 7, 96),
    "1x1": convolution(64, 13, 64, kernel=1, padding=0),
    "1x1, strided": convolution(64, 12, 40, kernel=1, stride=2, padding=0),
    "strided, blocks differ": convolution(64, 15, 48, stride=2, blocks=(32, 16)),
    "blocks of 16": convolution(16, 9, 32, blocks=(16, 32)),
    "ragged channels": convolution(24, 10, 40),
    "5x5": convolution(32, 11, 32, kernel=5, padding=2),
    "batch": convolution(32, 8, 64, batch=3),
    "one axis": convolution(32, 20, 32, rank=1),
    "three axes": convolution(32, 5, 32, rank=3),
}


ATTENTION = {
    "whole tiles": attention((2, 3, 32, 32), (2, 3, 64, 32), (2, 3, 64, 32), dtype="bfloat16"),
    "ragged": attention((2, 37, 20), (2, 45, 20), (2, 45, 23), dtype="bfloat16"),
    "odd depth, several panels": attention((1, 40, 37), (1, 101, 37), (1, 101, 70), dtype="bfloat16"),
    "mask": attention((2, 3, 20, 16), (2, 3, 24, 16), (2, 3, 24, 16), (2, 1, 1, 24), dtype="bfloat16"),
    "square mask": attention((20, 16), (24, 16), (24, 16), (20, 24), dtype="bfloat16"),
    "causal": attention((2, 70, 20), (2, 70, 20), (2, 70, 23), dtype="bfloat16", causal=1),
    "causal, past, mask": attention(
        (2, 41, 16), (2, 150, 16), (2, 150, 37), (2, 1, 150), dtype="bfloat16", causal=90
    ),
    "shared keys": attention((2, 4, 5, 8), (2, 1, 5, 8), (2, 1, 5, 8), dtype="bfloat16"),
    "one row": attention((1, 64), (77, 64), (77, 64), dtype="bfloat16"),
    "epilogue": attention((2, 20, 16), (2, 20, 16), (2, 20, 16), dtype="bfloat16", relu=True),
    "computed queries": attention((2, 16, 20), (2, 20, 16), (2, 20, 16), dtype="bfloat16", transposed=True),
}


def random_arrays(kernel: Kernel) -> list[Array]:
    generator = np.random.default_rng(0)
    types = [v.type for v in kernel.body.inputs]
    return [generator.standard_normal(t.static_shape).astype(numpy_dtype(t.dtype)) for t in types]


def assert_matches(kernel: Kernel, target: Target, config: Config | None = None) -> None:
    arrays = random_arrays(kernel)
    (found,), (expected,) = build_kernel(kernel, target, config)(arrays), evaluate(kernel.body, arrays)
    assert_near(found, expected, "bfloat16")


def random_config(kernel: Kernel, target: Target, algorithm: str, seed: int) -> Config:
    _, space = choices_for(kernel, target)
    generator = random.Random(seed)
    while True:
        config = space.random(generator)
        if config.get("algorithm") == algorithm:
            return config


@pytest.mark.parametrize("name", MATMULS)
def test_products(name: str, tile_target: Target) -> None:  # noqa: F811
    kernel = MATMULS[name]["bfloat16"]
    _, space = choices_for(kernel, tile_target)
    assert space.default["algorithm"] == "matmul_amx_cpu"
    assert_matches(kernel, tile_target)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str, tile_target: Target) -> None:  # noqa: F811
    kernel = CONVOLUTIONS[name]
    _, space = choices_for(kernel, tile_target)
    assert space.default["algorithm"] == "conv_amx_cpu"
    assert_matches(kernel, tile_target)


@pytest.mark.parametrize("name", ATTENTION)
def test_attention(name: str, tile_target: Target) -> None:  # noqa: F811
    """Weights are rounded to bfloat16: an error of 2^-9 of each, which largely cancel."""
    kernel = ATTENTION[name]
    _, space = choices_for(kernel, tile_target)
    for rows in {space.default["tile_rows"], 1}:
        config = {**space.default, "tile_rows": rows}
        assert config["algorithm"] == "attention_amx_cpu"
        arrays = random_arrays(kernel)
        (found,), (expected,) = (
            build_kernel(kernel, tile_target, config)(arrays),
            evaluate(kernel.body, arrays),
        )
        error = np.abs(found.astype(np.float64) - expected.astype(np.float64))
        assert error.max() <= 2.0**-7 * max(1.0, np.abs(expected.astype(np.float64)).max())


@pytest.mark.parametrize("seed", range(6))
def test_random_configs(seed: int, tile_target: Target) -> None:  # noqa: F811
    product = random.Random(seed).choice([MATMULS[n]["bfloat16"] for n in ("bert", "tails", "batch")])
    assert_matches(product, tile_target, random_config(product, tile_target, "matmul_amx_cpu", seed))
    kernel = random.Random(seed).choice(list(CONVOLUTIONS.values()))
    assert_matches(kernel, tile_target, random_config(kernel, tile_target, "conv_amx_cpu", seed))


@pytest.mark.parametrize("tag", ["znver4", "icelake-server", "x86-64-v3"])
def test_other_targets_have_none(tag: str) -> None:
    for kernel in (MATMULS["bert"]["bfloat16"], CONVOLUTIONS["3x3"]):
        template, _ = choices_for(kernel, TARGETS[tag])
        assert not any("amx" in name for name in template.algorithms)


def test_the_loop_multiplies_tiles_and_does_nothing_else() -> None:
    target = TARGETS["sapphirerapids"]
    for kernel in (MATMULS["bert"]["bfloat16"], CONVOLUTIONS["3x3"]):
        source = build_kernel(kernel, target).source()
        assert source.count("ldtilecfg") == 1
        assert "tdpbf16ps" in source
        assert "vfmadd231ps" not in source.split("tdpbf16ps")[1]


def test_lanes_beyond_the_channels_do_not_reach_the_sums(tile_target: Target) -> None:  # noqa: F811
    """24 channels in a block of 32: what operators before made of the other lanes may be anything."""
    kernel = CONVOLUTIONS["ragged channels"]
    arrays = random_arrays(kernel)
    arrays[0][..., 24:] = np.nan
    (found,) = build_kernel(kernel, tile_target)(arrays)
    assert np.isfinite(found[:, :1].astype(np.float32)).all()


@pytest.mark.parametrize(("count", "pieces"), [(10, 3), (12, 4), (5, 5), (2**31 - 1, 512)])
def test_pieces_cover_all_parts_once(count: int, pieces: int) -> None:
    whole, rest = divmod(count, pieces)
    found: list[tuple[int, int]] = []

    def body(first: Any, own: Any, number: Any) -> Any:
        for piece in (0, 1, pieces - 1):
            at = [
                structural_map(tirx.convert(x), (tvm.ir.Var, lambda v, piece=piece: tirx.const(piece)))
                for x in (first, own)
            ]
            begin, parts = (int(tvm.sym.Analyzer().simplify(x)) for x in at)
            found.append((begin, parts))
        return tirx.Evaluate(0)

    in_pieces(TileBlock(2, 2, 16, 16, 16), count, pieces, body)
    assert found[0] == (0, whole + (rest > 0))
    assert found[1][0] == found[0][1]
    assert sum(found[2]) == count


def test_blocks_fit_the_registers() -> None:
    found = blocks([16], 16, 16)
    assert TileBlock(2, 2, 16, 16, 16) in found
    assert all(b.down * b.across + min(b.down, b.across) + 1 <= TILES for b in found)
    assert not TileBlock(3, 2, 16, 16, 16).fits


def test_pairs_of_channels_beyond_a_block_are_not_for_tiles() -> None:
    kernel = conv(64, 14, 64)["float16"]
    template, _ = choices_for(kernel, TARGETS["sapphirerapids"])
    assert "conv_amx_cpu" not in template.algorithms
