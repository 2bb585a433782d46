"""Attention of bfloat16 on CPUs that multiply pairs, a tile of rows at a time; see `attention.pairs`."""

from __future__ import annotations

from tcomp.target.target import Target
from tcomp.tensor.attention.pairs import PairedOperands
from tcomp.tensor.groups import BFLOAT16_PAIRS, ways_to_sum
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.schedules.attention_cpu import AttentionCpu
from tcomp.tensor.template import TEMPLATES

DTYPE = "bfloat16"


class AttentionPairsCpu(AttentionCpu):
    """The same loops, with half the steps of both products."""

    name = "attention_pairs_cpu"
    version = 1
    alternative_to = AttentionCpu.name
    operands = PairedOperands

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        if kernel.anchor is None or BFLOAT16_PAIRS not in ways_to_sum(target, DTYPE):
            return False
        operands = kernel.anchor.inputs[:3]
        return super().accepts(kernel, target) and all(v.dtype == DTYPE for v in operands)

    def estimate(self, kernel: Kernel, target: Target) -> float:
        return self._least_cycles(kernel, target)


TEMPLATES.register(AttentionPairsCpu.name, AttentionPairsCpu())
