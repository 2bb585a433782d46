"""Which constants a GPU packs, where what it packs them from lies, and the program that does it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from small_models import fused
from test_planner import simulate, weights_of

from tcomp.plan import Program, distinct_kernels, packing_program, plan_variants
from tcomp.plan.constants import CODE_BYTES, DevicePackings
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.graph import Constant
from tcomp.relay.types import Array, TensorType
from tcomp.target.cuda import ARCHITECTURES
from tcomp.tensor.gpu.threads import launch
from tcomp.tensor.template import Packing, Scheduled
from tcomp.tvm_api import tirx

ROWS, COLUMNS = 64, 96
MATRIX = np.random.default_rng(0).standard_normal((3 * ROWS, ROWS)).astype(np.float32)


def tripled(matrix: Array = MATRIX) -> Packing:
    """Three times as many rows, each a sum of all, and columns first, by a constant and two kernels."""
    g = GraphBuilder("tripled")
    product = g.op("matmul", g.constant(matrix), g.input("weights", (ROWS, COLUMNS)))
    return Packing.by(g.build(g.op("transpose", g.op("exp", g.op("relu", product)), axes=(1, 0))))


def planned(*packings: Packing, gpus: bool = True) -> tuple[Program, ...]:
    """Sums with three constants, as many variants as packings: all are packed, one is read as it is too."""
    rng = np.random.default_rng(1)
    g = GraphBuilder("sums")
    y = g.input("x", (ROWS, COLUMNS))
    weights = [g.constant(rng.standard_normal((ROWS, COLUMNS)).astype(np.float32)) for _ in range(3)]
    for one in weights:
        y = g.add(fused("add", y, one)).output
    graph = g.build(g.add(fused("mul", y, weights[1])).output)
    some = SimpleNamespace(body=launch((8,), (32,), lambda block, thread: tirx.Evaluate(0)))
    variants = [
        {key: Scheduled(some, {} if "mul" in key else {1: packing}) for key in distinct_kernels(graph)}
        for packing in packings
    ]
    return plan_variants(graph, variants, [ARCHITECTURES["sm_80"]] * len(variants) if gpus else [])


def packed_bytes(program: Program) -> Array:
    """What the program that packs leaves of garbage."""
    packing = packing_program(program.packed, lambda kernel: Scheduled(None))
    weights = weights_of(program)
    kept = program.weights_bytes - program.source_bytes
    packed = np.full(program.packed_bytes, 0xA5, np.uint8)
    simulate(packing, [], given={"weights": weights[:kept], "sources": weights[kept:], "packed": packed})
    return packed


def test_a_gpu_packs_what_becomes_larger() -> None:
    packing = tripled()
    (program,) = planned(packing)
    size, larger = ROWS * COLUMNS * 4, 3 * ROWS * COLUMNS * 4
    assert program.packed_bytes == 3 * larger
    assert program.source_bytes == 2 * size + MATRIX.nbytes  # The matrix once, and no constant that stays.
    assert program.weights_bytes == program.source_bytes + size
    (kept,) = [c.constant for c in program.constants if c.offset == 0]
    assert [e.operands[0].space for e in program.packed].count("weights") == 1
    packed = packed_bytes(program)
    for entry in program.packed:
        operand = entry.operands[0]
        found = packed[entry.place.offset :][:larger].view(np.float32).reshape(COLUMNS, 3 * ROWS)
        original = kept if operand.space == "weights" else source(program, operand.offset)
        np.testing.assert_array_equal(found, packing.pack(original.data))


def source(program: Program, offset: int) -> Constant:
    begin = program.weights_bytes - program.source_bytes
    (found,) = [c.constant for c in program.constants if c.offset == begin + offset]
    return found


def test_variants_pack_in_their_own_ways() -> None:
    """From the same constants: the second with another matrix, the third as it is."""
    same = Packing(TensorType((ROWS, COLUMNS)), lambda a: a + 0)
    first, second, third = planned(tripled(), tripled(-MATRIX), same)
    assert first.packed_bytes == second.packed_bytes
    assert third.packed == ()
    assert {p.weights_bytes for p in (first, second, third)} == {first.weights_bytes}
    size = ROWS * COLUMNS * 4
    assert first.source_bytes == 2 * MATRIX.nbytes + 2 * size
    assert first.weights_bytes == first.source_bytes + 4 * size  # Three for the third, and one as it is.
    assert not np.array_equal(packed_bytes(first), packed_bytes(second))


def test_cpus_pack_nothing() -> None:
    (program,) = planned(tripled(), gpus=False)
    assert (program.packed, program.packed_bytes, program.source_bytes) == ((), 0, 0)
    assert program.weights_bytes == 10 * ROWS * COLUMNS * 4


def test_small_constants_are_not_worth_code() -> None:
    def adding(nbytes: int) -> Packing:
        g = GraphBuilder("longer")
        longer = g.op("pad", g.input("weights", (64,)), padding=(0, nbytes // 4))
        return Packing.by(g.build(longer))

    def is_taken(count: int, packing: Packing) -> bool:
        constants = [Constant.of(np.full(64, i, np.float32)) for i in range(count)]
        # Each twice: two kernels read it.
        uses = [(constant, packing) for constant in constants for _ in range(2)]
        return DevicePackings.of(uses).takes(constants[0], packing)

    assert not is_taken(1, adding(CODE_BYTES))
    assert is_taken(1, adding(CODE_BYTES + 4))
    equal = [(Constant.of(np.ones(64, np.float32)), adding(CODE_BYTES // 4)) for _ in range(5)]
    assert not DevicePackings.of(equal).takes(*equal[0])  # They are stored once.
    assert not is_taken(4, adding(CODE_BYTES // 4))  # Constants of the same types share code.
    assert is_taken(5, adding(CODE_BYTES // 4))
    assert not is_taken(1, Packing(TensorType((2 * CODE_BYTES,)), lambda a: np.resize(a, 2 * CODE_BYTES)))
