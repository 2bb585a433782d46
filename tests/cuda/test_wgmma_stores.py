"""Products by warp groups in their last stage: outputs through shared memory, and groups that take turns."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from device_programs import dies, run
from gpu_assembly import disassembled
from mma_kernels import assert_computes, matmul, rows_of
from test_matmul_wgmma import HOPPER, SMALL
from test_wgmma_code import TEMPLATE, code_of

from tcomp.codegen.cuda.cubin import compile_cubin
from tcomp.errors import ScheduleError
from tcomp.relay.types import Array
from tcomp.target.target import Target
from tcomp.target.tile_map import TileMap
from tcomp.tensor.gpu.shares import Streams
from tcomp.tensor.tensor_cores.output_tiles import row_output
from tcomp.tensor.tensor_cores.wgmma_plan import WgmmaPlan, default_wgmma_plan, default_wgmma_plans

# ---- instructions ----

STORE = """
#include <cuda.h>
#include "tcomp_wgmma.cuh"
extern "C" __global__ void kernel(const unsigned *words, char *tensor,
                                  const __grid_constant__ CUtensorMap map) {{
  extern __shared__ __align__(64) char memory[];
  unsigned tile = tcomp_shared_begin(memory), lane = threadIdx.x;
  {write};
  {seen};
  __syncwarp();
  if (lane == 0) {{
    tcomp_store_tile((unsigned long long)&map, tile, {at});
    {commit};
    {wait};
  }}
  __syncwarp();
  {after};
}}
"""
MATRICES = (
    "for (int i = 0; i < 4; i++) tcomp_write_matrices("
    "tile + lane % 16 * 128 + ((2 * i + lane / 16) ^ lane % 8) * 16, words + (i * 32 + lane) * 4)"
)
PAIRS = (
    "for (int i = 0; i < 8; i++) { int line = i % 2 * 8 + lane / 4, chunk = i / 2 * 2 + lane % 4 / 2; "
    "tcomp_write_two_words(tile + line * 128 + (chunk ^ line % 8) * 16 + lane % 2 * 8, "
    "words + (i * 32 + lane) * 2); }"
)
PARTS = {
    "write": MATRICES, "seen": "tcomp_writes_are_seen()", "at": "64, 5, 1", "commit": "tcomp_stores_commit()",
    "wait": "tcomp_stores_wait<0>()", "after": "",
}  # fmt: skip


def store(dtype: str, **parts: str) -> tuple[tuple[str, list[Array], list[Array]], dict[str, object], Array]:
    """What to run to store 16 rows of 128 bytes into a tensor [3, 19, 88], how, and what is there then."""
    facts = {**PARTS, **parts}
    x, y, z = map(int, facts["at"].split(","))
    rows = np.random.default_rng(0).integers(0, 1 << 14, (16, 128 // np.dtype(dtype).itemsize)).astype(dtype)
    # Of each 8x8 (or 8 rows of two words each) thread i has two elements of row i / 4.
    halves = rows.reshape(2, 8, -1, 2, 4, 2) if dtype == "uint16" else rows.reshape(2, 8, -1, 4, 2)
    order = (2, 1, 4, 3, 0, 5) if dtype == "uint16" else (2, 0, 1, 3, 4)
    words = np.ascontiguousarray(halves.transpose(order)).view("uint32").reshape(-1)
    tensor = np.zeros((3, 19, 88), dtype)
    expected = tensor.copy()
    inside = rows[: 19 - y, : 88 - x]
    expected[z, y : y + 16, x : x + rows.shape[1]] = inside
    strides = (88 * tensor.itemsize, 19 * 88 * tensor.itemsize)
    map_ = TileMap(dtype, tensor.shape[::-1], strides, (rows.shape[1], 16, 1))
    options = {"arch": "sm_90a", "shared_bytes": 8192, "maps": [(1, map_)]}
    return (STORE.format(**facts), [words], [tensor]), options, expected


@pytest.mark.parametrize("at", ["0, 0, 0", "64, 5, 1"])
@pytest.mark.parametrize(("dtype", "write"), [("uint16", MATRICES), ("uint32", PAIRS)])
def test_tiles_are_stored(dtype: str, write: str, at: str, gpu: Target) -> None:
    """Nothing beyond the ends of the tensor is."""
    arguments, options, expected = store(dtype, write=write, at=at)
    (found,) = run(*arguments, **options)  # pyright: ignore
    np.testing.assert_array_equal(found, expected)


REFUSED = {
    "a fence behind writes": ({"seen": ""}, "before what threads wrote to it is seen"),
    "a fence of each thread": ({"seen": "if (lane < 31) tcomp_writes_are_seen()"}, "is seen"),
    "a wait before the end": ({"wait": ""}, "before what it asked for was there"),
    "a commit": ({"commit": ""}, "before what it asked for was there"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_undefined_is_refused(name: str, gpu: Target, capfd: pytest.CaptureFixture[str]) -> None:
    parts, reason = REFUSED[name]
    arguments, options, _ = store("uint16", **parts)
    assert dies(*arguments, **options)
    assert reason in capfd.readouterr().err


def test_what_is_overwritten_too_early_is_stored_wrong(gpu: Target) -> None:
    after = "tcomp_write_two_words(tile + lane * 8, words); tcomp_writes_are_seen(); "
    arguments, options, expected = store(
        "uint16", at="0, 0, 0", wait="", after=f"{after} if (lane == 0) tcomp_stores_wait<0>()"
    )
    (found,) = run(*arguments, **options)  # pyright: ignore
    assert (found != expected).any()


# ---- numbers ----

TURNS = {"consumers": 2, "pingpong": 1}
WIDE = {"block_columns": 128}
KERNELS = {
    "ragged, bias and relu": (matmul((90, 72), (72, 136), "bias", "relu"), 4, {"buffers": 1}),
    "gelu, residual": (
        matmul((48, 64), (64, 136), "bias", "gelu", "residual", constant=True), 4, {**WIDE, "buffers": 2},
    ),
    "batch": (matmul((3, 90, 72), (3, 72, 40), "residual"), 4, {"buffers": 1}),
    "batch of one operand": (matmul((2, 1, 20, 24), (3, 24, 24), "relu"), 4, {"buffers": 1}),
    "rows of several matrices": (
        matmul((3, 45, 40), (40, 136), "residual", constant=True), 4,
        {"block_rows": 128, "consumers": 2, "buffers": 1},
    ),
    "bfloat16, two pieces": (
        matmul((200, 64), (64, 72), "bias", "relu", dtype="bfloat16"), 4, {"block_rows": 128, "buffers": 2},
    ),
    "float32": (matmul((70, 72), (72, 36), "bias", out_dtype="float32"), 4, {"buffers": 2}),
    "tf32": (
        matmul((70, 76), (76, 132), "bias", "relu", dtype="float32", multiply_as="tf32"), 4,
        {**WIDE, "buffers": 4, "stages": 3},
    ),
    "int8": (
        matmul((70, 288), (288, 132), dtype="int8", out_dtype="int32"), 4,
        {"block_columns": 192, "buffers": 1},
    ),
    "parts of the depth": (matmul((40, 440), (440, 40), "bias", "relu"), 4, {"splits": 3, "buffers": 1}),
    "streams of steps": (
        matmul((190, 320), (320, 192), "bias"), 4, {"streamed": 1, "stages": 3, "buffers": 1},
    ),
    "several tiles": (matmul((190, 320), (320, 192), "bias"), 1, {"stages": 3, "buffers": 1}),
    "turns": (
        matmul((320, 320), (320, 192), "bias", "residual"), 1,
        {**TURNS, "block_rows": 128, "stages": 3, "buffers": 2},
    ),
    "turns of less steps than stages": (
        matmul((320, 60), (60, 192), "bias"), 1, {**TURNS, "stages": 4, "buffers": 1},
    ),
    "turns, from registers": (matmul((320, 320), (320, 60), "transpose"), 1, TURNS),
    "turns, one tile": (matmul((40, 200), (200, 24)), 1, {**TURNS, "stages": 3, "buffers": 1}),
    "turns, parts of the depth": (
        matmul((140, 700), (700, 72), "bias"), 1, {**TURNS, "stages": 3, "splits": 3, "buffers": 1},
    ),
    "turns of clusters": (
        matmul((500, 200), (200, 256)), 2, {**TURNS, **WIDE, "cluster": 2, "stages": 3, "buffers": 1},
    ),
}  # fmt: skip
FEW = ("gelu, residual", "batch", "float32", "turns")
"""Those that are always tested: g++ takes long for each."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FEW else [pytest.mark.slow]) for n in KERNELS]
)
@pytest.mark.usefixtures("gpu")
def test_numbers(name: str) -> None:
    kernel, processors, knobs = KERNELS[name]
    assert HOPPER.gpu is not None
    few = replace(HOPPER, gpu=replace(HOPPER.gpu, processors=processors, threads=384))
    assert_computes(kernel, few, TEMPLATE, {**SMALL, **knobs})


