"""What a library says of itself in a section of its file, and how its bytes divide, without loading it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tcomp.errors import ArtifactError
from tcomp.runtime.elf import SharedLibrary
from tcomp.runtime.library import TensorInfo
from tcomp.runtime.stamp import ABI_VERSION, read_artifact

SECTION = ".tcomp.about"
"""It holds the description as JSON, compressed: a kilobyte or two for a model of 50 steps."""


@dataclass(frozen=True)
class Description:
    """A compiled model. `kernels` are bytes of machine code by the kernel's symbol; `steps` are labels.

    A GPU makes up to `packed_bytes` of weights of the last `source_bytes` of those that the library has.
    """

    name: str
    target: str
    isa: str
    features: tuple[str, ...]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    arena_bytes: int
    weights_bytes: int
    weights_embedded: bool
    steps: tuple[str, ...]
    kernels: Mapping[str, int]
    packed_bytes: int = 0
    source_bytes: int = 0

    @property
    def is_for_gpu(self) -> bool:
        return self.isa.startswith("sm_")

    @property
    def tensor_bytes(self) -> int:
        """Of inputs and outputs, for which contexts on a GPU have room where the caller's are not there."""
        return sum(tensor.nbytes for tensor in (*self.inputs, *self.outputs))

    @property
    def shared_bytes(self) -> int:
        """Of a GPU's memory that weights take, once for all contexts that share them; on CPUs 0."""
        return self.weights_bytes - self.source_bytes + self.packed_bytes if self.is_for_gpu else 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> Description:
        lists: dict[str, Any] = {name: tuple(facts[name]) for name in ("features", "steps")}
        for kind in ("inputs", "outputs"):
            lists[kind] = tuple(TensorInfo(t["name"], tuple(t["shape"]), t["dtype"]) for t in facts[kind])
        return cls(**{**facts, **lists})

    def pack(self) -> bytes:
        """The content of the section."""
        return zlib.compress(json.dumps(self.to_json(), separators=(",", ":")).encode(), 9)


@dataclass(frozen=True)
class Sizes:
    """Bytes of a library's file: all of it, machine code, the kernels' part of that, embedded weights."""

    file: int
    code: int
    kernels: int
    weights: int

    @property
    def runtime(self) -> int:
        """Code that every library has: threads, checks, the calls of the steps, the C start-up."""
        return self.code - self.kernels

    @property
    def rest(self) -> int:
        """Names, tables for the loader and for unwinding, constants of kernels, padding."""
        return self.file - self.code - self.weights

    @property
    def without_weights(self) -> int:
        return self.file - self.weights

    def to_json(self) -> dict[str, int]:
        derived = {"runtime": self.runtime, "rest": self.rest, "without_weights": self.without_weights}
        return {**asdict(self), **derived}


@dataclass(frozen=True)
class Artifact:
    """What the file of a compiled model tells."""

    path: Path
    machine: str
    abi_version: int
    needed: tuple[str, ...]
    description: Description
    sizes: Sizes


def describe(path: Path) -> Artifact:
    """Read the library at `path`, which may be for another machine.

    Raises ArtifactError when it is no whole artifact of this version.
    """

    def read(library: SharedLibrary) -> Artifact:
        section = library.section(SECTION)
        if section is None:
            raise ArtifactError(f"{path} has no description (section {SECTION}); compile it again")
        packed = library.data[section.offset : section.offset + section.size]
        about = Description.from_json(json.loads(zlib.decompress(packed)))
        code = sum(s.size for s in library.sections if s.is_code)
        weights = about.weights_bytes if about.weights_embedded else 0
        sizes = Sizes(len(library.data), code, sum(about.kernels.values()), weights)
        return Artifact(path, library.machine, ABI_VERSION, library.needed, about, sizes)

    return read_artifact(path, read)
