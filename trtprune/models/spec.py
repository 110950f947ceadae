"""A model's facts for the rest of trtprune, and the interface of a family."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import onnx_ir as ir

    from trtprune.checkpoint import Checkpoint, TensorInfo
    from trtprune.graph import Graph, Lowering
    from trtprune.graph.tensors import QuantizedMatrix
    from trtprune.models.clip_text import Clip
    from trtprune.pruning.base import LayerAccess
    from trtprune.runtime.images import PixelBounds, Processor

__all__ = ["BoundedFamily", "Family", "Model", "ModelSpec", "ScaledFeatures", "VisionHead"]


@dataclass(frozen=True)
class VisionHead:
    """An output of the vision graph from the projector's input, beside the projector.

    Attributes:
        write: Function of the graph and the projector's input [batch, N, C] to [batch, N, width].
        width: Width of the result, which is float32.
    """

    write: Callable[[Graph, ir.Value], ir.Value]
    width: int


@dataclass(frozen=True)
class ScaledFeatures:
    """Features inside a layer whose scales can go from the weights that write them to those that read them.

    Attributes:
        writer: Canonical name of the norm's weight [features], or of the matrix [features, in].
        readers: Canonical names of all matrices [out, features] that read them; nothing else does.
        is_norm: Whether ``writer`` is a norm's weight.
    """

    writer: str
    readers: tuple[str, ...]
    is_norm: bool


@dataclass(frozen=True)
class ModelSpec:
    """The facts of a checkpoint behind budget, KV cache, prompt and images.

    Attributes:
        image_size: (height, width) of a crop in pixels; None for a packed tower, which reads images of any size.
        patch_grid: (rows, columns) of a crop's patches; None likewise.
        visual_tokens: N, the most visual tokens of an image.
        first_patch: The patch or square of patches (row by row) of feature 0: 0; -1 if feature 0 is the CLS token; 1 if
            the tower has no CLS token and strategy "default" dropped the first patch.
        has_cls: Whether the vision graph has the output ``cls_attention``.
        keeps_cls_feature: Whether feature 0 is the CLS token (strategy "full").
        hidden_size: D, the language model's width.
        deepstack_levels: L, the levels of the vision tower that a visual token brings along; level l is added behind
            the language model's layer l.
        max_positions: The longest sequence of the language model.
        rotary_sections: For each axis of a position, the number of rotary frequencies that turn by it: one axis, or
            time, row and column.
        rotary_interleaved: Whether the axes alternate over the frequencies.
        video_token: The text that stands for a video in prompts, which are refused; None: the family has none.
        square: Patches on a side of the square that is one visual token; 1: a visual token is a patch.
        image_token, image_token_id: The placeholder in prompts.
        eos_token_ids: Tokens that end an answer; may be empty.
        feature_layers: Indices into the tower's hidden states, ≥ 0.
        select_strategy: "default" or "full".
        sliding_window: Smallest sliding window of the decoder's layers, or None.
        vision_width: C, the width of the projector's input.
        key_width: K, the width of the tower's attention keys.
        tower_layers: Number of built layers of the tower, up to the deepest feature; 0: only its embeddings.
        attention_map: Numbers of a tower layer's whole attention map for the largest image, as many as are in memory at
            once.
    """

    family: str
    vision_tower: str
    decoder: str
    image_size: tuple[int, int] | None
    patch_grid: tuple[int, int] | None
    visual_tokens: int
    first_patch: int
    has_cls: bool
    keeps_cls_feature: bool
    hidden_size: int
    vocab_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    image_token: str
    image_token_id: int
    eos_token_ids: tuple[int, ...]
    feature_layers: tuple[int, ...]
    select_strategy: str
    sliding_window: int | None
    vision_width: int
    key_width: int
    tower_layers: int
    rotary_sections: tuple[int, ...]
    rotary_interleaved: bool = False
    attention_map: int = 0
    video_token: str | None = None
    square: int = 1
    deepstack_levels: int = 0

    @property
    def row_width(self) -> int:
        """The width of a row of the language model's input: D, and D for each level."""
        return self.hidden_size * (1 + self.deepstack_levels)

    @property
    def tokens_are_patches(self) -> bool:
        """Whether visual token i stands for patch i, row by row."""
        if self.patch_grid is None:
            return False
        rows, columns = self.patch_grid
        return self.first_patch == 0 and self.visual_tokens == rows * columns


