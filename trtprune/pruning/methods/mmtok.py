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

Several crops of one image: in the code each crop has a budget, covers the whole question and itself, and its softmaxes
are over its own tokens, ``crops=each``; with ``joint`` all tokens cover the question and the image together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trtprune.pruning import grids, ops
from trtprune.pruning.crops import CROPS, Room, Rooms, needs_by_crop, write_rooms
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


def _softmax(logits: np.ndarray, among: np.ndarray | bool = True) -> np.ndarray:
    """The softmax of each row over the tokens ``among`` (bool, that broadcasts), 0 for others."""
    import numpy as np

    logits = np.where(among, logits, -np.float32(ops.BAR))
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: np.ndarray = np.where(among, powers / powers.sum(axis=-1, keepdims=True), np.float32(0))
    return shares


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
        CROPS,
    )

    def needs_of(self, options: Mapping[str, Any]) -> frozenset[str]:
        return needs_by_crop(self.needs, options)

    def select(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
        import numpy as np

        image, image_norm, good = ops.norms(image_features)
        similarity, seen = cosines(inputs["vision_features"], inputs["center"] == "true")
        good = good & seen
        rooms = Rooms(inputs["grid"], keep) if inputs["crops"] == "each" else None
        if rooms is not None:
            good = good & grids.candidates(inputs["grid"])
        text, text_norm, real = ops.norms(inputs["text_embeds"])
        bar = np.where(good, np.float32(0), -np.float32(ops.BAR))
        text_logits = ops.cosine(text, text_norm, image, image_norm) / np.float32(inputs["text_temperature"]) + bar
        image_logits = similarity / np.float32(inputs["vision_temperature"]) + bar
        share = np.where(real, np.float32(1) / np.float32(max(real.sum(), 1)), np.float32(0))
        size = np.full(len(good), len(good)) if rooms is None else np.maximum(rooms.same.sum(axis=1), 1)
        part = np.where(good, np.float32(inputs["vision_weight"]) / size.astype(np.float32), np.float32(0))
        if rooms is None:
            of_text, of_image = _softmax(text_logits) * share[:, None], _softmax(image_logits)
        else:  # the question once more for each crop
            own = [rooms.crop == number for number in np.unique(rooms.crop[rooms.crop >= 0])]
            of_text = np.concatenate([_softmax(text_logits, tokens) * share[:, None] for tokens in own])
            of_image = _softmax(image_logits, rooms.same)
        cover = np.concatenate([of_text, of_image * part[:, None]]).T
        return np.sort(np.array(most_covering(cover, keep, good, rooms=rooms), dtype=np.int64))

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
        room = None
        if options["crops"] == "each":
            room = write_rooms(g, inputs["grid"], keep, options["most_crops"])
            good = op.And(good, room.chosen)
        bar = op.Unsqueeze(op.Where(good, zero, ops.f32(g, -ops.BAR)), g.ints(1))

        def logits(cosine: ir.Value, temperature: float) -> ir.Value:
            return op.Add(op.Div(cosine, ops.f32(g, temperature)), bar)

        of_text = logits(ops.write_cosine(g, text, text_norm, image, image_norm), options["text_temperature"])
        of_image = logits(similarity, options["vision_temperature"])
        many = op.ReduceSum(op.Cast(real, to=int(f32)), g.ints(1), keepdims=1)
        share = op.Where(real, op.Div(one, op.Max(many, one)), zero)
        if room is None:
            of_text = op.Mul(op.Softmax(of_text, axis=-1), op.Unsqueeze(share, g.ints(2)))
            of_image, tokens = op.Softmax(of_image, axis=-1), op.Cast(op.Shape(good, start=1, end=2), to=int(f32))
        else:
            of_text, of_image, tokens = _write_by_crop(g, room, of_text, of_image, share)
        part = op.Where(good, op.Div(ops.f32(g, options["vision_weight"]), tokens), zero)
        rows = [of_text, op.Mul(of_image, op.Unsqueeze(part, g.ints(2)))]
        cover = op.Transpose(op.Concat(*rows, axis=1), perm=[0, 2, 1])
        return coverage_select(g, cover, keep, good, room=room)


def _write_by_crop(
    g: Graph, room: Room, of_text: ir.Value, of_image: ir.Value, share: ir.Value
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Coverage within each crop.

    Args:
        g: The graph.
        room: The crops.
        of_text: float32 [batch, T, N], logits.
        of_image: float32 [batch, N, N], logits.
        share: float32 [batch, T], the weight of each text token.

    Returns:
        Coverage of the question by each crop [batch, crops · T, N], weighted; that of the image [batch, N, N]; and the
        number of tokens in each one's crop [batch, N].
    """
    import onnx_ir as ir

    op, f32 = g.op, int(ir.DataType.FLOAT)
    one, two = g.ints(1), g.ints(2)
    zero, low = ops.f32(g, 0.0), ops.f32(g, -ops.BAR)
    own = op.Unsqueeze(op.Greater(room.own, g.ints(0)), two)  # [batch, crops, 1, N]
    each = op.Softmax(op.Where(own, op.Unsqueeze(of_text, one), low), axis=-1)
    each = op.Mul(op.Where(own, each, zero), op.Unsqueeze(op.Unsqueeze(share, one), g.ints(3)))
    tokens = op.Shape(of_text, start=2, end=3)
    shape = op.Concat(op.Shape(of_text, start=0, end=1), g.ints(-1), tokens, axis=0)
    same = room.same(g)
    within = op.Where(same, op.Softmax(op.Where(same, of_image, low), axis=-1), zero)
    size = room.of_token(g, op.ReduceSum(room.own, two, keepdims=0))
    return op.Reshape(each, shape), within, op.Cast(op.Max(size, one), to=f32)
