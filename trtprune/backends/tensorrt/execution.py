"""An engine's execution contexts: shapes and addresses in, work on the stream out.

Contexts have no memory of their own for activations.  Engines run one after another, so one workspace of the largest
size among them serves all.
"""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trtprune.backends.tensorrt.flavour import get_log, one_line
from trtprune.backends.tensorrt.memory import ALIGNMENT, DeviceArray, DeviceMemory
from trtprune.errors import BackendError

__all__ = ["Binding", "Context", "Engine", "Workspace"]

logger = logging.getLogger("trtprune")

Binding = tuple[int, tuple[int, ...]]
"""Address and shape of a tensor; the address is on the host if the tensor's values decide shapes."""


class Workspace:
    """Device memory for activations, shared by contexts that never run at the same time."""

    def __init__(self, memory: DeviceMemory) -> None:
        self._memory = memory
        self._array: DeviceArray | None = None
        self.nbytes = ALIGNMENT
        self.generation = 0

    def reserve(self, nbytes: int) -> None:
        """Provides at least ``nbytes`` for a context."""
        if nbytes > self.nbytes:
            self.nbytes = nbytes
            self._array = None
            self.generation += 1  # contexts with the old address must not run any more

    @property
    def address(self) -> int:
        """Address of the memory, which is allocated at the first access."""
        if self._array is None:
            self._array = self._memory.empty((self.nbytes,), "uint8")
        return self._array.address


class Engine:
    """A loaded engine.

    Args:
        trt: The library's Python module.
        engine: ``ICudaEngine``.
        name: Name of the component, for messages.
        memory: The device's memory.
        workspace: The workspace of all engines.
        rtx: The configuration of TensorRT for RTX, its kernel cache; None for TensorRT.
    """

    def __init__(
        self, trt: Any, engine: Any, name: str, memory: DeviceMemory, workspace: Workspace, rtx: RtxSettings | None
    ) -> None:
        self.trt = trt
        self.engine = engine
        self.name = name
        self.memory = memory
        self.workspace = workspace
        self.log = get_log(trt)
        self._rtx = rtx
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        modes = {n: engine.get_tensor_mode(n) for n in names}
        self.inputs = frozenset(n for n in names if modes[n] == trt.TensorIOMode.INPUT)
        self.outputs = frozenset(n for n in names if modes[n] == trt.TensorIOMode.OUTPUT)
        # Their values decide shapes, so TensorRT reads them before any kernel runs.
        self.on_host = frozenset(n for n in self.inputs if engine.get_tensor_location(n) == trt.TensorLocation.HOST)
        self.profiles: int = engine.num_optimization_profiles
        for profile in range(self.profiles):
            workspace.reserve(engine.get_device_memory_size_for_profile_v2(profile))

    def aliased_input(self, output: str) -> str | None:
        """The input whose memory an output shares, where TensorRT reports it."""
        ask = getattr(self.engine, "get_aliased_input_tensor", None)
        return (ask(output) or None) if ask is not None else None

    def context(self, profile: int, *, graphs: bool = False) -> Context:
        """A context for one profile; ``graphs`` lets TensorRT for RTX record its own CUDA graphs.

        Raises:
            BackendError: if TensorRT does not create one.
        """
        self.memory.driver.enter()
        with self.log.recording() as record:
            strategy = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
            if self._rtx is None:
                made = self.engine.create_execution_context(strategy)
            else:
                made = self.engine.create_execution_context(self._rtx.configure(self.engine, strategy, graphs))
            done = made is not None and (
                profile == 0 or made.set_optimization_profile_async(profile, self.memory.driver.stream)
            )
        if not done:
            raise BackendError(f"{self.name}: no execution context: {record.why()}", hint="trtprune doctor")
        return Context(self, made)


class RtxSettings:
    """Settings of TensorRT for RTX, which compiles kernels at run time.

    Args:
        trt: The library's Python module.
        path: A file that keeps compiled kernels for the next process; None keeps them in memory only.  TensorRT
            refuses a file of another library, driver or GPU, and it is written again.
    """

    def __init__(self, trt: Any, path: Path | None = None) -> None:
        self._trt = trt
        self._path = path
        self._cache: Any = None

    def configure(self, engine: Any, strategy: Any, graphs: bool) -> Any:
        """A runtime configuration for one context of ``engine``; all share the kernels."""
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            self._load()
        config.set_runtime_cache(self._cache)
        if graphs:
            # Our own recording would keep the kernels of the first steps, which are not specialised.
            config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return config

    def _load(self) -> None:
        if self._path is None:
            return
        try:
            if self._path.exists() and not self._cache.deserialize(self._path.read_bytes()):
                logger.info("%s: kernels of another GPU, driver or library; they are compiled again", self._path)
        except OSError as error:
            raise BackendError(f"--provider-option runtime_cache={self._path}: {error.strerror or error}") from None
        atexit.register(_save, self._cache, self._path)


def _save(cache: Any, path: Path) -> None:
    """Writes the kernels, completely or not at all, because another process may be reading."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(bytes(cache.serialize()))
        part.replace(path)
    except OSError as error:
        logger.warning("--provider-option runtime_cache=%s: %s", path, error.strerror or error)


class Context:
    """An execution context; its bindings stay until they are set again."""

    def __init__(self, engine: Engine, context: Any) -> None:
        self._engine = engine
        self._context = context
        self._generation = -1

    def bind(self, inputs: Mapping[str, Binding], outputs: Mapping[str, Binding]) -> None:
        """Sets shapes and addresses of all tensors.

        Raises:
            BackendError: if TensorRT refuses one, or would write a shape that does not fit the memory.
        """
        engine, context = self._engine, self._context
        with engine.log.recording() as record:
            for name, (address, shape) in inputs.items():
                if name in engine.inputs and not (
                    context.set_input_shape(name, shape) and context.set_tensor_address(name, address)
                ):
                    raise self._failure(f"input {name} {list(shape)}", record.why())
            try:
                missing = context.infer_shapes()
            except RuntimeError as error:
                raise self._failure("shapes", record.why(one_line(error))) from None
            if missing:
                raise self._failure(f"input {missing[0]}", record.why("it has no shape or value"))
            for name, (address, shape) in outputs.items():
                found = tuple(context.get_tensor_shape(name))
                if found != shape:
                    raise self._failure(f"output {name}", f"has shape {list(found)}, expected {list(shape)}")
                if not context.set_tensor_address(name, address):
                    raise self._failure(f"output {name}", record.why())

    def enqueue(self) -> None:
        """Puts one run on the stream.

        Raises:
            BackendError: with TensorRT's reason.
        """
        engine, workspace = self._engine, self._engine.workspace
        engine.memory.driver.enter()
        with engine.log.recording() as record:
            if self._generation != workspace.generation:
                self._context.set_device_memory(workspace.address, workspace.nbytes)
                self._generation = workspace.generation
            if not self._context.execute_async_v3(engine.memory.driver.stream) or record.errors:
                raise self._failure("run", record.why())

    def _failure(self, what: str, why: str) -> BackendError:
        return BackendError(f"{self._engine.name}: {what}: TensorRT: {why}")
