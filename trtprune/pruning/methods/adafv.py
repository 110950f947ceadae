"""AdaFV / AdaV: an adaptive mixture of text-to-image similarity and CLS attention.  The default method.

Papers: AdaFV, https://arxiv.org/abs/2501.09532; republished as AdaV, https://aclanthology.org/2025.findings-acl.258.
Code: https://github.com/JiayiV/AdaV @ 58d1f8d, ``llava/model/language_model/llava_llama.py``, method "adav".

For K = keep, image features v_j after the projector and text embeddings t_i of the decoder's own embedding table:

    s_j  = max over i of softmax_j(100 · cos(t_i, v_j))        text-to-image (T2I) score
    c_j  = CLS attention of the vision tower                   (not renormalised)
    A, C = the tokens by falling s, by falling c;   q = floor(0.25 · K),   K' = K - 2q
    P1[k] = sum of the first k of s after the q best;   P2[k] likewise of c
    k1   = argmax over k = 0..K' of P1[k] · P2[K' - k]         the first maximum wins
    T2I picks = first q + k1 of A;   CLS picks = first K - q - k1 of C

Options for points that the code does not settle:

* ``mode=official`` is the concatenation of both picks, sorted.  A token picked by both lists occurs twice, side by
  side, so fewer than K different tokens are kept.
* ``mode=distinct`` (default) keeps exactly K different tokens: the T2I picks as above, then C from its start without
  tokens already chosen, until there are K.  A CLS pick that the T2I list has already made is thus replaced by
  the next best of the CLS list; the T2I/CLS split k1 is the official one.
* An odd K is used as it is.  The authors' script halves the budget and doubles it again, which rounds down to an
  even number; the formulas do not need that.  ``keep=2*(K//2)`` gives the authors' result for an odd K.
* ``temperature`` (100) and ``quota`` (0.25) are the constants of the code.  ``quota`` is read as the fraction
  nearest to its decimal spelling, denominator up to 10000, so that floor(quota · K) is exact.
* ``prompt_tokens``: the code takes every token after the image (question and template; in a conversation the text of
  all turns), ``after_image``; ``question`` is the last turn's question alone, ``all_text`` takes the text before the
  image in.
* Several crops of one image (LLaVA-NeXT): with ``crops=joint`` the formulas hold for all tokens together.  With
  ``crops=each``, as in the code, A is joint and C is a list crop by crop, the floor(K / crops) tokens of highest c of
  each; what is behind its q first entries is sorted anew by c.  The code keeps, for patch i of crop n, the token at
  i + n where it should take crop n's patch i: ``mode=official`` does that, too, and ``mode=mended`` takes the patch.
  (The code's K is 2 · floor(K / 2 / crops) · crops; another K is shared out here, one more to the first crops.)

Arithmetic (float32, both forms): s is ranked by its logarithm, 100 · cos - logsumexp, with the maximum over i taken
there.  The order is the same, but scores that the softmax would underflow to 0 keep their order instead of falling
into index order.  P1 · P2 is compared for different k only, so a common factor of s cancels: the s after the quota are
taken relative to the first of them, exp(log s - log s_q), which cannot underflow as a whole.  Both prefix sums run from
the best entry on, one addition after the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar

from trtprune.pruning import grids, ops
from trtprune.pruning.crops import (
    CROPS,
    NEVER,
    listed_by_crop,
    local_places,
    needs_by_crop,
    write_listed_by_crop,
    write_local_places,
)
from trtprune.pruning.method import Method
from trtprune.pruning.options import PROMPT_TOKENS, Option
from trtprune.pruning.registry import register
from trtprune.pruning.saliency import RECEIVED, needs_by_saliency, saliency

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from trtprune.graph import Graph

__all__ = ["AdaFv", "split", "text_scores", "write_split", "write_text_scores"]

# Below every log score that a real token can have, and a difference with it stays finite.
_NO_SCORE = -1e34
# In `distinct` mode: above every CLS score.
_CHOSEN = 1e35


def _quota_fraction(quota: float) -> Fraction:
    return Fraction(str(quota)).limit_denominator(10_000)


def text_scores(image_features: np.ndarray, text_embeds: np.ndarray, temperature: float) -> np.ndarray:
    """log s [N] for float32 [N, D] and [T, D]; equal everywhere if there is no usable text token.

    Tokens whose features are not finite come last; text rows that are not finite are left out.
    """
    import numpy as np

    image, image_norm, image_good = ops.norms(image_features)
    text, text_norm, text_good = ops.norms(text_embeds)
    cosine = ops.cosine(text, text_norm, image, image_norm)
    logits = np.where(image_good, cosine, -np.float32(ops.BAR)) * np.float32(temperature)
    # The peak is subtracted first: if one token has nearly all of a row, the remaining differences are tiny.
    below = logits - logits.max(axis=1, keepdims=True)
    log_softmax = below - np.log(np.exp(below).sum(axis=1, keepdims=True))
    return np.where(text_good[:, None], log_softmax, np.float32(_NO_SCORE)).max(axis=0, initial=np.float32(_NO_SCORE))


def split(text_sorted: np.ndarray, cls_sorted: np.ndarray, quota: int) -> int:
    """The number of tokens from the T2I list, q + k1, of the K = len(lists) to keep.

    Args:
        text_sorted: float32 [K], the K largest log s, falling.
        cls_sorted: float32 [K], the K largest c, falling.
        quota: q, with 2q ≤ K.
    """
    import numpy as np

    rest = len(text_sorted) - 2 * quota
    relative = np.exp(text_sorted[quota:] - text_sorted[quota])
    zero = np.zeros(1, np.float32)
    text_sums = np.concatenate([zero, np.cumsum(relative, dtype=np.float32)])
    cls_sums = np.concatenate([zero, np.cumsum(cls_sorted[quota:], dtype=np.float32)])
    products = text_sums[: rest + 1] * cls_sums[: rest + 1][::-1]
    return quota + int(np.argmax(products))


@register
class AdaFv(Method):
    """Text-to-image similarity and CLS attention, the budget divided between them by their geometric mean."""

    name = "adafv"
    summary = "text similarity and CLS attention, mixed for each question (the authors' own form: mode=official)"
    paper = "https://arxiv.org/abs/2501.09532"
    source = "https://github.com/JiayiV/AdaV @ 58d1f8d"
    needs = frozenset({"cls_attention", "text_embeds"})
    cost = "T x N cosines, two TopK and sums over their lists"
    options = (
        Option(
            "mode",
            "distinct",
            "distinct: a token both lists pick is replaced by the next best; official: it is kept twice; mended: "
            "official, but for the places of CLS picks in later crops",
            choices=("distinct", "official", "mended"),
        ),
        CROPS,
        Option("temperature", 100.0, "factor on the cosine before the softmax", minimum=0.01, maximum=1e4),
        Option("quota", 0.25, "fraction of the budget that each list fills unconditionally", minimum=0, maximum=0.5),
        Option(
            "prompt_tokens",
            "after_image",
            "the prompt tokens compared with the image",
            choices=tuple(PROMPT_TOKENS),
        ),
        RECEIVED,
    )
    without_cls: ClassVar = {"received": "mean"}

    def passes_all(self, options: Mapping[str, Any]) -> bool:
        # The authors' form may choose a token twice and another not at all, whatever the budget.
        return bool(options["mode"] == "distinct")

    def needs_of(self, options: Mapping[str, Any]) -> frozenset[str]:
        return needs_by_crop(needs_by_saliency(self.needs, options), options)

    def longest_order(self, tokens: int, keep: int, options: Mapping[str, Any]) -> int:
        return tokens if options["crops"] == "each" else keep

    def select(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
        import numpy as np

        text = text_scores(image_features, inputs["text_embeds"], inputs["temperature"])
        cls = ops.clean(saliency(inputs))
        fraction = _quota_fraction(inputs["quota"])
        quota = ops.scale_count(fraction.numerator, fraction.denominator, keep)
        if inputs["crops"] == "each":
            text = np.where(grids.candidates(inputs["grid"]), text, np.float32(NEVER))
            by_cls = _cls_list(cls, inputs["grid"], keep, quota)
        else:
            by_cls = ops.descending(cls)
        by_text = ops.descending(text)
        from_text = split(text[by_text[:keep]], cls[by_cls[:keep]], quota)
        picks = by_text[:from_text]
        if inputs["mode"] == "distinct":
            by_cls = by_cls[~np.isin(by_cls, picks)]
        by_cls = by_cls[: keep - from_text]
        if inputs["crops"] == "each" and inputs["mode"] == "official":
            by_cls = local_places(inputs["grid"])[by_cls]
        return np.sort(np.concatenate([picks, by_cls]))

    def build(self, g: Graph, inputs: Mapping[str, ir.Value], *, keep: ir.Value, **options: Any) -> ir.Value:
        if options["mode"] == "distinct":
            return super().build(g, inputs, keep=keep, **options)
        op = g.op
        by_text, by_cls, from_text, place = self._lists(g, inputs, keep, options)[:4]
        if options["crops"] == "each" and options["mode"] == "official":
            by_cls = op.GatherElements(write_local_places(g, inputs["grid"], options["most_crops"]), by_cls, axis=1)
        behind = op.Max(op.Sub(place, from_text), g.ints(0))
        cls_picks = op.GatherElements(by_cls, behind, axis=1)
        return ops.ascending(g, op.Where(op.Less(place, from_text), by_text, cls_picks), keep)

    def scores(self, g: Graph, inputs: Mapping[str, ir.Value], *, keep: ir.Value, **options: Any) -> ir.Value | None:
        import onnx_ir as ir

        if options["mode"] != "distinct":
            return None
        op = g.op
        by_text, by_cls, from_text, place, cls = self._lists(g, inputs, keep, options)
        picked = op.Where(op.Less(place, from_text), ops.f32(g, 1.0), ops.f32(g, 0.0))
        nothing = op.Expand(ops.f32(g, 0.0), op.Shape(cls))
        mask = op.ScatterElements(nothing, by_text, op.Expand(picked, op.Shape(by_text)), axis=1)
        if options["crops"] == "each":
            free = op.Sub(ops.f32(g, 1.0), op.GatherElements(mask, by_cls, axis=1))
            wanted = op.Cast(op.Sub(keep, from_text), to=int(ir.DataType.FLOAT))
            taken = op.LessOrEqual(op.CumSum(free, g.ints(1)), wanted)
            free = op.Where(taken, free, ops.f32(g, 0.0))
            return op.Max(mask, op.ScatterElements(nothing, by_cls, free, axis=1))
        return op.Where(op.Greater(mask, ops.f32(g, 0.5)), ops.f32(g, _CHOSEN), cls)

    def _lists(
        self, g: Graph, inputs: Mapping[str, ir.Value], keep: ir.Value, options: Mapping[str, Any]
    ) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value, ir.Value]:
        """A and C cut to K [batch, K], q + k1 [batch, 1], 0..K-1 [K], cleaned CLS scores [batch, N]."""
        text = write_text_scores(
            g,
            inputs["image_features"],
            inputs["text_embeds"],
            inputs["text_mask"],
            options["temperature"],
        )
        cls = ops.write_clean(g, saliency(inputs, options))
        fraction = _quota_fraction(options["quota"])
        quota = ops.write_scale_count(g, fraction.numerator, fraction.denominator, keep)
        if options["crops"] == "each":
            text = g.op.Where(grids.write_candidates(g, inputs["grid"]), text, ops.f32(g, NEVER))
            by_cls = _write_cls_list(g, cls, inputs["grid"], keep, quota, options["most_crops"])
            cls_sorted = g.op.GatherElements(cls, by_cls, axis=1)
        else:
            cls_sorted, by_cls = ops.top(g, cls, keep)
        text_sorted, by_text = ops.top(g, text, keep)
        from_text = write_split(g, text_sorted, cls_sorted, quota, keep)
        return by_text, by_cls, from_text, ops.iota(g, keep), cls


def _cls_list(cls: np.ndarray, grid: np.ndarray, keep: int, quota: int) -> np.ndarray:
    """The CLS list [N] of an image whose budget is shared out to its crops.

    Crop by crop the best of each; what is behind the quota, sorted anew by its score; then all other tokens.
    """
    import numpy as np

    order, count = listed_by_crop(cls, grid, keep)
    rest = order[min(quota, count) : count]
    return np.concatenate([order[: min(quota, count)], rest[ops.descending(cls[rest])], order[count:]])


def _write_cls_list(
    g: Graph, cls: ir.Value, grid: ir.Value, keep: ir.Value, quota: ir.Value, most_crops: int
) -> ir.Value:
    """The first ``keep`` of :func:`_cls_list`: int64 [batch, keep]."""
    import onnx_ir as ir

    op = g.op
    order, count = write_listed_by_crop(g, cls, grid, keep, most_crops)
    place = ops.iota(g, op.Shape(order, start=1, end=2))
    # Scores that sort so: 1e35 for what stays in front, the CLS score, and below all of these the place.
    late = op.Mul(op.Add(op.Cast(place, to=int(ir.DataType.FLOAT)), ops.f32(g, 2.0**20)), ops.f32(g, -1e28))
    score = op.Where(op.Less(place, count), op.GatherElements(cls, order, axis=1), late)
    score = op.Where(op.Less(place, op.Min(quota, count)), ops.f32(g, _CHOSEN), score)
    return op.GatherElements(order, ops.top(g, score, keep)[1], axis=1)


def write_text_scores(
    g: Graph,
    image_features: ir.Value,
    text_embeds: ir.Value,
    text_mask: ir.Value,
    temperature: float,
) -> ir.Value:
    """:func:`text_scores` for [batch, N, D], [batch, T, D] and a mask int64 [batch, T]: float32 [batch, N]."""
    import onnx_ir as ir

    op = g.op
    image, image_norm, image_good = ops.write_norms(g, image_features)
    text, text_norm, text_good = ops.write_norms(g, text_embeds)
    cosine = ops.write_cosine(g, text, text_norm, image, image_norm)
    logits = op.Mul(
        op.Where(op.Transpose(image_good, perm=[0, 2, 1]), cosine, ops.f32(g, -ops.BAR)),
        ops.f32(g, temperature),
    )
    below = op.Sub(logits, op.ReduceMax(logits, g.ints(2), keepdims=1))
    log_softmax = op.Sub(below, op.Log(op.ReduceSum(op.Exp(below), g.ints(2), keepdims=1)))
    real = op.Cast(op.Unsqueeze(text_mask, g.ints(2)), to=int(ir.DataType.BOOL))
    usable = op.And(real, text_good)
    return op.ReduceMax(op.Where(usable, log_softmax, ops.f32(g, _NO_SCORE)), g.ints(1), keepdims=0)


def write_split(g: Graph, text_sorted: ir.Value, cls_sorted: ir.Value, quota: ir.Value, keep: ir.Value) -> ir.Value:
    """:func:`split` for [batch, K] lists and int64 [1] q and K: int64 [batch, 1].

    With n = q + k1 the number of T2I picks, the sums over the entries from q on are S1[n] and S2[K - n], where S[m]
    sums the entries q..m-1.  So both prefix sums run over the whole list with the quota set to 0, one is reversed, and
    n ≥ q may win: every shape depends on K alone.  n > K - q cannot, S2 is 0 there as it is at K - q, which is first.
    """
    op = g.op
    in_quota = op.Less(ops.iota(g, keep), quota)
    first = op.Gather(text_sorted, quota, axis=1)
    # Inside the quota the difference is positive and unused: capped, so that exp cannot overflow.
    relative = op.Exp(op.Min(op.Sub(text_sorted, first), ops.f32(g, 0.0)))

    def sums(values: ir.Value) -> ir.Value:
        rest = op.Where(in_quota, ops.f32(g, 0.0), values)
        return op.CumSum(op.Pad(rest, g.ints(0, 0, 0, 1)), g.ints(1), exclusive=1)

    count = ops.iota(g, op.Add(keep, g.ints(1)))
    products = op.Mul(sums(relative), op.Gather(sums(cls_sorted), op.Sub(keep, count), axis=1))
    allowed = op.GreaterOrEqual(count, quota)
    return op.ArgMax(op.Where(allowed, products, ops.f32(g, -3.0e38)), axis=1, keepdims=1, select_last_index=0)
