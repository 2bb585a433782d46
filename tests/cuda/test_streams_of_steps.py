"""Products whose blocks share steps of tiles compute what the reference does, on an emulated GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import test_conv_cuda as simt_conv
import test_matmul_cuda as simt
from mma_kernels import SMALL, arrays_for, assert_computes, conv, in_blocks, matmul, rows_of
from test_matmul_wgmma import SMALL as SMALL_GROUPS
from test_packed_weights import numbers, product

from tcomp import api
from tcomp.codegen.artifact import compile_graph
from tcomp.codegen.cuda.cubin import compile_cubin
from tcomp.codegen.cuda.device_code import device_code
from tcomp.codegen.jit import build_scheduled
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.runtime import load
from tcomp.target.target import TARGETS, Gpu, Target
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.gpu.matrices import ProductMatrices
from tcomp.tensor.gpu.rates import resident_blocks
from tcomp.tensor.gpu.shares import Streams
from tcomp.tensor.gpu.simt_product import SimtProduct
from tcomp.tensor.gpu.simt_space import (
    Problem,
    cycles,
    default_tiles,
    problem_of,
    shares_of,
)
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tensor.product import Product
from tcomp.tensor.selection import template_for
from tcomp.tensor.template import TEMPLATES, Scheduled
from tcomp.tensor.tensor_cores.mma_plan import MmaPlan, default_plan, default_plans
from tcomp.tensor.tensor_cores.wgmma_plan import default_wgmma_plan
from tcomp.tuner.features import features_of, names_of
from tcomp.tuner.task import Task

MMA = "matmul_mma_cuda"


def with_processors(count: int, arch: str = "sm_80", threads: int = 64) -> Target:
    """A GPU of so few multiprocessors, each with room for one block of so many threads."""
    target = TARGETS[f"cuda:{arch}"]
    assert target.gpu is not None
    return replace(target, gpu=replace(target.gpu, processors=count, threads=threads))


KERNELS = {
    "less than a round": (matmul((90, 200), (200, 72), "bias", "relu"), 16, {"streamed": 1}),
    "rounds of whole tiles": (matmul((90, 200), (200, 72), "bias", "relu"), 4, {"streamed": 1, "group": 1}),
    "two rounds": (matmul((90, 200), (200, 72), "bias", "residual"), 4, {"streamed": 2}),
    "one tile": (matmul((20, 500), (500, 24), constant=True), 6, {"streamed": 1}),
    "batch": (matmul((3, 40, 136), (3, 136, 40), "residual"), 5, {"streamed": 2, "depth_chunks": 8}),
    "odd columns": (matmul((70, 200), (200, 33), "bias", constant=True), 4, {"streamed": 1, "stages": 2}),
    "transposed output": (matmul((70, 104), (104, 40), "relu", "transpose"), 4, {"streamed": 1}),
    "tf32": (
        matmul((70, 76), (76, 70), "bias", dtype="float32", multiply_as="tf32", constant=True),
        4,
        {"streamed": 2},
    ),
    "int8": (
        matmul((70, 300), (300, 70), dtype="int8", out_dtype="int32", constant=True),
        4,
        {"streamed": 2},
    ),
}
FEW = ("less than a round", "two rounds", "batch")
"""Those that are always tested: g++ takes long for each."""


def scheduled(kernel: Kernel, target: Target, template: str, knobs: dict[str, int]) -> Scheduled:
    config = {**SMALL, **knobs}
    TEMPLATES[template].space(kernel, target).check(config)
    return TEMPLATES[template].apply(kernel, target, config)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FEW else [pytest.mark.slow]) for n in KERNELS]
)
@pytest.mark.usefixtures("gpu")
def test_numbers(name: str) -> None:
    kernel, processors, knobs = KERNELS[name]
    target = with_processors(processors)
    assert len(scheduled(kernel, target, MMA, knobs).scratch) >= 1
    assert_computes(kernel, target, MMA, {**SMALL, **knobs})


GROUPS = {
    "less than a round": (matmul((190, 320), (320, 130), "bias", "relu"), 16, {"streamed": 1}),
    "rounds of whole tiles": (
        matmul((190, 328), (328, 190), "bias", constant=True), 4, {"streamed": 1, "stages": 3},
    ),
    "two rounds": (matmul((190, 320), (320, 190), "residual"), 4, {"streamed": 2, "stages": 3}),
    "transposed output, batch": (matmul((3, 100, 200), (3, 200, 60), "transpose"), 4, {"streamed": 1}),
    "int8": (matmul((190, 640), (640, 130), dtype="int8", out_dtype="int32"), 5, {"streamed": 1}),
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "two rounds" else [pytest.mark.slow]) for n in GROUPS]
)
@pytest.mark.usefixtures("gpu")
def test_groups_of_warps(name: str) -> None:
    """Stages and their phases go on from one tile to the next, whatever steps a block has of each."""
    kernel, processors, knobs = GROUPS[name]
    target = with_processors(processors, "sm_90a", 256)
    assert_computes(kernel, target, "matmul_wgmma_cuda", {**SMALL_GROUPS, **knobs})


@pytest.mark.slow
@pytest.mark.parametrize("streamed", [1, 2])
@pytest.mark.usefixtures("gpu")
def test_groups_of_warps_that_gather(streamed: int) -> None:
    """Some segments are shorter than the steps whose copies are under way."""
    kernel = conv((1, 12, 13, 13, 8), (70, 96, 3, 3), True, padding=(1,) * 4, **in_blocks(8, 8))
    target = with_processors(4, "sm_90a", 256)
    knobs = {**SMALL_GROUPS, "stages": 5, "streamed": streamed, "gathers": 1}
    assert_computes(kernel, target, "conv_wgmma_cuda", knobs)


LAYERS = {
    "BERT, feed-forward": ((128, 3072), (3072, 768), {}),
    "ResNet, 14x14": ((196, 2304), (2304, 256), {"block_rows": 64, "block_columns": 64, "warp_columns": 32}),
    "ResNet, 7x7": ((49, 4608), (4608, 512), {"block_rows": 64, "block_columns": 64, "warp_columns": 32}),
    "ResNet, 56x56": ((3136, 576), (576, 64), {}),
    "ragged": ((197, 1000), (1000, 777), {"stages": 4}),
}
"""Of one sentence or image, and how the default would cut those that are streamed."""


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.usefixtures("gpu")
def test_layers_of_models(name: str) -> None:
    """On all multiprocessors of an A100."""
    left, right, knobs = LAYERS[name]
    kernel, target = matmul(left, right, "bias", "relu", constant=True), TARGETS["cuda:sm_80"]
    shape = {"block_rows": 128, "block_columns": 64, "warp_rows": 32, "warp_columns": 32, "depth_chunks": 8}
    assert_computes(kernel, target, MMA, {**SMALL, **shape, "streamed": 1, **knobs})


SIMT: Config = {
    "tile_m": 32, "tile_n": 64, "tile_k": 8, "thread_m": 4, "thread_n": 4,
    "stages": 2, "split": 1, "vector": 4, "streamed": 1,
}  # fmt: skip
PLAIN = {
    "less than a round": (simt.matmul((70, 61), (61, 100), "bias", "relu"), 8, {}),
    "two rounds, one buffer": (simt.matmul((70, 60), (60, 100), "residual"), 4, {"streamed": 2, "stages": 1}),
    "batches, half precision": (
        simt.matmul((3, 40, 70), (3, 70, 36), "relu", dtype="float16"), 4, {"streamed": 2},
    ),
    "transposed result": (simt.matmul((5, 20, 40), (5, 40, 36), "relu", "heads first"), 4, {}),
    "double precision": (simt.matmul((70, 61), (61, 100), dtype="float64"), 4, {}),
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if "one buffer" in n else [pytest.mark.slow]) for n in PLAIN]
)
@pytest.mark.usefixtures("gpu")
def test_plain_instructions(name: str) -> None:
    kernel, processors, knobs = PLAIN[name]
    config = {**SIMT, **knobs}
    target = with_processors(processors, "sm_75")
    template = TEMPLATES["matmul_cuda"]
    template.space(kernel, target).check(config)
    arrays = arrays_for(kernel)
    (found,) = build_scheduled(kernel, template.apply(kernel, target, config), target)(arrays)
    (expected,) = evaluate(kernel.body, arrays)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("gpu")
def test_plain_convolutions() -> None:
    kernel = simt_conv.conv((2, 8, 9, 12), (40, 8, 3, 3), "bias", "residual", padding=(1,) * 4)
    simt_conv.assert_matches(kernel, with_processors(5, "sm_75"), {**SIMT, "streamed": 1})


def test_libraries_give_the_same_bits_in_every_run(gpu: Target, tmp_path: Path) -> None:
    """The second run launches what was recorded; pieces lie where other kernels' tensors were."""
    builder = GraphBuilder()
    rng = np.random.default_rng(0)
    x = builder.input("x", (70, 200))
    for depth, columns in ((200, 90), (90, 200)):
        weights = rng.standard_normal((depth, columns)).astype(np.float32)
        x = builder.op("relu", builder.op("matmul", x, builder.constant(weights)))
    graph = builder.build(x)
    optimized = api.optimize(graph, gpu)
    kernels = [Kernel.of(node) for node in optimized.nodes if node.op == "fused"]
    assert template_for(kernels[0], gpu).space(kernels[0], gpu).default["streamed"] == 1
    compile_graph(optimized, gpu, tmp_path / "model.so")
    array = rng.standard_normal((70, 200)).astype(np.float32)
    (expected,) = evaluate(graph, [array])
    with load(tmp_path / "model.so") as library:
        first, *others = (library(array)[0].copy() for _ in range(3))
    np.testing.assert_allclose(first, expected, rtol=1e-5, atol=1e-4)
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_the_cost_model_knows_how_many_steps_there_are() -> None:
    """Extents of loops over a part of the steps are not those of all integers."""
    target = TARGETS["cuda:sm_80"]
    whole, streamed = (
        dict(zip(names_of(target), features_of(task, {**config, "streamed": n}), strict=True))
        for task, config in [_square(target)]
        for n in (0, 1)
    )
    assert whole["iterations"] <= streamed["iterations"] <= whole["iterations"] + 2


