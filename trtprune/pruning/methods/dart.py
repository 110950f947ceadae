"""DART at embedding level: few pivots, and for each the tokens that duplicate it least.

Paper: https://arxiv.org/abs/2502.11494, which selects inside the decoder, by the keys of layer 2.  NVIDIA's
TensorRT-Edge-LLM (0.11) runs it on input embeddings before the decoder, which is what this file does; the steps are
those of Tencent/AngelSlim@67394ce (Apache-2.0).

    pivots  the 4 visual tokens and the 4 text tokens with the largest L1 norm: visual ones first, each by norm
    kept    the visual pivots; then pivot by pivot the ``ceil((keep - visual pivots) / pivots)`` tokens, out of those
            not yet kept, with the lowest cosine to it, until ``keep`` are reached

So the last pivots may add fewer tokens or none.  ``image_pivots`` and ``text_pivots`` are options; a prompt with fewer
usable text tokens has fewer pivots.  Which text counts is left open by the paper's summary (the re-implementation takes
everything that is not visual): ``prompt_tokens``, default ``all_text``.  NVIDIA's variant keeps the original positions
and a quota for each image; here a picture has its own budget in any case, and ``--positions`` says which numbers the
kept tokens have.

Each pivot excludes what earlier ones took, so one ranking for all would not give the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trtprune.pruning import ops
from trtprune.pruning.method import Method
from trtprune.pruning.options import PROMPT_TOKENS, Option
from trtprune.pruning.registry import register

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from trtprune.graph import Graph

__all__ = ["Dart"]


@register
class Dart(Method):
    """The tokens that duplicate a few pivots least."""

    name = "dart"
    summary = "tokens that duplicate a few strong visual and text tokens least; needs no CLS token"
    paper = "https://arxiv.org/abs/2502.11494"
    source = "https://github.com/Tencent/AngelSlim"
    needs = frozenset({"text_embeds"})
    cost = "a sort of N cosines for each pivot"
    options = (
        Option("image_pivots", 4, "visual tokens that others are compared with", minimum=1, maximum=64),
        Option("text_pivots", 4, "text tokens that others are compared with", minimum=0, maximum=64),
        Option("prompt_tokens", "all_text", "the prompt tokens that can be pivots", choices=tuple(PROMPT_TOKENS)),
    )

    def longest_order(self, tokens: int, keep: int, options: Mapping[str, Any]) -> int:
        return tokens

    def select(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
        import numpy as np

        image, image_norm, good = ops.norms(image_features)
        text, text_norm, real = ops.norms(inputs["text_embeds"])
        size = np.where(good, np.abs(image).sum(axis=1, dtype=np.float32), np.float32(-1))
        kept = [int(i) for i in ops.descending(size)[: min(inputs["image_pivots"], keep)]]
        size = np.where(real, np.abs(text).sum(axis=1, dtype=np.float32), np.float32(-1))
        chosen = ops.descending(size)[: min(inputs["text_pivots"], int(real.sum()))]
        pivots, pivot_norm = np.concatenate([image[kept], text[chosen]]), np.append(image_norm[kept], text_norm[chosen])
        cosine = ops.cosine(pivots, pivot_norm, image, image_norm)
        cosine = np.where(good, cosine, np.float32(ops.BAR))
        quota = -(-(keep - len(kept)) // len(pivots))
        for row in cosine:
            left = [int(j) for j in np.argsort(row, kind="stable") if j not in kept]
            kept += left[: min(quota, keep - len(kept))]
        return np.sort(np.array(kept, dtype=np.int64))

    def scores(self, g: Graph, inputs: Mapping[str, ir.Value], *, keep: ir.Value, **options: Any) -> ir.Value:
        import onnx_ir as ir

        from trtprune.pruning.greedy_graph import take_in_turns

        op, integer = g.op, int(ir.DataType.INT64)
        one, none = g.ints(1), ops.f32(g, -1.0)
        image, image_norm, good = ops.write_norms(g, inputs["image_features"])
        text, text_norm, real = ops.write_norms(g, inputs["text_embeds"])
        mask = op.Cast(inputs["text_mask"], to=int(ir.DataType.BOOL))
        good, real = op.Squeeze(good, g.ints(2)), op.And(op.Squeeze(real, g.ints(2)), mask)

        def strongest(
            vectors: ir.Value, norm: ir.Value, usable: ir.Value, count: int
        ) -> tuple[ir.Value, ir.Value, ir.Value]:
            size = op.Where(usable, op.ReduceSum(op.Abs(vectors), g.ints(2), keepdims=0), none)
            _, index = ops.top(g, size, op.Min(op.Shape(usable, start=1, end=2), g.ints(count)))
            place = op.Unsqueeze(index, g.ints(2))
            return index, op.GatherND(vectors, place, batch_dims=1), op.GatherND(norm, place, batch_dims=1)

        # A slot for each pivot that there can be; those of text that is missing, or not wanted, take nothing.
        first, pivots, lengths = strongest(image, image_norm, good, options["image_pivots"])
        chosen, words, word_lengths = strongest(text, text_norm, real, max(options["text_pivots"], 1))
        pivots, lengths = op.Concat(pivots, words, axis=1), op.Concat(lengths, word_lengths, axis=1)
        cosine = ops.write_cosine(g, pivots, lengths, image, image_norm)
        cosine = op.Where(op.Unsqueeze(good, one), cosine, ops.f32(g, ops.BAR))

        usable = op.ReduceSum(op.Cast(real, to=integer), one, keepdims=1)
        texts = op.Min(usable, g.ints(options["text_pivots"]))
        images = op.Shape(first, start=1, end=2)
        every = op.Add(images, texts)
        rest = op.Max(op.Sub(keep, images), g.ints(0))
        quota = op.Div(op.Add(rest, op.Sub(every, one)), every)
        slot = ops.iota(g, op.Add(images, op.Shape(chosen, start=1, end=2)))
        quota = op.Where(op.Less(op.Unsqueeze(slot, g.ints(0)), every), quota, g.ints(0))
        return op.Neg(take_in_turns(g, cosine, first, quota))
