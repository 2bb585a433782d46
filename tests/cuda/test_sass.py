"""Decoding of machine code of GPUs, and cycles that follow from it."""

from __future__ import annotations

import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from random import Random

import onnx
import onnx.parser
import pytest
from gpu_assembly import disassembled
from test_matmul_cuda import matmul

import kernel_sass
from tcomp.codegen.cuda.cubin import compile_cubin
from tcomp.codegen.cuda.device_code import device_code
from tcomp.codegen.cuda.sass import Instruction, Issue, bank_conflicts, read_sass
from tcomp.codegen.cuda.sass_cycles import LoopCost, Units, latency
from tcomp.errors import BuildError
from tcomp.target.target import TARGETS, Gpu
from tcomp.tensor.selection import schedule
from tcomp.tuner.records import Check, LogWriter, Record, Times
from tcomp.tuner.task import Task


def gpu(name: str) -> Gpu:
    found = TARGETS[name].gpu
    assert found is not None
    return found


A100, H100 = gpu("cuda:sm_80"), gpu("cuda:sm_90a")
TEXT = """
.text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;                    /* 0x00000a0000017a02 */
                                                                             /* 0x000fe40000000f00 */
.L_x_8:
        /*09c0*/                   IMAD R3, R6, 0x440, R3 ;                  /* 0x0000044006037824 */
                                                                             /* 0x000fcc00078e0203 */
.L_x_7:
        /*0a00*/                   LDS.128 R96, [R6.X4] ;                    /* 0x0000000006607984 */
                                                                             /* 0x000fe40000004c00 */
        /*0a20*/                   LDS.128 R100, [R5.X16+0x2200] ;           /* 0x0022000005647984 */
                                                                             /* 0x000e28000000cc00 */
        /*0a30*/              @!P0 LDS.128 R104, [R6.X4+0x80] ;              /* 0x0000800006687984 */
                                                                             /* 0x000e680000004c00 */
        /*0a50*/                   FFMA R123, R97, R100, R48 ;               /* 0x00000064617b7223 */
                                                                             /* 0x001fc40000000030 */
        /*0a60*/                   FFMA R112, R98, R100.reuse, R52 ;         /* 0x0000006462707223 */
                                                                             /* 0x080fe40000000034 */
        /*0a70*/                   FFMA R126, R96.reuse, R100, R88 ;         /* 0x00000064607e7223 */
                                                                             /* 0x040fe40000000058 */
        /*0ab0*/                   FFMA R48, R106, R101, R37 ;               /* 0x000000656a307223 */
                                                                             /* 0x002fc40000000025 */
        /*2c20*/                @P0 BRA `(.L_x_7) ;                          /* 0xffffdd9000007947 */
                                                                             /* 0x000fea000383ffff */
        /*2df0*/                   STS [R3.X4+0x1100], R60 ;                 /* 0x0011003c03007388 */
                                                                             /* 0x0201e40000004800 */
        /*2e00*/                   BRA `(.L_x_8) ;                           /* 0xffffd92000007947 */
                                                                             /* 0x000fea000383ffff */
.L_x_16:
        /*7ad0*/                   BRA `(.L_x_16);                           /* 0xfffffff000007947 */
                                                                             /* 0x000fc0000383ffff */
"""
"""Of a product of matrices for sm_80."""
PLAIN = Issue(1, False, None, None, (), ())


def ffma(*registers: int, reuse: tuple[int, ...] = ()) -> Instruction:
    """`registers` are the result's and those of the operands."""
    return Instruction("FFMA", (), tuple(f"R{one}" for one in registers), "", replace(PLAIN, reuse=reuse))


def load(waits: tuple[int, ...] = ()) -> Instruction:
    return Instruction("LDS", ("128",), ("R4", "[R0]"), "", replace(PLAIN, writes=0, waits=waits))


def test_instructions_and_their_schedule_are_decoded() -> None:
    (function,) = read_sass(TEXT)
    assert function.name == "kernel"
    _, _, first, second, third, product, reusing, *_, jump, store, _, dead_end = function.instructions
    assert (first.name, first.modifiers, first.operands) == ("LDS", ("128",), ("R96", "[R6.X4]"))
    assert (first.issue.writes, second.issue.writes, third.issue.writes) == (None, 0, 1)
    assert (third.guard, second.issue.stall, first.issue.stall) == ("@!P0", 4, 2)
    assert product.issue == Issue(2, True, None, None, (0,), ())
    assert product.register_operands == (97, 100, 48)
    assert reusing.issue.reuse == (1,)
    assert jump.jump == ".L_x_7"
    assert jump.issue.stall == 5
    assert store.issue.reads == 0
    assert store.issue.waits == (5,)
    assert dead_end.jump == ".L_x_16"


