"""Models of a packed vision tower and a language model with three axes: what Qwen2-VL and the families after it share.

Graphs and their consumers:

* ``vision``: ``pixel_values`` [patches, width] and the arrays of :mod:`trtprune.runtime.images.packed` →
  ``image_features`` [1, N, D] and further outputs a method needs, of one image.  Tensors ``model.visual.*``.  Consumed
  by the pruner.
* ``embed`` and ``decoder``, or the segments ``decoder.0`` …: as in :mod:`trtprune.models.projected_tower`.

The names are those of transformers 5; those of transformers 4 (``visual.*``, ``model.layers.*``) are mapped to them.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from trtprune.arguments import arg
from trtprune.components.config import Section
from trtprune.components.decoder_layer import DecoderLayer
from trtprune.errors import CheckpointError, EngineDirError
from trtprune.graph import Graph, Lowering
from trtprune.models.generation_config import eos_token_ids
from trtprune.models.language import graphs_around, linear_weights, scaled_features, text_facts
from trtprune.models.packed_config import VISION, PackedConfig, PackedDefaults, parse, required
from trtprune.models.projected_config import LM_HEAD, TEXT, tied_warning, token_texts
from trtprune.models.projected_tower import describe_parts
from trtprune.models.spec import ModelSpec, ScaledFeatures, VisionHead
from trtprune.models.weights import compare
from trtprune.pruning.inputs import INPUTS
from trtprune.runtime.images import PROCESSOR_FILES, PackedShape, processor_from_files
from trtprune.tensor_names import IMAGE_FEATURES

if TYPE_CHECKING:
    from trtprune.checkpoint import Checkpoint, TensorInfo
    from trtprune.components.qwen2_vl_vision import PackedTowerConfig
    from trtprune.graph.tensors import QuantizedMatrix
    from trtprune.models.clip_text import Clip
    from trtprune.runtime.images import PixelBounds, Processor

__all__ = ["PackedFamily", "PackedTowerModel"]


class PackedTowerModel:
    """A checkpoint of such a family, parsed once; the methods are those of :class:`trtprune.models.spec.Model`.

    Args:
        checkpoint: The checkpoint.
        family: The name of its family.
        parsed: Its configuration.
        layout: Layout of an image's visual tokens; None: the model's own.
        bounds: A user's bounds of the pixels that images are scaled to; None: the checkpoint's.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        family: str,
        parsed: PackedConfig,
        *,
        layout: str | None = None,
        bounds: PixelBounds | None = None,
    ) -> None:
        self.family = family
        self._checkpoint, self._layout, self._bounds = checkpoint, layout, bounds
        self._parsed = parsed

    @cached_property
    def spec(self) -> ModelSpec:
        """The facts of the model; raises CheckpointError for a tokenizer without the family's special tokens."""
        m = self._parsed
        texts = self._special_tokens()
        return ModelSpec(
            family=self.family,
            vision_tower=m.vision.model_type,
            image_size=None,
            patch_grid=None,
            visual_tokens=self.processor.tokens_range[1],
            first_patch=0,
            has_cls=False,
            keeps_cls_feature=False,
            image_token=texts["image_token_id"],
            image_token_id=m.tokens["image_token_id"],
            eos_token_ids=eos_token_ids(self._checkpoint),
            feature_layers=(m.vision.num_layers,),
            select_strategy="full",
            vision_width=m.vision.hidden_size,
            key_width=m.vision.head_dim,
            tower_layers=m.vision.num_layers,
            **text_facts(m.text),
            video_token=texts.get("video_token_id"),
            # Its heads come one after the other.
            attention_map=(self.processor.tokens_range[1] * m.shape.unit) ** 2,
        )

    def _special_tokens(self) -> dict[str, str]:
        """The texts of the special tokens by the config's names; that of a video may be missing."""
        found, texts = {}, token_texts(self._checkpoint, {*self._parsed.tokens.values()})
        for name, number in self._parsed.tokens.items():
            if number in texts:
                found[name] = texts[number]
            elif name != "video_token_id":
                raise CheckpointError(
                    f"tokenizer.json has no added token {number}, the {name} of config.json",
                    hint="fetch the checkpoint's own tokenizer.json and tokenizer_config.json again",
                )
        return found

    @cached_property
    def processor(self) -> Processor:
        """The checkpoint's image processor; raises CheckpointError for one that is missing or does not fit."""
        m, checkpoint = self._parsed, self._checkpoint
        files = {name: text for name in PROCESSOR_FILES if (text := checkpoint.text_file(name)) is not None}
        try:
            return processor_from_files(files, m.shape, checkpoint.config, m.processors, self._layout, self._bounds)
        except EngineDirError as error:
            raise CheckpointError(f"{checkpoint.path}: {error.marked_message}", hint=error.marked_hint) from None

    def required_weights(self) -> dict[str, tuple[int, ...]]:
        """Canonical name → shape of the tensors of the graphs."""
        return required(self._parsed)

    def check_weights(self, *, allow_extra: bool = False) -> list[str]:
        """As :meth:`trtprune.models.projected_tower.ProjectedTowerModel.check_weights`."""
        m = self._parsed
        known = [re.escape(TEXT) + r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"]
        known += [re.escape(VISION) + r"rotary_pos_emb\.inv_freq"]
        unused = {LM_HEAD} if m.lm_head != LM_HEAD else set()
        zero = self._checkpoint.zero_biases
        warnings = compare(required(m), m.tensors, known, unused=unused, zero=zero, allow_extra=allow_extra)
        return warnings + tied_warning(m.tied_in_config, m.lm_head, m.tensors)

    def check_clip(self, clip: Clip) -> list[str]:
        """Raises CheckpointError: a packed tower is no CLIP checkpoint's."""
        raise CheckpointError(
            f"{arg('clip')}: the vision tower of this model is {self._parsed.vision.model_type}, not CLIP's",
            hint=f"leave out {arg('clip')}",
        )

    def used_tensors(self) -> dict[str, TensorInfo]:
        """The places of the tensors of :meth:`required_weights`."""
        m = self._parsed
        return {name: m.tensors[name] for name in required(m)}

    def linear_weights(self) -> dict[str, bool]:
        """The matrices of the decoder's layers, and ``lm_head`` if it is not the embedding table."""
        return linear_weights(self._parsed.text, self._parsed.lm_head)

    def scaled_features(self) -> list[ScaledFeatures]:
        """See :func:`trtprune.models.language.scaled_features`."""
        return scaled_features(self._parsed.text)

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
        """``vision``, ``embed`` and ``decoder``, or its segments; reads no weight."""
        m = self._parsed
        assert not vision_heads, "heads of CLIP's tower"
        graphs = graphs_around(
            ["vision"],
            m.text,
            m.lm_head,
            {**m.tensors, **(moved or {})},
            dtype=dtype,
            lowering=lowering,
            quantized=quantized,
            cuts=cuts,
            raters=raters,
        )
        _build_vision(graphs["vision"], m, vision_outputs, shallow_layer)
        return graphs

    def layer_access(self, layer: int) -> DecoderLayer:
        """The decoder around the place behind a layer."""
        return DecoderLayer(self._parsed.text, TEXT, layer)

    def weight_tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors of the checkpoint by canonical name."""
        return self._parsed.tensors


class PackedFamily(ABC):
    """A family of this kind; see :class:`trtprune.models.spec.BoundedFamily`."""

    name: str
    architecture: str
    model_type: str
    tower: str
    """The tower's name, for ``trtprune models``."""
    defaults: PackedDefaults
    """What ``config.json`` may leave out."""

    @abstractmethod
    def read_tower(self, vision: Section) -> PackedTowerConfig:
        """The tower from ``vision_config``; raises CheckpointError for one that is not supported."""

    def open(self, checkpoint: Checkpoint, layout: str | None = None) -> PackedTowerModel:
        """The checkpoint as a model of this family.

        Raises:
            CheckpointError: for a part of its configuration that is not supported.
        """
        return self.open_bounded(checkpoint, layout, None)

    def open_bounded(self, checkpoint: Checkpoint, layout: str | None, bounds: PixelBounds | None) -> PackedTowerModel:
        """As :meth:`open`, with a user's bounds of the pixels that images are scaled to."""
        tower = self.read_tower(Section(checkpoint.config, "").section("vision_config"))
        shape = PackedShape(tower.patch, tower.merge, tower.frames, tower.window)
        parsed = parse(checkpoint, self.defaults, tower, shape)
        return PackedTowerModel(checkpoint, self.name, parsed, layout=layout, bounds=bounds)

    def describe(self) -> dict[str, Any]:
        """The supported towers and decoders, for ``trtprune models``."""
        parts = describe_parts((self.tower,), (self.defaults.text["model_type"],), ("full",))
        return {"family": self.name, "architecture": self.architecture, **parts}


def _build_vision(g: Graph, m: PackedConfig, wanted: Collection[str], shallow_layer: int | None) -> None:
    """Tower and merger, with the outputs in the order of ``INPUTS``."""
    tower = m.vision.build(g, VISION, wanted, shallow_layer)
    sizes = {"N": "visual_tokens", "D": m.text.hidden_size, "C": m.vision.hidden_size, "K": m.vision.head_dim}
    # A visual token's levels go with it through everything in front of the decoder.
    rows = tower.features if tower.levels is None else g.op.Concat(tower.features, tower.levels, axis=-1)
    g.output(rows, IMAGE_FEATURES, g.dtype_name, [1, "visual_tokens", m.text.row_width()])
    for name, entry in INPUTS.items():
        if name in tower.extras:
            dtype = g.dtype_name if entry.dtype == "model" else entry.dtype
            g.output(tower.extras[name], name, dtype, [1, *entry.shape(sizes)])
