"""Kernels whose speed is worth watching, by name, and the 40 of them that `bench_kernels.py` is judged by."""

from __future__ import annotations

from collections.abc import Callable

from tcomp.relay.builder import GraphBuilder
from tcomp.relay.graph import Value
from tcomp.target.host import host_target
from tcomp.tensor.kernel import Kernel


def matmul(a: tuple[int, ...], b: tuple[int, ...], *epilogue: str, constant: bool = True) -> Kernel:
    builder = GraphBuilder()
    result: Value = builder.op("matmul", builder.input("a", a), builder.input("b", b))
    if epilogue:
        result = builder.op("add", result, builder.input("bias", result.type.static_shape[-1:]))
    for name in epilogue[1:]:
        result = builder.op(name, result)
    return Kernel(builder.build(result), frozenset({1}) if constant else frozenset())


def product(*sizes: int, constant: bool = True) -> Callable[[], Kernel]:
    """`rows x depth x columns`, or `batch x rows x depth x columns`."""
    *batch, rows, depth, columns = sizes
    return lambda: matmul((*batch, rows, depth), (*batch, depth, columns), constant=constant)


def attention(heads: int, length: int, depth: int) -> Kernel:
    builder = GraphBuilder()
    operands = [builder.input(name, (heads, length, depth)) for name in "qkv"]
    return Kernel(builder.build(builder.op("attention", *operands, scale=depth**-0.5)))