def test_loops_are_found_and_know_those_inside() -> None:
    (function,) = read_sass(TEXT)
    inner, outer = sorted(function.loops(), key=lambda loop: len(loop.body))
    assert len(inner.body) == len(inner.own) == 8
    assert [one.name for one in outer.own] == ["IMAD", "STS", "BRA"]


def test_code_behind_the_end_that_goes_back_is_no_loop() -> None:
    """Which tries again to pass a barrier."""
    back, exits = "BRA `(.L_x_1)", ["EXIT", "BRA `(.L_x_0)"]
    lines = ["SYNCS", "@!P0 BRA `(.L_x_9)", ".L_x_1:", *["FFMA R1, R2, R3, R1"] * 4, *exits]
    lines += [".L_x_9:", "SYNCS", "@!P0 BRA `(.L_x_9)", back]
    encoded = (f"  /*0000*/ {line} ; /* 0x{0:016x} */\n /* 0x{0:016x} */" for line in lines)
    text = "\n".join(
        one.partition(" ; ")[0].split("*/ ")[1] if ".L_x_1:" in one or ".L_x_9:" in one else one
        for one in encoded
    )
    (function,) = read_sass(text)
    assert function.labels == {".L_x_1": 2, ".L_x_9": 8}
    assert function.loops() == []


def test_text_without_encodings_is_refused() -> None:
    with pytest.raises(BuildError, match="nvdisasm -c -hex"):
        read_sass("        /*0000*/   MOV R1, R2 ;\n")


@pytest.mark.parametrize(
    ("loop", "conflicts"),
    [
        ([ffma(1, 2, 4, 6)], (0,)),
        ([ffma(1, 3, 5, 7)], (0,)),
        ([ffma(1, 2, 4, 7)], ()),
        ([ffma(1, 2, 4, 2)], ()),
        ([ffma(1, 2, 3, 6, reuse=(1,)), ffma(5, 9, 3, 7)], ()),
        ([ffma(1, 2, 3, 6, reuse=(0,)), ffma(5, 9, 3, 7)], (1,)),
    ],
)
def test_operands_of_one_bank_conflict(loop: list[Instruction], conflicts: tuple[int, ...]) -> None:
    assert bank_conflicts(loop) == conflicts


def test_multiply_adds_take_their_unit() -> None:
    """An A100's scheduler starts one every other cycle, an H100's one a cycle."""
    loop = [ffma(n, 1, 2, n) for n in range(3, 35)]
    assert LoopCost(loop, A100, 2).simulated == pytest.approx(2 * 64, rel=0.02)
    assert LoopCost(loop, H100, 2).simulated == pytest.approx(2 * 32, rel=0.02)
    assert LoopCost(loop, H100, 2).of_peak == pytest.approx(1, rel=0.02)


def test_other_warps_cover_what_one_waits_for() -> None:
    waiting = [load(), replace(ffma(3, 4, 5, 3), issue=replace(PLAIN, waits=(0,)))]
    loop = [*waiting, *(ffma(n, 1, 2, n) for n in range(8, 22))]
    alone, many = LoopCost(loop, H100, 1), LoopCost(loop, H100, 4)
    (wait,) = alone.waits
    assert (wait.behind, wait.exposed) == (1, latency(load()) - 1)
    assert alone.simulated == pytest.approx(len(loop) + wait.exposed, abs=1)
    assert many.simulated == pytest.approx(4 * len(loop), rel=0.02)


def test_shared_memory_gives_so_much_in_a_cycle() -> None:
    """512 bytes a vector of a warp, of 128 for four schedulers; pairs of threads take half of it."""
    loop = [load()] * 8
    assert LoopCost(loop, H100, 4).simulated == pytest.approx(4 * 8 * 16, rel=0.02)
    assert LoopCost(loop, H100, 4, paired=True).simulated == pytest.approx(4 * 8 * 8, rel=0.02)


def test_what_is_never_executed_takes_a_slot_alone() -> None:
    """As the loads of nothing that the assembler puts before asynchronous copies."""
    nothing = Instruction("LDS", (), ("RZ", "[RZ]"), "@!PT", PLAIN)
    assert LoopCost([nothing] * 8, A100, 4).simulated == pytest.approx(4 * 8, rel=0.02)


def test_warps_of_a_block_wait_at_barriers() -> None:
    """Behind the barrier both wait for what they load; of two blocks one computes meanwhile."""
    barrier = Instruction("BAR", ("SYNC",), ("0x0",), "", PLAIN)
    waiting = replace(ffma(3, 4, 5, 3), issue=replace(PLAIN, waits=(0,)))
    loop = [barrier, load(), waiting, *(ffma(n, 1, 2, n) for n in range(8, 24))]
    together, apart = LoopCost(loop, H100, 2, together=2), LoopCost(loop, H100, 2)
    assert apart.simulated == pytest.approx(len(loop) + latency(load()), abs=3)
    assert together.simulated == pytest.approx(2 * len(loop) + latency(load()), abs=3)


