"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_beside(path: Path) -> Generator[Path, None, None]:
    """A hidden path in the folder of `path` to write to; when the block ends well, it is renamed to `path`.

    When the block fails or the process is killed, `path` is what it was before. A device or a pipe is
    written to directly. Raises OSError, which names `path`, when the file cannot be written.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        yield path
        return
    path = Path(os.path.realpath(path))
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            yield beside
            with beside.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
