"""ONNX Runtime: the CPU and CUDA providers of its wheels.

The requested provider runs, or there is an error: never another one in silence.  The KV cache is bound once as input
and as output of the decoder, so that a step writes its rows in place and copies nothing.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trtprune.arguments import arg
from trtprune.backends.binding import CachePair, bind_dims, cache_pairs, numpy_dtype, resolve_shape, same_tensors
from trtprune.backends.external import located
from trtprune.backends.host import HostMemory, HostStep
from trtprune.backends.onnxruntime.cache import OrtCache, new_cache, to_value
from trtprune.backends.onnxruntime.threads import available_threads
from trtprune.engine_dir.roles import DECODER, EMBED
from trtprune.errors import BackendError, EngineDirError
from trtprune.reports.installer import to_install, to_uninstall

if TYPE_CHECKING:
    from trtprune.backends.base import CachedRow, Memory
    from trtprune.engine_dir import ComponentInfo, TensorSpec

__all__ = ["PROVIDERS", "OrtBackend", "OrtCache", "OrtSession", "available_threads"]

PROVIDERS = ("cpu", "cuda")
OLDEST = (1, 25)
"""The first release with every operator of the graphs."""
OPTIONS = {"cpu": ("activations",), "cuda": ("device_id", "gpu_mem_limit")}
logger = logging.getLogger("trtprune")

# Long enough for the gap between two operators.  Threads of a segment that spin longer take the processors from the
# next segment: a token then takes a fifth longer (benchmarks/bench_segments.py).
BRIEF_SPIN_US = "50"


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
        self._ort = _import_onnxruntime(provider)
        if provider == "cuda":
            _preload_cuda(self._ort)
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
        try:
            model = onnx_path.read_bytes()
        except OSError as error:
            raise EngineDirError(f"{onnx_path}: cannot be read: {error}", hint="build it again") from None
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
        ort = self._ort
        options = ort.SessionOptions()
        threads = threads or self.threads
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
        if brief:
            options.add_session_config_entry("session.intra_op.spin_duration_us", BRIEF_SPIN_US)
        # The exception has the reason of a refusal; the log would repeat it on stderr.
        options.log_severity_level = 4
        model, folder = located(model, onnx_path.parent)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        # Shapes change from call to call (prompt length, batch): memory plans per shape would only accumulate.
        options.enable_mem_pattern = False
        providers = self._configure(options)
        try:
            session = ort.InferenceSession(model, options, **providers)
        except Exception as error:  # ONNX Runtime raises its own classes, RuntimeError and ValueError
            raise BackendError(
                f"{onnx_path}: ONNX Runtime ({self.name}) cannot open it: {_first_line(error)}"
            ) from None
        if self.name == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
            raise BackendError(
                f"{onnx_path}: the CUDA provider did not load (no GPU, or CUDA and cuDNN libraries are missing)",
                hint="trtprune doctor; --provider cpu runs without a GPU",
            )
        return session

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
            raise BackendError(f"ONNX Runtime: {_first_line(error)}") from None
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


def _import_onnxruntime(provider: str) -> Any:
    wheels = [name for name in ("onnxruntime", "onnxruntime-gpu") if _installed(name)]
    if len(wheels) == 2:
        drop = "onnxruntime" if provider == "cuda" else "onnxruntime-gpu"
        keep = "onnxruntime-gpu" if provider == "cuda" else "onnxruntime"
        raise BackendError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files",
            hint=f"{to_uninstall(drop)} && {to_install(keep, again=True)}",
        )
    try:
        import onnxruntime
    except ImportError as error:
        if wheels:
            reason = f"onnxruntime does not load: {_first_line(error)}"
        else:
            reason = f"{arg('provider', provider)} needs ONNX Runtime, which is not installed"
        raise BackendError(reason, hint=to_install(extra=provider)) from None
    have = tuple(int(part) for part in re.findall(r"\d+", onnxruntime.__version__)[:2])
    if have < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise BackendError(
            f"onnxruntime {onnxruntime.__version__} is too old for the graphs, which need {oldest}",
            hint=to_install(f"{wheels[0] if wheels else 'onnxruntime'}>={oldest}", upgrade=True),
        )
    return onnxruntime


def _preload_cuda(ort: Any) -> None:
    """Loads CUDA and cuDNN from their own wheels, where the provider would not look for them.

    onnxruntime only prints what is missing; opening a graph then fails, because the provider does not load.
    """
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        ort.preload_dlls()
    if said.getvalue():
        logger.debug("onnxruntime.preload_dlls: %s", " ".join(said.getvalue().split()))


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
