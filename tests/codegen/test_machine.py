"""The roofline of a machine: how it is measured, and what it says about bytes."""

from __future__ import annotations

from math import inf

import pytest

from tcomp.codegen.machine import Machine, measure_machine


def test_bytes_come_from_the_nearest_levels_that_hold_them():
    machine = Machine(1, 1e9, ((100, 100.0), (1000, 10.0), (inf, 1.0)))
    assert machine.move(0) == 0
    assert machine.move(100) == 1
    assert machine.move(1000) == 1 + 90
    assert machine.move(1003) == 1 + 90 + 3
    assert machine.stream(50, 100) == 0.5
    assert machine.stream(50, 101) == 5
    assert machine.stream(50, 5000) == 50


@pytest.mark.parametrize("threads", [1, 2])
def test_a_machine_is_measured(threads: int):
    machine = measure_machine(threads)
    assert machine.flops > 1e9
    assert [capacity for capacity, _ in machine.levels] == sorted(capacity for capacity, _ in machine.levels)
    assert all(rate > 1e8 for _, rate in machine.levels)
    assert machine.levels[0][1] > machine.levels[-1][1]
