"""TRIM with a fixed budget: the patches least like the question in CLIP's joint space, and the mean of the rest.

Paper: https://arxiv.org/abs/2409.10994 ("Less is More: A Simple yet Effective Token Reduction Method for Efficient
Multi-modal LLMs").  Code: https://github.com/FreedomIntelligence/TRIM @ f5a232d.

    s_j  = similarity of patch j and the question in CLIP's joint space
    p    = softmax(-s)
    rows = the keep - 1 patches of largest p in image order, then the mean of all others

The minus is in the code: in CLIP, patches are less like the text that describes them, not more.  The softmax changes no
order (but can make equal in float32 what is not) and is left out.  The code takes a fixed share of the patches, or as
many as p has upper outliers (Tukey's fences; the paper's way), which depends on the picture.  Only the first is here.

What the sources leave open, or where this differs:

* ``similarity``: the paper says cosine; the code multiplies embeddings that are not normalised.  ``cosine`` (default)
  or ``dot``.
* The code cuts the question after 77 tokens.  Here each segment of 77 tokens is one embedding and their similarities
  are added up; one segment is the code.
* The code takes the mean before the projector, this after it.
* With keep = N nothing is merged: all rows are unchanged.

``kept_indices`` are the ``keep`` patches of largest p: those that are rows of their own, and the best of the merged
ones.  Patches whose embedding is not finite come last; features that are not finite are left out of the mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trtprune.pruning import merging, ops
from trtprune.pruning.method import Method
from trtprune.pruning.options import Option
from trtprune.pruning.registry import register

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from trtprune.graph import Graph

__all__ = ["Trim"]


@register
class Trim(Method):
    """The patches least like CLIP's text, and one row for all others."""

    name = "trim"
    summary = "patches by CLIP's image-text similarity, and the mean of all others as one more row"
    paper = "https://arxiv.org/abs/2409.10994"
    source = "https://github.com/FreedomIntelligence/TRIM @ f5a232d"
    needs = frozenset({"clip_image_embeds", "clip_text_embeds"})
    cost = "N products, one TopK and a mean; CLIP's text tower once a question"
    merges = True
    options = (
        Option(
            "similarity",
            "cosine",
            "of patch and question, as the paper or as the code",
            choices=("cosine", "dot"),
        ),
    )

    def _ranked(self, tokens: int, inputs: Mapping[str, Any]) -> np.ndarray:
        """The patches from best to worst."""
        import numpy as np

        image, image_norm, good = ops.norms(inputs["clip_image_embeds"])
        text, text_norm, _ = ops.norms(inputs["clip_text_embeds"])
        if inputs["similarity"] == "dot":
            image_norm, text_norm = np.ones_like(image_norm), np.ones_like(text_norm)
        similarity = ops.cosine(text, text_norm, image, image_norm).sum(axis=0, dtype=np.float32)
        return ops.descending(np.where(good, np.clip(-similarity, -ops.LIMIT, ops.LIMIT), np.float32(ops.NAN_SCORE)))

    def select(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
        import numpy as np

        return np.sort(self._ranked(len(image_features), inputs)[:keep])

    def assign(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
        import numpy as np

        ranked = self._ranked(len(image_features), inputs)
        found = np.arange(len(ranked))
        if keep < len(ranked):
            others = ranked[keep - 1 :]
            _, _, good = ops.norms(image_features[others])
            found[others] = np.where(good, others[0], -1)
        return found

    def merge(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> tuple[np.ndarray, np.ndarray]:
        import numpy as np

        ranked = self._ranked(len(image_features), inputs)
        kept = np.sort(ranked[:keep])
        if keep == len(ranked):
            return kept, image_features[kept]
        others = np.ones((1, len(ranked)), bool)
        others[0, ranked[: keep - 1]] = False
        mean, _ = merging.means(others, image_features)
        return kept, np.concatenate([image_features[np.sort(ranked[: keep - 1])], mean])

    def build_merged(
        self, g: Graph, inputs: Mapping[str, ir.Value], *, keep: ir.Value, **options: Any
    ) -> tuple[ir.Value, ir.Value]:
        import onnx_ir as ir

        op = g.op
        features = g.cast(inputs["image_features"], ir.DataType.FLOAT)
        tokens = op.Shape(features, start=1, end=2)
        image, image_norm, good = ops.write_norms(g, inputs["clip_image_embeds"])
        text, text_norm, _ = ops.write_norms(g, inputs["clip_text_embeds"])
        if options["similarity"] == "dot":
            similarity = ops.write_products(g, text, image)
        else:
            similarity = ops.write_cosine(g, text, text_norm, image, image_norm)
        total = op.ReduceSum(similarity, g.ints(1), keepdims=0)
        total = op.Min(op.Max(op.Neg(total), ops.f32(g, -ops.LIMIT)), ops.f32(g, ops.LIMIT))
        scores = op.Where(op.Squeeze(good, g.ints(2)), total, ops.f32(g, ops.NAN_SCORE))

        # The last of the best: it represents the rest, if there is a rest.
        _, best = ops.top(g, scores, keep)
        last = op.And(op.Equal(ops.iota(g, keep), op.Sub(keep, g.ints(1))), op.Less(keep, tokens))
        order = op.Mod(ops.ascending(g, op.Add(best, op.Where(last, tokens, g.ints(0))), keep), tokens)
        alone = op.Expand(op.Where(last, ops.f32(g, 0.0), ops.f32(g, 1.0)), op.Shape(best))
        zeros = op.Expand(ops.f32(g, 0.0), op.Shape(scores))
        others = op.Less(op.ScatterElements(zeros, best, alone, axis=1), ops.f32(g, 0.5))
        mean, _ = merging.write_means(g, op.Unsqueeze(others, g.ints(1)), features)
        rows = op.Where(op.Unsqueeze(last, g.ints(1)), mean, merging.write_gather(g, features, order))
        return ops.ascending(g, best, keep), rows
