"""The products of components, each run alone by the same runtime with the same weights and threads.

A component's products differ in the rate they reach, so its largest shapes are measured, and its floor has the best
rate.  Values go in and come out in the type that the runtime computes in: between the layers of a component nothing is
converted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from trtprune.bench.floor import Probe
from trtprune.engine_dir.roles import DECODER

if TYPE_CHECKING:
    from pathlib import Path

    from trtprune.backends.onnxruntime import OrtBackend
    from trtprune.backends.openvino import OpenVinoBackend
    from trtprune.bench.flops import Counted

__all__ = ["ProductProbe", "ProductProbes", "run_product"]

PRODUCTS = ("Conv", "Gemm", "MatMul")
MOST = 3
"""Shapes of a component that are measured."""


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
        self._opened: dict[tuple[str, str, bytes], Any] = {}
        self._probes: dict[tuple[Any, ...], ProductProbe] = {}

    def __iter__(self) -> Iterator[ProductProbe]:
        return iter(self._probes.values())

    def of(self, counted: Counted, root: Path, role: str) -> list[ProductProbe]:
        """The products with most of a graph's operations, at its shapes, the largest first.

        Args:
            counted: The graph.
            root: The folder of its ``.onnx`` file.
            role: The role of the graph's component; some backends run components in different libraries.

        Raises:
            BackendError: if one does not run alone.
        """
        return [self._probe(counted, node, work, root, role) for node, work in _largest(counted)]

    def _probe(self, counted: Counted, node: Any, work: int, root: Path, role: str) -> ProductProbe:
        model, inputs = _cut_out(counted, node)
        content = model.SerializeToString()
        backend: Any = self._backend
        if backend.name == "openvino" and not backend.runs(role):
            backend = backend.small
        # The same weights are opened once for all shapes.
        weights = (backend.name, role, content)
        key = (*weights, *(counted.shapes[name] for name in inputs))
        if key not in self._probes:
            if weights not in self._opened:
                self._opened[weights] = _open(backend, content, root / "product.onnx", role)
            rng = np.random.default_rng(0)
            arrays = {
                name: rng.standard_normal(counted.shapes[name] or ()).astype(_dtype(counted.kinds[name]))
                for name in [*inputs, node.output[0]]
            }
            run = _bound(backend, self._opened[weights], arrays, node.output[0])
            sizes = " x ".join(str(list(counted.shapes[name] or ())) for name in node.input[:2])
            self._probes[key] = ProductProbe(f"{node.op_type} {sizes}", work, run, arrays, self._clock)
        return self._probes[key]


def run_product(
    backend: Any, graph: bytes, path: Path, arrays: dict[str, np.ndarray], output: str
) -> Callable[[], Any]:
    """A function that runs a serialised graph once.

    Args:
        backend: An :class:`OrtBackend` or an :class:`OpenVinoBackend`.
        graph: The graph.
        path: Its name in errors; external data locations are relative to its folder.
        arrays: Inputs and the output.
        output: Name of the output.
    """
    return _bound(backend, _open(backend, graph, path), arrays, output)


def _open(backend: Any, graph: bytes, path: Path, role: str = DECODER) -> Any:
    if backend.name == "openvino":
        return backend.product(graph, path, role)
    return backend.inference_session(graph, path)


def _bound(backend: Any, opened: Any, arrays: dict[str, np.ndarray], output: str) -> Callable[[], Any]:
    return (_in_openvino if backend.name == "openvino" else _in_onnxruntime)(opened, arrays, output)


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
    import ml_dtypes
    import openvino

    request, held = compiled.create_infer_request(), []
    for port in (*compiled.inputs, *compiled.outputs):
        array = arrays[port.get_any_name()]
        if port.get_element_type() == openvino.Type.bf16:
            held.append(array.astype(ml_dtypes.bfloat16).view(np.uint16))
            tensor = openvino.Tensor(held[-1], list(array.shape), openvino.Type.bf16)
        else:
            tensor = openvino.Tensor(array, shared_memory=True)
        request.set_tensor(port, tensor)

    def run() -> None:
        request.infer()
        assert held is not None  # the memory behind its tensors must live as long

    return run


def _largest(counted: Counted) -> list[tuple[Any, int]]:
    """A node of each of the shapes with most operations, and its number of operations."""
    totals: dict[tuple[Any, ...], int] = {}
    first: dict[tuple[Any, ...], tuple[Any, int]] = {}
    for node, count in counted.products:
        if node.op_type in PRODUCTS and count:
            key = (node.op_type, *(counted.shapes.get(name) for name in (*node.input[:2], node.output[0])))
            totals[key] = totals.get(key, 0) + count
            first.setdefault(key, (node, count))
    return [first[key] for key in sorted(totals, key=lambda key: -totals[key])[:MOST]]


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