# ---- choices ----


@pytest.mark.parametrize(
    ("knobs", "reason"),
    [
        ({"pingpong": 1, "consumers": 1}, "there must be two"),
        ({"block_columns": 192, "buffers": 2}, "3 parts of a tile do not go around 2 buffers"),
        (
            {"stages": 4, "buffers": 4, "block_columns": 256, "block_rows": 128, "consumers": 2},
            "shared memory",
        ),
        ({"pingpong": 1, "consumers": 2, "streamed": 1}, "streams"),
    ],
)
def test_what_cannot_run_is_refused(knobs: dict[str, int], reason: str) -> None:
    kernel = matmul((4096, 512), (512, 768))
    with pytest.raises(ScheduleError, match=reason):
        code_of(kernel, **{"block_rows": 64, "consumers": 1, "pingpong": 0, "buffers": 0, **knobs})


@pytest.mark.parametrize(
    ("kernel", "itemsize"),
    [
        (matmul((64, 64), (64, 72), "bias", "relu"), 2),
        (matmul((3, 64, 64), (64, 36), out_dtype="float32"), 4),
        (matmul((64, 64), (64, 36)), 0),
        (matmul((64, 64), (64, 64), "transpose"), 0),
        (matmul((64, 64), (64, 64), dtype="int8", out_dtype="int32"), 4),
    ],
    ids=["float16", "float32", "rows of 72 bytes", "transposed", "int32"],
)
def test_tiles_of_rows_in_order_can_be_stored(kernel: object, itemsize: int) -> None:
    output = row_output(kernel, kernel.body.outputs[0].type.static_shape[-1])  # pyright: ignore
    assert (output.nbytes if output.in_lines else 0) == itemsize
    if not itemsize:
        with pytest.raises(ScheduleError, match="no tiles can be stored"):
            code_of(kernel, buffers=1)  # pyright: ignore


