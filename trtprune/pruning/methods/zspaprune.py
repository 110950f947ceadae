"""ZSPAPrune: a core of prompt-relevant tokens, completed by diverse ones.

Paper: https://arxiv.org/abs/2510.17197 (Zhang, Li, Xian, Tang).  No code of the authors was found, and the equation of
the diversity stage could not be read; third-party re-implementations disagree with the text.  What is confirmed:

    t  = mean of the prompt's token embeddings              prompt simplification
    s_j = cos(t, v_j);   core = the k_c tokens with the largest s
    repeat K - k_c times: add the token most dissimilar to all tokens selected so far

For K = keep this file computes k_c = round(core_ratio · K), halves up, but at least 1 (so that the first dissimilarity
is defined), core_ratio being read as a fraction with a denominator up to 10000.  Open points are options:

* ``core_ratio`` (0.5): set by hand for each data set in the paper.  1 is relevance alone.
* ``diversity``: "most dissimilar to all" as ``maxmin``, the token whose *largest* cosine to the selected ones is the
  smallest (as DivPrune, the paper's main baseline; default), or ``meansim``, the one whose *mean* cosine to them is
  the smallest.  The mean has the same divisor for every candidate, so sums are compared; the cosine to the mean of the
  selected unit vectors, a third reading, orders the candidates as ``meansim`` does.
* ``prompt_tokens``: ``question`` (default), ``after_image`` or ``all_text``.
* ``center=true`` (Cen-Prune, not of this paper) subtracts the image's mean from the features in the diversity stage;
  the relevance to the prompt is unchanged.

Arithmetic (float32, both forms): t enters as the sum, not the mean, which changes no cosine.  The core is ordered by s,
and the greedy sums add the core's rows in that order, then one row for each pick.  Tokens whose features are not
finite have similarity 0 to every other token and are picked when nothing else is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from trtprune.pruning import ops
from trtprune.pruning.greedy import LAST, TAKEN
from trtprune.pruning.method import Method
from trtprune.pruning.options import PROMPT_TOKENS, Option
from trtprune.pruning.prompt import prompt_cosines, write_prompt_cosines
from trtprune.pruning.registry import register
from trtprune.pruning.similarity import CENTER, cosines, write_cosines

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from trtprune.graph import Graph

__all__ = ["ZspaPrune", "greedy", "prompt_scores"]


def _core_count(core_ratio: float) -> tuple[int, int, int]:
    """k_c = max(1, (a · K + b) // c): round(core_ratio · K), halves up."""
    ratio = Fraction(str(core_ratio)).limit_denominator(10_000)
    return 2 * ratio.numerator, ratio.denominator, 2 * ratio.denominator


def prompt_scores(image_features: np.ndarray, text_embeds: np.ndarray) -> np.ndarray:
    """cos(mean text, v_j) [N] for float32 [N, D] and [T, D]; 0 without usable text, lowest for a bad token."""
    import numpy as np

    cosine, good = prompt_cosines(image_features, text_embeds)
    return np.where(good, cosine, -np.float32(ops.BAR))


def greedy(image_features: np.ndarray, core: np.ndarray, keep: int, diversity: str, center: bool = False) -> np.ndarray:
    """``core`` completed to ``keep`` tokens by the diversity rule, in order of selection."""
    import numpy as np

    similarity, good = cosines(image_features, center)
    picks = list(core)
    if diversity == "maxmin":
        close = similarity[core].max(axis=0)
    else:
        close = np.add.accumulate(similarity[core], axis=0, dtype=np.float32)[-1]
    close = np.where(good, close, np.float32(LAST))
    close[core] = TAKEN
    while len(picks) < keep:
        best = int(np.argmin(close))
        picks.append(best)
        row = similarity[best]
        close = np.maximum(close, row) if diversity == "maxmin" else close + row
        close[best] = TAKEN
    return np.array(picks, dtype=np.int64)


@register
class ZspaPrune(Method):
    """A prompt-relevant core and tokens that are unlike it."""

    name = "zspaprune"
    summary = "tokens close to the question, then the most diverse ones; needs no CLS token"
    paper = "https://arxiv.org/abs/2510.17197"
    source = "none published"
    needs = frozenset({"text_embeds"})
    cost = "N x N cosines, keep greedy steps over a row"
    options = (
        Option("core_ratio", 0.5, "fraction of the budget chosen by relevance to the prompt", minimum=0, maximum=1),
        Option(
            "diversity",
            "maxmin",
            "dissimilar means: smallest largest (maxmin) or smallest mean (meansim) cosine to the selected",
            choices=("maxmin", "meansim"),
        ),
        Option("prompt_tokens", "question", "the prompt tokens whose mean is the prompt", choices=tuple(PROMPT_TOKENS)),
        CENTER,
    )

    def select(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
        import numpy as np

        a, b, c = _core_count(inputs["core_ratio"])
        core_size = max(1, (a * keep + b) // c)
        core = ops.descending(prompt_scores(image_features, inputs["text_embeds"]))[:core_size]
        return np.sort(greedy(image_features, core, keep, inputs["diversity"], inputs["center"] == "true"))

    def scores(self, g: Graph, inputs: Mapping[str, ir.Value], *, keep: ir.Value, **options: Any) -> ir.Value:
        """Closeness after the last step: ``TAKEN`` for the selected tokens, exactly ``keep`` of them."""
        from trtprune.pruning.greedy_graph import maxmin_select

        op = g.op
        cosine, good = write_prompt_cosines(g, inputs["image_features"], inputs["text_embeds"], inputs["text_mask"])
        relevance = op.Where(good, cosine, ops.f32(g, -ops.BAR))

        a, b, c = _core_count(options["core_ratio"])
        core_size = op.Max(op.Div(op.Add(op.Mul(keep, g.ints(a)), g.ints(b)), g.ints(c)), g.ints(1))
        _, core = ops.top(g, relevance, core_size)
        one = op.Expand(ops.f32(g, 1.0), op.Shape(core))
        in_core = op.ScatterElements(op.Expand(ops.f32(g, 0.0), op.Shape(cosine)), core, one, axis=1)
        in_core = op.Greater(in_core, ops.f32(g, 0.5))
        if options["core_ratio"] == 1:
            return op.Where(in_core, ops.f32(g, TAKEN), op.Neg(ops.f32(g, TAKEN)))

        similarity, _ = write_cosines(g, inputs["image_features"], options["center"] == "true")
        core_rows = op.GatherND(similarity, op.Unsqueeze(core, g.ints(2)), batch_dims=1)
        reduce = op.ReduceMax if options["diversity"] == "maxmin" else op.ReduceSum
        close = op.Where(good, reduce(core_rows, g.ints(1), keepdims=0), ops.f32(g, LAST))
        close = op.Where(in_core, ops.f32(g, TAKEN), close)
        return maxmin_select(g, similarity, close, op.Sub(keep, core_size), str(options["diversity"]))
