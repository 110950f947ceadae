"""OpenVINO's own runtime, on any processor it serves, for graphs built for it (primitive operators, opset 20).

The slow components run there: the vision tower and the decoder.  The decoder's KV cache is state inside an OpenVINO
request, which stays in place between steps, so every cache has a request of its own.  Pruners and embedding lookups run
in ONNX Runtime, in float32: OpenVINO does not know this project's functions in their graphs, and the selection of
tokens should not depend on a precision chosen for speed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trtprune.arguments import arg
from trtprune.backends.binding import CachePair, bind_dims, cache_pairs, same_tensors
from trtprune.backends.external import has_links, located
from trtprune.backends.host import HostMemory, HostStep
from trtprune.backends.onnxruntime import OrtBackend, OrtSession
from trtprune.backends.openvino_attention import append_to_states
from trtprune.backends.openvino_cache import OpenVinoCache, token_bytes
from trtprune.backends.openvino_weights import round_matrices
from trtprune.engine_dir.roles import DECODER, VISION
from trtprune.errors import BackendError, EngineDirError
from trtprune.reports.installer import to_install
from trtprune.tensor_names import POSITION_IDS, WRITE_INDEX

if TYPE_CHECKING:
    from trtprune.backends.base import CachedRow, Memory, Session
    from trtprune.engine_dir import ComponentInfo, TensorSpec

__all__ = ["HINTS", "OpenVinoBackend", "OpenVinoCache", "OpenVinoSession"]

HINTS = {"float32": "f32", "bf16": "bf16"}
"""Option ``precision`` → OpenVINO's name of it.  OpenVINO's own default depends on the processor."""
ACTIVATIONS = {"int8": "128", "float32": "0"}
"""Option ``activations`` → OpenVINO's group size for their quantisation; 0: not quantised.

On 200 questions to the demo model's int8 build, groups of 32, 128 and 256 have mean KL divergences from float32 of
0.0008, 0.0010 and 0.0018, medians of 0.00001, 0.00003 and 0.00006, and 199, 200 and 197 equal first tokens. A decoder
1,024 wide takes 1.2 to 1.4 times as long for a prompt with groups of 32 as with groups of 128, which larger ones hardly
beat.
"""
CACHES = ("full", "u8")
"""Option ``kv_cache``: keys and values in the type of ``precision``, or in 8 bits."""
TOWERS = ("full", "int8")
"""Option ``tower``: the vision tower's matrices as they are stored, or rounded to 8 bits."""
VALUES = {"precision": HINTS, "activations": ACTIVATIONS, "kv_cache": CACHES, "tower": TOWERS}
DEFAULTS = {"precision": "float32", "activations": "int8", "kv_cache": "full", "tower": "full"}
HEAVY = (VISION, DECODER)
"""Roles of the components that OpenVINO runs."""


