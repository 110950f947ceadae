"""The machine's speed at the two parts of a request: matrix products, and moving bytes.

Both are measured in the same rounds as the requests, so that a drift of the machine's speed affects them, too.  The
product is the component's own: the one with most of its operations, cut out of its graph with its weights (also
quantised ones), run alone by the same runtime with the same threads.  Bytes are moved by copying a block that is larger
than all caches, with the same number of threads; read and written bytes both count.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from trtprune.backends.onnxruntime import OrtBackend
    from trtprune.backends.openvino import OpenVinoBackend
    from trtprune.bench.flops import Counted

__all__ = ["CopyProbe", "Probe", "ProductProbe", "ProductProbes", "Rate", "floor_ms"]

COPY_BYTES = 256 << 20
# The shortest time of a probe: a shorter one would measure the timer.
LEAST_SECONDS = 1e-3
PRODUCTS = ("Conv", "Gemm", "MatMul")


def floor_ms(flops: float, nbytes: float, flops_per_s: float | None, bytes_per_s: float | None) -> float:
    """Milliseconds of the slower of the two: ``max(flops / rate, bytes / bandwidth)``.

    A rate that was not measured is ignored.
    """
    compute = flops / flops_per_s if flops_per_s else 0.0
    move = nbytes / bytes_per_s if bytes_per_s else 0.0
    return 1000 * max(compute, move)


@dataclass
class Rate:
    """Work per second, in several rounds."""

    work: float
    samples: list[float] = field(default_factory=list)

    @property
    def median(self) -> float | None:
        """Median over the rounds; None before the first."""
        return statistics.median(self.samples) if self.samples else None

    def to_json(self, unit: float = 1e9) -> dict[str, float]:
        """Median, slowest and fastest round, in billions per second."""
        found = {"p50": statistics.median(self.samples), "min": min(self.samples), "max": max(self.samples)}
        return {name: round(value / unit, 3) for name, value in found.items()}


class Probe:
    """A repeated piece of work; ``work`` is the amount of one repetition."""

    def __init__(self, name: str, work: float, clock: Callable[[], float]) -> None:
        self.name = name
        self.rate = Rate(work)
        self._clock = clock
        self._times = 1

    def once(self) -> None:
        raise NotImplementedError

    def warm_up(self) -> None:
        """Runs it, and finds the number of repetitions of a sample."""
        self.once()
        start = self._clock()
        self.once()
        spent = self._clock() - start
        self._times = max(1, math.ceil(LEAST_SECONDS / spent)) if spent > 0 else 1

    def sample(self) -> None:
        """Records one more sample."""
        start = self._clock()
        for _ in range(self._times):
            self.once()
        spent = self._clock() - start
        if spent > 0:
            self.rate.samples.append(self.rate.work * self._times / spent)


class CopyProbe(Probe):
    """Copies a large block; its work is the number of read and written bytes.

    Args:
        threads: Number of threads, each with a part of the block.
        size: Size of the block in bytes.
        clock: Clock in seconds.
    """

    def __init__(self, threads: int, size: int = COPY_BYTES, clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__("copy", 2 * size, clock)
        source, target = np.ones(size, np.uint8), np.empty(size, np.uint8)
        edges = np.linspace(0, size, threads + 1).astype(int).tolist()
        self._parts = [(target[a:b], source[a:b]) for a, b in itertools.pairwise(edges)]
        self._pool = ThreadPoolExecutor(threads)

    def once(self) -> None:
        # NumPy copies without holding Python's lock.
        list(self._pool.map(lambda part: np.copyto(*part), self._parts))


class ProductProbe(Probe):
    """One product at one shape; its work is the number of operations."""

    def __init__(
        self,
        name: str,
        work: float,
        run: Callable[[], Any],
        arrays: dict[str, np.ndarray],
        clock: Callable[[], float],
    ) -> None:
        super().__init__(name, work, clock)
        self._run = run
        self.arrays = arrays
        """The operands and, last, the product; bound by ``run``, so they live as long."""

    def once(self) -> None:
        self._run()


class ProductProbes:
    """The largest products of components, each once.

    Args:
        backend: The backend that runs them.
        clock: Seconds.
    """

    def __init__(self, backend: OrtBackend | OpenVinoBackend, clock: Callable[[], float] = time.perf_counter) -> None:
        self._backend, self._clock = backend, clock
        self._opened: dict[tuple[bool, bytes], Any] = {}
        self._probes: dict[tuple[Any, ...], ProductProbe] = {}

    def __iter__(self) -> Iterator[ProductProbe]:
        return iter(self._probes.values())

    def of(self, counted: Counted, root: Path, role: str) -> ProductProbe | None:
        """The product with most of a graph's operations, at its shapes; None for a graph without products.

        Args:
            counted: The graph.
            root: The folder of its ``.onnx`` file.
            role: The role of the graph's component; some backends run components in different libraries.

        Raises:
            BackendError: if it does not run alone.
        """
        node, work = _largest(counted)
        if node is None:
            return None
        model, inputs = _cut_out(counted, node)
        content = model.SerializeToString()
        plain = self._backend.name != "openvino"
        backend: Any = self._backend
        if not plain and not backend.runs(role):
            plain, backend = True, backend.small
        key = (plain, content, *(counted.shapes[name] for name in inputs))
        if key not in self._probes:
            if (plain, content) not in self._opened:  # the same weights are opened once for all shapes
                opener = backend.inference_session if plain else backend.compile
                self._opened[plain, content] = opener(content, root / "product.onnx")
            rng, opened = np.random.default_rng(0), self._opened[plain, content]
            arrays = {
                name: rng.standard_normal(counted.shapes[name] or ()).astype(_dtype(counted.kinds[name]))
                for name in [*inputs, node.output[0]]
            }
            run = (_in_onnxruntime if plain else _in_openvino)(opened, arrays, node.output[0])
            sizes = " x ".join(str(list(counted.shapes[name] or ())) for name in node.input[:2])
            self._probes[key] = ProductProbe(f"{node.op_type} {sizes}", work, run, arrays, self._clock)
        return self._probes[key]


def _in_onnxruntime(session: Any, arrays: dict[str, np.ndarray], output: str) -> Callable[[], Any]:
    from trtprune.backends.onnxruntime.cache import to_value

    import onnxruntime as ort  # isort: skip  behind our backends: they keep it from reporting usage

    binding, values = session.io_binding(), {name: to_value(ort, array) for name, array in arrays.items()}
    for name, value in values.items():
        (binding.bind_ortvalue_output if name == output else binding.bind_ortvalue_input)(name, value)

    def run() -> None:
        session.run_with_iobinding(binding)
        assert values  # they must live as long as the binding

    return run


def _in_openvino(compiled: Any, arrays: dict[str, np.ndarray], output: str) -> Callable[[], Any]:
    import openvino

    request = compiled.create_infer_request()
    for name, array in arrays.items():
        request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
    found: Callable[[], Any] = request.infer
    return found


def _largest(counted: Counted) -> tuple[Any, int]:
    """A node of the shape with most operations, and its number of operations."""
    totals: dict[tuple[Any, ...], int] = {}
    first: dict[tuple[Any, ...], tuple[Any, int]] = {}
    for node, count in counted.products:
        if node.op_type in PRODUCTS and count:
            key = (node.op_type, *(counted.shapes.get(name) for name in (*node.input[:2], node.output[0])))
            totals[key] = totals.get(key, 0) + count
            first.setdefault(key, (node, count))
    if not totals:
        return None, 0
    return first[max(totals, key=lambda key: totals[key])]


def _cut_out(counted: Counted, node: Any) -> tuple[Any, list[str]]:
    """A model of one node and the nodes behind its weights; the names of its inputs."""
    from onnx import helper

    graph = counted.model.graph
    makers = {name: maker for maker in graph.node for name in maker.output}
    weights = {tensor.name: tensor for tensor in graph.initializer}

    def fixed(name: str) -> bool:
        if not name or name in weights:
            return True
        maker = makers.get(name)
        return maker is not None and maker.op_type != "Shape" and all(map(fixed, maker.input))

    needed: dict[str, Any] = {}
    chosen: dict[int, Any] = {}

    def take(name: str) -> None:
        if name in weights:
            needed[name] = weights[name]
        elif name and id(makers[name]) not in chosen:
            for source in makers[name].input:
                take(source)
            chosen[id(makers[name])] = makers[name]

    inputs = [name for name in node.input if not fixed(name)]
    for name in node.input:
        if name not in inputs:
            take(name)
    # Without sizes, so that one session serves all of them.
    given = [helper.make_tensor_value_info(n, counted.kinds[n], [None] * len(counted.shapes[n] or ())) for n in inputs]
    out = node.output[0]
    made = helper.make_tensor_value_info(out, counted.kinds[out], [None] * len(counted.shapes[out] or ()))
    small = helper.make_graph([*chosen.values(), node], "product", given, [made], list(needed.values()))
    model = helper.make_model(small, opset_imports=counted.model.opset_import, ir_version=counted.model.ir_version)
    return model, inputs


def _dtype(kind: int) -> np.dtype:
    from onnx import helper

    return np.dtype(helper.tensor_dtype_to_np_dtype(kind))
