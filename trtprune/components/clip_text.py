"""CLIP's text tower (``clip_text_model`` with its projection): a question in the joint space of text and images.

Source: https://arxiv.org/abs/2103.00020; transformers' ``CLIPTextModelWithProjection``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from trtprune.components.config import MAX_LAYERS, Section
from trtprune.components.vit import linear_weights, norm_weights
from trtprune.errors import CheckpointError
from trtprune.graph import Graph
from trtprune.graph.attention import attention, cache_mask
from trtprune.graph.lowering import Form
from trtprune.graph.ops import ACTIVATIONS, activation, layer_norm, linear, merge_heads, split_heads
from trtprune.tensor_names import CLIP_TEXT_EMBEDS, INPUT_IDS

__all__ = ["TextTowerConfig", "build_text_tower", "text_tower_weights"]

FORM: Form = "primitives"
OLD_EOS = 2
"""The ``eos_token_id`` of checkpoints from before transformers 4.31, whatever the tokenizer's is."""


@dataclass(frozen=True)
class TextTowerConfig:
    """``text_config`` of a CLIP checkpoint with transformers' defaults filled in.

    ``eos_token_id`` is None where the end of a text is its largest id (see :data:`OLD_EOS`).
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    max_positions: int
    norm_eps: float
    activation: str
    eos_token_id: int | None
    projection_size: int

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @classmethod
    def read(cls, text: Section, projection_size: int) -> TextTowerConfig:
        """Read ``text_config``.

        Raises:
            CheckpointError: naming the key with an invalid value.
        """
        hidden, heads = text.integer("hidden_size", 512), text.integer("num_attention_heads", 8)
        if hidden % heads:
            raise CheckpointError(
                f"{text.key('hidden_size')} = {hidden} is not a multiple of {heads} heads",
                hint="download config.json again, or correct it",
            )
        eos = text.integer("eos_token_id", 49407, low=0)
        return cls(
            vocab_size=text.integer("vocab_size", 49408),
            hidden_size=hidden,
            intermediate_size=text.integer("intermediate_size", 2048),
            num_layers=text.integer("num_hidden_layers", 12, high=MAX_LAYERS),
            num_heads=heads,
            max_positions=text.integer("max_position_embeddings", 77, low=3),
            norm_eps=text.number("layer_norm_eps", 1e-5),
            activation=text.choice("hidden_act", ACTIVATIONS, "quick_gelu"),
            eos_token_id=None if eos == OLD_EOS else eos,
            projection_size=projection_size,
        )


def text_tower_weights(cfg: TextTowerConfig, prefix: str, projection: str) -> Mapping[str, tuple[int, ...]]:
    """Key → shape of the weights of :func:`build_text_tower`."""
    h, f = cfg.hidden_size, cfg.intermediate_size
    weights = {
        f"{prefix}embeddings.token_embedding.weight": (cfg.vocab_size, h),
        f"{prefix}embeddings.position_embedding.weight": (cfg.max_positions, h),
        **norm_weights(f"{prefix}final_layer_norm", h),
        **linear_weights(projection, cfg.projection_size, h, bias=False),
    }
    for i in range(cfg.num_layers):
        layer = f"{prefix}encoder.layers.{i}."
        weights |= norm_weights(f"{layer}layer_norm1", h) | norm_weights(f"{layer}layer_norm2", h)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            weights |= linear_weights(f"{layer}self_attn.{name}", h, h)
        weights |= linear_weights(f"{layer}mlp.fc1", f, h) | linear_weights(f"{layer}mlp.fc2", h, f)
    return weights


def build_text_tower(
    g: Graph, cfg: TextTowerConfig, prefix: str, projection: str, *, fixed_length: bool = False
) -> None:
    """``input_ids`` int64 [batch, length], length ≤ ``max_positions`` → ``clip_text_embeds`` float32 [batch, P].

    Each row is a separate text with its first and last token.  Tokens behind the first end-of-text token have no
    influence, so rows can be padded with it.

    Attention is always in primitives: at this size a fused kernel gains nothing, and the check of TensorRT's networks
    treats a mask without a cache as a mistake.

    Args:
        g: The graph.
        cfg: The tower.
        prefix: Prefix of its weights' keys.
        projection: Key of the linear layer into the joint space.
        fixed_length: Whether the length is always ``max_positions``.
    """
    op, int64 = g.op, ir.DataType.INT64
    ids = g.input(INPUT_IDS, "int64", ["batch", cfg.max_positions if fixed_length else "clip_tokens"])
    length = op.Shape(ids, start=1, end=2)
    table = g.weight(f"{prefix}embeddings.position_embedding.weight")
    places = op.Unsqueeze(op.Range(g.scalar(0, int64), op.Squeeze(length, g.ints(0)), g.scalar(1, int64)), g.ints(0))
    # Gather before the cast: casting the rows is cheaper than casting the table.
    rows = op.Gather(g.weight(f"{prefix}embeddings.token_embedding.weight", raw=True), ids, axis=0)
    x = op.Add(g.cast(rows, g.dtype), op.Slice(table, g.ints(0), length, g.ints(0)))
    mask = cache_mask(g, places, length, None, FORM)  # the mask of a cache that has exactly this text
    for i in range(cfg.num_layers):
        with g.scope(f"layers.{i}"):
            x = _layer(g, cfg, f"{prefix}encoder.layers.{i}.", x, mask)
    end = op.Unsqueeze(_end_of_text(g, cfg, ids, places, length), g.ints(-1))
    pooled = layer_norm(g, op.GatherND(x, end, batch_dims=1), f"{prefix}final_layer_norm", eps=cfg.norm_eps)
    embeds = linear(g, pooled, projection, bias=False)
    g.output(embeds, CLIP_TEXT_EMBEDS, "float32", ["batch", cfg.projection_size])


def _layer(g: Graph, cfg: TextTowerConfig, layer: str, x: ir.Value, mask: ir.Value) -> ir.Value:
    """One pre-norm layer with causal attention."""
    heads, dim = cfg.num_heads, cfg.head_dim
    y = layer_norm(g, x, f"{layer}layer_norm1", eps=cfg.norm_eps)
    q, k, v = (split_heads(g, linear(g, y, f"{layer}self_attn.{n}_proj", bias=True), heads, dim) for n in "qkv")
    y = attention(g, q, k, v, heads=heads, kv_heads=heads, head_dim=dim, mask=mask, form=FORM)
    x = g.op.Add(x, linear(g, merge_heads(g, y, heads, dim), f"{layer}self_attn.out_proj", bias=True))
    y = layer_norm(g, x, f"{layer}layer_norm2", eps=cfg.norm_eps)
    y = activation(g, linear(g, y, f"{layer}mlp.fc1", bias=True), cfg.activation)
    return g.op.Add(x, linear(g, y, f"{layer}mlp.fc2", bias=True))


def _end_of_text(g: Graph, cfg: TextTowerConfig, ids: ir.Value, places: ir.Value, length: ir.Value) -> ir.Value:
    """int64 [M]: the index of each row's first end-of-text token; 0 without one, as in transformers."""
    op, int64 = g.op, ir.DataType.INT64
    if cfg.eos_token_id is None:
        found = op.Equal(ids, op.ReduceMax(ids, g.ints(-1), keepdims=1))
    else:
        found = op.Equal(ids, g.scalar(cfg.eos_token_id, int64))
    first = op.ReduceMin(op.Where(found, places, length), g.ints(-1), keepdims=0)
    return op.Where(op.Equal(first, length), g.scalar(0, int64), first)
