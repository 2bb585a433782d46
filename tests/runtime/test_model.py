"""Loaded models: arrays in and out, contexts, threads, damaged files."""

from __future__ import annotations

import _ctypes
import pickle
import random
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import chain, diamond

from tcomp.codegen.artifact import compile_graph
from tcomp.errors import ArtifactError, InputError, UsageError
from tcomp.relay.evaluate import evaluate
from tcomp.runtime import Model, load
from tcomp.runtime.stamp import ABI_VERSION, MAGIC
from tcomp.target.host import host_target

X = np.random.default_rng(0).standard_normal((4, 32), np.float32)
EXPECTED = evaluate(chain(), [X])


def misplaced(shape: tuple[int, int]) -> np.ndarray:
    """An array of float32 whose address is odd."""
    return np.zeros(4 * shape[0] * shape[1] + 1, np.uint8)[1:].view(np.float32).reshape(shape)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chain") / "chain.so"
    compile_graph(chain(), host_target(), path)
    return path


@pytest.fixture(scope="module")
def model(path: Path) -> Model:
    return load(path, threads=1)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose kernels are large enough to be parallel."""
    path = tmp_path_factory.mktemp("wide") / "wide.so"
    compile_graph(diamond(1 << 20), host_target(), path)
    return path


def test_describes_itself(model: Model):
    assert [(t.name, t.shape, t.dtype) for t in model.inputs] == [("x", (4, 32), "float32")]
    assert [t.shape for t in model.outputs] == [(8, 16), (8, 16), (4, 32), (4, 32)]
    assert repr(model).startswith("Model(chain, x: float32[4,32] -> ")
    assert model.threads == 1


@pytest.mark.parametrize("how", ["position", "name", "dlpack"])
def test_takes_arrays(model: Model, how: str):
    class Foreign:
        def __dlpack__(self, **options: object) -> object:
            return X.__dlpack__()

        def __dlpack_device__(self) -> tuple[int, int]:
            return (1, 0)

    found = model(x=X) if how == "name" else model(X if how == "position" else Foreign())
    for actual, expected in zip(found, EXPECTED, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_runs_into_arrays(model: Model):
    outputs = [np.full(t.shape, np.nan, np.float32) for t in model.outputs]
    model.run_into([X], outputs)
    np.testing.assert_allclose(outputs[0], EXPECTED[0], rtol=1e-5)
    frozen = np.empty((8, 16), np.float32)
    frozen.flags.writeable = False
    with pytest.raises(InputError, match=r"output 1 .* is a read-only array"):
        model.run_into([X], [outputs[0], frozen, *outputs[2:]])
    with pytest.raises(InputError, match="has 4 outputs; 1 arrays given"):
        model.run_into([X], outputs[:1])
    for other, message in (
        ([0.0], "output 0 .* is a list; it must be a numpy array"),
        (misplaced((8, 16)), "output 0 .* is at an address that is no multiple of 4"),
        (np.empty((8, 16), ">f4"), r"output 0 .* is >f4\[8,16\]; it must be float32"),
    ):
        with pytest.raises(InputError, match=message):
            model.run_into([X], [other, *outputs[1:]])


@pytest.mark.parametrize(
    ("arrays", "named", "message"),
    [
        ([], {}, r"takes 1 inputs \(x: float32\[4,32\]\), 0 given"),
        ([X, X], {}, "takes 1 inputs .* 2 given"),
        ([X], {"x": X}, "input `x` is given twice"),
        ([], {"y": X}, "input `y` is unknown; inputs are x"),
        ([X.T], {}, r"input 0 `x` has shape float32\[32,4\]; it must be float32\[4,32\]"),
        ([X.astype(np.float64)], {}, r"is float64\[4,32\]; .* \.astype"),
        ([np.asfortranarray(X)], {}, "is not contiguous .* use numpy.ascontiguousarray"),
        ([misplaced(X.shape)], {}, "is at an address that is no multiple of 4; copy it"),
        ([X.astype(">f4")], {}, r"is >f4\[4,32\]; .* \.astype"),
        ([X.tolist()], {}, "input 0 `x` is a list; it must be an array"),
    ],
)
def test_refuses_other_arrays(model: Model, arrays: list[object], named: dict[str, object], message: str):
    with pytest.raises(InputError, match=message):
        model(*arrays, **named)


def test_times_and_profiles(model: Model):
    assert len(model.time(X, number=3, repeat=4)) == 4
    profile = model.profile(X, number=3)
    assert [step.label for step in profile][:2] == ["add", "relu"]
    assert all(step.seconds > 0 for step in profile)


@pytest.mark.parametrize("number", [-1, 2.5, "a", 2**32])
def test_numbers_that_make_no_sense(path: Path, model: Model, number: Any):
    uses = [
        lambda: model.time(X, number=number),
        lambda: model.time(X, repeat=number),
        lambda: model.profile(X, number=number),
        lambda: load(path, threads=number),
        lambda: model.profile(X, number=0),
    ]
    for use in uses:
        with pytest.raises(UsageError, match="is no whole number"):
            use()


def test_weights_of_a_library_that_has_them(path: Path):
    with pytest.raises(UsageError, match="embeds its weights"):
        load(path, weights="other.weights")


def test_a_pickled_model_is_loaded_again(path: Path):
    model = load(path, threads=2)
    stored = pickle.dumps(model)
    model.close()
    copied = pickle.loads(stored)
    assert copied.threads == 2
    np.testing.assert_array_equal(copied(X)[0], load(path)(X)[0])


def test_a_closed_model_is_refused(path: Path):
    with load(path, threads=1) as model:
        model(X)
    with pytest.raises(UsageError, match="model `chain` is closed"):
        model(X)


def test_threads_give_the_same_bits(wide: Path):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 1 << 20), np.float32)
    model = load(wide, threads=1)
    (single,) = model(x, y)
    np.testing.assert_allclose(single, np.maximum(x + 1, 0) * np.maximum(y + 1, 0), rtol=1e-6)
    for threads in (2, 3, 5):
        model.threads = threads
        assert model.threads == threads
        for _ in range(20):
            assert (model(x, y)[0] == single).all()
    with pytest.raises(UsageError, match="threads=-1"):
        model.threads = -1


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="this kernel has no huge pages"
)
def test_a_large_arena_asks_for_huge_pages(wide: Path):
    # In a process of its own: this one's memory may have asked before.
    program = """
