"""Configs for the kernels of a library, with records, for one target and for several that share weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from record_samples import record

from tcomp.api import optimize
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.graph import Graph
from tcomp.target.parse import parse_targets
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tensor.selection import schedule, template_for
from tcomp.tuner.choices import choose_configs, choose_together
from tcomp.tuner.records import Record, write_log
from tcomp.tuner.task import kernels

WIDE, NARROW = parse_targets("x86-64-v4,x86-64-v3")


def graph() -> Graph:
    b = GraphBuilder()
    x = b.input("x", (100, 256))
    return optimize(b.build(b.op("matmul", x, b.constant(np.ones((256, 384), np.float32)))), WIDE)


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    ((kernel, _),) = kernels(graph())
    return kernel


def tuned(kernel: Kernel, config: Config, relative: float) -> Record:
    template = template_for(kernel, NARROW).id_of(config)
    return record(
        relative * 1e-6, task=kernel.key, isa=NARROW.isa, template=template, config=config, baseline=1e-6
    )


def other_tile(kernel: Kernel, vectors: int) -> dict[str, bool | int | str]:
    """The default of AVX2 but for a register tile as wide as this."""
    return {
        **template_for(kernel, NARROW).space(kernel, NARROW).default,
        "tile_rows": 2,
        "tile_vectors": vectors,
    }


def test_without_records_all_pack_alike(kernel: Kernel) -> None:
    wide, narrow = choose_together(graph(), [WIDE, NARROW], [])
    types = [
        schedule(kernel, target, one.config_of(kernel)).packing[1].type
        for target, one in ((WIDE, wide), (NARROW, narrow))
    ]
    assert types[0] == types[1]
    assert narrow.missing == wide.missing == ("matmul: no record",)


def test_a_record_of_the_common_packing_is_used(kernel: Kernel, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    common = choose_together(graph(), [WIDE, NARROW], [])[1].config_of(kernel)
    assert common is not None
    far, near = other_tile(kernel, 1), {**common, "prefetch": False}
    assert not template_holds(kernel, common, far)
    write_log(log, [tuned(kernel, far, 0.5), tuned(kernel, near, 0.8)])
    assert choose_configs(graph(), NARROW, [log]).config_of(kernel) == far
    together = choose_together(graph(), [WIDE, NARROW], [log])[1]
    own = choose_together(graph(), [WIDE, NARROW], [log], own_weights=True)[1]
    assert (together.config_of(kernel), together.tuned) == (near, 1)
    assert own.config_of(kernel) == far


def test_a_record_slower_than_the_default_is_not(kernel: Kernel, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    common = choose_together(graph(), [WIDE, NARROW], [])[1].config_of(kernel)
    assert common is not None
    slow = {**common, "prefetch": False}
    write_log(log, [tuned(kernel, other_tile(kernel, 1), 0.5), tuned(kernel, slow, 1.5)])
    together = choose_together(graph(), [WIDE, NARROW], [log])[1]
    assert together.config_of(kernel) == common
    assert together.missing == ("matmul: records that pack weights as the other variants do are slower",)


def template_holds(kernel: Kernel, one: Config, other: Config) -> bool:
    """Whether both configs pack alike for AVX2."""
    ways = template_for(kernel, NARROW).packings(kernel, NARROW).values()
    return any(way.holds(one) and way.holds(other) for way in ways)
