"""OpenVINO's own runtime, without ONNX Runtime: a peer for ``bench``, on any processor it runs on.

It reads graphs built for ``openvino`` (primitive operators, opset 20).  The KV cache becomes state inside a request,
OpenVINO's way of leaving it where it is between steps, so every cache has a request of its own.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trtprune.backends.binding import CachePair, bind_dims, cache_pairs, numpy_dtype, resolve_shape
from trtprune.backends.host import HostMemory, HostStep
from trtprune.backends.ort_threads import available_threads
from trtprune.errors import BackendError, EngineDirError

if TYPE_CHECKING:
    from trtprune.backends.base import Memory
    from trtprune.engine_dir import ComponentInfo, TensorSpec

__all__ = ["HINTS", "OpenVinoBackend", "OpenVinoCache", "OpenVinoSession"]

HINTS = {"float32": "f32", "bf16": "bf16"}
"""Precision → what OpenVINO calls it.  Its own default depends on the processor."""


class OpenVinoBackend:
    """Opens graphs in OpenVINO, on the CPU.

    Args:
        precision: Of products: ``float32``, or ``bf16`` (products of bfloat16, no longer equal to float32).
        threads: None takes what the container allows.

    Raises:
        BackendError: if OpenVINO is missing, does not load or has no such precision.
    """

    def __init__(self, precision: str = "float32", threads: int | None = None) -> None:
        if precision not in HINTS:
            raise BackendError(f"precision {precision}: unknown", hint=" or ".join(HINTS))
        try:
            import openvino
        except ImportError as error:
            raise BackendError(f"OpenVINO: {_reason(error)}", hint="pip install 'trtprune[openvino]'") from None
        self.name = "openvino"
        self.memory: Memory = HostMemory()
        self.threads = threads if threads is not None else available_threads()
        self._openvino, self._core = openvino, openvino.Core()
        self._hint = HINTS[precision]

    def session(self, component: ComponentInfo, root: Path) -> OpenVinoSession:
        """Opens a component of an engine directory.

        Raises:
            BackendError: if OpenVINO cannot run the graph.
            EngineDirError: if the graph cannot be read, or its inputs are not those of config.json.
        """
        path = root / component.onnx
        pairs = cache_pairs(component.inputs, component.outputs)
        try:
            graph = path.read_bytes()
        except OSError as error:
            raise EngineDirError(f"{path}: cannot be read: {error}", hint="build it again") from None
        properties = {
            "INFERENCE_PRECISION_HINT": self._hint,
            "INFERENCE_NUM_THREADS": self.threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        try:
            with _inside(root):
                model = self._core.read_model(graph)
            have = {port.get_any_name() for port in (*model.inputs, *model.outputs)}
            if have != {spec.name for spec in (*component.inputs, *component.outputs)}:
                raise EngineDirError(
                    f"{path}: the graph's inputs or outputs are not those of config.json", hint="build it again"
                )
            if pairs:
                from openvino.passes import MakeStateful, Manager

                manager = Manager()
                manager.register_pass(MakeStateful({pair.past: pair.present for pair in pairs}))
                manager.run_passes(model)
            compiled = self._core.compile_model(model, "CPU", properties)
        except RuntimeError as error:
            raise BackendError(f"{path}: OpenVINO cannot open it: {_reason(error)}") from None
        return OpenVinoSession(self._openvino, compiled, pairs, component.inputs, component.outputs)

    def step(self, embed: OpenVinoSession, decoder: OpenVinoSession, cache: OpenVinoCache) -> HostStep:
        """The decode step over one cache."""
        return HostStep(embed, decoder, cache)


class OpenVinoCache:
    """A request whose states are the KV buffers: input name → [batch, heads, capacity, head_dim]."""

    def __init__(self, openvino: Any, request: Any, pairs: tuple[CachePair, ...], batch: int, capacity: int) -> None:
        self._openvino, self.request = openvino, request
        self.batch, self.capacity = batch, capacity
        # A state's name is that of its input and that of its output.
        states = {state.name: state for state in request.query_state()}
        self._states = {pair.past: states[pair.past + pair.present] for pair in pairs}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._kinds = {pair.past: numpy_dtype(pair.spec.dtype) for pair in pairs}
        self.nbytes = 0
        for pair in pairs:
            shape = resolve_shape(pair.spec, {"batch": batch, "capacity": capacity})
            if shape is None:
                raise BackendError(f"{pair.past}: shape {list(pair.spec.shape)} has unknown dimensions")
            self._shapes[pair.past] = shape
            self.nbytes += math.prod(shape) * self._kinds[pair.past].itemsize
        self.zero()

    def zero(self) -> None:
        """Sets every byte to 0."""
        for name in self._states:
            self.write(name, np.zeros(self._shapes[name], self._kinds[name]))

    def read(self, name: str) -> np.ndarray:
        """A copy of one buffer."""
        return np.array(self._states[name].state.data)

    def write(self, name: str, array: np.ndarray) -> None:
        """Replaces one buffer."""
        self._states[name].state = self._openvino.Tensor(array)


class OpenVinoSession:
    """One compiled graph; see :class:`trtprune.backends.base.Session`."""

    max_batch = sys.maxsize

    def __init__(
        self,
        openvino: Any,
        compiled: Any,
        pairs: tuple[CachePair, ...],
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
    ) -> None:
        self._openvino, self._compiled, self.pairs = openvino, compiled, pairs
        bound = {name for pair in pairs for name in (pair.past, pair.present)}
        self.inputs = tuple(spec for spec in inputs if spec.name not in bound)
        self.outputs = tuple(spec for spec in outputs if spec.name not in bound)
        self._request = None if pairs else compiled.create_infer_request()

    def run(self, inputs: Mapping[str, np.ndarray], cache: OpenVinoCache | None = None) -> dict[str, np.ndarray]:
        """Runs the graph; arrays must have the graph's dtypes.

        Raises:
            BackendError: for an input that does not fit, or a failure inside OpenVINO.
        """
        shapes = {name: array.shape for name, array in inputs.items()}
        bind_dims(self.inputs, shapes, {name: array.dtype.name for name, array in inputs.items()})
        request = self._request if cache is None else cache.request
        if request is None:
            raise BackendError("a graph with a KV cache was run without one")
        held = [np.ascontiguousarray(array) for array in inputs.values()]  # shared, so alive until the run is over
        try:
            for name, array in zip(inputs, held, strict=True):
                request.set_tensor(name, self._openvino.Tensor(array, shared_memory=True))
            request.infer()
            # The request writes its next results into the same memory.
            return {spec.name: np.array(request.get_tensor(spec.name).data) for spec in self.outputs}
        except RuntimeError as error:
            raise BackendError(f"OpenVINO: {_reason(error)}") from None

    def new_cache(self, batch: int, capacity: int, reuse: OpenVinoCache | None = None) -> OpenVinoCache:
        """Zeroed buffers for ``batch`` rows of ``capacity`` tokens each; ``reuse`` lends its request."""
        request = reuse.request if reuse is not None else self._compiled.create_infer_request()
        return OpenVinoCache(self._openvino, request, self.pairs, batch, capacity)

    def grow_cache(self, cache: OpenVinoCache, capacity: int) -> OpenVinoCache:
        """A larger cache that begins with the content of ``cache``, whose request it takes over."""
        content = {pair.past: cache.read(pair.past) for pair in self.pairs}
        grown = self.new_cache(cache.batch, capacity, reuse=cache)
        for name, old in content.items():
            new = grown.read(name)
            new[:, :, : cache.capacity] = old
            grown.write(name, new)
        return grown


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Works in a folder: of a graph in memory, OpenVINO looks for weights there, and nowhere outside of it."""
    before = os.open(".", os.O_RDONLY)
    try:
        os.chdir(folder)
        yield
    finally:
        os.fchdir(before)
        os.close(before)


def _reason(error: BaseException) -> str:
    """OpenVINO's messages begin with where in its sources they arise, and end with why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
