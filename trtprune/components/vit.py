"""The common part of the vision towers: layer selection, encoder layers, attention outputs.

A tower module (``clip``, ``dinov2``, ``internvl_vision``, ``siglip``) has the embeddings and the names of its weights;
this one runs the needed layers and selects the features, as ``LlavaModel.get_image_features`` of transformers does:

* ``hidden_states[0]`` is the input of the first encoder layer (for CLIP after ``pre_layrnorm``) and
  ``hidden_states[k]`` the output of layer ``k - 1``; the tower's final norm is not applied to any of them, unless the
  selection names it.
* ``vision_feature_layer`` indexes them like a Python list; several are concatenated along the features.
* ``vision_feature_select_strategy`` "default" drops the first token of each, "full" keeps all.  Without a CLS token
  "default" drops the first patch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Protocol

import onnx_ir as ir

from trtprune.components.config import MAX_LAYERS, Section
from trtprune.errors import CheckpointError, shown
from trtprune.graph import Graph
from trtprune.graph.attention import attention, mean_attention, mean_query_row, query_row
from trtprune.graph.ops import ACTIVATIONS, activation, layer_norm, linear, merge_heads, rms_norm, split_heads
from trtprune.tensor_names import CLS_ATTENTION, MEAN_QUERY_ATTENTION, PIXEL_VALUES

__all__ = [
    "ATTENTION_OUTPUTS",
    "FeatureSelection",
    "LayerNames",
    "Present",
    "Tower",
    "TowerConfig",
    "TowerOutputs",
    "build_tower",
    "linear_weights",
    "norm_weights",
    "patch_tokens",
    "prepend_token",
]

MAX_PATCHES = 65536
"""The largest number of patches of an image; a tower that interpolates its position table has no bound of its own."""
QK_EPS = 1e-6
"""Epsilon of the norms of queries and keys, which is transformers' default and no setting."""
_OTHER = "download config.json again, or correct it"

Present = Callable[[str], bool]
"""Whether the checkpoint has a tensor of this canonical name."""


