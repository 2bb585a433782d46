"""NVIDIA's GPUs: architectures by compute capability, and the tags of common cards.

The machine that the GPU is in is one with the least that every 64-bit x86 CPU has, as code there only
launches kernels; Jetson boards have ARM cores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tcomp.relay.types import FLOAT8
from tcomp.target.target import TARGETS, Gpu, Target

KIB, MIB = 1024, 1024 * 1024
_VECTOR_BITS = 128
"""The widest load of a thread."""
_X86 = {"kind": "llvm", "mcpu": "x86-64", "mtriple": "x86_64-unknown-linux-gnu"}
_ARM = {"kind": "llvm", "mcpu": "generic", "mtriple": "aarch64-unknown-linux-gnu"}


def cuda_target(name: str, gpu: Gpu, description: str, host: Mapping[str, str] = _X86) -> Target:
    """The target of code for `gpu`."""
    return Target(
        name=name,
        isa=gpu.arch,
        family="cuda",
        llvm=host,
        vector_bits=_VECTOR_BITS,
        vector_registers=gpu.thread_registers,
        cache_bytes=(gpu.shared_bytes, gpu.l2_bytes, gpu.l2_bytes),
        bytes_per_cycle=(0.0, 0.0, 0.0),  # Those of a CPU; a GPU's rates are its own.
        cores=gpu.processors,
        fast_dtype="float16" if "float16" in gpu.flops else None,
        description=description,
        gpu=gpu,
    )


def _rates(float32: float, float8: float | None = None, **tensor: float) -> Mapping[str, float]:
    """Rates in TFLOP/s as FLOP/s; that of `float8` is of either format."""
    both = {} if float8 is None else dict.fromkeys(FLOAT8, float8)
    return {dtype: rate * 1e12 for dtype, rate in {"float32": float32, **tensor, **both}.items()}


_V100 = Gpu("sm_70", 80, 96 * KIB, 96 * KIB, 2048, 6 * MIB, 900e9, _rates(15.7, float16=125))
_T4 = Gpu("sm_75", 40, 64 * KIB, 64 * KIB, 1024, 4 * MIB, 320e9, _rates(8.1, float16=65, int8=130))
_A100 = Gpu(
    "sm_80", 108, 163 * KIB, 164 * KIB, 2048, 40 * MIB, 1555e9,
    _rates(19.5, tf32=156, float16=312, bfloat16=312, int8=624),
)  # fmt: skip
_A10 = Gpu(
    "sm_86", 72, 99 * KIB, 100 * KIB, 1536, 6 * MIB, 600e9,
    _rates(31.2, tf32=62.5, float16=125, bfloat16=125, int8=250),
)  # fmt: skip
_ORIN = Gpu(
    "sm_87", 16, 163 * KIB, 164 * KIB, 1536, 4 * MIB, 204.8e9,
    _rates(5.3, tf32=21, float16=42, bfloat16=42, int8=85),
)  # fmt: skip
_L4 = Gpu(
    "sm_89", 58, 99 * KIB, 100 * KIB, 1536, 48 * MIB, 300e9,
    _rates(30.3, tf32=60, float16=121, bfloat16=121, int8=242, float8=242),
)  # fmt: skip
_RTX_4090 = replace(
    _L4, processors=128, l2_bytes=72 * MIB, bytes_per_second=1008e9,
    flops=_rates(82.6, tf32=82.6, float16=165.2, bfloat16=165.2, int8=660.6, float8=330.3),
)  # fmt: skip
_H100 = Gpu(
    "sm_90a", 132, 227 * KIB, 228 * KIB, 2048, 50 * MIB, 3350e9,
    _rates(66.9, tf32=494.7, float16=989.4, bfloat16=989.4, int8=1978.9, float8=1978.9),
)  # fmt: skip
_H200 = replace(_H100, bytes_per_second=4800e9)

_CARDS = {
    "v100": (_V100, "Tesla V100 SXM2 (Volta)"),
    "t4": (_T4, "Tesla T4 (Turing)"),
    "a100": (_A100, "A100 SXM4 40 GB (Ampere)"),
    "a10": (_A10, "A10 (Ampere)"),
    "l4": (_L4, "L4 (Ada Lovelace)"),
    "rtx-4090": (_RTX_4090, "GeForce RTX 4090 (Ada Lovelace)"),
    "h100": (_H100, "H100 SXM5 (Hopper)"),
    "h200": (_H200, "H200 SXM5 (Hopper)"),
}
for _name, (_gpu, _description) in _CARDS.items():
    TARGETS.register(f"nvidia/{_name}", cuda_target(f"nvidia/{_name}", _gpu, _description))
TARGETS.register(
    "nvidia/jetson-orin", cuda_target("nvidia/jetson-orin", _ORIN, "Jetson AGX Orin's GPU (Ampere)", _ARM)
)

ARCHITECTURES: Mapping[str, Gpu] = {gpu.arch: gpu for gpu in (_V100, _T4, _A100, _A10, _ORIN, _L4, _H100)} | {
    "sm_90": replace(
        _H100, arch="sm_90", flops={dtype: rate for dtype, rate in _H100.flops.items() if dtype not in FLOAT8}
    )
}
"""A typical GPU of each architecture. What multiplies float8 at its rate on Hopper is of sm_90a alone."""
for _arch, _gpu in ARCHITECTURES.items():
    _host = _ARM if _arch == _ORIN.arch else _X86
    TARGETS.register(
        f"cuda:{_arch}",
        cuda_target(f"cuda:{_arch}", _gpu, f"GPUs of compute capability {_gpu.capability / 10}", _host),
    )
