"""The stamp in every artifact: ABI version, file size and a digest of the file, checked before loading.

It is a section `.tcomp` of fixed layout: magic (8 bytes), ABI version and stamp size (uint32 each), file
size (uint64), BLAKE2b-256 digest of the file in which the digest itself is zero.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

from tcomp.errors import ArtifactError
from tcomp.runtime.elf import SharedLibrary

ABI_VERSION = 4
SECTION = ".tcomp"
MAGIC = b"TCOMPLIB"
DIGEST_BYTES = 32
_LAYOUT = "<8sIIQ32s"
STAMP_BYTES = struct.calcsize(_LAYOUT)
_DIGEST_AT = STAMP_BYTES - DIGEST_BYTES
_Found = TypeVar("_Found")


def write_stamp(path: Path) -> None:
    """Fill in the stamp that the linker left empty.

    Raises ArtifactError when the file has none.
    """
    with path.open("r+b") as file:
        with _mapped(file) as view:
            offset, size = _stamp_offset(SharedLibrary(str(path), view)), len(view)
        file.seek(offset)
        file.write(struct.pack(_LAYOUT, MAGIC, ABI_VERSION, STAMP_BYTES, size, bytes(DIGEST_BYTES)))
        file.flush()
        with _mapped(file) as view:
            digest = _digest(view, offset)
        file.seek(offset + _DIGEST_AT)
        file.write(digest)


@contextmanager
def _mapped(file: IO[bytes]) -> Generator[memoryview, None, None]:
    """The file's content, read-only: writing through a map of a full disk would kill the process."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
        yield view


def check_stamp(path: Path, machine: str) -> None:
    """Refuse every file that is not a whole artifact of this ABI version for `machine`.

    Raises ArtifactError.
    """
    found = read_artifact(path, lambda library: library.machine)
    if found != machine:
        raise ArtifactError(f"{path} is for {found}, this machine is {machine}; compile for it")


def read_artifact(path: Path, read: Callable[[SharedLibrary], _Found]) -> _Found:
    """What `read` finds in the artifact at `path`, of any machine, which is not loaded.

    Raises ArtifactError for every file that is not a whole artifact of this ABI version.
    """
    try:
        with path.open("rb") as file, _mapped(file) as view:
            library = SharedLibrary(str(path), view)
            _check(library)
            return read(library)
    except ValueError:  # mmap's word for an empty file
        raise ArtifactError(f"{path} is empty; compile it again") from None
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from None


def _check(library: SharedLibrary) -> None:
    path = library.path
    offset = _stamp_offset(library)
    magic, version, stamp_bytes, file_bytes, digest = struct.unpack_from(_LAYOUT, library.data, offset)
    if magic != MAGIC or (version == ABI_VERSION and stamp_bytes != STAMP_BYTES):
        raise ArtifactError(f"{path} has a damaged stamp; compile it again")
    if version != ABI_VERSION:
        raise ArtifactError(
            f"{path} has ABI version {version}, this runtime reads {ABI_VERSION}; compile it again"
        )
    if file_bytes != len(library.data) or digest != _digest(library.data, offset):
        raise ArtifactError(f"{path} is damaged: its content is not what was compiled; compile it again")


def _stamp_offset(library: SharedLibrary) -> int:
    section = library.section(SECTION)
    if section is None or section.size < STAMP_BYTES:
        raise ArtifactError(f"{library.path} is a shared library but no tcomp artifact (section {SECTION})")
    return section.offset


def _digest(data: memoryview, offset: int) -> bytes:
    digest = hashlib.blake2b(data[: offset + _DIGEST_AT], digest_size=DIGEST_BYTES)
    digest.update(bytes(DIGEST_BYTES))
    digest.update(data[offset + STAMP_BYTES :])
    return digest.digest()
