"""The functions of tcomp_wgmma.cuh do what the PTX ISA says, on an emulated GPU that reads their assembly.

Where the emulated GPU keeps things from being seen as long as it may, a kernel that does not wait is wrong.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from device_programs import copying, dies, run, small_integers

from tcomp.codegen.cuda.cubin import compile_cubin
from tcomp.relay.types import FLOAT8, Array, numpy_dtype, rounded_to_tf32, stored_as
from tcomp.target.target import Target
from tcomp.target.tile_map import TileMap

SHARED = 128 * 1024
COLUMNS = (64, 128, 192, 256)
LINE = 128
"""Bytes of a line of a tile."""


def tile_of(tensor: Array, at: tuple[int, int, int], box: tuple[int, int, int]) -> Array:
    """What a copy brings, [z, y, x], zero where there is nothing."""
    result = np.zeros(box[::-1], tensor.dtype)
    for place in np.ndindex(*box[::-1]):
        index = tuple(i + j for i, j in zip(place, at[::-1], strict=True))
        if all(0 <= i < n for i, n in zip(index, tensor.shape, strict=True)):
            result[place] = tensor[index]
    return result


@pytest.mark.parametrize("swizzle", [0, 128])
@pytest.mark.parametrize("at", [(0, 0, 0), (40, 5, 1), (-8, -3, 2), (72, 20, 0)])
def test_tiles_are_copied(at: tuple[int, int, int], swizzle: int, gpu: Target) -> None:
    """Chunk c of line l is at c ^ (l mod 8) with a swizzle; beyond the ends there are zeros."""
    tensor = np.random.default_rng(0).integers(0, 1 << 16, (3, 23, 80)).astype("uint16")
    box = (64, 16, 1)
    map_ = TileMap("uint16", tensor.shape[::-1], (160, 160 * 23), box, swizzle)
    source = copying("tcomp_copy_tile", at, 16 * LINE)
    (lines,) = run(
        source, [tensor], [np.zeros(16 * 32, "uint32")], arch="sm_90a", shared_bytes=SHARED, maps=[(0, map_)]
    )
    chunks = lines.view("uint16").reshape(16, 8, 8)
    expected = tile_of(tensor, at, box).reshape(16, 8, 8)
    for line in range(16):
        for chunk in range(8):
            place = chunk ^ line % 8 if swizzle else chunk
            np.testing.assert_array_equal(chunks[line, place], expected[line, chunk])


@pytest.mark.parametrize("rank", [4, 5])
def test_tiles_of_many_axes_are_copied(rank: int, gpu: Target) -> None:
    """Heads of tokens, but for the first: rows of a tile are tokens, beyond the last there are zeros."""
    tensor = np.random.default_rng(0).integers(0, 1 << 16, (2, 3, 20, 4, 64)[5 - rank :]).astype("uint16")
    first = tensor[..., 1:, :].swapaxes(-2, -3)  # [..., head, token, element]
    map_ = TileMap(
        "uint16", first.shape[::-1], first.strides[-2::-1], (64, 16) + (1,) * (rank - 2), begin=128
    )
    at = (0, 9, 2, 1, 1)[:rank]
    source, out = copying("tcomp_copy_tile", at, 16 * LINE), np.zeros(16 * 32, "uint32")
    (lines,) = run(source, [tensor], [out], arch="sm_90a", shared_bytes=SHARED, maps=[(0, map_)])
    found = np.take_along_axis(
        lines.view("uint16").reshape(16, 8, 8), (np.arange(8) ^ np.arange(16)[:, None] % 8)[..., None], 1
    )
    expected = np.zeros((16, 64), "uint16")
    expected[:11] = first[at[:1:-1]][9:]
    np.testing.assert_array_equal(found.reshape(16, 64), expected)


def copied_as_tf32(tensor: Array) -> Array:
    """What a copy makes of float32 numbers `[1, 16, 32]`."""
    map_ = TileMap("tf32", (32, 16, 1), (128, 2048), (32, 16, 1), swizzle=0)
    source, out = copying("tcomp_copy_tile", (0, 0, 0), 16 * LINE), np.zeros(16 * 32, "uint32")
    (lines,) = run(source, [tensor], [out], arch="sm_90a", shared_bytes=SHARED, maps=[(0, map_)])
    return lines.view("float32")


def test_copies_round_to_tf32(gpu: Target) -> None:
    tensor = np.random.default_rng(0).standard_normal((1, 16, 32)).astype(np.float32)
    tensor[0, 3, 4] = -np.inf
    np.testing.assert_array_equal(copied_as_tf32(tensor), rounded_to_tf32(tensor).reshape(-1))


PRODUCT = """
#include <cuda_fp16.h>
#include <cuda_bf16.h>
#ifndef __CUDACC_RTC__
#include <cuda.h>
#endif
#include "tcomp_wgmma.cuh"
extern "C" __global__ void kernel(const char *a, const char *b, {sum} *out,
                                  const __grid_constant__ CUtensorMap a_map,
                                  const __grid_constant__ CUtensorMap b_map) {{
  extern __shared__ __align__(64) char memory[];
  unsigned barrier = tcomp_shared_begin(memory), left = barrier + 1024, right = left + 8192;
  {sum} sums[{columns} / 2];
  if (threadIdx.x == 0) {{
    tcomp_barrier_init(barrier, 1);
    {ready};
    tcomp_barrier_expect(barrier, {bytes});
    tcomp_copy_tile(left, (unsigned long long)&a_map, barrier, 0, 0, 0);
    for (int i = 0; i < {right_tiles}; i++)
      tcomp_copy_tile(right + i * 8192, (unsigned long long)&b_map, barrier, i * 64, 0, 0);
  }}
  __syncthreads();
  {wait};
  {begin};
  for (int k = 0; k < 4; k++) {{
    unsigned long long right_matrix = tcomp_matrix(right + k * {b_step}, {leading}, {stride});
    {multiply};
  }}
  tcomp_products_commit();
  {before_the_end};
  {end};
  unsigned row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
  for (int i = 0; i < {columns} / 2; i++)
    out[(row + i / 2 % 2 * 8) * {columns} + column + i / 4 * 8 + i % 2] = sums[i];
}}
"""
OF_MATRICES = """tcomp_product_{dtype}_{columns}<{transpose_a}, {transpose_b}>(
        sums, tcomp_matrix(left + k * {a_step}, {leading}, {stride}), right_matrix, k != 0)"""
OF_REGISTERS = """unsigned row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
    const unsigned *own = (const unsigned *)a + row * 32 + threadIdx.x % 4 + k * 8;
    const unsigned pairs[] = {{own[0], own[256], own[4], own[260]}};
    tcomp_product_of_{dtype}_{columns}<{transpose_b}>(sums, pairs, right_matrix, k != 0)"""
"""Two neighbours of 64 a row in a register; of the row and the 8th below, then the same 8 further."""
PARTS = {
    "leading": 8192, "stride": 1024, "ready": "tcomp_barriers_are_ready()",
    "wait": "tcomp_barrier_wait(barrier, 0)", "begin": "tcomp_products_begin()", "multiply": OF_MATRICES,
    "before_the_end": "", "end": "tcomp_products_wait<0>()",
}  # fmt: skip


def product(
    dtype: str, columns: int, transpose_a: int = 0, transpose_b: int = 0, **parts: object
) -> tuple[tuple[str, list[Array], list[Array]], dict[str, Any], Array]:
    """What to run for a product of 64 rows over 128 bytes of depth, how, and its result."""
    itemsize = numpy_dtype(stored_as(dtype)).itemsize
    depth, sum_dtype = LINE // itemsize, "int32" if dtype == "int8" else "float32"
    a, b = small_integers((64, depth), 0), small_integers((depth, columns), 1)
    element = numpy_dtype(stored_as(dtype))
    arrays = [
        np.ascontiguousarray(matrix).astype(element)
        for matrix in (a.T if transpose_a else a, b if transpose_b else b.T)
    ]
    maps = [
        (
            number,
            TileMap(
                dtype, (*array.shape[::-1], 1), (array.shape[1] * itemsize, array.nbytes), (depth, lines, 1)
            ),
        )
        for number, (array, lines) in enumerate(
            zip(arrays, (64, depth if transpose_b else columns), strict=True)
        )
    ]
    right_tiles = -(-columns // 64) if transpose_b else 1
    facts = {
        **PARTS, "dtype": dtype, "sum": "int" if dtype == "int8" else "float", "columns": columns,
        "transpose_a": transpose_a, "transpose_b": transpose_b,
        "right_tiles": right_tiles, "bytes": 8192 + (right_tiles * 8192 if transpose_b else columns * LINE),
        "a_step": 2048 if transpose_a else 32, "b_step": 2048 if transpose_b else 32, **parts,
    }  # fmt: skip
    facts["multiply"] = str(facts["multiply"]).format(**facts)
    out = np.zeros((64, columns), sum_dtype)
    options = {"arch": "sm_90a", "threads": 128, "shared_bytes": SHARED, "maps": maps}
    return (PRODUCT.format(**facts), arrays, [out]), options, (a @ b).astype(sum_dtype)


@pytest.mark.parametrize(
    ("dtype", "columns", "transpose_a", "transpose_b"),
    [
        *(("float16", columns, 0, 0) for columns in COLUMNS),
        *(("float16", 128, *flags) for flags in ((0, 1), (1, 0), (1, 1))),
        ("bfloat16", 64, 0, 0), ("bfloat16", 256, 1, 1), ("int8", 64, 0, 0), ("int8", 192, 0, 0),
        ("tf32", 64, 0, 0), ("tf32", 256, 0, 0), ("float8_e4m3fn", 64, 0, 0), ("float8_e5m2", 192, 0, 0),
    ],
)  # fmt: skip
def test_tiles_multiply(dtype: str, columns: int, transpose_a: int, transpose_b: int, gpu: Target) -> None:
    arguments, options, expected = product(dtype, columns, transpose_a, transpose_b)
    (found,) = run(*arguments, **options)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("transpose_b", [0, 1])
@pytest.mark.parametrize(("dtype", "columns"), [("float16", 96), ("float16", 192), ("bfloat16", 128)])
def test_registers_multiply_tiles(dtype: str, columns: int, transpose_b: int, gpu: Target) -> None:
    arguments, options, expected = product(dtype, columns, 0, transpose_b, multiply=OF_REGISTERS)
    (found,) = run(*arguments, **options)
    np.testing.assert_array_equal(found, expected)


WRONG = {
    "bytes between 8 lines": {"stride": 2048},
    "bytes between 64 columns": {"leading": 4096},
    "sums are read before they are there": {"end": "", "before_the_end": ""},
    "an operand is overwritten while it is multiplied": {
        "before_the_end": "if (threadIdx.x == 0) { tcomp_barrier_expect(barrier, 8192); "
        "tcomp_copy_tile(right, (unsigned long long)&b_map, barrier, 64, 0, 0); } __syncthreads()",
        "end": "tcomp_products_wait<0>(); tcomp_barrier_wait(barrier, 1)",
    },
    "an operand is multiplied before it is there": {
        "wait": "", "before_the_end": "tcomp_products_wait<0>(); tcomp_barrier_wait(barrier, 0)",
    },
}  # fmt: skip


@pytest.mark.emulated
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_gives_wrong_numbers(name: str, gpu: Target) -> None:
    arguments, options, expected = product("float16", 128, 0, 1, **WRONG[name])
    (found,) = run(*arguments, **options)
    assert (found != expected).any()


REFUSED = {
    "a fence": ({"begin": ""}, "a product without a fence"),
    "initialisation that copies see": ({"ready": ""}, "before its initialisation is seen"),
    "bytes that never come": (
        {"wait": "tcomp_barrier_wait(barrier, 0); tcomp_barrier_wait(barrier, 1)"},
        "all threads wait for what does not come",
    ),
    "all threads of a warp": (
        {"end": "if (threadIdx.x % 32 != 5) tcomp_products_wait<0>()"},
        "not one of all threads of a warp",
    ),
    "waiting for a copy": ({"wait": ""}, "before what it asked for was there"),
}


@pytest.mark.emulated
@pytest.mark.parametrize("name", REFUSED)
def test_what_hangs_or_is_undefined_is_refused(
    name: str, gpu: Target, capfd: pytest.CaptureFixture[str]
) -> None:
    parts, reason = REFUSED[name]
    arguments, options, _ = product("float16", 64, **parts)
    assert dies(*arguments, **options)
    assert reason in capfd.readouterr().err


TURNS = """
#include "tcomp_wgmma.cuh"
extern "C" __global__ void kernel(int *out) {{
  __shared__ alignas(64) int digits[1];
  unsigned warp = threadIdx.x / 32;
  if (threadIdx.x == 0) digits[0] = 0;
  if (warp == 1) tcomp_turn_end(1, 64);
  for (int turn = 0; turn < 3; turn++) {{
    tcomp_turn_wait(1 + warp, 64);
    if (threadIdx.x % 32 == 0) digits[0] = digits[0] * 10 + warp + 1;
    if (warp == 0 || turn < 2) {end};
  }}
  if (threadIdx.x == 32) out[0] = digits[0];
}}
"""


@pytest.mark.emulated
def test_warps_take_turns(gpu: Target, capfd: pytest.CaptureFixture[str]) -> None:
    options = {"arch": "sm_90a", "threads": 64}
    out = np.zeros(1, "int32")
    (found,) = run(TURNS.format(end="tcomp_turn_end(2 - warp, 64)"), [], [out], **options)
    assert found == [121212]
    assert dies(TURNS.format(end="__syncwarp()"), [], [out], **options)
    assert "all threads wait for what does not come" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("real_compiler")
def test_the_compiler_takes_every_instruction() -> None:
    for dtype in ("float16", "bfloat16", "tf32", "int8", *FLOAT8):
        for columns in COLUMNS:
            (source, *_), _, _ = product(dtype, columns)
            assert compile_cubin(source, "sm_90a").resources["kernel"].spilled_bytes == 0
    for columns in range(32, 257, 32):
        dtype = "float16" if columns % 64 else "bfloat16"
        (source, *_), _, _ = product(dtype, columns, 0, 1, multiply=OF_REGISTERS)
        assert compile_cubin(source, "sm_90a").resources["kernel"].spilled_bytes == 0
