"""Classes in other languages that call one model: Kotlin by JNI, and Swift.

Each is a source file with the model's names and shapes in it, written beside the library and its header.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tcomp.codegen.bindings import jni, swift
from tcomp.codegen.bindings.names import Names
from tcomp.errors import BuildError, UsageError
from tcomp.plan.program import Program

BINDINGS = ("jni", "swift")
_PACKAGE = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)*", re.ASCII)
_DEFAULT_PACKAGE = "tcomp"


def check_bindings(bindings: Sequence[str]) -> None:
    """Raise UsageError unless each of `bindings` is `swift`, `jni` or `jni:PACKAGE`."""
    for text in bindings:
        kind, _, package = text.partition(":")
        if kind not in BINDINGS or (kind == "swift" and ":" in text):
            raise UsageError(f"unknown bindings `{text}`; there are jni, jni:PACKAGE and swift")
        if ":" in text and not _PACKAGE.fullmatch(package):
            raise UsageError(f"bindings `{text}`: `{package}` is no package; give one as com.example.app")


def write_bindings(program: Program, header: Path, bindings: Sequence[str]) -> list[Path]:
    """Write the sources of `bindings` beside `header`, the model's own; answers their paths.

    Raises UsageError as check_bindings does, and BuildError when a file cannot be written.
    """
    check_bindings(bindings)
    names, written = Names(program), list[Path]()
    for text in bindings:
        kind, _, package = text.partition(":")
        if kind == "jni":
            files = jni.sources(names, header.name, package or _DEFAULT_PACKAGE)
        else:
            files = swift.sources(names, header.name)
        for name, content in files.items():
            path = header.with_name(name)
            try:
                path.write_text(content, encoding="utf-8")
            except OSError as error:
                raise BuildError(f"cannot write {path}: {error.strerror}") from error
            written.append(path)
    return written
