"""Counted cost of a request: operations and bytes of every component, at the shapes of a real run.

The sessions of one run are recorded, so this module needs no knowledge of a method's schedule.  Counted are the
products of :mod:`trtprune.bench.flops` (two operations per multiply-and-add), and the bytes that must move with perfect
caches and fusion: every weight of a component once (for an embedding table only the used rows), the written KV cache,
in a decode step also the read one, and the component's inputs and outputs.  Values between operators inside a component
are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trtprune.backends.binding import numpy_dtype, resolve_shape
from trtprune.backends.observed import ObservedSession
from trtprune.bench.flops import COUNTS, Counted, count_products
from trtprune.engine_dir.graphs import read_graph
from trtprune.engine_dir.roles import DECODER, EMBED, RANK, RATERS, VISION, Part
from trtprune.tensor_names import WRITE_INDEX, is_past, is_present

if TYPE_CHECKING:
    from trtprune.backends.base import Session
    from trtprune.engine_dir import ComponentInfo, EngineDir
    from trtprune.runtime import Vlm

__all__ = ["Call", "Cost", "Ledger", "listen", "stage_of", "token_calls"]

# Bits of ONNX's element types with less than a byte.
BITS = {21: 4, 22: 4, 23: 4, 25: 2, 26: 2}


@dataclass(frozen=True)
class Call:
    """One run of a component: the values of its symbolic dimensions, and of the inputs that are shapes."""

    part: Part
    dims: tuple[tuple[str, int], ...]


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
        return ObservedSession(session, lambda inputs, cache: calls.append(_call(component, inputs)))

    with vlm.chain.wrapped(observed):
        yield calls


def _call(component: ComponentInfo, inputs: Mapping[str, Any]) -> Call:
    dims: dict[str, int] = {}
    for spec in component.inputs:
        if spec.name in inputs:
            pairs = zip(spec.shape, inputs[spec.name].shape, strict=True)
            dims |= {name: size for name, size in pairs if isinstance(name, str)}
            if spec.name in COUNTS:
                dims[spec.name] = int(inputs[spec.name][0])
    if WRITE_INDEX in inputs:  # the attended tokens, not the capacity
        dims["capacity"] = int(max(inputs[WRITE_INDEX])) + dims["sequence"]
    return Call(component.part, tuple(sorted(dims.items())))


def token_calls(calls: list[Call]) -> list[Call]:
    """The calls for the first decode step of an answer, after those of its prompt."""
    found = []
    for call in calls:
        if call.part.role in (EMBED, DECODER):
            dims = dict(call.dims)
            one = {name: 1 for name in ("sequence", "tokens", "raters") if name in dims}
            grown = {"capacity": dims["capacity"] + 1} if "capacity" in dims else {}
            found.append(Call(call.part, tuple(sorted((dims | one | grown).items()))))
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

    def cost(self, made: EngineDir, call: Call, *, token: bool = False) -> Cost:
        """The cost of one call; ``token``: whether it is a decode step, which reads the cache."""
        counted, dims = self.counted(made, call), dict(call.dims)
        kv = 0
        if call.part.role == DECODER:
            written = dims["sequence"] * dims.get("batch", 1)
            read = dims["capacity"] * dims.get("batch", 1) if token else 0
            kv = (written + read) * _kv_per_token(made, call.part.segment)
        component = made.part(call.part.role, call.part.segment)
        activations = sum(_size(spec, dims) for spec in (*component.inputs, *component.outputs))
        return Cost(counted.flops, _weight_bytes(counted), kv, activations)


def _kv_per_token(made: EngineDir, segment: int | None) -> int:
    layers = made.kv.num_layers if segment is None else made.kv.segment_layers[segment]
    return made.kv.bytes_per_token * layers // made.kv.num_layers


def _size(spec: Any, dims: Mapping[str, int]) -> int:
    """Bytes of an input or output that is not a cache."""
    if is_past(spec.name) or is_present(spec.name):
        return 0
    shape = resolve_shape(spec, dims)
    return 0 if shape is None else math.prod(shape) * numpy_dtype(spec.dtype).itemsize


def _weight_bytes(counted: Counted) -> int:
    """Bytes of the initialisers; of a table with look-ups only, the used rows."""
    import onnx

    graph = counted.model.graph
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    total = 0.0
    for tensor in graph.initializer:
        kind = tensor.data_type
        width = BITS[kind] / 8 if kind in BITS else onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize
        size = math.prod(tensor.dims)
        users = readers.get(tensor.name, [])
        if users and all(node.op_type == "Gather" and node.input[0] == tensor.name for node in users):
            looked_up = [counted.shapes.get(node.output[0]) for node in users]
            if None not in looked_up:
                size = min(size, sum(math.prod(shape) for shape in looked_up if shape is not None))
        total += size * width if users else 0
    return math.ceil(total)
