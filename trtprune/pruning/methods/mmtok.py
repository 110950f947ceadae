"""MMTok: tokens that cover the question's words and the rest of the image.

Paper: https://arxiv.org/abs/2508.18264 (ICLR 2026).  Code: Ironieser/MMTok@d1522cd (Apache-2.0).

    P = softmax over j of cos(t_r, v_j) / 0.02, divided by the number of text tokens
    Q = softmax over j of cos(c_i, c_j) / 0.2,  divided by the number of visual tokens
    M = [P; 0.5 Q]
    choose argmax_j Σ_rows max(0, M_rj - best_r), best = max(best, M_:j), ``keep`` times

t are the language model's input embeddings of the question, v the projected tokens, c the features before the
projector.  The temperatures (``text_temperature``, ``vision_temperature``) and the weight of Q (``vision_weight``) are
those of the code's core; a function in it has 0.01 as its own default for the first, which the core overrides.

Not done: the code drops some forty words (articles, auxiliary verbs, pronouns, question words, a few prepositions) and
two fixed prompt sentences from the question before it looks up embeddings, word by word.  A pruner's inputs are
embeddings, not words, so all tokens of the span count; ``prompt_tokens`` chooses the span, ``question`` being nearest
to the code.

``center=true`` subtracts the mean from c before its cosines.  v is unchanged: the text's embeddings are not part of the
image's mean.

Text tokens that are not finite cover nothing and are not counted; visual ones also do not count as things to cover.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trtprune.pruning import ops
from trtprune.pruning.greedy import most_covering
from trtprune.pruning.method import Method
from trtprune.pruning.options import PROMPT_TOKENS, Option
from trtprune.pruning.registry import register
from trtprune.pruning.similarity import CENTER, cosines, write_cosines

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from trtprune.graph import Graph

__all__ = ["MmTok"]


def _softmax(logits: np.ndarray) -> np.ndarray:
    import numpy as np

    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


@register
class MmTok(Method):
    """Coverage of text and image."""

    name = "mmtok"
    summary = "tokens that cover the question's words and the image; needs no CLS token"
    paper = "https://arxiv.org/abs/2508.18264"
    source = "https://github.com/Ironieser/MMTok"
    needs = frozenset({"vision_features", "text_embeds"})
    cost = "N x N and T x N cosines, keep greedy steps that sum over (part of) them"
    options = (
        Option("text_temperature", 0.02, "divides text-image cosines before the softmax", minimum=1e-3, maximum=1e3),
        Option("vision_temperature", 0.2, "divides image-image cosines before the softmax", minimum=1e-3, maximum=1e3),
        Option("vision_weight", 0.5, "weight of covering the image, beside 1 for the text", minimum=0, maximum=1000),
        Option("prompt_tokens", "question", "the prompt tokens to be covered", choices=tuple(PROMPT_TOKENS)),
        CENTER,
    )

    def select(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
        import numpy as np

        image, image_norm, good = ops.norms(image_features)
        similarity, seen = cosines(inputs["vision_features"], inputs["center"] == "true")
        good = good & seen
        text, text_norm, real = ops.norms(inputs["text_embeds"])
        bar = np.where(good, np.float32(0), -np.float32(ops.BAR))
        of_text = _softmax(
            ops.cosine(text, text_norm, image, image_norm) / np.float32(inputs["text_temperature"]) + bar
        )
        of_image = _softmax(similarity / np.float32(inputs["vision_temperature"]) + bar)
        share = np.where(real, np.float32(1) / np.float32(max(real.sum(), 1)), np.float32(0))
        part = np.where(good, np.float32(inputs["vision_weight"]) / np.float32(len(good)), np.float32(0))
        cover = np.concatenate([of_text * share[:, None], of_image * part[:, None]]).T
        return np.sort(np.array(most_covering(cover, keep, good), dtype=np.int64))

    def scores(self, g: Graph, inputs: Mapping[str, ir.Value], *, keep: ir.Value, **options: Any) -> ir.Value:
        import onnx_ir as ir

        from trtprune.pruning.greedy_graph import coverage_select

        op, f32 = g.op, ir.DataType.FLOAT
        zero, one = ops.f32(g, 0.0), ops.f32(g, 1.0)
        image, image_norm, good = ops.write_norms(g, inputs["image_features"])
        similarity, seen = write_cosines(g, inputs["vision_features"], options["center"] == "true")
        good = op.And(op.Squeeze(good, g.ints(2)), seen)
        text, text_norm, real = ops.write_norms(g, inputs["text_embeds"])
        real = op.And(op.Squeeze(real, g.ints(2)), op.Cast(inputs["text_mask"], to=int(ir.DataType.BOOL)))
        bar = op.Unsqueeze(op.Where(good, zero, ops.f32(g, -ops.BAR)), g.ints(1))

        def softmax(cosine: ir.Value, temperature: float) -> ir.Value:
            return op.Softmax(op.Add(op.Div(cosine, ops.f32(g, temperature)), bar), axis=-1)

        of_text = softmax(ops.write_cosine(g, text, text_norm, image, image_norm), options["text_temperature"])
        of_image = softmax(similarity, options["vision_temperature"])
        many = op.ReduceSum(op.Cast(real, to=int(f32)), g.ints(1), keepdims=1)
        share = op.Where(real, op.Div(one, op.Max(many, one)), zero)
        tokens = op.Cast(op.Shape(good, start=1, end=2), to=int(f32))
        part = op.Where(good, op.Div(ops.f32(g, options["vision_weight"]), tokens), zero)
        rows = [op.Mul(of_text, op.Unsqueeze(share, g.ints(2))), op.Mul(of_image, op.Unsqueeze(part, g.ints(2)))]
        cover = op.Transpose(op.Concat(*rows, axis=1), perm=[0, 2, 1])
        return coverage_select(g, cover, keep, good)
