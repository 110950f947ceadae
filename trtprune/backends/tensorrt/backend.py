"""Runs the engines of a directory, on one GPU.

Refusals come before anything is loaded: another version, another GPU, too little memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtprune.backends.tensorrt.cuda import CudaDriver, Driver
from trtprune.backends.tensorrt.decode_graph import DecodeStep, StepBuffers
from trtprune.backends.tensorrt.execution import Engine, RtxSettings, Workspace
from trtprune.backends.tensorrt.flavour import get_log, load_tensorrt
from trtprune.backends.tensorrt.loading import (
    Needs,
    check_device,
    check_memory,
    check_version,
    engine_info,
    load_engine,
)
from trtprune.backends.tensorrt.memory import DeviceMemory
from trtprune.backends.tensorrt.plugins import load_plugins
from trtprune.backends.tensorrt.session import TrtCache, TrtSession
from trtprune.backends.tensorrt.shapes import cache_bytes, cache_capacity
from trtprune.errors import BackendError
from trtprune.tensor_names import LOGITS, TEXT_EMBEDS

if TYPE_CHECKING:
    from trtprune.backends.base import Memory
    from trtprune.engine_dir import ComponentInfo, EngineDir

__all__ = ["OPTIONS", "TrtBackend"]

OPTIONS = {"tensorrt": ("device_id", "cuda_graph"), "tensorrt-rtx": ("device_id", "cuda_graph", "runtime_cache")}
# Recorded steps that are kept, one for each cache in use: more would belong to conversations that have ended.
STEPS = 4


class TrtBackend:
    """Opens the engines of a directory in TensorRT or TensorRT for RTX; see :class:`trtprune.backends.base.Backend`.

    Args:
        config: The engine directory; its ``backend`` says which library.
        options: ``device_id``, the GPU's number; ``cuda_graph`` = ``on`` (default) or ``off``: whether a decode step
            is recorded once and launched as a whole.  TensorRT for RTX: ``runtime_cache``, a file that keeps the
            kernels it compiles, so that the next process need not.

    Raises:
        BackendError: if the library or the GPU is missing, or cannot run these engines.
    """

    def __init__(self, config: EngineDir, options: Mapping[str, str] | None = None) -> None:
        options = dict(options or {})
        device_id, self._graphs = _read_options(options, config.backend)
        info = engine_info(config)
        self.name = config.backend
        self._config = config
        self._trt = trt = load_tensorrt(config.backend)
        check_version(config, info, trt.__version__)
        self._driver: Driver = CudaDriver(device_id)
        check_device(config, info, self._driver.device, _supported(trt))
        self._device_memory = DeviceMemory(self._driver)
        self.memory: Memory = self._device_memory
        self._workspace = Workspace(self._device_memory)
        self._unloaded = {component.name: _size(config, component) for component in config.components}
        self._check_memory()
        load_plugins(trt, info.plugins)
        self._runtime = trt.Runtime(get_log(trt).ilogger)
        # A version-compatible engine carries the runtime it was built for, which is code.
        self._runtime.engine_host_code_allowed = info.version_compatible
        self._rtx: RtxSettings | None = None
        if config.backend == "tensorrt-rtx":
            kernels = options.get("runtime_cache")
            self._rtx = RtxSettings(trt, None if kernels is None else Path(kernels))
        self._buffers: StepBuffers | None = None
        self._steps: OrderedDict[tuple[int, int], DecodeStep] = OrderedDict()

    def session(self, component: ComponentInfo, root: Path) -> TrtSession:
        """Loads one component.

        Raises:
            BackendError: if it does not load, or the components that are still to be loaded do not fit into memory.
            EngineDirError: if its file cannot be read or is another component's.
        """
        assert component.engine is not None
        self._driver.enter()
        loaded = load_engine(self._trt, self._runtime, root / component.engine)
        if self._config.engines is not None and self._config.engines.weight_streaming:
            loaded.weight_streaming_budget_v2 = loaded.get_weight_streaming_automatic_budget()
        engine = Engine(self._trt, loaded, component.name, self._device_memory, self._workspace, self._rtx)
        self._unloaded.pop(component.name, None)
        self._check_memory()
        return TrtSession(component, engine, cache_capacity(component))

    def step(self, embed: TrtSession, decoder: TrtSession, cache: TrtCache) -> DecodeStep:
        """The decode step over one cache; an earlier step over the same memory is used again."""
        if self._buffers is None:
            logits = next(spec for spec in decoder.outputs if spec.name == LOGITS)
            hidden = next(spec for spec in embed.outputs if spec.name == TEXT_EMBEDS)
            self._buffers = StepBuffers(
                self._device_memory,
                decoder.max_batch,
                _static(hidden.shape),
                _static(logits.shape),
                hidden.dtype,
                self._config.positions.axes,
            )
        step = self._steps.pop(cache.key, None)
        if step is None:
            own = self._rtx is None
            step = DecodeStep(
                embed, decoder, cache, self._buffers, record=self._graphs and own, graphs=self._graphs and not own
            )
        self._steps[cache.key] = step
        if len(self._steps) > STEPS:
            self._steps.popitem(last=False)
        return step

    def _check_memory(self) -> None:
        config = self._config
        streaming = config.engines is not None and config.engines.weight_streaming
        needs = Needs(
            engines=0 if streaming else sum(self._unloaded.values()),
            workspace=self._workspace.nbytes,
            cache_row=cache_bytes(config),
        )
        check_memory(config, needs, self._driver.memory_info()[0])


def _read_options(options: Mapping[str, str], backend: str) -> tuple[int, bool]:
    for name in options:
        if name not in OPTIONS[backend]:
            raise BackendError(
                f"--provider-option {name}: {backend} engines have no such option",
                hint=f"they have: {', '.join(OPTIONS[backend])}",
            )
    device, graph = options.get("device_id", "0"), options.get("cuda_graph", "on")
    if not device.isdecimal():
        raise BackendError(f"--provider-option device_id={device}: must be a number")
    if graph not in ("on", "off"):
        raise BackendError(f"--provider-option cuda_graph={graph}: unknown", hint="on or off")
    return int(device), graph == "on"


def _size(config: EngineDir, component: ComponentInfo) -> int:
    try:
        return config.path(component.engine or component.onnx).stat().st_size
    except OSError:
        return 0  # loading reports the fault


def _supported(trt: Any) -> frozenset[str]:
    """Compute capabilities the library can build for, where it says so."""
    known = getattr(trt, "ComputeCapability", None)
    names = [] if known is None else [name.lower() for name in known.__members__]
    return frozenset(name for name in names if name.startswith("sm"))


def _static(shape: tuple[int | str, ...]) -> int:
    width = shape[-1]
    assert isinstance(width, int)
    return width
