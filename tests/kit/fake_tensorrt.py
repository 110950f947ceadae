"""A TensorRT whose engines are ONNX files, run by ONNX Runtime on the memory that is bound.

Of the API there is what trtprune uses, and it is stricter than TensorRT: addresses must be aligned and alive when the
work is done, a cache must be read and written in one place, shapes must lie in the profile that was chosen, and the
activations' memory is overwritten by every run.
"""

from __future__ import annotations

import enum
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from tests.kit.fake_cuda import ALIGNMENT, FakeDriver

MAGIC = b"FAKE"
DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


COUNTS = ("keep", "recycled", "merged")
"""Inputs whose values are shapes; TensorRT reads them on the host."""


def write_engine(path: Path, onnx: Path, root: Path, profiles: Any, capacity: int, workspace: int = 1 << 16) -> None:
    """An engine file."""
    data = {
        "onnx": str(onnx),
        "root": str(root),
        "profiles": profiles,
        "capacity": capacity,
        # The second profile needs less, as it serves single tokens.
        "workspace": [workspace // (i + 1) for i in range(len(profiles))],
    }
    path.write_bytes(MAGIC + json.dumps(data).encode() + bytes(100))


class FakeTensorrt:
    """Stands in for the module ``tensorrt``, or ``tensorrt_rtx``."""

    class ILogger:
        class Severity(enum.Enum):
            INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

        def __init__(self) -> None:
            pass

    class TensorIOMode(enum.Enum):
        NONE, INPUT, OUTPUT = range(3)

    class TensorLocation(enum.Enum):
        DEVICE, HOST = range(2)

    class ExecutionContextAllocationStrategy(enum.Enum):
        STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)

    class CudaGraphStrategy(enum.Enum):
        DISABLED, WHOLE_GRAPH_CAPTURE = range(2)

    class EngineValidity(enum.Enum):
        VALID, SUBOPTIMAL, INVALID = range(3)

    class EngineInvalidityDiagnostics(enum.IntEnum):
        VERSION_MISMATCH, UNSUPPORTED_CC, MALFORMED_ENGINE = 1, 2, 32

    Builder = object

    def __init__(self, driver: FakeDriver, name: str = "tensorrt", version: str = "10.15.1.29") -> None:
        self.__name__ = name
        self.__version__ = version
        self.driver = driver
        self.engines: list[Engine] = []
        self.runtimes: list[Any] = []
        self.rtx = name == "tensorrt_rtx"
        if self.rtx:
            self.ComputeCapability = enum.Enum("ComputeCapability", ["SM86", "SM89", "SM120", "CURRENT"])

    def get_plugin_registry(self) -> Any:
        return self

    def get_creator(self, name: str, version: str, namespace: str) -> None:
        """No plugin is known."""

    def Runtime(self, logger: Any) -> Any:
        made = (RtxRuntime if self.rtx else Runtime)(self, logger)
        self.runtimes.append(made)
        return made


class Runtime:
    engine_host_code_allowed = False

    def __init__(self, trt: FakeTensorrt, logger: Any) -> None:
        self.trt, self.logger = trt, logger

    def error(self, message: str) -> None:
        self.logger.log(FakeTensorrt.ILogger.Severity.ERROR, message)

    def deserialize_cuda_engine(self, data: Any) -> Engine | None:
        raw = bytes(data)
        if not raw.startswith(MAGIC) or not raw.endswith(bytes(100)):
            self.error("IRuntime::deserializeCudaEngine: Error Code 1: Serialization (magic tag does not match)")
            return None
        made = Engine(self, json.loads(raw[len(MAGIC) : -100]))
        self.trt.engines.append(made)
        return made


class RtxRuntime(Runtime):
    def get_engine_validity(self, data: Any) -> tuple[Any, int]:
        good = bytes(data[: len(MAGIC)]) == MAGIC
        return (FakeTensorrt.EngineValidity.VALID, 0) if good else (FakeTensorrt.EngineValidity.INVALID, 33)


class Engine:
    def __init__(self, runtime: Runtime, data: dict[str, Any]) -> None:
        self.runtime, self.trt, self.driver = runtime, runtime.trt, runtime.trt.driver
        self.data = data
        self.file = Path(data["onnx"]).stem
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", data["root"])
        self.session = ort.InferenceSession(
            Path(data["onnx"]).read_bytes(), options, providers=["CPUExecutionProvider"]
        )
        self.inputs = {v.name: v for v in self.session.get_inputs()}
        self.outputs = {v.name: v for v in self.session.get_outputs()}
        self.num_optimization_profiles = len(data["profiles"])
        self.names = [*self.inputs, *self.outputs]
        self.num_io_tensors = len(self.names)
        self.contexts: list[Context] = []
        weights = self.driver.allocate(Path(data["onnx"]).stat().st_size)
        weakref.finalize(self, self.driver.free, weights)

    weight_streaming_budget_v2 = 0
    automatic_budget = 12345

    def get_weight_streaming_automatic_budget(self) -> int:
        return self.automatic_budget

    def dtypes(self) -> set[np.dtype]:
        """Of all inputs and outputs."""
        return {np.dtype(DTYPES[value.type]) for value in (*self.inputs.values(), *self.outputs.values())}

    def get_tensor_name(self, i: int) -> str:
        return self.names[i]

    def get_tensor_mode(self, name: str) -> Any:
        return FakeTensorrt.TensorIOMode.INPUT if name in self.inputs else FakeTensorrt.TensorIOMode.OUTPUT

    def get_tensor_location(self, name: str) -> Any:
        return FakeTensorrt.TensorLocation.HOST if name in COUNTS else FakeTensorrt.TensorLocation.DEVICE

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return name.replace("present.", "past_key_values.") if name.startswith("present.") else None

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return int(self.data["workspace"][profile])

    def create_runtime_config(self) -> RuntimeConfig:
        assert self.trt.rtx
        return RuntimeConfig()

    def create_execution_context(self, how: Any) -> Context:
        strategy = how.strategy if self.trt.rtx else how
        assert strategy == FakeTensorrt.ExecutionContextAllocationStrategy.USER_MANAGED
        self.contexts.append(Context(self, how))
        return self.contexts[-1]


