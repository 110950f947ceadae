"""ONNX Runtime: the CPU and CUDA providers of its wheels.

The requested provider runs, or there is an error: never another one in silence.  The KV cache is bound once as input
and as output of the decoder, so that a step writes its rows in place and copies nothing.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trtprune.arguments import arg
from trtprune.backends.binding import CachePair, bind_dims, cache_pairs, numpy_dtype, resolve_shape, same_tensors
from trtprune.backends.external import located
from trtprune.backends.host import HostMemory, HostStep
from trtprune.backends.onnxruntime import prepacked
from trtprune.backends.onnxruntime.cache import OrtCache, new_cache, to_value
from trtprune.backends.onnxruntime.importing import first_line, import_onnxruntime, preload_cuda
from trtprune.backends.onnxruntime.threads import available_threads
from trtprune.engine_dir.graphs import count_operators, read_graph
from trtprune.engine_dir.roles import DECODER, EMBED
from trtprune.errors import BackendError, EngineDirError
from trtprune.reports.installer import to_install, to_uninstall

if TYPE_CHECKING:
    from trtprune.backends.base import CachedRow, Memory
    from trtprune.engine_dir import ComponentInfo, TensorSpec

__all__ = ["PROVIDERS", "OrtBackend", "OrtCache", "OrtSession", "available_threads"]

PROVIDERS = ("cpu", "cuda")
OPTIONS = {"cpu": ("activations",), "cuda": ("device_id", "gpu_mem_limit")}
logger = logging.getLogger("trtprune")

# Long enough for the gap between two operators.  Threads of a segment that spin longer take the processors from the
# next segment: a token then takes a fifth longer (benchmarks/bench_segments.py).
BRIEF_SPIN_US = "50"
SAVING = {
    "optimized_model_external_initializers_file_name": prepacked.DATA,
    "optimized_model_external_initializers_min_size_in_bytes": "1024",
}
"""Settings of a session that saves its graph, with its weights beside it."""
PACKED = "session.save_external_prepacked_constant_initializers"
"""The setting that saves weights in the kernels' order, too."""
QUANTISED = ("DequantizeLinear", "com.microsoft::MatMulNBits")
"""Operators whose kernel does not read back everything that it packed (ONNX Runtime 1.31: answers are wrong)."""


