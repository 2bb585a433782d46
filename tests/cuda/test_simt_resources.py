"""Kernels of plain instructions, compiled for real GPUs: registers, banks of shared memory, loops."""

from __future__ import annotations

import pytest
from gpu_assembly import disassembled, loop_bodies
from mma_kernels import in_blocks
from test_attention_cuda import attention
from test_conv_cuda import SAME, conv
from test_matmul_cuda import matmul

from tcomp.codegen.cuda.cubin import compile_cubin
from tcomp.codegen.cuda.device_code import device_code
from tcomp.codegen.cuda.sass import read_sass
from tcomp.codegen.cuda.sass_cycles import LoopCost
from tcomp.target.target import TARGETS
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.gpu.block_tile import PAD, BlockTile
from tcomp.tensor.gpu.matrices import ProductMatrices
from tcomp.tensor.gpu.operand import Operand
from tcomp.tensor.gpu.shared_tiles import Factors, SharedTile, TileLoader
from tcomp.tensor.gpu.threads import shared
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tensor.loops import constant
from tcomp.tensor.product import Product
from tcomp.tensor.selection import schedule, template_for
from tcomp.tvm_api import tvm

ARCHITECTURES = ("sm_80", "sm_90a")
KERNELS = {
    "square": matmul((1024, 1024), (1024, 1024), "bias", "relu"),
    "both transposed": matmul((512, 512), (512, 512), transpose_a=True, transpose_b=True),
    "ragged, with gelu": matmul((127, 1003), (1003, 769), "bias", "gelu"),
    "heads": matmul((2, 12, 128, 64), (2, 12, 128, 64), transpose_b=True),
    "half precision": matmul((512, 512), (512, 512), "bias", dtype="float16"),
    "double precision": matmul((256, 256), (256, 256), dtype="float64"),
    "one row": matmul((1, 2048), (1000, 2048), "bias", transpose_b=True),
    "eight rows": matmul((8, 4096), (4096, 4096), "bias"),
    "3x3": conv((1, 64, 56, 56), (64, 64, 3, 3), "bias", "relu", padding=SAME),
    "7x7": conv((1, 3, 224, 224), (64, 3, 7, 7), "relu", padding=(3, 3, 3, 3), strides=(2, 2)),
    "1x1": conv((1, 256, 56, 56), (64, 256, 1, 1), "bias", "relu"),
    "small image": conv((1, 512, 7, 7), (512, 512, 3, 3), "bias", "residual", padding=SAME),
    "depthwise": conv((1, 96, 112, 112), (96, 1, 3, 3), "bias", padding=SAME, strides=(2, 2), groups=96),
    "attention": attention((12, 128, 64), (12, 128, 64), (12, 128, 64), (128, 128)),
    "attention of wide heads": attention((8, 197, 128), (1, 197, 128), (1, 197, 128)),
    "causal attention": attention((12, 256, 64), (12, 256, 64), (12, 256, 64), causal=1),
    "causal attention beside a mask": attention(
        (8, 4, 197, 128), (8, 1, 197, 128), (8, 1, 197, 128), (197, 197), causal=1
    ),
    "attention of one query": attention((32, 1, 128), (32, 2048, 128), (32, 2048, 128)),
    "attention of few queries, causal": attention((8, 20, 64), (8, 2048, 64), (8, 2048, 64), causal=2029),
    "depthwise 7x7": conv((1, 384, 14, 14), (384, 1, 7, 7), padding=(3,) * 4, groups=384),
    "depthwise in blocks": conv(
        (32, 12, 56, 56, 8), (96, 1, 3, 3), dtype="float16", padding=SAME, groups=96, **in_blocks(8, 8)
    ),
}


def compiled(kernel: Kernel, arch: str, config: Config | None = None) -> bytes:
    """The machine code of `config`, or the default, of which no function spills."""
    target = TARGETS[f"cuda:{arch}"]
    code = device_code(schedule(kernel, target, config).function, "kernel", target)
    cubin = compile_cubin(code.source, arch)
    assert len(cubin.resources) == len(code.launches)
    for name, resources in cubin.resources.items():
        assert resources.spilled_bytes == 0, name
        assert resources.shared_bytes <= 48 * 1024
    return cubin.image


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", KERNELS)
def test_defaults_do_not_spill(name: str, arch: str, real_compiler: None) -> None:
    compiled(KERNELS[name], arch)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "share"), [("square", 0.85), ("3x3", 0.85), ("1x1", 0.8), ("heads", 0.85), ("attention", 0.85)]
)
@pytest.mark.usefixtures("real_compiler")
def test_hot_loops_are_multiply_adds(name: str, share: float) -> None:
    """As in hand-written libraries; a tile of 32x32 has a fourth of the sums of one of 64x64."""
    text = disassembled(compiled(KERNELS[name], "sm_80"))
    assert max(body["FFMA"] / body.total() for body in loop_bodies(text)) >= share


