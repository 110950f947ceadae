"""Every output of a vision graph, from transformers: hidden states, full attention maps, and hooks on key projections.

Written from the definitions in ``trtprune.pruning.inputs``; nothing of trtprune is used.  Where a square of patches is
a visual token, features are the model's own and all else is the mean over the square.
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
    if t.tower == "smolvlm":
        tower, projector = model.model.vision_model, model.model.connector.modality_projection
    else:
        tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    chosen = t.feature_layer if isinstance(t.feature_layer, list) else [t.feature_layer]
    layers = [i % (t.vision_layers + 1) for i in chosen]
    last, first = max(layers), 1 if t.strategy == "default" and t.tower != "smolvlm" else 0
    keys: dict[int, torch.Tensor] = {}
    queries: dict[int, torch.Tensor] = {}
    handles = []
    ends = ("k_norm", "q_norm") if t.vision.get("use_qk_norm") else ("k_proj", "q_proj")
    for name, module in tower.named_modules():
        if name.endswith(ends):
            index = int(next(part for part in name.split(".") if part.isdigit()))
            seen = keys if name.endswith(ends[0]) else queries
            handles.append(
                module.register_forward_hook(lambda _, __, out, i=index, seen=seen: seen.__setitem__(i, out))
            )
    try:
        with torch.no_grad():
            out = tower(torch.from_numpy(pixel_values), output_attentions=True, output_hidden_states=True)
            states = torch.cat([out.hidden_states[i] for i in layers], dim=-1)
            found = {"vision_features": states[:, first:]}
            if t.tower == "internvl":
                if layers == [t.vision_layers] and chosen == [-1]:
                    states = out.last_hidden_state
                square = states[:, first:].unflatten(1, (int((states.shape[1] - first) ** 0.5), -1))
                shuffled = model.model.pixel_shuffle(square, scale_factor=model.config.downsample_ratio)
                found = {"vision_features": shuffled.flatten(1, 2)}
            if t.tower == "smolvlm":
                shuffled = model.model.connector.pixel_shuffle(out.last_hidden_state, model.config.scale_factor)
                found = {"vision_features": shuffled}
            found["image_features"] = projector(found["vision_features"])
            if t.tower not in ("siglip", "internvl", "smolvlm"):
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
        if t.tower not in ("siglip", "smolvlm"):
            found["cls_attention"] = maps[:, :, 0].mean(1)[:, first:]
    if shallow is not None:
        found["shallow_attention"] = out.attentions[shallow - 1].mean(dim=(1, 2))[:, first:]
    if t.tower in ("internvl", "smolvlm"):
        side = model.config.scale_factor if t.tower == "smolvlm" else int(1 / model.config.downsample_ratio)
        for name in found.keys() - {"image_features", "vision_features"}:
            found[name] = _square_means(found[name], side)
    return {name: value.numpy() for name, value in found.items()}


def _square_means(values: torch.Tensor, side: int) -> torch.Tensor:
    """Means over squares of ``side`` × ``side`` patches of [B, P, …]: [B, P / side², …]."""
    rows = int(values.shape[1] ** 0.5)
    planes = values.reshape(len(values), rows, rows, -1).movedim(-1, 1)
    means = torch.nn.functional.avg_pool2d(planes, side).flatten(2).movedim(1, -1)
    return means.reshape(len(values), -1, *values.shape[2:])
