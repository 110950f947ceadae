"""Builds a graph in TensorRT-RTX on a machine with no GPU, and checks what the parser made of its attention.

Building for a named compute capability needs no device.  The parser can accept a graph and still compute
something else: an Attention with ``nonpad_kv_seqlen``, say, becomes a causal attention over the whole cache without
a word.  ``check_attention`` looks at the network that came out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import tensorrt_rtx as trt

LOGGER = trt.Logger(trt.Logger.ERROR)

Range = tuple[int, int, int]
"""Smallest, typical and largest value of a symbolic dimension or shape input."""

DIMS: dict[str, Range] = {
    "batch": (1, 1, 2),
    "sequence": (1, 24, 64),
    "tokens": (1, 8, 32),
    "logits_rows": (1, 1, 4),
    "visual_tokens": (576, 576, 576),
    "text_tokens": (1, 12, 64),
}


class Network:
    """A parsed graph.

    Args:
        model: Serialised ONNX; weights are external data in ``weights/`` under ``root``.
        fixed: Symbolic dimensions that become static, e.g. ``{"capacity": 128}``: TensorRT wants the KV cache so.
    """

    def __init__(self, model: bytes, root: Path | None, fixed: Mapping[str, int] | None = None) -> None:
        proto = onnx.load_model_from_string(model)
        for value in [*proto.graph.input, *proto.graph.output]:
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param in (fixed or {}):
                    dim.dim_value = (fixed or {})[dim.dim_param]
        self.inputs = {
            v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in proto.graph.input
        }
        self.builder = trt.Builder(LOGGER)
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self.network = self.builder.create_network(flags)
        self.parser = trt.OnnxParser(self.network, LOGGER)
        self._maps: list[np.memmap] = []
        data = proto.SerializeToString()
        assert self.parser.load_model_proto(data, None), self.errors()
        for tensor in proto.graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                assert root is not None
                where = {e.key: e.value for e in tensor.external_data}
                size = int(where["length"])
                mapped = np.memmap(root / where["location"], np.uint8, "r", offset=int(where["offset"]), shape=(size,))
                self._maps.append(mapped)  # read at build time: must outlive the network
                assert self.parser.load_initializer(tensor.name, mapped.ctypes.data, size), tensor.name
        assert self.parser.parse_model_proto(), self.errors()

    def errors(self) -> str:
        return "; ".join(str(self.parser.get_error(i)) for i in range(self.parser.num_errors))

    def attentions(self) -> list[trt.IAttention]:
        """All attention operators of the network."""
        found = []
        for i in range(self.network.num_layers):
            layer = self.network.get_layer(i)
            if layer.type == trt.LayerType.ATTENTION_INPUT:
                layer.__class__ = trt.IAttentionInputLayer  # Python hands out the base class
                found.append(layer.attention)
        return found

    def check_attention(self, *, masked: bool, count: int) -> None:
        """Every attention has a mask (decoder) or none and is not causal (vision), and there are ``count``.

        Raises:
            AssertionError: saying which is not.
        """
        attentions = self.attentions()
        assert len(attentions) == count, f"{len(attentions)} attention layers, expected {count}"
        for i, a in enumerate(attentions):
            assert a.causal_kind == trt.CausalMaskKind.NONE, f"attention {i} is {a.causal_kind}"
            assert (a.mask is not None) == masked, f"attention {i}: mask {'missing' if masked else 'unexpected'}"

    def kinds(self) -> list[trt.LayerType]:
        """The types of the network's layers."""
        return [self.network.get_layer(i).type for i in range(self.network.num_layers)]

    def shape_inputs(self) -> set[str]:
        """Inputs whose content decides shapes, so that a profile must bound it."""
        inputs = (self.network.get_input(i) for i in range(self.network.num_inputs))
        return {i.name for i in inputs if i.is_shape_tensor}

    def build(self, *, values: Mapping[str, Range] | None = None) -> int:
        """Build an engine for SM89 with one profile; returns its size in bytes.

        Args:
            values: Range of the content of each shape input, e.g. of ``keep``.
        """
        config = self.builder.create_builder_config()
        config.num_compute_capabilities = 1
        assert config.set_compute_capability(trt.ComputeCapability.SM89, 0)
        profile = self.builder.create_optimization_profile()
        for name, dims in self.inputs.items():
            if name in self.shape_inputs():
                profile.set_shape_input(name, *([v] for v in (values or {})[name]))
            else:
                profile.set_shape(name, *([d if isinstance(d, int) else DIMS[d][k] for d in dims] for k in range(3)))
        config.add_optimization_profile(profile)
        engine = self.builder.build_serialized_network(self.network, config)
        assert engine is not None, "TensorRT-RTX refused to build the graph (see its log)"
        return engine.nbytes
