# pyright: basic
"""The only module that imports TVM: what tcomp uses of it, under the names TVM uses.

TVM is untyped for a type checker, so everything here is `Any` on purpose; the typed world starts above.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import CDLL, RTLD_GLOBAL, RTLD_LOCAL
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any


@contextmanager
def _quickly() -> Iterator[None]:
    """Import TVM without what takes most of the time of every start, worker processes included.

    tvm_ffi imports torch wherever it is installed, for a name clash on Windows: `import torch` fails for a
    while, unless torch was imported before. TVM's Python for devices is left to `load_cuda`. It looks for
    what is not there, as do classes of types whose library is not loaded yet (`_load_runtime`), and for the
    first exception in C++ the symbols of all libraries are read.
    """
    switch, before = "TVM_DEVICE_BACKEND_AUTOLOAD", os.environ.get("TVM_DEVICE_BACKEND_AUTOLOAD")
    os.environ[switch] = "0"
    hides_torch = "torch" not in sys.modules
    if hides_torch:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del os.environ[switch]
        if before is not None:
            os.environ[switch] = before
        if hides_torch:
            del sys.modules["torch"]


def _load_runtime() -> None:
    """Load TVM's runtime and the library of the types that its Python has classes of, after tvm_ffi."""
    package = find_spec("tvm")
    for folder in package.submodule_search_locations or () if package is not None else ():
        for name, mode in (("tvm_runtime", RTLD_GLOBAL), ("tvm_runtime_extra", RTLD_LOCAL)):
            for path in Path(folder, "lib").glob(f"lib{name}.*"):
                CDLL(str(path), mode)


with _quickly():
    from tvm_ffi import get_global_func as _get_global_func
    from tvm_ffi import structural as _structural

    _load_runtime()
    import tvm as _tvm
    from tvm import rpc as _rpc
    from tvm import s_tir as _s_tir
    from tvm import te as _te
    from tvm import tirx as _tirx
    from tvm import topi as _topi
    from tvm.backend.loader import load as _load_backend
    from tvm.rpc import base as _rpc_protocol

_loading = Lock()


def load_cuda() -> None:
    """Load TVM's Python for CUDA, without which it writes no CUDA C.

    Not its runtime, which it would load where CUDA's own is: with that it compiles what it writes, by other
    packages and without the headers of tcomp.
    """

    def refuse(**library: Any) -> CDLL:
        raise OSError(f"{library['target_name']} is not to be loaded")

    with _loading:
        backend: Any = import_module("tvm.backend.cuda")
        load_library, backend.load_lib_ctypes = backend.load_lib_ctypes, refuse
        try:
            _load_backend("cuda")
        finally:
            backend.load_lib_ctypes = load_library


tvm: Any = _tvm
rpc: Any = _rpc
rpc_protocol: Any = _rpc_protocol
rpc_error: Any = _tvm.error.RPCError
"""What went wrong on the other side."""
rpc_timeout: Any = _tvm.error.RPCSessionTimeoutError
te: Any = _te
tirx: Any = _tirx
s_tir: Any = _s_tir
topi: Any = _topi
global_function: Any = _get_global_func
structural_key: Any = _structural.StructuralKey
structural_map: Any = _structural.structural_map
structural_mutate: Any = _structural.structural_mutate
structural_walk: Any = _structural.structural_walk
walk_result: Any = _structural.WalkResult

Tensor = Any
"""A `te.Tensor`."""
PrimFunc = Any
"""A `tirx.PrimFunc`."""
Schedule = Any
"""A `s_tir.Schedule`."""
