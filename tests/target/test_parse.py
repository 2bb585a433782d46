"""Targets as users write them."""

from __future__ import annotations

import json

import pytest

from tcomp.errors import TargetError
from tcomp.target.parse import parse_target, parse_targets
from tcomp.target.target import TARGETS


@pytest.mark.parametrize("tag", list(TARGETS))
def test_tags(tag: str):
    assert parse_target(tag) is TARGETS[tag]


def test_near_caches_are_no_slower_than_far_ones():
    """Estimates and the simulator take these rates as they are."""
    for target in (t for t in TARGETS.values() if t.gpu is None):
        second_level, last_level, memory = target.bytes_per_cycle
        assert second_level >= last_level >= memory > 0, target.name
    assert parse_target("raspberry-pi-3").bytes_per_cycle == (16.0, 8.0, 1.6)
    assert parse_target("arm64-android+cortex-a76").bytes_per_cycle[2] == 5.0


def test_llvm_is_the_host():
    assert parse_target("llvm").isa.startswith("x86-64-")


def test_a_system_and_a_core():
    target = parse_target("arm64-android+cortex-a55")
    assert (target.system, target.machine, target.isa) == ("android", "aarch64", "armv8.2-a")
    assert target.llvm["mcpu"] == "cortex-a55"
    assert parse_target("armv7-linux+cortex-a53").machine == "arm"


def test_json_changes_facts_of_its_base():
    text = (
        '{"tag": "znver4", "name": "server", "cores": 8, "cache_bytes": [1, 2, 3], "mattr": ["-avx512fp16"]}'
    )
    target = parse_target(text)
    assert (target.name, target.cores, target.cache_bytes) == ("server", 8, (1, 2, 3))
    assert target.llvm == {**TARGETS["znver4"].llvm, "mattr": ["-avx512fp16"]}
    assert target.isa == "x86-64-v4"


@pytest.mark.parametrize(
    ("text", "fast_dtype"),
    [
        ("znver3", None),
        ("znver4", "bfloat16"),
        ("znver5", "bfloat16"),
        ("sapphirerapids", "bfloat16"),
        ('{"tag": "sapphirerapids", "mattr": ["-amx-bf16"]}', "float16"),
        ('{"tag": "sapphirerapids", "mattr": ["-amx-tile"]}', "float16"),
        ("icelake-server", None),
        ('{"tag": "znver4", "cores": 8}', "bfloat16"),
        ('{"tag": "znver4", "mattr": ["-avx512bf16"]}', None),
        ('{"tag": "sapphirerapids", "mattr": ["-amx-bf16", "-avx512fp16"]}', None),
        ('{"tag": "sapphirerapids", "fast_dtype": "float16"}', "float16"),
        ('{"tag": "sapphirerapids", "fast_dtype": null}', None),
        ('{"tag": "x86-64-v3", "fast_dtype": "bfloat16"}', "bfloat16"),
        ("cortex-a72", None),
        ("arm64-android+cortex-a55", "float16"),
        ("cortex-x2", "bfloat16"),
        ('{"tag": "cortex-x2", "fast_dtype": "float16"}', "float16"),
        ('{"tag": "cortex-a76", "mattr": ["-fullfp16"]}', None),
        ("armv7-linux+cortex-a76", None),
    ],
)
def test_the_fast_type_is_a_fact_of_the_core(text: str, fast_dtype: str | None):
    assert parse_target(text).fast_dtype == fast_dtype


def test_json_with_only_an_mcpu():
    assert parse_target('{"kind": "llvm", "mcpu": "znver2"}') == TARGETS["znver2"]


@pytest.mark.parametrize(
    ("text", "names", "variants"),
    [
        ("znver4", "znver4", "znver4"),
        ("znver4,x86-64-v3", "znver4 x86-64-v3", "znver4 x86-64-v3"),
        ("x86-64-v3, x86-64-v4", "x86-64-v3 x86-64-v4", "x86-64-v3 x86-64-v4"),
        (
            "arm64-android+cortex-a55,cortex-a76",
            "arm64-android+cortex-a55 arm64-android+cortex-a76",
            "cortex-a55 cortex-a76",
        ),
        ("armv7-linux,cortex-a72", "armv7-linux armv7-linux+cortex-a72", "armv7-linux cortex-a72"),
        ("cortex-a72,raspberry-pi-5", "cortex-a72 raspberry-pi-5", "cortex-a72 raspberry-pi-5"),
    ],
)
def test_several_targets(text: str, names: str, variants: str):
    targets = parse_targets(text)
    assert " ".join(t.name for t in targets) == names
    assert " ".join(t.variant for t in targets) == variants
    assert len({t.system for t in targets}) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arm64-android,x86-64-v3", "aarch64 on android and `x86-64-v3` is x86_64 on linux.*compile each"),
        ("raspberry-pi-5,pixel-6", "aarch64 on linux and `pixel-6` is aarch64 on android"),
        ("arm64-android+cortex-a55,cortex-a77", "unknown target `cortex-a77`; did you mean .*`cortex-a76`"),
        ("arm64-android+cortex-a55,cortex-a55", "`cortex-a55` is named twice"),
        ("x86-64-v3,", "unknown target ``"),
    ],
)
def test_refuses_what_no_library_holds(text: str, message: str):
    with pytest.raises(TargetError, match=message):
        parse_targets(text)


