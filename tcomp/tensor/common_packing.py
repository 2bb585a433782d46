"""One way to pack a kernel's constants that suits several targets: their library holds its weights once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tensor.selection import template_for
from tcomp.tensor.template import Packed, PackedBy


def common_packing(
    kernel: Kernel, targets: Sequence[Target], configs: Sequence[Config | None]
) -> list[Packed] | None:
    """For each of `targets`, the configs that pack the constants of `kernel` as those of all others do.

    `configs` are what the targets would take on their own, None meaning the default. Of the ways that all
    know, it is the one that costs them least together, by the estimates of the templates: the sum of each
    target's time relative to its own choice. None where they know no common way.
    """
    tables = [template_for(kernel, target).packings(kernel, target) for target in targets]
    first, *others = tables
    common = [key for key in first if all(key in table for table in others)]
    if not common:
        return None
    own = [_cycles(table, config) for table, config in zip(tables, configs, strict=True)]

    def cost(key: Hashable) -> float:
        return sum(table[key].cycles / cycles for table, cycles in zip(tables, own, strict=True))

    best = min(common, key=cost) if len(common) > 1 else common[0]
    return [table[best] for table in tables]


def _cycles(table: PackedBy, config: Config | None) -> float:
    """Estimated cycles of the way in which `config` packs; of the best one for none, or one of its own."""
    least = min(packed.cycles for packed in table.values())
    if config is None:
        return least
    return next((packed.cycles for packed in table.values() if packed.holds(config)), least)