@pytest.mark.parametrize(
    ("extents", "estimates"),
    [
        ((4096, 4096, 4096), (304, 296, 368)),
        ((8192, 1024, 1024), (45, 40, 50)),
        ((16384, 3072, 768), (206, 184, 221)),
        ((8192, 4096, 256), (66, 57, 58)),
        ((16384, 4096, 128), (94, 78, 69)),
        ((16384, 4096, 64), (76, 62, 47)),
    ],
)
def test_estimates(extents: tuple[int, int, int], estimates: tuple[int, int, int]) -> None:
    """Thousands of cycles from registers, through buffers, in turns; the default has the fewest."""
    assert HOPPER.gpu is not None
    gpu = HOPPER.gpu
    plans = list(default_wgmma_plans("float16", (1, *extents), rows_of(2), gpu))
    kinds = (
        [p for p in plans if not p.pingpong and not p.buffers],
        [p for p in plans if not p.pingpong and p.buffers],
        [p for p in plans if p.pingpong],
    )
    best = [min(p.cycles(gpu) for p in kind) for kind in kinds]
    assert tuple(round(cycles / 1000) for cycles in best) == estimates
    assert default_wgmma_plan("float16", (1, *extents), rows_of(2), gpu).cycles(gpu) == min(best)


def test_defaults_differ_in_their_last_stage() -> None:
    assert HOPPER.gpu is not None
    gpu = HOPPER.gpu
    plan = default_wgmma_plan("float16", (1, 4096, 4096, 4096), rows_of(2), gpu)
    assert (plan.block_rows, plan.block_columns, plan.pingpong, plan.buffers) == (128, 256, 0, 2)
    assert 1.02 < replace(plan, buffers=0).cycles(gpu) / plan.cycles(gpu) < 1.04
    short = default_wgmma_plan("float16", (1, 16384, 4096, 128), rows_of(2), gpu)
    assert (short.block_rows, short.block_columns, short.pingpong) == (128, 128, 1)
    assert replace(short, pingpong=0).cycles(gpu) > 1.2 * short.cycles(gpu)
    streams = default_wgmma_plan("float16", (1, 8192, 8192, 8192), rows_of(2), gpu)
    assert isinstance(streams.shares(gpu), Streams)


