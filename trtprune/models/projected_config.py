"""What the config and the tensor names of a checkpoint say, of a tower, a projector and a language model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from trtprune.components import clip, dinov2, siglip
from trtprune.components.config import Section
from trtprune.components.decoder import DecoderConfig, decoder_weights
from trtprune.components.projector import Projector, ProjectorConfig
from trtprune.components.squares import Squares
from trtprune.components.vit import FeatureSelection, Tower, TowerConfig, norm_weights
from trtprune.errors import CheckpointError, shown
from trtprune.models.weights import canonical_tensors

if TYPE_CHECKING:
    from trtprune.checkpoint import Checkpoint, TensorInfo

__all__ = [
    "CLIP_LARGE",
    "EMBED",
    "LLAVA_DEFAULTS",
    "LM_HEAD",
    "PROJECTOR",
    "TEXT",
    "TOWERS",
    "VISION",
    "Defaults",
    "ProjectedConfig",
    "image_token",
    "named_token",
    "output_projection",
    "parse",
    "preprocessed_size",
    "required",
    "special_tokens",
    "tied_warning",
    "token_text",
    "token_texts",
    "tower_layer",
]

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

CLIP_LARGE = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
"""The vision tower of the LLaVA whose ``config.json`` has no ``vision_config`` at all."""


@dataclass(frozen=True)
class Defaults:
    """A family's values where its ``config.json`` leaves them out.

    Attributes:
        vision: The whole ``vision_config``.
        decoder: ``text_config.model_type``.
        feature_layer: ``vision_feature_layer``.
        select_strategy: ``vision_feature_select_strategy``.
        image_token_id: ``image_token_index``.
        processors: Image processors that fit, names of :data:`trtprune.runtime.images.PROCESSORS`.
        newline: Key of the learned row behind every row of an image's tiles; None in a family of one crop an image.
        taps: Features that make a visual token, at most.
    """

    vision: Mapping[str, Any]
    decoder: str = "llama"
    feature_layer: int = -2
    select_strategy: str = "default"
    image_token_id: int = 32000
    processors: tuple[str, ...] = ("single",)
    newline: str | None = None
    taps: int = 1


LLAVA_DEFAULTS = Defaults(CLIP_LARGE)


@dataclass(frozen=True)
class ProjectedConfig:
    """The checkpoint's configuration, resolved."""

    tower: Tower
    vision: TowerConfig
    selection: FeatureSelection
    projector: Projector
    text: DecoderConfig
    lm_head: str
    """Key of the output projection: the embedding's if they are tied."""
    tied_in_config: bool
    """Whether the config ties them; the weights may differ all the same."""
    tensors: dict[str, TensorInfo]
    image_token_id: int
    processors: tuple[str, ...]
    several_crops: bool
    """Whether an image is several crops, whose features are packed."""
    newline: str | None
    taps: int
    video_token: str | None = None
    """The text that stands for a video in prompts."""
    image_settings: Callable[[], Mapping[str, Any]] = dict
    """Reads the settings of the image processor from files that are not its own, such as the text around an image;
    raises CheckpointError."""

    @property
    def squares(self) -> Squares:
        """The squares of a crop's patches that become one visual token each."""
        return Squares(*self.vision.grid, self.projector.side)

    @property
    def features(self) -> int:
        """Features of a crop, rows of ``image_features``."""
        beside = self.tower.HAS_CLS - self.selection.drop_first
        return self.squares.count if self.projector.side > 1 else self.vision.patches + beside


def parse(checkpoint: Checkpoint, defaults: Defaults) -> ProjectedConfig:
    """The configuration of a checkpoint of LLaVA's kind; raises CheckpointError for what is not supported."""
    config = Section(checkpoint.config, "")
    vision = config.section("vision_config")
    if checkpoint.config.get("vision_config") is None:
        vision = Section(defaults.vision, "vision_config")
    tower = TOWERS[vision.choice("model_type", TOWERS, defaults.vision["model_type"])]
    vision_cfg = tower.read_config(vision, preprocessed_size(checkpoint))
    selection = FeatureSelection.from_config(
        config, vision_cfg.num_layers, layer=defaults.feature_layer, strategy=defaults.select_strategy
    )
    text = DecoderConfig.from_config(config.section("text_config"), defaults.decoder)
    tensors = canonical_tensors(checkpoint.tensors, tower.RENAMES, (defaults.newline,) if defaults.newline else ())
    lm_head, tied = output_projection(checkpoint, config, tensors)
    return ProjectedConfig(
        tower=tower,
        vision=vision_cfg,
        selection=selection,
        projector=ProjectorConfig.from_config(config, vision_cfg.hidden_size * len(selection.layers), text.hidden_size),
        text=text,
        lm_head=lm_head,
        tied_in_config=tied,
        tensors=tensors,
        image_token_id=defaults.image_token_id,
        processors=defaults.processors,
        several_crops=defaults.newline is not None,
        newline=defaults.newline,
        taps=defaults.taps,
    )


def output_projection(
    checkpoint: Checkpoint, config: Section, tensors: dict[str, TensorInfo], tied: bool = False
) -> tuple[str, bool]:
    """Key of the output projection, the embedding's if they are tied, and whether the config ties them.

    Args:
        checkpoint: The checkpoint; ``config`` is its ``config.json``.
        tensors: Its tensors by canonical name; an embedding that is stored as the output projection alone is renamed.
        tied: The family's ``tie_word_embeddings`` where the config leaves it out.
    """
    # Old checkpoints set this on either level, and in transformers either one ties them.
    name = "tie_word_embeddings"
    either = config.flag(name, tied) | config.section("text_config").flag(name, False)
    return (_tied_head(checkpoint, tensors) if either else LM_HEAD), either


