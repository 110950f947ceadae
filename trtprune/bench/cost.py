"""Counted cost of a request: operations and bytes of every component, at the shapes of a real run.

The sessions of one run are recorded, so this module needs no knowledge of a method's schedule.  Counted are the
products of :mod:`trtprune.bench.flops` (two operations per multiply-and-add), and the bytes that must move with perfect
caches and fusion: every weight of a component once (for an embedding table only the used rows), the written KV cache,
in a decode step also the read one, and the component's inputs and outputs.  Weights and cache count in the type that
the provider keeps them in, which is not always that of the file.  Values between operators inside a component are not
counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trtprune.backends.binding import numpy_dtype, resolve_shape
from trtprune.backends.observed import ObservedSession
from trtprune.backends.openvino import HEAVY
from trtprune.bench.flops import COUNTS, Counted, count_products
from trtprune.engine_dir.graphs import read_graph
from trtprune.engine_dir.roles import DECODER, EMBED, RANK, RATERS, VISION, Part
from trtprune.tensor_names import WRITE_INDEX, is_past, is_present

if TYPE_CHECKING:
    from trtprune.backends.base import Session
    from trtprune.engine_dir import ComponentInfo, EngineDir
    from trtprune.runtime import Vlm

__all__ = ["Call", "Cost", "Ledger", "Reading", "listen", "stage_of", "token_calls"]

# Bits of ONNX's element types with less than a byte.
BITS = {21: 4, 22: 4, 23: 4, 25: 2, 26: 2}
FLOATS = (1, 10, 11, 16)
"""ONNX's numbers of float, float16, double and bfloat16."""


@dataclass(frozen=True)
class Call:
    """One run of a component: the values of its symbolic dimensions, and of the inputs that are shapes."""

    part: Part
    dims: tuple[tuple[str, int], ...]
    token_bytes: int = 0
    """Bytes of a token in the KV cache that it was run with."""


@dataclass(frozen=True)
class Reading:
    """The types in which a provider reads weights.

    Attributes:
        most: The most bytes of a floating-point weight; None: as it is stored, or as it is converted to.
        integers: Whether quantised weights stay integers; else they are unpacked when a graph is opened.
    """

    most: int | None = None
    integers: bool = True

    @classmethod
    def of(cls, provider: str, role: str, options: Mapping[str, str]) -> Reading:
        """The reading of a component's weights with a provider's options."""
        if provider == "openvino" and role in HEAVY:
            # Its kernels convert smaller weights while they read them.
            if role == VISION and options.get("tower") == "int8":
                return cls(1)
            return cls(2 if options.get("precision") == "bf16" else 4)
        return cls(None, options.get("activations") != "float32" or provider != "cpu")


@dataclass(frozen=True)
class Cost:
    """Operations, and bytes of weights, KV cache and activations."""

    flops: int = 0
    weights: int = 0
    kv: int = 0
    activations: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops + other.flops,
            self.weights + other.weights,
            self.kv + other.kv,
            self.activations + other.activations,
        )

    @property
    def nbytes(self) -> int:
        """The sum of the moved bytes."""
        return self.weights + self.kv + self.activations


def stage_of(part: Part) -> str:
    """The stage of a result's timings that includes a component's runs for a prompt."""
    if part.role == VISION:
        return "vision"
    # Selections between segments of a decoder are part of its prefill.
    inside = part.segment is not None or part.role in (EMBED, DECODER, RATERS, RANK)
    return "prefill" if inside else "prune"


@contextmanager
def listen(vlm: Vlm) -> Iterator[list[Call]]:
    """Yields a list, to which every run of a component of ``vlm`` is added."""
    calls: list[Call] = []

    def observed(component: ComponentInfo, session: Session) -> ObservedSession:
        return ObservedSession(session, lambda inputs, cache: calls.append(_call(component, inputs, cache)))

    with vlm.chain.wrapped(observed):
        yield calls


