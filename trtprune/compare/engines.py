"""Engines as Polygraphy's TrtRunner: checked and loaded as in the runtime, with independent runs.

Inner tensors of an engine are not visible.  To read one, the component is built again with that tensor as an output,
with memory-mapped weights and for this GPU, as in the build itself.  TensorRT may fuse less around an output, so an
error that disappears under ``--layerwise`` comes from fusion.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trtprune.compare._require import set_flavour
from trtprune.compare.inputs import wire_dtype
from trtprune.compare.points import mark
from trtprune.errors import BackendError
from trtprune.reports.installer import to_install
from trtprune.tensor_names import INPUTS_EMBEDS, is_past, is_present

if TYPE_CHECKING:
    from trtprune.engine_dir import ComponentInfo, EngineDir

__all__ = ["check_device", "engine_runner", "pad_caches", "probe_runner", "profile_for", "trim_caches"]


def check_device(made: EngineDir) -> Any:
    """Refuses engines that cannot run here; returns TensorRT's module.

    Raises:
        BackendError: naming the missing part: TensorRT, the version, a GPU, or the right one.
    """
    from trtprune.backends.tensorrt import cuda, loading
    from trtprune.backends.tensorrt.flavour import load_tensorrt
    from trtprune.backends.tensorrt.plugins import load_plugins

    info = loading.engine_info(made)
    trt = load_tensorrt(made.backend)
    loading.check_version(made, info, trt.__version__)
    try:
        driver = cuda.CudaDriver()
    except BackendError as error:
        hint = "--against transformers, or --against a directory with --provider cpu, compares the graphs without a GPU"
        raise BackendError(error.message, hint=hint if error.hint == cuda.CPU_HINT else error.hint) from None
    loading.check_device(made, info, driver.device)
    load_plugins(trt, info.plugins)
    set_flavour(made.backend)
    return trt


def profile_for(component: ComponentInfo, tokens: int) -> int:
    """The profile of a run with ``tokens`` new tokens: in a decoder with two profiles, 1 is for single tokens."""
    return 1 if len(component.profiles) > 1 and tokens == 1 else 0


def pad_caches(feed: dict[str, np.ndarray], capacity: int) -> dict[str, np.ndarray]:
    """Extends caches to the engine's capacity with zeros, which are not attended to."""
    padded = dict(feed)
    for name, array in feed.items():
        if is_past(name) and array.shape[2] < capacity:
            padded[name] = np.zeros((*array.shape[:2], capacity, array.shape[3]), array.dtype)
            padded[name][:, :, : array.shape[2]] = array
    return padded