class Family(Protocol):
    """One architecture."""

    name: str
    architecture: str
    """Entry of ``architectures`` in ``config.json``."""
    model_type: str

    def open(self, checkpoint: Checkpoint, layout: str | None = None) -> Model:
        """Parses a checkpoint's configuration, once; raises CheckpointError for what is not supported."""

    def describe(self) -> dict[str, Any]:
        """The supported towers and decoders, for ``trtprune models``."""


@runtime_checkable
class BoundedFamily(Family, Protocol):
    """A family whose images keep their shape, in as many visual tokens as their size asks for."""

    def open_bounded(self, checkpoint: Checkpoint, layout: str | None, bounds: PixelBounds) -> Model:
        """:meth:`Family.open`, with a user's bounds of the pixels that images are scaled to."""


class Model(Protocol):
    """One checkpoint of a family: its facts, and from its tensors to graphs."""

    family: str
    """The name of the family."""

    @property
    def spec(self) -> ModelSpec:
        """The facts of the model; raises CheckpointError for what is not supported."""

    @property
    def processor(self) -> Processor:
        """The checkpoint's image processor; raises CheckpointError for one that is missing or does not fit."""

    def required_weights(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor of the graphs, by canonical name."""

    def check_weights(self, *, allow_extra: bool = False) -> list[str]:
        """Compare the checkpoint's tensors with the required ones; returns warnings, raises CheckpointError."""

    def check_clip(self, clip: Clip) -> list[str]:
        """Checks that the vision tower is a CLIP checkpoint's; returns warnings, raises CheckpointError."""

    def used_tensors(self) -> dict[str, TensorInfo]:
        """The places of the tensors of :meth:`required_weights`, by canonical name."""

    def linear_weights(self) -> dict[str, bool]:
        """Canonical names of the decoder's weight matrices [out, in], those that ``--weight-dtype`` quantises; True
        for one whose error goes straight to the logits, which is never stored in less than 8 bits."""

    def scaled_features(self) -> list[ScaledFeatures]:
        """The features of the decoder's layers whose scales can be moved between weights."""

    def build_components(
        self,
        *,
        dtype: str,
        lowering: Lowering,
        moved: Mapping[str, TensorInfo] | None = None,
        quantized: Mapping[str, QuantizedMatrix] | None = None,
        cuts: Sequence[int] = (),
        raters: Literal["mean", "heads"] | None = None,
        vision_outputs: Collection[str] = (),
        shallow_layer: int | None = None,
        vision_heads: Mapping[str, VisionHead] | None = None,
    ) -> dict[str, Graph]:
        """The graphs of the chain except the pruner, by component name.

        Args:
            moved: Canonical name → tensor that replaces the checkpoint's own.
            quantized: Canonical name → stored form, for names of :meth:`linear_weights`.
            cuts: Layers behind which the decoder is split into ``decoder.0``, ``decoder.1``, …
            raters: The form of the segments' rater attention, see
                :class:`trtprune.components.decoder.Segment`.
            vision_outputs: Outputs of ``vision`` beside ``image_features`` and ``cls_attention``: names of
                :data:`trtprune.pruning.inputs.FROM_VISION`.
            shallow_layer: The tower's layer for ``shallow_attention``, counted from 1.
            vision_heads: Further outputs by name; their weights are among ``moved``.
        """

    def layer_access(self, layer: int) -> LayerAccess:
        """The decoder as a graph behind one of its layers sees it."""

    def weight_tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors of the checkpoint by canonical name, for graphs outside of the family."""
