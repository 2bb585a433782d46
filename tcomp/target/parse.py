"""Targets as users write them: `llvm`, a tag, a JSON dict; or several tags, with commas, for one library."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, cast

from tcomp.errors import TargetError
from tcomp.target.arm import CORES, SYSTEMS, UNUSED, on_core
from tcomp.target.cuda_host import gpu_target
from tcomp.target.host import host_target
from tcomp.target.target import FAST_DTYPES, PRODUCT_FEATURES, SEGMENT_BITS, TARGETS, Target

_LLVM_KEYS = ("mcpu", "mattr", "mtriple")
_COUNTS = ("cores", "vector_bits", "vector_registers", "fma_ports")
_ALLOWED = {"vector_bits": (128, 256, 512), "vector_registers": (16, 32)}
_ARCHITECTURES = ("x86_64", "aarch64", "arm64", "armv7a")
_HERE: Mapping[str, Callable[[], Target]] = {"llvm": host_target, "cuda": gpu_target}
_KEYS = ("tag", "kind", "name", *_LLVM_KEYS, *_COUNTS, "cache_bytes", "features", "fast_dtype")


def parse_target(text: str) -> Target:
    """The target that `text` means.

    - `llvm`: this machine, detected; `cuda`: the GPU in it.
    - a tag: `znver4`, `arm64-android`, `raspberry-pi-5`, `nvidia/a100`, `cuda:sm_90a`; a system and a core:
      `arm64-android+cortex-a76`.
    - JSON: `{"tag": "znver4", "cores": 8, "cache_bytes": [32768, 1048576, 4194304]}`: a base tag (without
      one, the tag that `mcpu` names, or this machine) and the facts that differ from it. `fast_dtype` is
      `float16`, `bfloat16` or null; see `Target`.

    Raises TargetError for unknown tags, keys and values.
    """
    target, *others = parse_targets(text)
    if others:
        names = ", ".join(f"`{found.name}`" for found in (target, *others))
        raise TargetError(
            f"`{text}` names {1 + len(others)} targets, for one library; here, give one at a time: {names}"
        )
    return target


def parse_targets(text: str) -> tuple[Target, ...]:
    """The targets of one library: one, as `parse_target` reads it, or several tags.

    `x86-64-v3,x86-64-v4`; `arm64-android+cortex-a55,cortex-a76`: cores that follow a system are on it.
    Raises TargetError for what `parse_target` refuses, and for targets that no library can hold together.
    """
    stripped = " ".join(text.split())
    if stripped.startswith("{"):
        return (_from_json(stripped),)
    found: list[Target] = []
    system = ""
    for tag in (part.strip() for part in stripped.split(",")):
        on_system = bool(system) and tag in CORES
        found.append(on_core(SYSTEMS[system], tag) if on_system else _from_tag(tag))
        named = tag.partition("+")[0]
        system = named if named in SYSTEMS else system
    _check_together(found)
    return tuple(found)


def _check_together(targets: Sequence[Target]) -> None:
    """Raise TargetError when one library cannot hold all `targets`."""
    first = targets[0]
    for index, target in enumerate(targets):
        if target.family != first.family:
            raise TargetError(
                f"`{first.name}` is of the family {first.family} and `{target.name}` of {target.family}; a "
                "library is for one of them: compile each"
            )
        if (target.machine, target.system) != (first.machine, first.system):
            raise TargetError(
                f"`{first.name}` is {first.machine} on {first.system} and `{target.name}` is "
                f"{target.machine} on {target.system}; a library is for one of them: compile each"
            )
        if target.variant in (other.variant for other in targets[:index]):
            raise TargetError(f"target `{target.variant}` is named twice; once is enough")


def _from_tag(tag: str) -> Target:
    if tag in _HERE:
        return _HERE[tag]()
    if tag in TARGETS:
        return TARGETS[tag]
    system, plus, core = tag.partition("+")
    if plus and system in SYSTEMS:
        if core in CORES:
            return on_core(SYSTEMS[system], core)
        raise _unknown("core", core, list(CORES))
    raise _unknown("target", tag, [*_HERE, *TARGETS])


def _unknown(what: str, name: str, known: list[str]) -> TargetError:
    # `h100` of `nvidia/h100` first.
    near = [one for one in known if name in re.split("[/:]", one)] or get_close_matches(name, known, n=3)
    hint = f"did you mean {', '.join(f'`{n}`' for n in near)}?" if near else f"one of {', '.join(known)}"
    return TargetError(f"unknown {what} `{name}`; {hint}")


def _from_json(text: str) -> Target:
    try:
        loaded = json.loads(text)
    except json.JSONDecodeError as error:
        raise TargetError(f"target {text} is not valid JSON: {error}") from None
    facts = cast("Mapping[str, Any]", loaded)
    for key in facts:
        if key not in _KEYS:
            near = get_close_matches(key, _KEYS, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(_KEYS)}"
            raise TargetError(f"unknown key `{key}` in target {text}; {hint}")
    if facts.get("kind", "llvm") != "llvm":
        raise TargetError(f"target kind is `{facts['kind']}`; only `llvm` is supported in a JSON target")
    base = _base(facts)
    if facts.get("vector_bits") == SEGMENT_BITS or "-sve" in _strings("mattr", facts.get("mattr", [])):
        base = base.in_neon()
    llvm = {**base.llvm, **{k: _llvm_value(k, facts[k]) for k in _LLVM_KEYS if k in facts}}
    if not str(llvm["mtriple"]).startswith(_ARCHITECTURES):
        supported = ", ".join(_ARCHITECTURES)
        raise TargetError(
            f"target key `mtriple` is {llvm['mtriple']!r}; it must begin with one of {supported}"
        )
    changes: dict[str, Any] = {k: _count(k, facts[k]) for k in _COUNTS if k in facts}
    if "cache_bytes" in facts:
        changes["cache_bytes"] = _caches(facts["cache_bytes"])
    if "features" in facts:
        changes["features"] = frozenset(_strings("features", facts["features"]))
    target = replace(base, name=str(facts.get("name", base.name)), llvm=llvm, **changes)
    if target.machine == "aarch64" and llvm["mcpu"] != base.llvm["mcpu"] and not target.has("sve"):
        target = replace(target, llvm={**llvm, "mattr": [*UNUSED, *llvm.get("mattr", ())]})
    if base.sve_bits:  # Records are for one length.
        target = replace(target, isa=target.isa.replace(f"sve{base.sve_bits}", f"sve{target.sve_bits}"))
    return _with_fast_dtype(target, facts["fast_dtype"]) if "fast_dtype" in facts else target.available()


def _with_fast_dtype(target: Target, value: object) -> Target:
    """`target` with this `fast_dtype`, which for float16 needs the instructions."""
    if value is not None and value not in FAST_DTYPES:
        known = ", ".join(f'"{name}"' for name in FAST_DTYPES)
        raise TargetError(f"target key `fast_dtype` is {value!r}; it must be one of {known}, null")
    found = replace(target, fast_dtype=value)
    if value == "float16" and not found.multiplies(value):
        feature = PRODUCT_FEATURES.get((target.machine, value), "such instructions")
        raise TargetError(
            f"target key `fast_dtype` is 'float16', but `{target.name}` lacks {feature} in `features`"
        )
    return found


def _base(facts: Mapping[str, Any]) -> Target:
    if "tag" in facts:
        return _from_tag(str(facts["tag"]))
    if "mcpu" in facts:
        return _from_tag(str(facts["mcpu"]))
    return host_target()


def _llvm_value(key: str, value: object) -> str | list[str]:
    if key == "mattr":
        return _strings(key, value)
    if not isinstance(value, str):
        raise TargetError(f"target key `{key}` is {value!r}; it must be a string")
    return value


def _strings(key: str, value: object) -> list[str]:
    items = cast("list[object]", value) if isinstance(value, list) else [value]
    if not all(isinstance(item, str) for item in items):
        raise TargetError(f"target key `{key}` is {value!r}; it must be a list of strings")
    return [str(item) for item in items]


def _count(key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise TargetError(f"target key `{key}` is {value!r}; it must be a positive integer")
    if value not in _ALLOWED.get(key, (value,)):
        raise TargetError(f"target key `{key}` is {value}; it must be one of {_ALLOWED[key]}")
    return value


def _caches(value: object) -> tuple[int, int, int]:
    items = cast("list[object]", value) if isinstance(value, list) else []
    if len(items) != 3:
        raise TargetError(
            f"target key `cache_bytes` is {value!r}; it must be [L1 data, L2, share of L3] in bytes"
        )
    first, second, third = (_count("cache_bytes", item) for item in items)
    return first, second, third