def _square(target: Target) -> tuple[Task, Config]:
    task = Task.of(matmul((2048, 2048), (2048, 2048), constant=True), target)
    return task, task.space.default


@pytest.mark.parametrize("streamed", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("gpu")
def test_convolutions(streamed: int) -> None:
    kernel = conv((1, 2, 9, 9, 16), (40, 32, 3, 3), True, padding=(1,) * 4, **in_blocks(16, 8))
    assert_computes(kernel, with_processors(4), "conv_mma_cuda", {**SMALL, "streamed": streamed})


@pytest.mark.slow
@pytest.mark.usefixtures("gpu")
def test_weights_that_are_unpacked_on_their_way() -> None:
    kernel, target = product(70, 50, 192, 4, 32, zeros=True, dtype="float16"), with_processors(4)
    arrays = numbers(kernel)
    (found,) = build_scheduled(kernel, scheduled(kernel, target, MMA, {"streamed": 1}), target)(arrays)
    (expected,) = evaluate(kernel.body, arrays)
    np.testing.assert_allclose(found, expected, rtol=4e-3, atol=2e-3 * np.abs(expected).max())


@pytest.mark.usefixtures("gpu")
def test_pieces_are_added_in_order() -> None:
    """10^8 and -10^8 in the first and the third piece of four leave nothing of the 1 in the second."""
    kernel, target = matmul((32, 128), (128, 32), out_dtype="float32"), with_processors(4)
    left, right = (np.zeros_like(array) for array in arrays_for(kernel))
    left[0, [0, 40, 64, 100]] = [10000, 1, -10000, 1]
    right[[0, 40, 64, 100], 0] = [10000, 1, 10000, 1]
    (found,) = build_scheduled(kernel, scheduled(kernel, target, MMA, {"streamed": 1}), target)([left, right])
    assert found[0, 0] == 1


def _gpu(name: str) -> Gpu:
    gpu = TARGETS[name].gpu
    assert gpu is not None
    return gpu


@pytest.mark.parametrize(
    ("extents", "knobs", "reason"),
    [
        ((2048, 2048, 2048), {"streamed": 1, "splits": 2}, "2 parts of the depth"),
        ((2048, 1024, 2048), {"streamed": 2}, "no 2 rounds of 108"),
        ((6912, 1024, 512), {"streamed": 1}, "fill rounds of 108"),
        ((6400, 1024, 32), {"streamed": 1}, "gets a whole one or none"),
        ((6400, 1024, 512), {"streamed": 2}, None),
    ],
)
def test_what_cannot_be_streamed_is_refused(
    extents: tuple[int, int, int], knobs: dict[str, int], reason: str | None
) -> None:
    plan = replace(MmaPlan("float16", 1, *extents, 256, 128, 64, 64, 4, 3, output=rows_of(2)), **knobs)
    complaint = plan.complaint(_gpu("nvidia/a100"))
    assert complaint is None if reason is None else reason in str(complaint)


@pytest.mark.parametrize(
    ("extents", "whole", "streamed"),
    [
        ((1024, 4096, 4096), 214, 179),
        ((2048, 2048, 2048), 110, 100),
        ((4096, 4096, 4096), 684, 667),
        ((8192, 8192, 8192), 5139, 5149),
        ((128, 768, 3072), 13, 13),
        ((196, 256, 2304), 10, 10),
        ((49, 512, 4608), 10, 10),
        ((3136, 64, 576), 6, 10),
    ],
)
def test_estimates_on_tensor_cores(extents: tuple[int, int, int], whole: int, streamed: int) -> None:
    """Thousands of cycles of an A100: of the best plan of whole tiles or parts of the depth, of streams."""
    gpu = _gpu("nvidia/a100")
    plans = list(default_plans("float16", (1, *extents), rows_of(2), gpu))
    best = [
        min(plan.cycles(gpu) for plan in plans if bool(plan.streamed) is streams) for streams in (False, True)
    ]
    assert [round(cycles / 1000) for cycles in best] == [whole, streamed]


@pytest.mark.parametrize(
    ("extents", "whole", "streamed"),
    [
        ((1536, 1536, 1536), 377, 326),
        ((2048, 2048, 2048), 800, 757),
        ((4096, 4096, 4096), 6312, 5932),
        ((512, 3072, 768), 117, 117),
        ((128, 768, 3072), 36, 37),
        ((196, 256, 2304), 22, 22),
    ],
)
def test_estimates_of_plain_instructions(extents: tuple[int, int, int], whole: int, streamed: int) -> None:
    """The same in float32 on an H100."""
    target = TARGETS["nvidia/h100"]
    m, n, k = extents
    problem = Problem((), m, n, k, "float32", 4 * (m * n + m * k + n * k))
    tiles = list(default_tiles(problem, _gpu("nvidia/h100")))
    best = [
        min(cycles(problem, tile, target) for tile in tiles if bool(tile.streamed) is streams)
        for streams in (False, True)
    ]
    assert [round(found / 1000) for found in best] == [whole, streamed]


def test_estimates_of_groups_of_warps() -> None:
    """2,048 tiles for 132 blocks at once: 68 are left of 15 rounds."""
    gpu = _gpu("nvidia/h100")
    plan = default_wgmma_plan("float16", (1, 8192, 8192, 8192), rows_of(2), gpu)
    assert (plan.streamed, plan.block_rows, plan.block_columns) == (1, 128, 256)
    assert 1.02 < replace(plan, streamed=0).cycles(gpu) / plan.cycles(gpu) < 1.03
    assert default_wgmma_plan("float16", (1, 4096, 4096, 4096), rows_of(2), gpu).streamed == 0


def test_it_is_the_default_where_tiles_leave_much_of_a_round() -> None:
    """128 tiles of 256x128 for 108 blocks at once: 20 are left of a round."""
    gpu = _gpu("nvidia/a100")
    plan = default_plan("float16", (1, 2048, 2048, 2048), rows_of(2), gpu)
    shares = plan.shares(gpu)
    assert isinstance(shares, Streams)
    assert (shares.tiles, shares.divided, shares.sharers) == (128, 20, 107)
    whole = replace(plan, streamed=0)
    assert plan.cycles(gpu) < 0.9 * whole.cycles(gpu)
    assert default_plan("float16", (1, 512, 512, 512), rows_of(2), gpu).streamed == 0


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("streamed", [1, 2])
@pytest.mark.usefixtures("real_compiler")
def test_largest_tiles_do_not_spill(streamed: int, arch: str) -> None:
    target = TARGETS[f"cuda:{arch}"]
    kernel = matmul((3000, 1504), (1504, 2000), "bias", "gelu", "residual", constant=True)
    knobs = {
        "block_rows": 256, "block_columns": 128, "warp_rows": 64, "warp_columns": 64, "depth_chunks": 8,
        "streamed": streamed,
    }  # fmt: skip
    code = device_code(scheduled(kernel, target, MMA, knobs).function, "kernel", target)
    cubin = compile_cubin(code.source, arch)
    assert len(cubin.resources) == 2
    assert all(found.spilled_bytes == 0 for found in cubin.resources.values())


@pytest.mark.slow
@pytest.mark.parametrize("block", [(128, 256), (256, 128)])
@pytest.mark.usefixtures("real_compiler")
def test_groups_of_warps_neither_spill_nor_wait(block: tuple[int, int]) -> None:
    kernel = matmul((3000, 1504), (1504, 2000), "bias", "gelu", "residual", constant=True)
    template, target = TEMPLATES["matmul_wgmma_cuda"], TARGETS["cuda:sm_90a"]
    knobs = {"block_rows": block[0], "block_columns": block[1], "consumers": 2, "splits": 1, "streamed": 1}
    config = {**template.space(kernel, target).default, **knobs}
    template.space(kernel, target).check(config)
    code = device_code(template.apply(kernel, target, config).function, "kernel", target)
    cubin = compile_cubin(code.source, "sm_90a")
    assert all(found.spilled_bytes == 0 for found in cubin.resources.values())
    assert cubin.losses == ()


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize(
    "block", [(256, 128, 64, 64), (128, 256, 64, 64), (128, 64, 64, 32), (64, 64, 32, 32)]
)
@pytest.mark.usefixtures("real_compiler")
def test_as_many_blocks_run_at_once_as_there_are_streams(block: tuple[int, int, int, int], arch: str) -> None:
    """By the registers that the compiler takes: with fewer, the last streams would begin when others end."""
    target = TARGETS[f"cuda:{arch}"]
    kernel = matmul((3000, 1504), (1504, 2040), "bias", "relu", constant=True)
    names = ("block_rows", "block_columns", "warp_rows", "warp_columns")
    knobs = {**dict(zip(names, block, strict=True)), "depth_chunks": 8, "streamed": 1}
    code = device_code(scheduled(kernel, target, MMA, knobs).function, "kernel", target)
    registers = max(found.registers for found in compile_cubin(code.source, arch).resources.values())
    plan = MmaPlan("float16", 1, 3000, 2040, 1504, *block, 8, 3, output=rows_of(2))
    gpu = _gpu(f"cuda:{arch}")
    assert gpu.registers // (-(-registers // 8) * 8 * plan.threads) >= plan.resident(gpu)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("extents", [(1536, 1536, 1536), (4096, 4096, 4096), (1000, 1000, 1000)])
@pytest.mark.usefixtures("real_compiler")
def test_as_many_blocks_of_plain_instructions_run_at_once(extents: tuple[int, int, int], arch: str) -> None:
    target, gpu = TARGETS[f"cuda:{arch}"], _gpu(f"cuda:{arch}")
    m, n, k = extents
    kernel = simt.matmul((m, k), (k, n), "bias", "relu")
    problem = problem_of(kernel)
    tile = min(
        (tile for tile in default_tiles(problem, gpu) if tile.streamed),
        key=lambda tile: cycles(problem, tile, target),
    )
    matrices = ProductMatrices(Anchored(kernel), Product.of(kernel.anchors[0]))
    launches = SimtProduct(matrices, tile, shares_of(problem, tile, target)).scheduled()
    code = device_code(launches.function, "kernel", target)
    resources = compile_cubin(code.source, arch).resources.values()
    assert all(found.spilled_bytes == 0 for found in resources)
    registers = max(found.registers for found in resources)
    assert resident_blocks(gpu, tile.threads, registers, tile.shared_bytes(4)) >= resident_blocks(
        gpu, tile.threads, tile.registers(4), tile.shared_bytes(4)
    )