class OrtBackend:
    """Opens graphs in ONNX Runtime.

    Args:
        provider: ``"cpu"`` or ``"cuda"``.
        threads: Threads inside one operator; None: all that the container allows.
        options: Options of the provider. ``cpu``: ``activations`` = ``int8`` (default) or ``float32``, for graphs with
            quantised weights. The kernels for quantised weights also round the activations to 8 bits, in blocks;
            ``float32`` dequantises the weights at load and computes exactly as the graph says, with the speed and
            memory of unquantised weights. ``cuda``: ``device_id``, ``gpu_mem_limit``.

    Raises:
        BackendError: if ONNX Runtime or the provider is missing, or two wheels of ONNX Runtime are installed.
    """

    def __init__(
        self, provider: str = "cpu", threads: int | None = None, options: Mapping[str, str] | None = None
    ) -> None:
        if provider not in PROVIDERS:
            raise BackendError(f"{arg('provider', provider)}: unknown", hint=f"one of {', '.join(PROVIDERS)}")
        if threads is not None and threads < 1:
            raise BackendError(f"{arg('threads', threads)}: must be at least 1")
        self.name = provider
        self.memory: Memory = HostMemory()
        self.threads = threads if threads is not None else available_threads()
        self.options = dict(options or {})
        for name in self.options:
            if name not in OPTIONS[provider]:
                known = ", ".join(OPTIONS[provider]) or "none"
                raise BackendError(
                    f"{arg('provider_options')} {name}: provider {provider} has no such option", hint=f"it has: {known}"
                )
        activations = self.options.get("activations", "int8")
        if activations not in ("int8", "float32"):
            raise BackendError(
                f"{arg('provider_options', {'activations': activations})}: unknown", hint="int8 or float32"
            )
        self._ort = import_onnxruntime(provider)
        if provider == "cuda":
            preload_cuda(self._ort)
            if "CUDAExecutionProvider" not in self._ort.get_available_providers():
                raise BackendError(
                    f"{arg('provider', 'cuda')}: this onnxruntime has no CUDA provider",
                    hint=f"{to_uninstall('onnxruntime')} && {to_install(extra='cuda')}",
                )

    def session(self, component: ComponentInfo, root: Path) -> OrtSession:
        """Opens a component of an engine directory.

        Raises:
            BackendError: if the provider does not load or cannot run the graph.
            EngineDirError: if the graph cannot be read.
        """
        if component.dtype == "bfloat16" and self.name != "cuda":
            raise BackendError(
                f"{root}: built in bfloat16, for which ONNX Runtime's {self.name} provider has no kernels",
                hint=f"build it with {arg('dtype', 'float32')}, which computes in it from the same bfloat16 weights",
            )
        # An embedding lookup is one copy. Threads of a pool spin for a while after each run. That helps the decoder, as
        # its next step follows at once; spinning threads of other components or segments would slow it down.
        threads = 1 if component.role == EMBED else self.threads
        return self.open(
            root / component.onnx,
            component.inputs,
            component.outputs,
            threads=threads,
            spin=component.role == DECODER,
            brief=component.role == DECODER and component.segment is not None,
        )

    def step(self, embed: OrtSession, decoder: OrtSession, cache: OrtCache) -> HostStep:
        """The decode step over one cache."""
        return HostStep(embed, decoder, cache)

    def open(
        self,
        onnx_path: Path,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        *,
        threads: int | None = None,
        spin: bool = True,
        brief: bool = False,
    ) -> OrtSession:
        """Opens the graph in ``onnx_path``."""
        model = _read(onnx_path)
        session = self._prepacked_session(model, onnx_path, self._options(threads, spin=spin, brief=brief))
        if session is None:
            session = self.inference_session(model, onnx_path, threads=threads, spin=spin, brief=brief)
        return OrtSession(self._ort, session, self._device(), inputs, outputs)

    def inference_session(
        self,
        model: bytes,
        onnx_path: Path,
        *,
        threads: int | None = None,
        spin: bool = True,
        brief: bool = False,
    ) -> Any:
        """The graph ``model`` as ONNX Runtime's own ``InferenceSession``, on this provider and no other.

        Args:
            model: The serialised graph.
            onnx_path: Its name in errors; external data locations are relative to its folder.
            threads: Threads inside one operator; None: the backend's.
            spin: Whether idle threads wait actively for the next run.
            brief: Whether they do so only between two operators.

        Raises:
            BackendError: if ONNX Runtime refuses the graph or drops the provider.
        """
        session = self._new_session(model, onnx_path, self._options(threads, spin=spin, brief=brief))
        if self.name == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
            raise BackendError(
                f"{onnx_path}: the CUDA provider did not load (no GPU, or CUDA and cuDNN libraries are missing)",
                hint="trtprune doctor; --provider cpu runs without a GPU",
            )
        return session

    def prepack(self, component: ComponentInfo, root: Path) -> int:
        """Saves a component's graph as this machine's kernels want it; returns the bytes of the files.

        Later sessions of the same graph, weights, ONNX Runtime and processor open the saved one.

        Raises:
            BackendError: if ONNX Runtime refuses the graph, or the cache cannot be written.
            EngineDirError: if the graph cannot be read.
        """
        onnx_path = root / component.onnx
        model = _read(onnx_path)
        try:
            with prepacked.new_entry(self._identify(model, onnx_path)) as folder:
                options = self._options(None, spin=False, brief=False)
                options.optimized_model_filepath = str(folder / prepacked.GRAPH)
                for name, value in SAVING.items():
                    options.add_session_config_entry(f"session.{name}", value)
                options.add_session_config_entry(PACKED, "1" if _can_pack(onnx_path) else "0")
                self._new_session(model, onnx_path, options)
                return sum(file.stat().st_size for file in folder.iterdir())
        except OSError as error:
            raise BackendError(
                f"{onnx_path}: cannot be prepacked: {error.filename or 'the cache'}: {error.strerror or error}",
                hint="make it writable for you alone, or set TRTPRUNE_CACHE to another folder",
            ) from None

    def _identify(self, model: bytes, onnx_path: Path) -> prepacked.SavedGraph:
        return prepacked.identify(model, onnx_path, self._ort.__version__, self.options)

    def _prepacked_session(self, model: bytes, onnx_path: Path, options: Any) -> Any:
        """The session of the saved graph, or None."""
        if self.name != "cpu":
            return None
        try:
            path = prepacked.find(onnx_path, partial(self._identify, model, onnx_path))
        except OSError:
            return None
        if path is None:
            return None
        options.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # it is optimised already
        try:
            return self._ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # as in _new_session
            logger.warning("%s: prepacked, but cannot be opened so (%s): opened without", onnx_path, first_line(error))
            return None

    def _options(self, threads: int | None, *, spin: bool, brief: bool) -> Any:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = threads or self.threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
        if brief:
            options.add_session_config_entry("session.intra_op.spin_duration_us", BRIEF_SPIN_US)
        # The exception has the reason of a refusal; the log would repeat it on stderr.
        options.log_severity_level = 4
        # Shapes change from call to call (prompt length, batch): memory plans per shape would only accumulate.
        options.enable_mem_pattern = False
        return options

    def _new_session(self, model: bytes, onnx_path: Path, options: Any) -> Any:
        model, folder = located(model, onnx_path.parent)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        providers = self._configure(options)
        try:
            return self._ort.InferenceSession(model, options, **providers)
        except Exception as error:  # ONNX Runtime raises its own classes, RuntimeError and ValueError
            raise BackendError(f"{onnx_path}: ONNX Runtime ({self.name}) cannot open it: {first_line(error)}") from None

    def _device(self) -> tuple[str, int]:
        return ("cuda", int(self.options.get("device_id", "0"))) if self.name == "cuda" else ("cpu", 0)

    def _configure(self, options: Any) -> dict[str, Any]:
        """Adds the provider to the session options; returns further arguments of the session's constructor."""
        if self.name == "cpu":
            if self.options.get("activations") == "float32":
                options.add_session_config_entry("session.disable_quant_qdq", "1")
            # DequantizeLinear + MatMul becomes one kernel. At an accuracy level that keeps activations in float32, that
            # kernel unpacks 8-bit weights in every call, many times slower than float32 weights: 4 it is. The block
            # size applies to weights with one scale per channel; 64 is 1.5 times as fast as the default of 32.
            options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
            options.add_session_config_entry("session.qdq_matmulnbits_block_size", "64")
            return {"providers": ["CPUExecutionProvider"]}
        # Operators that run better on the CPU (shape arithmetic) may stay there, so the CPU is in the list.
        return {"providers": [("CUDAExecutionProvider", self.options), "CPUExecutionProvider"]}


