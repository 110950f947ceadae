"""A thin layer over onnx-ir and onnxscript for writing transformer graphs by hand.

``Graph`` holds one ONNX graph whose weights stay in the checkpoint's safetensors files; ``ops`` and ``attention``
hold the few building blocks that need more than one ONNX node; ``Lowering`` says whether attention, norms, rotary
embeddings and the cache write are the standard operators or plain MatMul/Softmax/... nodes, which backends differ on.
"""

from __future__ import annotations

from trtprune.graph.builder import DTYPES, Graph
from trtprune.graph.lowering import Lowering

__all__ = ["DTYPES", "Graph", "Lowering"]
