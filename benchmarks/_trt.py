"""Engines of single graphs through TensorRT's Python API and torch's memory; shared by the scripts here."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from _attention_step import Geometry, step_graph
from _kernels import numpy_dtype

LIBRARIES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
Ranges = Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]


def library(backend: str, script: str) -> Any:
    """The module of a backend; if it is missing, one line and exit status 1."""
    try:
        return importlib.import_module(LIBRARIES[backend])
    except ImportError as error:
        sys.exit(f"{script}: --backend {backend} is not installed ({error}); pip install 'trtprune[{backend}]'")


class Builder:
    """Builds graphs without weights for one GPU.

    Args:
        trt: ``tensorrt`` or ``tensorrt_rtx``.
        target: For RTX: ``current`` or a compute capability such as ``sm89``. TensorRT builds for the GPU at hand.
    """

    def __init__(self, trt: Any, target: str = "current") -> None:
        self.trt, self.target, self.said = trt, target.upper(), []
        said = self.said

        class Log(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                    said.append(" ".join(message.split())[:300])

        self.log = Log()

    def build(self, model: bytes, ranges: Ranges) -> tuple[Any, float]:
        """The plan and the seconds it took. Attention is a fused kernel or refused: TensorRT may not take it apart.

        Args:
            model: Serialised ONNX.
            ranges: Smallest, typical and largest shape of each input that has one.

        Raises:
            RuntimeError: with what TensorRT said, if it refuses.
        """
        trt = self.trt
        self.said.clear()
        builder = trt.Builder(self.log)
        typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(1 << int(typed) if typed is not None else 0)
        parser = trt.OnnxParser(network, self.log)
        if not parser.parse(model):
            raise RuntimeError("; ".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if hasattr(trt, "ComputeCapability"):
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(trt.ComputeCapability, self.target), 0)
        profile = builder.create_optimization_profile()
        for name, shapes in ranges.items():
            profile.set_shape(name, *shapes)
        config.add_optimization_profile(profile)
        start = time.perf_counter()
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise RuntimeError(self.said[0] if self.said else "refused without a reason")
        return plan, time.perf_counter() - start

    def build_step(self, geometry: Geometry, longest: int) -> tuple[Any, float]:
        """An engine of one attention step that takes 1 to ``longest`` tokens."""

        def rows(heads: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
            one = (1, heads, 1, geometry.head_dim)
            return one, one, (1, heads, longest, geometry.head_dim)

        ranges = {"q": rows(geometry.heads), "k": rows(geometry.kv_heads), "v": rows(geometry.kv_heads)}
        return self.build(step_graph(geometry), ranges)


class EngineStep:
    """An engine of :func:`step_graph`, its cache bound in place; see ``_attention_step.Step``.

    ``device`` is another than ``cuda`` in tests only.
    """

    def __init__(self, builder: Builder, plan: Any, geometry: Geometry, device: str = "cuda") -> None:
        import torch

        trt = builder.trt
        self._device = device
        self._runtime = trt.Runtime(builder.log)
        self.engine = self._runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            raise RuntimeError(builder.said[0] if builder.said else "the engine does not load")
        self._context = self._make_context(trt)
        self._inspector = self.engine.create_engine_inspector()
        self._format = trt.LayerInformationFormat.JSON
        self._dtype, self._kind = numpy_dtype(geometry.dtype), getattr(torch, geometry.dtype)
        shape = (1, geometry.kv_heads, geometry.capacity, geometry.head_dim)
        self._cache = {name: torch.zeros(shape, dtype=self._kind, device=device) for name in ("key", "value")}
        self._index = torch.zeros(1, dtype=torch.int64, device=device)
        self._held: dict[str, Any] = {}
        for name, tensor in self._cache.items():
            for side in ("past_key_values.0.", "present.0."):
                self._bind(side + name, tensor)
        self._bind("write_index", self._index)

    def _make_context(self, trt: Any) -> Any:
        if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
            return self.engine.create_execution_context()
        config = self.engine.create_runtime_config()
        # Left alone, RTX compiles kernels for a shape in the background while general ones run.
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        return self.engine.create_execution_context(config)

    def aliases(self) -> dict[str, str | None]:
        """Which input each cache output shares its memory with, as the engine has it."""
        if not hasattr(self.engine, "get_aliased_input_tensor"):
            return {}
        names = [f"present.0.{part}" for part in ("key", "value")]
        return {name: self.engine.get_aliased_input_tensor(name) for name in names}

    def _bind(self, name: str, tensor: Any) -> None:
        if not self._context.set_tensor_address(name, tensor.data_ptr()):
            raise RuntimeError(f"{name} was not bound")

    def _upload(self, array: np.ndarray) -> Any:
        import torch

        flat = torch.from_numpy(np.ascontiguousarray(array).reshape(-1).view(np.uint8).copy())
        return flat.to(self._device).view(self._kind).view(array.shape)

    def _download(self, tensor: Any) -> np.ndarray:
        import torch

        return tensor.cpu().contiguous().view(torch.uint8).numpy().view(self._dtype).reshape(tuple(tensor.shape))

    def fill(self, key: np.ndarray, value: np.ndarray) -> None:
        """Sets the whole cache."""
        for name, array in (("key", key), ("value", value)):
            self._cache[name].copy_(self._upload(array))

    def cache(self) -> tuple[np.ndarray, np.ndarray]:
        """The whole cache."""
        return self._download(self._cache["key"]), self._download(self._cache["value"])

    def bind(self, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> Any:
        """Binds new rows; gives the tensor that the answer will be in."""
        import torch

        for name, array in (("q", q), ("k", k), ("v", v)):
            self._held[name] = self._upload(array)
            if not self._context.set_input_shape(name, array.shape):
                raise RuntimeError(f"the engine does not take {name} of shape {array.shape}")
            self._bind(name, self._held[name])
        self._held["y"] = torch.full(q.shape, float("nan"), dtype=self._kind, device=self._device)
        self._bind("y", self._held["y"])
        return self._held["y"]

    def at(self, write_index: int) -> None:
        """Where the next rows are written."""
        self._index.fill_(write_index)

    def enqueue(self) -> None:
        """One step, on torch's current stream."""
        import torch

        stream = torch.cuda.current_stream().cuda_stream if self._device == "cuda" else 0
        if not self._context.execute_async_v3(stream):
            raise RuntimeError("the engine did not run")

    def run(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, write_index: int) -> np.ndarray:
        """One step; reading the answer waits for it."""
        y = self.bind(q, k, v)
        self.at(write_index)
        self.enqueue()
        return self._download(y)

    def layers(self) -> list[str]:
        """What the engine says its layers are."""
        import json

        try:
            text = self._inspector.get_engine_information(self._format)
            found = json.loads(text).get("Layers", [])
        except (ValueError, AttributeError):
            return []
        return [str(layer.get("Name", layer) if isinstance(layer, dict) else layer)[:160] for layer in found]
