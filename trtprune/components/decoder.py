"""The language model: one decoder graph for Llama, Mistral, Qwen2, Qwen3 and Qwen3-VL's, for prefill and decode.

They differ in parameters only: biases, norms of each head's queries and keys, grouped-query heads, sliding windows,
rope, tied embeddings.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from trtprune.components.config import MAX_LAYERS, Section
from trtprune.components.rope import Rope, RotaryAxes
from trtprune.errors import CheckpointError
from trtprune.graph import Graph
from trtprune.graph.attention import attention, cache_mask, cache_write, rotary
from trtprune.graph.ops import ACTIVATIONS, activation, columns, linear, merge_heads, product, rms_norm, split_heads
from trtprune.graph.raters import rater_attention
from trtprune.tensor_names import (
    HIDDEN_STATES,
    INPUT_IDS,
    INPUTS_EMBEDS,
    KINDS,
    LAST_HIDDEN_STATE,
    LOGITS,
    LOGITS_INDEX,
    POSITION_IDS,
    RATER_ATTENTION,
    RATER_INDEX,
    TEXT_EMBEDS,
    WRITE_INDEX,
    past_name,
    present_name,
)

__all__ = [
    "DECODERS",
    "DecoderConfig",
    "Segment",
    "build_decoder",
    "build_embedding",
    "decoder_weights",
    "segments",
    "write_heads",
]

MAX_HEAD_DIM = 4096
_OTHER = "download config.json again, or correct it"
DECODERS = ("llama", "mistral", "qwen2", "qwen3")
"""``text_config.model_type`` values that this decoder covers, of positions with one axis."""


@dataclass(frozen=True)
class Kind:
    """A kind of language model: transformers' defaults of its ``text_config``.

    Attributes:
        vocab_size, intermediate_size, positions: Entries of that name; ``max_position_embeddings``.
        kv_heads: ``num_key_value_heads``; None: as many as query heads.
        head_dim: Width of a head; None: ``hidden_size`` shared among the heads.
        biases: The biases of the attention: always those of queries, keys and values, all four by the entry
            ``attention_bias``, or none.
        mlp_bias: Whether the entry ``mlp_bias`` counts.
        head_norms: Whether queries and keys have an RMS norm over each head.
        windows: The entries that say which layers have a sliding window: none, one for all, or ``layer_types``.
    """

    vocab_size: int
    intermediate_size: int
    positions: int
    kv_heads: int | None = None
    head_dim: int | None = None
    biases: Literal["qkv", "entry", "none"] = "none"
    mlp_bias: bool = False
    head_norms: bool = False
    windows: Literal["none", "all", "types"] = "none"


DECODER_KINDS = {
    "llama": Kind(32000, 11008, 2048, biases="entry", mlp_bias=True),
    "mistral": Kind(32000, 14336, 4096 * 32, kv_heads=8, windows="all"),
    "qwen2": Kind(151936, 22016, 32768, kv_heads=32, biases="qkv", windows="types"),
    "qwen3": Kind(151936, 22016, 32768, kv_heads=32, head_dim=128, biases="entry", head_norms=True, windows="types"),
    "qwen3_vl_text": Kind(151936, 22016, 128000, kv_heads=32, head_dim=128, biases="entry", head_norms=True),
}
"""The kinds by their ``model_type``; those outside of :data:`DECODERS` belong to one family."""


@dataclass(frozen=True)
class DecoderConfig:
    """``text_config`` with transformers' defaults filled in."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    norm_eps: float
    activation: str
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    windows: tuple[int | None, ...]
    """Sliding window of each layer, None = full attention."""
    rope: Rope
    head_norms: bool = False
    """Whether queries and keys have an RMS norm over each head."""
    levels: int = 0
    """L, the DeepStack levels of a visual token; level l is added behind layer l."""

    def row_width(self, layer: int = 0) -> int:
        """The width of a row in front of a layer: D, and D for each level that is not added yet.

        A row carries the levels of its visual token behind its hidden state, so that whatever selects or moves rows
        need not know of them; a row of text has zeros there.
        """
        return self.hidden_size * (1 + max(0, self.levels - layer))

    @classmethod
    def from_config(cls, text: Section, default: str = "llama", split: RotaryAxes | None = None) -> DecoderConfig:
        """Read ``text_config``; ``default`` is the family's ``model_type`` where it has none, ``split`` as in
        :meth:`Rope.from_config`.

        Raises:
            CheckpointError: for a decoder, activation, rope or layer type that is not supported.
        """
        kind = text.choice("model_type", dict.fromkeys((*DECODERS, default)), default)
        own = DECODER_KINDS[kind]
        hidden = text.integer("hidden_size", 4096)
        heads = text.integer("num_attention_heads", 32)
        default_kv = heads if own.kv_heads is None else own.kv_heads
        if "num_key_value_heads" in text.values:  # null: equal to the number of query heads
            default_kv = heads
        kv_heads = text.integer("num_key_value_heads", default_kv)
        if heads % kv_heads:
            raise CheckpointError(
                f"{text.key('num_key_value_heads')} = {kv_heads} does not divide {heads} heads", hint=_OTHER
            )
        # Bounded here: the rotary frequencies are computed from it before a weight can confirm it.
        head_dim = text.integer("head_dim", own.head_dim or hidden // heads, high=MAX_HEAD_DIM)
        if head_dim % 2:
            raise CheckpointError(
                f"{text.key('head_dim')} = {head_dim} is odd; rotary embeddings need pairs", hint=_OTHER
            )
        max_positions = text.integer("max_position_embeddings", own.positions)
        layers = text.integer("num_hidden_layers", 32, high=MAX_LAYERS)
        attention_bias = own.biases == "entry" and text.flag("attention_bias", False)
        return cls(
            model_type=kind,
            vocab_size=text.integer("vocab_size", own.vocab_size),
            hidden_size=hidden,
            intermediate_size=text.integer("intermediate_size", own.intermediate_size),
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            max_positions=max_positions,
            norm_eps=text.number("rms_norm_eps", 1e-6),
            activation=text.choice("hidden_act", ACTIVATIONS, "silu"),
            qkv_bias=own.biases == "qkv" or attention_bias,
            o_bias=attention_bias,
            mlp_bias=own.mlp_bias and text.flag("mlp_bias", False),
            windows=_windows(text, own, layers),
            rope=Rope.from_config(text, head_dim, max_positions, split),
            head_norms=own.head_norms,
        )


def _windows(text: Section, kind: Kind, layers: int) -> tuple[int | None, ...]:
    """Sliding window per layer, as transformers' config classes resolve it."""
    if kind.windows == "none":
        return (None,) * layers
    if kind.windows == "all":  # layer_types of a Mistral config are ignored by transformers too
        return (text.optional_integer("sliding_window", 4096),) * layers
    window = None
    if text.flag("use_sliding_window", False):
        window = text.optional_integer("sliding_window", 4096)
    if text.values.get("layer_types") is None:
        first = text.integer("max_window_layers", 28, low=0)
        return tuple(window if i >= first else None for i in range(layers))
    types = text.choices("layer_types", ("full_attention", "sliding_attention"), layers)
    return tuple(window if t == "sliding_attention" else None for t in types)


def decoder_weights(cfg: DecoderConfig, prefix: str, lm_head: str) -> dict[str, tuple[int, ...]]:
    """Key → shape of every tensor that :func:`build_decoder` uses.

    Args:
        prefix: ``"model.language_model."`` for LLaVA.
        lm_head: Key of the output projection; the embedding's key when the two are tied.
    """
    h, f = cfg.hidden_size, cfg.intermediate_size
    q, kv = cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim
    weights: dict[str, tuple[int, ...]] = {lm_head: (cfg.vocab_size, h), f"{prefix}norm.weight": (h,)}
    shapes = {
        "self_attn.q_proj": (q, h, cfg.qkv_bias),
        "self_attn.k_proj": (kv, h, cfg.qkv_bias),
        "self_attn.v_proj": (kv, h, cfg.qkv_bias),
        "self_attn.o_proj": (h, q, cfg.o_bias),
        "mlp.gate_proj": (f, h, cfg.mlp_bias),
        "mlp.up_proj": (f, h, cfg.mlp_bias),
        "mlp.down_proj": (h, f, cfg.mlp_bias),
    }
    for i in range(cfg.num_layers):
        layer = f"{prefix}layers.{i}."
        for name, (outputs, inputs, bias) in shapes.items():
            weights[f"{layer}{name}.weight"] = (outputs, inputs)
            if bias:
                weights[f"{layer}{name}.bias"] = (outputs,)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{layer}{name}.weight"] = (h,)
        if cfg.head_norms:
            weights |= {f"{layer}self_attn.{name}_norm.weight": (cfg.head_dim,) for name in ("q", "k")}
    return weights


def write_heads(g: Graph, cfg: DecoderConfig, attention: str, kind: Literal["q", "k", "v"], x: ir.Value) -> ir.Value:
    """Queries, keys or values [B, heads, S, head_dim] of normed rows [B, S, D], before rotary positions.

    Args:
        attention: Prefix of the attention's weights.
    """
    count = cfg.num_heads if kind == "q" else cfg.num_kv_heads
    heads = split_heads(g, linear(g, x, f"{attention}{kind}_proj", bias=cfg.qkv_bias), count, cfg.head_dim)
    if cfg.head_norms and kind != "v":
        return rms_norm(g, heads, f"{attention}{kind}_norm", eps=cfg.norm_eps)
    return heads


def build_embedding(g: Graph, cfg: DecoderConfig, key: str) -> None:
    """Token embedding lookup: ``input_ids`` int64 [batch, T] → ``text_embeds`` [batch, T, D].

    In a model with DeepStack levels [batch, T, D · (1 + L)], zeros behind the embedding.
    """
    ids = g.input(INPUT_IDS, "int64", ["batch", "tokens"])
    # Gather before the cast: casting the rows is cheaper than casting the table.
    rows = g.op.Gather(g.weight(key, raw=True), ids, axis=0)
    width = cfg.row_width()
    if width > cfg.hidden_size:
        rows = g.op.Pad(g.cast(rows, g.dtype), g.ints(0, 0, 0, 0, 0, width - cfg.hidden_size))
    g.output(rows, TEXT_EMBEDS, g.dtype_name, ["batch", "tokens", width])


@dataclass(frozen=True)
class Segment:
    """Consecutive layers of the decoder that are one graph.

    Attributes:
        first: The first layer.
        stop: The layer behind the last one.
        last: Whether the decoder ends here, so that logits come out.
        raters: The returned attention of the last layer's rater rows, for the prune point behind it: the ``"mean"``
            over heads, all ``"heads"``, or None.
    """

    first: int
    stop: int
    last: bool
    raters: Literal["mean", "heads"] | None = None


def segments(num_layers: int, cuts: Sequence[int], raters: Literal["mean", "heads"] | None) -> tuple[Segment, ...]:
    """The segments of a decoder that is split behind each layer of ``cuts`` (ascending, 0 to ``num_layers - 2``)."""
    edges = [0, *(cut + 1 for cut in cuts), num_layers]
    return tuple(
        Segment(first, stop, stop == num_layers, None if stop == num_layers else raters)
        for first, stop in itertools.pairwise(edges)
    )


def build_decoder(g: Graph, cfg: DecoderConfig, prefix: str, lm_head: str, segment: Segment | None = None) -> None:
    """The decoder, or a segment of it, over a fixed-capacity KV cache, for any number of new tokens.

    Inputs: ``inputs_embeds`` [batch, S, D] (``hidden_states`` in a later segment), in a model with DeepStack levels
    as wide as :meth:`DecoderConfig.row_width` says, ``position_ids`` int64
    [batch, axes, S], ``write_index`` int64 [batch], ``logits_index`` int64 [batch, L] in the last segment, and per
    layer ``past_key_values.{i}.key|value`` [batch, Hkv, capacity, head_dim].  Outputs: ``logits`` float32
    [batch, L, V] of the rows that ``logits_index`` names (``last_hidden_state`` [batch, S, D], wider by the levels
    that are still to be added, in an earlier segment), and ``present.{i}.key|value``, to be bound to the buffers of
    the past.

    Token ``s`` of row ``b`` is written at slot ``write_index[b] + s`` and attends to the slots up to its own (the
    last ``sliding_window`` of them where the layer has one).  Rows of different lengths are padded on the right:
    the slots their padding writes lie beyond every slot they attend to, and later tokens overwrite them.  Caches
    must start zeroed: a masked NaN is still a NaN.

    A segment with ``raters`` also takes ``rater_index`` int64 [batch, R], rows of S, and returns ``rater_attention``
    float32 [batch, R, S] (or [batch, heads, R, S]): the attention of those rows' queries to each of the S new tokens in
    the segment's last layer.  That is their whole attention if the cache was empty before (``write_index`` 0).

    Args:
        prefix, lm_head: As in :func:`decoder_weights`.
        segment: The layers; None: all of them.
    """
    op, int64 = g.op, ir.DataType.INT64
    segment = segment or Segment(0, cfg.num_layers, True)
    h, kv_heads, dim = cfg.hidden_size, cfg.num_kv_heads, cfg.head_dim
    width = cfg.row_width(segment.first)
    rows = g.input(HIDDEN_STATES if segment.first else INPUTS_EMBEDS, g.dtype_name, ["batch", "sequence", width])
    x = rows if width == h else columns(g, rows, 0, h)
    position_ids = g.input(POSITION_IDS, "int64", ["batch", cfg.rope.axes, "sequence"])
    write_index = g.input(WRITE_INDEX, "int64", ["batch"])
    if segment.last:
        logits_index = g.input(LOGITS_INDEX, "int64", ["batch", "logits_rows"])
    if segment.raters:
        rater_index = g.input(RATER_INDEX, "int64", ["batch", "raters"])
    cache_shape: list[int | str] = ["batch", kv_heads, "capacity", dim]
    layers = range(segment.first, segment.stop)
    past = {i: tuple(g.input(past_name(i, kind), g.dtype_name, cache_shape) for kind in KINDS) for i in layers}

    # Once for all layers: rotary angles, the slots of the new tokens, and the mask.
    cos, sin = cfg.rope.cos_sin(g, position_ids)
    length = op.Squeeze(op.Shape(position_ids, start=2, end=3), g.ints(0))
    steps = op.Range(g.scalar(0, int64), length, g.scalar(1, int64))
    slots = op.Add(op.Unsqueeze(write_index, g.ints(1)), steps)
    capacity = op.Shape(past[segment.first][0], start=2, end=3)
    masks = {w: cache_mask(g, slots, capacity, w) for w in sorted({cfg.windows[i] for i in layers}, key=str)}

    present: dict[int, tuple[ir.Value, ir.Value]] = {}
    for i in layers:
        with g.scope(f"layers.{i}"):
            layer = f"{prefix}layers.{i}."
            y = rms_norm(g, x, f"{layer}input_layernorm", eps=cfg.norm_eps)
            q = write_heads(g, cfg, f"{layer}self_attn.", "q", y)
            k = write_heads(g, cfg, f"{layer}self_attn.", "k", y)
            v = write_heads(g, cfg, f"{layer}self_attn.", "v", y)
            q, k = rotary(g, q, cos, sin, dim), rotary(g, k, cos, sin, dim)
            key = cache_write(g, past[i][0], k, write_index, slots)
            value = cache_write(g, past[i][1], v, write_index, slots)
            present[i] = (key, value)
            y = attention(
                g,
                q,
                key,
                value,
                heads=cfg.num_heads,
                kv_heads=kv_heads,
                head_dim=dim,
                mask=masks[cfg.windows[i]],
                form=g.lowering.attention,
            )
            y = linear(g, merge_heads(g, y, cfg.num_heads, dim), f"{layer}self_attn.o_proj", bias=cfg.o_bias)
            x = op.Add(x, y)
            y = rms_norm(g, x, f"{layer}post_attention_layernorm", eps=cfg.norm_eps)
            gate = activation(g, linear(g, y, f"{layer}mlp.gate_proj", bias=cfg.mlp_bias), cfg.activation)
            y = op.Mul(gate, linear(g, y, f"{layer}mlp.up_proj", bias=cfg.mlp_bias))
            x = op.Add(x, linear(g, y, f"{layer}mlp.down_proj", bias=cfg.mlp_bias))
            if i < cfg.levels:
                begin = h * (1 + i - segment.first)
                x = op.Add(x, columns(g, rows, begin, begin + h))

    if segment.last:
        # Only the requested rows go through the output projection, the largest matrix of the model.
        x = op.GatherND(x, op.Unsqueeze(logits_index, g.ints(-1)), batch_dims=1)
        x = rms_norm(g, x, f"{prefix}norm", eps=cfg.norm_eps)
        g.output(product(g, x, lm_head, exact=True), LOGITS, "float32", ["batch", "logits_rows", cfg.vocab_size])
    else:
        left = cfg.row_width(segment.stop)
        if left > h:
            x = op.Concat(x, columns(g, rows, width - left + h, width), axis=-1)
        g.output(x, LAST_HIDDEN_STATE, g.dtype_name, ["batch", "sequence", left])
    if segment.raters:
        weights = rater_attention(
            g, q, k, rater_index, group=cfg.num_heads // kv_heads, head_dim=dim, window=cfg.windows[i]
        )
        shape: list[int | str] = ["batch", cfg.num_heads, "raters", "sequence"]
        if segment.raters == "mean":
            weights, shape = op.ReduceMean(weights, g.ints(1), keepdims=0), [shape[0], *shape[2:]]
        g.output(weights, RATER_ATTENTION, "float32", shape)
    for i, pair in present.items():
        for name, tensor in zip(KINDS, pair, strict=True):
            g.output(tensor, present_name(i, name), g.dtype_name, cache_shape)