class OpenVinoBackend:
    """Opens graphs in OpenVINO, on the CPU.

    Args:
        threads: Threads inside one operator; None: all that the container allows.
        options: ``precision`` = ``float32`` (default), or ``bf16`` for products of bfloat16: faster where the processor
            has instructions for them (AVX512-BF16, AMX), and no longer equal to float32. ``activations`` = ``int8``
            (default) or ``float32``, for graphs with quantised weights, as for provider ``cpu``. ``kv_cache`` =
            ``full`` (default): keys and values in the type of ``precision``, or ``u8``: in 8 bits with a scale and a
            zero point for each head of a token. ``tower`` = ``full`` (default), or ``int8``: the vision tower's
            matrices are rounded to 8 bits when it is opened, and its activations as ``activations`` says.

    Raises:
        BackendError: if OpenVINO or ONNX Runtime is missing or does not load, or for an unknown option.
    """

    def __init__(self, threads: int | None = None, options: Mapping[str, str] | None = None) -> None:
        self.name = "openvino"
        self.options = dict(options or {})
        chosen = {}
        for name, values in VALUES.items():
            chosen[name] = self.options.get(name, DEFAULTS[name])
            if chosen[name] not in values:
                raise BackendError(
                    f"{arg('provider_options', {name: chosen[name]})}: unknown", hint=" or ".join(values)
                )
        for name in self.options.keys() - chosen.keys():
            raise BackendError(
                f"{arg('provider_options')} {name}: provider openvino has no such option",
                hint=f"it has: {', '.join(chosen)}",
            )
        try:
            import openvino
        except ImportError as error:
            raise BackendError(
                f"{arg('provider', 'openvino')}: {_reason(error)}", hint=to_install(extra="openvino")
            ) from None
        self.small = OrtBackend("cpu", threads)
        """The backend of all components that OpenVINO does not run."""
        self.memory: Memory = HostMemory()
        self.threads = self.small.threads
        self._openvino, self._core = openvino, _core()
        self.kv_type = "u8" if chosen["kv_cache"] == "u8" else HINTS[chosen["precision"]]
        """OpenVINO's name of the type of keys and values."""
        self._properties = {
            "INFERENCE_PRECISION_HINT": HINTS[chosen["precision"]],
            "KV_CACHE_PRECISION": self.kv_type,
            "INFERENCE_NUM_THREADS": self.threads,
            "PERFORMANCE_HINT": "LATENCY",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": ACTIVATIONS[chosen["activations"]],
        }

    def runs(self, role: str) -> bool:
        """Whether OpenVINO runs components of a role; ONNX Runtime runs the others."""
        return role in HEAVY

    def session(self, component: ComponentInfo, root: Path) -> Session:
        """Opens a component of an engine directory.

        Raises:
            BackendError: if it cannot be run.
            EngineDirError: if the graph cannot be read, or its inputs are not those of config.json.
        """
        if not self.runs(component.role):
            return self.small.session(component, root)
        if component.dtype == "bfloat16":
            raise BackendError(
                f"{root}: built in bfloat16, which this version does not run in OpenVINO",
                hint=f"build it with {arg('dtype', 'float32')}, and run it with "
                f"{arg('provider_options', {'precision': 'bf16'})}",
            )
        small = self._rounds(component.role)
        return self.open(root / component.onnx, component.inputs, component.outputs, small=small)

    def _rounds(self, role: str) -> bool:
        return role == VISION and self.options.get("tower") == "int8"

    def step(self, embed: OrtSession, decoder: OpenVinoSession, cache: OpenVinoCache) -> HostStep:
        """The decode step over one cache."""
        return HostStep(embed, decoder, cache)

    def open(
        self, path: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], *, small: bool = False
    ) -> OpenVinoSession:
        """Opens the graph in ``path``; ``small``: with its matrices rounded to 8 bits."""
        try:
            path.open("rb").close()
        except OSError as error:
            raise EngineDirError(f"{path}: cannot be read: {error}", hint="build it again") from None
        pairs = cache_pairs(inputs, outputs)
        try:
            model = self._read(None, path)
            for specs, ports in ((inputs, model.inputs), (outputs, model.outputs)):
                # A port has several names where the graph only renames a tensor.
                wanted, names = {spec.name for spec in specs}, [port.get_names() for port in ports]
                if not wanted <= set().union(*names) or len(ports) > len(wanted):
                    raise EngineDirError(
                        f"{path}: the graph's inputs or outputs are not those of config.json", hint="build it again"
                    )
            for pair in pairs:
                sizes = [size.get_length() if size.is_static else None for size in model.input(pair.past).partial_shape]
                if not same_tensors([pair.spec], {pair.past: sizes}):
                    raise EngineDirError(f"{path}: {pair.past} is not that of config.json", hint="build it again")
            if small and not round_matrices(model):
                raise BackendError(
                    f"{path}: {arg('provider_options', {'tower': 'int8'})}: no product with a constant matrix is in it",
                    hint="leave it out",
                )
            other = append_to_states(model, pairs) if pairs else None
            if other is not None:
                raise BackendError(
                    f"{path}: the attention over {other} is not written as provider openvino needs it",
                    hint="trtprune build --provider openvino, without --lowering",
                )
            compiled = self._core.compile_model(model, "CPU", self._properties)
        except RuntimeError as error:
            raise _refusal(path, error) from None
        return OpenVinoSession(self._openvino, compiled, pairs, inputs, outputs, token_bytes(pairs, self.kv_type))

    def compile(self, graph: bytes | None, path: Path) -> Any:
        """The serialised graph as OpenVINO's own ``CompiledModel``, a cache being ordinary inputs and outputs.

        Args:
            graph: The serialised graph; None is that in ``path``.
            path: Its name in errors; external data locations are relative to its folder.

        Raises:
            BackendError: if OpenVINO refuses it.
        """
        try:
            return self._core.compile_model(self._read(graph, path), "CPU", self._properties)
        except RuntimeError as error:
            raise _refusal(path, error) from None

    def product(self, graph: bytes, path: Path, role: str = DECODER) -> Any:
        """As :meth:`compile`, for a product alone as it is inside of a component of ``role``.

        Floating inputs and outputs have the type of ``precision``, and weights that of ``tower``.
        """
        from openvino import Type
        from openvino.preprocess import PrePostProcessor

        try:
            model = self._read(graph, path)
            if self._rounds(role):
                round_matrices(model)
            if self._properties["INFERENCE_PRECISION_HINT"] == "bf16":
                ends = PrePostProcessor(model)
                for ports, end in ((model.inputs, ends.input), (model.outputs, ends.output)):
                    for number, port in enumerate(ports):
                        if port.get_element_type() == Type.f32:
                            end(number).tensor().set_element_type(Type.bf16)
                model = ends.build()
            return self._core.compile_model(model, "CPU", self._properties)
        except RuntimeError as error:
            raise _refusal(path, error) from None

    def _read(self, graph: bytes | None, path: Path) -> Any:
        if graph is None and not has_links(path.parent):
            return self._core.read_model(path)
        graph, folder = located(path.read_bytes() if graph is None else graph, path.parent)
        with _inside(folder):
            return self._core.read_model(graph)

    def runner(
        self, graph: bytes, path: Path, outputs: Sequence[str]
    ) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
        """A function that runs a graph with its cache as ordinary inputs and outputs; arrays by name.

        Raises:
            BackendError: if OpenVINO refuses it.
        """
        request = self.compile(graph, path).create_infer_request()

        def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return _infer(self._openvino, request, inputs, outputs)

        return run


