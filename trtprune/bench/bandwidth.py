"""The rate at which the machine moves bytes: the best of several ways, since none is the fastest on every machine.

A block that is larger than all caches is copied and summed by NumPy, and multiplied with a row of numbers by the
runtime itself, as a decode step reads its weights.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trtprune.bench.floor import Probe
from trtprune.bench.machine import cache_bytes

if TYPE_CHECKING:
    from trtprune.backends.onnxruntime import OrtBackend
    from trtprune.backends.openvino import OpenVinoBackend

__all__ = ["CopyProbe", "SumProbe", "WeightProbe", "bandwidth_probes"]

BLOCK_BYTES = 256 << 20
LEAST_MATRIX = 64 << 20
WIDTH = 4096
"""Width of the matrix of :class:`WeightProbe`, that of a language model of 7 billion weights."""

Clock = Callable[[], float]


class _Blocks(Probe):
    """Work on a block in as many parts as there are threads.

    Args:
        name: Name of the way.
        work: Bytes that move in one repetition.
        threads: Number of threads, each with a part of the block.
        clock: Clock in seconds.
    """

    parts: list[Any]

    def __init__(self, name: str, work: float, threads: int, clock: Clock) -> None:
        super().__init__(name, work, clock)
        self._pool = ThreadPoolExecutor(threads)

    def once(self) -> None:
        list(self._pool.map(self.part, self.parts))

    def part(self, part: Any) -> None:
        """The work on one part."""
        raise NotImplementedError


class CopyProbe(_Blocks):
    """Copies a block of ``size`` bytes; read and written ones both count.  Other arguments as of the class above."""

    def __init__(self, threads: int, size: int = BLOCK_BYTES, clock: Clock = time.perf_counter) -> None:
        super().__init__("copy", 2 * size, threads, clock)
        source, target = np.ones(size, np.uint8), np.empty(size, np.uint8)
        self.parts = [(target[a:b], source[a:b]) for a, b in _edges(size, threads)]

    def part(self, part: Any) -> None:
        np.copyto(*part)  # without Python's lock, as the sum below


class SumProbe(_Blocks):
    """Sums a block of ``size`` bytes, as float32; arguments as of :class:`CopyProbe`."""

    def __init__(self, threads: int, size: int = BLOCK_BYTES, clock: Clock = time.perf_counter) -> None:
        super().__init__("sum", size // 4 * 4, threads, clock)
        source = np.ones(size // 4, np.float32)
        self.parts = [source[a:b] for a, b in _edges(len(source), threads)]

    def part(self, part: Any) -> None:
        np.add.reduce(part)


class WeightProbe(Probe):
    """A row times a matrix, by the runtime; the matrix counts, in the type that the runtime keeps it in.

    Args:
        backend: The runtime.
        size: Bytes of the matrix.
        clock: Clock in seconds.
    """

    def __init__(
        self, backend: OrtBackend | OpenVinoBackend, size: int = BLOCK_BYTES, clock: Clock = time.perf_counter
    ) -> None:
        from onnx import TensorProto, helper, numpy_helper

        from trtprune.bench.products import run_product

        half = backend.name == "openvino" and backend.options.get("precision") == "bf16"
        columns = size // (2 if half else 4) // WIDTH
        super().__init__("row x matrix", WIDTH * columns * (2 if half else 4), clock)
        matrix = np.full((WIDTH, columns), 0.5, np.float32)
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in ("x", "y")]
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
        graph = helper.make_graph([node], "row", ends[:1], ends[1:], [numpy_helper.from_array(matrix, "w")])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        self._arrays = {"x": np.ones((1, WIDTH), np.float32), "y": np.empty((1, columns), np.float32)}
        self._run = run_product(backend, model.SerializeToString(), Path("row.onnx"), self._arrays, "y")

    def once(self) -> None:
        self._run()


def bandwidth_probes(backend: OrtBackend | OpenVinoBackend, threads: int) -> list[Probe]:
    """All ways."""
    return [CopyProbe(threads), SumProbe(threads), WeightProbe(backend, max(LEAST_MATRIX, 2 * cache_bytes()))]


def _edges(count: int, threads: int) -> list[tuple[int, int]]:
    return list(itertools.pairwise(np.linspace(0, count, threads + 1).astype(int).tolist()))