def trim_caches(outputs: dict[str, np.ndarray], feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Undoes :func:`pad_caches` on the outputs."""
    fed = next((array.shape[2] for name, array in feed.items() if is_past(name)), None)
    if fed is None:
        return outputs
    return {name: array[:, :, :fed] if is_present(name) else array for name, array in outputs.items()}


def engine_runner(made: EngineDir, component: ComponentInfo, name: str) -> Any:
    """The engine of a component as a runner; activation of the runner loads it."""
    assert component.engine is not None
    return _runner(made, component, name, made.path(component.engine))


def probe_runner(
    made: EngineDir, component: ComponentInfo, tensors: Sequence[str], name: str
) -> tuple[Any, dict[str, str]]:
    """A runner of a new engine with these tensors as outputs; deactivation of the runner removes its file.

    Returns:
        The runner, and the name of each tensor's output.
    """
    folder = tempfile.TemporaryDirectory(prefix="trtprune-probe-")
    path = Path(folder.name) / f"{component.name}.engine"
    shown = build_probe(made, component, tensors, path)
    return _runner(made, component, name, path, keep=folder), shown


def build_probe(
    made: EngineDir,
    component: ComponentInfo,
    tensors: Sequence[str],
    path: Path,
    targets: tuple[str, ...] = ("current",),
) -> dict[str, str]:
    """Builds a component with further outputs.

    Args:
        made: The directory.
        component: A component of the directory.
        tensors: Names of inner tensors.
        path: The engine file to write.
        targets: Compute capabilities for TensorRT-RTX; full TensorRT always builds for the GPU of this machine.

    Returns:
        Tensor → its output.

    Raises:
        BuildError: if TensorRT cannot build it.
    """

    from trtprune.backends.tensorrt.building import BuilderSettings, build_engine
    from trtprune.backends.tensorrt.flavour import get_log, load_tensorrt
    from trtprune.backends.tensorrt.loading import engine_info
    from trtprune.backends.tensorrt.network import Network, read_onnx
    from trtprune.backends.tensorrt.shapes import cache_capacity

    info = engine_info(made)
    trt = load_tensorrt(made.backend)
    log = get_log(trt)
    proto = read_onnx(made.path(component.onnx), {"capacity": cache_capacity(component)})
    # Its own outputs stay: in-place cache updates must end in outputs.
    shown = mark(proto, tensors, only=False)
    network = Network(trt, log, proto, made.path(component.onnx).parent, component.name)
    kinds = [node.op_type for node in proto.graph.node]
    network.check(attention=kinds.count("Attention"), cache_updates=kinds.count("TensorScatter"))
    settings = BuilderSettings(
        targets,
        version_compatible=info.version_compatible,
        hardware_compatibility_level=info.hardware_compatibility,
        weight_streaming=info.weight_streaming,
    )
    build_engine(network, log, component.profiles, settings, path)
    return shown


def _runner(made: EngineDir, component: ComponentInfo, name: str, path: Path, keep: Any = None) -> Any:
    set_flavour(made.backend)
    from polygraphy.backend.trt import TrtRunner
    from polygraphy.common import TensorMetadata

    from trtprune.backends.tensorrt.flavour import get_log, load_tensorrt
    from trtprune.backends.tensorrt.loading import engine_info, load_engine

    info = engine_info(made)
    specs = {spec.name: spec for spec in component.inputs}
    halves = any(spec.dtype == "bfloat16" for spec in (*component.inputs, *component.outputs))
    if halves:
        try:
            import torch  # noqa: F401
        except ImportError:
            raise BackendError(
                f"{made.root}: comparing engines in bfloat16 needs torch, since NumPy has no such dtype",
                hint=to_install(extra="torch"),
            ) from None

    def load() -> Any:
        trt = load_tensorrt(made.backend)
        runtime = trt.Runtime(get_log(trt).ilogger)
        runtime.engine_host_code_allowed = info.version_compatible
        return load_engine(trt, runtime, path)

    class EngineRunner(TrtRunner):
        """Accepts caches of any capacity, selects the profile, and passes bfloat16 as torch does."""

        def get_input_metadata_impl(self) -> Any:
            meta = TensorMetadata()
            for spec in specs.values():
                shape = [dim if isinstance(dim, int) else None for dim in spec.shape]
                meta.add(spec.name, dtype=wire_dtype(spec.dtype), shape=shape)
            return meta

        def infer(self, feed_dict: Any, check_inputs: bool = True, *args: Any, **kwargs: Any) -> Any:
            feed: Any = pad_caches(dict(feed_dict), made.kv.capacity)
            if INPUTS_EMBEDS in feed and len(component.profiles) > 1:
                self.set_profile(profile_for(component, feed[INPUTS_EMBEDS].shape[1]))
            if halves:
                feed = {name: _to_torch(array, specs[name].dtype) for name, array in feed.items()}
            # Polygraphy's own check expects the engine's static capacity and lacks bfloat16; ours has been done.
            outputs = super().infer(feed, False, *args, **kwargs)
            if halves:
                outputs = {name: _to_numpy(array) for name, array in outputs.items()}
            return trim_caches(dict(outputs), dict(feed_dict))

        def deactivate(self) -> None:
            super().deactivate()
            if keep is not None:
                keep.cleanup()

    # -1: TensorRT decides how much of the weights stays on the device.
    return EngineRunner(load, name=name, weight_streaming_budget=-1 if info.weight_streaming else None)


def _to_torch(array: np.ndarray, dtype: str) -> Any:
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.to(torch.bfloat16) if dtype == "bfloat16" else tensor


def _to_numpy(tensor: Any) -> np.ndarray:
    import torch

    array: np.ndarray = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()
    return array