@functools.cache
def _core() -> Any:
    """OpenVINO's core: one for the whole process, never released.

    Each core's CPU plugin (2026.4) installs a stack for signal handlers in the thread, and restores the earlier one at
    its end.  If two cores do not end in reverse order, the second restores a stack that the first has freed.  Python's
    handlers run on it, and the next Ctrl-C is a segmentation fault.
    """
    import openvino

    return openvino.Core()


class OpenVinoSession:
    """One compiled graph; see :class:`trtprune.backends.base.Session`."""

    max_batch = sys.maxsize
    capacity = None

    def __init__(
        self,
        openvino: Any,
        compiled: Any,
        pairs: tuple[CachePair, ...],
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        kv_bytes: int = 0,
    ) -> None:
        self._openvino, self._compiled, self.pairs = openvino, compiled, pairs
        self.kv_bytes = kv_bytes
        """Bytes of a token's keys and values."""
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
        if cache is not None:
            count = inputs[POSITION_IDS].shape[-1]
            inputs = {**inputs, **cache.extend(inputs[WRITE_INDEX], count)}
        return _infer(self._openvino, request, inputs, [spec.name for spec in self.outputs])

    def new_cache(self, batch: int, capacity: int, reuse: OpenVinoCache | None = None) -> OpenVinoCache:
        """An empty cache for ``batch`` rows of ``capacity`` tokens each; the request of ``reuse`` is used again."""
        request = reuse.request if reuse is not None else self._compiled.create_infer_request()
        return OpenVinoCache(self._openvino, request, self.pairs, batch, capacity, self.kv_bytes)

    def grow_cache(self, cache: OpenVinoCache, capacity: int) -> OpenVinoCache:
        """The same cache: its memory grows with its tokens."""
        cache.set_capacity(capacity)
        return cache

    def gather_rows(
        self, rows: Sequence[CachedRow], capacity: int, reuse: OpenVinoCache | None = None
    ) -> OpenVinoCache:
        """A new cache of copies of rows."""
        gathered = self.new_cache(len(rows), capacity, reuse)
        gathered.take(rows)
        return gathered


def _infer(
    openvino: Any, request: Any, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]
) -> dict[str, np.ndarray]:
    held = [np.ascontiguousarray(array) for array in inputs.values()]  # shared memory: must live until the run is over
    try:
        for name, array in zip(inputs, held, strict=True):
            request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
        request.infer()
        # The request writes its next results into the same memory.
        return {name: np.array(request.get_tensor(name).data) for name in outputs}
    except RuntimeError as error:
        raise BackendError(f"OpenVINO: {_reason(error)}") from None


_FOLDER = threading.Lock()
"""The working directory is the whole process's."""


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """A working directory for a graph in memory: OpenVINO looks for its weights there, and nowhere else."""
    with _FOLDER:
        before = os.open(".", os.O_RDONLY)
        try:
            os.chdir(folder)
            yield
        finally:
            os.fchdir(before)
            os.close(before)


def _refusal(path: Path, error: RuntimeError) -> BackendError:
    return BackendError(
        f"{path}: OpenVINO cannot open it: {_reason(error)}",
        hint="trtprune build --provider openvino writes graphs it knows",
    )


def _reason(error: BaseException) -> str:
    """The reason at the end of OpenVINO's message, without the place in its sources at the beginning."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
