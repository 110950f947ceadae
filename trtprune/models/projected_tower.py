"""Models of a vision tower, a projector and a language model: what LLaVA and the families after it share.

Graphs and their consumers:

* ``vision``: ``pixel_values`` → ``image_features``, ``cls_attention`` where the tower has a CLS token, and further
  outputs a method needs; one row a crop.  Tensors ``model.vision_tower.*`` and ``model.multi_modal_projector.*``.
  Consumed by ``pack`` where there is one, else by the pruner.
* ``pack``, where an image is several crops: their features → the image's visual tokens (see ``components.pack``).
* ``embed``: ``input_ids`` → ``text_embeds``.  Tensor ``model.language_model.embed_tokens.weight``.
  Consumed by the pruner and, with the kept visual tokens in place of the image token, by the decoder.
* ``decoder``, or the segments ``decoder.0`` …: ``inputs_embeds`` and the KV cache → ``logits``.  Tensors
  ``model.language_model.*`` and ``lm_head.weight`` (the embedding's again if the two are tied: by the config, unless
  the file has an ``lm_head`` with other values).  Consumed by the sampler.

The names are those of transformers 5; ``models.weights`` maps older ones.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from trtprune.components.config import Section
from trtprune.components.decoder import DECODERS
from trtprune.components.decoder_layer import DecoderLayer
from trtprune.components.pack import Packed, build_pack
from trtprune.components.rope import ROPE_TYPES
from trtprune.components.vit import build_tower
from trtprune.errors import CheckpointError, EngineDirError
from trtprune.graph import Graph, Lowering
from trtprune.graph.ops import ACTIVATIONS
from trtprune.models.generation_config import eos_token_ids
from trtprune.models.language import graphs_around, linear_weights, scaled_features, text_facts
from trtprune.models.projected_config import (
    LM_HEAD,
    PROJECTOR,
    TEXT,
    TOWERS,
    VISION,
    ProjectedConfig,
    image_token,
    required,
    tied_warning,
    tower_layer,
)
from trtprune.models.spec import ModelSpec, ScaledFeatures, VisionHead
from trtprune.models.weights import compare
from trtprune.pruning.inputs import INPUTS
from trtprune.runtime.images import PROCESSOR_FILES, CropShape, processor_from_files
from trtprune.tensor_names import IMAGE_FEATURES

if TYPE_CHECKING:
    import onnx_ir as ir

    from trtprune.checkpoint import Checkpoint, TensorInfo
    from trtprune.graph.tensors import QuantizedMatrix
    from trtprune.models.clip_text import Clip
    from trtprune.runtime.images import Processor

__all__ = ["ProjectedTowerModel", "describe_parts"]


def describe_parts(
    towers: Iterable[str] = TOWERS, decoders: Iterable[str] = DECODERS, strategies: Iterable[str] = ("default", "full")
) -> dict[str, Any]:
    """The parts that a family of this kind supports, for ``trtprune models``."""
    return {
        "vision_towers": sorted(towers),
        "decoders": list(decoders),
        "rope_types": list(ROPE_TYPES),
        "activations": sorted(ACTIVATIONS),
        "select_strategies": list(strategies),
    }


class ProjectedTowerModel:
    """A checkpoint of such a family, parsed once; the methods are those of :class:`trtprune.models.spec.Model`.

    Args:
        checkpoint: The checkpoint.
        family: The name of its family.
        parsed: Its configuration, as the family reads it.
        layout: Layout of an image's visual tokens; None: the model's own.
    """

    def __init__(
        self, checkpoint: Checkpoint, family: str, parsed: ProjectedConfig, *, layout: str | None = None
    ) -> None:
        self.family = family
        self._checkpoint, self._layout = checkpoint, layout
        self._parsed = parsed

    @cached_property
    def spec(self) -> ModelSpec:
        """The facts of the model; raises CheckpointError where the config leaves no image feature."""
        m = self._parsed
        config = Section(self._checkpoint.config, "")
        full_cls = m.tower.HAS_CLS and not m.selection.drop_first
        tokens = m.features
        if tokens < 1:
            raise CheckpointError(
                "config.json: vision_feature_select_strategy 'default' leaves no image feature",
                hint="a larger picture, or the strategy 'full'",
            )
        if m.several_crops:
            if m.selection.drop_first != m.tower.HAS_CLS:
                raise CheckpointError(
                    f"config.json: vision_feature_select_strategy '{self._strategy}' gives {tokens} features of a "
                    f"crop of {m.vision.patches} patches, and tiles are put together patch by patch",
                    hint="'default' for a tower with a CLS token, 'full' for one without",
                )
            tokens = self.processor.tokens_range[1]
        token_name = "image_token_index" if "image_token_index" in self._checkpoint.config else "image_token_id"
        image_token_id = config.integer(token_name, m.image_token_id, low=0)
        return ModelSpec(
            family=self.family,
            vision_tower=m.vision.model_type,
            image_size=m.vision.image_size,
            patch_grid=m.vision.grid,
            visual_tokens=tokens,
            first_patch=m.selection.drop_first - m.tower.HAS_CLS,
            has_cls=m.tower.HAS_CLS and m.selection.deepest > 0,
            keeps_cls_feature=full_cls,
            image_token=image_token(self._checkpoint, image_token_id),
            image_token_id=image_token_id,
            eos_token_ids=eos_token_ids(self._checkpoint),
            feature_layers=m.selection.layers,
            select_strategy=self._strategy,
            vision_width=m.projector.input_size,
            key_width=m.vision.head_dim,
            tower_layers=m.selection.deepest,
            **text_facts(m.text),
            attention_map=m.vision.num_heads
            * (m.vision.patches + m.tower.HAS_CLS) ** 2
            * (self.processor.crops_range[1] if m.several_crops else 1),
            square=m.projector.side,
            video_token=m.video_token,
        )

    @property
    def _strategy(self) -> str:
        return "default" if self._parsed.selection.drop_first else "full"

    @cached_property
    def processor(self) -> Processor:
        """The checkpoint's image processor; raises CheckpointError for one that is missing or does not fit."""
        m, checkpoint = self._parsed, self._checkpoint
        height, width = (m.projector.side * length for length in m.vision.patch_size)
        shape = CropShape(*m.vision.image_size, (height, width), m.selection.drop_first - m.tower.HAS_CLS)
        files = {name: text for name in PROCESSOR_FILES if (text := checkpoint.text_file(name)) is not None}
        try:
            return processor_from_files(
                files, shape, checkpoint.config, m.processors, self._layout, more=m.image_settings()
            )
        except EngineDirError as error:
            raise CheckpointError(f"{checkpoint.path}: {error.marked_message}", hint=error.marked_hint) from None

    def required_weights(self) -> dict[str, tuple[int, ...]]:
        """Canonical name → shape of the tensors of the graphs; vision layers above the selected ones are not used."""
        return required(self._parsed)

    def check_weights(self, *, allow_extra: bool = False) -> list[str]:
        """Compare the checkpoint's tensors with :meth:`required_weights`.

        Returns:
            Warnings (with ``allow_extra``, about tensors the architecture does not have).

        Raises:
            CheckpointError: naming a missing, misshapen or unknown tensor.
        """
        m = self._parsed
        known = [re.escape(VISION) + pattern for pattern in m.tower.UNUSED]
        known += [re.escape(TEXT) + r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"]
        unused = {LM_HEAD} if m.lm_head != LM_HEAD else set()
        for i in range(m.selection.deepest, m.vision.num_layers):  # present, but above the selected features
            unused |= tower_layer(m, i).keys()
        zero = self._checkpoint.zero_biases
        warnings = compare(required(m), m.tensors, known, unused=unused, zero=zero, allow_extra=allow_extra)
        return warnings + tied_warning(m.tied_in_config, m.lm_head, m.tensors)

    def check_clip(self, clip: Clip) -> list[str]:
        """See :func:`trtprune.models.clip_text.check_tower`."""
        from trtprune.models.clip_text import check_tower

        m = self._parsed
        return check_tower(clip, m.vision, m.tensors, VISION, self._checkpoint.read, m.selection.layers)

    def used_tensors(self) -> dict[str, TensorInfo]:
        """The places of the tensors of :meth:`required_weights`."""
        m = self._parsed
        return {name: m.tensors[name] for name in required(self._parsed)}

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
        """``vision``, ``pack`` where an image is several crops, ``embed`` and ``decoder``; reads no weight.

        With ``cuts`` the decoder is split behind each of those layers into ``decoder.0``, ``decoder.1``, …; ``raters``
        as in :class:`trtprune.components.decoder.Segment`.  The tower must have the requested outputs: a CLS token, a
        deep enough layer.
        """
        m = self._parsed
        graphs = graphs_around(
            ["vision", *(["pack"] if m.several_crops else [])],
            m.text,
            m.lm_head,
            {**m.tensors, **(moved or {})},
            dtype=dtype,
            lowering=lowering,
            quantized=quantized,
            cuts=cuts,
            raters=raters,
        )
        _build_vision(graphs["vision"], m, vision_outputs, shallow_layer, vision_heads or {})
        if m.several_crops:
            _build_pack(graphs["pack"], graphs["vision"], m.newline, m.taps)
        return graphs

    def layer_access(self, layer: int) -> DecoderLayer:
        """The decoder around the place behind a layer."""
        return DecoderLayer(self._parsed.text, TEXT, layer)

    def weight_tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors of the checkpoint by canonical name."""
        return self._parsed.tensors


def _build_vision(
    g: Graph, m: ProjectedConfig, wanted: Collection[str], shallow_layer: int | None, heads: Mapping[str, VisionHead]
) -> None:
    """Tower and projector, with the outputs in the order of ``INPUTS``."""
    tower = build_tower(g, m.tower, m.vision, m.selection, VISION, wanted, shallow_layer)
    widths = {
        "N": m.features,
        "D": m.text.hidden_size,
        "C": m.projector.input_size,
        "K": m.vision.head_dim,
        "P": max((head.width for head in heads.values()), default=0),
    }
    features, found = _in_squares(g, m, tower.features, tower.extras, widths)
    if "cls_feature" in wanted:
        assert tower.cls is not None, "the tower has no CLS token"
        with g.scope("cls"):
            row = m.projector.write(g, PROJECTOR, tower.cls)
            found["cls_feature"] = g.op.Squeeze(row, g.ints(1))
    for name, head in heads.items():
        with g.scope(name):
            found[name] = head.write(g, features)
    if "vision_features" in wanted:
        found["vision_features"] = features
    projected = m.projector.write(g, PROJECTOR, features)
    g.output(projected, IMAGE_FEATURES, g.dtype_name, ["batch", m.features, m.text.hidden_size])
    for name, entry in INPUTS.items():
        if name in found:
            dtype = g.dtype_name if entry.dtype == "model" else entry.dtype
            g.output(found[name], name, dtype, ["batch", *entry.shape(widths)])


def _in_squares(
    g: Graph, m: ProjectedConfig, features: ir.Value, extras: Mapping[str, ir.Value], widths: Mapping[str, int]
) -> tuple[ir.Value, dict[str, ir.Value]]:
    """The rows that enter the projector, and the tower's further outputs with a value for each of these rows."""
    if m.projector.side == 1:
        return features, dict(extras)
    squares = m.squares
    with g.scope("squares"):
        rows = squares.rows_of(g, features, m.vision.hidden_size * len(m.selection.layers))
        means = {}
        for name, value in extras.items():
            _, *tail = INPUTS[name].shape(widths)
            means[name] = squares.means(g, value, *tail)
    return rows, means


def _build_pack(g: Graph, vision: Graph, newline: str | None, taps: int) -> None:
    """The pack graph of all that the vision graph returns of every patch."""
    outputs, patches = {}, 0
    for value in vision.outputs:
        assert value.name is not None
        assert value.shape is not None
        assert value.dtype is not None
        dims = [dim for dim in value.shape[1:] if isinstance(dim, int)]
        if value.name == IMAGE_FEATURES:
            patches = dims[0]
        if value.name == IMAGE_FEATURES or "N" in INPUTS[value.name].dims:
            dtype = value.dtype.numpy().name
            outputs[value.name] = Packed(dtype, dims[1] if len(dims) > 1 else 0)
    build_pack(g, outputs, patches, taps=taps, newline=newline)
