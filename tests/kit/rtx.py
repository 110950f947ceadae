"""Parses and builds single graphs in TensorRT-RTX on a machine with no GPU, through trtprune's own modules."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import tensorrt_rtx as trt

from trtprune.backends.tensorrt.building import BuilderSettings, build_engine
from trtprune.backends.tensorrt.flavour import get_log
from trtprune.backends.tensorrt.network import Network as ParsedNetwork
from trtprune.backends.tensorrt.network import fix_dims

Range = tuple[int, int, int]
"""Smallest, typical and largest value of a symbolic dimension or shape input."""

DIMS: dict[str, Range] = {
    "batch": (1, 1, 2),
    "sequence": (1, 24, 64),
    "tokens": (1, 8, 32),
    "logits_rows": (1, 1, 4),
    "visual_tokens": (1, 2340, 2928),
    "patches": (4, 9360, 11712),
    "crops": (1, 5, 5),
    "text_tokens": (1, 12, 64),
    "text_segments": (1, 1, 4),
    "vision_width": (32, 32, 32),
    "key_width": (16, 16, 16),
    "clip_width": (24, 24, 24),
    "query_heads": (4, 4, 4),
    "key_heads": (2, 2, 2),
    "head_width": (8, 8, 8),
}


class Network(ParsedNetwork):
    """A parsed graph.

    Args:
        model: Serialised ONNX; weights are external data in ``weights/`` under ``root``.
        fixed: Symbolic dimensions that become static, e.g. ``{"capacity": 128}``: TensorRT wants the KV cache so.
    """

    def __init__(self, model: bytes, root: Path | None, fixed: Mapping[str, int] | None = None) -> None:
        proto = onnx.load_model_from_string(model)
        fix_dims(proto, fixed or {})
        self.inputs = {
            v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in proto.graph.input
        }
        super().__init__(trt, get_log(trt), proto, root, "graph")

    def kinds(self) -> list[Any]:
        """The types of the network's layers."""
        return self.layer_types()

    def build(self, *, values: Mapping[str, Range] | None = None, targets: tuple[str, ...] = ("sm89",)) -> int:
        """Build an engine with one profile; returns its size in bytes.

        Args:
            values: Range of the content of each shape input, e.g. of ``keep``.
            targets: Compute capabilities.
        """
        profile: dict[str, Any] = {}
        for name, dims in self.inputs.items():
            if name in self.shape_inputs():
                profile[name] = tuple((v,) for v in (values or {})[name])
            elif name != "keep":
                profile[name] = tuple(tuple(d if isinstance(d, int) else DIMS[d][k] for d in dims) for k in range(3))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "graph.engine"
            build_engine(self, get_log(trt), [profile], BuilderSettings(targets), path)
            return path.stat().st_size
