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
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from trtprune.arguments import arg
from trtprune.components.decoder import build_decoder, build_embedding, decoder_weights, segments
from trtprune.components.decoder_layer import DecoderLayer
from trtprune.errors import CheckpointError, EngineDirError
from trtprune.graph import Graph, Lowering
from trtprune.models.generation_config import eos_token_ids
from trtprune.models.packed_config import VISION, PackedConfig, required
from trtprune.models.projected_config import EMBED, LM_HEAD, TEXT, tied_warning, token_texts
from trtprune.models.spec import ModelSpec, VisionHead
from trtprune.models.weights import compare
from trtprune.pruning.inputs import INPUTS
from trtprune.runtime.images import PROCESSOR_FILES, processor_from_files
from trtprune.tensor_names import IMAGE_FEATURES

if TYPE_CHECKING:
    from trtprune.checkpoint import Checkpoint, TensorInfo
    from trtprune.graph.tensors import QuantizedMatrix
    from trtprune.models.clip_text import Clip
    from trtprune.runtime.images import PixelBounds, Processor

__all__ = ["PackedTowerModel"]


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
        windows = [w for w in m.text.windows if w is not None]
        return ModelSpec(
            family=self.family,
            vision_tower=m.vision.model_type,
            decoder=m.text.model_type,
            image_size=None,
            patch_grid=None,
            visual_tokens=self.processor.tokens_range[1],
            first_patch=0,
            has_cls=False,
            keeps_cls_feature=False,
            hidden_size=m.text.hidden_size,
            vocab_size=m.text.vocab_size,
            num_layers=m.text.num_layers,
            num_heads=m.text.num_heads,
            num_kv_heads=m.text.num_kv_heads,
            head_dim=m.text.head_dim,
            max_positions=m.text.max_positions,
            image_token=texts["image_token_id"],
            image_token_id=m.tokens["image_token_id"],
            eos_token_ids=eos_token_ids(self._checkpoint),
            feature_layers=(m.vision.num_layers,),
            select_strategy="full",
            sliding_window=min(windows) if windows else None,
            vision_width=m.vision.hidden_size,
            key_width=m.vision.head_dim,
            tower_layers=m.vision.num_layers,
            rotary_sections=m.text.rope.sections,
            rotary_interleaved=m.text.rope.interleaved,
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
        warnings = compare(required(m), m.tensors, known, unused=unused, allow_extra=allow_extra)
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
        m = self._parsed
        weights = decoder_weights(m.text, TEXT, m.lm_head)
        return {name: name == LM_HEAD for name, shape in weights.items() if len(shape) == 2 and name != EMBED}

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
        parts = segments(m.text.num_layers, cuts, raters)
        names = ["decoder"] if len(parts) == 1 else [f"decoder.{i}" for i in range(len(parts))]
        tensors = {**m.tensors, **(moved or {})}
        graphs = {
            name: Graph(
                name, dtype=dtype, lowering=lowering, tensors=tensors, quantized=quantized if name in names else None
            )
            for name in ("vision", "embed", *names)
        }
        _build_vision(graphs["vision"], m, vision_outputs, shallow_layer)
        build_embedding(graphs["embed"], m.text, EMBED)
        for name, part in zip(names, parts, strict=True):
            build_decoder(graphs[name], m.text, TEXT, m.lm_head, part)
        return graphs

    def layer_access(self, layer: int) -> DecoderLayer:
        """The decoder around the place behind a layer."""
        return DecoderLayer(self._parsed.text, TEXT, layer)

    def weight_tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors of the checkpoint by canonical name."""
        return self._parsed.tensors


def _build_vision(g: Graph, m: PackedConfig, wanted: Collection[str], shallow_layer: int | None) -> None:
    """Tower and merger, with the outputs in the order of ``INPUTS``."""
    tower = m.vision.build(g, VISION, wanted, shallow_layer)
    sizes = {"N": "visual_tokens", "D": m.text.hidden_size, "C": m.vision.hidden_size, "K": m.vision.head_dim}
    g.output(tower.features, IMAGE_FEATURES, g.dtype_name, [1, "visual_tokens", m.text.hidden_size])
    for name, entry in INPUTS.items():
        if name in tower.extras:
            dtype = g.dtype_name if entry.dtype == "model" else entry.dtype
            g.output(tower.extras[name], name, dtype, [1, *entry.shape(sizes)])
