"""The names of the graphs' inputs and outputs, as docs/engine-directory.md describes the tensors.

A module of its own below all rooms, because graphs are both written and run with these names.
"""

from __future__ import annotations

from collections.abc import Iterable

# -- vision, pack, embed, clip_text
PIXEL_VALUES = "pixel_values"
TOKEN_POSITIONS = "token_positions"
WINDOW_INDEX = "window_index"
WINDOW_PLACES = "window_places"
IMAGE_FEATURES = "image_features"
CLS_ATTENTION = "cls_attention"
MEAN_QUERY_ATTENTION = "mean_query_attention"
SHALLOW_ATTENTION = "shallow_attention"
DEEP_ATTENTION = "deep_attention"
SALIENCY = (CLS_ATTENTION, MEAN_QUERY_ATTENTION, SHALLOW_ATTENTION, DEEP_ATTENTION)
"""The outputs that say how strongly the tower attends to each patch."""
INPUT_IDS = "input_ids"
TEXT_EMBEDS = "text_embeds"
CLIP_TEXT_EMBEDS = "clip_text_embeds"

# -- pack
PACKED = "packed_"
"""Prefix of the pack graph's outputs: ``packed_image_features`` is made of the input ``image_features``."""
PACK_INDEX = "pack_index"
PACK_WEIGHT = "pack_weight"

# -- pruner
TEXT_MASK = "text_mask"
KEEP = "keep"
SEED = "seed"
GRID = "grid"
KEPT_INDICES = "kept_indices"
PRUNED_FEATURES = "pruned_features"
MERGED_FEATURES = "merged_features"

# -- decoder
INPUTS_EMBEDS = "inputs_embeds"
HIDDEN_STATES = "hidden_states"
POSITION_IDS = "position_ids"
WRITE_INDEX = "write_index"
LOGITS_INDEX = "logits_index"
LAST_HIDDEN_STATE = "last_hidden_state"
LOGITS = "logits"

# -- prune points inside the decoder
RATER_INDEX = "rater_index"
RATER_ATTENTION = "rater_attention"
RATER_WEIGHTS = "rater_weights"
VISUAL_INDEX = "visual_index"

# -- the KV cache
KINDS = ("key", "value")
_PAST, _PRESENT = "past_key_values.", "present."


def past_name(layer: int, kind: str) -> str:
    """The cache input of a layer; ``kind`` is one of :data:`KINDS`."""
    return f"{_PAST}{layer}.{kind}"


def present_name(layer: int, kind: str) -> str:
    """The cache output of a layer."""
    return f"{_PRESENT}{layer}.{kind}"


def is_past(name: str) -> bool:
    """Whether a tensor is a cache input."""
    return name.startswith(_PAST)


def is_present(name: str) -> bool:
    """Whether a tensor is a cache output."""
    return name.startswith(_PRESENT)


def present_of(name: str) -> str:
    """The cache output that is the same tensor as a cache input after the call."""
    return _PRESENT + name.removeprefix(_PAST)


def cached_layers(names: Iterable[str]) -> int:
    """The number of layers whose keys are among the cache inputs in ``names``."""
    return sum(is_past(name) and name.endswith(f".{KINDS[0]}") for name in names)
