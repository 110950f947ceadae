"""The ONNX Runtime backend: bindings, the cache in place, providers that are missing."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from trtprune.backends.binding import bind_dims, cache_pairs, numpy_dtype, resolve_shape
from trtprune.backends.onnxruntime import OrtBackend, OrtSession, available_threads, importing, threads
from trtprune.backends.onnxruntime import cache as ort_cache
from trtprune.engine_dir import ComponentInfo, TensorSpec
from trtprune.errors import BackendError, EngineDirError

HEADS, DIM = 2, 16
SHAPE = ("batch", HEADS, "capacity", DIM)


def spec(name: str, dtype: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name, dtype, shape)


INPUTS = (
    spec("update", "float32", "batch", HEADS, "sequence", DIM),
    spec("write_index", "int64", "batch"),
    spec("past_key_values.0.key", "float32", *SHAPE),
)
OUTPUTS = (spec("row_sum", "float32", "batch"), spec("present.0.key", "float32", *SHAPE))


def write_graph(path: Path, dtype: int = TensorProto.FLOAT) -> Path:
    """A cache update and a look at one of its rows: nothing here costs time but a copy of the cache."""

    def value(s: TensorSpec) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(s.name, {"float32": dtype, "int64": 7}[s.dtype], s.shape)

    nodes = [
        helper.make_node(
            "TensorScatter", ["past_key_values.0.key", "update", "write_index"], ["present.0.key"], axis=2
        ),
        helper.make_node("Slice", ["present.0.key", "zero", "one", "axis"], ["row"]),
        helper.make_node("ReduceSum", ["row", "axes"], ["row_sum"], keepdims=0),
    ]
    constants = [
        helper.make_tensor(name, TensorProto.INT64, [len(values)], values)
        for name, values in {"zero": [0], "one": [1], "axis": [2], "axes": [1, 2, 3]}.items()
    ]
    graph = helper.make_graph(nodes, "g", [value(s) for s in INPUTS], [value(s) for s in OUTPUTS], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10), path)
    return path


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> OrtSession:
    path = write_graph(tmp_path_factory.mktemp("ort") / "cache.onnx")
    return OrtBackend(threads=1).open(path, INPUTS, OUTPUTS)


# -- pure functions


def test_pairs() -> None:
    (pair,) = cache_pairs(INPUTS, OUTPUTS)
    assert (pair.past, pair.present, pair.spec) == ("past_key_values.0.key", "present.0.key", INPUTS[2])
    for outputs in (OUTPUTS[:1], (*OUTPUTS, spec("present.1.key", "float32", *SHAPE))):
        with pytest.raises(BackendError):
            cache_pairs(INPUTS, outputs)
    with pytest.raises(BackendError):
        cache_pairs(INPUTS, (spec("present.0.key", "float16", *SHAPE),))


def test_dims() -> None:
    dims = bind_dims(INPUTS[:2], {"update": (3, 2, 5, 16), "write_index": (3,)})
    assert dims == {"batch": 3, "sequence": 5}
    assert resolve_shape(OUTPUTS[0], dims) == (3,)
    assert resolve_shape(OUTPUTS[1], dims) is None
    for shapes, message in (
        ({"update": (3, 2, 5, 16)}, "missing"),
        ({"update": (3, 2, 5, 16), "write_index": (4,)}, "write_index has shape"),
        ({"update": (3, 2, 5, 17), "write_index": (3,)}, "update has shape"),
        ({"update": (3, 2, 16), "write_index": (3,)}, "update has shape"),
        ({"update": (3, 2, 5, 16), "write_index": (3,), "more": (1,)}, "no input more"),
    ):
        with pytest.raises(BackendError, match=message):
            bind_dims(INPUTS[:2], shapes)
    with pytest.raises(BackendError, match="int64"):
        bind_dims(INPUTS[1:2], {"write_index": (3,)}, {"write_index": "int32"})
    assert numpy_dtype("bfloat16").itemsize == 2


# -- the cache


def test_updates_happen_in_place(session: OrtSession) -> None:
    """The bound memory itself changes, and only the rows that were written."""
    cache = session.new_cache(2, 32)
    memory = cache.values["past_key_values.0.key"].numpy()
    pointer = cache.values["past_key_values.0.key"].data_ptr()
    update = np.ones((2, HEADS, 3, DIM), np.float32)
    out = session.run({"update": update, "write_index": np.array([0, 10])}, cache)
    assert set(out) == {"row_sum"}
    found = cache.values["past_key_values.0.key"].numpy()
    assert cache.values["past_key_values.0.key"].data_ptr() == pointer
    expected = np.zeros((2, HEADS, 32, DIM), np.float32)
    expected[0, :, 0:3] = expected[1, :, 10:13] = 1
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(out["row_sum"], [HEADS * DIM, 0])
    assert memory.shape == found.shape


def test_nothing_is_copied(session: OrtSession) -> None:
    """A step takes as long on a cache of 128 MB as on one of 64 kB; a copy of the former takes tens of ms."""
    update, index = np.ones((1, HEADS, 1, DIM), np.float32), np.array([5])

    def step(capacity: int) -> float:
        cache = session.new_cache(1, capacity)
        times = []
        for _ in range(12):
            start = time.perf_counter()
            session.run({"update": update, "write_index": index}, cache)
            times.append(time.perf_counter() - start)
        return min(times)

    small, large = step(512), step(1 << 20)
    start = time.perf_counter()
    np.zeros(1 << 25, np.float32).copy()
    copy = time.perf_counter() - start
    assert large < max(10 * small, copy / 4), (small, large, copy)


def test_memory_is_reused_and_zeroed(session: OrtSession) -> None:
    first = session.new_cache(2, 64)
    session.run({"update": np.full((2, HEADS, 9, DIM), np.nan, np.float32), "write_index": np.array([0, 9])}, first)
    second = session.new_cache(1, 48, reuse=first)
    assert second.slab is first.slab
    assert not second.values["past_key_values.0.key"].numpy().any()
    assert second.nbytes == HEADS * 48 * DIM * 4
    assert session.new_cache(4, 64, reuse=second).slab is not first.slab
    # One long request does not keep its memory for good.
    assert session.new_cache(1, 16, reuse=session.new_cache(1, 4096)).slab.nbytes == HEADS * 16 * DIM * 4


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_buffers_of_a_device(session: OrtSession, dtype: str) -> None:
    """The way a device's memory is made, zeroed and read, with the CPU in the device's place."""
    pairs = cache_pairs((spec("past_key_values.0.key", dtype, *SHAPE),), (spec("present.0.key", dtype, *SHAPE),))
    made = ort_cache._on_device(session._ort, {"x": (2, 3)}, {"x": numpy_dtype(dtype)}, ("cpu", 0))
    cache = ort_cache.OrtCache(session._ort, made, {"x": numpy_dtype(dtype)}, 1, 1, 12)
    values = np.arange(6).reshape(2, 3).astype(numpy_dtype(dtype))
    cache.values["x"].update_inplace(ort_cache.to_value(session._ort, values))
    np.testing.assert_array_equal(cache.read("x"), values)
    cache.zero()
    assert not cache.read("x").any()
    assert ort_cache.new_cache(session._ort, pairs, 2, 8).read("past_key_values.0.key").dtype.name == dtype


def test_growing(session: OrtSession) -> None:
    cache = session.new_cache(2, 16)
    update = np.random.default_rng(0).normal(size=(2, HEADS, 16, DIM)).astype(np.float32)
    session.run({"update": update, "write_index": np.array([0, 0])}, cache)
    grown = session.grow_cache(cache, 40)
    found = grown.values["past_key_values.0.key"].numpy()
    np.testing.assert_array_equal(found[:, :, :16], update)
    assert not found[:, :, 16:].any()


def test_a_cache_beyond_memory(session: OrtSession) -> None:
    with pytest.raises(BackendError, match="no memory"):
        session.new_cache(1 << 20, 1 << 30)


# -- what does not work


def test_bad_inputs(session: OrtSession) -> None:
    cache = session.new_cache(1, 8)
    update = np.ones((1, HEADS, 1, DIM), np.float32)
    with pytest.raises(BackendError, match="float64"):
        session.run({"update": update.astype(np.float64), "write_index": np.array([0])}, cache)
    with pytest.raises(BackendError, match="ONNX Runtime"):
        session.run({"update": update, "write_index": np.array([8])}, cache)


def test_a_broken_graph(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(b"no graph")
    with pytest.raises(BackendError, match=r"x\.onnx"):
        OrtBackend().open(path, (), ())
    with pytest.raises(EngineDirError, match=r"y\.onnx"):
        OrtBackend().open(tmp_path / "y.onnx", (), ())
    good = write_graph(tmp_path / "z.onnx")
    with pytest.raises(EngineDirError, match="inputs or outputs"):
        OrtBackend().open(good, INPUTS, OUTPUTS[1:])


def test_nothing_noisy_on_stderr(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(b"no graph")
    code = (
        "import sys; from pathlib import Path; from trtprune.backends.onnxruntime import OrtBackend\n"
        f"p = Path({str(path)!r})\n"
        "try: OrtBackend().open(p, (), ())\n"
        "except Exception as e: print(type(e).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "BackendError\n"
    assert done.stderr == ""


def test_no_telemetry(tmp_path: Path) -> None:
    """Left to itself, importing ONNX Runtime leaves an identifier in the home directory; who wants that can have it."""
    code = "import os, trtprune.backends.onnxruntime as o; o.OrtBackend(); print(os.environ['ORT_DISABLE_TELEMETRY'])"
    for said in ({}, {"ORT_DISABLE_TELEMETRY": "0"}):
        environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], **said}
        command = [sys.executable, "-c", code]
        root = Path(__file__).parents[2]
        done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == said.get("ORT_DISABLE_TELEMETRY", "1")
        assert said or not list(tmp_path.iterdir())


def test_bfloat16_on_a_cpu(tmp_path: Path) -> None:
    component = ComponentInfo("decoder", "decoder", None, "z.onnx", None, INPUTS, OUTPUTS, (), "bfloat16")
    with pytest.raises(BackendError, match="no kernels") as caught:
        OrtBackend().session(component, tmp_path)
    assert "dtype='float32'" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"provider": "tpu"}, "provider='tpu'"),
        ({"threads": 0}, "threads=0"),
        ({"options": {"speed": "high"}}, "provider_options speed"),
        ({"provider": "cuda"}, "no CUDA provider"),
    ],
)
def test_refused_settings(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        OrtBackend(**arguments)


def wheels(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    def version(name: str) -> str:
        if name not in names:
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(importing.importlib.metadata, "version", version)


def test_two_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    wheels(monkeypatch, "onnxruntime", "onnxruntime-gpu")
    with pytest.raises(BackendError, match="both installed") as caught:
        OrtBackend("cpu")
    assert "uninstall -y onnxruntime-gpu" in str(caught.value)
    with pytest.raises(BackendError, match="both installed") as caught:
        OrtBackend("cuda")
    assert "uninstall -y onnxruntime " in str(caught.value)


@pytest.mark.parametrize(("provider", "extra"), [("cpu", "cpu"), ("cuda", "cuda")])
def test_no_wheel(monkeypatch: pytest.MonkeyPatch, provider: str, extra: str) -> None:
    wheels(monkeypatch)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match="not installed") as caught:
        OrtBackend(provider)
    assert f"pip install 'trtprune[{extra}]'" in str(caught.value)
    wheels(monkeypatch, "onnxruntime")
    with pytest.raises(BackendError, match="does not load"):
        OrtBackend(provider)


class FakeOrt:
    """An onnxruntime whose CUDA provider is listed but falls away when a session is made."""

    __version__ = "1.31.1"

    class SessionOptions:
        def add_session_config_entry(self, *_: str) -> None:
            pass

    class InferenceSession:
        def __init__(self, *_: Any, **settings: Any) -> None:
            self.providers = settings["providers"]

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    @staticmethod
    def get_available_providers() -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    @staticmethod
    def preload_dlls() -> None:
        print("Failed to load libcudnn.so.9")


def test_cuda_that_does_not_load_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: Any
) -> None:
    wheels(monkeypatch, "onnxruntime-gpu")
    monkeypatch.setitem(sys.modules, "onnxruntime", FakeOrt)
    with caplog.at_level("DEBUG", "trtprune"):
        backend = OrtBackend("cuda")
    assert capsys.readouterr().out == ""  # stdout is for results
    assert "libcudnn" in caplog.text
    with pytest.raises(BackendError, match="CUDA provider did not load"):
        backend.open(write_graph(tmp_path / "z.onnx"), INPUTS, OUTPUTS)


def test_an_old_onnxruntime_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """1.24 lacks TensorScatter; its own message names a node."""
    wheels(monkeypatch, "onnxruntime-gpu")
    monkeypatch.setitem(sys.modules, "onnxruntime", type("Old", (FakeOrt,), {"__version__": "1.24.4"}))
    with pytest.raises(
        BackendError, match=r"onnxruntime 1\.24\.4 is too old for the graphs, which need 1\.25"
    ) as caught:
        OrtBackend("cpu")
    assert caught.value.hint == "pip install -U 'onnxruntime-gpu>=1.25'"


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for quotas, expected in (([], 8), ([(150_000, 100_000)], 2), ([(-1, 100_000)], 8), ([(10, 100_000)], 1)):
        monkeypatch.setattr(threads, "_quotas", lambda quotas=quotas: quotas)
        assert available_threads() == expected
