"""A vision graph's outputs, from transformers' hidden states and attention maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["vision_outputs"]

# The names in transformers 5 and 4, and those of the norms behind, whose results come later and count.
PROJECTIONS = {"k": (".k_proj", ".attention.key", ".k_norm"), "q": (".q_proj", ".attention.query", ".q_norm")}


def vision_outputs(
    config: Any, tower: Any, projector: Any, pixels: torch.Tensor, wanted: Sequence[str], shallow: int | None
) -> dict[str, np.ndarray]:
    """The requested outputs: ``image_features`` of each crop, and those of
    :data:`trtprune.pruning.inputs.FROM_VISION`, except those that need CLIP's text half.

    Of a model that puts squares of patches together: the means over the squares, and of what a patch has alone only.

    Args:
        config: The whole model's config.
        tower, projector: The model's modules; the tower with eager attention.
        pixels: [B, 3, H, W].
        wanted: Requested names; unknown ones are ignored.
        shallow: The layer for ``shallow_attention``, counted from 1.
    """
    # Where the config names none, it is the last one, with all of its tokens.
    layers = getattr(config, "vision_feature_layer", -1)
    count = config.vision_config.num_hidden_layers + 1
    chosen = [i % count for i in (layers if isinstance(layers, list) else [layers])]
    last = max(chosen) - 1
    first = int(getattr(config, "vision_feature_select_strategy", "full") == "default")
    projected: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, out, which=which: projected.update({which: out}))
        for name, module in tower.named_modules()
        for which, ends in PROJECTIONS.items()
        if name.endswith(ends) and f".{last}." in name
    ]
    try:
        seen = tower(pixels, output_attentions=True, output_hidden_states=True)
    finally:
        for hook in hooks:
            hook.remove()

    def received(layer: int) -> torch.Tensor:
        return seen.attentions[layer].mean(dim=(1, 2))[:, first:]

    def states() -> torch.Tensor:
        import torch

        return torch.cat([seen.hidden_states[i] for i in chosen], dim=-1)

    heads = config.vision_config.num_attention_heads

    def mean_query() -> torch.Tensor:
        queries, keys = (projected[which].unflatten(-1, (heads, -1)).transpose(1, 2) for which in "qk")
        logits = queries.mean(2, keepdim=True) @ keys.mT * keys.shape[-1] ** -0.5
        return logits.softmax(-1).mean(dim=(1, 2))[:, first:]

    makers = {
        "image_features": lambda: projector(states()[:, first:]),
        "cls_attention": lambda: seen.attentions[last][:, :, 0].mean(1)[:, first:],
        "vision_features": lambda: states()[:, first:],
        "mean_query_attention": mean_query,
        "vision_keys": lambda: projected["k"].unflatten(-1, (heads, -1)).mean(2)[:, first:],
        "cls_feature": lambda: projector(states()[:, :1])[:, 0],
        "shallow_attention": lambda: received(shallow - 1) if shallow is not None else None,
        "deep_attention": lambda: received(last),
    }
    found = {name: makers[name]() for name in wanted if name in makers}
    side = getattr(config, "scale_factor", int(1 / getattr(config, "downsample_ratio", 1)))
    if side > 1:
        found = {name: _square_means(value, side) for name, value in found.items()}
    return {name: value.numpy() for name, value in found.items()}


def _square_means(values: torch.Tensor, side: int) -> torch.Tensor:
    """Means over squares of ``side`` × ``side`` patches of a square crop, [B, P, …]: [B, P / side², …]."""
    across = round(values.shape[1] ** 0.5) // side
    squares = values.unflatten(1, (across, side, across, side)).mean(dim=(2, 4))
    return squares.flatten(1, 2)
