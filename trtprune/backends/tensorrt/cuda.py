"""One device and one stream of CUDA, as far as the TensorRT runtime needs them, over ``cuda-bindings``.

All work goes to one stream and runs in order; Python waits only where it reads.  Users of a device take a
:class:`Driver`; :class:`CudaDriver` is the one of a GPU.
"""

from __future__ import annotations

import ctypes
import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from trtprune.errors import BackendError
from trtprune.reports.installer import to_install

__all__ = ["CudaDriver", "Device", "Driver"]

CPU_HINT = "trtprune doctor; --provider cpu runs the graphs of the same directory in ONNX Runtime"


@dataclass(frozen=True)
class Device:
    """A GPU: its name and compute capability."""

    name: str
    capability: tuple[int, int]

    @property
    def sm(self) -> str:
        """``sm90``."""
        return f"sm{self.capability[0]}{self.capability[1]}"


class Driver(Protocol):
    """A device, its memory, and one stream of work.  Sizes are bytes, addresses plain integers."""

    device: Device
    stream: int

    def enter(self) -> None:
        """Makes the device the current one: each thread has its own current device, and other libraries change it."""

    def memory_info(self) -> tuple[int, int]:
        """Bytes free and bytes in all on the device."""

    def allocate(self, nbytes: int) -> int:
        """Address of new device memory, aligned to 256 bytes; raises MemoryError if there is not enough."""

    def free(self, address: int) -> None:
        """Frees memory, after the work that uses it."""

    def allocate_host(self, nbytes: int) -> np.ndarray:
        """uint8 [nbytes] of page-locked memory, which the device reads and writes without Python waiting."""

    def to_device(self, address: int, array: np.ndarray) -> None:
        """Copies a C-contiguous array; it may be changed at once, unless it is page-locked."""

    def to_host(self, array: np.ndarray, address: int) -> None:
        """Copies to a C-contiguous array; done only after :meth:`synchronize`."""

    def on_device(self, target: int, source: int, nbytes: int) -> None:
        """Copies within the device."""

    def clear(self, address: int, nbytes: int) -> None:
        """Sets bytes to 0."""

    def synchronize(self) -> None:
        """Waits for all work on the stream."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Records the work that ``work`` puts on the stream (a CUDA graph), without running it; the result runs it."""


