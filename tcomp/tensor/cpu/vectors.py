"""Which vectors a kernel is written in, on targets that have two kinds: SVE's and NEON's."""

from __future__ import annotations

from collections.abc import Iterable

from tcomp.relay.graph import Node
from tcomp.relay.layouts import channel_block
from tcomp.target.target import Target
from tcomp.tensor.groups import ways_to_sum
from tcomp.tensor.kernel import Kernel
from tcomp.tvm_api import PrimFunc

IN_NEON = "tcomp.in_neon"
"""Attribute of functions in NEON's vectors. They are compiled without SVE: with it, LLVM converts vectors of
narrow integers through SVE's registers, which takes more instructions."""


def vectors_for(kernel: Kernel, target: Target) -> Target:
    """`target`, or with SVE the same core with NEON's vectors alone, for kernels that these suit.

    NEON starts products of groups twice as often as SVE in vectors of twice as many bits, and takes one group
    of a register as factor. Blocks of fewer channels than SVE's vectors have elements leave a part of these
    idle.
    """
    if not target.sve_bits:
        return target
    narrow = any(
        _multiplies_groups(node, target) or _has_short_blocks(node, target) for node in kernel.anchors
    )
    return target.in_neon() if narrow else target


def compiled_for(functions: Iterable[PrimFunc], target: Target) -> Target:
    """The target of a module of `functions`: without SVE where all are in NEON's vectors."""
    return target.in_neon() if all(IN_NEON in (f.attrs or {}) for f in functions) else target


def _multiplies_groups(node: Node, target: Target) -> bool:
    return bool(ways_to_sum(target, node.inputs[0].dtype))


def _has_short_blocks(node: Node, target: Target) -> bool:
    layouts = [str(value) for name, value in node.attrs.items() if name.endswith("_layout")]
    blocks = [block for layout in layouts if (block := channel_block(layout)) is not None]
    return any(block < target.lanes() for block in blocks)