class OrtSession:
    """One graph in ONNX Runtime; see :class:`trtprune.backends.base.Session`."""

    max_batch = sys.maxsize
    capacity = None

    def __init__(
        self,
        ort: Any,
        session: Any,
        device: tuple[str, int],
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
    ) -> None:
        self._ort = ort
        self._session = session
        self._device = device
        self.pairs: tuple[CachePair, ...] = cache_pairs(inputs, outputs)
        bound = {name for pair in self.pairs for name in (pair.past, pair.present)}
        self.inputs = tuple(spec for spec in inputs if spec.name not in bound)
        self.outputs = tuple(spec for spec in outputs if spec.name not in bound)
        for specs, found in ((inputs, session.get_inputs()), (outputs, session.get_outputs())):
            shapes = {value.name: value.shape for value in found}
            if not same_tensors(specs, shapes):
                raise EngineDirError(
                    "the graph's inputs or outputs are not those of config.json", hint="build it again"
                )

    def run(self, inputs: Mapping[str, np.ndarray], cache: OrtCache | None = None) -> dict[str, np.ndarray]:
        """Runs the graph; arrays must have the graph's dtypes.

        Raises:
            BackendError: for an input that does not fit, or a failure inside ONNX Runtime.
        """
        shapes = {name: array.shape for name, array in inputs.items()}
        dims = bind_dims(self.inputs, shapes, {name: array.dtype.name for name, array in inputs.items()})
        binding = self._binding(cache)
        held: list[Any] = []  # keeps bound arrays alive until the run is over
        for name, array in inputs.items():
            value = to_value(self._ort, np.ascontiguousarray(array))
            held.append(value)
            binding.bind_ortvalue_input(name, value)
        results: dict[str, np.ndarray] = {}
        for spec in self.outputs:
            shape = resolve_shape(spec, dims)
            if spec.dtype == "bfloat16":
                # ONNX Runtime hands out no bfloat16 arrays: give it the memory to write into.
                if shape is None:
                    raise BackendError(f"output {spec.name}: bfloat16 of a shape that is not known beforehand")
                results[spec.name] = np.empty(shape, numpy_dtype("bfloat16"))
                value = to_value(self._ort, results[spec.name])
                held.append(value)
                binding.bind_ortvalue_output(spec.name, value)
            else:
                binding.bind_output(spec.name, "cpu")
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            if cache is not None:
                cache.binding = None
            raise BackendError(f"ONNX Runtime: {first_line(error)}") from None
        # Outputs come in the order of their binding; those of the cache are last and are not returned.
        for spec, value in zip(self.outputs, binding.get_outputs(), strict=False):
            if spec.name not in results:
                results[spec.name] = value.numpy()
        return results

    def _binding(self, cache: OrtCache | None) -> Any:
        """The binding of a cache, with the other outputs first, so that they are returned first.

        Buffers at fixed addresses are bound once: the binding of tens of tensors is a noticeable part of a step.
        """
        if cache is not None and cache.binding is not None:
            return cache.binding
        binding = self._session.io_binding()
        for spec in self.outputs:
            binding.bind_output(spec.name, "cpu")
        if cache is not None:
            for pair in self.pairs:
                binding.bind_ortvalue_input(pair.past, cache.values[pair.past])
                binding.bind_ortvalue_output(pair.present, cache.values[pair.past])
            cache.binding = binding
        return binding

    def new_cache(self, batch: int, capacity: int, reuse: OrtCache | None = None) -> OrtCache:
        """Zeroed buffers for ``batch`` rows of ``capacity`` tokens each."""
        return new_cache(self._ort, self.pairs, batch, capacity, device=self._device, reuse=reuse)

    def grow_cache(self, cache: OrtCache, capacity: int) -> OrtCache:
        """A larger cache that begins with the content of ``cache``."""
        grown = self.new_cache(cache.batch, capacity)
        for name in cache.values:
            content = np.zeros(grown.values[name].shape(), cache.kinds[name])
            content[:, :, : cache.capacity] = cache.read(name)
            grown.values[name].update_inplace(to_value(self._ort, content))
        return grown

    def gather_rows(self, rows: Sequence[CachedRow], capacity: int, reuse: OrtCache | None = None) -> OrtCache:
        """A new cache of copies of rows."""
        gathered = self.new_cache(len(rows), capacity, reuse)
        for name, value in gathered.values.items():
            own = gathered.arrays
            content = np.zeros(value.shape(), gathered.kinds[name]) if own is None else own[name]
            for target, source in zip(content, rows, strict=True):
                target[:, : source.tokens] = source.cache.peek(name)[source.row, :, : source.tokens]
            if own is None:
                value.update_inplace(to_value(self._ort, content))
        return gathered


def _can_pack(onnx_path: Path) -> bool:
    return not {*QUANTISED} & count_operators(read_graph(onnx_path)).keys()


def _read(onnx_path: Path) -> bytes:
    try:
        return onnx_path.read_bytes()
    except OSError as error:
        raise EngineDirError(f"{onnx_path}: cannot be read: {error}", hint="build it again") from None
