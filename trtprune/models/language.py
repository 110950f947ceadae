"""The language half of a model, whatever tower stands before it: its facts, its matrices and its graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from trtprune.components.decoder import DecoderConfig, build_decoder, build_embedding, decoder_weights, segments
from trtprune.graph import Graph, Lowering
from trtprune.models.projected_config import EMBED, LM_HEAD, TEXT
from trtprune.models.spec import ScaledFeatures

if TYPE_CHECKING:
    from trtprune.checkpoint import TensorInfo
    from trtprune.graph.tensors import QuantizedMatrix

__all__ = ["graphs_around", "linear_weights", "scaled_features", "text_facts"]


def text_facts(text: DecoderConfig) -> dict[str, Any]:
    """The fields of :class:`trtprune.models.spec.ModelSpec` that follow from the language model alone."""
    windows = [window for window in text.windows if window is not None]
    return {
        "decoder": text.model_type,
        "hidden_size": text.hidden_size,
        "vocab_size": text.vocab_size,
        "num_layers": text.num_layers,
        "num_heads": text.num_heads,
        "num_kv_heads": text.num_kv_heads,
        "head_dim": text.head_dim,
        "max_positions": text.max_positions,
        "sliding_window": min(windows) if windows else None,
        "rotary_sections": text.rope.sections,
        "rotary_interleaved": text.rope.interleaved,
        "deepstack_levels": text.levels,
    }


def linear_weights(text: DecoderConfig, lm_head: str) -> dict[str, bool]:
    """The matrices of the decoder's layers, and ``lm_head`` if it is not the embedding table; True for the latter.

    See :meth:`trtprune.models.spec.Model.linear_weights`.
    """
    weights = decoder_weights(text, TEXT, lm_head)
    return {name: name == LM_HEAD for name, shape in weights.items() if len(shape) == 2 and name != EMBED}


def scaled_features(text: DecoderConfig) -> list[ScaledFeatures]:
    """See :meth:`trtprune.models.spec.Model.scaled_features`.

    The features of norms, and those between the MLP's matrices, where the activation leaves ``up`` linear.
    """
    found = []
    for i in range(text.num_layers):
        layer = f"{TEXT}layers.{i}."
        attention = tuple(f"{layer}self_attn.{kind}_proj.weight" for kind in "qkv")
        gate, up, down = (f"{layer}mlp.{kind}_proj.weight" for kind in ("gate", "up", "down"))
        found.append(ScaledFeatures(f"{layer}input_layernorm.weight", attention, is_norm=True))
        found.append(ScaledFeatures(f"{layer}post_attention_layernorm.weight", (gate, up), is_norm=True))
        if not text.mlp_bias:
            found.append(ScaledFeatures(up, (down,), is_norm=False))
    return found


def graphs_around(
    first: Sequence[str],
    text: DecoderConfig,
    lm_head: str,
    tensors: Mapping[str, TensorInfo],
    *,
    dtype: str,
    lowering: Lowering,
    quantized: Mapping[str, QuantizedMatrix] | None,
    cuts: Sequence[int],
    raters: Literal["mean", "heads"] | None,
) -> dict[str, Graph]:
    """Empty graphs of the names in ``first``, and behind them ``embed`` and the decoder or its segments, written.

    Args:
        first: Component names in front of the language model.
        text: The language model.
        lm_head: Key of the output projection.
        tensors: Canonical name → tensor, of all graphs.
        dtype, lowering, quantized, cuts, raters: As in :meth:`trtprune.models.spec.Model.build_components`.
    """
    parts = segments(text.num_layers, cuts, raters)
    names = ["decoder"] if len(parts) == 1 else [f"decoder.{i}" for i in range(len(parts))]
    graphs = {
        name: Graph(
            name, dtype=dtype, lowering=lowering, tensors=tensors, quantized=quantized if name in names else None
        )
        for name in (*first, "embed", *names)
    }
    build_embedding(graphs["embed"], text, EMBED)
    for name, part in zip(names, parts, strict=True):
        build_decoder(graphs[name], text, TEXT, lm_head, part)
    return graphs
