"""The closeness of each visual token to the prompt: the cosine to the mean of its token embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtprune.pruning import ops

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from trtprune.graph import Graph

__all__ = ["prompt_cosines", "write_prompt_cosines"]


def prompt_cosines(image_features: np.ndarray, text_embeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cosine of each token to the mean of the text.

    The text enters as its sum, not its mean, which changes no cosine; rows that are not finite are not in it.

    Args:
        image_features: float32 [N, D].
        text_embeds: float32 [T, D].

    Returns:
        float32 [N], 0 without usable text or for a token that is not finite; and bool [N], the finite tokens.
    """
    image, image_norm, good = ops.norms(image_features)
    text, _, _ = ops.norms(text_embeds)
    prompt, prompt_norm, _ = ops.norms(text.sum(axis=0, keepdims=True))
    return ops.cosine(prompt, prompt_norm, image, image_norm)[0], good


def write_prompt_cosines(
    g: Graph, image_features: ir.Value, text_embeds: ir.Value, text_mask: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """:func:`prompt_cosines` for [batch, N, D] and [batch, T, D] with ``text_mask`` int64 [batch, T]: [batch, N]."""
    import onnx_ir as ir

    op = g.op
    image, image_norm, good = ops.write_norms(g, image_features)
    text, _, _ = ops.write_norms(g, text_embeds)
    real = op.Cast(op.Unsqueeze(text_mask, g.ints(2)), to=int(ir.DataType.BOOL))
    text_sum = op.ReduceSum(op.Where(real, text, ops.f32(g, 0.0)), g.ints(1), keepdims=1)
    prompt, prompt_norm, _ = ops.write_norms(g, text_sum)
    cosine = op.Squeeze(ops.write_cosine(g, prompt, prompt_norm, image, image_norm), g.ints(1))
    return cosine, op.Squeeze(good, g.ints(2))
