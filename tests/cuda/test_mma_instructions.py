"""The functions of tcomp_mma.cuh move and multiply what the PTX ISA says, and compilers take each."""

from __future__ import annotations

import numpy as np
import pytest
from device_programs import run

from tcomp.codegen.cuda.cubin import compile_cubin
from tcomp.relay.types import FLOAT8, Array, numpy_dtype
from tcomp.target.target import Target

DEPTH = {"float16": 16, "bfloat16": 16, "tf32": 8, "int8": 32, "float8_e4m3fn": 32, "float8_e5m2": 32}
"""Of one instruction: 32 bytes."""

MULTIPLY = """
#include <cuda_fp16.h>
#include "tcomp_mma.cuh"
extern "C" __global__ void kernel(const unsigned *a, const unsigned *b, {sum} *sums) {{
  unsigned i = threadIdx.x;
  tcomp_multiply_{dtype}(sums + i * 4, a + i * 4, b + i * 2);
}}
"""
MATRICES = """
#include <cuda_fp16.h>
#include "tcomp_mma.cuh"
extern "C" __global__ void kernel(const unsigned short *matrices, unsigned *plain, unsigned *transposed) {
  __shared__ alignas(64) unsigned short rows[32 * 8];
  unsigned i = threadIdx.x;
  tcomp_copy_async(rows + i * 8, matrices + i * 8, i != 5);
  tcomp_commit_copies();
  tcomp_wait_copies<0>();
  __syncthreads();
  tcomp_load_matrices(plain + i * 4, rows + i * 8);
  tcomp_load_matrices_transposed(transposed + i * 4, rows + i * 8);
}
"""


def numbers(dtype: str, shape: tuple[int, ...], seed: int) -> tuple[Array, Array]:
    """Random elements of a type, and their values."""
    values = np.random.default_rng(seed).integers(-100, 100, shape)
    if dtype == "int8":
        return values.astype("int8"), values
    rounded = (values / 16).astype("float32").astype("float32" if dtype == "tf32" else numpy_dtype(dtype))
    return rounded, rounded.astype("float32")


@pytest.mark.parametrize("dtype", DEPTH)
def test_fragments_multiply(dtype: str, gpu: Target) -> None:
    """PTX ISA, "Matrix Fragments for mma.m16n8k16": groupID, threadID_in_group are `group`, `thread`."""
    depth, sum_dtype = DEPTH[dtype], "int32" if dtype == "int8" else "float32"
    a, a_values = numbers(dtype, (16, depth), 0)
    b, b_values = numbers(dtype, (depth, 8), 1)
    c = np.random.default_rng(2).integers(-9, 9, (16, 8)).astype(sum_dtype)
    count = depth // 8  # elements of a register
    a_registers = np.empty((32, 4, count), a.dtype)
    b_registers = np.empty((32, 2, count), a.dtype)
    sums = np.empty((32, 4), sum_dtype)
    for lane in range(32):
        group, thread = lane // 4, lane % 4
        for i in range(count):
            for register in range(4):
                row = group + 8 * (register % 2)
                a_registers[lane, register, i] = a[row, thread * count + i + depth // 2 * (register // 2)]
            for register in range(2):
                b_registers[lane, register, i] = b[thread * count + i + depth // 2 * register, group]
        for i in range(4):
            sums[lane, i] = c[group + 8 * (i // 2), thread * 2 + i % 2]
    words = [r.view("uint32").reshape(32, -1) for r in (a_registers, b_registers)]
    source = MULTIPLY.format(dtype=dtype, sum="int" if dtype == "int8" else "float")
    (result,) = run(source, words, [sums])
    product = np.empty((16, 8), sum_dtype)
    for lane in range(32):
        for i in range(4):
            product[lane // 4 + 8 * (i // 2), lane % 4 * 2 + i % 2] = result[lane, i]
    np.testing.assert_allclose(product, a_values @ b_values + c, rtol=1e-6)


def test_tf32_has_10_bits_of_mantissa(gpu: Target) -> None:
    a = np.zeros((32, 4), "float32")
    a[0, 0], a[4, 0] = 1 + 2**-10, 1 + 2**-11
    b = np.zeros((32, 2), "float32")
    b[0, 0] = 1
    (sums,) = run(MULTIPLY.format(dtype="tf32", sum="float"), [a, b], [np.zeros((32, 4), "float32")])
    assert (sums[0, 0], sums[4, 0]) == (1 + 2**-10, 1)


def test_matrices_are_copied_and_loaded(gpu: Target) -> None:
    """PTX ISA, `ldmatrix`: a thread gets elements 2 * (lane % 4) and the next of row lane / 4."""
    matrices = np.random.default_rng(0).integers(0, 1 << 16, (4, 8, 8)).astype("uint16")
    empty = np.zeros((32, 4), "uint32")
    results = run(MATRICES, [matrices], [empty, empty])
    matrices[0, 5] = 0  # not inside
    for result, expected in zip(results, (matrices, matrices.transpose(0, 2, 1)), strict=True):
        pairs = result.view("uint16").reshape(32, 4, 2)
        for lane in range(32):
            for matrix in range(4):
                at = lane % 4 * 2
                assert list(pairs[lane, matrix]) == list(expected[matrix, lane // 4, at : at + 2])


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_90a"])
@pytest.mark.usefixtures("real_compiler")
def test_the_compiler_takes_every_instruction(arch: str) -> None:
    for dtype in (d for d in DEPTH if arch != "sm_80" or d not in FLOAT8):
        source = MULTIPLY.format(dtype=dtype, sum="int" if dtype == "int8" else "float")
        assert compile_cubin(source, arch).resources["kernel"].spilled_bytes == 0
    assert compile_cubin(MATRICES, arch).resources["kernel"].shared_bytes == 512