import sys
from pathlib import Path
from tcomp.runtime import load

def advised():
    maps = Path("/proc/self/smaps").read_text().split("VmFlags:")
    sizes = [int(text.split("\\nSize:")[1].split()[0]) for text in maps if "\\nSize:" in text]
    return 1024 * sum(kib for kib, flags in zip(sizes, maps[1:]) if "hg" in flags.splitlines()[0])

before = advised()
with load(sys.argv[1], threads=1) as model:
    sys.exit(advised() - before < model.arena_bytes)
"""
    subprocess.run([sys.executable, "-c", program, str(wide)], check=True)


def test_contexts_run_at_once(wide: Path):
    model = load(wide, threads=2)
    models = [model, model, model.new_context(threads=2), load(wide, threads=1)]
    failures: list[int] = []

    def work(index: int) -> None:
        rng = np.random.default_rng(index)
        for _ in range(10):
            x, y = rng.standard_normal((2, 1 << 20), np.float32)
            (found,) = models[index](x, y)
            if not np.allclose(found, np.maximum(x + 1, 0) * np.maximum(y + 1, 0)):
                failures.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(models))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_forked_child_runs_too(wide: Path, tmp_path: Path):
    program = (
        "import os, sys, numpy as np\nfrom tcomp.runtime import load\n"
        f"model = load({str(wide)!r}, threads=2)\nx = np.ones(1 << 20, np.float32)\nmodel(x, x)\n"
        "child = os.fork()\nok = bool((model(x, x)[0] == 4).all())\n"
        "if child == 0: os._exit(0 if ok else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or not ok)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0


def test_separate_weights(tmp_path: Path):
    path = tmp_path / "chain.so"
    compile_graph(chain(), host_target(), path, weights="separate")
    moved = tmp_path / "other.bin"
    shutil.move(tmp_path / "chain.weights", moved)
    with pytest.raises(ArtifactError, match=r"cannot open weights .*chain.weights: No such file"):
        load(path)
    np.testing.assert_allclose(load(path, 1, moved)(X)[0], EXPECTED[0], rtol=1e-5)
    content = bytearray(moved.read_bytes())
    content[100] ^= 1
    moved.write_bytes(content)
    with pytest.raises(ArtifactError, match="are not those of this model"):
        load(path, weights=moved)
    moved.write_bytes(content[:-1])
    with pytest.raises(ArtifactError, match="have 511 bytes; this model's have 512"):
        load(path, weights=moved)


def test_contexts_share_separate_weights(tmp_path: Path):
    """One mapping of the file, for as long as one of them needs it; the file may be gone."""
    compile_graph(chain(), host_target(), tmp_path / "chain.so", weights="separate")
    one = load(tmp_path / "chain.so", threads=1)
    (tmp_path / "chain.weights").unlink()
    two = one.new_context(threads=1)
    one.close()
    with pytest.raises(UsageError, match="model `chain` is closed"):
        one.new_context()
    three = two.new_context(threads=1)
    two.close()
    np.testing.assert_allclose(three(X)[0], EXPECTED[0], rtol=1e-5)


def test_damaged_files_are_refused(path: Path, tmp_path: Path):
    good = path.read_bytes()
    rng = random.Random(0)
    damaged = tmp_path / "damaged.so"
    cases = [b"", b"\x7fELF", rng.randbytes(5000), good[:64] + rng.randbytes(5000)]
    cases += [good[: rng.randrange(len(good))] for _ in range(40)]
    for _ in range(100):
        content = bytearray(good)
        content[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
        cases.append(bytes(content))
    for content in cases:
        damaged.write_bytes(content)
        with pytest.raises(ArtifactError) as caught:
            load(damaged)
        assert "\n" not in str(caught.value)


def test_other_files_are_refused(path: Path, tmp_path: Path):
    with pytest.raises(ArtifactError, match="No such file"):
        load(tmp_path / "missing.so")
    with pytest.raises(ArtifactError, match="a shared library but no tcomp artifact"):
        load(_ctypes.__file__)
    other = bytearray(path.read_bytes())
    at = other.index(MAGIC) + len(MAGIC)
    other[at : at + 4] = (ABI_VERSION + 7).to_bytes(4, "little")
    (tmp_path / "other.so").write_bytes(other)
    with pytest.raises(ArtifactError, match=rf"has ABI version {ABI_VERSION + 7}, this runtime reads"):
        load(tmp_path / "other.so")


def test_a_cpu_without_the_features_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tcomp.codegen.c_abi.needed_features", lambda *_: ["avx2", "no-such-feature"])
    compile_graph(chain(), host_target(), tmp_path / "chain.so")
    with pytest.raises(ArtifactError, match="this CPU has no no-such-feature"):
        load(tmp_path / "chain.so")


def test_imports_are_light():
    program = (
        "import sys, tcomp.runtime\n"
        "heavy = {'tvm', 'onnx', 'xgboost', 'tcomp.relay', 'tcomp.tvm_api'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
