"""An analytical estimate of a kernel's time from the features of its scheduled TIR, before any build.

The largest of four lower bounds, in cycles of one core: arithmetic (idle lanes, short dependency chains and
spilled registers cost), loads, and the bytes that must come from L2, L3 and memory. It is far too coarse to
choose the best config, and good enough to drop those that cannot be near it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tcomp.target.target import Gpu, Target
from tcomp.tensor.cpu.register_tile import FMA_LATENCY
from tcomp.tuner.features import names_of

BYTES_PER_CYCLE = {"l1_bytes_per_flop": 48.0, "l2_bytes_per_flop": 12.0, "l3_bytes_per_flop": 4.0}
"""What enters L1 from L2, L2 from L3, and L3 from memory; generous for every x86 core since 2015."""

_LANES_OF_PROCESSOR = 128
"""Multiply-adds that a multiprocessor starts in a cycle."""
_CYCLES_A_LOAD = 4
"""Loads start at a quarter of the rate of multiply-adds."""


def estimate(features: Sequence[float], target: Target) -> float:
    """Cycles of one run, a lower bound of sorts. `features` are those of `features_of`."""
    value = {name: 2.0**feature for name, feature in zip(names_of(target), features, strict=True)}
    if target.gpu is not None:
        return _estimate_on_gpu(value, target.gpu)
    lanes = min(target.lanes(), max(1.0, value["vectorized"]))
    operations = value["iterations"] / lanes  # Of this schedule: another algorithm may need fewer.
    independent = min(1.0, value["sums"] / (FMA_LATENCY * target.fma_ports))
    # Sums must stay in registers; operands, of several unrolled steps too, can be loaded again.
    spilled = max(0.0, value["sums"] / target.vector_registers - 1)
    arithmetic = operations / target.fma_ports / independent
    loads = operations * (1 / max(value["operations_per_load"], 1e-3) + 2 * spilled) / target.load_ports
    traffic = [value["flops"] * value[name] / rate for name, rate in BYTES_PER_CYCLE.items()]
    return max(arithmetic, loads, *traffic)


def _estimate_on_gpu(value: Mapping[str, float], gpu: Gpu) -> float:
    """Cycles, as the work of a thread times the rounds in which all threads get their turn."""
    work = value["iterations"] / max(1.0, value["parallel"])
    loads = work / max(value["operations_per_load"], 1e-3)
    rounds = max(1.0, value["parallel"] / (gpu.processors * _LANES_OF_PROCESSOR))
    return max(work, loads * _CYCLES_A_LOAD) * rounds
