# pyright: basic
"""The only module that imports TVM: what tcomp uses of it, under the names TVM uses.

TVM is untyped for a type checker, so everything here is `Any` on purpose; the typed world starts above.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def _without_torch() -> Iterator[None]:
    """Make `import torch` fail for a while, unless torch was imported before.

    tvm_ffi imports torch wherever it is installed, for a name clash on Windows. That takes three seconds at
    every start, worker processes included, and nothing here gives TVM tensors of torch.
    """
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]


with _without_torch():
    import tvm as _tvm
    from tvm import rpc as _rpc
    from tvm import s_tir as _s_tir
    from tvm import te as _te
    from tvm import tirx as _tirx
    from tvm import topi as _topi
    from tvm.rpc import base as _rpc_protocol
    from tvm_ffi import get_global_func as _get_global_func
    from tvm_ffi import structural as _structural

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
