"""The packed vision towers of Qwen2.5-VL and Qwen2-VL, with the merger: from an image's patches to its visual tokens.

One image a run.  Patches come in merge order, so that the rows of a visual token stand behind one another and the
merger is a reshape.  They stay in that order: a window layer gathers queries, keys and values into its windows, all of
one length with empty slots masked, and the results back (transformers puts the whole image in window order instead).
The rotary embedding turns half of a head's frequencies by the patch's row and half by its column, in float32.

Sources: https://arxiv.org/abs/2502.13923 §2.1, https://arxiv.org/abs/2409.12191 §2.1; ``modeling_qwen2_5_vl`` and
``modeling_qwen2_vl`` of transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from trtprune.components.vit import linear_weights, norm_weights
from trtprune.graph import Graph
from trtprune.graph.attention import attention, mean_attention, mean_query_row, rotary
from trtprune.graph.ops import activation, layer_norm, linear, merge_heads, rms_norm, split_heads
from trtprune.tensor_names import (
    DEEP_ATTENTION,
    MEAN_QUERY_ATTENTION,
    PIXEL_VALUES,
    SHALLOW_ATTENTION,
    TOKEN_POSITIONS,
    WINDOW_INDEX,
    WINDOW_PLACES,
)

__all__ = ["PackedTower", "PackedTowerConfig", "build_packed_tower", "packed_tower_weights", "patch_angles"]

_FLOAT = ir.DataType.FLOAT
CHANNELS = 3


@dataclass(frozen=True)
class PackedTowerConfig:
    """``vision_config`` with transformers' defaults filled in.

    Attributes:
        model_type: Its name.
        hidden_size: C, the tower's width.
        intermediate_size: Width of the layers' middle.
        num_layers, num_heads: Layers, and heads of a layer.
        patch, frames: Side of a patch in pixels, and its frames.
        merge: Patches on a side of a visual token.
        window: Visual tokens on a side of a window; 0 without windows.
        output_size: D, the language model's width.
        norm_eps: Summand of the norms.
        activation: The layers' activation.
        gated: Whether the layers have RMS norms and gated middles (Qwen2.5-VL), or layer norms and plain ones.
        rope_theta: Base of the rotary frequencies.
        full_layers: Layers, counted from 0, in which a patch attends to the whole image; in others to its window.
    """

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    patch: int
    frames: int
    merge: int
    window: int
    output_size: int
    norm_eps: float
    activation: str
    gated: bool
    rope_theta: float
    full_layers: frozenset[int]

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.num_heads

    @property
    def unit(self) -> int:
        """Patches of a visual token."""
        return self.merge**2

    @property
    def patch_width(self) -> int:
        """Numbers of a patch."""
        return CHANNELS * self.frames * self.patch**2

    @property
    def slots(self) -> int:
        """Visual tokens of a whole window."""
        return self.window**2

    @property
    def deep_layer(self) -> int:
        """The last layer in which patches attend to the whole image: that of the saliency."""
        return max(self.full_layers)

    def weights(self, prefix: str) -> dict[str, tuple[int, ...]]:
        """Key → shape of the weights of :meth:`build`."""
        return packed_tower_weights(self, prefix)

    def build(self, g: Graph, prefix: str, wanted: Collection[str], shallow_layer: int | None) -> PackedTower:
        """See :func:`build_packed_tower`."""
        return build_packed_tower(g, self, prefix, wanted, shallow_layer)


def packed_tower_weights(cfg: PackedTowerConfig, prefix: str) -> dict[str, tuple[int, ...]]:
    """Key → shape of the weights of :func:`build_packed_tower`."""
    h, f, merged = cfg.hidden_size, cfg.intermediate_size, cfg.hidden_size * cfg.unit
    weights: dict[str, tuple[int, ...]] = {
        f"{prefix}patch_embed.proj.weight": (h, CHANNELS, cfg.frames, cfg.patch, cfg.patch)
    }
    for i in range(cfg.num_layers):
        layer = f"{prefix}blocks.{i}."
        weights |= _norm(cfg, f"{layer}norm1") | _norm(cfg, f"{layer}norm2")
        weights |= linear_weights(f"{layer}attn.qkv", 3 * h, h) | linear_weights(f"{layer}attn.proj", h, h)
        if cfg.gated:
            weights |= linear_weights(f"{layer}mlp.gate_proj", f, h) | linear_weights(f"{layer}mlp.up_proj", f, h)
            weights |= linear_weights(f"{layer}mlp.down_proj", h, f)
        else:
            weights |= linear_weights(f"{layer}mlp.fc1", f, h) | linear_weights(f"{layer}mlp.fc2", h, f)
    weights |= _norm(cfg, f"{prefix}merger.ln_q")
    return weights | (
        linear_weights(f"{prefix}merger.mlp.0", merged, merged)
        | linear_weights(f"{prefix}merger.mlp.2", cfg.output_size, merged)
    )


def _norm(cfg: PackedTowerConfig, key: str) -> dict[str, tuple[int, ...]]:
    return {f"{key}.weight": (cfg.hidden_size,)} if cfg.gated else norm_weights(key, cfg.hidden_size)


@dataclass
class PackedTower:
    """The outputs of a packed tower.

    Attributes:
        features: The visual tokens, [1, N, D].
        extras: Further outputs by the names of :data:`trtprune.pruning.inputs.INPUTS`, a row for each visual token.
    """

    features: ir.Value
    extras: dict[str, ir.Value] = field(default_factory=dict)


@dataclass(frozen=True)
class _Inputs:
    """What all layers share: angles [1, patches, head_dim / 2], and the windows of a tower that has them.

    ``index`` int64 [windows · slots] has a visual token for each slot, 0 for an empty one; ``places`` int64 [N] is each
    token's slot; ``taken`` bool [windows, 1, 1, slots · unit] has the slots' patches, and ``mask`` is that of the
    windows' attention.
    """

    cos: ir.Value
    sin: ir.Value
    index: ir.Value | None = None
    places: ir.Value | None = None
    taken: ir.Value | None = None
    mask: ir.Value | None = None


def build_packed_tower(
    g: Graph,
    cfg: PackedTowerConfig,
    prefix: str,
    wanted: Collection[str] = (),
    shallow_layer: int | None = None,
) -> PackedTower:
    """Add the inputs, the tower and the merger.

    Inputs: ``pixel_values`` [patches, width] and the arrays of :mod:`trtprune.runtime.images.packed`.

    The saliency outputs say how much attention a visual token's patches receive together, the mean over heads:
    ``mean_query_attention`` from the mean of all queries and ``deep_attention`` from all, in the last layer that sees
    the whole image; ``shallow_attention`` as the latter in another layer, where a patch outside of a query's window
    receives nothing.  ``vision_features`` [1, N, C] and ``vision_keys`` [1, N, head_dim] are means over a token's
    patches: of the tower's last hidden state, and of the keys, rotated, in the layer of the saliency.

    Args:
        g: The graph.
        cfg: The tower's sizes; ``prefix`` the prefix of its weights.
        wanted: Names of further outputs; others are ignored.
        shallow_layer: The layer of ``shallow_attention``, counted from 1.
    """
    op = g.op
    pixels = g.input(PIXEL_VALUES, g.dtype_name, ["patches", cfg.patch_width])
    with g.scope("embeddings"):
        kernel = op.Reshape(g.weight(f"{prefix}patch_embed.proj.weight"), g.ints(cfg.hidden_size, cfg.patch_width))
        x = op.MatMul(pixels, op.Transpose(kernel, perm=[1, 0]))
        x = op.Unsqueeze(x, g.ints(0))
        shared = _shared(g, cfg)
    extras: dict[str, ir.Value] = {}
    for i in range(cfg.num_layers):
        reads = {*wanted} & {MEAN_QUERY_ATTENTION, DEEP_ATTENTION, "vision_keys"} if i == cfg.deep_layer else set()
        if shallow_layer == i + 1:
            reads |= {*wanted} & {SHALLOW_ATTENTION}
        with g.scope(f"layers.{i}"):
            x, outputs = _layer(g, cfg, f"{prefix}blocks.{i}.", x, shared, i in cfg.full_layers, reads)
        extras |= outputs
    if "vision_features" in wanted:
        extras["vision_features"] = _pooled(g, cfg, x)
    with g.scope("projector"):
        y = _normed(g, cfg, x, f"{prefix}merger.ln_q")
        y = op.Reshape(y, g.ints(1, -1, cfg.hidden_size * cfg.unit))
        y = activation(g, linear(g, y, f"{prefix}merger.mlp.0", bias=True), "gelu")
        return PackedTower(linear(g, y, f"{prefix}merger.mlp.2", bias=True), extras)


def _shared(g: Graph, cfg: PackedTowerConfig) -> _Inputs:
    """The inputs beside the pixels, and what layers make of them once."""
    op, int64 = g.op, ir.DataType.INT64
    positions = g.input(TOKEN_POSITIONS, "int64", ["visual_tokens", 2])
    cos, sin = patch_angles(g, positions, cfg.merge, cfg.head_dim, cfg.rope_theta)
    if len(cfg.full_layers) == cfg.num_layers:
        return _Inputs(cos, sin)
    window_index = g.input(WINDOW_INDEX, "int64", ["windows", cfg.slots])
    places = g.input(WINDOW_PLACES, "int64", ["visual_tokens"])
    index = op.Reshape(op.Max(window_index, g.scalar(0, int64)), g.ints(-1))
    # A slot stands for all patches of its token: [windows, slots, unit] → [windows, 1, 1, slots · unit].
    taken = op.GreaterOrEqual(op.Unsqueeze(window_index, g.ints(2)), g.scalar(0, int64))
    taken = op.Expand(taken, g.ints(1, 1, cfg.unit))
    taken = op.Reshape(taken, g.ints(-1, 1, 1, cfg.slots * cfg.unit))
    if g.lowering.vision_attention.startswith("primitives"):
        half = g.dtype == ir.DataType.FLOAT16 and not g.lowering.vision_attention.endswith("float32")
        dtype = _FLOAT if g.lowering.vision_attention.endswith("float32") else g.dtype
        lowest = float(np.finfo(np.float16).min) if half else -3.0e38
        mask = op.Where(taken, g.scalar(0.0, dtype), g.scalar(lowest, dtype))
    else:  # ONNX Runtime's operator takes a row for each query
        mask = op.Expand(taken, g.ints(1, 1, cfg.slots * cfg.unit, 1))
    return _Inputs(cos, sin, index, places, taken, mask)


def patch_angles(g: Graph, positions: ir.Value, merge: int, head_dim: int, theta: float) -> tuple[ir.Value, ir.Value]:
    """cos and sin float32 [1, patches, head_dim / 2] of the patches' rotary embedding, in merge order.

    Args:
        positions: int64 [N, 2], row and column of each visual token.
        merge: Patches on a side of a visual token.
        head_dim: Width of a head, a multiple of 4: each axis has a quarter as many frequencies.
        theta: Base of the frequencies.
    """
    op, quarter = g.op, head_dim // 4
    inside = np.stack(np.divmod(np.arange(merge**2, dtype=np.int64), merge), axis=1)
    first = op.Mul(op.Unsqueeze(positions, g.ints(1)), g.scalar(merge, ir.DataType.INT64))
    patches = g.cast(op.Add(first, g.constant(inside[None], "patches_of_token")), _FLOAT)  # [N, unit, 2]
    exponent = np.arange(0, head_dim // 2, 2, dtype=np.float32) / np.float32(head_dim // 2)
    inv_freq = (1.0 / np.power(np.float32(theta), exponent)).astype(np.float32)
    angles = op.Mul(op.Unsqueeze(patches, g.ints(3)), g.constant(inv_freq, "inv_freq"))  # [N, unit, 2, quarter]
    angles = op.Reshape(angles, g.ints(1, -1, 2 * quarter))
    return op.Cos(angles), op.Sin(angles)


def _layer(
    g: Graph,
    cfg: PackedTowerConfig,
    layer: str,
    x: ir.Value,
    shared: _Inputs,
    full: bool,
    reads: Collection[str],
) -> tuple[ir.Value, dict[str, ir.Value]]:
    """One pre-norm layer over [1, patches, C], and its requested outputs."""
    op, heads, dim = g.op, cfg.num_heads, cfg.head_dim
    y = _normed(g, cfg, x, f"{layer}norm1")
    both = linear(g, y, f"{layer}attn.qkv", bias=True)
    parts = op.Split(both, g.ints(*[cfg.hidden_size] * 3), axis=-1, _outputs=3)
    q, k, v = (split_heads(g, part, heads, dim) for part in parts)
    q, k = (_rotated(g, t, shared, dim) for t in (q, k))
    mask = None
    if not full:
        q, k, v = (_to_windows(g, cfg, t, shared) for t in (q, k, v))
        mask = shared.mask
    found = _attention_outputs(g, cfg, layer, q, k, shared, full, reads)
    y = _attended(g, cfg, q, k, v, mask)
    y = merge_heads(g, y, heads, dim)
    if not full:
        y = _from_windows(g, cfg, y, shared)
    x = op.Add(x, linear(g, y, f"{layer}attn.proj", bias=True))
    y = _normed(g, cfg, x, f"{layer}norm2")
    if cfg.gated:
        gate = activation(g, linear(g, y, f"{layer}mlp.gate_proj", bias=True), cfg.activation)
        y = op.Mul(gate, linear(g, y, f"{layer}mlp.up_proj", bias=True))
        y = linear(g, y, f"{layer}mlp.down_proj", bias=True)
    else:
        y = linear(
            g, activation(g, linear(g, y, f"{layer}mlp.fc1", bias=True), cfg.activation), f"{layer}mlp.fc2", bias=True
        )
    return op.Add(x, y), found


def _attended(
    g: Graph, cfg: PackedTowerConfig, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value | None
) -> ir.Value:
    """Attention over [batch, heads, S, dim], within windows if there is a mask."""
    dim, form = cfg.head_dim, g.lowering.vision_attention
    if mask is not None or not form.startswith("primitives"):
        return attention(g, q, k, v, heads=cfg.num_heads, kv_heads=cfg.num_heads, head_dim=dim, mask=mask, form=form)
    # Written out, an image's scores would all be in memory at once: 7 GB of 10,000 patches and 16 heads.
    split = zip(*(_heads(g, cfg, t) for t in (q, k, v)), strict=True)
    rows = [attention(g, a, b, c, heads=1, kv_heads=1, head_dim=dim, form=form) for a, b, c in split]
    return g.op.Concat(*rows, axis=1) if len(rows) > 1 else rows[0]


def _heads(g: Graph, cfg: PackedTowerConfig, x: ir.Value) -> list[ir.Value]:
    """Each head of [1, heads, patches, dim], [1, 1, patches, dim]."""
    count = cfg.num_heads
    return list(g.op.Split(x, g.ints(*[1] * count), axis=1, _outputs=count)) if count > 1 else [x]


def _normed(g: Graph, cfg: PackedTowerConfig, x: ir.Value, key: str) -> ir.Value:
    return (rms_norm if cfg.gated else layer_norm)(g, x, key, eps=cfg.norm_eps)


def _rotated(g: Graph, x: ir.Value, shared: _Inputs, dim: int) -> ir.Value:
    """Queries or keys [1, heads, patches, dim], turned in float32."""
    return g.cast(rotary(g, g.cast(x, _FLOAT), shared.cos, shared.sin, dim), g.dtype)


def _to_windows(g: Graph, cfg: PackedTowerConfig, x: ir.Value, shared: _Inputs) -> ir.Value:
    """[1, heads, patches, dim] → [windows, heads, slots · unit, dim]."""
    op, heads, dim = g.op, cfg.num_heads, cfg.head_dim
    tokens = op.Reshape(x, g.ints(heads, -1, cfg.unit * dim))
    slots = op.Gather(tokens, shared.index, axis=1)
    windows = op.Reshape(slots, g.ints(heads, -1, cfg.slots * cfg.unit, dim))
    return op.Transpose(windows, perm=[1, 0, 2, 3])


def _from_windows(g: Graph, cfg: PackedTowerConfig, y: ir.Value, shared: _Inputs) -> ir.Value:
    """[windows, slots · unit, C] → [1, patches, C]."""
    op = g.op
    slots = op.Reshape(y, g.ints(-1, cfg.unit * cfg.hidden_size))
    return op.Reshape(op.Gather(slots, shared.places, axis=0), g.ints(1, -1, cfg.hidden_size))


def _attention_outputs(
    g: Graph,
    cfg: PackedTowerConfig,
    layer: str,
    q: ir.Value,
    k: ir.Value,
    shared: _Inputs,
    full: bool,
    reads: Collection[str],
) -> dict[str, ir.Value]:
    """The outputs of a layer's attention, pooled over each token's patches."""
    op, dim, found = g.op, cfg.head_dim, {}
    if MEAN_QUERY_ATTENTION in reads:
        found[MEAN_QUERY_ATTENTION] = _summed(g, cfg, mean_query_row(g, q, k, head_dim=dim))
    if "vision_keys" in reads:
        keys = op.ReduceMean(g.cast(k, _FLOAT), g.ints(1), keepdims=0)
        found["vision_keys"] = op.ReduceMean(op.Reshape(keys, g.ints(1, -1, cfg.unit, dim)), g.ints(2), keepdims=0)
    for name in (DEEP_ATTENTION, SHALLOW_ATTENTION):
        if name in reads:  # from one layer if the two are the same
            received = g.memo(("mean attention", layer), lambda: _received(g, cfg, q, k, shared, full))
            found[name] = _summed(g, cfg, received)
    return found


def _received(g: Graph, cfg: PackedTowerConfig, q: ir.Value, k: ir.Value, shared: _Inputs, full: bool) -> ir.Value:
    """What each patch receives, the mean over heads and all queries of the image: float32 [1, patches]."""
    op, dim = g.op, cfg.head_dim
    if full:  # head by head, see _attended
        pairs = zip(_heads(g, cfg, q), _heads(g, cfg, k), strict=True)
        rows = [mean_attention(g, a, b, head_dim=dim) for a, b in pairs]
        return op.ReduceMean(op.Concat(*rows, axis=0), g.ints(0), keepdims=1)
    assert shared.places is not None
    scores = op.Mul(
        op.MatMul(g.cast(q, _FLOAT), op.Transpose(g.cast(k, _FLOAT), perm=[0, 1, 3, 2])), g.scalar(dim**-0.5, _FLOAT)
    )
    assert shared.taken is not None
    weights = op.Softmax(op.Where(shared.taken, scores, g.scalar(-3.0e38, _FLOAT)), axis=-1)
    # Queries of empty slots are none of the image's.
    asking = op.Transpose(g.cast(shared.taken, _FLOAT), perm=[0, 1, 3, 2])
    sums = op.ReduceSum(op.ReduceMean(op.Mul(weights, asking), g.ints(1), keepdims=0), g.ints(1), keepdims=0)
    patches = op.Gather(op.Reshape(sums, g.ints(-1, cfg.unit)), shared.places, axis=0)
    row = op.Reshape(patches, g.ints(1, -1))
    return op.Div(row, g.cast(op.Shape(row, start=1, end=2), _FLOAT))


def _summed(g: Graph, cfg: PackedTowerConfig, row: ir.Value) -> ir.Value:
    """[1, patches] → [1, N]: what a token's patches receive together."""
    return g.op.ReduceSum(g.op.Reshape(row, g.ints(1, -1, cfg.unit)), g.ints(2), keepdims=0)


def _pooled(g: Graph, cfg: PackedTowerConfig, x: ir.Value) -> ir.Value:
    """[1, patches, C] → [1, N, C]: the mean of a token's patches."""
    units = g.op.Reshape(g.cast(x, _FLOAT), g.ints(1, -1, cfg.unit, cfg.hidden_size))
    return g.cast(g.op.ReduceMean(units, g.ints(2), keepdims=0), g.dtype)
