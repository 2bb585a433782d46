"""Random configs of every template compile, and the device takes what they need."""

from __future__ import annotations

import random
from math import prod

import pytest
from cuda_kernels import KERNELS

from tcomp.codegen.cuda.jit import build_cuda
from tcomp.target.parse import parse_target
from tcomp.tensor.selection import choices_for, schedule
from tcomp.tensor.template import TEMPLATES

ARCHITECTURES = ["sm_80", "sm_90a"]
EACH = 2
"""Random configs of a template on a kernel."""


def templates_of(name: str, arch: str) -> tuple[str, ...]:
    template, _ = choices_for(KERNELS[name], parse_target(f"cuda:{arch}"))
    return tuple(template.algorithms) or (template.name,)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.usefixtures("real_compiler")
def test_configs_compile(name: str, arch: str) -> None:
    kernel, target = KERNELS[name], parse_target(f"cuda:{arch}")
    gpu = target.gpu
    assert gpu is not None
    template, space = choices_for(kernel, target)
    for algorithm in templates_of(name, arch):
        own = TEMPLATES[algorithm].space(kernel, target)
        rng = random.Random(f"{name} {algorithm}")
        for _ in range(EACH):
            drawn = own.random(rng)
            config = drawn if algorithm == template.name else {"algorithm": algorithm, **drawn}
            space.check(config)
            runner = build_cuda(kernel, schedule(kernel, target, config), target)
            for launch in runner.code.launches:
                found = runner.cubin.resources[launch.symbol]
                assert found.registers * prod(launch.block) <= gpu.registers, config
                assert found.shared_bytes + launch.dynamic_shared_bytes <= gpu.block_shared_bytes, config


def test_every_template_is_among_them() -> None:
    """Of those that tcomp has; other tests have their own."""
    own = {
        name
        for name, t in TEMPLATES.items()
        if t.family == "cuda" and type(t).__module__.startswith("tcomp.")
    }
    found = {name for kernel in KERNELS for arch in ARCHITECTURES for name in templates_of(kernel, arch)}
    assert found == own
