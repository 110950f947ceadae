"""The two sides of a comparison: they run components of an engine directory, and show inner tensors.

A side opens a component as one of Polygraphy's runners.  Runs are independent: caches are ordinary inputs and outputs,
so that both sides get the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from trtprune.backends.onnxruntime import OrtBackend
from trtprune.backends.opening import open_provider
from trtprune.backends.running import Running
from trtprune.compare.points import TensorPoint, find_points, mark
from trtprune.errors import BackendError, EngineDirError

if TYPE_CHECKING:
    import onnx

    from trtprune.engine_dir import ComponentInfo, EngineDir

__all__ = ["EngineSide", "GraphSide", "Side", "native_side", "read_model"]


class Side(Protocol):
    """One side.  ``name`` is its runners' name in reports, ``dtype`` its compute dtype."""

    name: str
    dtype: str

    def components(self) -> Sequence[str]:
        """Names of the components that it can run."""

    def runner(self, component: ComponentInfo) -> Any:
        """A Polygraphy runner of the whole component."""

    def points(self, component: ComponentInfo) -> list[TensorPoint]:
        """Visible inner tensors in order; empty for a side without them."""

    def probe(self, component: ComponentInfo, tensors: Sequence[str]) -> tuple[Any, dict[str, str]]:
        """A runner with these tensors as outputs, and the name of each one's output."""

    def graph(self, component: ComponentInfo) -> onnx.GraphProto | None:
        """The component's graph, if there is one."""


def read_model(made: EngineDir, component: ComponentInfo) -> bytes:
    """The serialised graph of a component, without weights."""
    path = made.path(component.onnx)
    try:
        return path.read_bytes()
    except OSError as error:
        raise EngineDirError(f"{path}: cannot be read: {error.strerror or error}", hint="build it again") from None


class GraphSide:
    """The graphs of an engine directory, in ONNX Runtime or OpenVINO.

    Args:
        made: The directory.
        running: The provider and its threads; without a provider the build's, or ``cpu`` for a directory of engines.

    Raises:
        BackendError: if the provider is missing, or has no kernels for the build's dtype.
    """

    def __init__(self, made: EngineDir, running: Running | None = None) -> None:
        running = running or Running()
        built_for = made.built_with.get("provider", "cpu") if made.backend == "onnxruntime" else "cpu"
        self.made = made
        self.dtype = made.dtype
        self.backend = open_provider(running.provider or built_for, running.threads, running.provider_options)
        self.name = f"{'openvino' if self.backend.name == 'openvino' else 'onnxruntime'}:{made.root.name}"
        if made.dtype == "bfloat16":
            # Polygraphy and ONNX Runtime's arrays lack bfloat16, and the CPU has no kernels for it.
            raise BackendError(
                f"{made.root}: built in bfloat16, which cannot be compared in ONNX Runtime",
                hint="build it with --dtype float32 too, and compare the engines with --against that directory's",
            )

    def components(self) -> Sequence[str]:
        """All components of the directory."""
        return [component.name for component in self.made.components]

    def runner(self, component: ComponentInfo) -> Any:
        """A runner of the unchanged graph."""
        return self._open(component, read_model(self.made, self._mine(component)))

    def points(self, component: ComponentInfo) -> list[TensorPoint]:
        """The outputs of the model's modules."""
        return find_points(self.graph(component))

    def probe(self, component: ComponentInfo, tensors: Sequence[str]) -> tuple[Any, dict[str, str]]:
        """A runner of the graph with these outputs instead of its own."""
        import onnx

        proto = onnx.load_from_string(read_model(self.made, self._mine(component)))
        shown = mark(proto, tensors)
        return self._open(component, proto.SerializeToString()), shown

    def graph(self, component: ComponentInfo) -> onnx.GraphProto:
        """The graph in the file."""
        import onnx

        return onnx.load_from_string(read_model(self.made, self._mine(component))).graph

    def _mine(self, component: ComponentInfo) -> ComponentInfo:
        return self.made.component(component.name)

    def _open(self, component: ComponentInfo, model: bytes) -> Any:
        from polygraphy.backend.onnxrt import OnnxrtRunner

        path, backend = self.made.root / self._mine(component).onnx, self.backend
        if not isinstance(backend, OrtBackend):
            if backend.runs(component.role):
                from trtprune.compare.openvino_runner import openvino_runner

                return openvino_runner(backend, model, path, self.name)
            backend = backend.small
        return OnnxrtRunner(lambda: backend.inference_session(model, path), name=self.name)


class EngineSide:
    """The engines of an engine directory in TensorRT or TensorRT-RTX.

    Args:
        made: The directory.

    Raises:
        EngineDirError: if the directory has no engines.
        BackendError: if TensorRT, a GPU, or the engines' version is missing.
    """

    def __init__(self, made: EngineDir) -> None:
        if not any(component.engine for component in made.components):
            raise EngineDirError(
                f"{made.root}: has no engines, it was built for {made.backend}",
                hint="--against transformers or another directory; trtprune build --backend tensorrt-rtx makes engines",
            )
        from trtprune.compare.engines import check_device

        check_device(made)
        self.made = made
        self.dtype = made.dtype
        self.name = f"{made.backend}:{made.root.name}"

    def components(self) -> Sequence[str]:
        """Names of the components with an engine."""
        return [component.name for component in self.made.components if component.engine]

    def runner(self, component: ComponentInfo) -> Any:
        """A runner of the engine."""
        from trtprune.compare.engines import engine_runner

        return engine_runner(self.made, self.made.component(component.name), self.name)

    def points(self, component: ComponentInfo) -> list[TensorPoint]:
        """The points of the graph that it was built from."""
        return find_points(self.graph(component))

    def probe(self, component: ComponentInfo, tensors: Sequence[str]) -> tuple[Any, dict[str, str]]:
        """A runner of a new build of the component with these outputs."""
        from trtprune.compare.engines import probe_runner

        return probe_runner(self.made, self.made.component(component.name), tensors, self.name)

    def graph(self, component: ComponentInfo) -> onnx.GraphProto:
        """The graph it was built from."""
        import onnx

        return onnx.load_from_string(read_model(self.made, self.made.component(component.name))).graph


def native_side(made: EngineDir, running: Running) -> GraphSide | EngineSide:
    """The side that ``trtprune run`` runs: the engines if there are any and no provider is given, else the graphs."""
    if running.provider is None and any(component.engine for component in made.components):
        return EngineSide(made)
    return GraphSide(made, running)
