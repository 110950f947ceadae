"""HAWK: the tokens that the question's queries match best in the decoder's first layer, head by head.

Paper: https://arxiv.org/abs/2604.07812 (CVPR 2026).  Code: peppery77/HAWK@3af2071 (Apache-2.0), for Qwen2.5-VL.

    q_t = W_q norm(text_t),   k_j = W_k norm(image_j)        of layer 0, without rotary positions
    c_hj = mean over t of q_ht · k_hj / sqrt(d)              head h; with grouped queries k is that of its group
    score_j = Σ_h w_h c_hj / ‖c_h‖                           the norm over the image's tokens
    selection = top-keep of score

Both projections are the layer's own, its biases and (Qwen3) its per-head norms with it: what its attention sees before
rotary positions.  The code knows no decoder with such norms; to apply them is this project's reading.  The projections
are a part of the pruner graph, with the decoder's weights.  The mean over t is taken of the queries, which is the same
sum, and sqrt(d) drops out with the norm.

``heads`` names the weights w: ``uniform`` (default), or ``published``, which the authors measured on Qwen2.5-VL-7B by
leaving out one head at a time.  They fit a decoder with 28 query heads and were not measured on any other model.

The text is the question by default.  In the code it is what stands between the last image and the last ``<|im_end|>``,
which is the question if that follows the image.  Several images are one row of candidates there; here each is pruned
for itself.  NaN counts as 0 in the code; here a token that is not finite comes last.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trtprune.arguments import arg
from trtprune.errors import BudgetError, InputError
from trtprune.pruning import ops
from trtprune.pruning.method import Method
from trtprune.pruning.options import PROMPT_TOKENS, Option
from trtprune.pruning.registry import register

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from trtprune.graph import Graph

__all__ = ["PUBLISHED", "Hawk"]

# The measured importance of each query head of Qwen2.5-VL-7B, before it is scaled to a sum of 1: numbers of
# peppery77/HAWK@3af2071 (Apache-2.0), src/hawk/config.py.
PUBLISHED = (
    0.0875, 0.3000, 0.0480, 0.0321, 0.0104, 0.0102, 0.0336,
    0.0460, 0.0540, 0.0472, 0.0234, 0.0537, 0.0109, 0.0573,
    0.0276, 0.0403, 0.0429, 0.0352, 0.0162, 0.0519, 0.0553,
    0.0266, 0.0222, 0.0480, 0.0337, 0.0250, 0.0000, 0.0224,
)  # fmt: skip


@register
class Hawk(Method):
    """Head-weighted match of queries and keys in the decoder's first layer."""

    name = "hawk"
    summary = "what the question's queries match best in the decoder's first layer; needs no CLS token"
    paper = "https://arxiv.org/abs/2604.07812"
    source = "https://github.com/peppery77/HAWK @ 3af2071"
    needs = frozenset({"text_query", "image_keys"})
    cost = "the first layer's query and key projections, heads x N products, one TopK"
    options = (
        Option(
            "heads",
            "uniform",
            "the weights of the heads: all alike, or the published ones of Qwen2.5-VL-7B's 28 heads",
            choices=("uniform", "published"),
        ),
        Option("prompt_tokens", "question", "the tokens whose queries count", choices=tuple(PROMPT_TOKENS)),
    )

    def check_heads(self, heads: int, options: Mapping[str, Any]) -> None:
        if options["heads"] == "published" and heads != len(PUBLISHED):
            raise BudgetError(
                f"{arg('options', {'heads': 'published'})}: {self.name} has published weights of "
                f"{len(PUBLISHED)} heads, those of Qwen2.5-VL-7B; this decoder has {heads}",
                hint=arg("options", {"heads": "uniform"}),
            )

    def select(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
        import numpy as np

        query, keys = inputs["text_query"], inputs["image_keys"]
        (heads, width), (groups, tokens, _) = query.shape, keys.shape
        if heads % groups or keys.shape[2] != width:
            raise InputError(f"text_query has shape {query.shape}, which does not fit image_keys {keys.shape}")
        self.check_heads(heads, inputs)
        rows, _, seen = ops.norms(keys.transpose(1, 0, 2).reshape(tokens, -1))
        _, _, good = ops.norms(image_features)
        good = good & seen
        keys = np.where(good[:, None], rows, np.float32(0)).reshape(tokens, groups, width).transpose(1, 2, 0)
        match = (query.reshape(groups, heads // groups, width) @ keys).reshape(heads, tokens)
        length = np.sqrt(np.sum(match * match, axis=1, keepdims=True, dtype=np.float32))
        match = match / np.maximum(length, np.float32(ops.NORM_EPS))
        if inputs["heads"] == "published":
            match = match * _published()[:, None]
        score = np.add.reduce(match, axis=0)
        return np.sort(ops.descending(np.where(good, ops.clean(score), -np.float32(ops.BAR)))[:keep])

    def scores(self, g: Graph, inputs: Mapping[str, ir.Value], *, keep: ir.Value, **options: Any) -> ir.Value:
        op, query, keys = g.op, inputs["text_query"], inputs["image_keys"]
        keys, seen = _write_finite(g, keys)
        _, _, good = ops.write_norms(g, inputs["image_features"])
        good = op.And(op.Squeeze(good, g.ints(2)), seen)
        keys = op.Where(op.Unsqueeze(good, g.ints(1, 3)), keys, ops.f32(g, 0.0))
        heads, width = op.Shape(query, start=1, end=2), op.Shape(query, start=2, end=3)
        groups, tokens = op.Shape(keys, start=1, end=2), op.Shape(keys, start=2, end=3)
        rest = g.ints(-1)
        asking = op.Reshape(query, op.Concat(rest, op.Div(heads, groups), width, axis=0))
        match = ops.write_products(g, asking, op.Reshape(keys, op.Concat(rest, tokens, width, axis=0)))
        match = op.Reshape(match, op.Concat(rest, heads, tokens, axis=0))
        length = op.Sqrt(op.ReduceSum(op.Mul(match, match), g.ints(2), keepdims=1))
        match = op.Div(match, op.Max(length, ops.f32(g, ops.NORM_EPS)))
        if options["heads"] == "published":
            match = op.Mul(match, g.constant(_published()[:, None]))
        score = op.ReduceSum(match, g.ints(1), keepdims=0)
        return op.Where(good, ops.write_clean(g, score), ops.f32(g, -ops.BAR))


def _published() -> np.ndarray:
    """The published weights, scaled to a sum of 1: float32 [28]."""
    import numpy as np

    return (np.array(PUBLISHED) / sum(PUBLISHED)).astype(np.float32)


def _write_finite(g: Graph, keys: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Keys [batch, groups, N, width], 0 for tokens that are not finite; and the finite tokens, bool [batch, N]."""
    op = g.op
    tokens = op.Shape(keys, start=2, end=3)
    by_token = op.Transpose(keys, perm=[0, 2, 1, 3])
    shape = op.Shape(by_token)
    flat = op.Reshape(by_token, op.Concat(op.Shape(keys, start=0, end=1), tokens, g.ints(-1), axis=0))
    rows, _, good = ops.write_norms(g, flat)
    return op.Transpose(op.Reshape(rows, shape), perm=[0, 2, 1, 3]), op.Squeeze(good, g.ints(2))
