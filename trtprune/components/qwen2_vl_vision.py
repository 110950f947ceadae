"""The packed vision towers of Qwen2-VL and the families after it: from an image's patches to its visual tokens.

One image a run.  Patches come in merge order, so that the rows of a visual token stand behind one another and the
merger is a reshape.  They stay in that order: a window layer gathers queries, keys and values into its windows, all of
one length with empty slots masked, and the results back (transformers puts the whole image in window order instead).
The rotary embedding turns half of a head's frequencies by the patch's row and half by its column, in float32.  Where
there is a table of positions, too (Qwen3-VL), it is resampled to the image's grid.

A DeepStack level is what a merger of its own makes of the patches behind an earlier layer, for the language model to
add behind one of its first layers.

Sources: https://arxiv.org/abs/2409.12191 §2.1 (Qwen2-VL), https://arxiv.org/abs/2502.13923 §2.1 (Qwen2.5-VL),
https://arxiv.org/abs/2511.21631 §2 (Qwen3-VL), https://arxiv.org/abs/2406.04334 (DeepStack); ``modeling_qwen2_vl``,
``modeling_qwen2_5_vl`` and ``modeling_qwen3_vl`` of transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import onnx_ir as ir

from trtprune.components.packed_windows import Windows
from trtprune.components.patch_merger import Merger, MergerNames
from trtprune.components.patch_positions import patch_angles, patch_places, resampled_positions
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
)

__all__ = [
    "QWEN2_NAMES",
    "QWEN3_NAMES",
    "PackedTower",
    "PackedTowerConfig",
    "TowerNames",
    "build_packed_tower",
    "packed_tower_weights",
]

_FLOAT = ir.DataType.FLOAT
CHANNELS = 3


@dataclass(frozen=True)
class TowerNames:
    """The checkpoint's names where the families differ.

    Attributes:
        middle: Of the two linear layers of a plain middle.
        merger: Of the merger's parts, and of those of the DeepStack levels.
    """

    middle: tuple[str, str]
    merger: MergerNames


QWEN2_NAMES = TowerNames(("fc1", "fc2"), MergerNames("ln_q", "mlp.0", "mlp.2"))
QWEN3_NAMES = TowerNames(("linear_fc1", "linear_fc2"), MergerNames("norm", "linear_fc1", "linear_fc2"))


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
        names: The checkpoint's names.
        patch_bias: Whether the patch embedding has a bias.
        table_side: Entries on a side of the table of learned positions; 0 without one.
        deepstack: Layers, counted from 0, behind which the DeepStack levels are read, each with the merger of the same
            number; the levels are in the order of the layers.
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
    names: TowerNames = QWEN2_NAMES
    patch_bias: bool = False
    table_side: int = 0
    deepstack: tuple[int, ...] = ()

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
    def levels(self) -> int:
        """L, the number of DeepStack levels."""
        return len(self.deepstack)

    @property
    def deep_layer(self) -> int:
        """The last layer in which patches attend to the whole image: that of the saliency."""
        return max(self.full_layers)

    def merger(self, *, joint: bool = False) -> Merger:
        """The tower's merger, or with a ``joint`` norm that of a DeepStack level."""
        sizes = self.hidden_size, self.unit, self.output_size, self.norm_eps
        return Merger(self.names.merger, *sizes, rms=self.gated, joint=joint)

    def weights(self, prefix: str) -> dict[str, tuple[int, ...]]:
        """Key → shape of the weights of :meth:`build`."""
        return packed_tower_weights(self, prefix)

    def build(self, g: Graph, prefix: str, wanted: Collection[str], shallow_layer: int | None) -> PackedTower:
        """See :func:`build_packed_tower`."""
        return build_packed_tower(g, self, prefix, wanted, shallow_layer)