def test_one_target_where_only_one_is_possible():
    with pytest.raises(TargetError, match=r"names 2 targets.* one at a time: `znver4`, `x86-64-v3`"):
        parse_target("znver4,x86-64-v3")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("h100", "unknown target `h100`; did you mean `nvidia/h100`[?]$"),
        ("sm_80", "unknown target `sm_80`; did you mean `cuda:sm_80`[?]$"),
        ("znver44", "unknown target `znver44`; did you mean `znver4`"),
        ("nothing-like-it", "one of llvm, "),
        ("{", "not valid JSON"),
        ('{"tag": "znver9"}', "unknown target `znver9`"),
        ('{"tga": "znver4"}', "unknown key `tga`.*did you mean `tag`"),
        ('{"kind": "cuda"}', "only `llvm`"),
        ('{"tag": "znver4", "cores": 0}', "`cores` is 0; it must be a positive integer"),
        ('{"tag": "znver4", "cores": true}', "positive integer"),
        ('{"tag": "znver4", "cache_bytes": [1, 2]}', "must be .L1 data"),
        ('{"tag": "znver4", "mtriple": 3}', "must be a string"),
        ('{"mtriple": "riscv64-linux-gnu"}', "must begin with one of x86_64, aarch64, arm64, armv7a"),
        ("arm64-linux+cortex-a77", "unknown core `cortex-a77`; did you mean .*`cortex-a76`"),
        ("armv7-android+cortex-x2", r"`cortex-x2` runs no 32-bit code.*`arm64-android\+cortex-x2`"),
        ("armv7-linux,cortex-x2", "`cortex-x2` runs no 32-bit code"),
        ("raspberry-pi-6", "unknown target `raspberry-pi-6`; did you mean `raspberry-pi-5`"),
        ('{"vector_bits": 7}', "`vector_bits` is 7; it must be one of"),
        ('{"vector_registers": 1}', "`vector_registers` is 1; it must be one of"),
        ('{"tag": "znver4", "features": [3]}', "list of strings"),
        ('{"tag": "znver4", "fast_dtype": "float8"}', "`fast_dtype` is 'float8'; it must be one of"),
        ('{"tag": "x86-64-v3", "fast_dtype": "float16"}', "`x86-64-v3` lacks avx512fp16"),
        ('{"tag": "cortex-a72", "fast_dtype": "float16"}', "`cortex-a72` lacks fullfp16"),
        ('{"tag": "armv7-linux", "fast_dtype": "float16"}', "`armv7-linux` lacks such instructions"),
    ],
)
def test_refuses(text: str, message: str):
    with pytest.raises(TargetError, match=message):
        parse_target(text)


def test_one_line_errors():
    with pytest.raises(TargetError) as caught:
        parse_target(json.dumps({"tag": "znver4", "wrong": 1}, indent=2))
    assert "\n" not in str(caught.value)


def test_records_are_for_one_length_of_sve() -> None:
    assert parse_target("graviton3").isa == "armv8.4-a+sve256"
    longer = parse_target('{"tag": "graviton3", "vector_bits": 512}')
    assert (longer.isa, longer.sve_bits, longer.lanes()) == ("armv8.4-a+sve512", 512, 16)
    for change in ({"mattr": ["-sve"]}, {"vector_bits": 128}):
        neon = parse_target(json.dumps({"tag": "neoverse-v1", **change}))
        tagged = TARGETS["neoverse-v1-neon"]
        facts = ("isa", "vector_bits", "fma_ports", "features", "fast_dtype", "sve_bits")
        assert [getattr(neon, f) for f in facts] == [getattr(tagged, f) for f in facts]