@pytest.mark.parametrize(
    ("text", "cycles"), [(("HMMA", "16816", "F32"), 8), (("HMMA", "1688", "F32", "TF32"), 8)]
)
def test_tensor_cores_take_an_instruction_so_often(text: tuple[str, ...], cycles: int) -> None:
    """2048 multiply-adds of float16, of which a scheduler's of an A100 do 256 a cycle."""
    name, *modifiers = text
    product = Instruction(name, tuple(modifiers), ("R4", "R8", "R12", "R4"), "", PLAIN)
    assert Units(A100).cycles(product) == pytest.approx(cycles, rel=0.01)


@pytest.mark.slow
@pytest.mark.usefixtures("real_compiler")
def test_a_product_is_read_as_it_is_compiled() -> None:
    target = TARGETS["cuda:sm_80"]
    code = device_code(schedule(matmul((1024, 1024), (1024, 1024)), target).function, "kernel", target)
    functions = read_sass(disassembled(compile_cubin(code.source, "sm_80").image))
    assert {one.name for one in functions} == {launch.symbol for launch in code.launches}
    loops = [loop for function in functions for loop in function.loops()]
    cost = LoopCost(max(loops, key=lambda loop: sum(i.name == "FFMA" for i in loop.own)).own, A100, 3)
    assert cost.counts["float"] >= 256
    assert cost.simulated >= cost.bound[1] * 3 * 0.95


@pytest.mark.slow
@pytest.mark.usefixtures("real_compiler")
def test_loops_of_a_kernel_are_described() -> None:
    target = TARGETS["cuda:sm_90a"]
    try:
        lines = kernel_sass.described(matmul((1024, 1024), (1024, 1024)), target, None, 2)
    except BuildError as error:
        pytest.skip(str(error))
    loops = [line for line in lines if line.lstrip().startswith("loop of")]
    assert loops
    assert all("float" in line and "of the peak" in line for line in loops)


def chosen(monkeypatch: pytest.MonkeyPatch, *words: str) -> Namespace:
    monkeypatch.setattr(sys, "argv", ["kernel_sass.py", *words])
    return kernel_sass.parse()


def test_kernels_of_a_model_are_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whose operators are the same; types of dynamic models are given as for other commands."""
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]> products
        (float[N, 8] x, float[8, 16] v, float[16, 4] w) => (float[N, 4] z)
        { y = MatMul(x, v) z = MatMul(y, w) }
    """)
    onnx.save(model, tmp_path / "products.onnx")
    arguments = chosen(monkeypatch, str(tmp_path / "products.onnx"), "--input-shape", "x:4,8")
    first, second = kernel_sass.kernels_of(arguments, TARGETS["cuda:sm_80"])
    assert first[0] == "matmul (f32[4,8], f32[8,16])"
    assert second[0] == "matmul (f32[4,16], f32[16,4])"
    assert first[1].key != second[1].key


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--select", "nonsense"], "no kernel has `nonsense` in its name"),
        (["--target", "x86-64-v4"], "`x86-64-v4` is no GPU"),
        (["no.onnx"], "no.onnx cannot be read"),
        (["--log", "no.jsonl"], "cannot read log no.jsonl"),
    ],
)
def test_what_is_wrong_is_one_line(words: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen(monkeypatch, *words)
    with pytest.raises(SystemExit, match=said):
        kernel_sass.main()


def test_defaults_in_place_of_records_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """And estimates are those of the config that is shown."""
    kernel, target = dict(kernel_sass.named_kernels())["matmul 2048x2048x2048 float16"], TARGETS["cuda:sm_80"]
    task = Task.of(kernel, target)
    config = task.space.random(Random(0))
    record = Record(
        task=task.key, op=task.label, target=target.name, isa=target.isa, device="here", threads=1,
        template=task.template_of(config), config=config, status="ok", phase="final", baseline=2e-3,
        seconds=Times(1e-3, 1e-3, 0.0, 9), check=Check(0.0, 1e-3),
    )  # fmt: skip
    with LogWriter(tmp_path / "log.jsonl") as writer:
        writer.append(record)

    def nothing(*_: object) -> list[str]:
        return []

    monkeypatch.setattr(kernel_sass, "described", nothing)
    words = ["--log", str(tmp_path / "log.jsonl"), "--target", "cuda:sm_80", "--select", "2048x2048 float16"]
    kernel_sass.print_all(chosen(monkeypatch, *words))
    said = capsys.readouterr().out
    own, of_default = task.estimated([config, task.space.default]) or ()
    assert own != of_default
    assert f"estimate {own:.0f} cycles" in said
    assert "the default" not in said
    kernel_sass.print_all(chosen(monkeypatch, *words[:2], "--target", "cuda:sm_75", *words[4:]))
    assert "; the default, records only for sm_80 with 1 thread, not for sm_75" in capsys.readouterr().out
