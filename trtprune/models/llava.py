"""LLaVA (``LlavaForConditionalGeneration``): a vision tower, a two-layer projector, a language model.

Graphs and who consumes them:

* ``vision``: ``pixel_values`` → ``image_features``, where the tower has a CLS token ``cls_attention``, and what else a
  method needs.  Tensors ``model.vision_tower.*`` and ``model.multi_modal_projector.*``.  Consumed by the pruner.
* ``embed``: ``input_ids`` → ``text_embeds``.  Tensor ``model.language_model.embed_tokens.weight``.
  Consumed by the pruner and, with the kept image features in place of the image token, by the decoder.
* ``decoder``, or ``decoder.0`` … where it is cut: ``inputs_embeds`` and the KV cache → ``logits``.  Tensors
  ``model.language_model.*`` and ``lm_head.weight`` (the embedding's again where the two are tied: by the config, unless
  the file holds an ``lm_head`` of other values).
  Consumed by the sampler.

The names are those of transformers 5; ``models.weights`` maps older ones.
Source: https://arxiv.org/abs/2304.08485, https://arxiv.org/abs/2310.03744.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from trtprune.checkpoint.advice import for_quantization
from trtprune.components import clip, dinov2, siglip
from trtprune.components.config import Section
from trtprune.components.decoder import (
    DECODERS,
    DecoderConfig,
    build_decoder,
    build_embedding,
    decoder_weights,
    segments,
)
from trtprune.components.decoder_layer import DecoderLayer
from trtprune.components.projector import ProjectorConfig, build_projector, projector_weights
from trtprune.components.rope import ROPE_TYPES
from trtprune.components.vit import FeatureSelection, Tower, TowerConfig, build_tower
from trtprune.errors import CheckpointError
from trtprune.graph import Graph, Lowering
from trtprune.graph.ops import ACTIVATIONS
from trtprune.models.generation_config import eos_token_ids
from trtprune.models.spec import ModelSpec, VisionHead
from trtprune.models.weights import canonical_tensors, compare
from trtprune.pruning.inputs import INPUTS

if TYPE_CHECKING:
    from trtprune.checkpoint import Checkpoint, TensorInfo
    from trtprune.graph.tensors import QuantizedMatrix
    from trtprune.models.clip_text import Clip

__all__ = ["TOWERS", "LlavaFamily"]

TOWERS: dict[str, Tower] = {
    "clip_vision_model": cast(Tower, clip),
    "dinov2": cast(Tower, dinov2),
    "siglip_vision_model": cast(Tower, siglip),
}
"""``vision_config.model_type`` → tower."""

VISION = "model.vision_tower."
PROJECTOR = "model.multi_modal_projector."
TEXT = "model.language_model."
EMBED = "model.language_model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"

# LlavaConfig's vision tower when config.json has no vision_config at all.
_DEFAULT_VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}


@dataclass(frozen=True)
class _Parsed:
    """The checkpoint's configuration, resolved."""

    tower: Tower
    vision: TowerConfig
    selection: FeatureSelection
    projector: ProjectorConfig
    text: DecoderConfig
    lm_head: str
    """Key of the output projection: the embedding's where they are tied."""
    tied_in_config: bool
    """Whether the config ties them; the weights may say otherwise."""
    tensors: dict[str, TensorInfo]