def _call(component: ComponentInfo, inputs: Mapping[str, Any], cache: Any) -> Call:
    dims: dict[str, int] = {}
    for spec in component.inputs:
        if spec.name in inputs:
            pairs = zip(spec.shape, inputs[spec.name].shape, strict=True)
            dims |= {name: size for name, size in pairs if isinstance(name, str)}
            if spec.name in COUNTS:
                dims[spec.name] = int(inputs[spec.name][0])
    if WRITE_INDEX in inputs:  # the attended tokens, not the capacity
        dims["capacity"] = int(max(inputs[WRITE_INDEX])) + dims["sequence"]
    token_bytes = 0 if cache is None else cache.nbytes // (cache.batch * cache.capacity)
    return Call(component.part, tuple(sorted(dims.items())), token_bytes)


def token_calls(calls: list[Call]) -> list[Call]:
    """The calls for the first decode step of an answer, after those of its prompt."""
    found = []
    for call in calls:
        if call.part.role in (EMBED, DECODER):
            dims = dict(call.dims)
            one = {name: 1 for name in ("sequence", "tokens", "raters") if name in dims}
            grown = {"capacity": dims["capacity"] + 1} if "capacity" in dims else {}
            found.append(Call(call.part, tuple(sorted((dims | one | grown).items())), call.token_bytes))
    return found


class Ledger:
    """Counts calls; each graph at each shape once, for all builds."""

    def __init__(self) -> None:
        self._counted: dict[tuple[str, Call], Counted] = {}

    def counted(self, made: EngineDir, call: Call) -> Counted:
        """The component's graph at the call's shapes.

        Raises:
            EngineDirError: if its products cannot be counted.
        """
        onnx = made.part(call.part.role, call.part.segment).onnx
        key = (made.files[onnx], call)
        if key not in self._counted:
            path = made.path(onnx)
            self._counted[key] = count_products(read_graph(path), dict(call.dims), path.parent)
        return self._counted[key]

    def cost(self, made: EngineDir, call: Call, *, token: bool = False, reading: Reading | None = None) -> Cost:
        """The cost of one call.

        Args:
            made: The directory.
            call: The call.
            token: Whether it is a decode step, which reads the cache.
            reading: The types in which weights are read; None: as they are stored.

        Raises:
            EngineDirError: if the products of its graph cannot be counted.
        """
        counted, dims = self.counted(made, call), dict(call.dims)
        kv = 0
        if call.part.role == DECODER:
            written = dims["sequence"] * dims.get("batch", 1)
            read = dims["capacity"] * dims.get("batch", 1) if token else 0
            kv = (written + read) * call.token_bytes
        component = made.part(call.part.role, call.part.segment)
        activations = sum(_size(spec, dims) for spec in (*component.inputs, *component.outputs))
        return Cost(counted.flops, _weight_bytes(counted, reading or Reading()), kv, activations)


def _size(spec: Any, dims: Mapping[str, int]) -> int:
    """Bytes of an input or output that is not a cache."""
    if is_past(spec.name) or is_present(spec.name):
        return 0
    shape = resolve_shape(spec, dims)
    return 0 if shape is None else math.prod(shape) * numpy_dtype(spec.dtype).itemsize


def _weight_bytes(counted: Counted, reading: Reading) -> int:
    """Bytes of the initialisers; of a table with look-ups only, the used rows."""
    graph = counted.model.graph
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    total = 0.0
    for tensor in graph.initializer:
        size, users = math.prod(tensor.dims), readers.get(tensor.name, [])
        if users and all(node.op_type == "Gather" and node.input[0] == tensor.name for node in users):
            looked_up = [counted.shapes.get(node.output[0]) for node in users]
            if None not in looked_up:
                size = min(size, sum(math.prod(shape) for shape in looked_up if shape is not None))
        total += size * _width(counted, tensor.data_type, users, reading) if users else 0
    return math.ceil(total)


def _width(counted: Counted, kind: int, users: list[Any], reading: Reading) -> float:
    """Bytes of an initialiser's element, as it is read in every run."""
    stored = _bytes_of(kind)
    if reading.most is not None and kind in FLOATS:
        return min(stored, reading.most)
    # What is converted before it is used is converted once, when the graph is opened.
    once = ("Cast",) if reading.integers else ("Cast", "DequantizeLinear")
    if reading.most is None and users and all(node.op_type in once for node in users):
        return max(_bytes_of(counted.kinds[node.output[0]]) for node in users)
    return stored


def _bytes_of(kind: int) -> float:
    from onnx import helper

    return BITS[kind] / 8 if kind in BITS else helper.tensor_dtype_to_np_dtype(kind).itemsize
