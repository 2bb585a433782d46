"""What a GPU does in a cycle, and how long things take to be there: measured by kernels of `gpu_kernels/`.

`gpu_facts.py` has the table of what is measured.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import byref, c_ulonglong, c_void_p
from functools import cache, cached_property
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from gpu_machine import FULL, SMALL, TILE, Counted, CountingMachine, require
from tcomp.codegen.cuda.jit import Memory
from tcomp.relay.types import Array, TensorType, numpy_dtype, stored_as
from tcomp.target.cuda_driver import LaunchCall
from tcomp.target.parse import parse_target
from tcomp.target.tile_map import TileMap

ALONG = {"float16": 16, "bfloat16": 16, "tf32": 8, "int8": 32, "float8_e4m3fn": 32}
"""Depth of an instruction of tensor cores: 32 bytes."""
MOST_BITS = {"float16": 24, "float8_e4m3fn": 18}
"""That `sum_bits` can tell: those of float32, or down to the least number of the type."""
_REPEATS = 5


class Machine(CountingMachine):
    """All measurements. They raise KernelError for wrong results."""

    # Arithmetic

    @cache  # noqa: B019
    def _multiply_adds(self) -> Counted:
        steps, out = self.sizes.steps, TensorType((self.blocks, 512), "float32")
        given = self.memory(np.array([1, 1, 0], np.float32))
        found = self.count("multiply_add", given, [steps], out, threads=512)
        require("multiply_add", found.out, 128 * steps + 28)
        return found

    def multiply_adds(self) -> float:
        """A cycle."""
        return 512 * 128 * self.sizes.steps / self._multiply_adds().typical

    def clock(self) -> float:
        """Cycles a second, while all multiprocessors add and multiply."""
        found = self._multiply_adds()
        return float(found.cycles.max()) / found.seconds

    def exponentials(self) -> float:
        """A cycle."""
        steps, out = self.sizes.steps, TensorType((self.blocks, 512), "float32")
        found = self.count("exponential", self.memory(np.zeros(1, np.float32)), [steps], out, threads=512)
        require("exponential", found.out, 32 * steps)
        return 512 * 32 * steps / found.typical

    def integers(self) -> float:
        """Shifts and logical operations of integers, a cycle."""
        steps, word = self.sizes.steps, 0x9E3779B9
        values = word + np.arange(8, dtype=np.uint32)
        for _ in range(8 * steps):
            values = values >> 1 ^ np.uint32(word)
        out = TensorType((self.blocks, 512), "uint32")
        found = self.count("integer", self.memory(np.array([word], np.uint32)), [steps], out, threads=512)
        require("integer", found.out, (values * (2 * np.arange(8, dtype=np.uint32) + 1)).sum(dtype=np.uint32))
        return 512 * 2 * 64 * steps / found.typical

    def multiply(self, dtype: str) -> float:
        """Cycles of an instruction of a warp, 16x8 sums of 32 bytes of depth."""
        (sum_, total), steps = _sums(dtype), self.sizes.steps
        ones = self.memory(np.ones(4 // _itemsize(dtype), _stored(dtype)))
        out = TensorType((self.blocks, 256), total)
        found = self.count("multiply", ones, [steps], out, threads=256, DTYPE=dtype, SUM=sum_)
        require(f"multiply of {dtype}", found.out, 32 * ALONG[dtype] * steps)
        return found.typical / (steps * 8 * 8)

    @cache  # noqa: B019
    def _multiply_groups(self, dtype: str, columns: int, of_registers: bool) -> Counted:
        right = numbers_of_groups(dtype, columns)
        found = self._sums_of_groups(dtype, columns, of_registers, right, self.sizes.steps)
        expected = right.astype(np.float32).sum(axis=1)[_columns_of_sums(columns)] * self.sizes.steps
        require(f"multiply_groups of {dtype}, {columns} columns", found.out, expected)
        return found

    def _sums_of_groups(
        self, dtype: str, columns: int, of_registers: bool, right: Array, steps: int
    ) -> Counted:
        """Sums of `right` [columns, 128 bytes of depth], in each of `steps` once."""
        ones = np.ones(4 // _itemsize(dtype), _stored(dtype))
        given = np.concatenate([ones, right.astype(ones.dtype).reshape(-1)]).view(np.uint8)
        out = TensorType((self.blocks, 256, columns // 2), _sums(dtype)[1])
        return self.count(
            "multiply_groups", self.memory(given), [steps], out, threads=256, shared_bytes=48 << 10,
            **words_of_groups(dtype, columns, of_registers),
        )  # fmt: skip

    def sum_bits(self, dtype: str) -> float:
        """Bits that a warp group's sums have within an instruction: of 2^8 and ever smaller powers of two."""
        right = np.zeros((64, 128 // _itemsize(dtype)))
        exponents = 8 - np.minimum(np.arange(1, 65), MOST_BITS[dtype] - 1)
        right[:, 0], right[:, 1] = 2.0**8, 2.0**exponents
        found = self._sums_of_groups(dtype, 64, False, right, 1).out[0, :4]
        is_kept = np.zeros(64, bool)
        is_kept[_columns_of_sums(64)[:4]] = found == (2.0**8 + 2.0**exponents)[_columns_of_sums(64)[:4]]
        return 1.0 + (np.argmin(is_kept) if not is_kept.all() else MOST_BITS[dtype] - 1)

    def multiply_groups(self, dtype: str, columns: int, of_registers: bool = False) -> float:
        """Cycles of an instruction of a warp group, 64 rows of 32 bytes of depth."""
        found = self._multiply_groups(dtype, columns, of_registers)
        return found.typical / (self.sizes.steps * 4 * 2)

    def clock_of_groups(self) -> float:
        """Cycles a second, while all tensor cores multiply."""
        found = self._multiply_groups("float16", 256, False)
        return float(found.cycles.max()) / found.seconds

    # Memory

    def shared_bytes(self) -> float:
        """Read in a cycle."""
        steps, rng = self.sizes.steps, np.random.default_rng(0)
        given = rng.integers(0, 8, (512, 4)).astype(np.float32)
        out = TensorType((self.blocks, 512), "float32")
        found = self.count("shared", self.memory(given), [steps], out, threads=512)
        thread = np.arange(512)
        places = [(step * 128 + i * 256 + thread) % 512 for step in range(steps) for i in range(8)]
        require("shared", found.out, sum(given.sum(axis=1)[at] for at in places))
        return 512 * 16 * 8 * steps / found.typical

    @cache  # noqa: B019
    def _near(self) -> Memory:
        return self.numbered(self.near_bytes)

    def read_near(self) -> float:
        """Bytes a cycle and multiprocessor from the second-level cache, by loads."""
        tiles, steps = self.near_bytes // TILE, max(4, self.sizes.steps // 5)
        out = TensorType((self.blocks, 512), "uint32")
        found = self.count("read", self._near(), [steps, tiles, 5], out, threads=512)
        self._require_read(found.out, steps, tiles, 5)
        return TILE * steps / found.typical

    def read_far(self) -> float:
        """Bytes a second from memory."""
        tiles, blocks = self.far_bytes // TILE, min(4 * self.blocks, self.far_bytes // TILE)
        steps = tiles // blocks
        out, given = TensorType((blocks, 512), "uint32"), self.numbered(self.far_bytes)
        found = self.count("read", given, [steps, tiles, steps], out, threads=512, blocks=blocks, warm=False)
        self._require_read(found.out, steps, tiles, steps)
        return TILE * steps * blocks / found.seconds

    def _require_read(self, out: Array, steps: int, tiles: int, apart: int) -> None:
        sums = _tiles(len(out), steps, tiles, apart).sum(axis=1)[:, None]
        vectors = 8 * 4096 * sums + steps * (512 * 28 + 8 * np.arange(512))
        require("read", out, (16 * vectors + 6 * 8 * steps).astype(np.uint64).astype(np.uint32))

    def fill(self) -> float:
        """Bytes a second that are set to a value."""
        memory = Memory(self.device, TensorType((self.far_bytes,), "uint8"))
        seconds = self.seconds(lambda _: memory.fill())
        require("fill", memory.read()[:: self.far_bytes // 64], 0)
        return self.far_bytes / seconds

    def copy_near(self) -> float:
        """Bytes a cycle and multiprocessor from the second-level cache, by copies of 16 bytes."""
        tiles, steps = 4 * self.near_bytes // TILE, max(4, self.sizes.steps)
        out = TensorType((self.blocks, 256), "uint32")
        found = self.count("copy", self._near(), [steps, tiles, 5], out, threads=256, shared_bytes=TILE)
        step, thread = np.arange(steps), np.arange(256) ^ 32
        vectors = _tiles(self.blocks, steps, tiles, 5) * 1024 + (step + 3) % 4 * 256
        sums = vectors.sum(axis=1)[:, None] + steps * thread
        require("copy", found.out, (16 * sums + 6 * steps).astype(np.uint64).astype(np.uint32))
        return TILE / 4 * steps / found.typical

    def copy_tiles(self, stages: int = 8) -> float:
        """Bytes a cycle and multiprocessor from the second-level cache, by the copy engine."""
        steps = max(4, self.sizes.steps)
        return TILE / 4 * steps / self._copy_tiles(stages, steps, self._near(), self.near_bytes, 0, warm=True)

    def copy_latency(self, far: bool = False) -> float:
        """Cycles from asking the copy engine for a tile of 16 KiB until it is there."""
        steps, nbytes = max(4, self.sizes.steps // 10), self.far_bytes if far else self.near_bytes
        memory = self.numbered(nbytes) if far else self._near()
        return self._copy_tiles(1, steps, memory, nbytes, 1, warm=not far) / steps

    def _copy_tiles(
        self, stages: int, steps: int, memory: Memory, nbytes: int, blocks: int, warm: bool
    ) -> float:
        tiles, blocks = 4 * nbytes // TILE, blocks or self.blocks
        map_ = TileMap("uint32", (32, nbytes // 128, 1), (128, nbytes), (32, 128, 1), swizzle=0)
        found = self.count(
            "copy_tiles", memory, [steps, tiles, 5], TensorType((blocks, 32), "uint32"), threads=32,
            blocks=blocks, shared_bytes=(stages << 14) + 2048, maps=[(0, map_)], warm=warm, STAGES=stages,
        )  # fmt: skip
        words = _tiles(blocks, steps, tiles, 5) * 4096 + (np.arange(steps) + stages) % 4096
        expected = np.zeros((blocks, 32), np.uint32)
        expected[:, 0] = words.sum(axis=1).astype(np.uint64)
        require("copy_tiles", found.out, expected)
        return found.typical

    def store(self, apart: int) -> float:
        """Bytes a cycle and multiprocessor that go to the second-level cache in chunks of 16 so far apart."""
        steps = max(2, self.sizes.steps // 20)
        out = TensorType((self.blocks, 512 * 8, apart, 4), "uint32")
        found = self.count(
            "store", self.memory(np.array([7], np.uint32)), [steps, 0, apart], out, threads=512
        )
        require("store", found.out[:, :, 0], np.array([7 + steps - 1, 7, 7, 7]))
        return 512 * 8 * 16 * steps / found.typical

    def load_latency(self, far: bool = False) -> float:
        """Cycles of a load, from the second-level cache or from memory."""
        nbytes = min(8 * self.gpu.l2_bytes, self.far_bytes) if far else self.near_bytes
        steps = min(self.sizes.steps, nbytes // 128)
        order = np.random.default_rng(0).permutation(nbytes // 128 - 1) + 1
        places = np.concatenate([[0], order]) * 32  # A line of 128 bytes each.
        following = np.zeros(nbytes // 4, np.uint32)
        following[places] = np.roll(places, -1)
        out = TensorType((1, 32), "uint32")
        found = self.count("chase", self.memory(following), [steps], out, threads=32, blocks=1, warm=not far)
        require("chase", found.out, places[steps % len(places)])
        return found.typical / steps

    def arrival(self) -> float:
        """Cycles of a tile of the depth: loaded, stored to shared memory, waited for."""
        words, steps = self.near_bytes // 4, self.sizes.steps
        out = TensorType((1, 256), "uint32")
        found = self.count("arrive", self._near(), [steps, words, 0], out, threads=256, blocks=1)
        places = ((np.arange(256) ^ 32) + 8192 * np.arange(steps)[:, None]) % words
        require("arrive", found.out, places.sum(axis=0).astype(np.uint32))
        return found.typical / steps

    # Steps, blocks, launches

    def barrier(self) -> float:
        """Cycles of a step's end, of 8 warps: their copies, and a barrier."""
        steps, out = self.sizes.steps, TensorType((self.blocks, 256), "uint32")
        found = self.count("barrier", self.memory(np.zeros(1, np.uint32)), [steps], out, threads=256)
        require("barrier", found.out, 2 * steps - 1)
        return found.typical / steps

    def barrier_in_memory(self) -> float:
        """The same by a barrier in shared memory."""
        steps, out, none = self.sizes.steps, TensorType((self.blocks, 256), "uint32"), np.zeros(1, np.uint32)
        found = self.count(
            "barrier_in_memory", self.memory(none), [steps], out, threads=256, shared_bytes=2048
        )
        require("barrier_in_memory", found.out, steps)
        return found.typical / steps

    def block(self) -> float:
        """Cycles of a block that has its multiprocessor alone and only copies a tile in, and out again."""
        shared, tiles, waves = self.gpu.block_shared_bytes, self.blocks, self.sizes.nodes // 3 + 1
        given = np.arange(tiles * TILE // 16, dtype=np.uint32).reshape(tiles, 4, 256, 4)
        memory, seconds = self.memory(given), list[float]()
        for count in (1, waves + 1):
            found = [
                self.count(
                    "block", memory, [0, tiles], TensorType(given.shape, "uint32"), threads=256,
                    blocks=count * self.blocks, shared_bytes=shared, warm=False,
                )
                for _ in range(_REPEATS)
            ]  # fmt: skip
            require("block", found[-1].out, given[:, :, np.arange(256) ^ 32])
            seconds.append(median(one.seconds for one in found))
        return (seconds[1] - seconds[0]) / waves * self.clock()

    def launch(self) -> float:
        """Cycles of a launch alone, between two events."""
        call, out = self._counting()
        found = [self.seconds(call.start) for _ in range(4 * _REPEATS)]
        require("count", out.read()[0], len(found))
        return median(found) * self.clock()

    def node(self) -> float:
        """Cycles of a launch in a graph, behind another."""
        count = self.sizes.nodes
        return (self._chain(2 * count) - self._chain(count)) / count * self.clock()

    def wait(self) -> float:
        """Cycles that a wait between two streams of a graph adds, beside a chain of as many launches."""
        count = self.sizes.nodes
        more = self._fork(2 * count) - self._fork(count) - (self._chain(4 * count) - self._chain(2 * count))
        return more / (2 * count) * self.clock()

    def host_start(self) -> float:
        """Seconds in which Python starts an event, three launches and another event."""
        call, out = self._counting()
        taken: list[float] = []
        for _ in range(4 * _REPEATS):
            self.device.synchronize()
            before = perf_counter()
            self.begin.record()
            for _ in range(3):
                call.start()
            self.end.record()
            taken.append(perf_counter() - before)
        self.device.synchronize()
        require("count", out.read()[0], 3 * len(taken))
        return median(taken)

    def _counting(self, place: int = 0, out: Memory | None = None) -> tuple[LaunchCall, Memory]:
        """A launch that counts itself at `place`."""
        out = out or self.memory(np.zeros(64, np.uint32))
        pointers = [self._one.pointer] * 3 + [out.pointer + 4 * place]
        return self.call(self.function("count"), 1, 32, 0, pointers), out

    @cached_property
    def _one(self) -> Memory:
        return self.memory(np.ones(1, np.uint32))

    @cached_property
    def _streams(self) -> tuple[c_void_p, c_void_p]:
        return self.device.stream(), self.device.stream()

    def _chain(self, count: int) -> float:
        call, out = self._counting()

        def record() -> None:
            for _ in range(count):
                call.start(self._streams[0])

        runs, seconds = self._graph(record)
        require("a chain of launches", out.read()[0], runs * count)
        return seconds

    def _fork(self, count: int) -> float:
        """Of so many launches, each before one beside it and one behind it, which the next waits for."""
        (first, out), (main, beside) = self._counting(), self._streams
        second, third = (self._counting(place, out)[0] for place in (1, 2))
        event = self.device.event()

        def record() -> None:
            for _ in range(count):
                first.start(main)
                event.record(main)
                self.device.call("cuStreamWaitEvent", beside, event.handle, 0)
                second.start(beside)
                third.start(main)
                event.record(beside)
                self.device.call("cuStreamWaitEvent", main, event.handle, 0)

        runs, seconds = self._graph(record)
        event.destroy()
        require("launches side by side", out.read()[:3], runs * count)
        return seconds

    def _graph(self, record: Callable[[], None]) -> tuple[int, float]:
        """Runs, and seconds of one, of a graph of what `record` starts."""
        call, stream, graph, ready = self.device.call, self._streams[0], c_void_p(), c_void_p()
        self.device.synchronize()
        call("cuStreamBeginCapture_v2", stream, 0)
        record()
        call("cuStreamEndCapture", stream, byref(graph))
        call("cuGraphInstantiateWithFlags", byref(ready), graph, c_ulonglong(0))
        found = [
            self.seconds(lambda stream: call("cuGraphLaunch", ready, stream), stream)
            for _ in range(1 + _REPEATS)
        ]
        self.device.synchronize()
        call("cuGraphExecDestroy", ready)
        call("cuGraphDestroy", graph)
        return len(found), median(found[1:])

    # The host

    def host_copy(self, to_device: bool) -> float:
        """Bytes a second from or to page-locked memory of the CPU."""
        nbytes = min(256 << 20, self.sizes.memory_bytes)
        pages, memory = c_void_p(), Memory(self.device, TensorType((nbytes,), "uint8"))
        self.device.call("cuMemHostAlloc", byref(pages), ctypes.c_size_t(nbytes), 0)
        try:
            here = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(pages.value or 0))
            here[:] = np.arange(nbytes) % 251
            if to_device:
                arguments = ("cuMemcpyHtoDAsync_v2", c_void_p(memory.pointer), pages)
            else:
                memory.write(here)
                here[:] = 0
                arguments = ("cuMemcpyDtoHAsync_v2", pages, c_void_p(memory.pointer))
            seconds = [
                self.seconds(lambda stream: self.device.call(*arguments, ctypes.c_size_t(nbytes), stream))
                for _ in range(_REPEATS)
            ]
            require("a copy", memory.read() if to_device else here, np.arange(nbytes) % 251)
            return nbytes / median(seconds)
        finally:
            self.device.call("cuMemFreeHost", pages)


def numbers_of_groups(dtype: str, columns: int) -> Array:
    """What warp groups multiply ones by: [columns, 128 bytes of depth].

    The sum of a column is at most 2, so that those of many steps stay below 2^13: tensor cores of Hopper are
    reported to keep about 14 bits of sums of float8 (DeepSeek-V3 Technical Report, section 3.3.2).
    """
    rng = np.random.default_rng(0)
    first = rng.integers(-2, 3, (columns, 64 // _itemsize(dtype)))
    result = np.concatenate([first, -first], axis=1)
    result[:, -1] += rng.integers(-2, 3, columns)
    return result


def words_of_groups(dtype: str, columns: int, of_registers: bool) -> dict[str, Any]:
    """Those of `multiply_groups.cu`."""
    kind = f"product_{'of_' if of_registers else ''}{dtype}_{columns}<{'0' if of_registers else '0, 0'}>"
    left = "ones" if of_registers else "tcomp_matrix(left + k * 32, 0, 1024)"
    product = f"tcomp_{kind}(sums, {left}, matrix, 1)"
    return {
        "DTYPE": dtype, "SUM": _sums(dtype)[0], "COLUMNS": columns, "COUNT": columns // 2, "PRODUCT": product,
    }  # fmt: skip


def _columns_of_sums(columns: int) -> Array:
    """The column of each sum of the threads of two warp groups: [256, columns / 2]."""
    thread, number = np.arange(256)[:, None], np.arange(columns // 2)
    return 8 * (number // 4) + 2 * (thread % 4) + number % 2


def _sums(dtype: str) -> tuple[str, str]:
    """The type of sums of products, in C and in numpy."""
    return ("int", "int32") if dtype == "int8" else ("float", "float32")


def _tiles(blocks: int, steps: int, tiles: int, apart: int) -> Array:
    """The tile that a block takes in a step: [blocks, steps]."""
    return (np.arange(blocks)[:, None] * apart + np.arange(steps)) % tiles


def _itemsize(dtype: str) -> int:
    return _stored(dtype).itemsize


def _stored(dtype: str) -> np.dtype[Any]:
    return numpy_dtype(stored_as(dtype))


def machine(small: bool) -> Machine:
    """The GPU here. Raises DeviceError where there is none."""
    gpu = parse_target("cuda").gpu
    assert gpu is not None
    return Machine(gpu, SMALL if small else FULL)