def test_stages_leave_room_for_buffers() -> None:
    """Four stages of 48 KiB and 16 buffers of 2 KiB."""
    assert HOPPER.gpu is not None
    plan = WgmmaPlan("float16", 1, 512, 512, 512, 128, 256, 2, 4, buffers=2, output=rows_of(2))
    assert plan.shared_bytes == 2048 + 4 * 48 * 1024 + 16 * 2048
    assert plan.complaint(HOPPER.gpu) is None


# ---- code ----

LAST_STAGES = {
    "square": (matmul((4096, 4096), (4096, 4096), constant=True), {}),
    "gelu, residual": (matmul((4096, 1024), (1024, 4096), "bias", "gelu", "residual"), {}),
    "ragged": (matmul((5000, 1000), (1000, 1000), "bias", "gelu", "residual"), {}),
    "turns": (matmul((16384, 128), (128, 4096), "bias", "residual"), {}),
    "turns, gelu": (matmul((16384, 128), (128, 4096), "bias", "gelu"), {}),
    "turns of 64 rows": (
        matmul((16384, 128), (128, 4096), "bias", "relu"),
        {"block_rows": 64, "block_columns": 256, "cluster": 2},
    ),
    "float32": (matmul((4096, 1024), (1024, 4096), "bias", out_dtype="float32"), {"buffers": 2}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAST_STAGES)
@pytest.mark.usefixtures("real_compiler")
def test_last_stages_neither_spill_nor_wait(name: str) -> None:
    kernel, knobs = LAST_STAGES[name]
    source = code_of(kernel, **knobs).source
    assert "tcomp_store_tile" in source
    cubin = compile_cubin(source, "sm_90a")
    assert all(found.spilled_bytes == 0 for found in cubin.resources.values())
    assert cubin.losses == ()


@pytest.mark.slow
@pytest.mark.usefixtures("real_compiler")
def test_a_warp_stores_tiles() -> None:
    """16 rows by 256 columns are 16 writes of four matrices, 4 stores, and none by threads."""
    text = disassembled(compile_cubin(code_of(LAST_STAGES["square"][0]).source, "sm_90a").image)
    names = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_]+)", text)
    found = Counter(names)
    assert (found["STSM"], found["UTMASTG"], found["HGMMA"]) == (16, 4, 4)
    assert found["STG"] == found["ST"] == 0