@dataclass(frozen=True)
class TowerConfig:
    """``vision_config`` with transformers' defaults filled in, and the image size of the graph."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    channels: int
    image_size: tuple[int, int]
    """(height, width) of ``pixel_values``."""
    patch_size: tuple[int, int]
    norm_eps: float
    activation: str
    qkv_bias: bool
    swiglu: bool
    layer_scale: bool
    position_grid: tuple[int, int]
    """Rows and columns of the stored position table."""
    rms_norm: bool = False
    """Whether the layers' norms are RMSNorm; else LayerNorm."""
    qk_norm: bool = False
    """Whether queries and keys go through an RMSNorm of their own, over all heads together."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    @property
    def patches(self) -> int:
        rows, columns = self.grid
        return rows * columns

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @classmethod
    def read(
        cls,
        vision: Section,
        model_type: str,
        *,
        intermediate_size: int,
        patch_size: int,
        norm_eps: float,
        activation: str,
        image_size: tuple[int, int] | None = None,
        qkv_bias: bool = True,
        swiglu: bool = False,
        layer_scale: bool = False,
        rms_norm: bool = False,
        qk_norm: bool = False,
    ) -> TowerConfig:
        """Read the keys that all towers have.

        Args:
            vision: ``vision_config``.
            model_type: The tower's type, e.g. ``clip_vision_model``.
            intermediate_size: Width of the MLP.
            patch_size: Default value, as are ``norm_eps`` and ``activation``.
            image_size: The preprocessor's (height, width), for a tower that accepts other sizes than its own.
            qkv_bias: A feature of some towers only, as are ``swiglu``, ``layer_scale``, ``rms_norm`` and ``qk_norm``.
        """
        hidden = vision.integer("hidden_size", 768)
        heads = vision.integer("num_attention_heads", 12)
        if hidden % heads:
            raise CheckpointError(
                f"{vision.key('hidden_size')} = {hidden} is not a multiple of {heads} heads", hint=_OTHER
            )
        own = vision.size("image_size", 224)
        patch = vision.size("patch_size", patch_size)
        size = image_size or own
        grids = [(height // patch[0], width // patch[1]) for height, width in (size, own)]
        if any(rows * columns < 1 for rows, columns in grids):
            raise CheckpointError(f"{vision.key('image_size')} is smaller than a patch", hint=_OTHER)
        if any(rows * columns > MAX_PATCHES for rows, columns in grids):
            raise CheckpointError(
                f"pictures of {size[0]}×{size[1]} pixels have more than {MAX_PATCHES} patches of {patch[0]}×{patch[1]}",
                hint="correct image_size in config.json, or crop_size or size in preprocessor_config.json",
            )
        return cls(
            model_type=model_type,
            hidden_size=hidden,
            intermediate_size=intermediate_size,
            num_layers=vision.integer("num_hidden_layers", 12, high=MAX_LAYERS),
            num_heads=heads,
            channels=vision.integer("num_channels", 3),
            image_size=size,
            patch_size=patch,
            norm_eps=vision.number("layer_norm_eps", norm_eps),
            activation=vision.choice("hidden_act", ACTIVATIONS, activation),
            qkv_bias=qkv_bias,
            swiglu=swiglu,
            layer_scale=layer_scale,
            position_grid=(own[0] // patch[0], own[1] // patch[1]),
            rms_norm=rms_norm,
            qk_norm=qk_norm,
        )


@dataclass(frozen=True)
class FeatureSelection:
    """The hidden states that become image features.

    Attributes:
        layers: Indices into ``hidden_states``, all ≥ 0, in the order they are concatenated.
        drop_first: Whether the first token of each is dropped (strategy "default").
        norm: The tower's norm that the features go through, relative to the tower's prefix; None: they go through none.
    """

    layers: tuple[int, ...]
    drop_first: bool
    norm: str | None = None

    @property
    def deepest(self) -> int:
        """Number of encoder layers to build; the CLS attention row is the last one's."""
        return max(self.layers)

    @classmethod
    def from_config(
        cls, config: Section, num_layers: int, *, layer: int = -2, strategy: str = "default"
    ) -> FeatureSelection:
        """Read ``vision_feature_layer`` and ``vision_feature_select_strategy``; the keywords are their defaults.

        Raises:
            CheckpointError: for a layer that the tower does not have, or an unknown strategy.
        """
        value = config.values.get("vision_feature_layer", layer)
        chosen = value if isinstance(value, list) else [value]
        if not 1 <= len(chosen) <= num_layers + 1:
            raise CheckpointError(
                f"{config.key('vision_feature_layer')} lists {len(chosen)} layers",
                hint=f"expected 1 to {num_layers + 1} of them",
            )
        layers = []
        for index in chosen:
            if isinstance(index, bool) or not isinstance(index, int) or not -num_layers - 1 <= index <= num_layers:
                raise CheckpointError(
                    f"{config.key('vision_feature_layer')} is {shown(value)}",
                    hint=f"expected integers from {-num_layers - 1} to {num_layers}: the tower has {num_layers} layers",
                )
            layers.append(index % (num_layers + 1))
        chosen_strategy = config.choice("vision_feature_select_strategy", ("default", "full"), strategy)
        return cls(tuple(layers), chosen_strategy == "default")


@dataclass(frozen=True)
class LayerNames:
    """Names of the modules of encoder layer ``i``, relative to the tower's prefix."""

    layer: str
    norm1: str
    norm2: str
    attention: str
    out: str
    scale1: str = ""
    scale2: str = ""

    def prefix(self, index: int) -> str:
        return self.layer.format(index)


class Tower(Protocol):
    """The interface of a tower module (the modules themselves satisfy it)."""

    HAS_CLS: bool
    NAMES: LayerNames
    RENAMES: tuple[tuple[str, str], ...]
    UNUSED: tuple[str, ...]

    def read_config(self, vision: Section, image_size: tuple[int, int] | None) -> TowerConfig: ...

    def embedding_weights(self, cfg: TowerConfig, prefix: str) -> dict[str, tuple[int, ...]]: ...

    def layer_weights(self, cfg: TowerConfig, prefix: str, present: Present) -> dict[str, tuple[int, ...]]: ...

    def embed(self, g: Graph, cfg: TowerConfig, prefix: str, pixel_values: ir.Value) -> ir.Value: ...