def _tied_head(checkpoint: Checkpoint, tensors: dict[str, TensorInfo]) -> str:
    """Key of the output projection if the config ties it to the embedding.

    As in transformers' ``tie_weights``: a single stored one serves as both; two stored ones that differ, for instance
    after a merged fine-tune of both, keep their own values.
    """
    embed, head = tensors.get(EMBED), tensors.get(LM_HEAD)
    if head is None:
        return EMBED
    if embed is None:
        tensors[EMBED] = tensors.pop(LM_HEAD)
        return EMBED
    if embed.name in checkpoint.stored or head.name in checkpoint.stored:
        return LM_HEAD  # quantised, so not the same numbers
    return EMBED if checkpoint.same_values(embed.name, head.name) else LM_HEAD


def tied_warning(tied: bool, lm_head: str, tensors: Mapping[str, TensorInfo]) -> list[str]:
    """A line about a config that ties two matrices which differ."""
    if not tied or lm_head != LM_HEAD:
        return []
    return [
        f"config.json ties the word embeddings, but {tensors[LM_HEAD].name} differs from {tensors[EMBED].name}; both "
        "are used, as in transformers (tie_word_embeddings: false says so)"
    ]


def required(m: ProjectedConfig) -> dict[str, tuple[int, ...]]:
    weights = m.tower.embedding_weights(m.vision, VISION)
    for i in range(m.selection.deepest):
        weights |= tower_layer(m, i)
    if m.selection.norm is not None:
        weights |= norm_weights(VISION + m.selection.norm, m.vision.hidden_size)
    weights |= m.projector.weights(PROJECTOR)
    if m.newline is not None:
        weights[m.newline] = (m.text.hidden_size,)
    weights[EMBED] = (m.text.vocab_size, m.text.hidden_size)
    return weights | decoder_weights(m.text, TEXT, m.lm_head)


def tower_layer(m: ProjectedConfig, index: int) -> dict[str, tuple[int, ...]]:
    return m.tower.layer_weights(m.vision, VISION + m.tower.NAMES.prefix(index), m.tensors.__contains__)


def preprocessed_size(checkpoint: Checkpoint) -> tuple[int, int] | None:
    """The (height, width) of every image after ``preprocessor_config.json``; None if it does not fix them."""
    values = checkpoint.json_file("preprocessor_config.json")
    if values is None:  # in transformers 5 the image processor is in the processor's file
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


def image_token(checkpoint: Checkpoint, token_id: int) -> str:
    """The text of the image placeholder."""
    text = token_text(checkpoint, token_id)
    if text is not None:
        return text
    token = (checkpoint.json_file("processor_config.json") or {}).get("image_token")
    return token if isinstance(token, str) else "<image>"


def token_text(checkpoint: Checkpoint, token_id: int) -> str | None:
    """The text of an added token; None if the tokenizer has none of this id."""
    return token_texts(checkpoint, (token_id,)).get(token_id)


def token_texts(checkpoint: Checkpoint, ids: Collection[int]) -> dict[int, str]:
    """The texts of added tokens by id, as far as the tokenizer has them; each file is read once at most."""
    found: dict[int, str] = {}
    tokenizer = checkpoint.json_file("tokenizer_config.json") or {}
    added = tokenizer.get("added_tokens_decoder")
    for number in ids:
        entry = added.get(str(number)) if isinstance(added, dict) else None
        if isinstance(entry, dict) and isinstance(entry.get("content"), str):
            found[number] = entry["content"]
    if all(number in found for number in ids):
        return found
    tokens = (checkpoint.json_file("tokenizer.json") or {}).get("added_tokens")
    for entry in tokens if isinstance(tokens, list) else []:
        token = entry.get("id") if isinstance(entry, dict) else None
        if type(token) is int and token in ids and isinstance(entry.get("content"), str):
            found.setdefault(token, entry["content"])
    return found


def named_token(checkpoint: Checkpoint, name: str) -> Any:
    """What ``tokenizer_config.json`` says of a token of the processor's, such as ``video_token``; None if nothing."""
    values = checkpoint.json_file("tokenizer_config.json") or {}
    # transformers 5 writes them at the top and into the second of these, transformers 4 into the first one.
    parts = [values, values.get("extra_special_tokens"), values.get("model_specific_special_tokens")]
    value = next((part[name] for part in parts if isinstance(part, Mapping) and part.get(name)), None)
    return value.get("content") if isinstance(value, Mapping) else value


def special_tokens(checkpoint: Checkpoint, names: Collection[str]) -> dict[str, str]:
    """The texts of a processor's special tokens, by their names in ``tokenizer_config.json``.

    Raises:
        CheckpointError: for one without a name there, or that the tokenizer does not have as a token.
    """
    file, hint = "tokenizer_config.json", "fetch the checkpoint's own tokenizer files again"
    tokenizer = checkpoint.json_file("tokenizer.json")
    entries = (tokenizer or {}).get("added_tokens")
    listed = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    known = {entry["content"] for entry in listed if isinstance(entry.get("content"), str)}
    found = {}
    for name in names:
        text = named_token(checkpoint, name)
        if not isinstance(text, str) or not text:
            said = "names no" if text is None else "has no text as"
            raise CheckpointError(f"{file} {said} {name}, which this model's prompts consist of", hint=hint)
        if tokenizer is not None and text not in known:
            raise CheckpointError(f"tokenizer.json has no token {shown(text)}, the {name} of {file}", hint=hint)
        found[name] = text
    return found
