"""Libraries without threads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from small_models import chain

from tcomp.codegen.artifact import compile_graph
from tcomp.relay.evaluate import evaluate
from tcomp.runtime import load
from tcomp.runtime.elf import SEGMENT_THREAD_LOCAL, SharedLibrary
from tcomp.target.host import host_target

X = np.random.default_rng(0).standard_normal((4, 32), np.float32)


def test_a_serial_library_has_no_threads(tmp_path: Path) -> None:
    report = compile_graph(chain(), host_target(), tmp_path / "chain.so", runtime="serial")
    library = SharedLibrary("chain.so", memoryview(report.library.read_bytes()))
    names = {symbol.name for symbol in library.symbols}
    assert not [name for name in names if name.startswith(("pthread", "__tls", "sem_"))]
    assert SEGMENT_THREAD_LOCAL not in {kind for kind, _ in library.segments}
    model = load(report.library, threads=4)
    for actual, expected in zip(model(X), evaluate(chain(), [X]), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_threads_are_the_default(tmp_path: Path) -> None:
    report = compile_graph(chain(), host_target(), tmp_path / "chain.so")
    library = SharedLibrary("chain.so", memoryview(report.library.read_bytes()))
    assert "pthread_create" in {symbol.name for symbol in library.symbols}
