"""Makes the modules of benchmarks/ importable, and stands in for what they meet on a GPU."""

from __future__ import annotations

import contextlib
import ctypes
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import _kernels  # noqa: E402
from _attention_step import Geometry, step_graph  # noqa: E402


def at(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """The memory there, as an array that shares it."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype).reshape(shape)


class FakeKernels:
    """The C ABI on host memory, written without NumPy's sorting; ``fault`` names a mistake to make."""

    version = "fake"

    def __init__(self, fault: str = "") -> None:
        self.fault = fault

    def workspace(self, batch: int, tokens: int, keep: int) -> int:
        return 16 if tokens > 40 else 0

    def topk_gather(
        self, scores: int, kind: str, features: int, of: str, dims: Any, kept: int, indices: int,
        workspace: tuple[int, int] = (0, 0), stream: int = 0,
    ) -> None:  # fmt: skip
        batch, tokens, width, keep = dims
        assert (workspace != (0, 0)) == (self.workspace(batch, tokens, keep) > 0)
        s = at(scores, (batch, tokens), _kernels.numpy_dtype(kind))
        f = at(features, (batch, tokens, width), _kernels.numpy_dtype(of))
        out, rows = at(indices, (batch, keep), np.int64), at(kept, (batch, keep, width), f.dtype)
        for b in range(batch):
            keys = [float(x) for x in s[b]]
            bad = math.inf if self.fault == "NaN first" else -math.inf
            keys = [bad if math.isnan(x) else x for x in keys]
            later = -1 if self.fault == "ties to the last" else 1
            order = sorted(range(tokens), key=lambda i: (-keys[i], later * i))[:keep]
            for j, i in enumerate(order if self.fault == "by score" else sorted(order)):
                if self.fault == "last row missing" and j == keep - 1:
                    out[b, j] = i
                    continue
                out[b, j], rows[b, j] = i, f[b, i]

    def maxmin_select(
        self, similarity: int, close: int, dims: Any, mode: str, close_out: int, picks: int, stream: int = 0
    ) -> None:
        batch, tokens, steps = dims
        s = at(similarity, (batch, tokens, tokens), np.float32)
        out, chosen = at(close_out, (batch, tokens), np.float32), at(picks, (batch, max(steps, 1)), np.int32)
        out[:] = at(close, (batch, tokens), np.float32)
        for b in range(batch):
            for step in range(steps):
                least = min(out[b])
                ties = [i for i in range(tokens) if out[b, i] == least]
                best = ties[-1] if self.fault == "ties to the last" else ties[0]
                for i in range(tokens):
                    out[b, i] = max(out[b, i], s[b, best, i]) if mode == "maxmin" else out[b, i] + s[b, best, i]
                if self.fault != "picked again":
                    out[b, best] = 3.0e38
                chosen[b, step] = best


class OrtStep:
    """The graph of an attention step in ONNX Runtime; ``fault`` names a mistake to make."""

    def __init__(self, geometry: Geometry, fault: str = "") -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self.session = ort.InferenceSession(step_graph(geometry), options, providers=["CPUExecutionProvider"])
        self.fault = fault

    def fill(self, key: np.ndarray, value: np.ndarray) -> None:
        self.held = [key.copy(), value.copy()]

    def run(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, write_index: int) -> np.ndarray:
        inputs = {"q": q, "k": k, "v": v, "write_index": np.array([write_index])}
        past = dict(zip(("past_key_values.0.key", "past_key_values.0.value"), self.held, strict=True))
        y, *self.held = self.session.run(None, inputs | past)
        if self.fault == "reads unused slots":
            y = y + self.held[1][:, :, -1:].mean() * np.ones(1, y.dtype)
        if self.fault == "writes elsewhere":
            self.held[0][:, :, 0] += 1
        return y

    def cache(self) -> tuple[np.ndarray, np.ndarray]:
        return self.held[0], self.held[1]


class FakeGraph:
    """A CUDA graph of what fake engines are asked for while it is captured."""

    capturing: FakeGraph | None = None

    def __init__(self) -> None:
        self.work: list[Any] = []

    def replay(self) -> None:
        time.sleep(1e-3)
        for call in self.work:
            call()


class FakeEvent:
    """Milliseconds of the CPU's clock."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: FakeEvent) -> float:
        return 1e3 * (other.time - self.time) + 1e-6


class OnCpu(torch.overrides.TorchFunctionMode):
    """Tensors asked for on the GPU are made on the CPU."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args = tuple("cpu" if isinstance(arg, str) and arg == "cuda" else arg for arg in args)
        kwargs = {name: "cpu" if value == "cuda" else value for name, value in (kwargs or {}).items()}
        return function(*args, **kwargs)


@contextlib.contextmanager
def fake_gpu(monkeypatch: Any) -> Iterator[None]:
    """torch.cuda, as much as the scripts use, on the CPU."""

    @contextlib.contextmanager
    def capture(graph: FakeGraph) -> Iterator[None]:
        FakeGraph.capturing = graph
        yield
        FakeGraph.capturing = None

    class Stream:
        cuda_stream = 0

        def wait_stream(self, other: Stream) -> None:
            pass

    for name, value in {
        "Event": FakeEvent, "CUDAGraph": FakeGraph, "graph": capture, "Stream": Stream, "current_stream": Stream,
        "stream": contextlib.nullcontext, "synchronize": lambda: None, "is_available": lambda: True,
        "empty_cache": lambda: None, "get_device_properties": lambda _: SimpleNamespace(L2_cache_size=1 << 16),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    with OnCpu():
        yield


def fake_tensorrt(geometry: Geometry) -> Any:
    """As much of TensorRT as EngineStep uses; a plan is an ONNX model, run by ONNX Runtime on the bound addresses."""

    class Context:
        def __init__(self) -> None:
            self.session = OrtStep(geometry).session
            self.addresses: dict[str, int] = {}
            self.shapes: dict[str, tuple[int, ...]] = {"write_index": (1,)}

        def set_tensor_address(self, name: str, address: int) -> bool:
            self.addresses[name] = address
            return True

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            self.shapes[name] = tuple(shape)
            return True

        def execute_async_v3(self, stream: int) -> bool:
            if FakeGraph.capturing is not None:
                FakeGraph.capturing.work.append(self.execute)
                return True
            return self.execute()

        def execute(self) -> bool:
            dtype = _kernels.numpy_dtype(geometry.dtype)
            cache = (1, geometry.kv_heads, geometry.capacity, geometry.head_dim)
            inputs = {}
            for value in self.session.get_inputs():
                shape = self.shapes.get(value.name, cache)
                kind = np.int64 if value.name == "write_index" else dtype
                inputs[value.name] = at(self.addresses[value.name], shape, kind).copy()
            for value, array in zip(self.session.get_outputs(), self.session.run(None, inputs), strict=True):
                at(self.addresses[value.name], array.shape, array.dtype)[:] = array
            return True

    class Inspector:
        def get_engine_information(self, _: Any) -> str:
            return '{"Layers": [{"Name": "fused_attention"}, "plain"]}'

    engine = SimpleNamespace(create_execution_context=Context, create_engine_inspector=Inspector)
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda plan: engine if plan else None)
    return SimpleNamespace(Runtime=lambda log: runtime, LayerInformationFormat=SimpleNamespace(JSON=0))
