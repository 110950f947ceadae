"""Every output of a vision graph, from transformers: hidden states, full attention maps, and hooks on key projections.

Written from the definitions in ``trtprune.pruning.inputs``; nothing of trtprune is used.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.kit import tiny


def expected(t: tiny.Tiny, model: Any, pixel_values: np.ndarray, shallow: int | None = None) -> dict[str, np.ndarray]:
    """Name → float32 [B, …]; without a CLS token no ``cls_…``, without a layer in use nothing of attention.

    Args:
        t: What was made.
        model: By ``tiny.make``: float32, eager attention.
        pixel_values: [B, 3, H, W].
        shallow: Layer, counted from 1, of ``shallow_attention``.
    """
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    chosen = t.feature_layer if isinstance(t.feature_layer, list) else [t.feature_layer]
    layers = [i % (t.vision_layers + 1) for i in chosen]
    last, first = max(layers), 1 if t.strategy == "default" else 0
    keys: dict[int, torch.Tensor] = {}
    queries: dict[int, torch.Tensor] = {}
    handles = []
    for name, module in tower.named_modules():
        if name.endswith(("k_proj", "q_proj")):
            index = int(next(part for part in name.split(".") if part.isdigit()))
            seen = keys if name.endswith("k_proj") else queries
            handles.append(
                module.register_forward_hook(lambda _, __, out, i=index, seen=seen: seen.__setitem__(i, out))
            )
    try:
        with torch.no_grad():
            out = tower(torch.from_numpy(pixel_values), output_attentions=True, output_hidden_states=True)
            states = torch.cat([out.hidden_states[i] for i in layers], dim=-1)
            found = {"image_features": projector(states[:, first:]), "vision_features": states[:, first:]}
            if t.tower != "siglip":
                found["cls_feature"] = projector(states[:, :1])[:, 0]
    finally:
        for handle in handles:
            handle.remove()
    if last:
        maps = out.attentions[last - 1]
        found["deep_attention"] = maps.mean(dim=(1, 2))[:, first:]
        q, k = (seen[last - 1].double().unflatten(-1, (4, -1)).transpose(1, 2) for seen in (queries, keys))
        mean = torch.softmax(q.mean(2, keepdim=True) @ k.mT / k.shape[-1] ** 0.5, dim=-1)
        found["mean_query_attention"] = mean.mean(dim=(1, 2)).float()[:, first:]
        found["vision_keys"] = keys[last - 1].unflatten(-1, (4, -1)).mean(2)[:, first:]
        if t.tower != "siglip":
            found["cls_attention"] = maps[:, :, 0].mean(1)[:, first:]
    if shallow is not None:
        found["shallow_attention"] = out.attentions[shallow - 1].mean(dim=(1, 2))[:, first:]
    return {name: value.numpy() for name, value in found.items()}
