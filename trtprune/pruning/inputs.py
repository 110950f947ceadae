"""The inputs that a pruning method can have beside the image features, and their sources.

One table for the references, the pruner graphs, the vision graphs that return them, and the help texts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["FROM_CLIP", "FROM_LAYER", "FROM_VISION", "INPUTS", "INPUT_NAMES", "Input", "read_of_run", "takes_newlines"]


@dataclass(frozen=True)
class Input:
    """One input of a pruner.

    Attributes:
        dims: Dimensions for one image: N visual tokens, D the width of the language model, C that of the tower, K that
            of one of its heads, T text tokens, M text segments, P the width of CLIP's joint space, H query heads of the
            decoder, G its key heads, W the width of one. A graph's input has ``batch`` before them.
        dtype: The dtype; ``model``: the build's.
        source: The component that returns it: ``vision``, ``embed`` or ``clip_text``; ``layer``: the pruner graph
            computes it with weights of the decoder; empty: the run sets it.
        words: Its description, for ``trtprune methods`` and errors.
    """

    dims: tuple[str | int, ...]
    dtype: str
    source: str
    words: str

    def shape(self, sizes: Mapping[str, Any]) -> tuple[Any, ...]:
        """The dimensions as numbers or names of run-time dimensions; a letter without a size stays."""
        return tuple(sizes.get(dim, dim) if isinstance(dim, str) else dim for dim in self.dims)


INPUTS = {
    "cls_attention": Input(("N",), "float32", "vision", "the attention of a CLS token"),
    "mean_query_attention": Input(("N",), "float32", "vision", "the attention each patch receives from the mean query"),
    "vision_features": Input(("N", "C"), "model", "vision", "the tower's features before the projector"),
    "vision_keys": Input(("N", "K"), "float32", "vision", "the attention keys of the tower's last used layer"),
    "cls_feature": Input(("D",), "model", "vision", "the projected CLS token"),
    "shallow_attention": Input(("N",), "float32", "vision", "the attention each patch receives in an early layer"),
    "deep_attention": Input(("N",), "float32", "vision", "the attention each patch receives in the last used layer"),
    "clip_image_embeds": Input(("N", "P"), "float32", "vision", "patches in CLIP's joint space"),
    "clip_text_embeds": Input(("M", "P"), "float32", "clip_text", "the question in CLIP's joint space"),
    "text_embeds": Input(("T", "D"), "model", "embed", "the prompt's token embeddings"),
    "text_query": Input(("H", "W"), "float32", "layer", "the prompt's mean query in the decoder's first layer"),
    "image_keys": Input(("G", "N", "W"), "float32", "layer", "the visual tokens' keys in the decoder's first layer"),
    "grid": Input(("N", 3), "int64", "", "the grid of patches"),
}
"""Name → input, of those that are arrays. ``seed`` (an integer) and ``text_mask`` (beside ``text_embeds``) are the
other words in ``Method.needs``.

* ``cls_attention``: row of the CLS query in the last layer that is used, mean over heads, the CLS column dropped.
* ``mean_query_attention``: softmax(q̄ · Kᵀ / sqrt(d)) of the same layer with q̄ the mean of all queries of a crop (CLS
  included), mean over heads, columns of the patches.
* ``vision_features``: what enters the projector.
* ``vision_keys``: of the layer of ``cls_attention``, after its bias, mean over heads, patches only.
* ``cls_feature``: the CLS token of the same hidden state, put through the projector like a patch.
* ``shallow_attention``, ``deep_attention``: of one layer, mean over heads and over *all* queries (CLS included) of the
  attention, columns of the patches. The early layer is ``Method.tower_layer``, counted from 1; the deep one is that of
  ``cls_attention``.
* ``clip_image_embeds``: CLIP's ``visual_projection(post_layernorm(·))`` of the hidden state that feeds the projector.
* ``grid``: crop, row and column of each visual token, see :mod:`trtprune.pruning.grids`.
* ``text_query``, ``image_keys``: of layer 0, behind its input norm, biases and per-head norms, before rotary positions;
  the query is the mean over the text's tokens. A pruner graph without a model around it takes them as inputs.
* ``clip_text_embeds``: CLIP's ``text_embeds`` of the question, one row for each segment of up to 77 tokens.
"""


def read_of_run(needs: Collection[str]) -> frozenset[str]:
    """Names of a run's inputs for these needs: the text's embeddings for all that is computed from them."""
    computed = {name for name in needs if name in FROM_LAYER}
    return frozenset(needs) - computed | ({"text_embeds"} if computed else set())


def takes_newlines(needs: Collection[str]) -> bool:
    """Whether a method that reads these can choose among newline tokens, which the tower knows nothing of."""
    return not any("N" in INPUTS[name].dims for name in read_of_run(needs) if name in INPUTS)


INPUT_NAMES = frozenset({*INPUTS, "text_mask", "seed"})
"""All names that a reference takes beside the image features and the budget; others are options of its method."""
FROM_VISION = tuple(name for name, entry in INPUTS.items() if entry.source == "vision")
FROM_LAYER = tuple(name for name, entry in INPUTS.items() if entry.source == "layer")
FROM_CLIP = ("clip_image_embeds", "clip_text_embeds")