def packed_tower_weights(cfg: PackedTowerConfig, prefix: str) -> dict[str, tuple[int, ...]]:
    """Key → shape of the weights of :func:`build_packed_tower`."""
    h, f = cfg.hidden_size, cfg.intermediate_size
    weights: dict[str, tuple[int, ...]] = {
        f"{prefix}patch_embed.proj.weight": (h, CHANNELS, cfg.frames, cfg.patch, cfg.patch)
    }
    if cfg.patch_bias:
        weights[f"{prefix}patch_embed.proj.bias"] = (h,)
    if cfg.table_side:
        weights[f"{prefix}pos_embed.weight"] = (cfg.table_side**2, h)
    for i in range(cfg.num_layers):
        layer = f"{prefix}blocks.{i}."
        weights |= _norm(cfg, f"{layer}norm1") | _norm(cfg, f"{layer}norm2")
        weights |= linear_weights(f"{layer}attn.qkv", 3 * h, h) | linear_weights(f"{layer}attn.proj", h, h)
        if cfg.gated:
            weights |= linear_weights(f"{layer}mlp.gate_proj", f, h) | linear_weights(f"{layer}mlp.up_proj", f, h)
            weights |= linear_weights(f"{layer}mlp.down_proj", h, f)
        else:
            first, second = (f"{layer}mlp.{name}" for name in cfg.names.middle)
            weights |= linear_weights(first, f, h) | linear_weights(second, h, f)
    weights |= cfg.merger().weights(f"{prefix}merger.")
    for number in range(len(cfg.deepstack)):
        weights |= cfg.merger(joint=True).weights(f"{prefix}deepstack_merger_list.{number}.")
    return weights


def _norm(cfg: PackedTowerConfig, key: str) -> dict[str, tuple[int, ...]]:
    return {f"{key}.weight": (cfg.hidden_size,)} if cfg.gated else norm_weights(key, cfg.hidden_size)


@dataclass
class PackedTower:
    """The outputs of a packed tower.

    Attributes:
        features: The visual tokens, [1, N, D].
        levels: The DeepStack levels of each visual token side by side, [1, N, L · D]; None of a tower without them.
        extras: Further outputs by the names of :data:`trtprune.pruning.inputs.INPUTS`, a row for each visual token.
    """

    features: ir.Value
    levels: ir.Value | None = None
    extras: dict[str, ir.Value] = field(default_factory=dict)


@dataclass(frozen=True)
class _Inputs:
    """What all layers share.

    Attributes:
        cos, sin: Of the patches' angles, float32 [1, patches, head_dim / 2].
        windows: The windows of a tower that has them.
    """

    cos: ir.Value
    sin: ir.Value
    windows: Windows | None


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
    with g.scope("embeddings"):
        x, shared = _embeddings(g, cfg, prefix)
    extras: dict[str, ir.Value] = {}
    levels: list[ir.Value] = []
    for i in range(cfg.num_layers):
        reads = {*wanted} & {MEAN_QUERY_ATTENTION, DEEP_ATTENTION, "vision_keys"} if i == cfg.deep_layer else set()
        if shallow_layer == i + 1:
            reads |= {*wanted} & {SHALLOW_ATTENTION}
        with g.scope(f"layers.{i}"):
            x, outputs = _layer(g, cfg, f"{prefix}blocks.{i}.", x, shared, i in cfg.full_layers, reads)
        extras |= outputs
        if i in cfg.deepstack:
            number = cfg.deepstack.index(i)
            with g.scope(f"deepstack.{number}"):
                levels.append(cfg.merger(joint=True).build(g, f"{prefix}deepstack_merger_list.{number}.", x))
    if "vision_features" in wanted:
        extras["vision_features"] = _pooled(g, cfg, x)
    with g.scope("projector"):
        features = cfg.merger().build(g, f"{prefix}merger.", x)
    return PackedTower(features, g.op.Concat(*levels, axis=-1) if levels else None, extras)


