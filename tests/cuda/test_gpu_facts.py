"""The script that measures what estimates take for granted, on the emulated GPU: all but the numbers."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from failing_facts import FACTS as FAILING
from gpu_assembly import disassembled, loop_bodies

import gpu_facts
import gpu_machine
import gpu_measure
from gpu_facts import FACTS, Row
from tcomp.codegen.cuda.cubin import compile_cubin
from tcomp.errors import KernelError
from tcomp.target.cuda import ARCHITECTURES
from tcomp.target.parse import parse_target
from tcomp.target.target import Gpu, Target
from tcomp.tensor.gpu import rates as gpu_rates
from tcomp.tensor.tensor_cores import wgmma_plan
from tcomp.tensor.tensor_cores.stored_output import Output

pytestmark = pytest.mark.emulated

SLOW_TO_INTERPRET = "wgmma m64n128", "wgmma m64n192", "wgmma m64n256"


def test_assumptions_are_those_of_the_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    (fact,) = (fact for fact in FACTS if fact.name == "second-level cache, copy engine")
    assert fact.assumed is not None
    assert fact.assumed.where == "gpu.rates.CACHE_BYTES"
    monkeypatch.setattr(gpu_rates, "CACHE_BYTES", 5)
    assert gpu_facts.row_of(fact, ARCHITECTURES["sm_90a"], 6.0).ratio == 1.2


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_every_fact_that_applies_has_an_assumption(arch: str) -> None:
    gpu = ARCHITECTURES[arch]
    facts = [fact for fact in FACTS if fact.applies(gpu)]
    assert ("wgmma" in "".join(fact.name for fact in facts)) == (arch == wgmma_plan.ARCH)
    assert len({fact.name for fact in facts}) == len(facts)
    for fact in facts:
        row = gpu_facts.row_of(fact, gpu, 1.0)
        assert (row.assumed is None) == (row.ratio is None) == (fact.assumed is None)
        assert row.assumed is None or row.assumed > 0


def test_group_products_are_assumed_as_plans_have_them() -> None:
    """At the rate of the data sheet; large products take as long as all their instructions."""
    gpu = ARCHITECTURES["sm_90a"]
    rate = gpu.flops["float16"] / gpu.processors / gpu_rates.clock(gpu)
    assert gpu_facts.group_cycles(gpu, "float16", 256, 64) == pytest.approx(2 * 64 * 256 * 16 / rate)
    output = Output((2,), neighbours=1 << 14)
    plan = wgmma_plan.WgmmaPlan("float16", 1, 1 << 14, 1 << 14, 1 << 14, 128, 256, 2, 4, output=output)
    instructions = (1 << 14) ** 3 / (64 * 256 * 16) / gpu.processors
    assert plan.cycles(gpu) == pytest.approx(
        instructions * gpu_facts.group_cycles(gpu, "float16", 256, 64), rel=0.1
    )


def measured(gpu: Gpu, leave_out: Sequence[str] = ()) -> dict[str, float]:
    machine = gpu_measure.Machine(gpu, gpu_machine.SMALL)
    facts = [f for f in FACTS if f.applies(gpu) and not f.name.startswith(tuple(leave_out))]
    return {fact.name: fact.measure(machine) for fact in facts}


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["80", "90"])
@pytest.mark.usefixtures("gpu")
def test_every_kernel_computes_what_it_should(capability: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its fact raises an error."""
    monkeypatch.setenv("EMULATED_CAPABILITY", capability)
    gpu = parse_target("cuda").gpu
    assert gpu is not None
    found = measured(gpu, () if capability == "80" else SLOW_TO_INTERPRET)
    assert ("a tile by the copy engine" in found) == (capability == "90")
    assert all(found[name] > 0 for name in found if name != "a wait between streams of a graph")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "right", "wrong", "fact"),
    [
        ("multiply_add", "i < 128", "i < 127", "float32 multiply-adds"),
        ("exponential", "i < 32", "i < 31", "exponentials"),
        ("integer", "i < 64", "i < 63", "integer shifts and logic"),
        ("multiply", "i < 8; i++) tcomp", "i < 7; i++) tcomp", "mma.sync m16n8, int8"),
        ("shared", "step * 128", "step * 64", "shared memory, loads"),
        ("read", "tile + 1 == tiles ? 0 : tile + 1", "tile", "second-level cache, loads"),
        ("copy", "tcomp_wait_copies<3>", "tcomp_wait_copies<4>", "second-level cache, cp.async"),
        ("store", "i < 8; i++) own", "i < 7; i++) own", "second-level cache, stores of lines"),
        ("chase", "step < count", "step < count - 1", "a load from the second-level cache"),
        ("count", "out[0] += in[0]", "out[0] = in[0]", "a launch alone"),
    ],
)  # fmt: skip
def test_a_kernel_that_does_less_is_told(
    kernel: str,
    right: str,
    wrong: str,
    fact: str,
    gpu: Target,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(gpu_machine.KERNELS, tmp_path / "kernels")
    monkeypatch.setattr(gpu_machine, "KERNELS", tmp_path / "kernels")
    path = tmp_path / "kernels" / f"{kernel}.cu"
    assert right in path.read_text()
    path.write_text(path.read_text().replace(right, wrong))
    (chosen,) = (one for one in FACTS if one.name == fact)
    assert gpu.gpu is not None
    with pytest.raises(KernelError, match="wrong results of"):
        chosen.measure(gpu_measure.Machine(gpu.gpu, gpu_machine.SMALL))


@pytest.mark.parametrize("dtype", ["float16", "float8_e4m3fn"])
def test_sums_of_groups_have_few_bits(dtype: str) -> None:
    """Of as many steps as a GPU takes, and of each instruction on the way."""
    numbers = gpu_measure.numbers_of_groups(dtype, 256)
    assert numbers.any(axis=1).all()
    sums = numbers.sum(axis=1)
    assert len(set(sums)) > 1
    on_the_way = np.abs(numbers.cumsum(axis=1)).max()
    assert np.abs(sums).max() * gpu_machine.FULL.steps + on_the_way < 1 << 13


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "bits"), gpu_measure.MOST_BITS.items())
def test_bits_of_sums_are_counted(
    dtype: str, bits: int, gpu: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gpu.gpu is not None
    machine = gpu_measure.Machine(replace(gpu.gpu, arch="sm_90a"), gpu_machine.SMALL)
    assert machine.sum_bits(dtype) == bits
    shutil.copytree(gpu_machine.KERNELS, tmp_path / "kernels")
    monkeypatch.setattr(gpu_machine, "KERNELS", tmp_path / "kernels")
    path = tmp_path / "kernels" / "multiply_groups.cu"
    cut = "__int_as_float(__float_as_int(sums[i]) & ~0x3ff)"
    assert "= sums[i];" in path.read_text()
    path.write_text(path.read_text().replace("= sums[i];", f"= {cut};"))
    worse = gpu_measure.Machine(replace(gpu.gpu, arch="sm_90a"), gpu_machine.SMALL)
    assert worse.sum_bits(dtype) == 14


@pytest.mark.slow
def test_one_fact_costs_no_other(gpu: Target) -> None:
    assert gpu.gpu is not None
    rows: list[Row] = []
    gpu_facts.measure(
        FAILING, gpu.gpu, True, time.monotonic() + 600, rows.append, limit=20.0, entry="failing_facts.work"
    )
    breaks, ends, hangs, works = rows
    assert "run_error: KernelError: cuCtxSynchronize: an illegal" in breaks.problem
    assert "crash: killed by SIGABRT while measuring ends" in ends.problem
    assert "timeout: no answer in 20 s while measuring hangs" in hangs.problem
    assert breaks.measured is ends.measured is hangs.measured is None
    assert (works.measured, works.assumed, works.ratio) == pytest.approx((3.0, 2.0, 1.5))
    assert hangs.problem in gpu_facts.line(hangs)


@pytest.mark.slow
def test_ends_in_time(gpu: Target) -> None:
    assert gpu.gpu is not None
    end = time.monotonic() + 6
    with pytest.raises(gpu_facts.OutOfTime):
        gpu_facts.measure(FAILING[2:], gpu.gpu, True, end, lambda row: None, entry="failing_facts.work")
    assert 0 <= time.monotonic() - end < 5


@pytest.mark.slow
@pytest.mark.usefixtures("gpu")
def test_prints_and_writes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "facts.json"
    monkeypatch.setattr(
        sys, "argv", ["gpu_facts.py", "--small", "--select", "multiply-adds", "--json", str(file)]
    )
    assert gpu_facts.main() == 0
    (fact,) = json.loads(file.read_text())
    assert fact["name"] == "float32 multiply-adds"
    assert fact["where"] == "gpu.rates.multiply_adds"
    assert fact["assumed"] == 64
    said = capsys.readouterr().out
    assert "off by more than 20%:" in said
    assert said.count("gpu.rates.multiply_adds") == 2


def test_what_is_far_off_comes_last_by_its_distance() -> None:
    rows = [Row(name, "", value, 10.0, "m.N") for name, value in (("a", 11.0), ("b", 20.0), ("c", 1.0))]
    assert gpu_facts.summary(rows).splitlines()[1:] == ["  0.10 times m.N: c", "  2.00 times m.N: b"]
    assert gpu_facts.summary([*rows[:1], Row("d", "", None, 10.0, "m.N")]).startswith("no assumption is off")


# With the real compiler: code is what it says it is.

WORDS: dict[str, dict[str, Any]] = {
    "multiply": {"DTYPE": "float16", "SUM": "float"},
    "copy_tiles": {"STAGES": 8},
    "multiply_groups": gpu_measure.words_of_groups("float16", 256, False),
}
LOOPS = {
    "multiply_add": {"FFMA": 128}, "exponential": {"MUFU": 32}, "integer": {"SHF": 64, "LOP3": 64},
    "shared": {"LDS": 8}, "read": {"LDG": 8}, "copy": {"LDGSTS": 4}, "store": {"STG": 8}, "chase": {"LDG": 1},
    "arrive": {"LDG": 1, "STS": 1, "BAR": 1}, "barrier": {"BAR": 1}, "multiply": {"HMMA": 8},
    "copy_tiles": {"UTMALDG": 1}, "barrier_in_memory": {"SYNCS": 2}, "multiply_groups": {"HGMMA": 4},
}  # fmt: skip
"""What a step of each kernel's loop has; the compiler may write out several steps."""
ONLY_HOPPER = {"copy_tiles", "barrier_in_memory", "multiply_groups"}


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.usefixtures("real_compiler")
def test_code_has_what_is_counted(arch: str) -> None:
    """Loads are not left out, and nothing spills; what else is in the loop is less."""
    names = {path.stem for path in gpu_machine.KERNELS.glob("*.cu")}
    assert names == {*LOOPS, "number", "block", "count"}
    for name in sorted(names - (ONLY_HOPPER if arch != "sm_90a" else set())):
        cubin = compile_cubin(gpu_machine.source(name, **WORDS.get(name, {})), arch)
        assert cubin.resources["kernel"].spilled_bytes == 0, name
        assert cubin.losses == (), name
        if name not in LOOPS:
            continue
        loops = loop_bodies(disassembled(cubin.image))
        written_out = [
            {body[instruction] // count for instruction, count in LOOPS[name].items()} for body in loops
        ]
        assert any(len(steps) == 1 and min(steps) > 0 for steps in written_out), (name, loops)


@pytest.mark.slow
@pytest.mark.usefixtures("real_compiler")
def test_products_of_groups_do_not_wait_for_each_other() -> None:
    for fact in FACTS:
        if fact.name.startswith("wgmma"):
            shape, dtype, *registers = fact.name.removeprefix("wgmma m64n").split(", ")
            words = gpu_measure.words_of_groups(dtype, int(shape), bool(registers))
            cubin = compile_cubin(gpu_machine.source("multiply_groups", **words), "sm_90a")
            assert (cubin.losses, cubin.resources["kernel"].spilled_bytes) == ((), 0), fact.name
