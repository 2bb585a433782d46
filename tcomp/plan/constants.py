"""Where constants are: in the weights, packed for the kernels that read them, or where a GPU packs them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from tcomp.plan.program import DevicePacked, Place, PlannedConstant, Space, aligned
from tcomp.relay.graph import Constant
from tcomp.relay.types import TensorType
from tcomp.tensor.template import Packing

CODE_BYTES = 40_000
"""What code that packs constants takes of a library, for each pair of types: 12 to 38 KB were found."""


@dataclass
class Constants:
    """A part of the weights from byte `begin` on: equal constants that are packed alike are stored once."""

    space: Space = "weights"
    begin: int = 0
    entries: list[PlannedConstant] = field(default_factory=list[PlannedConstant])
    end: int = field(init=False)
    _stored: dict[tuple[str, str], list[PlannedConstant]] = field(
        default_factory=dict["tuple[str, str]", "list[PlannedConstant]"]
    )

    def __post_init__(self) -> None:
        self.end = self.begin

    def place(self, constant: Constant, packing: Packing | None = None, packed_for: str = "") -> Place:
        """Where `constant` is. What it is `packed_for` is a name; variants may do that each in its way."""
        stored = self._stored.setdefault(_key(constant, packing, packed_for), [])
        found = next((entry for entry in stored if _packed_alike(entry, packing)), None)
        if found is None:
            found = PlannedConstant(constant, packing, self.end)
            stored.append(found)
            self.entries.append(found)
            self.end += aligned(found.nbytes)
        return Place(self.space, found.offset - self.begin)

    def has(self, constant: Constant) -> bool:
        """Whether `constant` is here as it is."""
        return _key(constant) in self._stored


@dataclass
class DevicePackings:
    """Constants that a GPU packs for one variant: of those whose types `taken` names, before and after."""

    taken: frozenset[tuple[TensorType, TensorType]] = frozenset()
    end: int = 0
    _placed: dict[tuple[str, str], tuple[Constant, Packing, Place]] = field(
        default_factory=dict["tuple[str, str]", "tuple[Constant, Packing, Place]"]
    )

    @staticmethod
    def of(uses: Iterable[tuple[Constant, Packing]]) -> DevicePackings:
        """Those by which a library gets smaller: packing would add more bytes than the code that does it has.

        `uses` are all constants that kernels of the variant want packed.
        """
        added: Counter[tuple[TensorType, TensorType]] = Counter()
        # Equal constants are stored once.
        distinct = {(_digest(c), c.type, packing.type) for c, packing in uses if packing.function is not None}
        for _, before, after in distinct:
            added[before, after] += after.nbytes - before.nbytes
        return DevicePackings(frozenset(types for types, nbytes in added.items() if nbytes > CODE_BYTES))

    def takes(self, constant: Constant, packing: Packing) -> bool:
        return packing.function is not None and (constant.type, packing.type) in self.taken

    def place(self, constant: Constant, packing: Packing, packed_for: str) -> Place:
        key = _key(constant, packing, packed_for)
        if key not in self._placed:
            self._placed[key] = constant, packing, Place("packed", self.end)
            self.end += aligned(packing.type.nbytes)
        return self._placed[key][2]

    def from_weights(self, kept: Constants, sources: Constants) -> tuple[DevicePacked, ...]:
        """The packings, of constants that are `kept` for kernels as well, or else stored among `sources`."""

        def operand(constant: Constant) -> Place:
            return (kept if kept.has(constant) else sources).place(constant)

        packed: list[DevicePacked] = []
        for constant, packing, place in self._placed.values():
            assert packing.function is not None
            operands = tuple(map(operand, (constant, *packing.function.constants)))
            packed.append(DevicePacked(packing.function, operands, place))
        return tuple(packed)


def _key(constant: Constant, packing: Packing | None = None, packed_for: str = "") -> tuple[str, str]:
    return _digest(constant), "" if packing is None else packed_for


def _packed_alike(entry: PlannedConstant, packing: Packing | None) -> bool:
    """Whether `packing` gives the bytes that `entry` stores: of packings of two schedules, results tell."""
    if entry.packing is None or packing is None or entry.packing is packing:
        return entry.packing is packing
    data = entry.constant.data
    return entry.packing.type == packing.type and (
        entry.packing.pack(data).tobytes() == packing.pack(data).tobytes()
    )


def _digest(constant: Constant) -> str:
    data = np.ascontiguousarray(constant.data)
    return (
        f"{constant.type} "
        + hashlib.blake2b(data.view(np.uint8).reshape(-1).data, digest_size=16).hexdigest()
    )