class LlavaFamily:
    """See the module's docstring; the methods are those of :class:`trtprune.models.Family`."""

    name = "llava"
    architecture = "LlavaForConditionalGeneration"
    model_type = "llava"

    def describe(self) -> dict[str, Any]:
        """What is supported, for ``trtprune models``."""
        return {
            "family": self.name,
            "architecture": self.architecture,
            "vision_towers": sorted(TOWERS),
            "decoders": list(DECODERS),
            "rope_types": list(ROPE_TYPES),
            "activations": sorted(ACTIVATIONS),
            "select_strategies": ["default", "full"],
        }

    def spec(self, checkpoint: Checkpoint) -> ModelSpec:
        """Raises CheckpointError for a tower, decoder, rope type or activation that is not supported."""
        m = _parse(checkpoint)
        config = Section(checkpoint.config, "")
        full_cls = m.tower.HAS_CLS and not m.selection.drop_first
        tokens = m.vision.patches + m.tower.HAS_CLS - m.selection.drop_first
        if tokens < 1:
            raise CheckpointError(
                "config.json: vision_feature_select_strategy 'default' leaves no image feature",
                hint="a larger picture, or the strategy 'full'",
            )
        token_name = "image_token_index" if "image_token_index" in checkpoint.config else "image_token_id"
        image_token_id = config.integer(token_name, 32000, low=0)
        windows = [w for w in m.text.windows if w is not None]
        return ModelSpec(
            family=self.name,
            vision_tower=m.vision.model_type,
            decoder=m.text.model_type,
            image_size=m.vision.image_size,
            patch_grid=m.vision.grid,
            visual_tokens=tokens,
            first_patch=m.selection.drop_first - m.tower.HAS_CLS,
            has_cls=m.tower.HAS_CLS and m.selection.deepest > 0,
            keeps_cls_feature=full_cls,
            hidden_size=m.text.hidden_size,
            vocab_size=m.text.vocab_size,
            num_layers=m.text.num_layers,
            num_heads=m.text.num_heads,
            num_kv_heads=m.text.num_kv_heads,
            head_dim=m.text.head_dim,
            max_positions=m.text.max_positions,
            image_token=_image_token(checkpoint, image_token_id),
            image_token_id=image_token_id,
            eos_token_ids=eos_token_ids(checkpoint),
            feature_layers=m.selection.layers,
            select_strategy="default" if m.selection.drop_first else "full",
            sliding_window=min(windows) if windows else None,
            vision_width=m.projector.input_size,
            key_width=m.vision.head_dim,
            tower_layers=m.selection.deepest,
        )

    def required_weights(self, checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
        """Canonical name → shape of the tensors the graphs use; vision layers above the selected ones are not."""
        return _required(_parse(checkpoint))

    def check_weights(self, checkpoint: Checkpoint, *, allow_extra: bool = False) -> list[str]:
        """Compare the checkpoint's tensors with :meth:`required_weights`.

        Returns:
            Warnings (with ``allow_extra``, about tensors the architecture does not have).

        Raises:
            CheckpointError: naming a missing, misshapen or unknown tensor.
        """
        m = _parse(checkpoint)
        known = [re.escape(VISION) + pattern for pattern in m.tower.UNUSED]
        known += [re.escape(TEXT) + r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"]
        unused = {LM_HEAD} if m.lm_head != LM_HEAD else set()
        for i in range(m.selection.deepest, m.vision.num_layers):  # present, but above the features we take
            unused |= _vision_layer(m, i).keys()
        warnings = compare(_required(m), m.tensors, known, unused=unused, allow_extra=allow_extra)
        if m.tied_in_config and m.lm_head == LM_HEAD:
            head, embed = m.tensors[LM_HEAD].name, m.tensors[EMBED].name
            warnings.append(
                f"config.json ties the word embeddings, but {head} differs from {embed}; both are used, as in "
                "transformers (tie_word_embeddings: false says so)"
            )
        return warnings

    def check_clip(self, checkpoint: Checkpoint, clip: Clip) -> list[str]:
        """See :func:`trtprune.models.clip_text.check_tower`."""
        from trtprune.models.clip_text import check_tower

        m = _parse(checkpoint)
        return check_tower(clip, m.vision, m.tensors, VISION, checkpoint.read, m.selection.layers)

    def used_tensors(self, checkpoint: Checkpoint) -> dict[str, TensorInfo]:
        """Where the tensors of :meth:`required_weights` lie."""
        m = _parse(checkpoint)
        return {name: m.tensors[name] for name in _required(m)}

    def linear_weights(self, checkpoint: Checkpoint) -> dict[str, bool]:
        """The matrices of the decoder's layers, and ``lm_head`` where it is not the embedding table."""
        m = _parse(checkpoint)
        weights = decoder_weights(m.text, TEXT, m.lm_head)
        return {name: name == LM_HEAD for name, shape in weights.items() if len(shape) == 2 and name != EMBED}

    def build_components(
        self,
        checkpoint: Checkpoint,
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
        """``vision``, ``embed`` and ``decoder``; reads no weight.

        With ``cuts`` the decoder ends behind each of those layers and goes on in the next graph: ``decoder.0``,
        ``decoder.1``, …; ``raters`` as in :class:`trtprune.components.decoder.Segment`.  The outputs asked of the tower
        must be such that it has them: a CLS token, a layer that deep.
        """
        m = _parse(checkpoint)
        parts = segments(m.text.num_layers, cuts, raters)
        names = ["decoder"] if len(parts) == 1 else [f"decoder.{i}" for i in range(len(parts))]
        tensors = {**m.tensors, **(moved or {})}
        graphs = {
            name: Graph(
                name,
                dtype=dtype,
                lowering=lowering,
                tensors=tensors,
                quantized=quantized if name in names else None,
            )
            for name in ("vision", "embed", *names)
        }
        _build_vision(graphs["vision"], m, vision_outputs, shallow_layer, vision_heads or {})
        build_embedding(graphs["embed"], m.text, EMBED)
        for name, part in zip(names, parts, strict=True):
            build_decoder(graphs[name], m.text, TEXT, m.lm_head, part)
        return graphs

    def layer_access(self, checkpoint: Checkpoint, layer: int) -> DecoderLayer:
        """The decoder around the place behind a layer."""
        return DecoderLayer(_parse(checkpoint).text, TEXT, layer)

    def weight_tensors(self, checkpoint: Checkpoint) -> Mapping[str, TensorInfo]:
        """All tensors of the checkpoint by canonical name."""
        return _parse(checkpoint).tensors


def _build_vision(
    g: Graph, m: _Parsed, wanted: Collection[str], shallow_layer: int | None, heads: Mapping[str, VisionHead]
) -> None:
    """Tower and projector, with the outputs in the order of ``INPUTS``."""
    tower = build_tower(g, m.tower, m.vision, m.selection, VISION, wanted, shallow_layer)
    found = dict(tower.extras)
    if "cls_feature" in wanted:
        assert tower.cls is not None, "the tower has no CLS token"
        with g.scope("cls"):
            row = build_projector(g, m.projector, PROJECTOR, tower.cls)
            found["cls_feature"] = g.op.Squeeze(row, g.ints(1))
    for name, head in heads.items():
        with g.scope(name):
            found[name] = head.write(g, tower.features)
    if "vision_features" in wanted:
        found["vision_features"] = tower.features
    features = build_projector(g, m.projector, PROJECTOR, tower.features)
    tokens = m.vision.patches + m.tower.HAS_CLS - m.selection.drop_first
    widths = {
        "N": tokens,
        "D": m.text.hidden_size,
        "C": m.projector.input_size,
        "K": m.vision.head_dim,
        "P": max((head.width for head in heads.values()), default=0),
    }
    g.output(features, "image_features", g.dtype_name, ["batch", tokens, m.text.hidden_size])
    for name, entry in INPUTS.items():
        if name in found:
            dtype = g.dtype_name if entry.dtype == "model" else entry.dtype
            g.output(found[name], name, dtype, ["batch", *(widths[dim] for dim in entry.dims)])


def _parse(checkpoint: Checkpoint) -> _Parsed:
    config = Section(checkpoint.config, "")
    for section in (config, config.section("text_config")):
        settings = section.values.get("quantization_config")
        if settings is not None:
            method, advice = for_quantization(settings)
            raise CheckpointError(
                f"{section.key('quantization_config')}: quantised checkpoints are not supported ({method})",
                hint=advice,
            )
    vision = config.section("vision_config")
    if checkpoint.config.get("vision_config") is None:
        vision = Section(_DEFAULT_VISION, "vision_config")
    tower = TOWERS[vision.choice("model_type", TOWERS, "clip_vision_model")]
    vision_cfg = tower.read_config(vision, _preprocessed_size(checkpoint))
    selection = FeatureSelection.from_config(config, vision_cfg.num_layers)
    text_section = config.section("text_config")
    text = DecoderConfig.from_config(text_section)
    tensors = canonical_tensors(checkpoint.tensors, tower.RENAMES)
    # Old checkpoints set this on either level, and transformers lets either tie them.
    tied = config.flag("tie_word_embeddings", False) | text_section.flag("tie_word_embeddings", False)
    return _Parsed(
        tower=tower,
        vision=vision_cfg,
        selection=selection,
        projector=ProjectorConfig.from_config(config, vision_cfg.hidden_size * len(selection.layers), text.hidden_size),
        text=text,
        lm_head=_tied_head(checkpoint, tensors) if tied else LM_HEAD,
        tied_in_config=tied,
        tensors=tensors,
    )


def _tied_head(checkpoint: Checkpoint, tensors: dict[str, TensorInfo]) -> str:
    """Key of the output projection where the config ties it to the embedding.

    As ``tie_weights`` of transformers: the one that is stored serves as both; of two that are stored and differ, as
    after a merged fine-tune that trained both, each keeps its own values.
    """
    embed, head = tensors.get(EMBED), tensors.get(LM_HEAD)
    if head is None:
        return EMBED
    if embed is None:
        tensors[EMBED] = tensors.pop(LM_HEAD)
        return EMBED
    return EMBED if checkpoint.same_values(embed.name, head.name) else LM_HEAD


def _required(m: _Parsed) -> dict[str, tuple[int, ...]]:
    weights = m.tower.embedding_weights(m.vision, VISION)
    for i in range(m.selection.deepest):
        weights |= _vision_layer(m, i)
    weights |= projector_weights(m.projector, PROJECTOR)
    weights[EMBED] = (m.text.vocab_size, m.text.hidden_size)
    return weights | decoder_weights(m.text, TEXT, m.lm_head)


def _vision_layer(m: _Parsed, index: int) -> dict[str, tuple[int, ...]]:
    return m.tower.layer_weights(m.vision, VISION + m.tower.NAMES.prefix(index), m.tensors.__contains__)


def _preprocessed_size(checkpoint: Checkpoint) -> tuple[int, int] | None:
    """(height, width) that ``preprocessor_config.json`` makes of every picture, if it says."""
    values = checkpoint.json_file("preprocessor_config.json")
    if values is None:  # transformers 5 keeps the image processor inside the processor's file
        processor = checkpoint.json_file("processor_config.json") or {}
        values = processor.get("image_processor")
    if not isinstance(values, dict):
        return None
    name = "crop_size" if values.get("do_center_crop", values.get("crop_size") is not None) else "size"
    size = values.get(name)
    if isinstance(size, int) and name == "crop_size":
        size = {"height": size, "width": size}
    if not isinstance(size, dict) or not {"height", "width"} <= size.keys():
        return None
    return Section({name: [size["height"], size["width"]]}, "preprocessor").size(name, 1)


def _image_token(checkpoint: Checkpoint, token_id: int) -> str:
    """The text of the image placeholder."""
    tokenizer = checkpoint.json_file("tokenizer_config.json") or {}
    added = tokenizer.get("added_tokens_decoder")
    entry = added.get(str(token_id)) if isinstance(added, dict) else None
    if isinstance(entry, dict) and isinstance(entry.get("content"), str):
        return entry["content"]
    tokens = (checkpoint.json_file("tokenizer.json") or {}).get("added_tokens")
    for entry in tokens if isinstance(tokens, list) else []:
        if isinstance(entry, dict) and entry.get("id") == token_id and isinstance(entry.get("content"), str):
            return entry["content"]
    token = (checkpoint.json_file("processor_config.json") or {}).get("image_token")
    return token if isinstance(token, str) else "<image>"