def conv(
    channels: int,
    size: int,
    outputs: int,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    padding: int | None = None,
) -> Callable[[], Kernel]:
    """A square convolution with bias and relu in blocked layout, its input plain when it has few channels.

    The padding keeps the size where none is given.
    """

    def make() -> Kernel:
        builder = GraphBuilder()
        block = host_target().lanes()
        blocked = f"NCHW{block}c"
        plain = channels < block
        shape = (1, channels, size, size) if plain else (1, -(-channels // block), size, size, block)
        result = builder.op(
            "conv2d",
            builder.input("data", shape),
            builder.input("weight", (outputs, channels // groups, kernel, kernel)),
            strides=(stride, stride),
            padding=(kernel // 2 if padding is None else padding,) * 4,
            groups=groups,
            data_layout="NCHW" if plain else blocked,
            out_layout=blocked,
        )
        bias = builder.input("bias", (1, -(-outputs // block), 1, 1, block))
        return Kernel(builder.build(builder.op("relu", builder.op("add", result, bias))), frozenset({1, 2}))

    return make


def conv1d(channels: int, length: int, outputs: int, kernel: int) -> Callable[[], Kernel]:
    """A convolution along one axis in blocked layout, without padding."""

    def make() -> Kernel:
        builder, block = GraphBuilder(), host_target().lanes()
        layout = f"NCHW{block}c"
        data = builder.input("data", (1, -(-channels // block), length, block))
        weight = builder.input("weight", (outputs, channels, kernel))
        result = builder.op("conv1d", data, weight, data_layout=layout, out_layout=layout)
        return Kernel(builder.build(result), frozenset({1}))

    return make


RESNET50 = {
    "3x224 7x7/2 64": conv(3, 224, 64, 7, 2),
    "64x56 1x1 64": conv(64, 56, 64),
    "64x56 3x3 64": conv(64, 56, 64, 3),
    "64x56 1x1 256": conv(64, 56, 256),
    "256x56 1x1 64": conv(256, 56, 64),
    "256x56 1x1 128": conv(256, 56, 128),
    "128x56 3x3/2 128": conv(128, 56, 128, 3, 2),
    "256x56 1x1/2 512": conv(256, 56, 512, 1, 2),
    "128x28 3x3 128": conv(128, 28, 128, 3),
    "128x28 1x1 512": conv(128, 28, 512),
    "512x28 1x1 128": conv(512, 28, 128),
    "512x28 1x1 256": conv(512, 28, 256),
    "256x28 3x3/2 256": conv(256, 28, 256, 3, 2),
    "512x28 1x1/2 1024": conv(512, 28, 1024, 1, 2),
    "256x14 3x3 256": conv(256, 14, 256, 3),
    "256x14 1x1 1024": conv(256, 14, 1024),
    "1024x14 1x1 256": conv(1024, 14, 256),
    "1024x14 1x1 512": conv(1024, 14, 512),
    "512x14 3x3/2 512": conv(512, 14, 512, 3, 2),
    "1024x14 1x1/2 2048": conv(1024, 14, 2048, 1, 2),
    "512x7 3x3 512": conv(512, 7, 512, 3),
    "512x7 1x1 2048": conv(512, 7, 2048),
    "2048x7 1x1 512": conv(2048, 7, 512),
}
MOBILENET_V2 = {
    "3x224 3x3/2 32": conv(3, 224, 32, 3, 2),
    "32x112 3x3 depthwise": conv(32, 112, 32, 3, 1, 32),
    "32x112 1x1 16": conv(32, 112, 16),
    "16x112 1x1 96": conv(16, 112, 96),
    "96x112 3x3/2 depthwise": conv(96, 112, 96, 3, 2, 96),
    "96x56 1x1 24": conv(96, 56, 24),
    "24x56 1x1 144": conv(24, 56, 144),
    "144x56 3x3 depthwise": conv(144, 56, 144, 3, 1, 144),
    "144x56 1x1 24": conv(144, 56, 24),
    "144x28 1x1 32": conv(144, 28, 32),
    "32x28 1x1 192": conv(32, 28, 192),
    "192x28 3x3 depthwise": conv(192, 28, 192, 3, 1, 192),
    "192x28 1x1 32": conv(192, 28, 32),
    "64x14 1x1 384": conv(64, 14, 384),
    "384x14 3x3 depthwise": conv(384, 14, 384, 3, 1, 384),
    "384x14 1x1 96": conv(384, 14, 96),
    "96x14 1x1 576": conv(96, 14, 576),
    "576x14 1x1 96": conv(576, 14, 96),
    "160x7 1x1 960": conv(160, 7, 960),
    "960x7 1x1 160": conv(960, 7, 160),
    "960x7 1x1 320": conv(960, 7, 320),
    "320x7 1x1 1280": conv(320, 7, 1280),
}

BERT_BASE_128 = {
    "128x768x768": lambda: matmul((128, 768), (768, 768), "bias"),
    "128x768x2304": product(128, 768, 2304),
    "128x768x3072 gelu": lambda: matmul((128, 768), (768, 3072), "bias", "gelu"),
    "128x3072x768": lambda: matmul((128, 3072), (3072, 768), "bias"),
    "attention 12x128x64": lambda: attention(12, 128, 64),
}
VIT_SMALL = {
    "3x224 16x16/16 384": conv(3, 224, 384, 16, 16, padding=0),
    "197x384x384": product(197, 384, 384),
    "197x384x1152": lambda: matmul((197, 384), (384, 1152), "bias"),
    "197x384x1536": lambda: matmul((197, 384), (384, 1536), "bias"),
    "197x1536x384": product(197, 1536, 384),
    "attention 6x197x64": lambda: attention(6, 197, 64),
}
MAGIKA = {
    "2048x257x64": product(2048, 257, 64),
    "256x512 conv1d 5 512": conv1d(256, 512, 512, 5),
}
ALEXNET = {
    "3x224 11x11/4 64": conv(3, 224, 64, 11, 4, padding=2),
    "64x27 5x5 192": conv(64, 27, 192, 5),
}
PRODUCTS = {
    "1024x1024x1024": product(1024, 1024, 1024),
    "384x384x384": product(384, 384, 384),
    "127x257x509": product(127, 257, 509),
    "4096x64x64": product(4096, 64, 64),
    "32x2048x2048": product(32, 2048, 2048),
    "7x1024x1024": product(7, 1024, 1024),
    "8x8192x8": product(8, 8192, 8),
    "4x8192x4": product(4, 8192, 4),
    "16x4096x16": product(16, 4096, 16),
    "64x16384x64": product(64, 16384, 64),
    "128x768x2": product(128, 768, 2),
    "128x768x9": product(128, 768, 9),
    "128x768x24": product(128, 768, 24),
    "1x2048x1000": lambda: matmul((1, 2048), (2048, 1000), "bias"),
    "1x4096x8": product(1, 4096, 8),
    "1x512x64": product(1, 512, 64),
    "batch 12x128x64x128": product(12, 128, 64, 128, constant=False),
    "batch 12x128x128x64": product(12, 128, 128, 64, constant=False),
}
SQUEEZED = {"1152x1 1x1 48": conv(1152, 1, 48), "96x1 1x1 8": conv(96, 1, 8)}
"""Convolutions over one pixel, as squeeze-and-excite blocks have them."""

KERNELS: dict[str, Callable[[], Kernel]] = {
    f"{family} {name}": make
    for family, kernels in {
        "resnet50": RESNET50,
        "mobilenetv2": MOBILENET_V2,
        "bert": BERT_BASE_128,
        "vit": VIT_SMALL,
        "magika": MAGIKA,
        "alexnet": ALEXNET,
        "matmul": PRODUCTS,
        "squeezed": SQUEEZED,
    }.items()
    for name, make in kernels.items()
}

FIXED = (
    "resnet50 3x224 7x7/2 64",
    "resnet50 64x56 1x1 64",
    "resnet50 64x56 1x1 256",
    "resnet50 256x56 1x1 128",
    "resnet50 128x56 3x3/2 128",
    "resnet50 256x56 1x1/2 512",
    "resnet50 512x28 1x1 128",
    "resnet50 256x28 3x3/2 256",
    "resnet50 512x28 1x1/2 1024",
    "resnet50 256x14 1x1 1024",
    "resnet50 512x14 3x3/2 512",
    "resnet50 1024x14 1x1/2 2048",
    "resnet50 2048x7 1x1 512",
    "mobilenetv2 3x224 3x3/2 32",
    "mobilenetv2 16x112 1x1 96",
    "mobilenetv2 144x56 3x3 depthwise",
    "mobilenetv2 24x56 1x1 144",
    "mobilenetv2 192x28 1x1 32",
    "mobilenetv2 96x14 1x1 576",
    "mobilenetv2 320x7 1x1 1280",
    "bert 128x768x768",
    "bert 128x768x3072 gelu",
    "bert 128x3072x768",
    "bert attention 12x128x64",
    "vit 3x224 16x16/16 384",
    "vit 197x384x1152",
    "vit attention 6x197x64",
    "magika 2048x257x64",
    "magika 256x512 conv1d 5 512",
    "alexnet 3x224 11x11/4 64",
    "alexnet 64x27 5x5 192",
    "matmul 1024x1024x1024",
    "matmul 127x257x509",
    "matmul 4096x64x64",
    "matmul 32x2048x2048",
    "matmul 8x8192x8",
    "matmul 16x4096x16",
    "matmul 1x2048x1000",
    "matmul batch 12x128x64x128",
    "matmul batch 12x128x128x64",
)
"""The set whose mean is followed. Without 3x3 convolutions of stride 1: Winograd's multiplications are fewer
than those that the peak is compared with."""
