"""CDPruner: a determinantal point process, conditioned on the question.

Paper: https://arxiv.org/abs/2506.10967 (NeurIPS 2025).  Code: Theia-4869/CDPruner@9541616 (Apache-2.0).

    S  = cosines of the projected tokens
    r  = mean over text segments of -cos(E_v, E_t)           patches and question in CLIP's joint space
    r  = (r - min + 1e-6) / (max - min)
    L  = diag(r) S diag(r);   choose ``keep`` tokens greedily for the largest determinant of their part of L

The minus sign is in the authors' code: it prefers patches that CLIP finds *unlike* the question, and their numbers come
from it; ``relevance=positive`` omits it.  The code takes min and max over its whole batch, here they are those of one
image.  ``theta`` is an option of the code, off by default: r becomes exp(θ / (2 (1 - θ)) · r) (exponents are cut at 40,
where squares still fit float32).

``center=true`` is Cen-Prune's kernel (2026), diag(r g) S̄ diag(r g): S̄ of mean-centred features, g = min-max(-mean
cosine to the other tokens).

``relevance=prompt`` needs no CLIP: it is what OpenVINO GenAI runs for Qwen2-VL, Qwen2.5-VL and Qwen3-VL
(openvinotoolkit/openvino.genai@da1db864, ``src/cpp/src/visual_language/cdpruner``, Apache-2.0),

    c = cos(v, mean of the prompt's token embeddings)        in the language model's space, the sign as it is
    r = (c - min) / (max - min + 1e-6)
    L = ((1 - w) + w r_i r_j) S_ij                           w = ``weight``, 0.5

with all text outside of images as the prompt (``prompt_tokens=all_text``).  OpenVINO also cuts the row of tokens into
two halves, each with a scale, a kernel and half of the budget of its own, which is for speed and is not done here; its
square roots have 1e-6 added.  With CLIP's relevance w is 1, as in the paper; ``weight`` can be set for both.

For a kernel whose rank is below ``keep``, and for duplicates of chosen tokens, determinants are rounding noise, whose
square root the code takes; :func:`trtprune.pruning.greedy.determinant` describes the rule used here.  Where all
r are within 1e-6, r = 1.

Several crops of one image: in the code min and max are those of all crops together, and each crop has a kernel and a
budget of its own, ``crops=each``; with ``joint`` there is one kernel of all tokens.  The mean of ``center`` and g are
the image's in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from trtprune.pruning import grids, ops
from trtprune.pruning.crops import CROPS, Rooms, needs_by_crop, write_rooms
from trtprune.pruning.greedy import RESIDUAL, determinant
from trtprune.pruning.method import Method
from trtprune.pruning.options import PROMPT_TOKENS, Option
from trtprune.pruning.prompt import prompt_cosines, write_prompt_cosines
from trtprune.pruning.registry import register
from trtprune.pruning.similarity import CENTER, cosines, min_max, rarity, write_cosines, write_min_max, write_rarity

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from trtprune.graph import Graph

__all__ = ["CdPruner"]

_ABOVE = 1e-6
_STEEPEST = 40.0
_WIDEN = 1e-6
_BLEND = 0.5
"""OpenVINO's weight of the prompt's relevance."""


def _slope(theta: str) -> float | None:
    return None if theta == "off" else float(theta) / (2 * (1 - float(theta)))


def _weight(options: Mapping[str, Any]) -> float:
    """The share of the kernel that is weighted by relevance."""
    if options["weight"] == "auto":
        return _BLEND if options["relevance"] == "prompt" else 1.0
    return float(options["weight"])


@register
class CdPruner(Method):
    """Conditional diversity by a determinantal point process."""

    name = "cdpruner"
    summary = "diverse tokens, weighted by CLIP's view of the question, or by their likeness to the prompt"
    paper = "https://arxiv.org/abs/2506.10967"
    source = "https://github.com/Theia-4869/CDPruner"
    needs = frozenset({"clip_image_embeds", "clip_text_embeds"})
    cost = "CLIP's text tower, N x N cosines, keep steps of a keep x N product"
    options = (
        Option(
            "relevance",
            "negative",
            "CLIP's cosine to the question, its sign turned (negative) or not (positive); or that of a visual token to "
            "the mean of the prompt's embeddings (prompt), which needs no CLIP",
            choices=("negative", "positive", "prompt"),
        ),
        Option(
            "weight",
            "auto",
            "0 to 1: the share of the kernel that relevance weighs; auto: 1, and 0.5 with relevance=prompt",
            pattern=r"auto|0(\.[0-9]+)?|1(\.0+)?",
        ),
        Option(
            "prompt_tokens",
            "all_text",
            "the tokens that relevance=prompt takes the mean of",
            choices=tuple(PROMPT_TOKENS),
        ),
        Option("theta", "off", "0 to below 1: how steeply relevance counts", pattern=r"off|0(\.[0-9]+)?"),
        CENTER,
        CROPS,
    )

    without_clip: ClassVar = {"relevance": "prompt"}

    def needs_of(self, options: Mapping[str, Any]) -> frozenset[str]:
        needs = frozenset({"text_embeds"}) if options["relevance"] == "prompt" else self.needs
        return needs_by_crop(needs, options)

    def text_span(self, options: Mapping[str, Any] | None = None) -> str:
        values = self.validate_options(options)
        return super().text_span(values if values["relevance"] == "prompt" else {"prompt_tokens": "question"})

    def select(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
        import numpy as np

        center = inputs["center"] == "true"
        similarity, good = cosines(image_features, center)
        rooms = Rooms(inputs["grid"], keep) if inputs["crops"] == "each" else None
        if rooms is not None:
            good = good & grids.candidates(inputs["grid"])
        factor, good = self._relevance(image_features, good, inputs)
        slope = _slope(inputs["theta"])
        if slope is not None:
            factor = np.exp(np.minimum(np.float32(slope) * factor, np.float32(_STEEPEST)))
        if center:
            factor = factor * rarity(image_features, good)
        weight = _weight(inputs)
        if weight < 1:
            both = np.float32(weight) * (factor[:, None] * factor) + np.float32(1 - weight)
            similarity, factor = similarity * both, np.ones_like(factor)
        return np.sort(np.array(determinant(similarity, factor, keep, good, rooms), dtype=np.int64))

    @staticmethod
    def _relevance(
        image_features: np.ndarray, good: np.ndarray, inputs: Mapping[str, Any]
    ) -> tuple[np.ndarray, np.ndarray]:
        """r of each token, float32 [N], and the tokens that may be chosen, bool [N]."""
        import numpy as np

        if inputs["relevance"] == "prompt":
            cosine, _ = prompt_cosines(image_features, inputs["text_embeds"])
            return min_max(cosine, good, widen=_WIDEN, least=2 * _WIDEN), good
        patches, patch_norm, seen = ops.norms(inputs["clip_image_embeds"])
        text, text_norm, _ = ops.norms(inputs["clip_text_embeds"])
        cosine = ops.cosine(patches, patch_norm, text, text_norm)
        sign = np.float32(-1 if inputs["relevance"] == "negative" else 1)
        good = good & seen
        return min_max((sign * cosine).sum(axis=1) / np.float32(len(text)), good, above=_ABOVE, least=_ABOVE), good

    def scores(self, g: Graph, inputs: Mapping[str, ir.Value], *, keep: ir.Value, **options: Any) -> ir.Value:
        from trtprune.pruning.greedy_graph import determinant_select

        op, center = g.op, options["center"] == "true"
        similarity, good = write_cosines(g, inputs["image_features"], center)
        room = None
        if options["crops"] == "each":
            room = write_rooms(g, inputs["grid"], keep, options["most_crops"])
            good = op.And(good, room.chosen)
        factor, good = self._write_relevance(g, inputs, good, options["relevance"])
        slope = _slope(options["theta"])
        if slope is not None:
            factor = op.Exp(op.Min(op.Mul(factor, ops.f32(g, slope)), ops.f32(g, _STEEPEST)))
        if center:
            factor = op.Mul(factor, write_rarity(g, inputs["image_features"], good))
        weight = _weight(options)
        if weight < 1:
            both = op.Mul(op.Unsqueeze(factor, g.ints(2)), op.Unsqueeze(factor, g.ints(1)))
            both = op.Add(op.Mul(both, ops.f32(g, weight)), ops.f32(g, 1 - weight))
            similarity, factor = op.Mul(similarity, both), op.Expand(ops.f32(g, 1.0), op.Shape(factor))
        return determinant_select(g, similarity, factor, keep, good, RESIDUAL, room)

    @staticmethod
    def _write_relevance(
        g: Graph, inputs: Mapping[str, ir.Value], good: ir.Value, relevance: str
    ) -> tuple[ir.Value, ir.Value]:
        """:meth:`_relevance` for [batch, N]."""
        import onnx_ir as ir

        op = g.op
        if relevance == "prompt":
            cosine, _ = write_prompt_cosines(g, inputs["image_features"], inputs["text_embeds"], inputs["text_mask"])
            return write_min_max(g, cosine, good, widen=_WIDEN, least=2 * _WIDEN), good
        patches, patch_norm, seen = ops.write_norms(g, inputs["clip_image_embeds"])
        text, text_norm, _ = ops.write_norms(g, inputs["clip_text_embeds"])
        cosine = ops.write_cosine(g, patches, patch_norm, text, text_norm)
        good = op.And(good, op.Squeeze(seen, g.ints(2)))
        total = op.ReduceSum(op.Neg(cosine) if relevance == "negative" else cosine, g.ints(2), keepdims=0)
        segments = op.Cast(op.Shape(inputs["clip_text_embeds"], start=1, end=2), to=int(ir.DataType.FLOAT))
        return write_min_max(g, op.Div(total, segments), good, above=_ABOVE, least=_ABOVE), good