class CudaDriver:
    """A GPU.

    Args:
        device_id: Its number.

    Raises:
        BackendError: if cuda-bindings or the GPU is missing.
    """

    def __init__(self, device_id: int = 0) -> None:
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise BackendError(
                f"cuda-bindings does not load: {error}".splitlines()[0], hint=to_install("cuda-bindings")
            ) from None
        self._cuda = cuda = runtime
        status, count = cuda.cudaGetDeviceCount()
        if status != cuda.cudaError_t.cudaSuccess:
            raise BackendError(f"there is no GPU that CUDA can use ({self._name(status)})", hint=CPU_HINT)
        if not 0 <= device_id < count:
            raise BackendError(
                f"--provider-option device_id={device_id}: there are {count} GPUs",
                hint=f"0 to {count - 1}" if count else CPU_HINT,
            )
        self._id = device_id
        self.enter()
        attributes = cuda.cudaDeviceAttr
        major = self._check(
            "asking the GPU",
            cuda.cudaDeviceGetAttribute(attributes.cudaDevAttrComputeCapabilityMajor, device_id),
        )
        minor = self._check(
            "asking the GPU",
            cuda.cudaDeviceGetAttribute(attributes.cudaDevAttrComputeCapabilityMinor, device_id),
        )
        name = self._check("asking the GPU", cuda.cudaGetDeviceProperties(device_id)).name
        self.device = Device(name.decode() if isinstance(name, bytes) else str(name), (int(major), int(minor)))
        self._stream = self._check("making a stream", cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking))
        self.stream = int(self._stream)

    def enter(self) -> None:
        """Makes the GPU the current one."""
        self._check("choosing the GPU", self._cuda.cudaSetDevice(self._id))

    def memory_info(self) -> tuple[int, int]:
        """Bytes free and bytes in all."""
        self.enter()
        free, total = self._check("asking for free memory", self._cuda.cudaMemGetInfo())
        return int(free), int(total)

    def allocate(self, nbytes: int) -> int:
        """Address of ``nbytes`` of device memory; raises MemoryError."""
        self.enter()
        error, address = self._cuda.cudaMalloc(nbytes)
        if error == self._cuda.cudaError_t.cudaErrorMemoryAllocation:
            self._cuda.cudaGetLastError()  # otherwise the next call would report it again
            raise MemoryError(f"the GPU has no {nbytes} bytes left")
        self._check("allocating", (error, address))
        return int(address)

    def free(self, address: int) -> None:
        """Gives memory back, after the work that uses it."""
        self._cuda.cudaFree(address)  # the next call reports an earlier failure, too; here it could not be caught

    def allocate_host(self, nbytes: int) -> np.ndarray:
        """uint8 [nbytes], page-locked; freed with the last view of it."""
        self.enter()
        cuda = self._cuda
        address = self._check("allocating page-locked memory", cuda.cudaHostAlloc(nbytes, cuda.cudaHostAllocDefault))
        buffer = (ctypes.c_uint8 * nbytes).from_address(int(address))
        weakref.finalize(buffer, cuda.cudaFreeHost, address)
        return np.ctypeslib.as_array(buffer)

    def to_device(self, address: int, array: np.ndarray) -> None:
        """Copies an array to the device."""
        self._copy(address, array.ctypes.data, array.nbytes, self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice)

    def to_host(self, array: np.ndarray, address: int) -> None:
        """Copies to an array; wait before reading it."""
        self._copy(array.ctypes.data, address, array.nbytes, self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost)

    def on_device(self, target: int, source: int, nbytes: int) -> None:
        """Copies within the device."""
        self._copy(target, source, nbytes, self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice)

    def clear(self, address: int, nbytes: int) -> None:
        """Sets bytes to 0."""
        self.enter()
        self._check("clearing memory", self._cuda.cudaMemsetAsync(address, 0, nbytes, self._stream))

    def synchronize(self) -> None:
        """Waits for all work on the stream; failures on the device since the last time are raised here."""
        self.enter()
        self._check("running", self._cuda.cudaStreamSynchronize(self._stream))

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """A CUDA graph of what ``work`` puts on the stream."""
        self.enter()
        cuda = self._cuda
        # Thread-local: other threads of the process may use CUDA at the same time.
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        # No cudaFree is allowed in between, and the garbage collector may run at any time.
        collecting = gc.isenabled()
        gc.disable()
        try:
            self._check("recording", cuda.cudaStreamBeginCapture(self._stream, mode))
            try:
                work()
            except BaseException:
                cuda.cudaStreamEndCapture(self._stream)  # otherwise the stream would stay unusable
                cuda.cudaGetLastError()
                raise
            graph = self._check("recording", cuda.cudaStreamEndCapture(self._stream))
        finally:
            if collecting:
                gc.enable()
        try:
            made = self._check("making a CUDA graph", cuda.cudaGraphInstantiate(graph, 0))
        finally:
            cuda.cudaGraphDestroy(graph)
        return _Graph(self, made)

    def __del__(self) -> None:
        if hasattr(self, "_stream"):
            self._cuda.cudaStreamDestroy(self._stream)

    def _copy(self, target: int, source: int, nbytes: int, kind: Any) -> None:
        self.enter()
        self._check("copying", self._cuda.cudaMemcpyAsync(target, source, nbytes, kind, self._stream))

    def _check(self, what: str, result: tuple[Any, ...]) -> Any:
        """The values of a CUDA call, without its status; raises BackendError for a bad one."""
        error, *values = result
        if error != self._cuda.cudaError_t.cudaSuccess:
            self._cuda.cudaGetLastError()
            raise BackendError(f"CUDA, {what}: {self._name(error)}", hint="trtprune doctor")
        return values[0] if len(values) == 1 else values

    def _name(self, error: Any) -> str:
        name, text = self._cuda.cudaGetErrorName(error)[1], self._cuda.cudaGetErrorString(error)[1]
        return f"{name.decode()}: {text.decode()}"


class _Graph:
    """A CUDA graph, ready to launch."""

    def __init__(self, driver: CudaDriver, graph: Any) -> None:
        self._driver = driver
        self._graph = graph

    def __call__(self) -> None:
        driver = self._driver
        driver.enter()
        driver._check("launching a CUDA graph", driver._cuda.cudaGraphLaunch(self._graph, driver._stream))

    def __del__(self) -> None:
        # The status is ignored: at the end of the process CUDA may already be unloaded.
        self._driver._cuda.cudaGraphExecDestroy(self._graph)
