"""A graph in OpenVINO as one of Polygraphy's runners."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from trtprune.backends.openvino import OpenVinoBackend

__all__ = ["openvino_runner"]


class _OpenVinoRunner(BaseRunner):
    def __init__(self, backend: OpenVinoBackend, graph: bytes, path: Path, name: str) -> None:
        super().__init__(name=name, prefix="openvino")
        import onnx

        model = onnx.load_from_string(graph).graph
        outputs = [value.name for value in model.output]
        self._open = lambda: backend.runner(graph, path, outputs)
        self._inputs = _metadata(model.input)
        self._run: Any = None

    def activate_impl(self) -> None:
        self._run = self._open()

    def get_input_metadata_impl(self) -> TensorMetadata:
        return self._inputs

    def infer_impl(self, feed_dict: Mapping[str, np.ndarray]) -> OrderedDict[str, np.ndarray]:
        start = time.time()
        found: OrderedDict[str, np.ndarray] = OrderedDict(self._run(feed_dict))
        self.inference_time = time.time() - start
        return found

    def deactivate_impl(self) -> None:
        self._run = None


def openvino_runner(backend: OpenVinoBackend, graph: bytes, path: Path, name: str) -> BaseRunner:
    """A runner of the serialised graph; ``path`` as in :meth:`OpenVinoBackend.compile`."""
    return _OpenVinoRunner(backend, graph, path, name)


def _metadata(values: Sequence[onnx.ValueInfoProto]) -> TensorMetadata:
    from onnx import helper

    found = TensorMetadata()
    for value in values:
        kind = value.type.tensor_type
        shape = [d.dim_param or None if d.HasField("dim_param") else d.dim_value for d in kind.shape.dim]
        found.add(value.name, helper.tensor_dtype_to_np_dtype(kind.elem_type), shape)
    return found