def cost_of_step(name: str, arch: str) -> LoopCost:
    """A step of 8 of 64x128 sums, 8x8 a thread, by four warps a scheduler."""
    kernel, target = KERNELS[name], TARGETS[f"cuda:{arch}"]
    tile = {"tile_m": 64, "tile_n": 128, "tile_k": 8, "thread_m": 8, "thread_n": 8, "split": 1, "streamed": 0}
    config = {**template_for(kernel, target).space(kernel, target).default, **tile}
    assert target.gpu is not None
    (function,) = read_sass(disassembled(compiled(kernel, arch, config)))
    step = max((loop.body for loop in function.loops()), key=len)
    assert sum(one.name == "FFMA" for one in step) == 512
    return LoopCost(step, target.gpu, warps=4, paired=True)


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "share"), [("sm_80", 0.95), ("sm_90a", 0.86)])
@pytest.mark.usefixtures("real_compiler")
def test_a_step_keeps_multiply_adds_busy(arch: str, share: float) -> None:
    """With what it loads, stores and waits for; an H100 issues as many instructions as it multiplies."""
    cost = cost_of_step("square", arch)
    assert {one.name for one in cost.loop} >= {"LDG", "LDS", "STS", "BAR"}
    assert cost.of_peak >= share
    assert all(wait.exposed <= 16 for wait in cost.waits if wait.producer.name == "LDS")


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "share"), [("sm_80", 0.9), ("sm_90a", 0.65)])
@pytest.mark.usefixtures("real_compiler")
def test_gathered_windows_have_no_branches(arch: str, share: float) -> None:
    """Of three channels, whose taps change within a step: no divisions, and a predicate for each element."""
    cost = cost_of_step("7x7", arch)
    assert sum(one.name == "BRA" for one in cost.loop) <= 2
    assert len(cost.loop) <= 730
    assert cost.of_peak >= share


def conflicts(addresses: list[int], lanes: int) -> int:
    """Most different rows of shared memory that one bank has to give to the threads served together.

    Addresses count elements of 4 bytes; vectors of 4 are served to 8 threads at a time, of 1 to 32.
    """
    worst = 1
    together = 32 // lanes
    for first in range(0, 32, together):
        rows: dict[int, set[int]] = {}
        for address in addresses[first : first + together]:
            for word in range(address, address + lanes):
                rows.setdefault(word % 32, set()).add(word)
        worst = max(worst, *(len(words) for words in rows.values()))
    return worst


def number(expression: object) -> int:
    return int(tvm.sym.Analyzer().simplify(expression))


@pytest.mark.parametrize(
    "shape", [(128, 128, 8, 8, 8), (64, 128, 16, 8, 8), (32, 64, 8, 4, 4), (256, 64, 8, 8, 8)]
)
def test_factors_are_read_without_bank_conflicts(shape: tuple[int, ...]) -> None:
    tile = BlockTile(*shape, stages=2, split=1, vector=4)
    for axis, size in enumerate((tile.rows, tile.columns)):
        _, buffer = shared((8 * (size + PAD),), "float32", "tile")
        shared_tile = SharedTile(buffer, constant(0), size)
        places = [tile.place(constant(thread))[axis] for thread in range(32)]
        factors = [Factors(shared_tile, place, tile.threads_along[axis], shape[3 + axis]) for place in places]
        addresses = [number(shared_tile.at(constant(3), f.at(constant(0)))[0]) for f in factors]
        assert all(address % 4 == 0 for address in addresses)
        assert conflicts(addresses, 4) == 1
        # Pairs of threads read the same, so that 16 of them are served at once.
        pair = (2, 1)[axis]
        assert all(addresses[thread] == addresses[thread ^ pair] for thread in range(32))
        for half in (addresses[:16], addresses[16:]):
            different = sorted(set(half))
            assert len(different) <= 8
            assert conflicts(different + different[-1:] * (32 - len(different)), 4) == 1


@pytest.mark.parametrize("vector", [1, 2, 4])
@pytest.mark.parametrize("transpose", [False, True])
def test_tiles_are_stored_without_bank_conflicts(transpose: bool, vector: int) -> None:
    kernel = matmul((256, 256), (256, 256), transpose_a=transpose)
    assert kernel.anchor is not None
    tile = BlockTile(128, 128, 16, 8, 8, 2, 1, vector)
    operand = Operand.left(ProductMatrices(Anchored(kernel), Product.of(kernel.anchor)), vector)
    assert (operand.along_depth, operand.lanes) == (not transpose, vector)
    loader = TileLoader(operand, tile.rows, tile.depth, tile.threads, False, "left")
    places = [loader.place(constant(thread)) for thread in range(32)]
    begins = [number(k * (tile.rows + PAD) + x) for k, x in places]
    if transpose:
        assert conflicts(begins, vector) == 1
    else:
        for lane in range(vector):
            assert conflicts([begin + lane * (tile.rows + PAD) for begin in begins], 1) == 1
