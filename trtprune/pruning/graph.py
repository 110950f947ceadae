"""The pruner graph of the chain: a method's selection and the gather of the kept features.

Inputs ``image_features`` [batch, N, D]; of ``cls_attention`` float32 [batch, N], ``text_embeds`` [batch, T, D] with
``text_mask`` int64 [batch, T] (1 = a real token), and ``seed`` int64 [1] what the method needs; ``keep`` int64 [1].
Outputs ``kept_indices`` int64 [batch, keep], ascending, and ``pruned_features`` [batch, keep, D].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from trtprune.pruning.base import Method

if TYPE_CHECKING:
    from trtprune.graph import Graph, Lowering

__all__ = ["build_pruner"]


def build_pruner(
    method: Method | str,
    hidden_size: int,
    dtype: str = "float32",
    lowering: Lowering | None = None,
    options: Mapping[str, object] | None = None,
    *,
    num_tokens: int | None = None,
) -> Graph:
    """The graph of ``method`` for features of width ``hidden_size``.

    Args:
        method: A method or its name.
        hidden_size: D.
        dtype: Of features and text embeddings; the selection is computed in float32 in any case.
        lowering: How the backend wants operators spelled.
        options: Method options; what is left out has its default.
        num_tokens: N, where the model fixes it; left out, N is a run-time dimension.

    Raises:
        BudgetError: for an unknown method or option.
    """
    from trtprune import pruning
    from trtprune.graph import Graph
    from trtprune.graph.ops import topk_gather

    if isinstance(method, str):
        method = pruning.get(method)
    values = method.validate_options(options)
    g = Graph("pruner", dtype=dtype, lowering=lowering)
    tokens = num_tokens if num_tokens is not None else "visual_tokens"
    shapes: dict[str, tuple[str, list[int | str]]] = {
        "image_features": (dtype, ["batch", tokens, hidden_size]),
        "cls_attention": ("float32", ["batch", tokens]),
        "text_embeds": (dtype, ["batch", "text_tokens", hidden_size]),
        "text_mask": ("int64", ["batch", "text_tokens"]),
        "seed": ("int64", [1]),
        "keep": ("int64", [1]),
    }
    wanted = {"image_features", "keep"} | method.needs
    if "text_embeds" in wanted:
        wanted.add("text_mask")
    inputs = {name: g.input(name, *shapes[name]) for name in shapes if name in wanted}
    keep = inputs.pop("keep")
    features = inputs["image_features"]

    scores = method.scores(g, inputs, keep=keep, num_tokens=num_tokens, **values)
    if scores is not None:
        pruned, indices = topk_gather(g, scores, features, keep)
    else:
        indices = method.build(g, inputs, keep=keep, num_tokens=num_tokens, **values)
        pruned = g.op.GatherND(features, g.op.Unsqueeze(indices, g.ints(-1)), batch_dims=1)
    g.output(indices, "kept_indices", "int64", ["batch", "keep"])
    g.output(pruned, "pruned_features", dtype, ["batch", "keep", hidden_size])
    return g
