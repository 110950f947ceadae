"""Checks for graphs that TensorRT's parser misreads in silence, before and after it reads one.

The parser accepts attention that it then computes differently: it ignores ``nonpad_kv_seqlen``, and aligns
``is_causal`` with the upper left corner, which over a cache is another token's past.  Such an engine builds, runs and
answers nonsense.  So the graph is checked before parsing (:func:`lint`) and the network after it
(:func:`check_network`), on every build.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from trtprune.errors import BuildError
from trtprune.tensor_names import is_past

__all__ = ["attentions", "check_network", "lint", "masked_attentions"]

# Inputs of Attention-24, by place.
MASK, PAST_KEY, PAST_VALUE, LENGTHS = 3, 4, 5, 6
BUG = "this is a bug of trtprune: please report it"


def lint(proto: Any, component: str) -> None:
    """Refuses an ONNX model that uses attention or cache writes in a way TensorRT ignores or misreads.

    Args:
        proto: ``onnx.ModelProto``; with a KV cache, if an input is called ``past_key_values.…``.
        component: Name of the component, for the message.

    Raises:
        BuildError: naming the node and what is wrong with it.
    """
    cached = any(is_past(value.name) for value in proto.graph.input)
    for node in _nodes([proto.graph, *proto.functions]):
        # By type alone: the parser ignores the domain of operators that it knows.
        if node.op_type == "Attention":
            fault = _attention_fault(node, cached)
        elif node.op_type == "TensorScatter":
            fault = _scatter_fault(node)
        else:
            continue
        if fault is not None:
            raise BuildError(f"{component}: node '{node.name}' ({node.op_type}) {fault}", hint=BUG)


def _nodes(graphs: Sequence[Any]) -> Iterator[Any]:
    """All nodes of graphs, of function bodies and of the bodies of loops and branches."""
    stack = list(graphs)
    while stack:
        for node in stack.pop().node:
            yield node
            for attribute in node.attribute:
                stack.extend([attribute.g] if attribute.HasField("g") else attribute.graphs)


def masked_attentions(proto: Any) -> int:
    """The number of attention operators of an ONNX model that have a mask."""
    nodes = _nodes([proto.graph, *proto.functions])
    return sum(node.op_type == "Attention" and len(node.input) > MASK and bool(node.input[MASK]) for node in nodes)


def _attention_fault(node: Any, cached: bool) -> str | None:
    def given(place: int) -> bool:
        return len(node.input) > place and bool(node.input[place])

    values = {attribute.name: attribute for attribute in node.attribute}
    if given(LENGTHS):
        return "has nonpad_kv_seqlen, which TensorRT ignores: it would attend to unwritten slots of the cache"
    if given(PAST_KEY) or given(PAST_VALUE):
        return "has past_key or past_value, which TensorRT does not take"
    if any(node.output[1:]):
        return "has more than one output, which TensorRT does not give"
    if "is_causal" in values and values["is_causal"].i:
        return "has is_causal, which TensorRT aligns with the first key and not with the query's place in the cache"
    if "softcap" in values and values["softcap"].f:
        return "has softcap, which TensorRT does not take"
    if cached and not given(MASK):
        return "has no mask: it would attend to unwritten slots of the cache"
    return None


def _scatter_fault(node: Any) -> str | None:
    values = {attribute.name: attribute for attribute in node.attribute}
    if "mode" in values and values["mode"].s not in (b"", b"linear"):
        return f"has mode {values['mode'].s.decode()}; TensorRT's cache is linear"
    if "axis" in values and values["axis"].i not in (2, -2):
        return f"writes along axis {values['axis'].i}; TensorRT's cache grows along axis 2"
    return None


def attentions(trt: Any, network: Any) -> list[tuple[str, Any]]:
    """Name and ``IAttention`` of every attention of a network, in order."""
    found = []
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer  # Python is handed the base class
            found.append((layer.name, layer.attention))
    return found


def check_network(
    trt: Any,
    network: Any,
    component: str,
    *,
    attention: int,
    cache_updates: int,
    cached: bool,
    cast_float32: bool,
    masked: int = 0,
) -> None:
    """Checks the parser's network of a component; allows plain operators for float32 attention where it must.

    Args:
        trt: The library.
        network: The parsed ``INetworkDefinition``.
        component: Name of the component, for messages.
        attention: The required number of attention operators.
        cache_updates: The required number of in-place cache writes.
        cached: Whether it has a KV cache: then every attention must have a mask and none be causal; without, none may
            be causal either.
        masked: The number of attention operators with a mask in the graph of a component without a cache.
        cast_float32: Lets attention in float32 fall back to plain operators.  TensorRT-RTX has no kernel for it and
            refuses otherwise; TensorRT has one and needs no permission.

    Raises:
        BuildError: naming the layer and what is wrong with it.
    """
    found = attentions(trt, network)
    for name, op in found:
        fault = _network_fault(trt, op, cached, masked)
        if fault is not None:
            raise BuildError(f"{component}: attention layer '{name}' {fault} after parsing", hint=BUG)
        if cast_float32 and op.get_input(0).dtype == trt.float32:
            op.decomposable = True
    masks = sum(op.mask is not None for _, op in found)
    if not cached and masks != masked:
        raise BuildError(
            f"{component}: {masks} attention layers with a mask after parsing, expected {masked}", hint=BUG
        )
    updates = [
        layer
        for layer in map(network.get_layer, range(network.num_layers))
        if layer.type == trt.LayerType.KV_CACHE_UPDATE
    ]
    for kind, have, want in (("attention", len(found), attention), ("cache update", len(updates), cache_updates)):
        if have != want:
            raise BuildError(f"{component}: {have} {kind} layers after parsing, expected {want}", hint=BUG)
    for layer in updates:
        if not (layer.get_input(0).is_network_input and layer.get_output(0).is_network_output):
            raise BuildError(
                f"{component}: cache update '{layer.name}' is not between an input and an output of the network, "
                "so that it could not be done in place",
                hint=BUG,
            )


def _network_fault(trt: Any, op: Any, cached: bool, masked: int) -> str | None:
    kind = getattr(op, "causal_kind", None)  # from TensorRT 11 on; before, a flag
    if op.causal if kind is None else kind != trt.CausalMaskKind.NONE:
        return f"is causal ({'upper left' if kind is None else kind.name.lower()})"
    if getattr(op, "key_value_lengths", None) is not None or getattr(op, "query_lengths", None) is not None:
        return "has lengths"
    if cached and op.mask is None:
        return "has no mask"
    if not cached and not masked and op.mask is not None:
        return "has a mask it should not have"
    if op.mask is not None and op.mask.dtype != trt.bool:
        return f"has a mask of type {op.mask.dtype}, not bool"
    return None
