"""Kernels of random shapes, element types and layouts, for architectures that have templates for them."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from mma_kernels import arrays_for, conv, matmul
from test_attention_cuda import arrays_of
from test_packed_weights import numbers, product

from tcomp.relay.builder import GraphBuilder
from tcomp.relay.graph import Attr
from tcomp.relay.types import FLOAT8, Array
from tcomp.tensor.kernel import Kernel

ARCHITECTURES = ("sm_75", "sm_80", "sm_89", "sm_90a")


class Case(NamedTuple):
    arch: str
    kernel: Kernel
    arrays: Callable[[Kernel], list[Array]]


def random_case(random: Random) -> Case:
    """An architecture, a kernel for it, and what makes its inputs."""
    arch = random.choice(ARCHITECTURES)
    make = random.choice((_product, _product, _convolution, _convolution, _attention, _unpacked))
    kernel, arrays = make(random, arch)
    return Case(arch, kernel, arrays)


def _types(random: Random, arch: str) -> tuple[str, dict[str, Attr]]:
    """The element type of both factors, and the attributes with which they are multiplied."""
    types = ["float32", "float16", "bfloat16", "int8"]
    if arch != "sm_75":
        types.append("tf32")
    if arch in ("sm_89", "sm_90a"):
        types += FLOAT8
    dtype = random.choice(types)
    if dtype == "tf32":
        return "float32", {"multiply_as": "tf32"}
    sums: dict[str, Attr] = {"int8": {"out_dtype": "int32"}}.get(dtype, {})
    return dtype, {"out_dtype": "float32"} if dtype in FLOAT8 else sums


def _product(random: Random, arch: str) -> tuple[Kernel, Callable[[Kernel], list[Array]]]:
    dtype, attrs = _types(random, arch)
    rows = random.choice((random.randint(1, 8), random.randint(1, 150)))
    depth = random.choice((random.randint(1, 200), 8 * random.randint(1, 40), 64 * random.randint(1, 5)))
    columns = random.choice((random.randint(1, 200), 8 * random.randint(1, 30)))
    batch = random.choice(((), (), (2,), (2, 1)))
    right_batch = random.choice(((), batch))
    transpose_a, transpose_b = random.random() < 0.3, random.random() < 0.4
    left = (depth, rows) if transpose_a else (rows, depth)
    right = (columns, depth) if transpose_b else (depth, columns)
    after = (
        [] if dtype == "int8" else [x for x in ("bias", "gelu", "residual", "relu") if random.random() < 0.3]
    )
    is_constant = not right_batch and random.random() < 0.5
    kernel = matmul(
        (*batch, *left), (*right_batch, *right), *after, dtype=dtype, constant=is_constant,
        transpose_a=transpose_a, transpose_b=transpose_b, **attrs,
    )  # fmt: skip
    return kernel, arrays_for


def _convolution(random: Random, arch: str) -> tuple[Kernel, Callable[[Kernel], list[Array]]]:
    dtype, attrs = _types(random, arch)
    window = random.choice(((1, 1), (3, 3), (3, 3), (2, 3), (5, 1)))
    size = tuple(random.randint(max(6, 2 * extent), 16) for extent in window)
    attrs["strides"] = random.choice(((1, 1), (1, 1), (2, 2), (2, 1)))
    attrs["dilation"] = random.choice(((1, 1), (1, 1), (2, 1)))
    attrs["padding"] = tuple(random.choice((0, 1, 1)) for _ in range(4))
    inputs, outputs, groups = random.choice((
        (random.choice((3, 8, 16, 24, 32)), random.choice((8, 16, 18, 32, 40)), 1), (16, 32, 2), (16, 16, 16),
    ))  # fmt: skip
    attrs["groups"] = groups
    batch, after = random.choice((1, 1, 2, 3)), dtype != "int8" and random.random() < 0.5
    weights = (outputs, inputs // groups, *window)
    if random.random() < 0.4:
        is_constant = random.random() < 0.8
        plain = conv((batch, inputs, *size), weights, after, is_constant, dtype, **attrs)
        return plain, arrays_for
    block = random.choice((8, 16))
    out_block = block if groups == inputs else random.choice((8, 16))
    attrs |= {"data_layout": f"NCHW{block}c", "out_layout": f"NCHW{out_block}c"}
    blocks = -(-inputs // block)
    kernel = conv((batch, blocks, *size, block), weights, after, dtype=dtype, **attrs)

    def arrays(kernel: Kernel) -> list[Array]:
        data, *others = arrays_for(kernel)
        data[:, -1, ..., inputs - (blocks - 1) * block :] = 0  # Channels that are there to fill the block.
        return [data, *others]

    return kernel, arrays


def _attention(random: Random, arch: str) -> tuple[Kernel, Callable[[Kernel], list[Array]]]:
    dtype = random.choice(("float32", "float16", "bfloat16"))
    width = random.choice((16, 32, 40, 64, 64, 128))
    value_width = random.choice((width, width, 32))
    queries = random.choice((1, 3, 8, random.randint(9, 130)))
    keys = random.randint(max(queries, 2), 260)
    heads, batch = random.choice((1, 2, 4)), random.choice(((), (2,)))
    key_heads = random.choice((1, heads))
    g = GraphBuilder("attention")
    operands = [
        g.input("queries", (*batch, heads, queries, width), dtype),
        g.input("keys", (*batch, key_heads, keys, width), dtype),
        g.input("values", (*batch, key_heads, keys, value_width), dtype),
    ]
    if random.random() < 0.3:
        mask = random.choice(((queries, keys), (*(1 for _ in batch), 1, 1, keys)))
        operands.append(g.input("mask", mask, dtype))
    causal = random.choice((0, 0, 1, keys - queries + 1))
    return Kernel(g.build(g.op("attention", *operands, scale=0.2, causal=causal))), arrays_of


def _unpacked(random: Random, arch: str) -> tuple[Kernel, Callable[[Kernel], list[Array]]]:
    rows, columns, bits = random.choice((1, 2, 4, 9, 33)), random.randint(3, 70), random.choice((4, 8))
    block = random.choice((16, 32, 48))
    depth, zeros = block * random.randint(2, 12), random.random() < 0.5
    dtype = random.choice(("float32", "float16"))
    return product(rows, columns, depth, bits, block, zeros=zeros, dtype=dtype), numbers