def linear_weights(key: str, rows: int, columns: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    """Shapes of a linear layer's weight [rows, columns] and bias."""
    weights: dict[str, tuple[int, ...]] = {f"{key}.weight": (rows, columns)}
    if bias:
        weights[f"{key}.bias"] = (rows,)
    return weights


def norm_weights(key: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{key}.weight": (size,), f"{key}.bias": (size,)}


def patch_tokens(g: Graph, cfg: TowerConfig, key: str, pixel_values: ir.Value, *, bias: bool) -> ir.Value:
    """The strided convolution of every tower: [B, C, H, W] → [B, patches, hidden], row by row."""
    op = g.op
    inputs = [pixel_values, g.weight(f"{key}.weight")] + ([g.weight(f"{key}.bias")] if bias else [])
    grid = op.Conv(*inputs, strides=list(cfg.patch_size), kernel_shape=list(cfg.patch_size))
    return op.Transpose(op.Reshape(grid, g.ints(0, cfg.hidden_size, cfg.patches)), perm=[0, 2, 1])


def prepend_token(g: Graph, cfg: TowerConfig, token: ir.Value, tokens: ir.Value) -> ir.Value:
    """``token`` (a value with ``hidden`` numbers) as token 0 of every row."""
    op = g.op
    batch = op.Shape(tokens, start=0, end=1)
    row = op.Reshape(token, g.ints(1, 1, cfg.hidden_size))
    rows = op.Expand(row, op.Concat(batch, g.ints(1, cfg.hidden_size), axis=0))
    return op.Concat(rows, tokens, axis=1)


@dataclass
class TowerOutputs:
    """The outputs of a tower.

    Attributes:
        features: The selected hidden states [batch, N, hidden · len(layers)], the projector's input.
        cls: The same for the CLS token, [batch, 1, hidden · len(layers)]; None without one.
        extras: Further outputs by the names of :data:`trtprune.pruning.inputs.INPUTS`: ``cls_attention``, if there is a
            CLS token and at least one layer, and the requested ones.
    """

    features: ir.Value
    cls: ir.Value | None
    extras: dict[str, ir.Value] = field(default_factory=dict)


LAST_LAYER = frozenset({"vision_keys", "deep_attention", MEAN_QUERY_ATTENTION})
"""Attention outputs of the last used layer."""
ATTENTION_OUTPUTS = (*sorted(LAST_LAYER), "shallow_attention")
"""Attention outputs that :func:`build_tower` adds on request."""


def build_tower(
    g: Graph,
    tower: Tower,
    cfg: TowerConfig,
    selection: FeatureSelection,
    prefix: str,
    wanted: Collection[str] = (),
    shallow_layer: int | None = None,
) -> TowerOutputs:
    """Add the input ``pixel_values`` and the tower, up to the deepest selected layer.

    Args:
        g: The graph.
        tower: The tower module; ``cfg`` its sizes, ``prefix`` the prefix of its weights.
        selection: The hidden states of the features.
        wanted: Requested names of :data:`ATTENTION_OUTPUTS`; other names are ignored.
        shallow_layer: The layer of ``shallow_attention``, counted from 1, at most ``selection.deepest``.
    """
    pixels = g.input(PIXEL_VALUES, g.dtype_name, ["batch", cfg.channels, *cfg.image_size])
    with g.scope("embeddings"):
        x = tower.embed(g, cfg, prefix, pixels)
    states = {0: x}
    extras: dict[str, ir.Value] = {}
    for layer in range(1, selection.deepest + 1):
        reads = set()
        if layer == selection.deepest:
            reads |= ({CLS_ATTENTION} if tower.HAS_CLS else set()) | (LAST_LAYER & set(wanted))
        if layer == shallow_layer and "shallow_attention" in wanted:
            reads |= {"shallow_attention"}
        with g.scope(f"layers.{layer - 1}"):
            x, found = _layer(g, cfg, tower.NAMES, prefix + tower.NAMES.prefix(layer - 1), x, reads)
        states[layer] = x
        extras |= found
    missing = {*ATTENTION_OUTPUTS} & set(wanted) - extras.keys()
    assert not missing, f"{missing}: no such layer is built"
    op = g.op
    rest = (g.ints(1), g.ints(2**31 - 1), g.ints(1))
    features = [states[i] for i in selection.layers]
    if selection.norm is not None:
        with g.scope(selection.norm):
            features = [layer_norm(g, f, prefix + selection.norm, eps=cfg.norm_eps) for f in features]
    cls = [op.Slice(f, g.ints(0), g.ints(1), g.ints(1)) for f in features if tower.HAS_CLS and "cls_feature" in wanted]
    if selection.drop_first:
        features = [op.Slice(f, *rest) for f in features]
        extras = {name: op.Slice(value, *rest) for name, value in extras.items()}
    return TowerOutputs(_joined(g, features), _joined(g, cls) if cls else None, extras)


def _joined(g: Graph, parts: list[ir.Value]) -> ir.Value:
    return g.op.Concat(*parts, axis=-1) if len(parts) > 1 else parts[0]


def _layer(
    g: Graph, cfg: TowerConfig, names: LayerNames, layer: str, x: ir.Value, reads: Collection[str]
) -> tuple[ir.Value, dict[str, ir.Value]]:
    """One pre-norm encoder layer, and its requested attention outputs for all tokens."""
    op, heads, dim = g.op, cfg.num_heads, cfg.head_dim
    norm = rms_norm if cfg.rms_norm else layer_norm
    y = norm(g, x, layer + names.norm1, eps=cfg.norm_eps)
    q, k, v = (linear(g, y, f"{layer}{names.attention}{n}_proj", bias=cfg.qkv_bias) for n in "qkv")
    if cfg.qk_norm:
        q = rms_norm(g, q, f"{layer}{names.attention}q_norm", eps=QK_EPS)
        k = rms_norm(g, k, f"{layer}{names.attention}k_norm", eps=QK_EPS)
    q, k, v = (split_heads(g, rows, heads, dim) for rows in (q, k, v))
    found = {}
    if CLS_ATTENTION in reads:
        found[CLS_ATTENTION] = query_row(g, q, k, row=0, head_dim=dim)
    if MEAN_QUERY_ATTENTION in reads:
        found[MEAN_QUERY_ATTENTION] = mean_query_row(g, q, k, head_dim=dim)
    if "vision_keys" in reads:
        found["vision_keys"] = op.ReduceMean(g.cast(k, ir.DataType.FLOAT), g.ints(1), keepdims=0)
    for name in ("deep_attention", "shallow_attention"):
        if name in reads:  # from one layer if the two are the same
            found[name] = g.memo(("mean attention", layer), lambda: mean_attention(g, q, k, head_dim=dim))
    y = attention(g, q, k, v, heads=heads, kv_heads=heads, head_dim=dim, form=g.lowering.vision_attention)
    y = linear(g, merge_heads(g, y, heads, dim), layer + names.out, bias=True)
    if cfg.layer_scale:
        y = op.Mul(y, g.weight(layer + names.scale1))
    x = op.Add(x, y)
    y = norm(g, x, layer + names.norm2, eps=cfg.norm_eps)
    y = _swiglu(g, cfg, layer, y) if cfg.swiglu else _mlp(g, cfg, layer, y)
    if cfg.layer_scale:
        y = op.Mul(y, g.weight(layer + names.scale2))
    return op.Add(x, y), found


def _mlp(g: Graph, cfg: TowerConfig, layer: str, y: ir.Value) -> ir.Value:
    y = activation(g, linear(g, y, f"{layer}mlp.fc1", bias=True), cfg.activation)
    return linear(g, y, f"{layer}mlp.fc2", bias=True)


def _swiglu(g: Graph, cfg: TowerConfig, layer: str, y: ir.Value) -> ir.Value:
    size = cfg.intermediate_size
    if g.has_weight(f"{layer}mlp.weights_in.weight"):  # older checkpoints store gate and up as one matrix
        both = linear(g, y, f"{layer}mlp.weights_in", bias=True)
        gate, up = g.op.Split(both, g.ints(size, size), axis=-1, _outputs=2)
    else:
        gate, up = (linear(g, y, f"{layer}mlp.{n}_proj", bias=True) for n in ("gate", "up"))
    return linear(g, g.op.Mul(activation(g, gate, "silu"), up), f"{layer}mlp.down_proj", bias=True)