class RuntimeCache:
    """Compiled kernels of TensorRT for RTX."""

    reused = False

    def deserialize(self, blob: bytes) -> bool:
        self.reused = blob == b"kernels"
        return self.reused

    def serialize(self) -> bytes:
        return b"kernels"


class RuntimeConfig:
    """Of TensorRT for RTX."""

    cuda_graph_strategy = FakeTensorrt.CudaGraphStrategy.DISABLED

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True


class Context:
    def __init__(self, engine: Engine, config: Any) -> None:
        self.engine, self.driver, self.config = engine, engine.driver, config
        self.profile = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.memory = (0, 0)
        self.runs = 0
        self.counts: dict[str, int] = {}

    def fail(self, message: str) -> bool:
        self.engine.runtime.error(f"IExecutionContext: Error Code 3: API Usage Error ({message})")
        return False

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert stream == self.driver.stream
        self.profile = profile
        return profile < self.engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        value = self.engine.inputs[name]
        limits = self.engine.data["profiles"][self.profile].get(name)
        if len(shape) != len(value.shape):
            return self.fail(f"rank of {name}")
        if name not in COUNTS and limits is not None:
            low, _, high = limits
            if not all(a <= x <= b for a, x, b in zip(low, shape, high, strict=True)):
                return self.fail(f"{name} {shape} is outside of profile {self.profile}: {low} to {high}")
        elif any(isinstance(d, int) and d != x for d, x in zip(value.shape, shape, strict=True)):
            return self.fail(f"{name} is {value.shape}")
        if name.startswith("past_key_values.") and shape[2] != self.engine.data["capacity"]:
            return self.fail(f"{name}: the capacity is static")
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address, f"{name}: null"
        if name in COUNTS:
            number = int(np.ctypeslib.as_array((np.ctypeslib.as_ctypes_type(np.int64) * 1).from_address(address))[0])
            ((low,), _, (high,)) = self.engine.data["profiles"][self.profile][name]
            if not low <= number <= high:
                return self.fail(f"{name} {number} is outside of {low} to {high}")
            self.counts[name] = number
        elif address % ALIGNMENT:
            return self.fail(f"{name}: the address is not aligned")
        self.addresses[name] = address
        return True

    def infer_shapes(self) -> list[str]:
        return [n for n in self.engine.inputs if n not in self.shapes or (n in COUNTS and n not in self.addresses)]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.shapes:
            return self.shapes[name]
        dims = dict(self.counts)
        for input_name, value in self.engine.inputs.items():
            dims |= {d: x for d, x in zip(value.shape, self.shapes[input_name], strict=True) if isinstance(d, str)}
        return tuple(dims[d] if isinstance(d, str) else d for d in self.engine.outputs[name].shape)

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= self.engine.data["workspace"][self.profile]
        self.driver.view(address, size)
        self.memory = (address, size)

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == self.driver.stream
        engine, driver = self.engine, self.driver
        missing = [name for name in engine.names if name not in self.addresses]
        if missing:
            return self.fail(f"no address for {missing[0]}")
        assert self.memory[1], "no memory for activations"
        shapes = {name: self.get_tensor_shape(name) for name in engine.names}
        addresses, memory, counts = dict(self.addresses), self.memory, dict(self.counts)
        for name, address in addresses.items():
            if name.startswith("past_key_values."):
                assert addresses["present." + name.removeprefix("past_key_values.")] == address

        def tensor(name: str, value: Any) -> np.ndarray:
            dtype, shape = np.dtype(DTYPES[value.type]), shapes[name]
            return driver.view(addresses[name], int(np.prod(shape)) * dtype.itemsize).view(dtype).reshape(shape)

        def work() -> None:
            driver.view(*memory)[:] = 0xAB
            feeds = {n: tensor(n, v).copy() for n, v in engine.inputs.items() if n not in COUNTS}
            feeds |= {n: np.array([counts[n]]) for n in COUNTS if n in engine.inputs}
            for name, found in zip(engine.outputs, engine.session.run(None, feeds), strict=True):
                tensor(name, engine.outputs[name])[:] = found

        work.first = not self.runs  # type: ignore[attr-defined]
        self.runs += 1
        driver.push(work)
        return True