def _embeddings(g: Graph, cfg: PackedTowerConfig, prefix: str) -> tuple[ir.Value, _Inputs]:
    """The inputs; the patches [1, patches, C] in front of the first layer, and what all layers share."""
    op, proj = g.op, f"{prefix}patch_embed.proj"
    pixels = g.input(PIXEL_VALUES, g.dtype_name, ["patches", cfg.patch_width])
    positions = g.input(TOKEN_POSITIONS, "int64", ["visual_tokens", 2])
    kernel = op.Reshape(g.weight(f"{proj}.weight"), g.ints(cfg.hidden_size, cfg.patch_width))
    x = op.MatMul(pixels, op.Transpose(kernel, perm=[1, 0]))
    if cfg.patch_bias:
        x = op.Add(x, g.weight(f"{proj}.bias"))
    x = op.Unsqueeze(x, g.ints(0))
    places = patch_places(g, positions, cfg.merge)
    if cfg.table_side:
        x = op.Add(x, resampled_positions(g, places, g.weight(f"{prefix}pos_embed.weight"), cfg.table_side))
    cos, sin = patch_angles(g, places, cfg.head_dim, cfg.rope_theta)
    windowed = len(cfg.full_layers) < cfg.num_layers
    return x, _Inputs(cos, sin, Windows.inputs(g, cfg.slots, cfg.unit) if windowed else None)


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
    windows = None if full else shared.windows
    if windows is not None:
        q, k, v = (windows.split(g, t, heads, dim) for t in (q, k, v))
    found = _attention_outputs(g, cfg, layer, q, k, windows, reads)
    y = _attended(g, cfg, q, k, v, None if windows is None else windows.mask)
    y = merge_heads(g, y, heads, dim)
    if windows is not None:
        y = windows.join(g, y, cfg.hidden_size)
    x = op.Add(x, linear(g, y, f"{layer}attn.proj", bias=True))
    y = _normed(g, cfg, x, f"{layer}norm2")
    if cfg.gated:
        gate = activation(g, linear(g, y, f"{layer}mlp.gate_proj", bias=True), cfg.activation)
        y = op.Mul(gate, linear(g, y, f"{layer}mlp.up_proj", bias=True))
        y = linear(g, y, f"{layer}mlp.down_proj", bias=True)
    else:
        first, second = (f"{layer}mlp.{name}" for name in cfg.names.middle)
        y = linear(g, activation(g, linear(g, y, first, bias=True), cfg.activation), second, bias=True)
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


def _attention_outputs(
    g: Graph,
    cfg: PackedTowerConfig,
    layer: str,
    q: ir.Value,
    k: ir.Value,
    windows: Windows | None,
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
            received = g.memo(("mean attention", layer), lambda: _received(g, cfg, q, k, windows))
            found[name] = _summed(g, cfg, received)
    return found


def _received(g: Graph, cfg: PackedTowerConfig, q: ir.Value, k: ir.Value, windows: Windows | None) -> ir.Value:
    """What each patch receives, the mean over heads and all queries of the image: float32 [1, patches]."""
    if windows is not None:
        return windows.received(g, q, k, cfg.head_dim)
    pairs = zip(_heads(g, cfg, q), _heads(g, cfg, k), strict=True)  # head by head, see _attended
    rows = [mean_attention(g, a, b, head_dim=cfg.head_dim) for a, b in pairs]
    return g.op.ReduceMean(g.op.Concat(*rows, axis=0), g.ints(0), keepdims=1)


def _summed(g: Graph, cfg: PackedTowerConfig, row: ir.Value) -> ir.Value:
    """[1, patches] → [1, N]: what a token's patches receive together."""
    return g.op.ReduceSum(g.op.Reshape(row, g.ints(1, -1, cfg.unit)), g.ints(2), keepdims=0)


def _pooled(g: Graph, cfg: PackedTowerConfig, x: ir.Value) -> ir.Value:
    """[1, patches, C] → [1, N, C]: the mean of a token's patches."""
    units = g.op.Reshape(g.cast(x, _FLOAT), g.ints(1, -1, cfg.unit, cfg.hidden_size))
    return g.cast(g.op.ReduceMean(units, g.ints(2), keepdims=0), g.dtype)
